//! What waits to be ended at its target: one bounded queue for each target, people's requests
//! before ends of tasks before expiries, so that a target that hangs holds up nothing but itself.
//!
//! The store's `revoking` rows are the truth; this only remembers whose turn it is. Nothing is ever
//! given up: what does not fit is found again by a scan, and what fails waits longer each time. What
//! fails while its neighbours do not is asked for alone, so that it slows none of them.

mod late;
mod run;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ephor_proto::id::CredentialId;
use ephor_proto::state::task::EndCause;
use ephor_proto::time::Boottime;
use tokio::sync::{Notify, oneshot};

use crate::ledger::CredentialRow;
use crate::limits;

pub use late::{Late, Setback, Waiting};

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
    /// It was told before that it is late, after so many tries.
    pub told: Option<u32>,
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
            told: row.overdue.as_ref().map(|overdue| overdue.attempts),
            is_found,
        }
    }
}

#[derive(Debug)]
struct Job {
    urgency: Urgency,
    /// From when its time counts.
    since: Boottime,
    next: Boottime,
    attempts: u32,
    is_running: bool,
    /// It failed where others did not, or by itself: no call takes it together with others.
    is_alone: bool,
    /// It was told that it is late, after so many tries.
    told: Option<u32>,
    /// See [`Wanted::is_found`].
    is_found: bool,
    /// What went wrong at the last try.
    setback: Option<Setback>,
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: HashMap<CredentialId, Job>,
    /// Calls under way.
    running: usize,
    /// All of the last call failed.
    is_failing: bool,
    /// How often the most that a call takes is halved: calls of more went without an answer.
    halved: u32,
    /// The store has more than fit here.
    is_overflowed: bool,
    /// Calls since the target was last reached, and until when none but a person's is made.
    away: Option<(u32, Boottime)>,
}

#[derive(Default)]
struct Inner {
    queues: HashMap<String, Queue>,
    /// Somebody wants the store to be scanned.
    is_scan_due: bool,
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
                if wanted.urgency == Urgency::Person && job.urgency != Urgency::Person {
                    job.next = job.next.min(now);
                }
                job.urgency = job.urgency.min(wanted.urgency);
                return true;
            }
            let places = match wanted.urgency {
                Urgency::Person => limits::TARGET_QUEUE + limits::TARGET_QUEUE_PEOPLE,
                Urgency::End | Urgency::Expiry => limits::TARGET_QUEUE,
            };
            if queue.jobs.len() >= places {
                queue.is_overflowed = true;
                return false;
            }
            // At a target that is away, only a person's request is tried before its next turn.
            let next = match (wanted.urgency, queue.away) {
                (Urgency::End | Urgency::Expiry, Some((_, until))) => until.max(now),
                (Urgency::End | Urgency::Expiry, None) | (Urgency::Person, _) => now,
            };
            let job = Job {
                urgency: wanted.urgency,
                since: now,
                next,
                attempts: wanted.told.unwrap_or_default(),
                is_running: false,
                is_alone: false,
                told: wanted.told,
                is_found: wanted.is_found,
                setback: None,
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
                let is_one_alone = queue.is_one_alone();
                let mut jobs = queue.jobs.values();
                let is_due =
                    |job: &Job| job.is_due(now, may_sweep) && !(job.is_alone && is_one_alone);
                queue.has_place() && jobs.any(is_due)
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
            if !queue.has_place() {
                return Vec::new();
            }
            let is_one_alone = queue.is_one_alone();
            let mut due: Vec<_> = queue
                .jobs
                .iter()
                .filter(|(_, job)| job.is_due(now, may_sweep))
                .filter(|(_, job)| !(job.is_alone && is_one_alone))
                .map(|(id, job)| (job.urgency, job.next, *id, job.is_alone))
                .collect();
            match due.iter().min().copied() {
                Some(first @ (.., true)) => due = vec![first],
                Some((.., false)) | None => due.retain(|(.., is_alone)| !is_alone),
            }
            // A failing target is asked with little, until it does something.
            let most = if queue.is_failing {
                1
            } else {
                limits::TARGET_BATCH >> queue.halved
            };
            // There may be very many, and a sort of all of them for each call is much.
            if due.len() > most {
                due.select_nth_unstable(most);
                due.truncate(most);
            }
            due.sort_unstable();
            for (_, _, id, _) in &due {
                if let Some(job) = queue.jobs.get_mut(id) {
                    job.is_running = true;
                }
            }
            if !due.is_empty() {
                queue.running += 1;
            }
            due.into_iter().map(|(_, _, id, _)| id).collect()
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
                if queue.jobs.is_empty() && queue.running == 0 && !queue.is_overflowed {
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
            queue.away = None;
            if std::mem::take(&mut queue.is_failing) {
                for job in queue.jobs.values_mut().filter(|job| !job.is_alone) {
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
    fn failed(&self, target: &str, id: CredentialId, now: Boottime, setback: Setback) {
        self.with(|inner| {
            let Some(queue) = inner.queues.get_mut(target) else {
                return;
            };
            queue.is_failing |= !setback.is_own;
            if setback.is_away {
                queue.is_away(id, now, &setback);
            }
            let away = queue.away.map(|(_, until)| until);
            if let Some(job) = queue.jobs.get_mut(&id) {
                job.is_running = false;
                job.is_alone |= setback.is_own;
                job.next = match away.filter(|_| setback.is_away) {
                    Some(until) => until,
                    None => {
                        job.attempts = job.attempts.saturating_add(1);
                        now.saturating_add(pause(id, job.attempts))
                    }
                };
                job.setback = Some(setback);
            }
        });
    }

    /// A call of so many came to its end. One that takes too long is made of fewer the next time.
    fn answered(&self, target: &str, many: usize, is_unanswered: bool) {
        self.with(|inner| {
            let Some(queue) = inner.queues.get_mut(target) else {
                return;
            };
            let fewest = limits::TARGET_BATCH.ilog2();
            queue.halved = match is_unanswered {
                true if many > 1 => (queue.halved + 2).min(fewest),
                true => queue.halved,
                false => queue.halved.saturating_sub(1),
            };
        });
    }

    /// The target answered somebody else: what waits because it was away is tried now, with one at first.
    pub(super) fn is_back(&self, target: &str, now: Boottime) {
        let was_away = self.with(|inner| {
            let Some(queue) = inner.queues.get_mut(target) else {
                return false;
            };
            if queue.away.take().is_none() {
                return false;
            }
            for job in queue.jobs.values_mut().filter(|job| !job.is_alone) {
                job.next = job.next.min(now);
            }
            true
        });
        if was_away {
            self.rung.notify_one();
        }
    }

    /// Whether all of the last call failed.
    fn is_failing(&self, target: &str) -> bool {
        self.with(|inner| {
            inner
                .queues
                .get(target)
                .is_some_and(|queue| queue.is_failing)
        })
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

    /// How long an agent may wait for these: not long where their target does not work, because each of
    /// its ends would, and there may be many.
    pub(crate) fn patience(&self, ids: &[CredentialId]) -> Duration {
        self.with(|inner| {
            let fails = |queue: &&Queue| queue.is_failing || queue.away.is_some();
            let mut failing = inner.queues.values().filter(fails);
            match failing.any(|queue| ids.iter().any(|id| queue.jobs.contains_key(id))) {
                true => limits::TARGET_ANSWER_FAILING,
                false => limits::TARGET_ANSWER,
            }
        })
    }

    /// There may be more in the store than is here.
    pub(super) fn not_all(&self) {
        self.with(|inner| inner.is_scan_due = true);
    }

    /// True once after something did not fit at a target, and there is room there, or it may be: scan the
    /// store for it.
    pub(super) fn needs_scan(&self) -> bool {
        self.with(|inner| {
            let mut is_needed = std::mem::take(&mut inner.is_scan_due);
            for queue in inner.queues.values_mut() {
                if queue.jobs.len() < limits::TARGET_QUEUE / 2 {
                    is_needed |= std::mem::take(&mut queue.is_overflowed);
                }
            }
            is_needed
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Queue {
    /// A target that is away is tried by one call at a time.
    fn has_place(&self) -> bool {
        let most = match self.away {
            Some(_) => 1,
            None => limits::TARGET_CALLS,
        };
        self.running < most
    }

    /// Whether one is asked for that is asked for alone.
    fn is_one_alone(&self) -> bool {
        let mut jobs = self.jobs.values();
        jobs.any(|job| job.is_alone && job.is_running)
    }

    /// Nobody answers there, or lets us in: all that waits has been tried with this one, and waits
    /// with it, so that a server that is coming back is not asked by each for itself. Calls that were
    /// under way together are one try.
    fn is_away(&mut self, id: CredentialId, now: Boottime, setback: &Setback) {
        let (tries, until) = self.away.unwrap_or((0, now));
        if self.away.is_some() && now < until {
            return;
        }
        let tries = tries.saturating_add(1);
        let until = now.saturating_add(pause(id, tries));
        self.away = Some((tries, until));
        for job in self.jobs.values_mut() {
            job.attempts = job.attempts.saturating_add(1);
            job.next = job.next.max(until);
            job.setback = Some(setback.clone());
        }
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
