//! TLS to a database server. It is nobody of the fleet's: its certificate comes from wherever its
//! operator has certificates from, and how far it is checked is what people know from libpq.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{TlsError, client_config, provider};
use crate::digest::sha256;
use crate::x509::CaCertificate;

/// How far a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerCheck {
    /// Not at all: encrypted, with whoever answers (`sslmode=require`).
    Nothing,
    /// Issued under the roots, for any name (`sslmode=verify-ca`).
    Chain,
    /// Issued under the roots, for the name that was connected to (`sslmode=verify-full`).
    ChainAndName,
}

/// A client of a database whose server is checked against the certificates in `roots` (PEM).
///
/// # Errors
/// [`TlsError::Roots`] when there is no certificate that can be a root, although one is needed.
pub fn database_client(check: ServerCheck, roots: &[u8]) -> Result<ClientConfig, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match check {
        ServerCheck::Nothing => Arc::new(Database { roots: None }),
        ServerCheck::Chain => Arc::new(Database {
            roots: Some(verifier(roots)?),
        }),
        ServerCheck::ChainAndName => verifier(roots)?,
    };
    client_config(verifier, None, &[])
}

fn verifier(pem: &[u8]) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    // A bundle may hold what nobody can use any more; what is left must be enough.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|_| TlsError::Roots)
}

/// What a server says of the client certificates that it would take; it is shown none.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Names of the issuers that it trusts, DER; `None` until it has asked. Held for one copy.
    issuers: Mutex<Option<Vec<Vec<u8>>>>,
}

impl Wanted {
    /// Whether it asked for a certificate at all.
    #[must_use]
    pub fn is_asked_for(&self) -> bool {
        self.issuers().is_some()
    }

    /// Whether it said that it trusts a CA of this one's name.
    #[must_use]
    pub fn takes(&self, ca: &CaCertificate) -> bool {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(ca.der()) else {
            return false;
        };
        let name = parsed.subject().as_raw();
        let issuers = self.issuers();
        let mut issuers = issuers.iter().flatten();
        issuers.any(|issuer| issuer.as_slice() == name)
    }

    fn issuers(&self) -> std::sync::MutexGuard<'_, Option<Vec<Vec<u8>>>> {
        self.issuers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesClientCert for Wanted {
    fn resolve(&self, issuers: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let all = issuers.iter().map(|issuer| issuer.to_vec()).collect();
        *self.issuers() = Some(all);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// As [`database_client`] with the name checked, and `wanted` learns what the server asks for.
///
/// # Errors
/// As [`database_client`].
pub fn database_client_asking(
    roots: &[u8],
    wanted: &Arc<Wanted>,
) -> Result<ClientConfig, TlsError> {
    let wanted: Arc<dyn ResolvesClientCert> = Arc::<Wanted>::clone(wanted);
    client_config(verifier(roots)?, Some(wanted), &[])
}

/// What a login is bound to, so that nobody in between can pass it on: `tls-server-end-point` (RFC
/// 5929 §4.1), for certificates signed with SHA-256, or with what RFC 5929 takes as SHA-256. For
/// others none.
#[must_use]
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    // ecdsa-with-SHA256, sha256WithRSAEncryption, sha1WithRSAEncryption, md5WithRSAEncryption
    const SHA256: [&str; 4] = [
        "1.2.840.10045.4.3.2",
        "1.2.840.113549.1.1.11",
        "1.2.840.113549.1.1.5",
        "1.2.840.113549.1.1.4",
    ];
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let algorithm = parsed.signature_algorithm.algorithm.to_id_string();
    SHA256
        .contains(&algorithm.as_str())
        .then(|| sha256(certificate).to_vec())
}

/// Checks less than rustls wants to: the chain without the name, or nothing but that the server
/// has the key of the certificate it shows.
#[derive(Debug)]
struct Database {
    roots: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Database {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let checked =
            roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match checked {
            // Compared last, when the chain is good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            checked => checked,
        }
    }

    super::verify::tls13_signatures_only!();
}
