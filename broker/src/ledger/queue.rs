//! The two lanes before the writer. Each has places of its own, so that ordinary work can never
//! take those of revocation; pushing never waits.
//!
//! A flush costs the same for one batch as for thirty. Who is about to push several says so first
//! ([`Queue::gather`]), and the writer lets them all in; it never waits for a revocation's
//! neighbours, nor for longer than [`limits::LEDGER_GATHER`].

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::batch::{Answer, Full, Lane};
use super::encode::Encoded;
use crate::clock::Stopwatch;
use crate::limits;

/// A batch and who waits for it.
pub(super) struct Job {
    pub(super) batch: Encoded,
    pub(super) answer: Answer,
}

/// What the writer found.
pub(super) enum Taken {
    /// What queued during the last flush, revocations first.
    Group(Vec<Job>),
    /// Nothing within the time given.
    Idle,
    /// Nothing, and nothing more will come.
    Closed,
}

#[derive(Default)]
struct Lanes {
    revoke: VecDeque<Job>,
    normal: VecDeque<Job>,
    closed: bool,
    /// How many are about to push more.
    gathering: usize,
    /// The writer has nothing to do but to wait.
    idle: bool,
}

impl Lanes {
    fn is_empty(&self) -> bool {
        self.revoke.is_empty() && self.normal.is_empty()
    }

    /// Whether a group is worth taking before the others have come.
    fn is_ready(&self) -> bool {
        self.closed
            || !self.revoke.is_empty()
            || self.normal.len() >= limits::LEDGER_GATHER_ENOUGH
            || (self.gathering == 0 && !self.normal.is_empty())
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    /// Guards the lanes; held for a push or a take, never while writing.
    lanes: Mutex<Lanes>,
    work: Condvar,
}

impl Queue {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // The lanes are consistent between any two statements; a panic elsewhere changes nothing.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a job, or refuses at once.
    pub(super) fn push(&self, job: Job) -> Result<(), Full> {
        let mut lanes = self.lanes();
        let closed = lanes.closed;
        let (lane, places) = match job.batch.lane {
            Lane::Revoke => (&mut lanes.revoke, limits::LEDGER_REVOKE_PLACES),
            Lane::Normal => (&mut lanes.normal, limits::LEDGER_NORMAL_PLACES),
        };
        if closed || lane.len() >= places {
            return Err(Full);
        }
        lane.push_back(job);
        self.wake(lanes);
        Ok(())
    }

    /// While the guard lives, somebody is about to push more.
    pub(super) fn gather(&self) -> Gathering<'_> {
        self.lanes().gathering += 1;
        Gathering(self)
    }

    /// A wake-up is a system call: only a writer that waits gets one, for the first of a group, from
    /// which on it counts the time, and for the last.
    fn wake(&self, mut lanes: MutexGuard<'_, Lanes>) {
        let is_first = lanes.revoke.len() + lanes.normal.len() == 1;
        if lanes.idle && (is_first || lanes.is_ready()) {
            lanes.idle = false;
            drop(lanes);
            self.work.notify_one();
        }
    }

    /// Waits for work and takes a whole group; with `patience`, no longer than that.
    pub(super) fn take(&self, patience: Option<Duration>) -> Taken {
        let mut lanes = self.lanes();
        let mut gathering: Option<Stopwatch> = None;
        while !lanes.is_ready() {
            let limit = if lanes.is_empty() {
                patience
            } else {
                let since = gathering.get_or_insert_with(Stopwatch::start);
                let waited = Duration::from_micros(since.micros());
                Some(limits::LEDGER_GATHER.saturating_sub(waited))
            };
            if limit == Some(Duration::ZERO) {
                break;
            }
            lanes.idle = true;
            let timed_out;
            (lanes, timed_out) = self.wait(lanes, limit);
            lanes.idle = false;
            if timed_out && lanes.is_empty() {
                return Taken::Idle;
            }
        }
        if lanes.is_empty() {
            return Taken::Closed;
        }
        let first = lanes.revoke.len().min(limits::LEDGER_GROUP_MAX);
        let mut group: Vec<Job> = lanes.revoke.drain(..first).collect();
        let rest = lanes.normal.len().min(limits::LEDGER_GROUP_MAX - first);
        group.extend(lanes.normal.drain(..rest));
        Taken::Group(group)
    }

    fn wait<'a>(
        &'a self,
        lanes: MutexGuard<'a, Lanes>,
        limit: Option<Duration>,
    ) -> (MutexGuard<'a, Lanes>, bool) {
        let Some(limit) = limit else {
            let lanes = self.work.wait(lanes);
            return (lanes.unwrap_or_else(PoisonError::into_inner), false);
        };
        let (lanes, timeout) = self
            .work
            .wait_timeout(lanes, limit)
            .unwrap_or_else(PoisonError::into_inner);
        (lanes, timeout.timed_out())
    }

    /// Jobs waiting in each lane: revocations, others.
    pub(super) fn depth(&self) -> (usize, usize) {
        let lanes = self.lanes();
        (lanes.revoke.len(), lanes.normal.len())
    }

    /// Takes no more; what is queued is still written.
    pub(super) fn close(&self) {
        self.lanes().closed = true;
        self.work.notify_all();
    }
}

/// See [`Queue::gather`].
pub(in crate::ledger) struct Gathering<'q>(&'q Queue);

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        let mut lanes = self.0.lanes();
        lanes.gathering = lanes.gathering.saturating_sub(1);
        self.0.wake(lanes);
    }
}
