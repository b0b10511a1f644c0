//! The store, the event sequence, the Merkle tree and its checkpoints: one place where a change
//! of state and the audit event that describes it are committed together.
//!
//! Everything that changes goes through [`Ledger::submit`] as a named [`Batch`]; nothing else
//! writes. An answer comes only after the flush. It must never acknowledge what is not on disk,
//! never give a leaf index twice, and never sign: signing needs a key, which it does not have.

mod apply;
mod batch;
mod codec;
mod copy;
mod encode;
#[cfg(any(test, feature = "failpoints"))]
mod faults;
mod holder;
pub mod log;
mod open;
mod overdue;
mod overlay;
mod owned;
mod quarantine;
mod queue;
mod read;
mod reserve;
mod retain;
mod row;
mod schema;
mod table;
mod tree;
mod wal;
mod writer;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;

use ephor_proto::time::{Clock, UnixMillis};

pub use batch::{
    Batch, BatchId, CommitError, Committed, Durable, Full, Key, Lane, NewEvent, Reason, Require,
    Ticket,
};
pub use copy::{Inspected, holder_of, inspect, keep_out, mark};
pub use open::OpenError;
pub use overdue::Overdue;
pub use quarantine::Quarantined;
pub use read::{
    Counts, CredentialFilter, Expiry, HeldByTask, Listing, LiveCredential, LiveEffect, LongReader,
    PolicyEntry, ReadError, Reader, ShortId, StoredEvent, TaskFilter,
};
pub use retain::{Prunable, Prune, Pruned};
pub use row::{
    CredentialRow, DecisionRow, GrantRow, HostRow, JoinTokenRow, KeyRow, NewEpoch, PolicyRow,
    RequestRow, Row, TaskRow,
};
pub use tree::Head;

use crate::limits;
use encode::Encoded;
use queue::Job;
use read::Pool;
use writer::{Shared, count};

/// A clock that several threads read.
pub type SharedClock = Arc<dyn Clock + Send + Sync>;

/// How to open a store.
pub struct Options {
    /// Take it from whoever holds it, and begin a new epoch.
    pub take_over: bool,
    /// The reserve file for revocations; made when it is not there.
    pub reserve_path: PathBuf,
    /// Where time comes from.
    pub clock: SharedClock,
}

/// What the store says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Installation id.
    pub id: String,
    /// Origin line of its checkpoints.
    pub origin: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Epoch, counted from 1; `--take-over` begins the next.
    pub epoch: u32,
}

/// Counts and conditions, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Transactions committed since start.
    pub commits: u64,
    /// Batches committed since start.
    pub batches: u64,
    /// Batches that did not apply.
    pub conflicts: u64,
    /// Batches refused.
    pub refused: u64,
    /// Batches that went to the reserve.
    pub reserved: u64,
    /// Submissions refused because a lane was full.
    pub queue_full: u64,
    /// Batches waiting: revocations, others.
    pub waiting: (usize, usize),
    /// Why ordinary work is refused now, if it is.
    pub stopped: Option<Reason>,
    /// Whether the reserve holds what the store does not have yet.
    pub reserve_in_use: bool,
}

/// The ledger. Clones share one writer.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    path: PathBuf,
    installation: Installation,
    set_aside: usize,
    /// Guards the handles; taken once, at shutdown.
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    writer: JoinHandle<()>,
    wal: JoinHandle<()>,
}

impl Ledger {
    /// Makes a new store.
    ///
    /// # Errors
    /// When there is a file already, or it cannot be written.
    pub fn create(
        path: &Path,
        installation: &str,
        origin: &str,
        trust_domain: &str,
    ) -> Result<(), OpenError> {
        open::create(path, installation, origin, trust_domain)
    }

    /// Opens a store: checks it, takes it, moves the reserve in, sets aside what cannot be read.
    ///
    /// # Errors
    /// When it is not there, not ours, of a newer version, damaged, or held by a living broker.
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let opened = open::open(path, options)?;
        let set_aside = opened.set_aside;
        let (shared, pool) = (opened.writer.shared.clone(), Arc::new(Pool::new(path)));
        let (writer, wal_connection, signal) = (opened.writer, opened.wal, shared.wal.clone());
        let threads = Threads {
            writer: vital("ledger-writer", move || writer.run())?,
            wal: vital("ledger-wal", move || wal::run(&wal_connection, &signal))?,
        };
        let installation = opened.installation;
        let threads = Mutex::new(Some(threads));
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                pool,
                path: path.to_owned(),
                installation,
                set_aside,
                threads,
            }),
        })
    }

    /// Queues a batch. Never waits; the ticket resolves when its fate is known.
    ///
    /// # Errors
    /// When its lane has no place left, or the ledger is shutting down.
    pub fn submit(&self, batch: Batch) -> Result<Ticket, Full> {
        self.queue(self.prepare(batch))
    }

    /// Queues batches as fast as that goes, so that they share commits: all are made ready first.
    pub fn submit_all(&self, batches: Vec<Batch>) -> Vec<Result<Ticket, Full>> {
        let prepare = |batch| self.prepare(batch);
        let prepared: Vec<_> = batches.into_iter().map(prepare).collect();
        let queue = |prepared| self.queue(prepared);
        prepared.into_iter().map(queue).collect()
    }

    /// What is to be queued, if it can be stored at all; if not, the ticket says so.
    fn prepare(&self, batch: Batch) -> (Option<Job>, Ticket) {
        let number = self.inner.shared.next_batch.fetch_add(1, Ordering::Relaxed);
        let (answer, ticket) = Ticket::new(BatchId(number));
        match Encoded::of(batch) {
            Ok(batch) => (Some(Job { batch, answer }), ticket),
            Err(reason) => {
                answer.failed(CommitError::Refused(reason));
                (None, ticket)
            }
        }
    }

    fn queue(&self, (job, ticket): (Option<Job>, Ticket)) -> Result<Ticket, Full> {
        let shared = &self.inner.shared;
        if let Some(job) = job {
            let pushed = shared.queue.push(job);
            pushed.inspect_err(|_| count(&shared.counts.queue_full, 1))?;
        }
        Ok(ticket)
    }

    /// Drives work that is about to submit several batches to where it waits; they are committed
    /// together.
    pub async fn together<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        let begun = {
            let _gathering = self.inner.shared.queue.gather();
            futures_util::poll!(work.as_mut())
        };
        match begun {
            Poll::Ready(output) => output,
            Poll::Pending => work.await,
        }
    }

    /// A snapshot to read from, taken at its first read.
    pub fn reader(&self) -> Reader {
        Reader::new(
            self.inner.pool.clone(),
            self.inner.shared.overlay.load_full(),
        )
    }

    /// A reader for what may take long: while it lives, the write-ahead log is not made to start over,
    /// which would hold up writers.
    pub fn long_reader(&self) -> LongReader {
        LongReader {
            reader: self.reader(),
            _held: self.inner.shared.wal.hold(),
        }
    }

    /// Size and root of the log as of the last commit.
    pub fn head(&self) -> Head {
        **self.inner.shared.head.load()
    }

    /// What the store says about itself.
    pub fn installation(&self) -> &Installation {
        &self.inner.installation
    }

    /// How many rows and batches this open set aside because they could not be used.
    #[must_use]
    pub fn set_aside_at_open(&self) -> usize {
        self.inner.set_aside
    }

    /// Highest wall time ever stored with a commit.
    pub fn clock_high_water(&self) -> UnixMillis {
        UnixMillis::from_millis(self.inner.shared.high_water.load(Ordering::Relaxed))
    }

    /// Counts and conditions now.
    pub fn health(&self) -> Health {
        let shared = &self.inner.shared;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let stopped = if shared.fenced.load(Ordering::Acquire) {
            Some(Reason::EpochLost)
        } else if shared.full.load(Ordering::Acquire) {
            Some(Reason::DiskFull)
        } else {
            None
        };
        Health {
            commits: read(&shared.counts.commits),
            batches: read(&shared.counts.batches),
            conflicts: read(&shared.counts.conflicts),
            refused: read(&shared.counts.refused),
            reserved: read(&shared.counts.reserved),
            queue_full: read(&shared.counts.queue_full),
            waiting: shared.queue.depth(),
            stopped,
            reserve_in_use: !shared.overlay.load().is_empty(),
        }
    }

    /// Forgets the listings of dead credentials that expired more than 24 h ago. Their rows stay,
    /// without content; their list indices are free. Only to be called while the clock is trusted.
    ///
    /// # Errors
    /// When a read or a commit fails; what was forgotten so far stays forgotten.
    pub async fn prune(&self, now: UnixMillis) -> Result<usize, PruneError> {
        let kept = ephor_proto::limits::LISTING_KEPT_MILLIS;
        let mut forgotten = 0;
        loop {
            let over = now.saturating_sub_millis(kept);
            let dead = self
                .reader()
                .forgettable(over, limits::LEDGER_PRUNE_CHUNK)?;
            if dead.is_empty() {
                return Ok(forgotten);
            }
            let rows: Vec<Row> = dead.into_iter().map(Row::Unlist).collect();
            forgotten += rows.len();
            let batch = Batch {
                name: "ledger.prune",
                lane: Lane::Normal,
                require: Vec::new(),
                rows,
                events: Vec::new(),
            };
            self.submit(batch)?.await?;
        }
    }

    /// Writes what is queued, gives the store back and ends the threads. Other clones then take
    /// no more batches.
    pub fn shutdown(self) {
        self.inner.stop();
    }

    #[cfg(test)]
    pub(crate) fn faults(&self) -> &faults::Faults {
        &self.inner.shared.faults
    }
}

/// Why pruning stopped.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// No place in the queue.
    #[error(transparent)]
    Full(#[from] Full),
    /// The commit failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Inner {
    fn stop(&self) {
        let threads = self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(threads) = threads else { return };
        // Readers first: whoever closes last copies the write-ahead log back and removes it, and
        // a reader could not. What is stopped is then one file.
        self.pool.close();
        self.shared.queue.close();
        // A panic of theirs has ended the process already.
        let _ = threads.writer.join();
        self.shared.wal.close();
        let _ = threads.wal.join();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A thread without which the process must not go on.
fn vital(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    let named = name.to_owned();
    let guarded = move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            tracing::error!(thread = named, "a thread of the ledger panicked; aborting");
            std::process::abort();
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(guarded)
        .map_err(OpenError::Thread)
}
