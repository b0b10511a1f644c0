//! Making connections to peers whose certificates hold.

use std::net::IpAddr;

use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;

use crate::connection::{Connection, Socket};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits;
use crate::listener::late;
use crate::peers::Peers;

/// A client's side: mutual TLS 1.3 under one's own identity.
pub struct Connector {
    connector: TlsConnector,
    identity: Identity,
}

impl Connector {
    /// Connects to `peers`, wherever they are, and offers the protocols of `alpn`.
    ///
    /// # Errors
    /// When this build cannot do TLS 1.3.
    pub fn new(identity: &Identity, peers: Peers, alpn: &[&[u8]]) -> Result<Self, Error> {
        let config = identity.client_config(peers, alpn)?;
        Ok(Self {
            connector: TlsConnector::from(config),
            identity: identity.clone(),
        })
    }

    /// Connects, within [`limits::HANDSHAKE`].
    ///
    /// That the server refuses our certificate shows only at the first read: in TLS 1.3 a client
    /// is done before the server has seen it (RFC 8446 §2).
    ///
    /// # Errors
    /// When nobody answers, or who answers is not one of the peers or no longer holds.
    pub async fn connect(&self, address: impl ToSocketAddrs) -> Result<Connection, Error> {
        let shared = self.identity.shared();
        let trust = shared.trust_changes();
        // A peer is known by its SPIFFE ID; the name that rustls wants decides nothing and, as
        // an address, is not sent.
        let name = ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into());
        let handshake = async {
            let stream = Socket::new(TcpStream::connect(address).await?)?;
            let handshake = self.connector.connect(name, stream);
            handshake.await.map_err(Error::Handshake)
        };
        let stream = tokio::time::timeout(limits::HANDSHAKE, handshake).await;
        Connection::register(shared, stream.map_err(|_| late())??.into(), trust)
    }
}
