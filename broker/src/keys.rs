//! The broker's own keys: the CA for agents, the token key, the key of the audit log.
//!
//! At rest they are sealed under the master key, each bound to its name and version, so
//! that a row moved or put back is refused. A private key never leaves this module but
//! through a signature.

pub mod master;
pub mod server;

use std::sync::Arc;

use ephor_crypto::ed25519::LogKey;
use ephor_crypto::jws::JwsSigner;
use ephor_crypto::jwt::{TokenKind, VerifyKeys};
use ephor_crypto::p256::{KeyError, P256Public, SigningKey};
use ephor_crypto::seal::{SealError, SealingKey};
use ephor_crypto::tls::TrustStore;
use ephor_crypto::x509::{Ca, CaCertificate, X509Error};
use ephor_proto::log::{BadNote, VerifierKey};
use ephor_proto::spiffe::TrustDomain;
use ephor_proto::time::UnixMillis;

use crate::ledger::KeyRow;
use crate::limits;

/// Name of the CA's row.
pub const CA: &str = "ca";
/// Name of the token key's row.
pub const TOKEN: &str = "token";
/// Name of the log key's row.
pub const LOG: &str = "log";

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The master key is another one, or a row was moved or changed.
    #[error(
        "the master key does not open the key `{0}` of this database: it is another installation's key, \
         or the database was altered; bring back the master key that belongs to it"
    )]
    Unseal(&'static str),
    /// A row is missing.
    #[error("this database has no key `{0}`; was `ephor-broker init` interrupted? run it again")]
    Missing(&'static str),
    /// The CA is for another trust domain than the policy.
    #[error("the CA of this database is for trust domain `{ca}`, the policy's is `{policy}`")]
    TrustDomain {
        /// The CA's.
        ca: String,
        /// The policy's.
        policy: String,
    },
    /// The log's name cannot name a key.
    #[error("keys: the log cannot be signed for: {0}")]
    Origin(#[from] BadNote),
    /// Sealing or opening failed otherwise.
    #[error("keys: {0}")]
    Seal(#[from] SealError),
    /// A key could not be made or read.
    #[error("keys: {0}")]
    Key(#[from] KeyError),
    /// A certificate could not be made or read.
    #[error("keys: {0}")]
    X509(#[from] X509Error),
}

/// All keys, opened.
pub struct Keys {
    ca: Ca,
    trust: Arc<TrustStore>,
    token_public: P256Public,
    identity: Arc<JwsSigner>,
    access: Arc<JwsSigner>,
    status_list: Arc<JwsSigner>,
    verify: VerifyKeys,
    log: Arc<LogKey>,
    log_vkey: String,
}

impl Keys {
    /// Names of all keys.
    pub const NAMES: [&str; 3] = [CA, TOKEN, LOG];

    /// New keys for a new installation, sealed: what `init` stores.
    ///
    /// # Errors
    /// When there is no randomness, or the trust domain cannot stand in a certificate.
    pub fn generate(
        sealer: &SealingKey,
        trust_domain: &TrustDomain,
        installation: &str,
        now: UnixMillis,
    ) -> Result<Vec<KeyRow>, KeysError> {
        let (not_before, not_after) = validity(now, limits::CA_SECONDS);
        let name = format!("Ephor {trust_domain} {installation}");
        let ca = Ca::create(&name, trust_domain.as_str(), not_before, not_after)?;
        let token = SigningKey::generate()?;
        let log = LogKey::generate()?;
        let row = |name: &'static str, private: &[u8], public: Vec<u8>| {
            let sealed = sealer.seal(&record(name), 1, private)?;
            Ok::<_, KeysError>(KeyRow {
                name: name.to_owned(),
                version: 1,
                sealed,
                public,
                created_at: now,
            })
        };
        Ok(vec![
            row(
                CA,
                ca.key().to_pkcs8().expose(),
                ca.certificate().der().to_vec(),
            )?,
            row(TOKEN, token.to_pkcs8().expose(), token.public_key().spki())?,
            row(LOG, log.to_pkcs8().expose(), log.public().to_vec())?,
        ])
    }

    /// Opens the newest version of each key in `rows`. `origin` is the name of the log.
    ///
    /// # Errors
    /// [`KeysError::Unseal`] with another master key.
    pub fn unseal(
        sealer: &SealingKey,
        rows: &[KeyRow],
        trust_domain: &TrustDomain,
        origin: &str,
    ) -> Result<Self, KeysError> {
        let (ca_row, ca_key) = open(sealer, rows, CA)?;
        let ca_certificate = CaCertificate::from_der(&ca_row.public)?;
        let ca = Ca::from_parts(&ca_certificate.pem(), SigningKey::from_pkcs8(&ca_key)?)?;
        if ca_certificate.trust_domain() != trust_domain.as_str() {
            return Err(KeysError::TrustDomain {
                ca: ca_certificate.trust_domain().to_owned(),
                policy: trust_domain.to_string(),
            });
        }
        let token = Arc::new(SigningKey::from_pkcs8(&open(sealer, rows, TOKEN)?.1)?);
        let log = LogKey::from_pkcs8(&open(sealer, rows, LOG)?.1)?;
        let kid = token.public_key().thumbprint();
        let signer =
            |kind: TokenKind| JwsSigner::new(Arc::clone(&token), kind.typ(), &kid).map(Arc::new);
        let mut verify = VerifyKeys::new();
        verify.insert(&kid, token.public_key());
        Ok(Self {
            trust: Arc::new(TrustStore::new(vec![ca.certificate().clone()])),
            ca,
            identity: signer(TokenKind::Identity)?,
            access: signer(TokenKind::Access)?,
            status_list: signer(TokenKind::StatusList)?,
            verify,
            token_public: token.public_key().clone(),
            log_vkey: VerifierKey::new(origin, log.public())?.to_string(),
            log: Arc::new(log),
        })
    }

    /// The CA for agents and for our own server certificate.
    #[must_use]
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// When the CA ends: nothing it signs may last longer.
    #[must_use]
    pub fn ca_end(&self) -> UnixMillis {
        UnixMillis::from_unix_seconds(u64::try_from(self.ca.certificate().not_after()).unwrap_or(0))
    }

    /// The CAs whose agents may connect.
    #[must_use]
    pub fn trust(&self) -> Arc<TrustStore> {
        Arc::clone(&self.trust)
    }

    /// End of what signs tokens: no token may last longer. The token key has no end of its own; it
    /// goes with the CA.
    #[must_use]
    pub fn token_end(&self) -> UnixMillis {
        self.ca_end()
    }

    /// The signer for tokens of this kind.
    #[must_use]
    pub fn token_signer(&self, kind: TokenKind) -> &Arc<JwsSigner> {
        match kind {
            TokenKind::Identity => &self.identity,
            TokenKind::Access => &self.access,
            TokenKind::StatusList => &self.status_list,
        }
    }

    /// Keys that our own tokens verify with.
    #[must_use]
    pub fn verify_keys(&self) -> &VerifyKeys {
        &self.verify
    }

    /// The public token key, for the JWKS.
    #[must_use]
    pub fn token_public(&self) -> &P256Public {
        &self.token_public
    }

    /// The key that signs checkpoints.
    #[must_use]
    pub fn log_key(&self) -> &Arc<LogKey> {
        &self.log
    }

    /// Its C2SP verifier key.
    #[must_use]
    pub fn log_vkey(&self) -> &str {
        &self.log_vkey
    }

    /// A certificate for an agent's public key, and when it ends: after
    /// [`limits::AGENT_CERTIFICATE_SECONDS`], or with the CA.
    ///
    /// # Errors
    /// When the key or the id cannot stand in a certificate.
    pub fn issue_agent(
        &self,
        spiffe_id: &str,
        spki_der: &[u8],
        now: UnixMillis,
    ) -> Result<(Vec<u8>, UnixMillis), X509Error> {
        let (not_before, wanted) = validity(now, limits::AGENT_CERTIFICATE_SECONDS);
        let not_after = wanted.min(self.ca.certificate().not_after());
        let der = self
            .ca
            .issue_agent(spiffe_id, spki_der, serial()?, not_before, not_after)?;
        Ok((
            der,
            UnixMillis::from_unix_seconds(u64::try_from(not_after).unwrap_or(0)),
        ))
    }
}

fn open<'a>(
    sealer: &SealingKey,
    rows: &'a [KeyRow],
    name: &'static str,
) -> Result<(&'a KeyRow, ephor_crypto::Secret), KeysError> {
    let row = rows
        .iter()
        .filter(|row| row.name == name)
        .max_by_key(|row| row.version)
        .ok_or(KeysError::Missing(name))?;
    match sealer.open(&record(name), row.version, &row.sealed) {
        Ok(secret) => Ok((row, secret)),
        Err(SealError::Refused) => Err(KeysError::Unseal(name)),
        Err(other) => Err(other.into()),
    }
}

/// What a sealed key is bound to: table, row, column.
fn record(name: &str) -> String {
    format!("keys/{name}/sealed")
}

/// A random serial: positive, at most 127 bits (RFC 5280 §4.1.2.2).
pub(crate) fn serial() -> Result<[u8; 16], X509Error> {
    let mut serial: [u8; 16] = ephor_crypto::random::bytes()?;
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(serial)
}

/// From a little before `now` to `seconds` after it, seconds since 1970.
fn validity(now: UnixMillis, seconds: u64) -> (i64, i64) {
    let now = now.as_unix_seconds();
    let start = now.saturating_sub(limits::CERTIFICATE_BACKDATE_SECONDS);
    let signed = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    (signed(start), signed(now.saturating_add(seconds)))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
pub(crate) mod tests {
    use ephor_crypto::Secret;
    use ephor_crypto::x509::Leaf;

    use super::*;

    pub(crate) fn sealer(byte: u8) -> SealingKey {
        SealingKey::new(&Secret::new(vec![byte; 32])).unwrap()
    }

    fn domain() -> TrustDomain {
        TrustDomain::new("test.example").unwrap()
    }

    fn now() -> UnixMillis {
        UnixMillis::from_millis(1_800_000_000_000)
    }

    #[test]
    fn keys_survive_a_restart() {
        let rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
        let one = Keys::unseal(&sealer(1), &rows, &domain(), "o").unwrap();
        let two = Keys::unseal(&sealer(1), &rows, &domain(), "o").unwrap();
        assert_eq!(one.ca().sha256(), two.ca().sha256());
        assert_eq!(one.token_public(), two.token_public());
        assert_eq!(one.log_vkey(), two.log_vkey());
        assert_eq!(one.ca_end().millis_since(now()), limits::CA_SECONDS * 1000);
    }

    #[test]
    fn no_private_key_stands_in_a_row_in_clear() {
        let rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
        for row in &rows {
            let opened = sealer(1).open(&record(&row.name), 1, &row.sealed).unwrap();
            let private = opened.expose();
            assert!(
                !row.sealed
                    .windows(private.len())
                    .any(|window| window == private)
            );
            assert!(
                !row.public
                    .windows(private.len())
                    .any(|window| window == private)
            );
        }
    }

    #[test]
    fn another_master_key_or_a_moved_row_is_refused() {
        let mut rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
        let refused = |sealer: &SealingKey, rows: &[KeyRow]| {
            Keys::unseal(sealer, rows, &domain(), "o")
                .err()
                .unwrap()
                .to_string()
        };
        assert!(refused(&sealer(2), &rows).contains("bring back the master key"));
        assert!(refused(&sealer(1), &[]).contains("init"));
        let other = TrustDomain::new("other.example").unwrap();
        assert!(matches!(
            Keys::unseal(&sealer(1), &rows, &other, "o"),
            Err(KeysError::TrustDomain { .. })
        ));
        let moved = rows[0].sealed.clone();
        rows[1].sealed = moved;
        assert!(refused(&sealer(1), &rows).contains("`token`"));
    }

    #[test]
    fn agents_get_a_day_and_never_more_than_the_ca() {
        let rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
        let keys = Keys::unseal(&sealer(1), &rows, &domain(), "o").unwrap();
        let spki = SigningKey::generate().unwrap().public_key().spki();
        let id = "spiffe://test.example/agent/web-1";
        let (der, end) = keys.issue_agent(id, &spki, now()).unwrap();
        let leaf = Leaf::parse(&der).unwrap();
        assert_eq!((leaf.spiffe_id.as_str(), leaf.spki), (id, spki.clone()));
        assert_eq!(end.millis_since(now()), 24 * 3_600_000);
        let late = now().saturating_add_millis((limits::CA_SECONDS - 60) * 1000);
        let (der, end) = keys.issue_agent(id, &spki, late).unwrap();
        assert_eq!(end, keys.ca_end());
        assert_eq!(
            Leaf::parse(&der).unwrap().not_after,
            keys.ca().certificate().not_after()
        );
    }
}
