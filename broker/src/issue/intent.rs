//! The proof types that let a credential out, and only after its record is durable:
//! [`Intent`] → [`Permit`], and [`Sealed`], which only a permit opens.

use ephor_crypto::Secret;
use ephor_proto::id::CredentialId;
use ephor_proto::kind::Kind;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::UnixMillis;

use super::mint::Access;
use crate::kind::effect::Content;
use crate::ledger::{BatchId, CredentialRow, Durable, ReadError, Reader};

/// What is to be recorded before anything exists. Made by this stage from an
/// [`Approved`](crate::approve::Approved) request, or read back from the record of an earlier one.
///
/// ```compile_fail
/// let forged = ephor_broker::issue::Intent { credentials: Vec::new() };
/// ```
#[derive(Debug)]
pub struct Intent {
    credentials: Vec<CredentialRow>,
}

/// One credential of an intent: what may be signed beside the flush.
#[derive(Debug, Clone, Copy)]
pub struct Planned<'a> {
    row: &'a CredentialRow,
}

/// Proof that an intent was attested, decided, approved *and* durably recorded; the only
/// thing that lets a credential out.
///
/// ```compile_fail
/// fn forge(intent: ephor_broker::issue::Intent) -> ephor_broker::issue::Permit {
///     ephor_broker::issue::Permit { intent }
/// }
/// ```
#[derive(Debug)]
pub struct Permit {
    intent: Intent,
}

/// Something signed whose record may not be durable yet. There is no way in but
/// [`Sealed::open`]; dropping it wipes a [`Secret`].
///
/// ```compile_fail
/// fn pry(sealed: ephor_broker::issue::Sealed<String>) -> String { sealed.1 }
/// ```
#[must_use]
pub struct Sealed<T>(CredentialId, T);

/// The proof is of something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("defect: the proof belongs to another credential or commit; the secret was dropped")]
pub struct WrongProof;

impl Intent {
    pub(super) fn new(credentials: Vec<CredentialRow>) -> Self {
        Self { credentials }
    }

    /// The intent of a request that was recorded before, and the permit that its record is.
    /// A reader sees committed rows only, so what it returns is durable. `None` when one of the
    /// credentials is gone, no longer live or expired.
    pub(super) fn recorded_before(
        reader: &Reader,
        ids: &[CredentialId],
        now: UnixMillis,
    ) -> Result<Option<Permit>, ReadError> {
        let mut credentials = Vec::with_capacity(ids.len());
        for id in ids {
            match reader.credential(*id)? {
                Some(row) if row.state == CredentialState::Live && now < row.expires_at => {
                    credentials.push(row)
                }
                Some(_) | None => return Ok(None),
            }
        }
        Ok(Some(Permit {
            intent: Self { credentials },
        }))
    }

    /// Its credentials.
    pub fn planned(&self) -> impl Iterator<Item = Planned<'_>> {
        self.credentials.iter().map(|row| Planned { row })
    }

    pub(super) fn rows(&self) -> &[CredentialRow] {
        &self.credentials
    }

    /// The permit, given the ledger's proof that `batch`, which holds this intent, is on disk.
    ///
    /// # Errors
    /// When the proof is of another batch.
    pub fn recorded(self, batch: BatchId, durable: &Durable) -> Result<Permit, WrongProof> {
        if durable.batch() != batch {
            return Err(WrongProof);
        }
        Ok(Permit { intent: self })
    }
}

impl Planned<'_> {
    /// Its id.
    pub fn id(&self) -> CredentialId {
        self.row.id
    }

    /// The exact text to sign.
    pub fn content(&self) -> &str {
        &self.row.content
    }

    /// Whether its effect outside is still to come.
    pub fn is_intended(&self) -> bool {
        self.row.state == CredentialState::Intended
    }

    /// Whether it is a login that a certificate lets in.
    pub fn has_certificate(&self) -> bool {
        Content::of(self.row).is_some_and(|content| content.certificate.is_some())
    }

    /// What kind of credential it is.
    pub fn kind(&self) -> Kind {
        self.row.kind
    }

    /// Number of the list that would name it.
    pub fn list(&self) -> u32 {
        self.row.status_list
    }

    /// Whose it is.
    pub fn subject(&self) -> &str {
        self.row.subject.as_str()
    }

    /// Entitlement that gives it.
    pub fn entitlement(&self) -> &str {
        &self.row.entitlement
    }
}

impl Permit {
    pub(super) fn intent(&self) -> &Intent {
        &self.intent
    }

    /// The permit for what it covers, as it is since its outcome was stored.
    pub(super) fn minted(mut self, rows: Vec<CredentialRow>) -> Self {
        for row in rows {
            let planned = self.intent.credentials.iter_mut();
            for planned in planned.filter(|planned| planned.id == row.id) {
                planned.clone_from(&row);
            }
        }
        self
    }

    /// The recorded credentials.
    pub fn credentials(&self) -> &[CredentialRow] {
        &self.intent.credentials
    }
}

impl<T> Sealed<T> {
    /// Seals what was made for credential `id`.
    pub fn new(id: CredentialId, made: T) -> Self {
        Self(id, made)
    }

    /// Whose it is.
    pub fn id(&self) -> CredentialId {
        self.0
    }

    /// A look at what was sealed, if `permit` covers it.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn peek(&self, permit: &Permit) -> Result<&T, WrongProof> {
        let is_covered = permit.credentials().iter().any(|row| row.id == self.0);
        is_covered.then_some(&self.1).ok_or(WrongProof)
    }

    /// What was sealed, if `permit` covers it.
    ///
    /// # Errors
    /// When it does not; what was sealed is dropped.
    pub fn open(self, permit: &Permit) -> Result<T, WrongProof> {
        let is_covered = permit.credentials().iter().any(|row| row.id == self.0);
        if is_covered {
            Ok(self.1)
        } else {
            Err(WrongProof)
        }
    }
}

/// What was made for an intent and waits for its permit.
pub enum Made {
    /// A token, which is a secret.
    Token(Sealed<Secret>),
    /// A certificate and what is between it and its root, each in DER.
    Certificate(Sealed<Vec<Vec<u8>>>),
    /// How to use what is made at a target, which is a secret.
    Access(Sealed<Box<Access>>),
}

/// What a permit let out.
pub enum Opened {
    /// A token, which is a secret.
    Token(Secret),
    /// A certificate and what is between it and its root, each in DER.
    Certificate(Vec<Vec<u8>>),
    /// How to use what was made at a target, which is a secret.
    Access(Box<Access>),
}

impl Made {
    /// Whose it is.
    pub fn id(&self) -> CredentialId {
        match self {
            Self::Token(sealed) => sealed.id(),
            Self::Certificate(sealed) => sealed.id(),
            Self::Access(sealed) => sealed.id(),
        }
    }

    /// See [`Sealed::open`].
    ///
    /// # Errors
    /// When `permit` does not cover it.
    pub fn open(self, permit: &Permit) -> Result<Opened, WrongProof> {
        match self {
            Self::Token(sealed) => sealed.open(permit).map(Opened::Token),
            Self::Certificate(sealed) => sealed.open(permit).map(Opened::Certificate),
            Self::Access(sealed) => sealed.open(permit).map(Opened::Access),
        }
    }
}
