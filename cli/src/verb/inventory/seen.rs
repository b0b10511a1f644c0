//! What one look at a server saw: facts of its catalog, no judgement.

use ephor_proto::time::UnixMillis;
use serde::Serialize;

use super::maker;

/// Everything, as of one moment.
/// A part is `None` when this login was not allowed to see it, or the server took too long.
#[derive(Debug, Default)]
pub struct Seen {
    pub server: Server,
    pub roles: Vec<Role>,
    pub members: Option<Vec<Member>>,
    pub sessions: Option<Vec<Session>>,
    pub holdings: Option<Vec<Holding>>,
    pub prepared: Option<Vec<Prepared>>,
    /// Roles that may call functions of Ephor: what brokers log in as.
    pub brokers: Option<Vec<u32>>,
    /// Roles of somebody's that a broker of ours lends to tasks: their end is its to set.
    pub lent: Option<Vec<u32>>,
    /// Backends that are not listed as sessions yet.
    pub hidden: Option<Vec<i32>>,
    /// Whether sessions of others come with their beginning and address.
    pub sees_sessions: bool,
}

impl Seen {
    /// Databases that may have a table of lent roles: those where the owner of Ephor's tables owns something.
    /// `None` when that cannot be told.
    pub fn databases_of_ephor(&self) -> Option<Vec<String>> {
        let is_owner = |role: &&Role| role.name == maker::OWNER && !role.can_login;
        let Some(owner) = self.roles.iter().find(is_owner) else {
            return Some(Vec::new());
        };
        let owned = self.holdings.as_deref()?.iter();
        let owned = owned.filter(|holding| holding.role == owner.oid && holding.owns > 0);
        let databases = owned.filter_map(|holding| holding.database.as_ref());
        Some(databases.map(|database| database.name.clone()).collect())
    }
}

/// The server that was looked at.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Server {
    /// Host and port, or the socket's directory.
    pub address: String,
    /// Its host alone, for people.
    pub name: String,
    /// `server_version_num`, such as 150014.
    pub version: u32,
    /// The database of the connection.
    pub database: String,
    /// The login of the connection.
    pub login: String,
    /// Whether it follows another server.
    pub standby: bool,
    /// Servers that follow it and are connected.
    pub standbys: Option<u32>,
    /// Its clock, when it was looked at.
    pub at: UnixMillis,
}

/// `rolvaliduntil`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ValidUntil {
    /// NULL or infinity.
    #[default]
    Never,
    /// A time.
    At(UnixMillis),
}

/// A row of `pg_roles`.
#[derive(Debug, Clone, Default)]
pub struct Role {
    pub oid: u32,
    pub name: String,
    pub can_login: bool,
    pub valid_until: ValidUntil,
    pub attributes: Attributes,
    pub comment: Option<String>,
}

/// What a role may do beyond what it was granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub superuser: bool,
    pub createrole: bool,
    pub createdb: bool,
    pub replication: bool,
    pub bypassrls: bool,
}

impl Attributes {
    /// Their names, as ALTER ROLE spells them.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        [
            (self.superuser, "SUPERUSER"),
            (self.createrole, "CREATEROLE"),
            (self.createdb, "CREATEDB"),
            (self.replication, "REPLICATION"),
            (self.bypassrls, "BYPASSRLS"),
        ]
        .into_iter()
        .filter_map(|(has, word)| has.then_some(word))
    }
}

/// A row of `pg_auth_members`: what the member may do with the group.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    pub group: u32,
    pub member: u32,
    /// It has the group's privileges without doing anything.
    pub inherit: bool,
    /// It may SET ROLE to it.
    pub set: bool,
    /// It may grant it, to itself too.
    pub admin: bool,
}

/// A client's session.
#[derive(Debug, Clone)]
pub struct Session {
    pub pid: i32,
    /// The role it was opened as, which may be gone.
    pub role: u32,
    pub database: Option<String>,
    /// When it began; not shown to everybody.
    pub since: Option<UnixMillis>,
    /// Where from; not shown to everybody, and nothing for a Unix socket.
    pub from: Option<String>,
}

/// What a role owns or was granted in a database.
#[derive(Debug, Clone)]
pub struct Holding {
    pub role: u32,
    /// None: in the cluster as a whole, such as a database.
    pub database: Option<Database>,
    /// Objects it owns there.
    pub owns: u64,
    /// Objects there that name it in a privilege or a policy.
    pub named_in: u64,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Database {
    pub name: String,
    /// Whether anybody can connect to it.
    pub allows_connections: bool,
}

/// A prepared transaction, which holds its locks without a session.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub gid: String,
    pub owner: String,
    pub database: String,
}
