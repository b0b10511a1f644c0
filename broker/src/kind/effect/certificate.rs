//! The client certificate of a database login: what stands in it, and its signature.
//!
//! Fixed at the intent and stored, as with kind `x509`: signing only ever signs that. It is issued by
//! a CA that only database servers trust, names the role and nothing else, and ends with the login,
//! because a server judges a certificate by its own end alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ephor_crypto::p256::P256Public;
use ephor_crypto::x509::{Ca, DatabaseClient, Serial, X509Error};
use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::kind::x509::serial;
use crate::limits;

/// As it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCertificate {
    /// Which certificate of the credential it is: 0, then one more with each renewal.
    pub number: u16,
    /// `SubjectPublicKeyInfo` in DER, base64.
    pub public_key: String,
    /// Start, seconds since 1970.
    pub not_before: u64,
    /// End, seconds since 1970: that of the login.
    pub not_after: u64,
}

impl ClientCertificate {
    /// The first of a login.
    #[must_use]
    pub fn new(key: &P256Public, (issued_at, expires_at): (UnixMillis, UnixMillis)) -> Self {
        Self {
            number: 0,
            public_key: STANDARD.encode(key.spki()),
            not_before: issued_at
                .as_unix_seconds()
                .saturating_sub(limits::LOGIN_CERTIFICATE_BACKDATE_SECONDS),
            not_after: expires_at.as_unix_seconds(),
        }
    }

    /// The next one of the same login.
    #[must_use]
    pub fn renewed(&self, key: &P256Public, life: (UnixMillis, UnixMillis)) -> Self {
        Self {
            // No list ever names a number, so one that comes again after 65 536 renewals misleads nobody.
            number: self.number.wrapping_add(1),
            ..Self::new(key, life)
        }
    }

    /// Its serial number.
    ///
    /// # Errors
    /// Never for an id that was made by this broker.
    pub fn serial(&self, id: CredentialId) -> Result<Serial, X509Error> {
        serial(id, self.number)
    }

    /// Its signature; DER.
    ///
    /// # Errors
    /// When it would outlive the CA, or the stored text was altered.
    pub fn signed(&self, ca: &Ca, id: CredentialId, role: &str) -> Result<Vec<u8>, X509Error> {
        let spki = STANDARD.decode(&self.public_key);
        let spki = spki.map_err(|_| X509Error::Malformed)?;
        let seconds = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
        let client = DatabaseClient {
            role,
            serial: &self.serial(id)?,
            not_before: seconds(self.not_before),
            not_after: seconds(self.not_after),
        };
        ca.issue_database_client(&client, &spki)
    }
}
