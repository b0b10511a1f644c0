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
use crate::limits::{MAX_JSON_INTEGER, MAX_LEAF_BYTES};
use crate::problem::Code;
use crate::stage::Stage;
use crate::time::UnixMillis;

/// One audit event. Made by [`AuditEvent::new`], then the fields that apply are set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEvent {
    /// Time-ordered id.
    pub id: EventId,
    /// When it happened.
    pub time: UnixMillis,
    /// The stage, or `operate`.
    pub stage: Stage,
    /// `stage.verb`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// How it came out.
    pub outcome: Outcome,
    /// The installation that wrote it.
    pub installation: String,
    /// The epoch of the log; a recovered broker begins a new one.
    pub epoch: u32,
    /// How many equal ones this stands for, where they were coalesced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Who asked: a SPIFFE ID, committed for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Text>,
    /// The agent's SPIFFE ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionId>,
    /// One call across processes and logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<CorrelationId>,
    /// The entitlement's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement: Option<String>,
    /// Its owner, such as `team:orders`; committed when it is a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Text>,
    /// The standing purpose, from policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// The reason this time; free text, so always committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text>,
    /// The credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialPart>,
    /// The people's part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// What is known of its use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
    /// Why a task ended or a credential was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What was checked, where, and with what result; at most 100 entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
    /// Over all credentials of the task, in its `prove` events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    /// Hash of the policy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<String>,
    /// The refusal's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Facts of one event type that have no field of their own, such as the rule that held.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub facts: std::collections::BTreeMap<String, String>,
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
    /// An integer that canonical JSON would round.
    #[error("an event holds the number {0}, beyond 2^53: write it as a string")]
    Number(String),
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
    /// When it is larger, or holds a number that canonical JSON would round.
    pub fn leaf_bytes(&self) -> Result<Vec<u8>, LeafError> {
        let value = serde_json::to_value(self)?;
        check_numbers(&value)?;
        let bytes = canonical(value)?;
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

/// RFC 8785. With ASCII names and whole numbers, its rules come down to sorted members and the
/// escapes that serde_json writes anyway, at a fifth of the general canonicalizer's cost.
fn canonical(mut value: serde_json::Value) -> Result<Vec<u8>, serde_json::Error> {
    if !has_ascii_names(&value) {
        return serde_json_canonicalizer::to_vec(&value);
    }
    value.sort_all_objects();
    serde_json::to_vec(&value)
}

fn has_ascii_names(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Array(items) => items.iter().all(has_ascii_names),
        Value::Object(fields) => fields
            .iter()
            .all(|(name, value)| name.is_ascii() && has_ascii_names(value)),
    }
}

/// Canonical JSON writes numbers as IEEE doubles: what does not survive that is denied.
fn check_numbers(value: &serde_json::Value) -> Result<(), LeafError> {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
        Value::Number(number) => match number.as_u64() {
            Some(n) if n <= MAX_JSON_INTEGER => Ok(()),
            Some(_) | None => Err(LeafError::Number(number.to_string())),
        },
        Value::Array(items) => items.iter().try_for_each(check_numbers),
        Value::Object(fields) => fields.values().try_for_each(check_numbers),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

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

    proptest::proptest! {
        #[test]
        fn the_leaf_is_what_the_general_canonicalizer_writes(
            facts in proptest::collection::btree_map(".{0,6}", "(.|[\\x00-\\x1f\"\\\\\x7f\u{2028}]){0,12}", 0..6),
            count: Option<u32>,
        ) {
            let event = AuditEvent { facts, count, ..event() };
            let value = serde_json::to_value(&event).unwrap();
            let general = serde_json_canonicalizer::to_vec(&value).unwrap();
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
    fn numbers_that_would_be_rounded_are_denied() {
        for bad in ["9007199254740992", "-1", "1.5", "1e20"] {
            let value = serde_json::from_str(bad).unwrap();
            assert!(
                matches!(check_numbers(&value), Err(LeafError::Number(_))),
                "{bad}"
            );
        }
        assert!(check_numbers(&serde_json::json!([{"a": MAX_JSON_INTEGER}])).is_ok());
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
