//! After another policy came into force: what is out is decided anew, and what that policy no longer
//! allows is revoked.
//!
//! Nothing that an older policy allowed is recorded any more when this begins (see
//! [`Require::PolicyInForce`](crate::ledger::Require)), so one look at the store finds it all. A look
//! that was cut short, by a crash or a full lane, is done again: the broker also looks at every start.

mod scan;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ephor_proto::id::TaskId;
use ephor_proto::stage::Stage;
use ephor_proto::state::grant::{GrantEnd, GrantState};
use ephor_proto::state::task::{EndCause, TaskState};

use self::scan::{Outdated, OutdatedGrant, readable, scan};
use super::{NotEnded, Work, written};
use crate::app::Broker;
use crate::complete::{By, End, closed_grant, revoke_row};
use crate::crash_point;
use crate::decide::{Fallen, Held, stands};
use crate::ledger::{Batch, CredentialRow, Lane, NewEvent, ReadError, Row, Ticket};
use crate::limits;
use crate::policy::Snapshot;

/// What a newer policy took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Narrowed {
    /// Credentials that it no longer allows.
    pub(crate) credentials: u64,
    /// Tasks whose subject has no place on their host.
    pub(crate) tasks: u64,
}

/// Which change of policy is the last whose revocations are under way. What an earlier one could not
/// finish, as where a row cannot be read, falls to the next: one at most tries again for ever.
#[derive(Debug, Default)]
pub(crate) struct Narrowing {
    /// Guards the last turn; held for a look only.
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    number: u64,
    is_unfinished: bool,
}

/// The right, and the duty, to revoke what a policy took away.
#[derive(Debug)]
pub(crate) struct Turn {
    number: u64,
    /// The policy of before, of which nothing is out that it did not allow; without it all that is
    /// out is looked at closely.
    after: Option<Arc<Snapshot>>,
}

impl Narrowing {
    /// The turn of the policy that has just taken the place of `after`.
    pub(crate) fn begin(&self, after: Option<Arc<Snapshot>>) -> Turn {
        let mut last = self.last();
        last.number += 1;
        let after = after.filter(|_| !last.is_unfinished);
        last.is_unfinished = true;
        Turn {
            number: last.number,
            after,
        }
    }

    fn is_newest(&self, turn: &Turn) -> bool {
        self.last().number == turn.number
    }

    fn finished(&self, turn: &Turn) {
        let mut last = self.last();
        if last.number == turn.number {
            last.is_unfinished = false;
        }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A first commit on its way, and what it revokes.
type Begun = (Ticket, Vec<CredentialRow>);

impl Broker {
    /// Revokes what the policy in force does not allow. Gives up when the broker stops or its store
    /// proves to be an old copy, and then the next start goes on; or when a later turn took over. Gives
    /// what was revoked, and whether that is all.
    pub(crate) async fn narrow(&self, turn: Turn) -> (Narrowed, bool) {
        let mut total = Narrowed::default();
        let mut pause = limits::RETRY_FIRST;
        let stop = self.tasks.stop_token();
        while self.may_narrow() && self.inforce.narrowing.is_newest(&turn) {
            let policy = self.policy.load_full();
            let all_done = match self.outdated(&policy, turn.after.clone()).await {
                Ok(found) => self.end_outdated(&policy, found, &mut total).await,
                Err(error) => {
                    tracing::error!(%error, "what the policy no longer allows could not be read; it is tried again");
                    false
                }
            };
            if all_done {
                self.inforce.narrowing.finished(&turn);
                return (total, true);
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = pause.saturating_mul(2).min(limits::RETRY_MOST);
        }
        (total, false)
    }

    /// Not on an old copy: what it holds for live is not its to revoke.
    fn may_narrow(&self) -> bool {
        !self.tasks.stop_token().is_cancelled() && self.behind().is_none()
    }

    /// What a policy would revoke. One scan over all that is out, beside the runtime's threads.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn outdated(
        &self,
        policy: &Arc<Snapshot>,
        after: Option<Arc<Snapshot>>,
    ) -> Result<Outdated, ReadError> {
        let (ledger, policy) = (self.ledger.clone(), Arc::clone(policy));
        let scan = tokio::task::spawn_blocking(move || scan(&ledger, &policy, after.as_deref()));
        scan.await.map_err(|_| ReadError::Busy)?
    }

    /// Ends what was found, a bounded number at a time: people's revocations come in between. False
    /// when something of it could not be begun, or it is not known of all whether they stand.
    async fn end_outdated(&self, policy: &Snapshot, found: Outdated, total: &mut Narrowed) -> bool {
        let mut all_done = found.left_out == 0;
        let tasks: Vec<_> = found.tasks.into_iter().collect();
        for some in tasks.chunks(limits::ENDS_AT_ONCE) {
            crash_point!("policy.narrowing");
            if !self.may_narrow() {
                return false;
            }
            all_done &= self.end_outdated_tasks(policy, some, total).await;
        }
        for some in found.grants.chunks(limits::NARROWED_AT_ONCE) {
            crash_point!("policy.narrowing");
            if !self.may_narrow() {
                return false;
            }
            let mut begun = Vec::new();
            for grant in some {
                match self.begin_narrowing(policy, grant) {
                    Ok((submitted, is_all)) => {
                        begun.extend(submitted);
                        all_done &= is_all;
                    }
                    Err(error) => {
                        tracing::warn!(grant = %grant.id, %error, "a credential that policy no longer allows is not revoked yet");
                        all_done = false;
                    }
                }
            }
            let (revoking, complete) = self.narrowing_began(begun).await;
            all_done &= complete;
            total.credentials += revoking.len() as u64;
            self.settle_narrowed(revoking).await;
        }
        all_done
    }

    async fn end_outdated_tasks(
        &self,
        policy: &Snapshot,
        some: &[(TaskId, String)],
        total: &mut Narrowed,
    ) -> bool {
        let cause = EndCause::Revoked;
        let end = |(task, why): &(TaskId, String)| End {
            task: *task,
            cause,
            by: By::Policy {
                version: policy.version().to_owned(),
                why: why.clone(),
            },
        };
        let before = self.live_of(some);
        self.drive_together(some.iter().map(end).collect()).await;
        self.keep_at(some, cause);
        let reader = self.ledger.reader();
        let is_open = |(task, _): &&(TaskId, String)| {
            let row = reader.task(*task).ok().flatten();
            row.is_none_or(|row| row.state == TaskState::Open)
        };
        let left = some.iter().filter(is_open).count();
        total.tasks += (some.len() - left) as u64;
        total.credentials += before;
        left == 0
    }

    /// Leaves to the sweep what was begun and not proven: no later look meets it. What is open still
    /// is begun again by the next look, which says which policy ends it.
    fn keep_at(&self, some: &[(TaskId, String)], cause: EndCause) {
        let reader = self.ledger.reader();
        for (task, _) in some {
            let is_begun = match reader.task(*task) {
                Ok(Some(row)) => matches!(row.state, TaskState::Completing(_)),
                Ok(None) => false,
                Err(_) => true,
            };
            if is_begun {
                self.pending
                    .add(Work::Task(*task, cause), self.clock.boottime());
            }
        }
    }

    /// How many credentials of some tasks are out.
    fn live_of(&self, tasks: &[(TaskId, String)]) -> u64 {
        let reader = self.ledger.reader();
        let live = |(task, _): &(TaskId, String)| {
            let rows = reader.credentials_of(*task).unwrap_or_default();
            rows.iter().filter(|row| row.state.is_out()).count() as u64
        };
        tasks.iter().map(live).sum()
    }

    /// Submits the first commit for what of a grant does not stand: judged on the rows as they are
    /// now, since a renewal may have come in between. Tells whether all of them could be read.
    fn begin_narrowing(
        &self,
        policy: &Snapshot,
        grant: &OutdatedGrant,
    ) -> Result<(Option<Begun>, bool), NotEnded> {
        let now = self.clock.wall();
        let reader = self.ledger.reader();
        let (mut revoking, mut events) = (Vec::new(), Vec::<NewEvent>::new());
        let (mut goes_on, mut is_all) = (grant.goes_on, true);
        for id in &grant.credentials {
            let row = readable(reader.credential(*id))?;
            is_all &= row.is_some();
            let Some(row) = row.filter(|row| row.state.is_out()) else {
                continue;
            };
            let held = Held {
                row: &row,
                task_opened_at: grant.opened_at,
            };
            let Err(why) = stands(policy, &held) else {
                goes_on = true;
                continue;
            };
            let mut row = revoke_row(row, EndCause::Revoked, now)?;
            row.narrowed_by = Some(policy.version().to_owned());
            events.push(self.narrowed_event(policy, &row, &why)?);
            revoking.push(row);
        }
        if revoking.is_empty() {
            return Ok((None, is_all));
        }
        let mut rows: Vec<Row> = revoking.iter().cloned().map(Row::from).collect();
        let open = readable(reader.grant(grant.id))?
            .filter(|grant| matches!(grant.state, GrantState::Open { .. }));
        if let Some(open) = open.filter(|_| is_all && !goes_on) {
            rows.push(Row::Grant(closed_grant(open, GrantEnd::Narrowed, now)?));
        }
        let batch = Batch {
            name: "revoke.narrowed",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows,
            events,
        };
        Ok((Some((self.ledger.submit(batch)?, revoking)), is_all))
    }

    /// `revoke.started`, with the policy that is why.
    fn narrowed_event(
        &self,
        policy: &Snapshot,
        row: &CredentialRow,
        why: &Fallen,
    ) -> Result<NewEvent, NotEnded> {
        let mut event = self.about(Stage::Revoke, "started", row)?;
        event.cause = Some(EndCause::Revoked.as_str().to_owned());
        event.policy_version = Some(policy.version().to_owned());
        event.facts.insert("narrowed".to_owned(), why.to_string());
        Ok(event.into())
    }

    /// Waits for first commits; what is durable is listed and the hosts are told.
    async fn narrowing_began(&self, begun: Vec<Begun>) -> (Vec<CredentialRow>, bool) {
        let (mut revoking, mut complete) = (Vec::new(), true);
        for (ticket, rows) in begun {
            match written(ticket.await) {
                Ok(Some(_)) => {
                    let now = self.clock.boottime();
                    for row in &rows {
                        let work = Work::Credential(row.id);
                        self.pending.add_after(work, now, limits::SWEEP_GRACE);
                        self.announce(row);
                    }
                    revoking.extend(rows);
                }
                // Somebody else changed it: look again.
                Ok(None) => complete = false,
                Err(error) => {
                    tracing::warn!(%error, "what policy no longer allows is not revoked yet");
                    complete = false;
                }
            }
        }
        (revoking, complete)
    }

    /// Checks and lists together, so that they share commits. What fails is driven on by the sweep.
    async fn settle_narrowed(&self, revoking: Vec<CredentialRow>) {
        let mut submitted = Vec::new();
        for row in revoking {
            let id = row.id;
            if !row.kind.is_signed() {
                // Announced, and so on its way at its target.
                self.pending.done(&Work::Credential(id));
                continue;
            }
            submitted.push((id, self.submit_listed(row).await));
        }
        for (id, ticket) in submitted {
            let outcome = match ticket {
                Ok(ticket) => self.finish_listed(id, ticket).await,
                Err(error) => Err(error),
            };
            let work = Work::Credential(id);
            match outcome {
                Ok(()) => self.pending.done(&work),
                Err(error) => {
                    tracing::warn!(credential = %id, %error, "a revocation is not proven yet");
                    self.pending.failed(&work, self.clock.boottime());
                }
            }
        }
    }
}
