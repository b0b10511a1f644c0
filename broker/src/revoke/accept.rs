//! A server that is no more cannot say that a login is gone. A person may answer for that, once, on
//! record: the task then gets its receipt, which names the credential without a proof. It is never
//! called dead, stays overdue in every listing, and is ended all the same if the server comes back.

use ephor_proto::id::CredentialId;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::TaskState;

use super::{Work, written};
use crate::app::Broker;
use crate::issue::{defect, store_unavailable};
use crate::kind::effect::{Accepted, Content};
use crate::ledger::{Batch, CredentialRow, Lane, Require};
use crate::limits;
use crate::policy::Snapshot;
use crate::request::Refusal;

impl Broker {
    /// Records that somebody answers for a credential that cannot be shown to be dead.
    ///
    /// # Errors
    /// `invalid_request` without a reason; `not_found`; `conflict` when it is not overdue, or its target
    /// is still in policy.
    pub async fn accept(
        &self,
        id: CredentialId,
        reason: &str,
        by: &str,
    ) -> Result<CredentialRow, Refusal> {
        if reason.trim().is_empty() {
            let detail = "say why with a reason: it is what the audit log keeps";
            return Err(Refusal::new(Code::InvalidRequest, detail));
        }
        for _ in 0..limits::CONFLICT_TRIES {
            let policy = self.policy.load_full();
            let (row, content) = self.acceptable(id, &policy)?;
            if content.accepted.is_some() {
                return Ok(row);
            }
            if let Some(row) = self
                .store_accepted(row, content, &policy, (reason, by))
                .await?
            {
                self.settle_soon(&row);
                return Ok(row);
            }
        }
        let detail = "the credential kept changing while this was recorded; try again";
        Err(Refusal::new(Code::Busy, detail))
    }

    /// The row, if it is overdue at a target that policy does not name any more.
    fn acceptable(
        &self,
        id: CredentialId,
        policy: &Snapshot,
    ) -> Result<(CredentialRow, Content), Refusal> {
        let row = self.ledger.reader().credential(id);
        let row = row.map_err(store_unavailable)?;
        let absent = || Refusal::new(Code::NotFound, format!("there is no credential {id}"));
        let row = row.ok_or_else(absent)?;
        let conflict = |detail: String| Err(Refusal::new(Code::Conflict, detail));
        let content = Content::of(&row);
        let is_late = row.state == CredentialState::Revoking && row.overdue.is_some();
        let (true, Some(content)) = (is_late, content) else {
            let state = row.state.as_str();
            return conflict(format!(
                "credential {} is {state} and not overdue at a target; there is nothing to accept",
                id.short()
            ));
        };
        if policy.target(&content.target).is_some() {
            return conflict(format!(
                "target {} is still in policy, and is asked until it answers; remove [target.{}] first if the \
                 server is no more",
                content.target, content.target
            ));
        }
        Ok((row, content))
    }

    /// `None`: the row changed meanwhile.
    async fn store_accepted(
        &self,
        mut row: CredentialRow,
        mut content: Content,
        policy: &Snapshot,
        (reason, by): (&str, &str),
    ) -> Result<Option<CredentialRow>, Refusal> {
        let at = self.clock.wall();
        let by = by.to_owned();
        let mut event = self.about(Stage::Revoke, "accepted", &row)?;
        event.cause = row.cause.map(|cause| cause.as_str().to_owned());
        let mut late = self.overdue_now(&row).unwrap_or_default();
        let facts = [
            ("target", content.target.clone()),
            ("name", content.name.clone()),
            ("overdue", late.to_string()),
            ("by", by.clone()),
        ];
        event
            .facts
            .extend(facts.map(|(name, value)| (name.to_owned(), value)));
        let event = self.with_reason(event, reason)?;
        row.version += 1;
        late.accepted = Some(format!("accepted by {by} on {at}, never shown to be dead"));
        row.overdue = Some(late);
        content.accepted = Some(Accepted { by, at });
        row.content = content.to_json().map_err(defect)?;
        let batch = Batch {
            name: "revoke.accepted",
            lane: Lane::Revoke,
            // The target is not in the policy that is in force when this is stored, either.
            require: vec![Require::PolicyInForce(policy.version().to_owned())],
            rows: vec![row.clone().into()],
            events: vec![event],
        };
        let ticket = self.ledger.submit(batch);
        let ticket = ticket.map_err(|full| Refusal::new(Code::Busy, full.to_string()))?;
        let stored = written(ticket.await);
        let stored = stored.map_err(|error| Refusal::new(Code::Busy, error.to_string()))?;
        Ok(stored.map(|_| row))
    }

    /// A task that only waited for this one gets its receipt.
    fn settle_soon(&self, row: &CredentialRow) {
        let task = self.ledger.reader().task(row.task).ok().flatten();
        if let Some(TaskState::Completing(cause)) = task.map(|task| task.state) {
            let now = self.clock.boottime();
            self.pending.hurry(&Work::Task(row.task, cause), now);
        }
    }
}
