//! How a target is reached: hosts, the broker's own login, databases, TLS. Never a password: that is
//! in a file of its own and read at every connect, so that it can be swapped at any time.

use std::path::PathBuf;
use std::sync::Arc;

use ephor_crypto::Secret;
use ephor_proto::postgres::Address;

use super::name::Ident;

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

/// Where the password of the broker's own login is.
#[derive(Debug, Clone)]
pub enum Password {
    /// There is none: peer or trust.
    None,
    /// There is no file, so the server must ask for none; else it goes there.
    Absent(PathBuf),
    /// The first line of this file, read at every connect.
    File(PathBuf),
    /// Given by a person, for a look.
    Given(Arc<Secret>),
}

/// Everything needed to work at one target.
#[derive(Debug, Clone)]
pub struct Access {
    /// `[target.NAME]`.
    pub name: String,
    /// The broker's installation, as [`crate::kind::name::installation_part`] gives it.
    pub installation: String,
    /// In order of preference; the first that takes writes is used.
    pub hosts: Vec<Address>,
    /// The broker's own login.
    pub user: String,
    /// Its password.
    pub password: Password,
    /// Where `target init` put its schema.
    pub admin_database: Ident,
    /// Every database where a login may own something.
    pub databases: Vec<Ident>,
    /// Servers that follow and let people in: a dead login is looked for there, too.
    pub standbys: Vec<Address>,
    /// How it is known that it is the right server.
    pub tls: Tls,
    /// Connections for making and extending logins; revoking has its own.
    pub connections: usize,
}
