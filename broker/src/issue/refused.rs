//! Refusals that go on record: a caller that nobody knows, and a decision that said no.

use ephor_proto::event::Outcome;
use ephor_proto::id::{CorrelationId, DecisionId};
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;

use crate::app::Broker;
use crate::attest::Attested;
use crate::decide::Denied;
use crate::fleet::Peer;
use crate::ledger::DecisionRow;
use crate::metrics;
use crate::request::{Refusal, RefusalKey, Requested};

impl Broker {
    pub(super) async fn attest_refused(
        &self,
        peer: &Peer,
        requested: &Requested,
        refusal: Refusal,
        correlation: CorrelationId,
    ) -> Refusal {
        // Half of a conversation, not a refusal of anyone.
        if refusal.code == Code::EvidenceNeeded {
            return refusal;
        }
        metrics::STAGES.refused(Stage::Attest);
        let mut event = match self.event(Stage::Attest, "refused", Outcome::Denied) {
            Ok(event) => event,
            Err(error) => return error,
        };
        event.agent = Some(self.agent_id(peer.host()));
        event.entitlement = Some(requested.entitlement().to_owned());
        event.request = Some(requested.id());
        event.correlation = Some(correlation);
        event.code = Some(refusal.code);
        event.policy_version = Some(self.policy.load().version().to_owned());
        event
            .facts
            .insert("uid".to_owned(), requested.evidence().uid.to_string());
        event
            .facts
            .insert("exe".to_owned(), requested.evidence().exe.clone());
        let key = RefusalKey {
            host: peer.host().to_owned(),
            who: format!("uid {}", requested.evidence().uid),
            what: format!("{}/{}", requested.entitlement(), requested.item()),
            code: refusal.code,
        };
        self.note_refusal(key, event, None).await;
        refusal
    }

    pub(super) async fn denied(
        &self,
        attested: &Attested,
        denied: &Denied,
        decision: DecisionId,
        correlation: CorrelationId,
    ) -> Refusal {
        metrics::STAGES.refused(Stage::Decide);
        let refusal = Refusal::new(denied.code, denied.message.clone());
        let mut event = match self.event(Stage::Decide, "denied", Outcome::Denied) {
            Ok(event) => event,
            Err(error) => return error,
        };
        let requested = attested.requested();
        event.agent = Some(self.agent_id(attested.host()));
        event.subject = denied
            .subject
            .as_ref()
            .map(|subject| subject.as_str().into());
        event.entitlement = Some(requested.entitlement().to_owned());
        event.request = Some(requested.id());
        event.decision = Some(decision);
        event.correlation = Some(correlation);
        event.code = Some(denied.code);
        event.policy_version = Some(denied.policy_version.to_string());
        event.facts.insert("why".to_owned(), denied.reason.clone());
        if !requested.item().is_empty() {
            event
                .facts
                .insert("item".to_owned(), requested.item().to_owned());
        }
        if let Some(rule) = &denied.rule {
            event.facts.insert("rule".to_owned(), rule.clone());
        }
        let row = denied_row(attested, denied, decision, event.time);
        let key = RefusalKey {
            host: attested.host().to_owned(),
            who: denied
                .subject
                .as_ref()
                .map_or_else(|| "several".to_owned(), ToString::to_string),
            what: format!("{}/{}", requested.entitlement(), requested.item()),
            code: denied.code,
        };
        let told = self.note_refusal(key, event, Some(row)).await;
        refusal.with_decision(told.unwrap_or(decision))
    }
}

fn denied_row(attested: &Attested, denied: &Denied, id: DecisionId, at: UnixMillis) -> DecisionRow {
    let requested = attested.requested();
    DecisionRow {
        id,
        request: requested.id(),
        task: None,
        allowed: false,
        code: denied.code.to_string(),
        subject: denied
            .subject
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        entitlement: requested.entitlement().to_owned(),
        item: requested.item().to_owned(),
        rule: denied.rule.clone().unwrap_or_default(),
        policy_version: denied.policy_version.to_string(),
        ttl_seconds: 0,
        capped_by: String::new(),
        decided_at: at,
    }
}
