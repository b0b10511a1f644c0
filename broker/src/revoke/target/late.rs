//! What was not ended in time is told: in its row, in the log, in the metrics. Again whenever it has
//! been tried twice as often, so that the log of an outage stays short and what is stored does not
//! grow old.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::CredentialId;
use ephor_proto::limits::OVERDUE_AFTER_MILLIS;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::{Boottime, UnixMillis};

use super::{Job, Queue, Queues};
use crate::app::Broker;
use crate::kind::effect::Failed;
use crate::ledger::{Batch, CredentialRow, Lane, Overdue};
use crate::limits;
use crate::revoke::{NotEnded, written};

/// Why a try did not end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setback {
    /// A word of a closed set, for metrics.
    pub word: &'static str,
    /// In words. Shared by all that wait for the same target.
    pub text: Arc<str>,
    /// It says something about the target, not about this one.
    pub(super) is_away: bool,
    /// It says something about this one: others were ended by the same call, or it was alone in it.
    pub(super) is_own: bool,
}

/// One end that was not reached in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// Whose.
    pub credential: CredentialId,
    /// At which target.
    pub target: String,
    /// What went wrong at the last try; empty while the first one is under way.
    pub why: Arc<str>,
    /// Tries so far.
    pub attempts: u32,
    /// Until the next one.
    pub next_in: Duration,
    /// When it was told before: after so many tries.
    told: Option<u32>,
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
    /// The late ones by the word of their last try.
    pub words: BTreeMap<&'static str, u64>,
    /// How long the oldest end waits, in milliseconds, as far as this process knows.
    pub oldest_millis: u64,
    /// Until the next try of a late one, in milliseconds.
    pub next_millis: Option<u64>,
}

impl Setback {
    /// The target's answer, or that there was none.
    pub(super) fn at_target(failed: &Failed, is_own: bool) -> Self {
        Self {
            is_own: is_own && !failed.is_away(),
            word: failed.word(),
            text: failed.to_string().into(),
            is_away: failed.is_away(),
        }
    }

    /// It could not be stored here.
    pub(super) fn here(error: &NotEnded) -> Self {
        Self {
            word: "store",
            text: error.to_string().into(),
            is_away: false,
            is_own: false,
        }
    }
}

impl Job {
    /// Told within the bound, so a tick and a commit before it.
    fn is_late(&self, now: Boottime) -> bool {
        let waited = now.millis_since(self.since) + limits::OVERDUE_AHEAD_MILLIS;
        waited >= OVERDUE_AFTER_MILLIS
    }

    /// Late and not told, or told when it had been tried half as often.
    fn is_to_tell(&self, now: Boottime) -> bool {
        match self.told {
            None => self.is_late(now),
            Some(told) => self.attempts >= told.max(1).saturating_mul(2),
        }
    }

    fn late(&self, credential: CredentialId, target: &str, now: Boottime) -> Late {
        let why = self.setback.as_ref().map(|setback| setback.text.clone());
        Late {
            credential,
            target: target.to_owned(),
            why: why.unwrap_or_else(|| "".into()),
            attempts: self.attempts + u32::from(self.is_running),
            next_in: Duration::from_millis(self.next.millis_since(now)),
            told: self.told,
        }
    }
}

impl Queues {
    /// What is late and was not told so yet, also when its call has not come back. The time of what
    /// was only found counts from when it may be swept.
    pub(in crate::revoke) fn late(&self, now: Boottime, may_sweep: bool) -> Vec<Late> {
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
                    if job.is_to_tell(now) {
                        late.push(job.late(*id, target, now));
                        job.told = Some(job.attempts);
                    }
                }
            }
        });
        late
    }

    /// It could not be stored; it is told at the next look.
    pub(super) fn not_told(&self, late: &Late) {
        self.with(|inner| {
            let queue = inner.queues.get_mut(&late.target);
            if let Some(job) = queue.and_then(|queue| queue.jobs.get_mut(&late.credential)) {
                job.told = late.told;
            }
        });
    }

    /// What is being tried of one credential: tries so far, until the next one, and why not yet.
    #[must_use]
    pub fn trying(&self, id: CredentialId, now: Boottime) -> Option<Late> {
        self.with(|inner| {
            let mut queues = inner.queues.iter();
            queues.find_map(|(target, queue)| Some(queue.jobs.get(&id)?.late(id, target, now)))
        })
    }

    /// How each queue is, by the target's name.
    #[must_use]
    pub fn waiting(&self, now: Boottime) -> Vec<Waiting> {
        let mut all = self.with(|inner| {
            let one = |(target, queue): (&String, &Queue)| queue.waiting(target, now);
            inner.queues.iter().map(one).collect::<Vec<_>>()
        });
        all.sort_by(|a, b| a.target.cmp(&b.target));
        all
    }
}

impl Queue {
    fn waiting(&self, target: &str, now: Boottime) -> Waiting {
        let mut words = BTreeMap::new();
        let (mut late, mut oldest_millis, mut next_millis) = (0, 0, None::<u64>);
        for job in self.jobs.values() {
            oldest_millis = oldest_millis.max(now.millis_since(job.since));
            if job.told.is_some() {
                late += 1;
                let word = job.setback.as_ref().map_or("no_answer", |last| last.word);
                *words.entry(word).or_default() += 1;
                let next = job.next.millis_since(now);
                next_millis = Some(next_millis.map_or(next, |before| before.min(next)));
            }
        }
        Waiting {
            target: target.to_owned(),
            ends: self.jobs.len() as u64,
            late,
            words,
            oldest_millis,
            next_millis,
        }
    }
}

impl Late {
    /// As it is stored.
    fn overdue(self, owner: String, now: UnixMillis, before: Option<Overdue>) -> Overdue {
        let next_in = u64::try_from(self.next_in.as_millis()).unwrap_or(u64::MAX);
        let before = before.unwrap_or_default();
        Overdue {
            target: self.target,
            owner,
            // Nothing since the start of this process is no reason to forget what was known before.
            why: match self.why.as_ref() {
                "" => before.why,
                why => why.to_owned(),
            },
            attempts: self.attempts,
            next_try: Some(now.saturating_add_millis(next_in)),
            accepted: before.accepted,
        }
    }
}

impl Broker {
    /// Tells what was not ended in time.
    pub(crate) async fn flag_late(&self) {
        let late = self.queues.late(self.clock.boottime(), self.may_sweep());
        for late in late.chunks(limits::LATE_AT_ONCE) {
            self.flag_together(late).await;
        }
    }

    /// Submitted side by side, so that they share commits: an outage makes many late at once.
    async fn flag_together(&self, late: &[Late]) {
        let (mut flagged, mut batches) = (Vec::new(), Vec::new());
        for late in late {
            match self.flagging(late) {
                Ok(Some(batch)) => {
                    flagged.push(late);
                    batches.push(batch);
                }
                Ok(None) => {}
                Err(error) => self.not_flagged(late, &error),
            }
        }
        for (late, ticket) in flagged.into_iter().zip(self.ledger.submit_all(batches)) {
            let written = match ticket {
                Ok(ticket) => written(ticket.await),
                Err(full) => Err(full.into()),
            };
            match written {
                Ok(Some(_)) => {}
                Ok(None) => self.not_flagged(late, &NotEnded::Contended),
                Err(error) => self.not_flagged(late, &error),
            }
        }
    }

    fn not_flagged(&self, late: &Late, error: &NotEnded) {
        tracing::warn!(credential = %late.credential, %error, "an overdue revocation could not be flagged");
        self.queues.not_told(late);
    }

    fn flagging(&self, late: &Late) -> Result<Option<Batch>, NotEnded> {
        let row = self.ledger.reader().credential(late.credential)?;
        let Some(mut row) = row.filter(|row| row.state == CredentialState::Revoking) else {
            return Ok(None);
        };
        row.version += 1;
        row.overdue = Some(self.overdue_of(late.clone(), row.overdue.take()));
        let event = self.overdue_event(&row)?;
        let batch = Batch {
            name: "revoke.overdue",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![row.into()],
            events: vec![event.into()],
        };
        Ok(Some(batch))
    }

    fn overdue_of(&self, late: Late, before: Option<Overdue>) -> Overdue {
        let owner = self.target_owner(&late.target);
        // Policy may not name it any more.
        let owner = owner.or_else(|| before.as_ref().map(|before| before.owner.clone()));
        late.overdue(owner.unwrap_or_default(), self.clock.wall(), before)
    }

    /// Why an end is late, as far as anybody knows: what is stored, and of this process's tries the
    /// last. `None` when it is not late.
    pub(crate) fn overdue_now(&self, row: &CredentialRow) -> Option<Overdue> {
        let stored = row.overdue.clone()?;
        match self.queues.trying(row.id, self.clock.boottime()) {
            Some(late) => Some(self.overdue_of(late, Some(stored))),
            None => Some(stored),
        }
    }

    /// `revoke.overdue`
    pub(in crate::revoke) fn overdue_event(
        &self,
        row: &CredentialRow,
    ) -> Result<AuditEvent, NotEnded> {
        let mut event = self.about(Stage::Revoke, "overdue", row)?;
        event.outcome = Outcome::Failed;
        event.cause = row.cause.map(|cause| cause.as_str().to_owned());
        let overdue = row.overdue.clone().unwrap_or_default();
        let mut fact = |name: &str, value: String| {
            if !value.is_empty() {
                event.facts.insert(name.to_owned(), value);
            }
        };
        fact("overdue", overdue.to_string());
        fact("why", overdue.why);
        fact("target", overdue.target);
        fact("target_owner", overdue.owner);
        fact("attempts", overdue.attempts.to_string());
        let next_try = overdue.next_try.map(|at| at.to_string());
        fact("next_try", next_try.unwrap_or_default());
        Ok(event)
    }
}
