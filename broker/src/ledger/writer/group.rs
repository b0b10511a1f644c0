//! A group as one transaction: fence, each batch in a savepoint of its own, checkpoint, commit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ephor_proto::time::UnixMillis;
use rusqlite::{Connection, params};

use super::{Trouble, Writer, count};
use crate::clock::Stopwatch;
use crate::ledger::apply::{Standing, Stop, apply, quarantine, refusal};
use crate::ledger::batch::CommitError;
use crate::ledger::codec::{int, millis};
use crate::ledger::encode::Encoded;
use crate::ledger::queue::Job;
use crate::ledger::tree::{Frontier, Head};
use crate::limits;
use crate::metrics;

/// First leaf of each batch, or why it was not applied.
pub(super) type Results = Vec<Result<u64, CommitError>>;

/// The batches of jobs.
pub(super) fn batches(jobs: &[Job]) -> Vec<&Encoded> {
    jobs.iter().map(|job| &job.batch).collect()
}

impl Writer {
    /// Commits the batches that apply. With `merged_up_to`, they come from the reserve up to that
    /// frame: what no longer applies is set aside, and the frame's number is stored with them.
    pub(super) fn transact(
        &mut self,
        batches: &[&Encoded],
        merged_up_to: Option<u64>,
    ) -> Result<Results, Trouble> {
        // Savepoints cost a copy of every page that each batch touches, and batches nearly always
        // apply: so first without, and only after a refusal again with them.
        for isolate in [false, true] {
            match self.attempt(batches, merged_up_to, isolate) {
                Ok(Some(results)) => return Ok(results),
                Ok(None) => self.recover(),
                Err(trouble) => {
                    self.recover();
                    return Err(trouble);
                }
            }
        }
        Err(Trouble::Damaged(
            "a group could not be split into its batches".to_owned(),
        ))
    }

    /// One transaction; `None` when a batch was refused and the batches were not isolated.
    fn attempt(
        &mut self,
        batches: &[&Encoded],
        merged_up_to: Option<u64>,
        isolate: bool,
    ) -> Result<Option<Results>, Trouble> {
        let before = |error: rusqlite::Error| Trouble::before_commit(&error);
        #[cfg(any(test, feature = "failpoints"))]
        self.shared
            .faults
            .limit_pages(&self.connection)
            .map_err(before)?;
        run(&self.connection, "BEGIN IMMEDIATE").map_err(before)?;
        self.fence.check(&self.connection)?;
        self.place.check()?;
        let size = self.frontier.size();
        let mut results = Vec::with_capacity(batches.len());
        let mut standing = Standing::default();
        for batch in batches {
            let result = if isolate {
                self.isolated(batch, &mut standing)?
            } else {
                self.one(batch, &mut standing)?
            };
            if !isolate && result.is_err() {
                return Ok(None);
            }
            results.push(result);
        }
        let now = self.now();
        if let Some(seq) = merged_up_to {
            set_aside(&self.connection, batches, &results, now).map_err(before)?;
            let sql = "UPDATE installation SET reserve_seq = ?1";
            self.connection
                .prepare_cached(sql)
                .and_then(|mut s| s.execute([int(seq)]))
                .map_err(before)?;
        } else if results.iter().all(Result::is_err) {
            run(&self.connection, "ROLLBACK").map_err(before)?;
            return Ok(Some(results));
        }
        let head = self.seal(size, now)?;
        let flushing = Stopwatch::start();
        self.flush()?;
        metrics::COMMIT.observe(flushing.micros());
        metrics::GROUP.observe(batches.len() as u64);
        self.publish(head, now, batches, &results);
        Ok(Some(results))
    }

    /// One batch: applied whole, or refused with what it wrote so far still there.
    fn one(
        &mut self,
        batch: &Encoded,
        standing: &mut Standing,
    ) -> Result<Result<u64, CommitError>, Trouble> {
        match apply(&self.connection, batch, &mut self.frontier, standing) {
            Ok(first_leaf) => Ok(Ok(first_leaf)),
            Err(Stop::Store(error)) => Err(Trouble::before_commit(&error)),
            Err(Stop::Tree(text)) => Err(Trouble::Damaged(text)),
            Err(stop @ (Stop::Conflict(_) | Stop::Invalid(_))) => Ok(Err(refusal(stop))),
        }
    }

    /// One batch: applied whole, or undone without a trace in its neighbours.
    fn isolated(
        &mut self,
        batch: &Encoded,
        standing: &mut Standing,
    ) -> Result<Result<u64, CommitError>, Trouble> {
        let before = |error: rusqlite::Error| Trouble::before_commit(&error);
        run(&self.connection, "SAVEPOINT batch").map_err(before)?;
        let frontier = self.frontier.clone();
        let result = self.one(batch, standing)?;
        if result.is_err() {
            *standing = Standing::default();
            run(&self.connection, "ROLLBACK TO batch").map_err(before)?;
            self.frontier = frontier;
        }
        run(&self.connection, "RELEASE batch").map_err(before)?;
        Ok(result)
    }

    /// Commits one row as it is. Cheap, and fails as any other commit would.
    pub(super) fn touch(&mut self) -> Result<(), Trouble> {
        let before = |error: rusqlite::Error| Trouble::before_commit(&error);
        let mut attempt = || {
            run(&self.connection, "BEGIN IMMEDIATE").map_err(before)?;
            self.fence.check(&self.connection)?;
            run(
                &self.connection,
                "UPDATE installation SET reserve_seq = reserve_seq",
            )
            .map_err(before)?;
            run(&self.connection, "COMMIT").map_err(|error| Trouble::at_commit(&error))
        };
        let outcome = attempt();
        if outcome.is_err() {
            self.recover();
        }
        outcome
    }

    /// Stores the checkpoint of what was appended, and the clock's high-water mark.
    fn seal(&mut self, size_before: u64, now: UnixMillis) -> Result<Head, Trouble> {
        let before = |error: rusqlite::Error| Trouble::before_commit(&error);
        if self.frontier.size() == size_before {
            self.stamp(now).map_err(before)?;
            return Ok(**self.shared.head.load());
        }
        let head = self
            .frontier
            .head()
            .map_err(|error| Trouble::Damaged(error.to_string()))?;
        crate::crash_point!("ledger.before_checkpoint");
        self.frontier.save(&self.connection).map_err(before)?;
        self.connection
            .prepare_cached("INSERT INTO checkpoint (size, root, time) VALUES (?1, ?2, ?3)")
            .and_then(|mut s| s.execute(params![int(head.size), head.root, millis(now)]))
            .map_err(before)?;
        self.stamp(now).map_err(before)?;
        Ok(head)
    }

    fn stamp(&self, now: UnixMillis) -> rusqlite::Result<()> {
        let sql = "UPDATE installation SET clock_high_water = ?1 WHERE clock_high_water < ?1";
        self.connection
            .prepare_cached(sql)?
            .execute([millis(now)])?;
        Ok(())
    }

    /// The commit: when this returns `Ok`, it is on disk.
    fn flush(&mut self) -> Result<(), Trouble> {
        crate::crash_point!("ledger.before_commit");
        #[cfg(any(test, feature = "failpoints"))]
        if self.shared.faults.lose_commit() {
            return Err(Trouble::Unknown);
        }
        run(&self.connection, "COMMIT").map_err(|error| Trouble::at_commit(&error))?;
        crate::crash_point!("ledger.after_commit");
        #[cfg(any(test, feature = "failpoints"))]
        if self.shared.faults.doubt_commit() {
            return Err(Trouble::Unknown);
        }
        Ok(())
    }

    fn publish(&mut self, head: Head, now: UnixMillis, batches: &[&Encoded], results: &Results) {
        self.shared.head.store(Arc::new(head));
        self.shared
            .high_water
            .store(now.as_millis(), Ordering::Relaxed);
        count(&self.shared.counts.commits, 1);
        count(
            &self.shared.counts.batches,
            results.iter().filter(|result| result.is_ok()).count(),
        );
        let writes: usize = batches
            .iter()
            .map(|batch| batch.rows.len() + batch.leaves.len())
            .sum();
        self.writes_since_look += writes as u64;
        if self.writes_since_look >= limits::LEDGER_WRITES_PER_WAL_LOOK {
            self.writes_since_look = 0;
            self.shared.wal.look();
        }
    }

    /// After anything but success: back to what the store really holds.
    fn recover(&mut self) {
        if !self.connection.is_autocommit() {
            // SQLite may have rolled back by itself; if this fails too, so will the next BEGIN.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        match load(&self.connection).map(|frontier| (frontier.head(), frontier)) {
            Ok((Ok(head), frontier)) => {
                self.frontier = frontier;
                self.shared.head.store(Arc::new(head));
            }
            Ok((Err(_), _)) | Err(_) => {
                tracing::error!(
                    "the log's tree cannot be read again after a failed commit; aborting"
                );
                std::process::abort();
            }
        }
    }
}

fn load(connection: &Connection) -> Result<Frontier, Trouble> {
    Frontier::load(connection).map_err(|error| Trouble::Damaged(error.to_string()))
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

/// Batches of the reserve were acknowledged: one that does not apply any more is kept and counted.
fn set_aside(
    connection: &Connection,
    batches: &[&Encoded],
    results: &Results,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    for (batch, result) in batches.iter().zip(results) {
        let Err(error) = result else { continue };
        tracing::error!(batch = batch.name, %error, "a batch of the reserve does not apply; set aside in `quarantine`");
        let content = serde_json::to_string(batch).unwrap_or_default();
        quarantine(
            connection,
            ("reserve", &error.to_string()),
            &content,
            millis(now),
            None,
        )?;
    }
    Ok(())
}
