//! The second commit of an end: what was checked is written down, and the task is closed with
//! its one receipt.

use ephor_proto::stage::Stage;
use ephor_proto::state::credential::{self, CredentialEvent, CredentialState};
use ephor_proto::state::task::{self, TaskEvent};
use ephor_proto::time::UnixMillis;

use super::{After, Step};
use crate::app::Broker;
use crate::clock::Stopwatch;
use crate::crash_point;
use crate::issue::over_at;
use crate::kind::effect::Content;
use crate::ledger::{Batch, CredentialRow, Lane, NewEvent, Row, TaskRow};
use crate::prove::Checked;
use crate::revoke::{NotEnded, machine};
use crate::{limits, metrics};

impl Broker {
    /// Lists and checks what is still revoking of a completing task, then submits its close.
    pub(super) async fn settle(&self, mut row: TaskRow) -> Result<Step, NotEnded> {
        let now = self.clock.wall();
        self.set_aside_unreadable(row.id).await?;
        let mut all = self.ledger.reader().credentials_of(row.id)?;
        let set_aside = self.set_aside_of(&row, &all)?;
        for credential in &set_aside {
            tracing::warn!(task = %row.id, credential = %credential.id, "its row was set aside; it is revoked by what the log says of it");
            self.timers.set(credential.id, over_at(credential));
        }
        self.store_set_aside(&set_aside).await?;
        all.extend(set_aside);
        let mut at_targets = Vec::new();
        for credential in &all {
            if credential.state == CredentialState::Revoking && !credential.kind.is_signed() {
                self.end_at_target(credential, false);
                // Somebody answers for it: the receipt says so, and that nothing shows it to be dead.
                if !is_accepted(credential) {
                    at_targets.push(credential.id);
                }
            }
        }
        if !at_targets.is_empty() {
            if row
                .ended_at
                .is_some_and(|at| now.millis_since(at) >= limits::LIST_ALONE_MILLIS)
            {
                self.list_now(&all).await?;
            }
            return Ok(Step::AtTargets(at_targets));
        }
        let mut settling = Vec::new();
        let mut events = Vec::new();
        for credential in &mut all {
            if credential.state == CredentialState::Revoking && credential.kind.is_signed() {
                let checked = self.contain(credential, now).await?;
                events.push(self.listed_event(credential, &checked)?);
                settling.push(credential.clone());
            }
        }
        let contained = all
            .iter()
            .any(|row| row.state == CredentialState::Contained);
        let (state, _) = task::step(row.state, TaskEvent::Settled { contained }, now)?;
        row.state = state;
        row.closed_at = Some(now);
        row.version += 1;
        let receipt = u32::try_from(events.len()).unwrap_or(u32::MAX);
        events.push(NewEvent::from(self.receipt_event(&row, &all)?));
        let mut rows: Vec<Row> = settling.iter().cloned().map(Row::from).collect();
        rows.push(Row::Receipt {
            task: row.id,
            event: receipt,
        });
        rows.push(Row::Task(row));
        let batch = Batch {
            name: "prove.receipt",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows,
            events,
        };
        crash_point!("prove.before_receipt");
        let ticket = self.ledger.submit(batch)?;
        Ok(Step::Submitted(
            ticket,
            After::Forget {
                credentials: settling,
            },
        ))
    }

    /// What is only listed does not wait for a target for long.
    async fn list_now(&self, all: &[CredentialRow]) -> Result<(), NotEnded> {
        let mut submitted = Vec::new();
        for row in all {
            if row.state == CredentialState::Revoking && row.kind.is_signed() {
                submitted.push((row.id, self.submit_listed(row.clone()).await?));
            }
        }
        for (id, ticket) in submitted {
            self.finish_listed(id, ticket).await?;
        }
        Ok(())
    }

    /// Checks one revoking credential, and moves its row to contained (or dead, when its time is
    /// over already) if nobody takes it any more.
    pub(crate) async fn contain(
        &self,
        row: &mut CredentialRow,
        now: UnixMillis,
    ) -> Result<Checked, NotEnded> {
        let watch = Stopwatch::start();
        crash_point!("revoke.before_listing");
        // Again after a restart; setting a set bit changes nothing.
        self.list(row);
        let checked = self.check(row).await?;
        crash_point!("revoke.after_listing");
        let (listed, _) = credential::step(machine(row), CredentialEvent::Listed, now)?;
        let tick = CredentialEvent::Tick {
            outcome_due: UnixMillis::MAX,
        };
        // A clock that is not believed does not say that a time is over.
        let next = match self.clock_guard.check() {
            Ok(now) => credential::step(listed, tick, now)?.0,
            Err(_) => listed,
        };
        row.version += 1;
        row.state = next.state;
        row.overdue = None;
        row.evidence = Some(checked.text(row));
        metrics::STAGES.passed(Stage::Revoke, watch.micros());
        Ok(checked)
    }

    /// After the second commit.
    pub(super) fn settled(&self, credentials: &[CredentialRow]) {
        crash_point!("prove.after_receipt");
        for row in credentials {
            self.uses.forget(row.id);
        }
    }
}

/// Whether a person accepted that its end cannot be shown.
fn is_accepted(row: &CredentialRow) -> bool {
    Content::of(row).is_some_and(|content| content.accepted.is_some())
}
