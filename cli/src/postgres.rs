//! A PostgreSQL server as people name it to `psql`: a URL, `PG*` variables and a password file. What
//! is not understood is refused, not dropped; a password is never repeated.
//!
//! Unlike libpq, a server elsewhere must prove who it is unless `sslmode` says otherwise: else
//! whoever answers in its place could ask for the password in clear.

mod connect; //  a connection, with TLS and bound to it
mod passfile; // ~/.pgpass
mod prepare; //  what a broker needs there is made
mod words; //    URL and variables

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ephor_broker::kind::postgres as install;
use ephor_crypto::Secret;
use ephor_crypto::tls::{ServerCheck, database_client};
use ephor_proto::postgres::{Address, DEFAULT_PORT};
use rustls::ClientConfig;
use tokio_postgres::Client;

use crate::exit::Failure;
use connect::{ConnectError, Endpoint, Tls};
use words::{Mode, Words};

/// Longest wait until the server has let us in, unless `connect_timeout` says otherwise.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Longest file of root certificates, in bytes.
const ROOTS_MAX: u64 = 4 << 20;
/// Where systems keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The roots that this system trusts.
pub fn system_roots() -> Option<&'static str> {
    let mut all = SYSTEM_ROOTS.into_iter();
    all.find(|file| Path::new(file).exists())
}

/// A server, a login and how to reach it.
pub struct Target {
    /// Where it is.
    pub address: Address,
    /// The login.
    pub user: String,
    /// The database.
    pub database: String,
    password: Option<Secret>,
    tls: Tls,
    /// As `sslmode` and `sslrootcert` said it.
    mode: Mode,
    roots: Option<PathBuf>,
    within: Duration,
}

impl Target {
    /// Reads a URL, what it leaves open from `PG*` variables, and the password file.
    ///
    /// # Errors
    /// Wrong usage, naming the part, never its content.
    pub fn of(url: &str) -> Result<Self, Failure> {
        let words = Words::read(url, |name| {
            std::env::var(name).ok().filter(|v| !v.is_empty())
        })?;
        let password = match words.password {
            Some(password) => Some(password),
            None => {
                let key = passfile::Key::of(&words.address, &words.database, &words.user);
                passfile::find(words.passfile.as_deref(), &key)?
            }
        };
        Ok(Self {
            tls: tls(words.mode, words.roots.as_deref())?,
            mode: words.mode,
            roots: words.roots,
            address: words.address,
            user: words.user,
            database: words.database,
            password,
            within: words.within.unwrap_or(CONNECT_WITHIN),
        })
    }

    /// As a login that was handed over; only of a server on this host, without TLS.
    ///
    /// # Errors
    /// When its place is none.
    pub fn handed_over(login: &ephor_proto::http::agent::Login) -> Result<Self, Failure> {
        let address = Address::of(&login.host, login.port).map_err(Failure::usage)?;
        Ok(Self {
            address,
            user: login.user.clone(),
            database: login.database.clone(),
            password: Some(Secret::new(login.password.as_bytes().to_vec())),
            tls: Tls::Off,
            mode: Mode::Disable,
            roots: None,
            within: CONNECT_WITHIN,
        })
    }

    /// Its host, for people; with the port where that is not PostgreSQL's own.
    pub fn name(&self) -> String {
        match &self.address {
            Address::Tcp {
                host,
                port: DEFAULT_PORT,
            } => host.clone(),
            Address::Tcp { .. } | Address::Socket { .. } => self.address.to_string(),
        }
    }

    /// A copy of its password, if it needs one.
    pub fn password(&self) -> Option<Secret> {
        let copy = |secret: &Secret| Secret::new(secret.expose().to_vec());
        self.password.as_ref().map(copy)
    }

    /// How a broker would know that it is the right server: by TLS with a verified name, or because it is
    /// on this host. With the file of roots that was named.
    ///
    /// # Errors
    /// When it is elsewhere and need not prove who it is.
    pub fn verified(&self) -> Result<(install::Tls, Option<PathBuf>), Failure> {
        match self.mode {
            Mode::VerifyFull => {
                let system = || system_roots().map(PathBuf::from);
                let ca_file = self.roots.clone().or_else(system).unwrap_or_default();
                let tls = install::Tls::VerifyFull {
                    ca_file: ca_file.clone(),
                };
                Ok((tls, Some(ca_file)))
            }
            Mode::Disable | Mode::Prefer if words::is_here(&self.address) => {
                Ok((install::Tls::Off, None))
            }
            // To go on without TLS would be less than was asked for.
            Mode::Require | Mode::VerifyCa if words::is_here(&self.address) => {
                Err(Failure::usage(format!(
                    "This sslmode asks {} for TLS and not for its name. Use ?sslmode=verify-full, with &sslrootcert=FILE if its CA is \
                     your own, or leave sslmode away: the server is on this host.",
                    self.name()
                )))
            }
            Mode::Disable | Mode::Prefer | Mode::Require | Mode::VerifyCa => {
                Err(Failure::usage(format!(
                    "{} must prove who it is: add ?sslmode=verify-full, and &sslrootcert=FILE if its CA is your own.",
                    self.name()
                )))
            }
        }
    }

    /// The same server and user, in another database.
    pub fn in_database(&self, database: &str) -> Self {
        let password = self.password();
        self.changed(self.address.clone(), &self.user, password, database)
    }

    /// The same server for another login.
    pub fn of_login(&self, address: Address, user: &str, password: &Secret) -> Self {
        let password = Some(Secret::new(password.expose().to_vec()));
        self.changed(address, user, password, &self.database)
    }

    fn changed(
        &self,
        address: Address,
        user: &str,
        password: Option<Secret>,
        database: &str,
    ) -> Self {
        Self {
            address,
            user: user.to_owned(),
            database: database.to_owned(),
            password,
            tls: self.tls.clone(),
            mode: self.mode,
            roots: self.roots.clone(),
            within: self.within,
        }
    }

    /// Runs `work` on a connection that ends with it.
    ///
    /// # Errors
    /// When there is no connection, it breaks, or `work` fails; says on which server.
    pub async fn with<T>(
        &self,
        options: &str,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failure> {
        let endpoint = Endpoint {
            address: &self.address,
            user: &self.user,
            password: self.password.as_ref(),
            database: &self.database,
            tls: &self.tls,
            options,
            application: "ephor",
            within: self.within,
        };
        let (mut client, driver) = connect::connect(endpoint).await.map_err(not_connected)?;
        let mut driver = std::pin::pin!(driver);
        let mut working = std::pin::pin!(work(&mut client));
        let done = tokio::select! {
            biased;
            done = &mut working => done,
            ended = &mut driver => match ended {
                // What was asked last is answered with the reason.
                Ok(()) | Err(_) => working.await,
            },
        };
        done.map_err(|why| self.failed(&why))
    }

    /// What a statement at it failed with.
    pub fn failed(&self, why: &tokio_postgres::Error) -> Failure {
        let said = why.as_db_error().map(|said| said.message().to_owned());
        match said {
            Some(said) => Failure::denied(format!("{}: {said}", self.address)),
            None => Failure::unreachable(format!("{}: {why}", self.address)),
        }
    }
}

fn not_connected(why: ConnectError) -> Failure {
    match why {
        ConnectError::Unreachable { .. } => Failure::unreachable(why),
        ConnectError::Unauthorized { .. } => Failure::denied(why),
    }
}

/// libpq's modes. `require` with a file of roots checks the chain, as there.
fn tls(mode: Mode, roots: Option<&Path>) -> Result<Tls, Failure> {
    let unchecked = || match roots {
        Some(roots) => client(ServerCheck::Chain, Some(roots)),
        None => client(ServerCheck::Nothing, None),
    };
    Ok(match mode {
        Mode::Disable => Tls::Off,
        Mode::Prefer => Tls::IfOffered(client(ServerCheck::Nothing, None)?),
        Mode::Require => Tls::Always(unchecked()?),
        Mode::VerifyCa => Tls::Always(client(ServerCheck::Chain, roots)?),
        Mode::VerifyFull => Tls::Always(client(ServerCheck::ChainAndName, roots)?),
    })
}

fn client(check: ServerCheck, roots: Option<&Path>) -> Result<Arc<ClientConfig>, Failure> {
    let (file, pem) = match (check, roots) {
        (ServerCheck::Nothing, _) => (PathBuf::new(), Vec::new()),
        (ServerCheck::Chain | ServerCheck::ChainAndName, Some(file)) => read(file)?,
        (ServerCheck::Chain | ServerCheck::ChainAndName, None) => {
            read(Path::new(system_roots().unwrap_or(SYSTEM_ROOTS[0])))?
        }
    };
    database_client(check, &pem)
        .map(Arc::new)
        .map_err(|why| Failure::usage(format!("sslrootcert {}: {why}.", file.display())))
}

fn read(file: &Path) -> Result<(PathBuf, Vec<u8>), Failure> {
    use std::io::Read;

    let mut pem = Vec::new();
    let opened = std::fs::File::open(file);
    opened
        .and_then(|file| file.take(ROOTS_MAX).read_to_end(&mut pem))
        .map_err(|why| Failure::usage(format!("sslrootcert {}: {why}.", file.display())))?;
    Ok((file.to_owned(), pem))
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
    fn tls_that_was_asked_for_is_not_left_out_on_this_host() {
        let asked = |mode: &str| {
            let url = format!("postgres://bo:p@127.0.0.1/shop?sslmode={mode}");
            Target::of(&url).unwrap().verified()
        };
        for mode in ["disable", "prefer"] {
            assert!(
                matches!(asked(mode), Ok((install::Tls::Off, None))),
                "{mode}"
            );
        }
        for mode in ["require", "verify-ca"] {
            assert!(asked(mode).is_err(), "{mode}");
        }
        let full = asked("verify-full").unwrap();
        assert!(matches!(full.0, install::Tls::VerifyFull { .. }));
    }
}
