//! Our kept P-256 key as rustls wants it, and the slot a renewed certificate goes into.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey as RustlsKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer};

use crate::digest::hex;
use crate::p256::SigningKey;

/// A chain (leaf first, DER) and its key for TLS. The key is used as it is kept: never
/// copied, never parsed again.
#[must_use]
pub fn certified_key(chain: &[&[u8]], key: Arc<SigningKey>) -> Arc<CertifiedKey> {
    let chain = chain
        .iter()
        .map(|der| CertificateDer::from(der.to_vec()))
        .collect();
    Arc::new(CertifiedKey::new(chain, Arc::new(TlsKey(key))))
}

#[derive(Clone, Debug)]
struct TlsKey(Arc<SigningKey>);

impl RustlsKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.0.public_key().spki().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0
            .sign_der(message)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// The certificate in use, replaceable while connections are made. Serves both sides.
#[derive(Default)]
pub struct CertificateSlot {
    /// Guards only the pointers: held for a clone or a store.
    current: RwLock<Certificates>,
}

#[derive(Default)]
struct Certificates {
    usual: Option<Arc<CertifiedKey>>,
    /// By the name that a client asks with; see [`ca_name`].
    named: Vec<(String, Arc<CertifiedKey>)>,
}

/// The server name (RFC 6066 §3) by which a client asks for a certificate of the CA whose DER has
/// this SHA-256. While one CA follows another a server has certificates of both, and the client says
/// which it can verify. It decides nothing else: the client's verifier looks at the certificate.
#[must_use]
pub fn ca_name(ca_sha256: &[u8; 32]) -> ServerName<'static> {
    let name = ca_label(ca_sha256);
    // Always a DNS name: 35 letters, digits and a hyphen under `ephor.invalid` (RFC 6761 §6.4).
    ServerName::try_from(name).unwrap_or(ServerName::IpAddress(
        std::net::IpAddr::from([0, 0, 0, 0]).into(),
    ))
}

fn ca_label(ca_sha256: &[u8; 32]) -> String {
    let hash = hex(ca_sha256);
    let begin = hash.get(..32).unwrap_or(&hash);
    format!("ca-{begin}.ephor.invalid")
}

impl CertificateSlot {
    /// A slot with a certificate in it.
    #[must_use]
    pub fn new(certificate: Arc<CertifiedKey>) -> Self {
        Self {
            current: RwLock::new(Certificates {
                usual: Some(certificate),
                named: Vec::new(),
            }),
        }
    }

    /// An empty slot: a client offers no certificate, a server refuses handshakes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Uses `certificate` from the next handshake on.
    pub fn replace(&self, certificate: Arc<CertifiedKey>) {
        self.replace_all(certificate, Vec::new());
    }

    /// Uses `usual` from the next handshake on, and one of `by_ca` for clients that ask for one of
    /// that CA, which is named by its SHA-256.
    pub fn replace_all(&self, usual: Arc<CertifiedKey>, by_ca: Vec<([u8; 32], Arc<CertifiedKey>)>) {
        let named = by_ca.into_iter().map(|(ca, key)| (ca_label(&ca), key));
        let certificates = Certificates {
            usual: Some(usual),
            named: named.collect(),
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = certificates;
    }

    fn named(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let certificates = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let found = certificates.named.iter().find(|(ca, _)| ca == name);
        found.map(|(_, key)| Arc::clone(key))
    }

    /// The certificate in use.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .usual
            .clone()
    }
}

impl fmt::Debug for CertificateSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.current().is_some() {
            "CertificateSlot(set)"
        } else {
            "CertificateSlot(empty)"
        })
    }
}

impl ResolvesServerCert for CertificateSlot {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.named(name));
        named.or_else(|| self.current())
    }
}

impl ResolvesClientCert for CertificateSlot {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        self.current().is_some()
    }
}
