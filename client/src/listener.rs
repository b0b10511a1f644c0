//! Taking connections from peers whose certificates hold.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio_rustls::TlsAcceptor;

use crate::connection::{Connection, Socket};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits;
use crate::peers::Peers;

/// A server's listener: mutual TLS 1.3 under one's own identity.
pub struct Listener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    identity: Identity,
}

impl Listener {
    /// Listens on `address` for `peers`, and offers the protocols of `alpn`, the preferred first.
    ///
    /// # Errors
    /// When the address is taken, or this build cannot do TLS 1.3.
    pub async fn bind(
        address: impl ToSocketAddrs,
        identity: &Identity,
        peers: Peers,
        alpn: &[&[u8]],
    ) -> Result<Self, Error> {
        Self::over(TcpListener::bind(address).await?, identity, peers, alpn)
    }

    /// As [`Listener::bind`], over a socket that listens already.
    ///
    /// # Errors
    /// When this build cannot do TLS 1.3.
    pub fn over(
        tcp: TcpListener,
        identity: &Identity,
        peers: Peers,
        alpn: &[&[u8]],
    ) -> Result<Self, Error> {
        let config = identity.server_config(peers, alpn)?;
        Ok(Self {
            tcp,
            acceptor: TlsAcceptor::from(config),
            identity: identity.clone(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection, before its handshake: do that in a task of its own.
    ///
    /// # Errors
    /// When the system cannot take one now, as when descriptors run out: wait a little and go on.
    pub async fn accept(&self) -> io::Result<Incoming> {
        let (stream, remote) = self.tcp.accept().await?;
        Ok(Incoming {
            stream,
            remote,
            acceptor: self.acceptor.clone(),
            identity: self.identity.clone(),
        })
    }
}

/// A connection whose peer is not known yet.
pub struct Incoming {
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    identity: Identity,
}

impl Incoming {
    /// The peer's address.
    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    /// The handshake, within [`limits::HANDSHAKE`]. A peer whose certificate is listed gets the
    /// alert `certificate_revoked`, one who is not among the peers `access_denied`.
    ///
    /// # Errors
    /// When the peer may not take part, or was too slow.
    pub async fn handshake(self) -> Result<Connection, Error> {
        let shared = self.identity.shared();
        let trust = shared.trust_changes();
        let handshake = self.acceptor.accept(Socket::new(self.stream)?);
        let stream = tokio::time::timeout(limits::HANDSHAKE, handshake).await;
        let stream = stream.map_err(|_| late())?.map_err(Error::Handshake)?;
        Connection::register(&Arc::clone(shared), stream.into(), trust)
    }
}

pub(crate) fn late() -> Error {
    let seconds = limits::HANDSHAKE.as_secs();
    Error::Io(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("the peer did not finish the handshake within {seconds} s"),
    ))
}
