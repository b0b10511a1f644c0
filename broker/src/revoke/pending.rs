//! Ends that are not proven yet, and when to try them again.
//!
//! The store's `completing` and `revoking` rows are the truth; this only remembers when to look at
//! which. What does not fit here is found again by a scan of the store, so nothing is ever given up.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ephor_proto::id::{CredentialId, RequestId, TaskId};
use ephor_proto::limits::OVERDUE_AFTER_MILLIS;
use ephor_proto::state::task::EndCause;
use ephor_proto::time::Boottime;

use crate::limits;

/// Something to drive to its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Work {
    /// A task that is `completing`, or open and to be ended for this cause.
    Task(TaskId, EndCause),
    /// A credential that is `revoking` while its task goes on.
    Credential(CredentialId),
    /// A request of which it is not known whether it was recorded.
    Doubtful(RequestId),
}

#[derive(Debug, Clone, Copy)]
struct Try {
    since: Boottime,
    next: Boottime,
    attempts: u32,
}

/// What to say about a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// Tries so far.
    pub attempts: u32,
    /// It has waited longer than it may.
    pub is_overdue: bool,
    /// Until the next one.
    pub next_in: Duration,
}

/// Open ends by what they are.
#[derive(Default)]
pub struct Pending {
    /// Guards the tries; held for one look-up or one scan.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tries: HashMap<Work, Try>,
    overflowed: bool,
}

impl Pending {
    /// Try this at the next tick; no change when it waits already.
    pub fn add(&self, work: Work, now: Boottime) {
        self.add_after(work, now, Duration::ZERO);
    }

    /// Try this after a while: someone is at it now, and may be stopped midway.
    pub fn add_after(&self, work: Work, now: Boottime, wait: Duration) {
        self.with(|inner| {
            if inner.tries.len() >= limits::PENDING_ENDS && !inner.tries.contains_key(&work) {
                inner.overflowed = true;
                return;
            }
            let first = Try {
                since: now,
                next: now.saturating_add(wait),
                attempts: 0,
            };
            inner.tries.entry(work).or_insert(first);
        });
    }

    /// What to try now, at most `most`, the longest waiting first.
    pub fn due(&self, now: Boottime, most: usize) -> Vec<Work> {
        self.with(|inner| {
            let mut due: Vec<(Boottime, Work)> = inner
                .tries
                .iter()
                .filter(|(_, attempt)| attempt.next <= now)
                .map(|(work, attempt)| (attempt.next, work.clone()))
                .collect();
            due.sort_by_key(|(next, _)| *next);
            due.into_iter().take(most).map(|(_, work)| work).collect()
        })
    }

    /// Open ends.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with(|inner| inner.tries.len())
    }

    /// Whether every end is proven.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it waited for has come: tried at the next tick. No change when it does not wait.
    pub fn hurry(&self, work: &Work, now: Boottime) {
        self.with(|inner| {
            if let Some(attempt) = inner.tries.get_mut(work) {
                attempt.next = attempt.next.min(now);
            }
        });
    }

    /// It waits for something else, which will [`Pending::hurry`] it; looked at again now and then all
    /// the same.
    pub fn park(&self, work: &Work, now: Boottime) {
        self.add(work.clone(), now);
        self.with(|inner| {
            if let Some(attempt) = inner.tries.get_mut(work) {
                attempt.next = now.saturating_add(limits::RETRY_MOST);
            }
        });
    }

    /// It reached its end.
    pub fn done(&self, work: &Work) {
        self.with(|inner| inner.tries.remove(work));
    }

    /// It did not; it waits longer each time, up to a cap, and for ever.
    pub fn failed(&self, work: &Work, now: Boottime) -> Failed {
        self.add(work.clone(), now);
        self.with(|inner| {
            let Some(attempt) = inner.tries.get_mut(work) else {
                return Failed {
                    attempts: 1,
                    is_overdue: false,
                    next_in: limits::RETRY_FIRST,
                };
            };
            attempt.attempts = attempt.attempts.saturating_add(1);
            let wait = limits::RETRY_FIRST
                .saturating_mul(1 << attempt.attempts.min(10))
                .min(limits::RETRY_MOST);
            attempt.next = now.saturating_add(wait);
            let is_overdue = now.millis_since(attempt.since) >= OVERDUE_AFTER_MILLIS;
            Failed {
                attempts: attempt.attempts,
                is_overdue,
                next_in: wait,
            }
        })
    }

    /// Whether this waits.
    pub fn holds(&self, work: &Work) -> bool {
        self.with(|inner| inner.tries.contains_key(work))
    }

    /// True once after something did not fit: scan the store for it.
    pub fn needs_scan(&self) -> bool {
        self.with(|inner| {
            let has_room = inner.tries.len() < limits::PENDING_ENDS / 2;
            has_room && std::mem::take(&mut inner.overflowed)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    fn task(n: u8) -> Work {
        Work::Task(TaskId::from_parts(1, [n; 10]), EndCause::Exited)
    }

    #[test]
    fn backs_off_becomes_overdue_and_never_gives_up() {
        let pending = Pending::default();
        let mut now = Boottime::from_millis(0);
        pending.add(task(1), now);
        let mut overdue = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..40 {
            assert_eq!(pending.due(now, 9), [task(1)]);
            overdue.push((
                now.as_millis() >= 5_000,
                pending.failed(&task(1), now).is_overdue,
            ));
            let start = now;
            while pending.due(now, 9).is_empty() {
                now = now.saturating_add(std::time::Duration::from_millis(50));
            }
            waits.push(now.millis_since(start));
        }
        assert!(overdue.iter().all(|(late, told)| late == told) && overdue[39].1);
        assert!(waits[0] <= 500 && waits.is_sorted());
        assert_eq!(
            *waits.last().unwrap(),
            limits::RETRY_MOST.as_millis() as u64
        );
        pending.done(&task(1));
        assert!(pending.due(now, 9).is_empty() && !pending.holds(&task(1)));
    }

    #[test]
    fn what_does_not_fit_asks_for_a_scan() {
        let pending = Pending::default();
        let now = Boottime::from_millis(0);
        let work = |n: usize| Work::Task(TaskId::from_parts(n as u64, [0; 10]), EndCause::Exited);
        for n in 0..=limits::PENDING_ENDS {
            pending.add(work(n), now);
        }
        assert!(!pending.needs_scan(), "no room yet");
        for n in 0..limits::PENDING_ENDS {
            pending.done(&work(n));
        }
        assert!(pending.needs_scan() && !pending.needs_scan());
    }
}
