//! Events as every stage makes them, and refusals that are summed up.

use ephor_proto::event::{AuditEvent, Commitment, Outcome, SALT_LEN, Text, commit};
use ephor_proto::id::{CorrelationId, DecisionId, EventId};
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;

use crate::app::Broker;
use crate::issue::defect;
use crate::ledger::{Batch, DecisionRow, Lane, NewEvent, Row};
use crate::request::{Refusal, RefusalKey};

/// An id type that is made from time and randomness.
pub trait NewId: Sized {
    /// From wall time in milliseconds and random bytes.
    fn of(unix_millis: u64, random: [u8; 10]) -> Self;
}

macro_rules! new_ids {
    ($($id:ident),*) => {$(
        impl NewId for ephor_proto::id::$id {
            fn of(unix_millis: u64, random: [u8; 10]) -> Self {
                Self::from_parts(unix_millis, random)
            }
        }
    )*};
}
new_ids!(
    RequestId,
    DecisionId,
    GrantId,
    CredentialId,
    EventId,
    JoinTokenId
);

impl Broker {
    /// A fresh id of now.
    pub(crate) fn new_id<I: NewId>(&self) -> Result<I, Refusal> {
        let random = ephor_crypto::random::bytes().map_err(defect)?;
        Ok(I::of(self.clock.wall().as_millis(), random))
    }

    /// A fresh correlation id; never fails.
    pub(crate) fn correlation(&self) -> CorrelationId {
        crate::surface::problem::correlation(self.clock.as_ref())
    }

    /// An event of now with the fields that every event has.
    pub(crate) fn event(
        &self,
        stage: Stage,
        verb: &str,
        outcome: Outcome,
    ) -> Result<AuditEvent, Refusal> {
        let id: EventId = self.new_id()?;
        let installation = (self.installation.id.as_str(), self.installation.epoch);
        Ok(AuditEvent::new(
            id,
            self.clock.wall(),
            (stage, verb),
            outcome,
            installation,
        ))
    }

    /// The event with a reason, which is free text: the leaf holds a commitment, the value lies in the
    /// erasable side table.
    pub(crate) fn with_reason(
        &self,
        mut event: AuditEvent,
        reason: &str,
    ) -> Result<NewEvent, Refusal> {
        if reason.is_empty() {
            return Ok(event.into());
        }
        let salt: [u8; SALT_LEN] = ephor_crypto::random::bytes().map_err(defect)?;
        let (commitment, kept): (Commitment, _) = commit(salt, reason);
        event.reason = Some(Text::Committed(commitment));
        Ok(NewEvent {
            event,
            personal: vec![("reason".to_owned(), kept)],
        })
    }

    /// Writes a refusal down, or counts it with equal ones of the last minute. Gives the id of the
    /// decision that stands for it in the log.
    pub(crate) async fn note_refusal(
        &self,
        key: RefusalKey,
        event: AuditEvent,
        row: Option<DecisionRow>,
    ) -> Option<DecisionId> {
        let decision = event.decision;
        let told = self
            .refusals
            .count(key, event.clone(), self.clock.boottime());
        match told {
            crate::request::Counted::Again(first) => first.decision,
            crate::request::Counted::First => {
                let rows = row.into_iter().map(Row::Decision).collect();
                self.write_refusal(event, rows).await;
                decision
            }
        }
    }

    /// Writes what ended windows summed up; all of them at a clean stop.
    pub(crate) async fn write_refusals(&self, all: bool) {
        let ended = if all {
            self.refusals.drain()
        } else {
            self.refusals.ended(self.clock.boottime())
        };
        for summed in ended {
            let mut event = summed.first;
            let (Ok(id), time) = (self.new_id(), self.clock.wall()) else {
                continue;
            };
            event.id = id;
            event.time = time;
            event.count = Some(u32::try_from(summed.count).unwrap_or(u32::MAX));
            self.write_refusal(event, Vec::new()).await;
        }
    }

    /// A refusal is told even when its event cannot be stored: nothing was issued.
    async fn write_refusal(&self, event: AuditEvent, rows: Vec<Row>) {
        let code = event.code.unwrap_or(Code::Denied);
        let batch = Batch {
            name: "decide.denied",
            lane: Lane::Normal,
            require: Vec::new(),
            rows,
            events: vec![event.into()],
        };
        let outcome = match self.ledger.submit(batch) {
            Ok(ticket) => ticket.await.map(drop).map_err(|error| error.to_string()),
            Err(full) => Err(full.to_string()),
        };
        if let Err(error) = outcome {
            tracing::warn!(%code, %error, "the event of a refusal could not be stored");
        }
    }

    /// The SPIFFE ID of a host's agent, as events name it.
    pub(crate) fn agent_id(&self, host: &str) -> String {
        format!("spiffe://{}/agent/{host}", self.installation.trust_domain)
    }
}
