//! The broker's own keys: the CA for agents and workloads, the token key, the key of the audit log,
//! the CA for database logins.
//!
//! At rest they are sealed under the master key, each bound to its name and version, so
//! that a row moved or put back is refused. A private key never leaves this module but
//! through a signature.

mod fresh;
pub(crate) mod lacking;
pub mod master;
pub mod plan;
pub mod rotate;
pub mod server;
pub mod state;
mod upstream;

use std::sync::Arc;

use ephor_crypto::ed25519::LogKey;
use ephor_crypto::jws::JwsSigner;
use ephor_crypto::jwt::{TokenKind, VerifyKeys};
use ephor_crypto::p256::{KeyError, P256Public, SigningKey};
use ephor_crypto::seal::{SealError, SealingKey};
use ephor_crypto::x509::{Ca, CaCertificate, X509Error, not_after, pem, split_der};
use ephor_proto::log::{BadNote, VerifierKey};
use ephor_proto::spiffe::TrustDomain;
use ephor_proto::time::UnixMillis;

use crate::ledger::{KeyRow, log};
use crate::limits;
use plan::Held;
use state::{KeyKind, KeyState, moved, next_version};

/// Name of the CA's row.
pub const CA: &str = "ca";
/// Name of the token key's row.
pub const TOKEN: &str = "token";
/// Name of the log key's row.
pub const LOG: &str = "log";
/// Name of the row of the CA for databases.
pub const DATABASE: &str = "database";

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The master key is another one, or a row was moved or changed.
    #[error(
        "the master key does not open the key `{0}` of this database: it is another installation's key, \
         or the database was altered; bring back the master key that belongs to it"
    )]
    Unseal(String),
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
    /// A row is of no kind of key.
    #[error("keys: {0}")]
    Kind(#[from] state::UnknownKind),
    /// A certificate could not be made or read.
    #[error("keys: {0}")]
    X509(#[from] X509Error),
}

/// Whose keys these are.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// Trust domain of every certificate.
    pub trust_domain: &'a TrustDomain,
    /// Installation id, which stands in the CA's name.
    pub installation: &'a str,
}

/// All keys, opened: a snapshot that never changes. The one in force is swapped whole.
pub struct Keys {
    /// Trusted CAs, oldest first.
    cas: Vec<HeldCa>,
    /// The one that issues.
    issuing: HeldCa,
    /// Trusted CAs for databases, oldest first.
    databases: Vec<CaCertificate>,
    /// The one that issues for logins.
    database: Arc<Ca>,
    /// Published token keys, oldest first.
    tokens: Vec<(String, P256Public)>,
    token_public: P256Public,
    identity: Arc<JwsSigner>,
    access: Arc<JwsSigner>,
    status_list: Arc<JwsSigner>,
    verify: VerifyKeys,
    log: Arc<log::Signer>,
    log_vkey: String,
    /// Every key that ever signed this log, oldest first.
    log_vkeys: Vec<VerifierKey>,
    sequence: u64,
    held: Vec<Held>,
}

/// One CA of ours.
#[derive(Clone)]
pub struct HeldCa {
    /// Which version.
    pub version: u32,
    /// Where it is in its life.
    pub state: KeyState,
    /// It, with its key: a retired one still signs its revocation lists.
    pub ca: Arc<Ca>,
    /// Certificates above it, the root last; empty for a root.
    above: Vec<Vec<u8>>,
}

impl HeldCa {
    /// What goes behind a leaf in a chain: this CA and what is between it and its root, DER. Empty
    /// for a root, which its verifiers have.
    #[must_use]
    pub fn chain(&self) -> Vec<Vec<u8>> {
        match self.above.split_last() {
            None => Vec::new(),
            Some((_root, between)) => {
                let own = self.ca.certificate().der().to_vec();
                std::iter::once(own)
                    .chain(between.iter().cloned())
                    .collect()
            }
        }
    }

    /// The root that a verifier trusts, DER.
    #[must_use]
    pub fn root(&self) -> &[u8] {
        self.above
            .last()
            .map_or_else(|| self.ca.certificate().der(), Vec::as_slice)
    }
}

/// What verifiers of this trust domain need: roots for certificates, keys for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Grows with every change (`spiffe_sequence`).
    pub sequence: u64,
    /// Roots, DER, oldest first, each once.
    pub roots: Vec<Vec<u8>>,
    /// Token keys by `kid`, oldest first.
    pub tokens: Vec<(String, P256Public)>,
}

impl Keys {
    /// Names of all keys.
    pub const NAMES: [&str; 4] = [CA, TOKEN, LOG, DATABASE];

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
        let owner = Owner {
            trust_domain,
            installation,
        };
        KeyKind::ALL
            .into_iter()
            .map(|kind| fresh::row(sealer, kind, owner, (1, KeyState::Active), now))
            .collect()
    }

    /// New active keys of `kinds` in the place of all there are, which are distrusted at once: what
    /// a new epoch begins with (`ephor broker recover`). It is not the way for a key that others may
    /// have, because the hosts of the epoch before come back by certificates of its CA: that is
    /// [`crate::app::Broker::rotate_key`], then [`crate::app::Broker::distrust_keys`]. Gives the rows
    /// to write, old and new, in one batch with its audit event.
    ///
    /// # Errors
    /// As [`Keys::generate`].
    pub fn replace_all(
        sealer: &SealingKey,
        rows: &[KeyRow],
        kinds: &[KeyKind],
        owner: Owner<'_>,
        now: UnixMillis,
    ) -> Result<Vec<KeyRow>, KeysError> {
        let mut written = Vec::new();
        for &kind in kinds {
            let standing = rows
                .iter()
                .filter(|row| row.name == kind.as_str() && row.state != KeyState::Destroyed);
            written.extend(standing.map(|row| moved(row, kind, KeyState::Destroyed, now)));
            let version = next_version(rows, kind);
            let place = (version, KeyState::Active);
            written.push(fresh::row(sealer, kind, owner, place, now)?);
        }
        Ok(written)
    }

    /// Opens what is used or trusted of `rows`. `origin` is the name of the log.
    ///
    /// # Errors
    /// [`KeysError::Unseal`] with another master key.
    pub fn unseal(
        sealer: &SealingKey,
        rows: &[KeyRow],
        trust_domain: &TrustDomain,
        origin: &str,
    ) -> Result<Self, KeysError> {
        let cas = open_cas(sealer, rows, trust_domain)?;
        let issuing = cas.iter().find(|held| held.state == KeyState::Active);
        let issuing = issuing.ok_or(KeysError::Missing(CA))?.clone();
        let (databases, database) = open_databases(sealer, rows)?;
        let token_row = active(rows, KeyKind::Token)?;
        let token = Arc::new(SigningKey::from_pkcs8(&open(sealer, token_row)?)?);
        let kid = token.public_key().thumbprint();
        let signer =
            |kind: TokenKind| JwsSigner::new(Arc::clone(&token), kind.typ(), &kid).map(Arc::new);
        let (mut verify, mut tokens) = (VerifyKeys::new(), Vec::new());
        for row in of_kind(rows, KeyKind::Token).filter(|row| row.state.is_trusted()) {
            let public = P256Public::from_spki(&row.public)?;
            verify.insert(&public.thumbprint(), &public);
            tokens.push((public.thumbprint(), public));
        }
        let log = open_log(sealer, rows, origin)?;
        let mut log_vkeys = Vec::new();
        for row in of_kind(rows, KeyKind::Log) {
            log_vkeys.push(VerifierKey::new(origin, log_public(row)?)?);
        }
        // What verifiers of this trust domain look at.
        let published = rows
            .iter()
            .filter(|row| row.name == CA || row.name == TOKEN);
        Ok(Self {
            cas,
            issuing,
            databases,
            database,
            identity: signer(TokenKind::Identity)?,
            access: signer(TokenKind::Access)?,
            status_list: signer(TokenKind::StatusList)?,
            verify,
            tokens,
            token_public: token.public_key().clone(),
            log_vkey: VerifierKey::new(origin, log.key.public())?.to_string(),
            log: Arc::new(log),
            log_vkeys,
            sequence: published
                .map(|row| row.since.as_millis())
                .max()
                .unwrap_or(0),
            held: rows.iter().map(Held::of).collect::<Result<_, _>>()?,
        })
    }

    /// The active CA: it issues for agents, workloads and our own server.
    #[must_use]
    pub fn ca(&self) -> &Ca {
        &self.issuing.ca
    }

    /// The active CA with its chain.
    #[must_use]
    pub fn issuing(&self) -> &HeldCa {
        &self.issuing
    }

    /// What goes behind a leaf of the active CA: the intermediates up to the root that verifiers
    /// have, DER. Empty when the active CA is itself that root.
    #[must_use]
    pub fn ca_chain(&self) -> Vec<Vec<u8>> {
        self.issuing.chain()
    }

    /// Every CA that is trusted, oldest first: prepared, active and retired.
    #[must_use]
    pub fn cas(&self) -> &[HeldCa] {
        &self.cas
    }

    /// The CA of this version, if it is trusted.
    #[must_use]
    pub fn ca_of(&self, version: u32) -> Option<&HeldCa> {
        self.cas.iter().find(|held| held.version == version)
    }

    /// The active CA for databases: it issues for logins, and its leaves are for nobody else.
    #[must_use]
    pub fn database_ca(&self) -> &Ca {
        &self.database
    }

    /// The trusted CAs for databases in PEM: what goes into a server's `ssl_ca_file`.
    #[must_use]
    pub fn database_roots_pem(&self) -> String {
        self.databases.iter().map(CaCertificate::pem).collect()
    }

    /// When the active CA ends, or the first certificate above it: nothing it signs may last longer.
    #[must_use]
    pub fn ca_end(&self) -> UnixMillis {
        UnixMillis::from_unix_seconds(u64::try_from(self.ca_not_after()).unwrap_or(0))
    }

    fn ca_not_after(&self) -> i64 {
        let above = self
            .issuing
            .above
            .iter()
            .filter_map(|der| not_after(der).ok());
        above.fold(self.ca().certificate().not_after(), i64::min)
    }

    /// Whether a CA of this key identifier is trusted.
    #[must_use]
    pub fn trusts(&self, key_id: &[u8]) -> bool {
        self.cas
            .iter()
            .any(|held| held.ca.certificate().key_id() == key_id)
    }

    /// Grows with every change of what is trusted or published (`spiffe_sequence`).
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The CAs whose agents may connect.
    #[must_use]
    pub fn trusted(&self) -> Vec<CaCertificate> {
        let certificates = self.cas.iter().map(|held| held.ca.certificate().clone());
        certificates.collect()
    }

    /// Every version, for the plan.
    pub(crate) fn held(&self) -> &[Held] {
        &self.held
    }

    /// What verifiers of this trust domain need.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        let mut roots: Vec<Vec<u8>> = Vec::new();
        for held in &self.cas {
            if !roots.iter().any(|root| root == held.root()) {
                roots.push(held.root().to_vec());
            }
        }
        Bundle {
            sequence: self.sequence,
            roots,
            tokens: self.tokens.clone(),
        }
    }

    /// The roots in PEM: the content of `ca.pem`.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        let bundle = self.bundle();
        bundle
            .roots
            .iter()
            .map(|root| pem("CERTIFICATE", root))
            .collect()
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

    /// Keys that our own tokens verify with: every one that is published.
    #[must_use]
    pub fn verify_keys(&self) -> &VerifyKeys {
        &self.verify
    }

    /// The public half of the active token key.
    #[must_use]
    pub fn token_public(&self) -> &P256Public {
        &self.token_public
    }

    /// The published token keys by `kid`, oldest first, for the JWKS.
    #[must_use]
    pub fn token_keys(&self) -> &[(String, P256Public)] {
        &self.tokens
    }

    /// What signs checkpoints.
    #[must_use]
    pub fn log_signer(&self) -> &Arc<log::Signer> {
        &self.log
    }

    /// The C2SP verifier key of the active log key.
    #[must_use]
    pub fn log_vkey(&self) -> &str {
        &self.log_vkey
    }

    /// Verifier keys of every key that ever signed this log, oldest first.
    #[must_use]
    pub fn log_vkeys(&self) -> &[VerifierKey] {
        &self.log_vkeys
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
        let not_after = wanted.min(self.ca_not_after());
        let der = self
            .ca()
            .issue_agent(spiffe_id, spki_der, serial()?, not_before, not_after)?;
        Ok((
            der,
            UnixMillis::from_unix_seconds(u64::try_from(not_after).unwrap_or(0)),
        ))
    }
}

fn of_kind(rows: &[KeyRow], kind: KeyKind) -> impl Iterator<Item = &KeyRow> {
    rows.iter().filter(move |row| row.name == kind.as_str())
}

fn active(rows: &[KeyRow], kind: KeyKind) -> Result<&KeyRow, KeysError> {
    of_kind(rows, kind)
        .find(|row| row.state == KeyState::Active)
        .ok_or(KeysError::Missing(kind.as_str()))
}

/// The trusted CAs for databases, oldest first, and the one that issues: of a retired one the
/// certificate is all there is.
fn open_databases(
    sealer: &SealingKey,
    rows: &[KeyRow],
) -> Result<(Vec<CaCertificate>, Arc<Ca>), KeysError> {
    let mut trusted: Vec<&KeyRow> = of_kind(rows, KeyKind::Database)
        .filter(|row| row.state.is_trusted())
        .collect();
    trusted.sort_by_key(|row| row.version);
    let certificates = trusted
        .iter()
        .map(|row| CaCertificate::from_der(&row.public));
    let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
    let row = active(rows, KeyKind::Database)?;
    let key = SigningKey::from_pkcs8(&open(sealer, row)?)?;
    let pem = CaCertificate::from_der(&row.public)?.pem();
    Ok((certificates, Arc::new(Ca::from_parts(&pem, key)?)))
}

fn open_cas(
    sealer: &SealingKey,
    rows: &[KeyRow],
    trust_domain: &TrustDomain,
) -> Result<Vec<HeldCa>, KeysError> {
    let mut cas = Vec::new();
    for row in of_kind(rows, KeyKind::Ca).filter(|row| row.state.is_trusted()) {
        let certificate = CaCertificate::from_der(&row.public)?;
        if certificate.trust_domain() != trust_domain.as_str() {
            return Err(KeysError::TrustDomain {
                ca: certificate.trust_domain().to_owned(),
                policy: trust_domain.to_string(),
            });
        }
        let key = SigningKey::from_pkcs8(&open(sealer, row)?)?;
        cas.push(HeldCa {
            version: row.version,
            state: row.state,
            ca: Arc::new(Ca::from_parts(&certificate.pem(), key)?),
            above: split_der(&row.chain)?,
        });
    }
    cas.sort_by_key(|held| held.version);
    Ok(cas)
}

/// The active key signs, a retired one beside it.
fn open_log(sealer: &SealingKey, rows: &[KeyRow], origin: &str) -> Result<log::Signer, KeysError> {
    let key = |row| -> Result<Arc<LogKey>, KeysError> {
        Ok(Arc::new(LogKey::from_pkcs8(&open(sealer, row)?)?))
    };
    let beside = of_kind(rows, KeyKind::Log)
        .filter(|row| row.state == KeyState::Retired)
        .take(limits::LOG_KEYS_BESIDE);
    Ok(log::Signer {
        origin: origin.to_owned(),
        key: key(active(rows, KeyKind::Log)?)?,
        beside: beside.map(key).collect::<Result<_, _>>()?,
    })
}

/// The end of a CA's row: of the certificate, or of the first above it.
fn ca_row_end(row: &KeyRow) -> Result<UnixMillis, KeysError> {
    let mut end = not_after(&row.public)?;
    for above in split_der(&row.chain)? {
        end = end.min(not_after(&above)?);
    }
    Ok(UnixMillis::from_unix_seconds(
        u64::try_from(end).unwrap_or(0),
    ))
}

fn log_public(row: &KeyRow) -> Result<[u8; 32], KeysError> {
    let public = <[u8; 32]>::try_from(row.public.as_slice());
    public.map_err(|_| KeysError::Key(KeyError::Private("Ed25519")))
}

fn open(sealer: &SealingKey, row: &KeyRow) -> Result<ephor_crypto::Secret, KeysError> {
    match sealer.open(&record(&row.name), row.version, &row.sealed) {
        Ok(secret) => Ok(secret),
        Err(SealError::Refused) => Err(KeysError::Unseal(row.name.clone())),
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
pub(crate) mod tests;
