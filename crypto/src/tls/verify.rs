//! Who is on the other side.
//!
//! All three verifiers trust the fleet's own CAs and nothing else: never the system's
//! roots. Only TLS 1.3 signatures are accepted.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyUsage};

use super::{TlsError, provider};
use crate::digest::{hex, sha256};
use crate::x509::{CaCertificate, Leaf, X509Error};

/// The CAs trusted now. Replacing them acts from the next handshake on; connections that
/// stand are the caller's to close.
#[derive(Debug, Default)]
pub struct TrustStore {
    /// Guards only the pointer: held for a clone or a store.
    current: RwLock<Arc<[CaCertificate]>>,
}

impl TrustStore {
    /// Trusts `cas`; nobody when empty.
    #[must_use]
    pub fn new(cas: Vec<CaCertificate>) -> Self {
        Self {
            current: RwLock::new(cas.into()),
        }
    }

    /// Trusts `cas` and no longer anything else.
    pub fn replace(&self, cas: Vec<CaCertificate>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = cas.into();
    }

    /// The CAs trusted now.
    #[must_use]
    pub fn current(&self) -> Arc<[CaCertificate]> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whom a client wants to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A DNS name or IP address in the certificate.
    Host(ServerName<'static>),
    /// The SPIFFE ID in the certificate, wherever it is reached.
    SpiffeId(String),
}

impl Peer {
    /// A peer by DNS name or IP address, without port.
    ///
    /// # Errors
    /// [`TlsError::Name`].
    pub fn host(name: &str) -> Result<Self, TlsError> {
        ServerName::try_from(name.to_owned())
            .map(Self::Host)
            .map_err(|_| TlsError::Name(name.to_owned()))
    }

    /// A peer by SPIFFE ID.
    #[must_use]
    pub fn spiffe_id(id: &str) -> Self {
        Self::SpiffeId(id.to_owned())
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        match self {
            Self::Host(name) => EndEntityCert::try_from(certificate)
                .and_then(|parsed| parsed.verify_is_valid_for_subject_name(name))
                .map_err(webpki_error),
            Self::SpiffeId(expected) => {
                let leaf = Leaf::parse(certificate).map_err(x509_error)?;
                if leaf.spiffe_id == *expected {
                    Ok(())
                } else {
                    Err(Error::InvalidCertificate(CertificateError::NotValidForName))
                }
            }
        }
    }

    /// What a connector must put where rustls wants a server name. The name decides
    /// nothing here: the verifier compares with the peer it was made for.
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        match self {
            Self::Host(name) => name.clone(),
            Self::SpiffeId(_) => ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()),
        }
    }
}

/// The three answers about signatures that every verifier here gives alike.
macro_rules! tls13_signatures_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}
pub(super) use tls13_signatures_only;

/// A client's check of the broker: issued by a trusted CA, for the expected peer.
#[derive(Debug)]
pub struct PinnedCa {
    trust: Arc<TrustStore>,
    peer: Peer,
}

impl PinnedCa {
    /// Accepts `peer` under the CAs of `trust`.
    #[must_use]
    pub fn new(trust: Arc<TrustStore>, peer: Peer) -> Self {
        Self { trust, peer }
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_chain(
            &self.trust.current(),
            end_entity,
            intermediates,
            now,
            KeyUsage::server_auth(),
        )?;
        self.peer.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures_only!();
}

/// An agent's check at its first contact, when all it has is the hash in its join token:
/// the broker sends its CA along, the hash says whether it is the right one, and the
/// chain and the peer are then checked as ever.
pub struct JoinPin {
    ca_sha256: [u8; 32],
    peer: Peer,
}

impl JoinPin {
    /// Accepts `peer` under the CA whose DER hashes to `ca_sha256`.
    #[must_use]
    pub fn new(ca_sha256: [u8; 32], peer: Peer) -> Self {
        Self { ca_sha256, peer }
    }
}

impl fmt::Debug for JoinPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinPin({}, {:?})", hex(&self.ca_sha256), self.peer)
    }
}

impl ServerCertVerifier for JoinPin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = pinned_ca(intermediates, &self.ca_sha256).map_err(|error| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
        })?;
        verify_chain(&[ca], end_entity, &[], now, KeyUsage::server_auth())?;
        self.peer.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures_only!();
}

/// The CA with the pinned hash in a chain that a peer sent: what an agent keeps after its
/// first connection.
///
/// # Errors
/// [`TlsError::NotPinned`] when there is none, or it is not a CA of a trust domain.
pub fn pinned_ca(
    chain: &[CertificateDer<'_>],
    ca_sha256: &[u8; 32],
) -> Result<CaCertificate, TlsError> {
    chain
        .iter()
        .find(|der| sha256(der) == *ca_sha256)
        .and_then(|der| CaCertificate::from_der(der).ok())
        .ok_or(TlsError::NotPinned)
}

/// Whether a certificate whose chain and form are good may connect: bans are asked here.
/// Called at every handshake, so it must not block.
pub type Admit = Arc<dyn Fn(&Leaf) -> bool + Send + Sync>;

/// A server's check of client certificates: issued by a CA trusted now, SPIFFE profile,
/// admitted. The peer's SPIFFE ID is then [`Leaf::parse`] of its first certificate.
pub struct ClientCerts {
    trust: Arc<TrustStore>,
    admit: Admit,
    mandatory: bool,
}

impl ClientCerts {
    /// A certificate may be left out (a joining agent has none yet), but one that is
    /// shown must be good.
    #[must_use]
    pub fn optional(trust: Arc<TrustStore>, admit: Admit) -> Self {
        Self {
            trust,
            admit,
            mandatory: false,
        }
    }

    /// No handshake without a good certificate.
    #[must_use]
    pub fn mandatory(trust: Arc<TrustStore>, admit: Admit) -> Self {
        Self {
            trust,
            admit,
            mandatory: true,
        }
    }
}

impl fmt::Debug for ClientCerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCerts")
            .field("trust", &self.trust)
            .field("mandatory", &self.mandatory)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientCerts {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_chain(
            &self.trust.current(),
            end_entity,
            intermediates,
            now,
            KeyUsage::client_auth(),
        )?;
        let leaf = Leaf::parse(end_entity).map_err(x509_error)?;
        if !(self.admit)(&leaf) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures_only!();
}

/// What a check of ours is told about a peer whose chain and form are good.
#[derive(Debug)]
pub struct Verified<'a> {
    /// What its certificate says.
    pub leaf: &'a Leaf,
    /// The CAs between it and the trusted one, the issuer first: verified with it. Those whose
    /// form is not that of a CA of a trust domain are left out.
    pub issuers: &'a [CaCertificate],
    /// The CAs that were trusted when it was verified.
    pub trusted: &'a Arc<[CaCertificate]>,
    /// When, seconds since 1970.
    pub now: i64,
}

/// Whether a peer whose chain and form are good may take part; the error becomes the alert.
/// Called at every handshake, so it must not block.
pub type Accept = Arc<dyn Fn(&Verified<'_>) -> Result<(), CertificateError> + Send + Sync>;

/// The check of workloads of each other, on either side of a connection: issued by a CA
/// trusted now, SPIFFE profile, and whatever else the caller asks for. A server that has it
/// makes no handshake without a client certificate.
pub struct Workloads {
    trust: Arc<TrustStore>,
    accept: Accept,
}

impl Workloads {
    /// Peers under `trust` that `accept` takes.
    #[must_use]
    pub fn new(trust: Arc<TrustStore>, accept: Accept) -> Self {
        Self { trust, accept }
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
    ) -> Result<(), Error> {
        let cas = self.trust.current();
        let issuers = verify_chain(&cas, end_entity, intermediates, now, usage)?;
        let leaf = Leaf::parse(end_entity).map_err(x509_error)?;
        let verified = Verified {
            leaf: &leaf,
            issuers: &issuers,
            trusted: &cas,
            now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        };
        (self.accept)(&verified).map_err(Error::InvalidCertificate)
    }
}

impl fmt::Debug for Workloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workloads")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Workloads {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures_only!();
}

impl ServerCertVerifier for Workloads {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures_only!();
}

/// Chain, validity of leaf and CA, and usage; gives the CAs between, the issuer first. The name
/// is checked elsewhere.
fn verify_chain(
    cas: &[CaCertificate],
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: impl ExtendedKeyUsageValidator,
) -> Result<Vec<CaCertificate>, Error> {
    let now_unix = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let anchors: Vec<_> = cas
        .iter()
        .filter(|ca| ca.valid_at(now_unix))
        .map(|ca| ca.anchor().clone())
        .collect();
    let end_entity = EndEntityCert::try_from(end_entity).map_err(webpki_error)?;
    let path = end_entity
        .verify_for_usage(
            provider().signature_verification_algorithms.all,
            &anchors,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(webpki_error)?;
    let between = path.intermediate_certificates();
    Ok(between
        .filter_map(|ca| CaCertificate::from_der(&ca.der()).ok())
        .collect())
}

/// The errors an operator can act on keep their name; the rest keep their text.
fn webpki_error(error: webpki::Error) -> Error {
    let reason = match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::CertNotValidForName(_) => CertificateError::NotValidForName,
        webpki::Error::BadDer => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(reason)
}

fn x509_error(error: X509Error) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
