//! Places where credentials with an effect are made.

use std::path::PathBuf;

use ephor_proto::postgres::Address;
use ephor_proto::ttl::Ttl;

use super::super::error::Place;

/// `[target.NAME]`: a server where credentials are made and taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `team:NAME`: who answers for it, and is named when something there is overdue.
    pub owner: String,
    /// How it is reached.
    pub postgres: PostgresTarget,
    /// How long the password of the broker's own login is used; `None`: until somebody rotates it.
    pub rotate: Option<Ttl>,
    /// Where it is written.
    pub place: Place,
}

/// `postgres = { … }` of a target. Holds no secret: the password of the broker's own login is in the
/// file `target-NAME`, and read at every connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresTarget {
    /// The broker's own login there.
    pub user: String,
    /// The server that is written to.
    pub address: Address,
    /// The database that logins are for unless their entitlement says otherwise.
    pub database: String,
    /// Where `ephor target init` put its schema.
    pub admin_database: String,
    /// Every database in which a login may own or be given something. Never empty; `database` is one.
    pub databases: Vec<String>,
    /// Where a dead login is looked for, too.
    pub standbys: Vec<Address>,
    /// The CA of the server's certificate, in PEM; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// How TCP connections are protected; Unix sockets need nothing.
    pub tls: Tls,
    /// Rounds of PBKDF2 in the verifier that the server keeps (RFC 7677).
    pub scram_iterations: u32,
    /// Most connections to it at a time, those of revocation not counted.
    pub connections: u32,
}

/// How a TCP connection to a target is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// TLS, and the certificate is for the name in the URL.
    VerifyFull,
    /// None at all.
    Off,
}

/// How a login proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoginBy {
    /// A random password of 256 bits, by SCRAM.
    Password,
    /// A client certificate of ours; the role has no password.
    Certificate,
}

impl LoginBy {
    /// The word in policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Certificate => "certificate",
        }
    }
}
