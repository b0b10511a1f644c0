//! One HTTP/2 connection over TLS 1.3, mutually authenticated.
//!
//! hyper's client connection is used as it is, without a pool in front: there is one
//! connection, and nobody may reconnect behind `Hello`'s back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ephor_crypto::tls::{TrustStore, ca_name};
use ephor_crypto::x509::CaCertificate;
use ephor_proto::grpc::v1::uplink_client::UplinkClient;
use http::Uri;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::tasks::Tasks;

/// The generated client over our connection.
pub type Client = UplinkClient<H2>;

/// A byte stream to the broker.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A byte stream on its way, or why there is none.
pub type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn Wire>, ConnectError>> + Send + 'a>>;

/// How a byte stream to the broker is made; tests hand in one without a network.
pub trait Connect: Send + Sync + 'static {
    /// A new stream, authenticated both ways where it leaves the host.
    fn connect(&self) -> Connecting<'_>;
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("no connection to {address}: {error}; is the broker running, and the address right?")]
    Tcp {
        /// Host and port.
        address: String,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The TLS handshake failed.
    #[error("TLS with {address} failed: {error}")]
    Tls {
        /// Host and port.
        address: String,
        /// The reason, in words.
        error: String,
    },
    /// No answer in time.
    #[error("{address} did not answer within {seconds} s")]
    Timeout {
        /// Host and port.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// HTTP/2 could not start.
    #[error("HTTP/2 with the broker failed: {0}")]
    Http(#[from] hyper::Error),
    /// The broker's URL cannot be used.
    #[error("`{0}` is no broker URL; write https://HOST:PORT")]
    Url(String),
}

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// From `https://HOST[:PORT]`; the port is 8443 when left out.
    ///
    /// # Errors
    /// [`ConnectError::Url`] for any other scheme, a path, a query or credentials.
    pub fn parse(url: &str) -> Result<Self, ConnectError> {
        let bad = || ConnectError::Url(url.chars().take(200).collect());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        let plain = uri.scheme_str() == Some("https")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none();
        if !plain || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad());
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Ok(Self {
            host,
            port: authority.port_u16().unwrap_or(limits::BROKER_PORT),
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Of which CA the broker is asked to show a certificate: while one CA follows another it has
/// several. It decides nothing about trust.
pub enum Asks {
    /// Of this one, by the SHA-256 of its certificate.
    Ca([u8; 32]),
    /// Of the newest that is trusted here: the broker has it longest.
    NewestOf(Arc<TrustStore>),
}

impl Asks {
    fn server_name(&self) -> rustls::pki_types::ServerName<'static> {
        match self {
            Self::Ca(sha256) => ca_name(sha256),
            Self::NewestOf(trust) => {
                let newest = trust.current().last().map(CaCertificate::sha256);
                ca_name(&newest.unwrap_or_default())
            }
        }
    }
}

/// TLS to one broker.
pub struct TlsConnect {
    address: Address,
    asks: Asks,
    connector: tokio_rustls::TlsConnector,
}

impl TlsConnect {
    /// Connects to `address` with `config`, whose verifier decides who is accepted there.
    #[must_use]
    pub fn new(address: Address, asks: Asks, config: Arc<rustls::ClientConfig>) -> Self {
        Self {
            address,
            asks,
            connector: tokio_rustls::TlsConnector::from(config),
        }
    }

    async fn dial(&self) -> Result<Box<dyn Wire>, ConnectError> {
        let address = || self.address.to_string();
        let tcp = TcpStream::connect((self.address.host.as_str(), self.address.port))
            .await
            .map_err(|error| ConnectError::Tcp {
                address: address(),
                error,
            })?;
        tcp.set_nodelay(true).map_err(|error| ConnectError::Tcp {
            address: address(),
            error,
        })?;
        let tls = self.connector.connect(self.asks.server_name(), tcp).await;
        let tls = tls.map_err(|error| ConnectError::Tls {
            address: address(),
            error: spoken(&error),
        })?;
        Ok(Box::new(tls))
    }
}

impl Connect for TlsConnect {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            match tokio::time::timeout(limits::CONNECT_TIMEOUT, self.dial()).await {
                Ok(dialled) => dialled,
                Err(_elapsed) => Err(ConnectError::Timeout {
                    address: self.address.to_string(),
                    seconds: limits::CONNECT_TIMEOUT.as_secs(),
                }),
            }
        })
    }
}

/// Why a handshake failed, without the names of Rust types around the reason.
fn spoken(error: &std::io::Error) -> String {
    use rustls::CertificateError::{Other, UnknownIssuer};
    let reason = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidCertificate(Other(inner))) => inner.0.to_string(),
        Some(rustls::Error::InvalidCertificate(UnknownIssuer)) => format!(
            "the broker's certificate is of a CA that this host does not know. If its CA was replaced while \
             this host was off, {JOIN_AGAIN}"
        ),
        Some(reason) => reason.to_string(),
        None => error.to_string(),
    }
}

/// What a host does whose certificate, or whose CA, is no longer of this fleet.
const JOIN_AGAIN: &str = "join it again: on the broker `ephor host invite NAME`; here remove identity.pem from the \
                          state directory, then `ephor-agent join`";

/// Whether the other side ended the connection because of our certificate (RFC 8446 §6.2): in
/// TLS 1.3 that is learnt only after the handshake.
fn is_refused_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::AlertDescription::{BadCertificate, CertificateExpired, DecryptError, UnknownCA};
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error hides what it carries from `source`.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = inner {
            return matches!(
                alert,
                BadCertificate | CertificateExpired | DecryptError | UnknownCA
            );
        }
        next = error.source();
    }
    false
}

/// Speaks HTTP/2 on `wire`. The token is cancelled when the connection is over.
///
/// # Errors
/// When the HTTP/2 preface cannot be exchanged.
pub async fn handshake(
    wire: Box<dyn Wire>,
    tasks: &Tasks,
) -> Result<(H2, CancellationToken), ConnectError> {
    let (sender, connection) = http2::Builder::new(Spawner(tasks.clone()))
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(wire))
        .await?;
    let over = CancellationToken::new();
    let ended = over.clone().drop_guard();
    let stop = tasks.stop().clone();
    tasks.spawn("uplink.connection", async move {
        let _ended = ended;
        tokio::select! {
            // Whoever holds a sender would keep the connection up, and the agent from stopping.
            () = stop.cancelled() => {}
            over = connection => if let Err(error) = over {
                if is_refused_certificate(&error) {
                    tracing::error!(%error, "the broker refuses this host's certificate: it has expired, or its CA \
                        was replaced while this host was off. Then {JOIN_AGAIN}");
                } else {
                    tracing::debug!(%error, "the connection to the broker ended");
                }
            },
        }
    });
    Ok((H2(sender), over))
}

/// Lets hyper's connection run its streams in our task group.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("uplink.stream", future);
    }
}

/// The sending half of the connection, as tonic's clients want it.
#[derive(Clone)]
pub struct H2(http2::SendRequest<tonic::body::Body>);

impl tower::Service<http::Request<tonic::body::Body>> for H2 {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_urls() {
        for (url, shown) in [
            ("https://broker.example:8443", "broker.example:8443"),
            ("https://broker.example", "broker.example:8443"),
            ("https://127.0.0.1:1/", "127.0.0.1:1"),
            ("https://[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(Address::parse(url).unwrap().to_string(), shown, "{url}");
        }
        for url in [
            "",
            "broker:8443",
            "http://b:1",
            "https://",
            "https://b/x",
            "https://b?q",
            "https://u:p@b",
            "ftp://b",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }
}
