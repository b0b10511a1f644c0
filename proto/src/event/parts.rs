//! The parts of an event that have fields of their own.

use serde::{Deserialize, Serialize};

use super::Text;
use crate::id::{CredentialId, GrantId};
use crate::kind::Kind;
use crate::state::credential::{CredentialState, Proof};
use crate::time::UnixMillis;

/// How an event came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As asked.
    Ok,
    /// Refused by policy or proof.
    Denied,
    /// Tried and not achieved.
    Failed,
}

impl Outcome {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// The credential an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialPart {
    /// When it expires.
    pub expires_at: UnixMillis,
    /// Its id; a token's `jti`.
    pub id: CredentialId,
    /// When it was issued.
    pub issued_at: UnixMillis,
    /// Its kind.
    pub kind: Kind,
    /// What it opens, such as an audience or a role.
    pub scope: String,
    /// Its state after this event.
    pub state: CredentialState,
}

/// How a request was approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By rule; no person was needed.
    Automatic,
    /// By people.
    Quorum,
    /// By an emergency rule, reviewed afterwards.
    BreakGlass,
}

/// The people's part of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The grant it opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantId>,
    /// How.
    pub how: How,
    /// The votes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<Vote>,
}

/// One person's vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// When.
    pub at: UnixMillis,
    /// SHA-256 of the text they signed, in hex.
    pub text_sha256: String,
    /// Who; a name, so committed.
    pub who: Text,
}

/// What the target could tell of a credential's use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// How often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// First seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<UnixMillis>,
    /// Last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<UnixMillis>,
    /// Who told, such as `introspection`.
    pub source: String,
    /// Where, such as a service's name or address; `unknown` where nobody can tell.
    #[serde(rename = "where")]
    pub place: String,
}

/// What was checked about one credential's end; says its reach and never more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub at: UnixMillis,
    /// The credential.
    pub credential: CredentialId,
    /// Its kind.
    pub kind: Kind,
    /// What was found, where it is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// Its state as proven: `contained` or `dead`.
    pub state: CredentialState,
    /// Until when a verifier that never asks would still accept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
    /// Where it was checked or published, such as `introspection` or a status list's URL.
    #[serde(rename = "where")]
    pub place: String,
}

/// Sums over a task's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// All that were ever intended.
    pub credentials: u32,
    /// Refused now and ever after.
    pub dead: u32,
    /// Revoked and listed, not yet expired.
    pub listed: u32,
    /// When the last listed one expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_until: Option<UnixMillis>,
}
