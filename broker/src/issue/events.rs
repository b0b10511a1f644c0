//! The events of one issue, in the order of its stages.

use ephor_proto::event::{Approval, AuditEvent, CredentialPart, Outcome, Text};
use ephor_proto::id::{CorrelationId, GrantId};
use ephor_proto::stage::Stage;

use crate::app::Broker;
use crate::approve::Approved;
use crate::decide::Decided;
use crate::kind::effect::Content;
use crate::kind::x509;
use crate::ledger::{CredentialRow, NewEvent, TaskRow};
use crate::request::Refusal;

impl Broker {
    pub(super) fn task_opened(
        &self,
        task: &TaskRow,
        decided: &Decided,
        correlation: CorrelationId,
    ) -> Result<AuditEvent, Refusal> {
        let evidence = decided.attested().requested().evidence();
        let mut event = self.event(Stage::Attest, "task_opened", Outcome::Ok)?;
        event.subject = Some(task.subject.as_str().into());
        event.agent = Some(self.agent_id(&task.host));
        event.task = Some(task.id);
        event.request = Some(decided.attested().requested().id());
        event.correlation = Some(correlation);
        let facts = [
            ("task_rule", task.rule.clone()),
            ("pid", task.pid.to_string()),
            ("start_time", task.start_time.to_string()),
            ("boot_id", task.boot_id.clone()),
            ("uid", evidence.uid.to_string()),
            ("exe", evidence.exe.clone()),
            (
                "exe_sha256",
                ephor_crypto::digest::hex(&evidence.exe_sha256),
            ),
            ("unit", evidence.unit.clone()),
            ("held_by", evidence.held_by.clone()),
        ];
        event.facts.extend(known(facts));
        Ok(event)
    }

    pub(super) fn decide_allowed(
        &self,
        approved: &Approved,
        grant: GrantId,
        correlation: CorrelationId,
    ) -> Result<NewEvent, Refusal> {
        let mut event = self.decision_event(approved.decided(), correlation)?;
        event.approval = Some(Approval {
            how: approved.how(),
            grant: Some(grant),
            votes: Vec::new(),
        });
        let reason = approved.decided().attested().requested().reason();
        self.with_reason(event, reason)
    }

    /// `decide.allowed`, without what an approval adds.
    pub(super) fn decision_event(
        &self,
        decided: &Decided,
        correlation: CorrelationId,
    ) -> Result<AuditEvent, Refusal> {
        let attested = decided.attested();
        let allowed = decided.allowed();
        let mut event = self.event(Stage::Decide, "allowed", Outcome::Ok)?;
        event.subject = Some(allowed.subject.as_str().into());
        event.agent = Some(self.agent_id(attested.host()));
        event.task = Some(attested.requested().task().id);
        event.request = Some(attested.requested().id());
        event.decision = Some(decided.id());
        event.correlation = Some(correlation);
        event.entitlement = Some(attested.requested().entitlement().to_owned());
        event.owner = Some(Text::Plain(allowed.owner.clone()));
        event.purpose = Some(allowed.purpose.clone());
        event.policy_version = Some(decided.allowed().policy_version.to_string());
        let item = attested.requested().item().to_owned();
        let facts = [
            ("item", item),
            ("rule", allowed.rule.clone()),
            ("ttl_seconds", allowed.ttl.as_seconds().to_string()),
            ("capped_by", allowed.capped_by.to_string()),
        ];
        event.facts.extend(known(facts));
        Ok(event)
    }

    /// `issue.recorded` or `issue.renewed`: the record without which no credential is live (P1).
    pub(super) fn issued(
        &self,
        verb: &str,
        row: &CredentialRow,
        decided: &Decided,
        correlation: CorrelationId,
    ) -> Result<AuditEvent, Refusal> {
        let mut event = self.about(Stage::Issue, verb, row)?;
        event.request = Some(decided.attested().requested().id());
        event.decision = Some(decided.id());
        event.correlation = Some(correlation);
        event.policy_version = Some(decided.allowed().policy_version.to_string());
        event.facts.extend(self.where_found(row));
        if let Some(serial) = x509::serial_of(row) {
            event.facts.insert("serial".to_owned(), serial.to_string());
        }
        Ok(event)
    }
}

impl Broker {
    /// Facts that say where a credential is listed, or what it is called at its target, and by which
    /// rule it was given.
    pub(super) fn where_found(&self, row: &CredentialRow) -> Vec<(String, String)> {
        let mut facts = vec![
            ("capped_by", row.capped_by.clone()),
            ("rule", row.rule.clone()),
        ];
        match Content::of(row) {
            Some(content) => {
                let certificate = content.certificate.as_ref();
                let serial = certificate.and_then(|newest| newest.serial(row.id).ok());
                facts.extend(serial.map(|serial| ("serial", serial.to_string())));
                facts.push(("target", content.target));
                facts.push(("name", content.name));
                let group = content.groups.into_iter().next();
                let group = group.filter(|_| content.reassign);
                facts.extend(group.map(|group| ("reassign", group)));
            }
            None => {
                facts.push(("list", self.list_uri(row)));
                facts.push(("list_index", row.status_index.to_string()));
            }
        }
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        facts.into_iter().map(owned).collect()
    }
}

fn known<const N: usize>(facts: [(&str, String); N]) -> impl Iterator<Item = (String, String)> {
    facts
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value))
}

/// The part of an event that names a credential.
pub(crate) fn credential_part(row: &CredentialRow) -> CredentialPart {
    CredentialPart {
        kind: row.kind,
        id: row.id,
        scope: row.item.clone(),
        issued_at: row.issued_at,
        expires_at: row.expires_at,
        state: row.state,
    }
}
