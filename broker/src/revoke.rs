//! Stage 8: refuse and list, wherever it is enforced.
//!
//! Introspection and the lists follow committed state only. One credential is ended here for a person
//! or for its holder; a whole task in [`complete`](crate::complete).

mod accept;
mod again;
mod credential;
mod crl;
mod doubt;
mod expire;
mod expiry;
mod history;
mod listing;
mod narrow;
mod pending;
mod prune;
mod reconcile;
mod restore;
mod status_list;
mod sweep;
mod target;
#[cfg(test)]
mod tests;
mod uses;

pub use credential::RevokedCredential;
pub use crl::{BuiltCrl, Crls};
pub use expiry::Timers;
pub(crate) use listing::place_in_words;
pub use listing::{Place, Shown};
pub(crate) use narrow::{Narrowed, Narrowing};
pub use pending::{Failed, Pending, Work};
pub use status_list::{Built, ListError, Places, Slot, StatusLists, TYP as STATUS_LIST_TYP};
pub use target::{Late, Queues, Setback, Urgency, Waiting, Wanted};
pub use uses::{Use, UsedLogins, Uses};

use ephor_proto::state::credential::{Credential, CredentialState, Proof};

use crate::ledger::{CommitError, CredentialRow, Full, ReadError, Reason};
use crate::request::Refusal;

/// Why an end was not reached at this try; it is tried again for ever.
#[derive(Debug, thiserror::Error)]
pub enum NotEnded {
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The lane of revocations is full.
    #[error(transparent)]
    Full(#[from] Full),
    /// The store refused.
    #[error("the store refused the end: {0}")]
    Refused(Reason),
    /// The commit's fate is not known.
    #[error("it is not known whether the end was stored")]
    Unknown,
    /// The list could not be built.
    #[error(transparent)]
    List(#[from] ListError),
    /// Checked, and not refused or listed yet.
    #[error("not proven yet: {0}")]
    NotProven(&'static str),
    /// Its target has not ended it yet.
    #[error("its target has not ended it yet")]
    AtTarget,
    /// The rows kept changing.
    #[error("the rows kept changing; it is tried again")]
    Contended,
    /// A defect, or no randomness.
    #[error("{0}")]
    Defect(String),
}

impl NotEnded {
    /// What only a defect can cause.
    pub(crate) fn defect(error: impl std::fmt::Display) -> Self {
        Self::Defect(error.to_string())
    }
}

impl From<Refusal> for NotEnded {
    fn from(refusal: Refusal) -> Self {
        Self::Defect(refusal.detail)
    }
}

impl From<ephor_proto::state::Illegal> for NotEnded {
    fn from(illegal: ephor_proto::state::Illegal) -> Self {
        Self::Defect(illegal.to_string())
    }
}

/// How a commit came out for an end: written, or to be read again.
pub(crate) fn written<T>(outcome: Result<T, CommitError>) -> Result<Option<T>, NotEnded> {
    match outcome {
        Ok(committed) => Ok(Some(committed)),
        Err(CommitError::Conflict(_)) => Ok(None),
        Err(CommitError::Refused(reason)) => Err(NotEnded::Refused(reason)),
        Err(CommitError::Unknown) => Err(NotEnded::Unknown),
    }
}

/// A stored credential as its state machine sees it.
pub(crate) fn machine(row: &CredentialRow) -> Credential {
    let proof = match row.state {
        CredentialState::Dead => Some(Proof::Expired),
        CredentialState::Intended
        | CredentialState::Live
        | CredentialState::Replacing
        | CredentialState::Revoking
        | CredentialState::Contained => None,
    };
    Credential {
        kind: row.kind,
        state: row.state,
        expires_at: row.expires_at,
        overdue: row.overdue.is_some(),
        proof,
    }
}
