//! One module per credential kind: all that a kind knows. TTL, approval and audit are outside
//! and cannot be skipped from here.

pub mod effect;
pub mod jwt;
pub mod name;
pub mod pace;
pub mod postgres;
pub mod targets;
pub mod x509;

use ephor_proto::kind::Kind;

use crate::issue::{Planned, Sealed};
use crate::ledger::CredentialRow;
use crate::policy::{Give, LoginBy};

/// A kind whose credential is only a signature.
pub trait Signed {
    /// What leaves the process, once a permit opened it.
    type Out;
    /// Why it could not be signed.
    type Error;

    /// Signs the stored content of one planned credential. May run while the intent is being
    /// committed; the result is sealed until a permit opens it.
    ///
    /// # Errors
    /// When the provider refuses to sign.
    fn sign(&self, planned: &Planned<'_>) -> Result<Sealed<Self::Out>, Self::Error>;
}

/// Whether what policy gives is exactly what a credential says: nothing of it may be swapped for
/// something newer. The one place that compares a kind's content with policy.
pub(crate) fn is_given(give: &Give, row: &CredentialRow) -> bool {
    match give {
        Give::Jwt {
            audience, claims, ..
        } => {
            row.kind == Kind::Jwt
                && *audience == row.item
                && *claims == jwt::extra_claims(&row.content)
        }
        Give::X509 { dns } => {
            x509::Content::of(row).is_some_and(|certificate| certificate.dns == *dns)
        }
        Give::Postgres {
            target,
            roles,
            database,
            connection_limit,
            settings,
            login,
            reassign,
        } => {
            row.kind == Kind::Postgres
                && serde_json::from_str::<Terms>(&row.content).is_ok_and(|terms| {
                    terms.target == *target
                        && terms.groups == *roles
                        && terms.database == *database
                        && terms.connection_limit == *connection_limit
                        && terms.settings == *settings
                        && terms.reassign == *reassign
                        && terms.certificate.is_some() == (*login == LoginBy::Certificate)
                })
        }
        Give::Secret {
            target,
            role,
            database,
        } => {
            row.kind == Kind::Secret
                && row.item == *role
                && serde_json::from_str::<Terms>(&row.content)
                    .is_ok_and(|terms| terms.target == *target && terms.database == *database)
        }
        // A right to ask; nobody holds it as a credential.
        Give::Introspect { .. } => false,
    }
}

/// What policy says of a login, as its content has it.
#[derive(serde::Deserialize)]
struct Terms {
    target: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    database: String,
    #[serde(default)]
    connection_limit: Option<u32>,
    #[serde(default)]
    settings: Vec<(String, String)>,
    #[serde(default)]
    reassign: bool,
    #[serde(default)]
    certificate: Option<serde::de::IgnoredAny>,
}
