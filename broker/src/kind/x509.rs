//! Kind `x509`: what stands in a certificate, and its signature.
//!
//! The content is fixed at the intent and stored; signing only ever signs that, so a retry gets a
//! certificate that says the same. Names come from policy alone, the key from the agent, which
//! keeps the private half.
//!
//! A serial is the credential's id and the number of the certificate within it: a renewal makes
//! the next one. So a serial leads to its credential without an index, and a row whose content was
//! lost can still be listed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ephor_crypto::p256::P256Public;
use ephor_crypto::x509::{Serial, Svid, X509Error};
use ephor_proto::id::CredentialId;
use ephor_proto::kind::Kind;
use ephor_proto::limits::VERIFIER_LEEWAY_MILLIS;
use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::Signed;
use crate::issue::{Planned, Sealed};
use crate::keys::HeldCa;
use crate::ledger::CredentialRow;
use crate::limits;

/// What is signed, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Which certificate of the credential it is: 0, then one more with each renewal.
    pub certificate: u16,
    /// `SubjectPublicKeyInfo` in DER, base64.
    pub public_key: String,
    /// Start, seconds since 1970.
    pub not_before: u64,
    /// End, seconds since 1970.
    pub not_after: u64,
    /// DNS names beside the SPIFFE ID.
    pub dns: Vec<String>,
    /// URL of the list that would revoke it.
    pub crl: String,
    /// Certificates of this credential before it that some verifier may still take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
}

/// A certificate that a renewal has replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Its number within the credential.
    pub certificate: u16,
    /// Its end, seconds since 1970.
    pub not_after: u64,
}

/// No more renewals for now: too many certificates of this credential are still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} certificates of this credential are still good; renew it later", limit = limits::CERTIFICATES_PER_CREDENTIAL)]
pub struct TooMany;

impl Content {
    /// The first certificate of a credential.
    #[must_use]
    pub fn new(
        key: &P256Public,
        dns: &[String],
        crl: String,
        life: (UnixMillis, UnixMillis),
    ) -> Self {
        let (issued_at, expires_at) = life;
        Self {
            certificate: 0,
            public_key: STANDARD.encode(key.spki()),
            not_before: start(issued_at),
            not_after: expires_at.as_unix_seconds(),
            dns: dns.to_vec(),
            crl,
            earlier: Vec::new(),
        }
    }

    /// The next one: another key, a later end, the same names and list.
    ///
    /// # Errors
    /// [`TooMany`] when an agent renews faster than certificates expire.
    pub fn renewed(
        self,
        key: &P256Public,
        (issued_at, expires_at): (UnixMillis, UnixMillis),
    ) -> Result<Self, TooMany> {
        let mut earlier = self.earlier;
        earlier.push(Earlier {
            certificate: self.certificate,
            not_after: self.not_after,
        });
        // As long as a verifier whose clock is late may take it. Not for the day that an ended
        // credential stays listed: renewed every few minutes, it would have hundreds by then and be
        // refused as `TooMany`.
        let now = issued_at.as_millis();
        earlier.retain(|one| {
            let end = UnixMillis::from_unix_seconds(one.not_after);
            end.saturating_add_millis(VERIFIER_LEEWAY_MILLIS)
                .as_millis()
                >= now
        });
        if earlier.len() >= limits::CERTIFICATES_PER_CREDENTIAL {
            return Err(TooMany);
        }
        Ok(Self {
            certificate: self.certificate.checked_add(1).ok_or(TooMany)?,
            public_key: STANDARD.encode(key.spki()),
            not_before: start(issued_at),
            not_after: expires_at.as_unix_seconds(),
            dns: self.dns,
            crl: self.crl,
            earlier,
        })
    }

    /// From a row; `None` when its listing was forgotten, or it is of another kind.
    #[must_use]
    pub fn of(row: &CredentialRow) -> Option<Self> {
        match row.kind {
            Kind::X509 => Self::parse(&row.content),
            Kind::Jwt | Kind::Ssh | Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => None,
        }
    }

    fn parse(content: &str) -> Option<Self> {
        serde_json::from_str(content).ok()
    }

    /// As it is stored.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

fn start(issued_at: UnixMillis) -> u64 {
    issued_at
        .as_unix_seconds()
        .saturating_sub(limits::SVID_BACKDATE_SECONDS)
}

/// The serial of a certificate of a credential (RFC 5280 §4.1.2.2): 18 bytes, positive, since an id
/// begins with its time.
///
/// # Errors
/// Never for an id that was made by this broker.
pub fn serial(id: CredentialId, certificate: u16) -> Result<Serial, X509Error> {
    let mut bytes = id.to_bytes().to_vec();
    bytes.extend(certificate.to_be_bytes());
    Serial::new(&bytes)
}

/// The serial of the newest certificate of a credential; `None` for other kinds.
#[must_use]
pub fn serial_of(row: &CredentialRow) -> Option<Serial> {
    match row.kind {
        Kind::X509 => serial(row.id, u16::try_from(row.status_index).ok()?).ok(),
        Kind::Jwt | Kind::Ssh | Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => None,
    }
}

/// The serials of a credential that a verifier might still accept: what is listed when it is
/// revoked. Without its content, as many as there can be.
#[must_use]
pub fn serials(id: CredentialId, newest: u32, content: &str) -> Vec<Serial> {
    let newest = u16::try_from(newest).unwrap_or(u16::MAX);
    let numbers: Vec<u16> = match Content::parse(content) {
        Some(content) => {
            let earlier = content.earlier.iter().map(|one| one.certificate);
            earlier.chain([content.certificate]).collect()
        }
        None => {
            let most = u16::try_from(limits::CERTIFICATES_PER_CREDENTIAL).unwrap_or(u16::MAX);
            (newest.saturating_sub(most)..=newest).collect()
        }
    };
    let made = numbers.into_iter().map(|number| serial(id, number));
    made.filter_map(Result::ok).collect()
}

/// Signs with one CA.
pub struct Signer<'a> {
    held: &'a HeldCa,
}

impl<'a> Signer<'a> {
    /// With this CA.
    #[must_use]
    pub fn new(held: &'a HeldCa) -> Self {
        Self { held }
    }
}

impl Signed for Signer<'_> {
    /// The leaf and what is between it and its root, each in DER.
    type Out = Vec<Vec<u8>>;
    type Error = X509Error;

    fn sign(&self, planned: &Planned<'_>) -> Result<Sealed<Self::Out>, X509Error> {
        let content = Content::parse(planned.content()).ok_or(X509Error::Malformed)?;
        let key = STANDARD
            .decode(&content.public_key)
            .map_err(|_| X509Error::Malformed)?;
        let serial = serial(planned.id(), content.certificate)?;
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let svid = Svid {
            spiffe_id: planned.subject(),
            dns: &content.dns,
            crl: &content.crl,
            serial: &serial,
            not_before: signed(content.not_before),
            not_after: signed(content.not_after),
        };
        let mut chain = vec![self.held.ca.issue_svid(&svid, &key)?];
        chain.extend(self.held.chain());
        Ok(Sealed::new(planned.id(), chain))
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;
    use ephor_crypto::p256::SigningKey;
    use ephor_proto::id::IdQuery;

    fn at(seconds: u64) -> UnixMillis {
        UnixMillis::from_unix_seconds(1_800_000_000 + seconds)
    }

    fn id() -> CredentialId {
        CredentialId::from_parts(1_800_000_000_000, [0xf3; 10])
    }

    fn key() -> P256Public {
        SigningKey::generate().unwrap().public_key().clone()
    }

    #[test]
    fn a_serial_leads_back_to_its_credential() {
        for number in [0, 1, 255, 256, u16::MAX] {
            let serial = serial(id(), number).unwrap();
            assert!(serial.as_bytes().len() <= 20 && serial.as_bytes()[0] < 0x80);
            let query: IdQuery = serial.to_string().parse().unwrap();
            assert!(query.matches(&id()), "{serial}");
        }
    }

    #[test]
    fn a_renewal_keeps_what_has_not_expired_in_sight() {
        let first = Content::new(&key(), &[], "http://l/crl/0".into(), (at(0), at(300)));
        let second = first.clone().renewed(&key(), (at(200), at(500))).unwrap();
        assert_ne!(first.public_key, second.public_key);
        let stored = second.to_json().unwrap();
        let both = serials(id(), 1, &stored);
        assert_eq!(both, [serial(id(), 0).unwrap(), serial(id(), 1).unwrap()]);
        let third = second.clone().renewed(&key(), (at(400), at(700))).unwrap();
        assert_eq!(third.earlier.len(), 1, "the first one has expired");
        let earlier = |renewed_at| {
            let third = second.clone().renewed(&key(), (at(renewed_at), at(700)));
            third.unwrap().earlier.len()
        };
        assert_eq!(earlier(360), 2, "within the leeway of verifiers");
        assert_eq!(earlier(361), 1);
        assert_eq!(third.not_before, at(370).as_unix_seconds());
    }

    #[test]
    fn renewing_without_end_is_refused_and_a_lost_content_lists_all_there_can_be() {
        let mut content = Content::new(&key(), &[], "http://l/crl/0".into(), (at(0), at(3600)));
        let mut renewals = 0_u32;
        let refused = loop {
            match content.clone().renewed(&key(), (at(1), at(3600))) {
                Ok(next) => content = next,
                Err(refused) => break refused,
            }
            renewals += 1;
        };
        assert_eq!(refused, TooMany);
        let good = serials(id(), renewals, &content.to_json().unwrap());
        let without = serials(id(), renewals, "");
        assert!(
            good.iter().all(|serial| without.contains(serial)),
            "{renewals}"
        );
    }
}
