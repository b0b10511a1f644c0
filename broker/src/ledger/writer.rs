//! The one writer: takes whatever queued during the last flush and commits it as one
//! transaction. No timer decides about a group; a quiet ledger commits at once.
//!
//! After a failed flush nobody knows what is on disk, the page cache included, so the process
//! aborts; the next start reads what really is there.

mod group;
mod spill;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use ephor_proto::time::UnixMillis;
use rusqlite::{Connection, ErrorCode, ffi};

use super::batch::{CommitError, Lane, Reason};
use super::holder::{Fence, Place};
use super::overlay::Overlay;
use super::queue::{Job, Queue, Taken};
use super::reserve::Reserve;
use super::tree::{Frontier, Head};
use super::{SharedClock, wal};
use crate::limits;

/// What the writer shares with submitters and readers.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) head: ArcSwap<Head>,
    pub(super) overlay: ArcSwap<Overlay>,
    pub(super) wal: Arc<wal::Signal>,
    pub(super) next_batch: AtomicU64,
    pub(super) counts: Counts,
    pub(super) fenced: AtomicBool,
    pub(super) full: AtomicBool,
    /// Highest wall time stored, in milliseconds.
    pub(super) high_water: AtomicU64,
    #[cfg(any(test, feature = "failpoints"))]
    pub(super) faults: super::faults::Faults,
}

/// What happened since start.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) commits: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) conflicts: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) reserved: AtomicU64,
    pub(super) queue_full: AtomicU64,
}

/// Adds to a count.
pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// The writer's own things.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) frontier: Frontier,
    pub(super) reserve: Option<Reserve>,
    pub(super) fence: Fence,
    pub(super) place: Place,
    pub(super) clock: SharedClock,
    pub(super) shared: Arc<Shared>,
    pub(super) writes_since_look: u64,
}

/// Why a whole group was not committed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No space; nothing was written.
    Full,
    /// Another broker took over; nothing was written.
    Fenced,
    /// Another process holds the write lock; nothing was written.
    Busy,
    /// The store is damaged; nothing was written.
    Damaged(String),
    /// The fate is not known.
    Unknown,
}

impl Trouble {
    /// From an error before the commit; aborts when a flush or write failed.
    pub(super) fn before_commit(error: &rusqlite::Error) -> Self {
        die_of(error);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(_) | None => Self::Damaged(error.to_string()),
        }
    }

    /// From an error of the commit itself. SQLite reports a full disk before the frame that
    /// commits is valid, and a busy lock before it writes; of anything else the fate is open.
    pub(super) fn at_commit(error: &rusqlite::Error) -> Self {
        die_of(error);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy) => Self::Busy,
            Some(_) | None => Self::Unknown,
        }
    }

    fn error(&self) -> CommitError {
        match self {
            Self::Full => CommitError::Refused(Reason::DiskFull),
            Self::Fenced => CommitError::Refused(Reason::EpochLost),
            Self::Busy => CommitError::Refused(Reason::Busy),
            Self::Damaged(text) => CommitError::Refused(Reason::Damaged(text.clone())),
            Self::Unknown => CommitError::Unknown,
        }
    }
}

/// Ends the process when the error says that a write or flush failed: the kernel may have
/// dropped the dirty pages, and a second flush would then report success (fsyncgate, 2018).
pub(super) fn die_of(error: &rusqlite::Error) {
    let io = error
        .sqlite_error()
        .is_some_and(|error| error.extended_code & 0xff == ffi::SQLITE_IOERR);
    if io {
        tracing::error!(%error, "a write or flush of the store failed; what is on disk is not known; aborting");
        std::process::abort();
    }
}

impl Writer {
    /// Runs until the queue is closed and empty.
    pub(super) fn run(mut self) {
        loop {
            let full = self.shared.full.load(Ordering::Acquire);
            let waiting = full || !self.shared.overlay.load().is_empty();
            let patience = waiting.then_some(limits::LEDGER_RESERVE_RETRY);
            match self.shared.queue.take(patience) {
                Taken::Group(jobs) => self.serve(jobs),
                Taken::Idle => self.look_for_space(),
                Taken::Closed => break,
            }
        }
        self.fence.release(&self.connection);
    }

    /// Nothing new is asked of a full store, so it has to find out by itself that it is not full
    /// any more: what lies in the reserve is moved in, or else a row is written as it is.
    fn look_for_space(&mut self) {
        let reserved = !self.shared.overlay.load().is_empty();
        let found = match self.merge_reserve() {
            Ok(()) if reserved => true,
            Ok(()) => self.touch().is_ok(),
            Err(_) => false,
        };
        if found {
            self.shared.full.store(false, Ordering::Release);
            tracing::info!("the store has space again");
        }
    }

    /// Each part in a transaction of its own, so that the fence stands between a new epoch and what
    /// was queued behind it: that was decided in the epoch that has ended.
    fn serve(&mut self, mut jobs: Vec<Job>) {
        while let Some(at) = jobs.iter().position(|job| job.batch.begins_epoch()) {
            let behind = jobs.split_off(at + 1);
            self.serve_together(jobs);
            jobs = behind;
        }
        if !jobs.is_empty() {
            self.serve_together(jobs);
        }
    }

    fn serve_together(&mut self, jobs: Vec<Job>) {
        if self.shared.fenced.load(Ordering::Acquire) {
            return self.refuse(jobs, &Trouble::Fenced);
        }
        // What was acknowledged first is stored first.
        match self.merge_reserve() {
            Ok(()) => self.commit(jobs),
            Err(Trouble::Full) => self.spill(jobs),
            Err(trouble) => self.refuse(jobs, &trouble),
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        match self.transact(&group::batches(&jobs), None) {
            Ok(results) => {
                self.shared.full.store(false, Ordering::Release);
                self.answer(jobs, results);
            }
            Err(Trouble::Full) => self.spill(jobs),
            Err(trouble) => self.refuse(jobs, &trouble),
        }
    }

    fn answer(&self, jobs: Vec<Job>, results: Vec<Result<u64, CommitError>>) {
        for (job, result) in jobs.into_iter().zip(results) {
            match result {
                Ok(first_leaf) => job.answer.committed(first_leaf, false),
                Err(error) => {
                    count(&self.shared.counts.conflicts, 1);
                    tracing::debug!(batch = job.batch.name, %error, "a batch was not applied");
                    job.answer.failed(error);
                }
            }
        }
        crate::crash_point!("ledger.after_answer");
    }

    fn refuse(&mut self, jobs: Vec<Job>, trouble: &Trouble) {
        if matches!(trouble, Trouble::Fenced) {
            self.shared.fenced.store(true, Ordering::Release);
        }
        count(&self.shared.counts.refused, jobs.len());
        tracing::error!(batches = jobs.len(), error = %trouble.error(), "the ledger refused a group");
        for job in jobs {
            job.answer.failed(trouble.error());
        }
    }

    /// No space: ordinary work is refused; revocations are tried alone, then go to the reserve.
    fn spill(&mut self, jobs: Vec<Job>) {
        self.shared.full.store(true, Ordering::Release);
        let alone = jobs.iter().all(|job| job.batch.lane == Lane::Revoke);
        let (revoke, normal): (Vec<Job>, Vec<Job>) = jobs
            .into_iter()
            .partition(|job| job.batch.lane == Lane::Revoke);
        if !normal.is_empty() {
            self.refuse(normal, &Trouble::Full);
        }
        if revoke.is_empty() {
            return;
        }
        let pending = !self.shared.overlay.load().is_empty();
        if alone || pending {
            return self.reserve(revoke);
        }
        match self.transact(&group::batches(&revoke), None) {
            Ok(results) => self.answer(revoke, results),
            Err(Trouble::Full) => self.reserve(revoke),
            Err(trouble) => self.refuse(revoke, &trouble),
        }
    }

    fn now(&self) -> UnixMillis {
        let stored = UnixMillis::from_millis(self.shared.high_water.load(Ordering::Relaxed));
        self.clock.wall().max(stored)
    }
}
