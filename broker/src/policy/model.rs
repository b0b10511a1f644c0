//! What a policy says, parsed and checked: no value of these types can be malformed.

mod target;

use ephor_proto::spiffe::{HostPattern, SpiffeId};
use ephor_proto::ttl::{Limit, Ttl};
use serde_json::{Map, Value};

use super::error::Place;

pub use target::{LoginBy, PostgresTarget, Target, Tls};

/// The one TTL policy: `[ttl]` and `[ttl.kind]`.
#[derive(Debug, Clone)]
pub struct TtlPolicy {
    /// When the request names none.
    pub default: Ttl,
    /// No credential of any kind lives longer.
    pub max: Ttl,
    /// People and CI: renewed no further than this after the task began. Kept for them;
    /// services obey `service`.
    pub task: Limit,
    /// Services: the same, usually `none`.
    pub service: Limit,
    /// `[ttl.kind] jwt`.
    pub jwt: Option<Ttl>,
    /// `[ttl.kind] x509`.
    pub x509: Option<Ttl>,
    /// `[ttl.kind] postgres`.
    pub postgres: Option<Ttl>,
    /// `[ttl.kind] secret`.
    pub secret: Option<Ttl>,
}

/// `[workload."…"]`: a subject, and which processes are it.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its SPIFFE ID.
    pub subject: SpiffeId,
    /// `team:NAME`.
    pub owner: String,
    /// A person who stands in for the owner.
    pub deputy: Option<String>,
    /// What it is for.
    pub purpose: String,
    /// Its own SVIDs.
    pub identity: Identity,
    /// Any of these is it; inside one, all must hold. Never empty.
    pub runs: Vec<Run>,
    /// Where it is written.
    pub place: Place,
    /// Where `identity` is written; the workload itself when it is not.
    pub identity_place: Place,
}

/// Which SVIDs of its own a workload may have: an X509-SVID unless it is off, and JWT-SVIDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// No `identity` line: tokens for any audience.
    AnyAudience,
    /// Tokens only for these.
    Audiences(Vec<String>),
    /// `identity = false`: none at all.
    Off,
}

impl Identity {
    /// Whether a JWT-SVID for this audience may be had; of the empty one, whether the X509-SVID.
    pub fn allows(&self, audience: &str) -> bool {
        match self {
            Self::AnyAudience => true,
            Self::Audiences(list) => {
                audience.is_empty() || list.iter().any(|listed| listed == audience)
            }
            Self::Off => false,
        }
    }
}

/// One item of `runs`: what a process must be. At least one of user, uid, exe or unit is set.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Login name.
    pub user: Option<String>,
    /// User id as the host sees it.
    pub uid: Option<u32>,
    /// Absolute path, as the kernel names it.
    pub exe: Option<String>,
    /// SHA-256 of the executable.
    pub sha256: Option<[u8; 32]>,
    /// systemd unit.
    pub unit: Option<String>,
    /// Hosts it may run on; empty means every host.
    pub hosts: Vec<HostPattern>,
}

/// `[entitlement.…]`
#[derive(Debug, Clone)]
pub struct Entitlement {
    /// Its name.
    pub name: String,
    /// `team:NAME`.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// Who may have it, in the order written. Never empty.
    pub who: Vec<SpiffeId>,
    /// What it gives. Never empty.
    pub gives: Vec<Give>,
    /// Its own ceiling.
    pub ttl: Option<Ttl>,
    /// Where it is written.
    pub place: Place,
}

/// One thing that an entitlement gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Give {
    /// A token.
    Jwt {
        /// Who it is for.
        audience: String,
        /// Extra claims, none of them registered ones.
        claims: Map<String, Value>,
        /// True for the built-in `identity`: a JWT-SVID (`typ` `JWT`); otherwise an access
        /// token (`typ` `at+jwt`, RFC 9068).
        identity: bool,
    },
    /// A certificate for the subject's SPIFFE ID (X509-SVID).
    X509 {
        /// DNS names beside it, lower case; none for the built-in `identity`.
        dns: Vec<String>,
    },
    /// The right to ask about tokens of this audience (RFC 7662).
    Introspect {
        /// Whose tokens.
        audience: String,
    },
    /// A login at a database server that was there before: lent to one task at a time, with a password
    /// made for it.
    Secret {
        /// Name of the `[target]`.
        target: String,
        /// The role that is lent.
        role: String,
        /// The database that it is for; one of the target's.
        database: String,
    },
    /// A login at a database server, made for the task.
    Postgres {
        /// Name of the `[target]`.
        target: String,
        /// Group roles that it is a member of; its sessions start as the first. Never empty.
        roles: Vec<String>,
        /// The database that it is for; one of the target's.
        database: String,
        /// Most sessions at a time; `None`: as many as the server lets it.
        connection_limit: Option<u32>,
        /// Settings of its sessions, by name.
        settings: Vec<(String, String)>,
        /// How it proves who it is.
        login: LoginBy,
        /// Whether tables and sequences that it leaves behind become the first role's; otherwise they are
        /// dropped with it.
        reassign: bool,
    },
}
