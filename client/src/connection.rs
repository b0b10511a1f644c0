//! A TLS connection to a peer whose certificate holds, and that ends when it no longer does.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ephor_crypto::x509::Leaf;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::time::UnixMillis;
use rustix::net::{Shutdown, shutdown};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::error::Error;
use crate::identity::Shared;
use crate::live::{Closed, Line, Place};

/// Who is on the other side, by its verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// The serial number of its certificate, in hex.
    pub serial: String,
    /// When that certificate expires.
    pub expires_at: UnixMillis,
}

/// An open connection. Reading and writing fail with `ConnectionAborted`, and the peer sees the
/// end, as soon as the peer's certificate is known not to hold any more; [`Connection::closed`]
/// then says why. An end without `close_notify` is an error for both sides (RFC 8446 §6.1).
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<Socket>,
    line: Arc<Line>,
    peer: PeerIdentity,
    remote: SocketAddr,
    _place: Place,
}

impl Connection {
    /// Registers a connection whose handshake is done, then looks whether its peer still holds:
    /// what was listed between the handshake's own check and here would otherwise be missed.
    /// `trust` is the number of changes of the trust set before the handshake.
    pub(crate) fn register(
        shared: &Shared,
        stream: TlsStream<Socket>,
        trust: u64,
    ) -> Result<Self, Error> {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Arc<[CertificateDer<'static>]> =
            chain.iter().map(|der| der.clone().into_owned()).collect();
        let leaf = Leaf::parse(chain.first().map_or(&[][..], |leaf| leaf))?;
        let line = Arc::clone(&stream.get_ref().0.0);
        let remote = line.stream.peer_addr()?;
        let place = shared.live.add(&line, &leaf, Arc::clone(&chain));
        if let Some(why) = shared.no_longer_holds(&leaf, &chain, trust) {
            line.close(why);
            return Err(Error::Closed(why));
        }
        let peer = PeerIdentity {
            id: leaf.spiffe_id.parse()?,
            serial: leaf.serial.to_string(),
            expires_at: UnixMillis::from_unix_seconds(u64::try_from(leaf.not_after).unwrap_or(0)),
        };
        Ok(Self {
            stream,
            line,
            peer,
            remote,
            _place: place,
        })
    }

    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Its address.
    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    /// The protocol that both sides chose (ALPN), if they named any.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }

    /// Why this side closed it, if it did.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.line.closed()
    }

    fn check(&self) -> io::Result<()> {
        match self.line.closed() {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Twice: not even what came before the end is handed on once it is over, and the end
        // itself is not mistaken for the peer's.
        self.check()?;
        let filled = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if let Err(closed) = self.check() {
            buf.set_filled(filled);
            return Poll::Ready(Err(closed));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.closed().is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The bytes below TLS.
#[derive(Debug)]
pub struct Socket(Arc<Line>);

impl Socket {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(Line::new(stream)))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match self.0.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// All at once: what goes out last in a handshake, an alert behind another record, has but
    /// one try.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match self.0.stream.try_write_vectored(parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.0.stream, Shutdown::Write).map_err(io::Error::from))
    }
}
