//! What waits to be ended at its target: one bounded queue for each target, people's requests
//! before ends of tasks before expiries, so that a target that hangs holds up nothing but itself.
//!
//! The store's `revoking` rows are the truth; this only remembers whose turn it is. Nothing is ever
//! given up: what does not fit is found again by a scan, and what fails waits longer each time.

mod run;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ephor_proto::id::CredentialId;
use ephor_proto::limits::OVERDUE_AFTER_MILLIS;
use ephor_proto::state::task::EndCause;
use ephor_proto::time::Boottime;
use tokio::sync::{Notify, oneshot};

use crate::ledger::CredentialRow;
use crate::limits;

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Someone revoked it.
    Person,
    /// Its task ended.
    End,
    /// Its time is over.
    Expiry,
}

impl Urgency {
    /// Of a revoking credential.
    #[must_use]
    pub fn of(row: &CredentialRow) -> Self {
        match row.cause {
            Some(EndCause::Revoked) => Self::Person,
            Some(EndCause::Exited | EndCause::Released | EndCause::Deadline | EndCause::Lost) => {
                Self::End
            }
            None => Self::Expiry,
        }
    }
}

/// Something to end at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Whose end.
    pub credential: CredentialId,
    /// Who goes first.
    pub urgency: Urgency,
    /// It was told before that it is late.
    pub is_flagged: bool,
    /// Only found in the store at a start: not before the log is confirmed.
    pub is_found: bool,
}

impl Wanted {
    /// The end of a revoking credential.
    #[must_use]
    pub fn of(row: &CredentialRow, is_found: bool) -> Self {
        Self {
            credential: row.id,
            urgency: Urgency::of(row),
            is_flagged: row.overdue.is_some(),
            is_found,
        }
    }
}

/// One end that was not reached in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// Whose.
    pub credential: CredentialId,
    /// At which target.
    pub target: String,
    /// What went wrong at the last try; empty while the first one is under way.
    pub why: String,
    /// Tries so far.
    pub attempts: u32,
    /// Until the next one.
    pub next_in: Duration,
}

/// How one target's queue is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The target.
    pub target: String,
    /// Ends that wait or are under way.
    pub ends: u64,
    /// Of them those that were not reached in time.
    pub late: u64,
}

#[derive(Debug)]
struct Job {
    urgency: Urgency,
    /// From when its time counts.
    since: Boottime,
    next: Boottime,
    attempts: u32,
    is_running: bool,
    /// It was told that it is late.
    is_flagged: bool,
    /// See [`Wanted::is_found`].
    is_found: bool,
    why: String,
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: HashMap<CredentialId, Job>,
    /// Calls under way.
    running: usize,
    /// The last call failed.
    is_failing: bool,
}

#[derive(Default)]
struct Inner {
    queues: HashMap<String, Queue>,
    overflowed: bool,
}

/// See the module.
#[derive(Default)]
pub struct Queues {
    /// Guards the queues; held for one look-up or one scan of a queue.
    inner: Mutex<Inner>,
    /// Rung when something may be due.
    rung: Notify,
}

impl Queues {
    /// Ends this at its target as soon as it is its turn. Again: no change, but that it does not wait
    /// for what was only found.
    pub fn add(&self, target: &str, wanted: Wanted, now: Boottime) {
        let is_added = self.with(|inner| {
            let queue = inner.queues.entry(target.to_owned()).or_default();
            if let Some(job) = queue.jobs.get_mut(&wanted.credential) {
                job.is_found &= wanted.is_found;
                job.urgency = job.urgency.min(wanted.urgency);
                return true;
            }
            let places = match wanted.urgency {
                Urgency::Person => limits::TARGET_QUEUE + limits::TARGET_QUEUE_PEOPLE,
                Urgency::End | Urgency::Expiry => limits::TARGET_QUEUE,
            };
            if queue.jobs.len() >= places {
                inner.overflowed = true;
                return false;
            }
            let job = Job {
                urgency: wanted.urgency,
                since: now,
                next: now,
                attempts: 0,
                is_running: false,
                is_flagged: wanted.is_flagged,
                is_found: wanted.is_found,
                why: String::new(),
                waiting: Vec::new(),
            };
            queue.jobs.insert(wanted.credential, job);
            true
        });
        if is_added {
            self.rung.notify_one();
        }
    }

    /// Targets with something due and a place for one more call.
    fn ready(&self, now: Boottime, may_sweep: bool) -> Vec<String> {
        self.with(|inner| {
            let is_ready = |queue: &Queue| {
                let mut jobs = queue.jobs.values();
                queue.running < limits::TARGET_CALLS && jobs.any(|job| job.is_due(now, may_sweep))
            };
            let ready = inner.queues.iter().filter(|(_, queue)| is_ready(queue));
            let mut ready: Vec<String> = ready.map(|(name, _)| name.clone()).collect();
            ready.sort_unstable();
            ready
        })
    }

    /// Takes what one call is for, the most urgent and longest waiting first; empty when there is
    /// nothing due or no place. What is taken must come back by [`Queues::done`] or
    /// [`Queues::failed`], and the place by [`Queues::left`].
    fn take(&self, target: &str, now: Boottime, may_sweep: bool) -> Vec<CredentialId> {
        self.with(|inner| {
            let Some(queue) = inner.queues.get_mut(target) else {
                return Vec::new();
            };
            if queue.running >= limits::TARGET_CALLS {
                return Vec::new();
            }
            let mut due: Vec<_> = queue
                .jobs
                .iter()
                .filter(|(_, job)| job.is_due(now, may_sweep))
                .map(|(id, job)| (job.urgency, job.next, *id))
                .collect();
            // A failing target is asked with little, until it does something.
            let most = if queue.is_failing {
                1
            } else {
                limits::TARGET_BATCH
            };
            due.sort_unstable();
            due.truncate(most);
            for (_, _, id) in &due {
                if let Some(job) = queue.jobs.get_mut(id) {
                    job.is_running = true;
                }
            }
            if !due.is_empty() {
                queue.running += 1;
            }
            due.into_iter().map(|(_, _, id)| id).collect()
        })
    }

    /// Resolves when something may be due.
    async fn rung(&self) {
        self.rung.notified().await;
    }

    /// The place of a call is free again. What of it neither was done nor failed, because the call
    /// itself broke, is tried again a little later.
    fn left(&self, target: &str, ids: &[CredentialId], now: Boottime) {
        self.with(|inner| {
            if let Some(queue) = inner.queues.get_mut(target) {
                queue.running = queue.running.saturating_sub(1);
                for id in ids {
                    let job = queue.jobs.get_mut(id).filter(|job| job.is_running);
                    if let Some(job) = job {
                        job.is_running = false;
                        job.next = now.saturating_add(limits::TARGET_RETRY_MOST / 4);
                    }
                }
                if queue.jobs.is_empty() && queue.running == 0 {
                    inner.queues.remove(target);
                }
            }
        });
        self.rung.notify_one();
    }

    /// It is dead, and that is stored. A target that works again is asked for all that waits.
    fn done(&self, target: &str, id: CredentialId, now: Boottime) {
        self.with(|inner| {
            let Some(queue) = inner.queues.get_mut(target) else {
                return;
            };
            if std::mem::take(&mut queue.is_failing) {
                for job in queue.jobs.values_mut() {
                    job.next = job.next.min(now);
                }
            }
            for waiting in queue
                .jobs
                .remove(&id)
                .into_iter()
                .flat_map(|job| job.waiting)
            {
                // Who waited may have gone.
                let _ = waiting.send(());
            }
        });
    }

    /// It was not ended; it waits longer each time, up to a cap, and for ever.
    fn failed(&self, target: &str, id: CredentialId, now: Boottime, why: &str) {
        self.with(|inner| {
            let Some(queue) = inner.queues.get_mut(target) else {
                return;
            };
            queue.is_failing = true;
            if let Some(job) = queue.jobs.get_mut(&id) {
                job.is_running = false;
                job.attempts = job.attempts.saturating_add(1);
                job.next = now.saturating_add(pause(id, job.attempts));
                why.clone_into(&mut job.why);
            }
        });
    }

    /// Another writer was faster; it is looked at again at once.
    fn again(&self, target: &str, id: CredentialId) {
        self.with(|inner| {
            let queue = inner.queues.get_mut(target);
            if let Some(job) = queue.and_then(|queue| queue.jobs.get_mut(&id)) {
                job.is_running = false;
            }
        });
    }

    /// What is late and was not told so yet, also when its call has not come back. The time of what
    /// was only found counts from when it may be swept.
    pub(super) fn late(&self, now: Boottime, may_sweep: bool) -> Vec<Late> {
        let mut late = Vec::new();
        self.with(|inner| {
            for (target, queue) in &mut inner.queues {
                for (id, job) in &mut queue.jobs {
                    if job.is_found {
                        if may_sweep {
                            job.is_found = false;
                            job.since = now;
                        }
                        continue;
                    }
                    // Told within the bound, so a tick and a commit before it.
                    let waited = now.millis_since(job.since) + limits::OVERDUE_AHEAD_MILLIS;
                    if job.is_flagged || waited < OVERDUE_AFTER_MILLIS {
                        continue;
                    }
                    job.is_flagged = true;
                    late.push(Late {
                        credential: *id,
                        target: target.clone(),
                        why: job.why.clone(),
                        attempts: job.attempts + u32::from(job.is_running),
                        next_in: Duration::from_millis(job.next.millis_since(now)),
                    });
                }
            }
        });
        late
    }

    /// The flag could not be stored; it is told at the next look.
    pub(super) fn unflag(&self, target: &str, id: CredentialId) {
        self.with(|inner| {
            let queue = inner.queues.get_mut(target);
            if let Some(job) = queue.and_then(|queue| queue.jobs.get_mut(&id)) {
                job.is_flagged = false;
            }
        });
    }

    /// What is being tried of one credential: tries so far, until the next one, and why not yet.
    #[must_use]
    pub fn trying(&self, id: CredentialId, now: Boottime) -> Option<Late> {
        self.with(|inner| {
            inner.queues.iter().find_map(|(target, queue)| {
                let job = queue.jobs.get(&id)?;
                Some(Late {
                    credential: id,
                    target: target.clone(),
                    why: job.why.clone(),
                    attempts: job.attempts + u32::from(job.is_running),
                    next_in: Duration::from_millis(job.next.millis_since(now)),
                })
            })
        })
    }

    /// Waits until none of these is here any more, at most so long. False: some still are.
    pub async fn wait(&self, ids: &[CredentialId], most: Duration) -> bool {
        let mut awaited = Vec::new();
        self.with(|inner| {
            for queue in inner.queues.values_mut() {
                for id in ids {
                    if let Some(job) = queue.jobs.get_mut(id) {
                        let (sender, receiver) = oneshot::channel();
                        job.waiting.retain(|waiting| !waiting.is_closed());
                        job.waiting.push(sender);
                        awaited.push(receiver);
                    }
                }
            }
        });
        let all = futures_util::future::join_all(awaited);
        tokio::time::timeout(most, all).await.is_ok()
    }

    /// How each queue is, by the target's name.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut all = self.with(|inner| {
            let one = |(target, queue): (&String, &Queue)| Waiting {
                target: target.clone(),
                ends: queue.jobs.len() as u64,
                late: queue.jobs.values().filter(|job| job.is_flagged).count() as u64,
            };
            inner.queues.iter().map(one).collect::<Vec<_>>()
        });
        all.sort_by(|a, b| a.target.cmp(&b.target));
        all
    }

    /// There are more in the store than were found.
    pub(super) fn not_all(&self) {
        self.with(|inner| inner.overflowed = true);
    }

    /// True once after something did not fit, and there is room: scan the store for it.
    pub(super) fn needs_scan(&self) -> bool {
        self.with(|inner| {
            let has_room = |queue: &Queue| queue.jobs.len() < limits::TARGET_QUEUE / 2;
            inner.queues.values().all(has_room) && std::mem::take(&mut inner.overflowed)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Job {
    fn is_due(&self, now: Boottime, may_sweep: bool) -> bool {
        !self.is_running && self.next <= now && (may_sweep || !self.is_found)
    }
}

/// Until the next try: longer each time up to the cap, and a little off for each credential, so
/// that many do not come together.
fn pause(id: CredentialId, attempts: u32) -> Duration {
    let whole = limits::RETRY_FIRST
        .saturating_mul(1 << attempts.min(10))
        .min(limits::TARGET_RETRY_MOST);
    let last = id.to_bytes().last().copied().unwrap_or_default();
    let off = u32::from(last.wrapping_add(attempts.to_le_bytes()[0].wrapping_mul(97)));
    // Between three quarters and the whole.
    whole.saturating_sub(whole / 4 * off / 255)
}
