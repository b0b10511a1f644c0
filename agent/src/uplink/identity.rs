//! The agent's own identity on disk: key, certificate and CAs in one file of mode 0600.
//!
//! One file because a key without its certificate is no identity: it is replaced by rename,
//! so a crash leaves the old one or the new one, never a half. The key is made on this host and
//! never leaves it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{CaCertificate, Leaf};
use ephor_proto::spiffe::{HostName, SpiffeId, TrustDomain};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// Name of the identity file in the state directory.
const IDENTITY: &str = "identity.pem";
/// Name of the file that says where the host joined.
const JOINED: &str = "joined.json";

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The host did not join.
    #[error(
        "this host has not joined: there is no {0}. Join it with: ephor-agent join --broker URL --token-file F --host NAME"
    )]
    NotJoined(PathBuf),
    /// Others may read the key.
    #[error(
        "{path} can be read by others (mode {mode:04o}); the key may be known. Ban the host, then join it again"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is damaged.
    #[error("{path}: {problem}. Join this host again, with a new token")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// Where the host joined; no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The broker's URL at that time.
    pub broker: String,
    /// The broker's installation.
    pub installation: String,
}

/// What the agent proves itself with, and whom it trusts.
pub struct Identity {
    /// Its key.
    pub key: Arc<SigningKey>,
    /// Its certificate, DER.
    pub certificate_der: Vec<u8>,
    /// What the certificate says.
    pub leaf: Leaf,
    /// The CAs of the fleet.
    pub cas: Vec<CaCertificate>,
    /// This host.
    pub host: HostName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
}

impl Identity {
    /// Puts together what belongs together.
    ///
    /// # Errors
    /// Says which part does not: the certificate's key or name, or a CA.
    pub fn assemble(
        key: SigningKey,
        certificate_der: Vec<u8>,
        ca_ders: &[Vec<u8>],
    ) -> Result<Self, String> {
        let leaf = Leaf::parse(&certificate_der).map_err(|error| error.to_string())?;
        if leaf.spki != key.public_key().spki() {
            return Err("the certificate is for another key".to_owned());
        }
        let id: SpiffeId = leaf
            .spiffe_id
            .parse()
            .map_err(|_| format!("`{}` is no SPIFFE ID", leaf.spiffe_id))?;
        let host = id
            .agent_host()
            .ok_or_else(|| format!("`{id}` is no agent's SPIFFE ID"))?;
        let parsed = ca_ders
            .iter()
            .map(|der| CaCertificate::from_der(der).map_err(|error| error.to_string()));
        let cas = parsed.collect::<Result<Vec<_>, _>>()?;
        let trust_domain = id.trust_domain();
        if cas.is_empty()
            || cas
                .iter()
                .any(|ca| ca.trust_domain() != trust_domain.as_str())
        {
            return Err("the CA certificates are not those of its trust domain".to_owned());
        }
        Ok(Self {
            key: Arc::new(key),
            certificate_der,
            leaf,
            cas,
            host,
            trust_domain,
        })
    }

    /// Reads the identity of the state directory.
    ///
    /// # Errors
    /// When the host did not join, the file is damaged, or others could read it.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let path = state_dir.join(IDENTITY);
        let io = |error| IdentityError::Io {
            path: path.clone(),
            error,
        };
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.mode() & 0o7777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(IdentityError::NotJoined(path));
            }
            Err(error) => return Err(io(error)),
        };
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path, mode });
        }
        let pem = Zeroizing::new(fs::read(&path).map_err(io)?);
        Self::from_pem(&pem).map_err(|problem| IdentityError::Damaged { path, problem })
    }

    /// Writes it, replacing what was there, durably.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let path = state_dir.join(IDENTITY);
        write_private(&path, self.to_pem().as_bytes())
            .map_err(|error| IdentityError::Io { path, error })
    }

    /// Whether an identity is there at all.
    #[must_use]
    pub fn exists(state_dir: &Path) -> bool {
        state_dir.join(IDENTITY).exists()
    }

    /// When it should be renewed, Unix milliseconds: after two thirds of its life.
    #[must_use]
    pub fn renew_at_millis(&self) -> u64 {
        let life = self.leaf.not_after.saturating_sub(self.leaf.not_before);
        let at = self.leaf.not_before.saturating_add(life / 3 * 2);
        u64::try_from(at).unwrap_or(0).saturating_mul(1000)
    }

    fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|_| "it holds no private key".to_owned())?;
        let key = Secret::new(key.secret_pkcs8_der().to_vec());
        let key = SigningKey::from_pkcs8(&key).map_err(|error| error.to_string())?;
        let certificates =
            CertificateDer::pem_slice_iter(pem).map(|der| der.map(|der| der.to_vec()));
        let mut certificates = certificates
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "a certificate is damaged".to_owned())?;
        if certificates.is_empty() {
            return Err("it holds no certificate".to_owned());
        }
        let leaf = certificates.remove(0);
        Self::assemble(key, leaf, &certificates)
    }

    fn to_pem(&self) -> Zeroizing<String> {
        // Room for all of it, so that the key is never moved and left behind.
        let mut text = Zeroizing::new(String::with_capacity(8 * 1024 + 4 * 1024 * self.cas.len()));
        push_pem(&mut text, "PRIVATE KEY", self.key.to_pkcs8().expose());
        push_pem(&mut text, "CERTIFICATE", &self.certificate_der);
        for ca in &self.cas {
            push_pem(&mut text, "CERTIFICATE", ca.der());
        }
        text
    }
}

impl Joined {
    /// Reads where the host joined.
    #[must_use]
    pub fn load(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_dir.join(JOINED)).ok()?).ok()
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let path = state_dir.join(JOINED);
        let json = serde_json::to_vec(self).map_err(io::Error::from);
        let written = json.and_then(|json| write_private(&path, &json));
        written.map_err(|error| IdentityError::Io { path, error })
    }
}

/// Makes the state directory, mode 0700, if it is not there.
///
/// # Errors
/// When it cannot be made.
pub fn make_state_dir(path: &Path) -> Result<(), IdentityError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|error| IdentityError::Io {
        path: path.to_owned(),
        error,
    })
}

/// Replaces a file of mode 0600 by rename, durable when this returns.
///
/// # Errors
/// The system's reason; the old file then still stands.
pub(super) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A left-over may be of any mode: never written into, always made new.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn push_pem(out: &mut String, label: &str, der: &[u8]) {
    let mut text = STANDARD.encode(der);
    for part in ["-----BEGIN ", label, "-----\n"] {
        out.push_str(part);
    }
    let mut rest = text.as_str();
    while let Some((line, tail)) = rest.split_at_checked(64) {
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    if !rest.is_empty() {
        out.push_str(rest);
        out.push('\n');
    }
    for part in ["-----END ", label, "-----\n"] {
        out.push_str(part);
    }
    text.zeroize();
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
pub(crate) mod tests {
    use super::*;
    use ephor_crypto::x509::Ca;

    /// An identity for `host-1`, valid for a day from 2026-01-01 on unless told otherwise.
    pub(crate) fn sample(ca: &Ca, not_before: i64, not_after: i64) -> Identity {
        let key = SigningKey::generate().unwrap();
        let der = ca
            .issue_agent(
                "spiffe://td.test/agent/host-1",
                &key.public_key().spki(),
                [5; 16],
                not_before,
                not_after,
            )
            .unwrap();
        Identity::assemble(key, der, &[ca.certificate().der().to_vec()]).unwrap()
    }

    const BEGIN: i64 = 1_767_225_600;

    fn ca() -> Ca {
        Ca::create("test", "td.test", BEGIN - 10, BEGIN + 31_536_000).unwrap()
    }

    #[test]
    fn what_is_stored_is_loaded_and_only_the_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Identity::load(dir.path()),
            Err(IdentityError::NotJoined(_))
        ));
        let identity = sample(&ca(), BEGIN, BEGIN + 86_400);
        identity.store(dir.path()).unwrap();
        identity.store(dir.path()).unwrap();
        let path = dir.path().join(IDENTITY);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!(loaded.leaf, identity.leaf);
        assert_eq!(
            (loaded.host.as_str(), loaded.trust_domain.as_str()),
            ("host-1", "td.test")
        );
        assert_eq!(
            loaded.renew_at_millis(),
            u64::try_from(BEGIN + 57_600).unwrap() * 1000
        );
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Identity::load(dir.path()),
            Err(IdentityError::Exposed { mode: 0o640, .. })
        ));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let identity = sample(&ca(), BEGIN, BEGIN + 86_400);
        let cas = [identity.cas[0].der().to_vec()];
        let other_key = SigningKey::generate().unwrap();
        assert!(Identity::assemble(other_key, identity.certificate_der.clone(), &cas).is_err());
        let key = || SigningKey::from_pkcs8(identity.key.to_pkcs8()).unwrap();
        assert!(Identity::assemble(key(), identity.certificate_der.clone(), &[]).is_err());
        let foreign = Ca::create("x", "other.test", BEGIN, BEGIN + 10)
            .unwrap()
            .certificate()
            .der()
            .to_vec();
        assert!(Identity::assemble(key(), identity.certificate_der.clone(), &[foreign]).is_err());
        assert!(Identity::assemble(key(), identity.certificate_der.clone(), &cas).is_ok());
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let identity = sample(&ca(), BEGIN, BEGIN + 86_400);
        let pem = identity.to_pem();
        let half = &pem[..pem.len() / 2];
        for bad in ["", "rubbish", half] {
            write_private(&dir.path().join(IDENTITY), bad.as_bytes()).unwrap();
            assert!(
                matches!(
                    Identity::load(dir.path()),
                    Err(IdentityError::Damaged { .. })
                ),
                "{bad}"
            );
        }
    }
}
