//! The nine stages in their order, and `operate` for acts on the system itself.
//!
//! These words name spans, metric labels, audit types and folders; there are no synonyms.

use serde::{Deserialize, Serialize};

/// A stage of a credential's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A caller's bytes become a request.
    Request,
    /// Who the caller is gets proven.
    Attest,
    /// Policy allows or denies.
    Decide,
    /// People or a rule agree.
    Approve,
    /// The intent is recorded, then the credential made.
    Issue,
    /// The credential is handed to the attested caller.
    Deliver,
    /// The task ends.
    Complete,
    /// Its credentials are revoked.
    Revoke,
    /// They are shown to be dead.
    Prove,
    /// An act on the system itself: join, ban, policy, keys, recover.
    Operate,
}

impl Stage {
    /// The nine stages in order, then `operate`.
    pub const ALL: [Self; 10] = [
        Self::Request,
        Self::Attest,
        Self::Decide,
        Self::Approve,
        Self::Issue,
        Self::Deliver,
        Self::Complete,
        Self::Revoke,
        Self::Prove,
        Self::Operate,
    ];

    /// The word used everywhere for this stage.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Attest => "attest",
            Self::Decide => "decide",
            Self::Approve => "approve",
            Self::Issue => "issue",
            Self::Deliver => "deliver",
            Self::Complete => "complete",
            Self::Revoke => "revoke",
            Self::Prove => "prove",
            Self::Operate => "operate",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_ordered_and_named_as_serialised() {
        assert!(Stage::ALL.windows(2).all(|w| w[0] < w[1]));
        for stage in Stage::ALL {
            assert_eq!(
                serde_json::to_value(stage).ok(),
                Some(serde_json::Value::from(stage.as_str()))
            );
        }
    }
}
