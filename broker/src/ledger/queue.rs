//! The two lanes before the writer. Each has places of its own, so that ordinary work can never
//! take those of revocation; pushing never waits.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::batch::{Answer, Full, Lane};
use super::encode::Encoded;
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
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    /// Guards the lanes; held for a push or a take, never while writing.
    lanes: Mutex<Lanes>,
    wake: Condvar,
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
        drop(lanes);
        self.wake.notify_one();
        Ok(())
    }

    /// Waits for work and takes a whole group; with `patience`, no longer than that.
    pub(super) fn take(&self, patience: Option<Duration>) -> Taken {
        let mut lanes = self.lanes();
        while lanes.revoke.is_empty() && lanes.normal.is_empty() {
            if lanes.closed {
                return Taken::Closed;
            }
            let Some(patience) = patience else {
                lanes = self
                    .wake
                    .wait(lanes)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (woken, timeout) = self
                .wake
                .wait_timeout(lanes, patience)
                .unwrap_or_else(PoisonError::into_inner);
            lanes = woken;
            if timeout.timed_out() && lanes.revoke.is_empty() && lanes.normal.is_empty() {
                return Taken::Idle;
            }
        }
        let first = lanes.revoke.len().min(limits::LEDGER_GROUP_MAX);
        let mut group: Vec<Job> = lanes.revoke.drain(..first).collect();
        let rest = lanes.normal.len().min(limits::LEDGER_GROUP_MAX - first);
        group.extend(lanes.normal.drain(..rest));
        Taken::Group(group)
    }

    /// Jobs waiting in each lane: revocations, others.
    pub(super) fn depth(&self) -> (usize, usize) {
        let lanes = self.lanes();
        (lanes.revoke.len(), lanes.normal.len())
    }

    /// Takes no more; what is queued is still written.
    pub(super) fn close(&self) {
        self.lanes().closed = true;
        self.wake.notify_all();
    }
}
