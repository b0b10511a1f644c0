//! Our kept P-256 key as rustls wants it, and the slot a renewed certificate goes into.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey as RustlsKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};

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
    /// Guards only the pointer: held for a clone or a store.
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl CertificateSlot {
    /// A slot with a certificate in it.
    #[must_use]
    pub fn new(certificate: Arc<CertifiedKey>) -> Self {
        Self {
            current: RwLock::new(Some(certificate)),
        }
    }

    /// An empty slot: a client offers no certificate, a server refuses handshakes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Uses `certificate` from the next handshake on.
    pub fn replace(&self, certificate: Arc<CertifiedKey>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
    }

    /// The certificate in use.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
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
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
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
