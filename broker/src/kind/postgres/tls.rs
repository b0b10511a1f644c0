//! TLS to a database server, with the binding of the login to that channel.
//!
//! Our own instead of `tokio-postgres-rustls`: few lines over what the broker has anyway, and no second
//! parser of certificates, no second SHA-2 and no panic come with it.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ephor_crypto::tls::{ServerCheck, database_client, server_end_point};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client;

use crate::limits;

/// Puts TLS on connections; the configuration says whom it believes.
#[derive(Clone)]
pub struct Encrypt(Arc<ClientConfig>);

impl Encrypt {
    /// As a configuration says, such as one of [`database_client`].
    #[must_use]
    pub fn of(config: Arc<ClientConfig>) -> Self {
        Self(config)
    }

    /// A server is believed for its name under the CAs of one file, which is read now.
    ///
    /// # Errors
    /// Says which file and what is wrong with it.
    pub(super) async fn verify_full(ca_file: &Path) -> Result<Self, String> {
        let about = |why: String| format!("CA file {}: {why}", ca_file.display());
        let file = tokio::fs::metadata(ca_file).await;
        let size = file.map_err(|why| about(why.to_string()))?.len();
        if size > limits::PG_CA_FILE {
            return Err(about(format!("{size} bytes are more than it may have")));
        }
        let pem = tokio::fs::read(ca_file).await;
        let pem = pem.map_err(|why| about(why.to_string()))?;
        let config = database_client(ServerCheck::ChainAndName, &pem);
        let config = config.map_err(|why| about(why.to_string()))?;
        Ok(Self(Arc::new(config)))
    }
}

impl<S> MakeTlsConnect<S> for Encrypt
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connect> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        Ok(Connect(TlsConnector::from(Arc::clone(&self.0)), name))
    }
}

/// One handshake to come.
pub struct Connect(TlsConnector, ServerName<'static>);

impl<S> TlsConnect<S> for Connect
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move { Ok(Stream(self.0.connect(self.1, stream).await?)) })
    }
}

/// An encrypted connection.
pub struct Stream<S>(client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let (_, session) = self.0.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let binding = certificate.and_then(|der| server_end_point(der));
        binding.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
