//! The first contact: a one-time token turns into this host's identity.
//!
//! The token carries the hash of the fleet's CA, so even this connection is authenticated:
//! the broker sends its CA along and is believed only if the hash fits. The token is sent
//! after that, and never before.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{self, JoinPin, Peer};
use ephor_crypto::x509::{CaCertificate, csr};
use ephor_proto::grpc::v1::enrolment_client::EnrolmentClient;
use ephor_proto::grpc::{self, v1};
use ephor_proto::problem::Problem;
use ephor_proto::spiffe::HostName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use zeroize::Zeroize;

use super::connect::{self, Address, Asks, ConnectError, TlsConnect};
use super::identity::{Identity, IdentityError, Joined, make_state_dir};
use super::refusal::{self, CallError};
use super::{NewCorrelation, timed};
use crate::limits;
use crate::tasks::Tasks;

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token's text is not one.
    #[error(
        "invalid: {0} holds no join token (ej1.…). Nothing was sent. Get one on the broker: ephor host invite"
    )]
    Token(String),
    /// It has joined before.
    #[error(
        "invalid: this host has joined already, as {0}. To join it again, remove identity.pem from its state directory first"
    )]
    Joined(String),
    /// No connection, or to someone else.
    #[error("unreachable: {0}. Nothing was changed; the token was not sent")]
    Connect(ConnectError),
    /// The broker said no.
    #[error("{0}. Nothing was changed on this host")]
    Refused(Problem),
    /// The answer did not come.
    #[error(
        "unreachable: {0}. Whether the token was used is not known: try again, else get a new token"
    )]
    Broken(Problem),
    /// The answer cannot be used.
    #[error(
        "invalid: the broker's answer cannot be used: {0}. Nothing was changed on this host; the token is used up"
    )]
    Answer(String),
    /// The state directory.
    #[error("invalid: {0}")]
    Identity(#[from] IdentityError),
    /// Key or TLS could not be set up.
    #[error("invalid: {0}")]
    Crypto(String),
}

/// `ej1.ID.SECRET.CA-SHA256`
pub struct Token {
    text: Secret,
    ca_sha256: [u8; 32],
}

impl Token {
    /// Parses a token; white space around it is ignored. `None` when it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut parts = text.split('.');
        let (version, id, secret, hash) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "ej1" || parts.next().is_some() {
            return None;
        }
        id.parse::<ephor_proto::id::JoinTokenId>().ok()?;
        let mut decoded = URL_SAFE_NO_PAD.decode(secret).ok()?;
        let whole = decoded.len() == 32;
        decoded.zeroize();
        let ca_sha256 = URL_SAFE_NO_PAD.decode(hash).ok()?.try_into().ok()?;
        whole.then(|| Self {
            text: Secret::from_string(text.to_owned()),
            ca_sha256,
        })
    }
}

/// What is needed to join.
pub struct Join<'a> {
    /// The broker's URL.
    pub broker: &'a str,
    /// The name to join as.
    pub host: &'a HostName,
    /// Where the identity goes.
    pub state_dir: &'a Path,
    /// Source of correlation ids.
    pub correlation: NewCorrelation,
    /// Where the connection's tasks belong.
    pub tasks: &'a Tasks,
}

/// Joins: nothing is written before the broker's answer is complete and checked.
///
/// # Errors
/// See [`JoinError`]; each says whether anything was sent or changed.
pub async fn join(join: &Join<'_>, token: &Token) -> Result<Identity, JoinError> {
    let address = Address::parse(join.broker).map_err(JoinError::Connect)?;
    if let Ok(present) = Identity::load(join.state_dir) {
        return Err(JoinError::Joined(present.leaf.spiffe_id));
    }
    make_state_dir(join.state_dir)?;
    let key = SigningKey::generate().map_err(|error| JoinError::Crypto(error.to_string()))?;
    let csr_der = csr(&key).map_err(|error| JoinError::Crypto(error.to_string()))?;
    let answer = ask(join, token, address, csr_der).await?;
    let identity = assemble(join, token, key, answer)?;
    Joined {
        broker: join.broker.to_owned(),
        installation: identity.1,
    }
    .store(join.state_dir)?;
    // Last: where this file is, the host has joined.
    identity.0.store(join.state_dir)?;
    Ok(identity.0)
}

async fn ask(
    join: &Join<'_>,
    token: &Token,
    address: Address,
    csr_der: Vec<u8>,
) -> Result<v1::JoinResponse, JoinError> {
    let verifier = Arc::new(FirstContact {
        ca_sha256: token.ca_sha256,
        pin: JoinPin::new(token.ca_sha256, Peer::spiffe_id("")),
    });
    let config = tls::client_config(verifier, None, &[b"h2"])
        .map_err(|error| JoinError::Crypto(error.to_string()))?;
    let dial = TlsConnect::new(address, Asks::Ca(token.ca_sha256), Arc::new(config));
    let wire = connect::Connect::connect(&dial)
        .await
        .map_err(JoinError::Connect)?;
    let (h2, _over) = connect::handshake(wire, join.tasks)
        .await
        .map_err(JoinError::Connect)?;
    let mut client = EnrolmentClient::with_origin(h2, http::Uri::from_static("https://broker"));
    let request = v1::JoinRequest {
        version: Some(grpc::VERSION),
        token: token.text.expose_str().unwrap_or_default().to_owned(),
        host: join.host.as_str().to_owned(),
        csr_der,
    };
    match tokio::time::timeout(limits::JOIN_DEADLINE, client.join(timed(request))).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match refusal::from_status(&status, &join.correlation) {
            CallError::Refused(problem) => JoinError::Refused(problem),
            CallError::Broken(problem) => JoinError::Broken(problem),
        }),
        Err(_elapsed) => {
            let problem = Problem::new(
                ephor_proto::problem::Code::Unreachable,
                (join.correlation)(),
                "the broker did not answer in time",
            );
            Err(JoinError::Broken(problem))
        }
    }
}

fn assemble(
    join: &Join<'_>,
    token: &Token,
    key: SigningKey,
    answer: v1::JoinResponse,
) -> Result<(Identity, String), JoinError> {
    let pinned = answer
        .ca_certificates_der
        .iter()
        .filter_map(|der| CaCertificate::from_der(der).ok());
    if !pinned.into_iter().any(|ca| ca.sha256() == token.ca_sha256) {
        return Err(JoinError::Answer(
            "its CA set lacks the CA of the join token".to_owned(),
        ));
    }
    let identity = Identity::assemble(key, answer.certificate_der, &answer.ca_certificates_der)
        .map_err(JoinError::Answer)?;
    if identity.host.as_str() != join.host.as_str()
        || identity.trust_domain.as_str() != answer.trust_domain
    {
        return Err(JoinError::Answer(format!(
            "it is for {}, not for {}",
            identity.leaf.spiffe_id, join.host
        )));
    }
    Ok((identity, answer.installation))
}

/// [`JoinPin`] for a broker whose trust domain is learnt from the pinned CA itself.
struct FirstContact {
    ca_sha256: [u8; 32],
    /// Answers what does not depend on the peer.
    pin: JoinPin,
}

impl fmt::Debug for FirstContact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FirstContact({:?})", self.pin)
    }
}

impl ServerCertVerifier for FirstContact {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = tls::pinned_ca(intermediates, &self.ca_sha256).map_err(|error| {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(
                Arc::new(error),
            )))
        })?;
        let broker = Peer::spiffe_id(&format!("spiffe://{}/broker", ca.trust_domain()));
        let pin = JoinPin::new(self.ca_sha256, broker);
        pin.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.pin
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.pin
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.pin.supported_verify_schemes()
    }
}
