//! Refusals as RFC 9457 problems with stable codes.
//!
//! A problem never holds a secret and never tells one tenant of another's existence: text that
//! is not safe for the caller belongs into the audit event, which has the same correlation id.

mod code;

pub use code::{Code, FirstWord, UnknownCode};

use serde::{Deserialize, Serialize};

use crate::id::{CorrelationId, DecisionId};
use crate::limits::MAX_DETAIL_LEN;

/// `Content-Type` of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// What a parser of command lines says, with the state as its first word, like every other refusal.
/// Without an error in it, it is the help that stands for one because nothing was asked for.
pub fn wrong_usage(said: &str) -> String {
    let said = said.trim_end();
    match said.strip_prefix("error: ") {
        Some(rest) => format!("invalid: {}", rest.strip_prefix("invalid ").unwrap_or(rest)),
        None => format!("invalid: name what to do.\n\n{said}"),
    }
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:ephor:problem:CODE`.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// A short text that is the same for every problem of this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was tried, on what, and what to do; at most 2048 bytes.
    pub detail: String,
    /// The stable code to program against.
    pub code: Code,
    /// The id to ask an operator about.
    pub correlation_id: CorrelationId,
    /// The decision, when one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionId>,
    /// Seconds after which trying again may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Problem {
    /// A problem of this code; a detail that is too long is cut at a character.
    pub fn new(code: Code, correlation_id: CorrelationId, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(MAX_DETAIL_LEN));
        Self {
            type_uri: format!("urn:ephor:problem:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            detail,
            code,
            correlation_id,
            decision: None,
            retry_after: code.default_retry_after(),
        }
    }

    /// With the decision that refused.
    #[must_use]
    pub fn with_decision(mut self, decision: DecisionId) -> Self {
        self.decision = Some(decision);
        self
    }

    /// With the seconds after which trying again may help.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.first_word(), self.detail)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_rfc_9457() {
        let correlation = CorrelationId::from_parts(1, [7; 10]);
        let problem = Problem::new(Code::UnknownEntitlement, correlation, "no entitlement `x`");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:ephor:problem:unknown_entitlement");
        assert_eq!(json["status"], 403);
        assert_eq!(json["code"], "unknown_entitlement");
        assert_eq!(json["correlation_id"], correlation.to_string());
        assert!(json.get("decision").is_none() && json.get("retry_after").is_none());
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
        assert_eq!(problem.to_string(), "denied: no entitlement `x`");
    }

    #[test]
    fn a_long_detail_is_cut_at_a_character() {
        let correlation = CorrelationId::from_parts(1, [7; 10]);
        let problem = Problem::new(Code::Denied, correlation, "\u{20ac}".repeat(2000));
        assert!(
            problem.detail.len() <= MAX_DETAIL_LEN && problem.detail.len() > MAX_DETAIL_LEN - 4
        );
    }
}
