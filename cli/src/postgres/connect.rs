//! One connection. An error names the server and what it said, never the password. A password is
//! only ever sent as its server asks for it; who may be asked is [`Tls`]'s to decide.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ephor_crypto::Secret;
use ephor_crypto::tls::server_end_point;
use ephor_proto::postgres::Address;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_rustls::TlsConnector;

/// Whether a connection is encrypted; the configuration says whom it trusts.
#[derive(Debug, Clone)]
pub enum Tls {
    /// Never.
    Off,
    /// If the server offers it, which anybody in between can deny.
    IfOffered(Arc<ClientConfig>),
    /// Always, or there is no connection.
    Always(Arc<ClientConfig>),
}

/// Whereto, and as whom.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// The server.
    pub address: &'a Address,
    /// The login.
    pub user: &'a str,
    /// Its password, if it has one.
    pub password: Option<&'a Secret>,
    /// The database.
    pub database: &'a str,
    /// Not used on a Unix socket.
    pub tls: &'a Tls,
    /// Settings of the session, such as `-c statement_timeout=10s`.
    pub options: &'a str,
    /// What `pg_stat_activity` shows.
    pub application: &'a str,
    /// Longest wait until the server has let it in.
    pub within: Duration,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody answers there, or not in time, or not with TLS that can be trusted.
    #[error("{address}: {why}")]
    Unreachable {
        /// The server.
        address: Address,
        /// What happened.
        why: String,
    },
    /// The server answered, and does not let this login in.
    #[error("{address} does not let {user} in: {why}")]
    Unauthorized {
        /// The server.
        address: Address,
        /// The login.
        user: String,
        /// What the server said.
        why: String,
    },
}

/// What keeps an open connection going; see [`tokio_postgres::Connection`].
pub type Driver = Connection<Socket, Encrypted>;

/// Opens one. The second part must be polled for the first to get on.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(endpoint: Endpoint<'_>) -> Result<(Client, Driver), ConnectError> {
    let unreachable = |why: String| ConnectError::Unreachable {
        address: endpoint.address.clone(),
        why,
    };
    let (mode, tls) = match (endpoint.address, endpoint.tls) {
        (Address::Socket { .. }, _) | (_, Tls::Off) => (SslMode::Disable, None),
        (Address::Tcp { .. }, Tls::IfOffered(tls)) => (SslMode::Prefer, Some(tls)),
        (Address::Tcp { .. }, Tls::Always(tls)) => (SslMode::Require, Some(tls)),
    };
    let mut config = Config::new();
    config
        .host(endpoint.address.host())
        .port(endpoint.address.port())
        .user(endpoint.user)
        .dbname(endpoint.database)
        .options(endpoint.options)
        .application_name(endpoint.application)
        .connect_timeout(endpoint.within)
        .ssl_mode(mode);
    if let Some(password) = endpoint.password {
        config.password(password.expose());
    }
    let connecting = config.connect(MakeEncrypted(tls.map(Arc::clone)));
    match tokio::time::timeout(endpoint.within, connecting).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(why)) => Err(explained(&endpoint, &why)),
        Err(_) => Err(unreachable(format!("no answer in {:?}", endpoint.within))),
    }
}

fn explained(endpoint: &Endpoint<'_>, why: &tokio_postgres::Error) -> ConnectError {
    let refused = [
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INVALID_PASSWORD,
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::INVALID_CATALOG_NAME,
    ];
    let address = endpoint.address.clone();
    match why.as_db_error() {
        Some(said) if refused.contains(said.code()) => ConnectError::Unauthorized {
            address,
            user: endpoint.user.to_owned(),
            why: said.message().to_owned(),
        },
        Some(said) => ConnectError::Unreachable {
            address,
            why: said.message().to_owned(),
        },
        None => match chain(why) {
            // The driver's way to say that there is none, once the server asks for it.
            asked if endpoint.password.is_none() && asked.contains("password missing") => {
                ConnectError::Unauthorized {
                    address,
                    user: endpoint.user.to_owned(),
                    why: "it asks for a password, and there is none".to_owned(),
                }
            }
            why => ConnectError::Unreachable { address, why },
        },
    }
}

/// An error with its causes; tokio-postgres's own words are short.
fn chain(why: &dyn std::error::Error) -> String {
    let mut said = why.to_string();
    let mut cause = why.source();
    while let Some(why) = cause {
        let more = why.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        cause = why.source();
    }
    said
}

/// Puts TLS on a connection, if there is to be any.
struct MakeEncrypted(Option<Arc<ClientConfig>>);

/// The same, for a name: looked at only once TLS is to begin.
struct Encrypt {
    tls: Option<Arc<ClientConfig>>,
    name: String,
}

/// A connection with TLS on it.
pub struct Encrypted(tokio_rustls::client::TlsStream<Socket>);

impl MakeTlsConnect<Socket> for MakeEncrypted {
    type Stream = Encrypted;
    type TlsConnect = Encrypt;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> io::Result<Encrypt> {
        Ok(Encrypt {
            tls: self.0.clone(),
            name: domain.to_owned(),
        })
    }
}

impl TlsConnect<Socket> for Encrypt {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let tls = self.tls.ok_or_else(|| io::Error::other("no TLS wanted"))?;
            let name = ServerName::try_from(self.name).map_err(io::Error::other)?;
            let stream = TlsConnector::from(tls).connect(name, socket).await?;
            Ok(Encrypted(stream))
        })
    }
}

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.0.get_ref().1.peer_certificates();
        certificates
            .and_then(|chain| server_end_point(chain.first()?))
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
