//! One connection. An error names the server and what it said, never the password. A password is
//! only ever sent as its server asks for it; who may be asked is [`Tls`]'s to decide.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ephor_broker::kind::postgres::Encrypt;
use ephor_crypto::Secret;
use ephor_proto::postgres::Address;
use rustls::ClientConfig;
use thiserror::Error;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

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

/// What keeps an open connection going, as long as it is polled.
pub type Driver = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>>>>;

/// Opens one. The second part must be polled for the first to get on.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(endpoint: Endpoint<'_>) -> Result<(Client, Driver), ConnectError> {
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
    match tokio::time::timeout(endpoint.within, open(&config, tls)).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(why)) => Err(explained(&endpoint, &why)),
        Err(_) => Err(ConnectError::Unreachable {
            address: endpoint.address.clone(),
            why: format!("no answer in {:?}", endpoint.within),
        }),
    }
}

async fn open(
    config: &Config,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<(Client, Driver), tokio_postgres::Error> {
    match tls {
        Some(tls) => {
            let encrypt = Encrypt::of(Arc::clone(tls));
            let (client, connection) = config.connect(encrypt).await?;
            Ok((client, Box::pin(connection)))
        }
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            Ok((client, Box::pin(connection)))
        }
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
