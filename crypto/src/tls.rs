//! TLS as every listener and client of Ephor speaks it: 1.3 only, no resumption.
//!
//! rustls does not call the client-certificate check on a resumed session, so one ticket
//! would carry a banned agent past its ban. No server here gives tickets or keeps
//! sessions, no client asks for them; tests hold both to it.

mod key;
mod verify;
mod database;

pub use database::{
    ServerCheck, Wanted, database_client, database_client_asking, server_end_point,
};
pub use key::{CertificateSlot, ca_name, certified_key};
pub use verify::{
    Accept, Admit, ClientCerts, JoinPin, Peer, PinnedCa, TrustStore, Verified, Workloads, pinned_ca,
};

use std::sync::{Arc, OnceLock};

use rustls::client::{ResolvesClientCert, Resumption, danger::ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;

/// Why no TLS configuration could be made.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The provider cannot do TLS 1.3; a fault of the build.
    #[error("the crypto provider cannot do TLS 1.3: {0}")]
    Provider(rustls::Error),
    /// A name is no DNS name, address or SPIFFE ID.
    #[error("`{0}` is not a DNS name, IP address or SPIFFE ID")]
    Name(String),
    /// No certificate of the chain has the pinned hash.
    #[error(
        "the server sent no CA certificate with the hash in the join token; the token is for another broker, its CA was replaced since (then get a new token), or someone is in between"
    )]
    NotPinned,
    /// Nothing in the file of roots is a certificate that can be one.
    #[error("there is no CA certificate in it")]
    Roots,
}

/// Makes the built-in provider the process default of rustls and of jsonwebtoken. Call it
/// once at the start of `main`; calling it again does nothing.
pub fn install() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        crate::provider::install_jwt();
        // An error means that a default is set already, and only this crate sets one.
        let _ = CryptoProvider::install_default(CryptoProvider::clone(&provider()));
    });
}

/// The built-in provider for rustls.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(crate::provider::tls_provider())))
}

/// Name of the built-in provider: `aws-lc-rs` or `ring`.
#[must_use]
pub fn name() -> &'static str {
    crate::provider::NAME
}

/// A server that offers `alpn` (most preferred first), TLS 1.3 only, no resumption.
///
/// # Errors
/// [`TlsError::Provider`].
pub fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: Arc<dyn ClientCertVerifier>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Provider)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// A client that offers `alpn`, TLS 1.3 only, no resumption, with a client certificate
/// when one is given.
///
/// # Errors
/// [`TlsError::Provider`].
pub fn client_config(
    servers: Arc<dyn ServerCertVerifier>,
    certificate: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(servers);
    let mut config = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(certificate),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

#[cfg(test)]
mod tests;
