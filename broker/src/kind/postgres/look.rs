//! What there is at a target: every login that looks like ours, and who is connected with one.

use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;

use super::connect::{Params, field};
use super::failed::Failed;
use super::{Target, census};
use crate::limits;

/// A role at the target with our prefix, or that one of ours was renamed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name that it was made with, if the fence knows it; else its name now.
    pub role: String,
    /// Its name now; none when somebody else has dropped it.
    pub now: Option<String>,
    /// Whose it is, when the name is of our form: see [`crate::kind::name::installation_part`].
    pub installation: Option<String>,
    /// Its oid.
    pub oid: u32,
    /// What it was made for, if the fence knows it.
    pub credential: Option<CredentialId>,
    /// Whether the fence has it as dead.
    pub fenced: bool,
    /// Whether it may log in.
    pub can_login: bool,
    /// What it may beyond a plain login: `superuser`, `createrole` and so on. Ours have none.
    pub attributes: Vec<String>,
    /// Roles it is in.
    pub groups: Vec<String>,
    /// Roles that somebody put into it.
    pub granted_to: Vec<String>,
    /// When its password ends; none is never.
    pub valid_until: Option<UnixMillis>,
    /// Most sessions; -1 is any number.
    pub connection_limit: i32,
    /// Sessions now.
    pub sessions: u32,
    /// It was there before, is lent, and stays.
    pub is_static: bool,
}

/// One session of a login of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Whose.
    pub role: String,
    /// Its oid.
    pub oid: u32,
    /// The server's process.
    pub pid: i32,
    /// Where the client is; none by a Unix socket.
    pub from: Option<String>,
    /// Into which database.
    pub database: Option<String>,
    /// When it began.
    pub first: UnixMillis,
    /// When it last began or ended something.
    pub last: UnixMillis,
    /// The role was there before, and is lent.
    pub is_static: bool,
}

/// Who is connected now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uses {
    /// These.
    Seen(Vec<Use>),
    /// The server does not tell us.
    Unknown(String),
}

pub(super) fn time(millis: i64) -> UnixMillis {
    UnixMillis::from_millis(u64::try_from(millis).unwrap_or(0))
}

impl Target {
    /// Every role with our prefix, of whatever installation: whoever sweeps begins its epoch first
    /// ([`Self::begin_epoch`]), so that none before is still at work. And forgets rows of the fence that
    /// nothing can need any more.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn ours(&self) -> Result<Vec<Found>, Failed> {
        const SQL: &str = "SELECT l.role, l.made_as, l.role_oid, l.credential::text, coalesce(l.dead, false), l.can_login,
            l.attributes, l.groups, l.granted_to, l.valid_until_ms, l.connections, l.sessions FROM ephor.logins() l";
        const PRUNE: &str = "SELECT ephor.prune($1)";
        let access = self.access();
        let pool = &self.inner.revoking;
        let rows = pool.call("its logins", SQL, &[]).await;
        let rows = rows.map_err(|said| said.failed(self.name()))?;
        let params: Params<'_> = &[&limits::PG_FENCE_KEEP_SECONDS];
        let pruned = pool.call("pruning the fence", PRUNE, params).await;
        pruned.map_err(|said| said.failed(self.name()))?;
        let found = |row| {
            let now: Option<String> = field(access, row, 0)?;
            let made_as: Option<String> = field(access, row, 1)?;
            let role = made_as.or_else(|| now.clone()).unwrap_or_default();
            let installation = crate::kind::name::parse(&role);
            let installation = installation.map(|name| name.installation.to_owned());
            let credential: Option<String> = field(access, row, 3)?;
            let valid_until: Option<i64> = field(access, row, 9)?;
            Ok(Found {
                installation,
                role,
                now,
                oid: field(access, row, 2)?,
                credential: credential.and_then(|text| text.parse().ok()),
                fenced: field(access, row, 4)?,
                can_login: field(access, row, 5)?,
                attributes: field(access, row, 6)?,
                groups: field(access, row, 7)?,
                granted_to: field(access, row, 8)?,
                valid_until: valid_until.map(time),
                connection_limit: field(access, row, 10)?,
                sessions: census::count(field(access, row, 11)?),
                is_static: false,
            })
        };
        rows.iter().map(found).collect()
    }

    /// Who is connected with a login of ours now.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn uses(&self) -> Result<Uses, Failed> {
        const SQL: &str =
            "SELECT u.role, u.role_oid, u.pid, u.address, u.database, u.since_ms, u.last_ms
            FROM ephor.uses() u";
        let access = self.access();
        let rows = self.inner.revoking.call("who is connected", SQL, &[]).await;
        let rows = rows.map_err(|said| said.failed(self.name()))?;
        let mut uses = Vec::with_capacity(rows.len());
        for row in &rows {
            let since: Option<i64> = field(access, row, 5)?;
            let last: Option<i64> = field(access, row, 6)?;
            let Some(since) = since else {
                let why = "ephor_signal is not in pg_read_all_stats there";
                return Ok(Uses::Unknown(why.to_owned()));
            };
            uses.push(Use {
                role: field(access, row, 0)?,
                oid: field(access, row, 1)?,
                pid: field(access, row, 2)?,
                from: field(access, row, 3)?,
                database: field(access, row, 4)?,
                first: time(since),
                last: time(last.unwrap_or(since)),
                is_static: false,
            });
        }
        Ok(Uses::Seen(uses))
    }
}
