//! How a target is reached: hosts, the broker's own login, databases, TLS. Never a password: that is
//! in a file of its own and read at every connect, so that it can be swapped at any time.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ephor_crypto::Secret;
use tokio_postgres::config;

use super::name::{BadName, Ident};

/// PostgreSQL's own port.
pub const DEFAULT_PORT: u16 = 5432;
/// Most hosts in one URL.
const HOSTS: usize = 8;

/// One server's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// Name or address, and port.
    Tcp(String, u16),
    /// Directory of the Unix socket, and the port in its name.
    Unix(PathBuf, u16),
}

impl Host {
    /// `HOST[:PORT]`, `[IPV6]:PORT` or `/DIRECTORY[:PORT]`.
    ///
    /// # Errors
    /// [`BadUrl::Host`].
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl::Host(text.chars().take(80).collect());
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
                (host, port.parse().map_err(|_| bad())?)
            }
            _ => (text, DEFAULT_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let odd = |c: char| c.is_control() || c.is_whitespace();
        if host.is_empty() || host.contains(odd) || port == 0 {
            return Err(bad());
        }
        Ok(match host.starts_with('/') {
            true => Self::Unix(PathBuf::from(host), port),
            false => Self::Tcp(host.to_owned(), port),
        })
    }

    /// Whether it is reached over a network.
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(..))
    }

    /// Host or directory, as a client takes it.
    #[must_use]
    pub fn host(&self) -> String {
        match self {
            Self::Tcp(host, _) => host.clone(),
            Self::Unix(dir, _) => dir.display().to_string(),
        }
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Tcp(_, port) | Self::Unix(_, port) => *port,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host(), self.port())
    }
}

/// A URL that cannot be a target's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Not understood at all. The URL is not repeated: it may hold a password.
    #[error("not a URL such as postgres://USER@HOST:5432/DATABASE: {0}")]
    Form(String),
    /// A password where none may stand.
    #[error("a password stands in the URL; put it into the target's credential file")]
    Password,
    /// No user, or no database.
    #[error("the URL names no {0}: postgres://USER@HOST:5432/DATABASE")]
    Absent(&'static str),
    /// A user or database that cannot be one.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Not a host.
    #[error("`{0}` is no host (HOST:PORT, or the directory of a socket)")]
    Host(String),
}

/// What a URL says of a server.
#[derive(Debug)]
pub struct Url {
    /// In order of preference; the first that takes writes is used.
    pub hosts: Vec<Host>,
    /// Who logs in.
    pub user: String,
    /// Its password, if one stands there.
    pub password: Option<Secret>,
    /// Into which database.
    pub database: Ident,
}

impl Url {
    /// Of policy: without a password, for the broker's own login.
    ///
    /// # Errors
    /// [`BadUrl`].
    pub fn of_target(text: &str) -> Result<Self, BadUrl> {
        let url = Self::of_admin(text)?;
        match url.password {
            Some(_) => Err(BadUrl::Password),
            None => Ok(url),
        }
    }

    /// Of a command line: who installs may give a password.
    ///
    /// # Errors
    /// [`BadUrl`].
    pub fn of_admin(text: &str) -> Result<Self, BadUrl> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(BadUrl::Form("it must begin with postgres://".to_owned()));
        }
        // The library's text says which part, and repeats none of it that is secret.
        let parsed = tokio_postgres::Config::from_str(text)
            .map_err(|why| BadUrl::Form(super::failed::chain(&why)))?;
        let user = parsed.get_user().ok_or(BadUrl::Absent("user"))?.to_owned();
        Ident::parse(&user)?;
        let database = parsed.get_dbname().ok_or(BadUrl::Absent("database"))?;
        let password = parsed
            .get_password()
            .map(|found| Secret::new(found.to_vec()));
        Ok(Self {
            hosts: hosts(&parsed)?,
            user,
            password,
            database: Ident::parse(database)?,
        })
    }
}

fn hosts(parsed: &tokio_postgres::Config) -> Result<Vec<Host>, BadUrl> {
    let ports = parsed.get_ports();
    let port = |place: usize| {
        let of_all = ports.first().filter(|_| ports.len() == 1);
        ports.get(place).or(of_all).copied().unwrap_or(DEFAULT_PORT)
    };
    let hosts = parsed.get_hosts();
    if hosts.len() > HOSTS {
        return Err(BadUrl::Host(format!("{} hosts", hosts.len())));
    }
    if hosts.is_empty() {
        return Ok(vec![Host::Unix(
            PathBuf::from("/var/run/postgresql"),
            port(0),
        )]);
    }
    let address = |(place, host): (usize, &config::Host)| match host {
        config::Host::Tcp(name) => Host::parse(&format!("{name}:{}", port(place))),
        config::Host::Unix(dir) => Ok(Host::Unix(dir.clone(), port(place))),
    };
    hosts.iter().enumerate().map(address).collect()
}

/// How a server proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// It does not: a Unix socket, or a network that somebody answers for.
    Off,
    /// By a certificate for the host's name under one of the CAs in this file.
    VerifyFull {
        /// PEM, read at every connect.
        ca_file: PathBuf,
    },
}

/// Everything needed to work at one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// `[target.NAME]`.
    pub name: String,
    /// The broker's installation, as [`super::name::installation_part`] gives it.
    pub installation: String,
    /// In order of preference; the first that takes writes is used.
    pub hosts: Vec<Host>,
    /// The broker's own login.
    pub user: String,
    /// File with its password, read at every connect; none for peer, trust or certificate.
    pub password_file: Option<PathBuf>,
    /// The database that logins are for.
    pub database: Ident,
    /// Where `target init` put its schema.
    pub admin_database: Ident,
    /// Every database where a login may own something.
    pub databases: Vec<Ident>,
    /// Servers that follow and let people in: a dead login is looked for there, too.
    pub standbys: Vec<Host>,
    /// How it is known that it is the right server.
    pub tls: Tls,
    /// Connections for making and extending logins; revoking has its own.
    pub connections: usize,
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_people() {
        let url = Url::of_target("postgres://ephor@db1:6432/orders").unwrap();
        assert_eq!(url.hosts, [Host::Tcp("db1".to_owned(), 6432)]);
        assert_eq!(
            (url.user.as_str(), url.database.as_str()),
            ("ephor", "orders")
        );
        let two = Url::of_target("postgresql://ephor@db1,db2:7000/orders").unwrap();
        assert_eq!(two.hosts.len(), 2);
        let socket = Url::of_target("postgres://ephor@%2Frun%2Fpg:6000/orders").unwrap();
        assert_eq!(socket.hosts, [Host::Unix("/run/pg".into(), 6000)]);
        let local = Url::of_admin("postgres://postgres@/shop").unwrap();
        assert_eq!(local.hosts[0].port(), DEFAULT_PORT);
        assert!(
            Url::of_admin("postgres://a:secret@h/d")
                .unwrap()
                .password
                .is_some()
        );
    }

    #[test]
    fn hostile_urls_are_refused_and_their_password_is_not_repeated() {
        let refused = |text| Url::of_target(text).unwrap_err().to_string();
        assert!(refused("postgres://a:hunter2@h/d").contains("credential file"));
        for text in [
            "mysql://a:hunter2@h/d",
            "postgres://h",
            "postgres://a:hunter2@h",
            "postgres://a:hunter2@h/d?x=1",
            "postgres://a:hunter2@h:99999/d",
            "postgres://a@h/pg_x",
            "postgres://a@h/a%00b",
        ] {
            let said = refused(text);
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn hosts_of_people() {
        assert_eq!(
            Host::parse("db2").unwrap(),
            Host::Tcp("db2".to_owned(), 5432)
        );
        assert_eq!(
            Host::parse("[::1]:7").unwrap(),
            Host::Tcp("::1".to_owned(), 7)
        );
        assert_eq!(
            Host::parse("/run/pg:7").unwrap(),
            Host::Unix("/run/pg".into(), 7)
        );
        for text in ["", ":5432", "a b", "db:0", "db:x"] {
            assert!(Host::parse(text).is_err(), "{text}");
        }
    }
}
