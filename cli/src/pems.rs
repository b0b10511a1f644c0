//! A certificate as programs read it: files of PEM with the names that Kubernetes gave them.

use ephor_crypto::Secret;
use ephor_crypto::digest::{Sha256Hasher, hex};
use ephor_proto::http::agent::Certificate;
use zeroize::Zeroizing;

/// How the certificate of an entitlement that gives several things is named.
pub const CERTIFICATE_ITEM: &str = "certificate";

/// A certificate, its key, and what the other side is checked with.
pub struct Pems {
    chain: String,
    key: Secret,
    bundle: String,
}

impl Pems {
    /// Takes an answer apart; the key moves, it is not copied.
    pub fn of(certificate: Certificate) -> Self {
        Self {
            chain: certificate.chain,
            key: Secret::from_string(certificate.private_key),
            bundle: certificate.bundle,
        }
    }

    /// The files, by name: certificate chain, key, CAs, and key and chain in one.
    pub fn files(&self) -> [(&'static str, Secret); 4] {
        let public = |text: &str| Secret::new(text.as_bytes().to_vec());
        [
            ("tls.crt", public(&self.chain)),
            ("tls.key", Secret::new(self.key.expose().to_vec())),
            ("ca.crt", public(&self.bundle)),
            ("tls.pem", self.in_one()),
        ]
    }

    /// Tells one set of files from another.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256Hasher::new();
        for (_, bytes) in self.files() {
            hasher.update(bytes.expose());
        }
        hex(&hasher.finish()[..8])
    }

    /// The key, and the certificates after it.
    pub fn in_one(&self) -> Secret {
        let mut whole = Zeroizing::new(Vec::with_capacity(self.key.len() + self.chain.len()));
        whole.extend_from_slice(self.key.expose());
        whole.extend_from_slice(self.chain.as_bytes());
        Secret::new(std::mem::take(&mut *whole))
    }
}
