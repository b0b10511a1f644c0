//! Credentials whose rows could not be read and were set aside: the log still says that they were
//! issued, so the end of their task must tell of them. Their rows are made anew from the log.
//!
//! It must never leave one out: a receipt that counts fewer than the log issued proves nothing. Nor
//! may the end of the others wait for it.

use std::collections::BTreeMap;

use ephor_proto::event::{AuditEvent, Outcome, Text};
use ephor_proto::id::{CredentialId, DecisionId, GrantId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;

use crate::app::Broker;
use crate::kind::effect::Content;
use crate::ledger::{Batch, CredentialRow, Lane, NewEvent, Quarantined, Reason, Row, TaskRow};
use crate::revoke::{NotEnded, written};

impl Broker {
    /// The rows of a task's credentials that the log has and the store has not, as revoking.
    ///
    /// # Errors
    /// When the log cannot be read, or says too little of one: then the task does not close.
    pub(super) fn set_aside_of(
        &self,
        task: &TaskRow,
        stored: &[CredentialRow],
    ) -> Result<Vec<CredentialRow>, NotEnded> {
        let reader = self.ledger.reader();
        // Nearly always: nothing was ever set aside, and the log need not be read.
        if reader.quarantined_count()? == 0 {
            return Ok(Vec::new());
        }
        let mut grants = BTreeMap::<DecisionId, GrantId>::new();
        let mut missing = BTreeMap::<CredentialId, CredentialRow>::new();
        for leaf in reader.events_of_task(task.id, usize::MAX)? {
            let event = leaf
                .event()
                .map_err(|error| unreadable(leaf.index, &error.to_string()))?;
            if let (Some(decision), Some(approval)) = (event.decision, &event.approval) {
                grants.extend(approval.grant.map(|grant| (decision, grant)));
            }
            let Some(part) = &event.credential else {
                continue;
            };
            if event.outcome != Outcome::Ok || stored.iter().any(|row| row.id == part.id) {
                continue;
            }
            match event.event_type.as_str() {
                "issue.recorded" => {
                    let row = row_of(task, &event, &grants)
                        .ok_or_else(|| unreadable(leaf.index, "a field is missing"))?;
                    missing.insert(row.id, row);
                }
                "issue.renewed" => {
                    if let Some(row) = missing.get_mut(&part.id) {
                        row.issued_at = part.issued_at;
                        row.expires_at = part.expires_at;
                        let index = event.facts.get("list_index");
                        if let Some(index) = index.and_then(|index| index.parse().ok()) {
                            row.status_index = index;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(missing.into_values().collect())
    }
}

impl Broker {
    /// Sets aside what went bad since the start, and records that.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub(super) async fn set_aside_unreadable(&self, task: TaskId) -> Result<(), NotEnded> {
        let at = self.clock.wall();
        let held = self.ledger.reader().held_by(task, at)?;
        if held.unreadable.is_empty() {
            return Ok(());
        }
        let no_space = Err(NotEnded::Refused(Reason::DiskFull));
        if held.waits_for_space {
            return no_space;
        }
        let told = held.unreadable.iter();
        let events = told
            .filter_map(|row| self.quarantined_event(row))
            .map(NewEvent::from)
            .collect();
        let batch = Batch {
            name: "complete.unreadable",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![Row::SetAside { task, at }],
            events,
        };
        match written(self.ledger.submit(batch)?.await)? {
            // It is in its table still, and must not be left out meanwhile.
            Some(committed) if committed.in_reserve => no_space,
            Some(_) => Ok(()),
            None => Err(NotEnded::Contended),
        }
    }

    /// `operate.quarantined`: a row was set aside. What it holds stays in the store: it may be anything.
    pub(crate) fn quarantined_event(&self, row: &Quarantined) -> Option<AuditEvent> {
        let mut event = self
            .event(Stage::Operate, "quarantined", Outcome::Failed)
            .ok()?;
        let of = if row.kind == "task" { "id" } else { "task" };
        event.task = row.id(of).and_then(|id| TaskId::from_bytes(id).ok());
        event.facts.insert("table".to_owned(), row.kind.clone());
        let credential = row.id("id").filter(|_| row.kind == "credential");
        if let Some(id) = credential.and_then(|id| CredentialId::from_bytes(id).ok()) {
            event.facts.insert("credential".to_owned(), id.to_string());
        }
        Some(event)
    }

    /// Stores those again that have to be ended at a target first: whoever ends them there looks for
    /// their rows. The others are stored when they are listed.
    pub(super) async fn store_set_aside(&self, rows: &[CredentialRow]) -> Result<(), NotEnded> {
        let at_targets = rows.iter().filter(|row| !row.kind.is_signed());
        let first = at_targets
            .cloned()
            .map(|row| CredentialRow { version: 1, ..row });
        let rows: Vec<Row> = first.map(Row::from).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let batch = Batch {
            name: "complete.set_aside",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows,
            events: Vec::new(),
        };
        match written(self.ledger.submit(batch)?.await)? {
            Some(_) => Ok(()),
            None => Err(NotEnded::Contended),
        }
    }
}

fn unreadable(index: u64, why: &str) -> NotEnded {
    NotEnded::Defect(format!(
        "leaf {index} does not say enough of a credential whose row was set aside: {why}"
    ))
}

/// The row as the record of its issue describes it. What is signed is not in the log, and is not
/// needed any more.
fn row_of(
    task: &TaskRow,
    event: &AuditEvent,
    grants: &BTreeMap<DecisionId, GrantId>,
) -> Option<CredentialRow> {
    let part = event.credential.as_ref()?;
    let fact = |name: &str| event.facts.get(name).cloned();
    let plain = |text: &Option<Text>| text.as_ref().and_then(Text::plain).map(str::to_owned);
    let decision = event.decision?;
    let (status_list, status_index, content) = if part.kind.is_signed() {
        let list = fact("list")?.rsplit('/').next()?.parse().ok()?;
        (list, fact("list_index")?.parse().ok()?, String::new())
    } else {
        // As much as its target needs to end it.
        let reassign = fact("reassign");
        let content = Content {
            reassign: reassign.is_some(),
            groups: reassign.into_iter().collect(),
            is_static: part.kind == Kind::Secret,
            ..Content::named(fact("target")?, fact("name")?, event.time)
        };
        (0, 0, content.to_json().ok()?)
    };
    Some(CredentialRow {
        id: part.id,
        version: 0,
        kind: part.kind,
        task: task.id,
        host: task.host.clone(),
        subject: task.subject.clone(),
        entitlement: event.entitlement.clone()?,
        item: part.scope.clone(),
        owner: plain(&event.owner)?,
        purpose: event.purpose.clone().unwrap_or_default(),
        request: event.request?,
        decision,
        rule: fact("rule")?,
        grant: *grants.get(&decision)?,
        state: CredentialState::Revoking,
        issued_at: part.issued_at,
        expires_at: part.expires_at,
        capped_by: fact("capped_by")?,
        status_list,
        status_index,
        content,
        cause: task.state.cause(),
        revoked_at: task.ended_at,
        evidence: None,
        overdue: None,
        narrowed_by: None,
    })
}
