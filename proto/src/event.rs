//! The audit event: one shape for everything that happens, and its canonical leaf.
//!
//! A leaf never holds free text or a person's name in clear: those are salted commitments whose
//! values live in an erasable side table, so that erasing never breaks the tree.

mod commitment;
mod parts;

pub use commitment::{Commitment, PersonalValue, SALT_LEN, Text, commit};
pub use parts::{Approval, CredentialPart, Evidence, How, Outcome, Totals, Used, Vote};

use serde::{Deserialize, Serialize};

use crate::id::{CorrelationId, DecisionId, EventId, RequestId, TaskId};
use crate::limits::MAX_LEAF_BYTES;
use crate::problem::Code;
use crate::stage::Stage;
use crate::time::UnixMillis;

/// One audit event. Made by [`AuditEvent::new`], then the fields that apply are set.
///
/// Fields stand in the order of their names as written, here and in every part: so the leaf is
/// canonical as it is serialised, at a third of the cost of sorting it. Numbers are `u32` at most:
/// canonical JSON keeps them exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEvent {
    /// The agent's SPIFFE ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The people's part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// Why a task ended or a credential was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The refusal's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// One call across processes and logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<CorrelationId>,
    /// How many equal ones this stands for, where they were coalesced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialPart>,
    /// The decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionId>,
    /// The entitlement's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement: Option<String>,
    /// The epoch of the log; a recovered broker begins a new one.
    pub epoch: u32,
    /// What was checked, where, and with what result; at most 100 entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
    /// Facts of one event type that have no field of their own, such as the rule that held.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub facts: std::collections::BTreeMap<String, String>,
    /// Time-ordered id.
    pub id: EventId,
    /// The installation that wrote it.
    pub installation: String,
    /// How it came out.
    pub outcome: Outcome,
    /// Its owner, such as `team:orders`; committed when it is a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Text>,
    /// Hash of the policy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<String>,
    /// The standing purpose, from policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// The reason this time; free text, so always committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text>,
    /// The request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The stage, or `operate`.
    pub stage: Stage,
    /// Who asked: a SPIFFE ID, committed for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Text>,
    /// The task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// When it happened.
    pub time: UnixMillis,
    /// Over all credentials of the task, in its `prove` events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    /// `stage.verb`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// What is known of its use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

/// Why an event cannot become a leaf.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// Larger than 60 KiB.
    #[error("an event of type {event_type} has {bytes} bytes, more than 61440: split its evidence")]
    TooLarge {
        /// The event's type.
        event_type: String,
        /// Its size.
        bytes: usize,
    },
    /// It cannot be serialised.
    #[error("an event cannot be serialised: {0}")]
    Json(#[from] serde_json::Error),
}

impl AuditEvent {
    /// An event with the fields that every event has; `verb` follows the stage in its type.
    pub fn new(
        id: EventId,
        time: UnixMillis,
        (stage, verb): (Stage, &str),
        outcome: Outcome,
        (installation, epoch): (&str, u32),
    ) -> Self {
        Self {
            id,
            time,
            stage,
            event_type: format!("{stage}.{verb}"),
            outcome,
            installation: installation.to_owned(),
            epoch,
            count: None,
            subject: None,
            agent: None,
            task: None,
            request: None,
            decision: None,
            correlation: None,
            entitlement: None,
            owner: None,
            purpose: None,
            reason: None,
            credential: None,
            approval: None,
            used: None,
            cause: None,
            evidence: Vec::new(),
            totals: None,
            policy_version: None,
            code: None,
            facts: std::collections::BTreeMap::new(),
        }
    }

    /// The verb of its type.
    pub fn verb(&self) -> &str {
        self.event_type.split_once('.').map_or("", |(_, verb)| verb)
    }

    /// The leaf: canonical JSON (RFC 8785), at most 60 KiB.
    ///
    /// # Errors
    /// When it is larger.
    pub fn leaf_bytes(&self) -> Result<Vec<u8>, LeafError> {
        // Other names are sorted by UTF-16 code units, which is not the order of a map.
        let bytes = if self.facts.keys().all(|name| name.is_ascii()) {
            serde_json::to_vec(self)?
        } else {
            serde_json_canonicalizer::to_vec(self)?
        };
        debug_assert_eq!(
            Some(&bytes),
            serde_json_canonicalizer::to_vec(self).ok().as_ref(),
            "the leaf is canonical"
        );
        if bytes.len() > MAX_LEAF_BYTES {
            let event_type = self.event_type.clone();
            return Err(LeafError::TooLarge {
                event_type,
                bytes: bytes.len(),
            });
        }
        Ok(bytes)
    }

    /// Reads a leaf back.
    ///
    /// # Errors
    /// When it is not one of this version's events.
    pub fn from_leaf(leaf: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(leaf)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::id::{CredentialId, GrantId};
    use crate::kind::Kind;
    use crate::state::credential::{CredentialState, Proof};

    fn event() -> AuditEvent {
        AuditEvent::new(
            EventId::from_parts(1_700_000_000_000, [3; 10]),
            UnixMillis::from_millis(1_700_000_000_000),
            (Stage::Decide, "allow"),
            Outcome::Ok,
            ("inst", 1),
        )
    }

    #[test]
    fn the_leaf_is_canonical_and_leaves_out_what_is_absent() {
        let leaf = String::from_utf8(event().leaf_bytes().unwrap()).unwrap();
        let expected = concat!(
            r#"{"epoch":1,"id":"018bcfe5-6800-7030-8303-030303030303","installation":"inst","#,
            r#""outcome":"ok","stage":"decide","time":"2023-11-14T22:13:20.000Z","type":"decide.allow"}"#
        );
        assert_eq!(leaf, expected);
        assert_eq!(AuditEvent::from_leaf(leaf.as_bytes()).unwrap(), event());
        assert_eq!(event().verb(), "allow");
    }

    /// Every field and every part set.
    fn full() -> AuditEvent {
        let at = UnixMillis::from_millis(1_700_000_000_001);
        let text = || Some(Text::Plain("x".to_owned()));
        AuditEvent {
            count: Some(u32::MAX),
            subject: text(),
            agent: Some("a".to_owned()),
            task: Some(TaskId::from_parts(1, [1; 10])),
            request: Some(RequestId::from_parts(1, [2; 10])),
            decision: Some(DecisionId::from_parts(1, [3; 10])),
            correlation: Some(CorrelationId::from_parts(1, [4; 10])),
            entitlement: Some("e".to_owned()),
            owner: text(),
            purpose: Some("p".to_owned()),
            reason: Some(Text::Committed(commit([9; SALT_LEN], "r").0)),
            credential: Some(CredentialPart {
                kind: Kind::Jwt,
                id: CredentialId::from_parts(1, [5; 10]),
                scope: "s".to_owned(),
                issued_at: at,
                expires_at: at,
                state: CredentialState::Live,
            }),
            approval: Some(Approval {
                how: How::Quorum,
                grant: Some(GrantId::from_parts(1, [6; 10])),
                votes: vec![Vote {
                    who: Text::Plain("w".to_owned()),
                    at,
                    text_sha256: "t".to_owned(),
                }],
            }),
            used: Some(Used {
                place: "w".to_owned(),
                first: Some(at),
                last: Some(at),
                count: Some(1),
                source: "s".to_owned(),
            }),
            cause: Some("c".to_owned()),
            evidence: vec![Evidence {
                credential: CredentialId::from_parts(1, [5; 10]),
                kind: Kind::Jwt,
                state: CredentialState::Dead,
                proof: Some(Proof::Expired),
                place: "w".to_owned(),
                at,
                until: Some(at),
            }],
            totals: Some(Totals {
                credentials: 1,
                dead: 2,
                listed: 3,
                listed_until: Some(at),
            }),
            policy_version: Some("v".to_owned()),
            code: Some(Code::Denied),
            ..event()
        }
    }

    proptest::proptest! {
        #[test]
        fn the_leaf_is_what_the_general_canonicalizer_writes(
            facts in proptest::collection::btree_map(".{0,6}", "(.|[\\x00-\\x1f\"\\\\\x7f\u{2028}]){0,12}", 0..6),
        ) {
            let event = AuditEvent { facts, ..full() };
            let general = serde_json_canonicalizer::to_vec(&event).unwrap();
            proptest::prop_assert_eq!(event.leaf_bytes().unwrap(), general);
        }
    }

    #[test]
    fn a_leaf_too_large_is_refused_not_cut() {
        let mut large = event();
        large.purpose = Some("x".repeat(MAX_LEAF_BYTES));
        assert!(matches!(
            large.leaf_bytes(),
            Err(LeafError::TooLarge { .. })
        ));
        large.purpose = Some("x".repeat(MAX_LEAF_BYTES - 250));
        assert!(large.leaf_bytes().unwrap().len() <= MAX_LEAF_BYTES);
    }

    #[test]
    fn free_text_is_only_a_commitment_in_the_leaf() {
        let mut told = event();
        let (commitment, value) = commit([9; SALT_LEN], "INC-482 queue stuck");
        told.reason = Some(Text::Committed(commitment.clone()));
        let leaf = String::from_utf8(told.leaf_bytes().unwrap()).unwrap();
        assert!(!leaf.contains("INC-482") && leaf.contains(r#""reason":{"sha256":"#));
        assert_eq!(AuditEvent::from_leaf(leaf.as_bytes()).unwrap(), told);
        assert!(value.opens(&commitment));
    }
}
