//! TLS of the HTTPS listener: 1.3 only, no resumption, a client certificate where the
//! client is an agent.
//!
//! That a certificate was good at the handshake says little an hour later, so nothing
//! here lets anyone do anything: [`AgentCertificate`] is only what a connection showed,
//! and `fleet` compares it with the host's row at every request.

use std::sync::Arc;

use ephor_crypto::digest::sha256;
use ephor_crypto::tls::{Admit, CertificateSlot, ClientCerts, TlsError, TrustStore, server_config};
use ephor_crypto::x509::Leaf;
use ephor_proto::spiffe::{HostName, SpiffeId, TrustDomain};
use ephor_proto::time::UnixMillis;
use tokio_rustls::TlsAcceptor;

/// What an agent's connection showed in its handshake: chain, form and possession of the
/// key are checked, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertificate {
    host: HostName,
    spki_sha256: [u8; 32],
    not_after: UnixMillis,
    /// Key identifier of the CA that issued it.
    authority_key_id: Vec<u8>,
}

impl AgentCertificate {
    /// The agent certificate of a finished handshake. `None` when there was no client
    /// certificate, or it is not one of an agent of this trust domain.
    fn of(connection: &rustls::ServerConnection, trust_domain: &TrustDomain) -> Option<Self> {
        let leaf = Leaf::parse(connection.peer_certificates()?.first()?).ok()?;
        Self::from_leaf(&leaf, trust_domain)
    }

    fn from_leaf(leaf: &Leaf, trust_domain: &TrustDomain) -> Option<Self> {
        let id: SpiffeId = leaf.spiffe_id.parse().ok()?;
        let host = id.agent_host().filter(|_| id.is_member_of(trust_domain))?;
        let seconds = u64::try_from(leaf.not_after).ok()?;
        Some(Self {
            host,
            spki_sha256: sha256(&leaf.spki),
            not_after: UnixMillis::from_unix_seconds(seconds),
            authority_key_id: leaf.authority_key_id.clone(),
        })
    }

    /// The host it names.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// SHA-256 of its `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// Key identifier of the CA that issued it; a connection may last longer than its trust.
    #[must_use]
    pub fn authority_key_id(&self) -> &[u8] {
        &self.authority_key_id
    }

    /// When it expires; a connection may last longer.
    #[must_use]
    pub fn not_after(&self) -> UnixMillis {
        self.not_after
    }

    #[cfg(test)]
    pub(crate) fn for_tests(host: &str, spki_sha256: [u8; 32], not_after: UnixMillis) -> Self {
        #[allow(clippy::unwrap_used)]
        Self {
            host: host.parse().unwrap(),
            spki_sha256,
            not_after,
            authority_key_id: Vec::new(),
        }
    }
}

/// Makes the TLS side of connections.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    trust_domain: TrustDomain,
}

impl Tls {
    /// TLS with the certificate in `server`, for agents that `trust` vouches for and for
    /// anyone without a certificate.
    ///
    /// # Errors
    /// When the crypto provider cannot do TLS 1.3.
    pub fn new(
        server: Arc<CertificateSlot>,
        trust: Arc<TrustStore>,
        trust_domain: TrustDomain,
    ) -> Result<Self, TlsError> {
        // Bans are asked at every request; asking them here as well would only turn a
        // clear `agent_banned` into a TLS alert.
        let domain = trust_domain.clone();
        let admit: Admit =
            Arc::new(move |leaf| AgentCertificate::from_leaf(leaf, &domain).is_some());
        let config = server_config(
            server,
            Arc::new(ClientCerts::optional(trust, admit)),
            &[b"h2".as_slice(), b"http/1.1".as_slice()],
        )?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            trust_domain,
        })
    }

    /// The handshake. The caller sets the deadline.
    ///
    /// # Errors
    /// What rustls or the socket says.
    pub async fn accept<I>(
        &self,
        io: I,
    ) -> std::io::Result<(
        tokio_rustls::server::TlsStream<I>,
        Option<Arc<AgentCertificate>>,
    )>
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let stream = self.acceptor.accept(io).await?;
        let agent = AgentCertificate::of(stream.get_ref().1, &self.trust_domain).map(Arc::new);
        Ok((stream, agent))
    }
}
