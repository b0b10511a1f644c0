//! Logins at a PostgreSQL server: made for a task, and proven gone there.
//!
//! This module knows the server and nothing of stages, ledger or policy. Everything it does is a
//! call of a function that `ephor target init` has installed (`postgres/sql/`): the broker's login has
//! no other right. Every call may be repeated. It must never say that a login is dead unless the
//! server was asked after the last act, and never give up what it cannot know: that is
//! [`Failed::Unknown`].
//!
//! Why so many steps, and what each was found on: `docs/postgres.md`.

mod name; //      names: ours, others', quoted
mod access; //    how a target is reached
mod failed; //    what went wrong, by whose fault
mod tls; //       verified, with channel binding
mod password; //  the file with the password of our own login
mod connect; //   one connection
mod pool; //      places at a server
mod mint; //      make, extend
mod revoke; //    fence, end sessions, drop
mod unblock; //   ends whoever of ours is in the way
mod census; //    what is left, here and on standbys
mod checkout; // a role that is lent, and has a password of nobody afterwards
mod probe; //    which password a server asks for
mod look; //      what there is: the reconciler's and the user's view
mod rotate; //    another password for our own login
mod install; //   `ephor target init` and `check`

use std::collections::BTreeMap;
use std::sync::Arc;

use ephor_proto::postgres::Address;

use tokio_postgres::Row;

pub use access::{Access, Password, Tls};
pub use census::{Census, Evidence, Seen};
pub use checkout::{CheckedIn, Checkout, LeftOver};
pub use failed::Failed;
pub use install::{
    Admin, ByCertificate, Finding, Grade, Install, InstallError, Installed, Options,
    SCHEMA_VERSION, Setting, check, check_certificates, check_settings, check_static_roles,
    install, install_sql, uncrossed,
};
pub use look::{Found, Use, Uses};
pub use mint::{CERTIFICATE, Login, Minted};
pub use name::{BadName, Ident, RoleName};
pub use revoke::Ending;
pub use rotate::{NotRotated, Old, Rotated};
pub use tls::Encrypt;

use self::connect::{Params, field};
use self::failed::Said;
use self::pool::{Pool, Servers};
use crate::limits;
use crate::tasks::Tasks;

/// One `[target.NAME]`, shared by whoever works at it. Connects when first needed.
#[derive(Clone)]
pub struct Target {
    inner: Arc<Inner>,
}

struct Inner {
    access: Arc<Access>,
    /// Makes and extends.
    making: Pool,
    /// Revokes, and looks.
    revoking: Pool,
    /// `DROP OWNED` acts on one database.
    members: BTreeMap<String, Pool>,
    standbys: Vec<(Address, Pool)>,
    /// Looks who is in the way of the others.
    watching: Pool,
    tasks: Tasks,
}

/// Where a server stood: its proofs end where its history does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Of the cluster, as `pg_controldata` says it; empty where the server does not tell.
    pub system_id: String,
    /// Goes up with each failover and each restore to a point in time.
    pub timeline: u32,
    /// Of its write-ahead log, such as `0/1DB5E90`.
    pub lsn: String,
    /// By the server's clock.
    pub at: ephor_proto::time::UnixMillis,
}

impl Position {
    /// From four columns, from `first` on.
    fn of(access: &Access, row: &Row, first: usize) -> Result<Self, Failed> {
        let timeline: i64 = field(access, row, first + 1)?;
        let at: i64 = field(access, row, first + 3)?;
        Ok(Self {
            system_id: field(access, row, first)?,
            timeline: u32::try_from(timeline).unwrap_or(0),
            lsn: field(access, row, first + 2)?,
            at: ephor_proto::time::UnixMillis::from_millis(u64::try_from(at).unwrap_or(0)),
        })
    }
}

impl Target {
    /// A target that nothing has connected to yet. Connections run in `tasks`.
    #[must_use]
    pub fn new(access: Access, tasks: &Tasks) -> Self {
        let access = Arc::new(access);
        let admin = access.admin_database.as_str();
        let pool = |servers, database: &str, places, lock| {
            Pool::new(&access, servers, database, (places, lock), tasks)
        };
        let lock = limits::PG_REVOKE_LOCK;
        let member = |database: &Ident| {
            let places = limits::PG_MEMBER_PLACES;
            let lock = limits::PG_MEMBER_LOCK;
            let pool = pool(Servers::Primary, database.as_str(), places, lock);
            (database.as_str().to_owned(), pool)
        };
        let standby = |host: &Address| {
            let server = Servers::One(host.clone());
            (
                host.clone(),
                pool(server, admin, limits::PG_MEMBER_PLACES, lock),
            )
        };
        let inner = Inner {
            making: pool(
                Servers::Primary,
                admin,
                access.connections,
                limits::PG_MINT_LOCK,
            ),
            revoking: pool(Servers::Primary, admin, limits::PG_REVOKE_PLACES, lock),
            members: access.databases.iter().map(member).collect(),
            standbys: access.standbys.iter().map(standby).collect(),
            watching: pool(Servers::Primary, admin, limits::PG_WATCH_PLACES, lock),
            access: Arc::clone(&access),
            tasks: tasks.clone(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// How it is reached.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.inner.access
    }

    /// Begins `epoch` there, or makes this installation known: every call of an earlier epoch is
    /// refused from then on, and none of them is still at work. Calls do it by themselves when
    /// they find an earlier epoch.
    ///
    /// # Errors
    /// [`Failed::Fenced`] when a later one has begun.
    pub async fn begin_epoch(&self, epoch: u32) -> Result<(), Failed> {
        const SQL: &str = "SELECT ephor.begin_epoch($1, $2)";
        let installation = &self.inner.access.installation;
        let params: Params<'_> = &[installation, &i64::from(epoch)];
        let mut tries = 1;
        loop {
            let begun = self.unblocked("beginning an epoch", SQL, params).await;
            match begun.map_err(|said| said.failed(self.name())) {
                Err(Failed::Busy { .. }) if tries < limits::PG_FENCE_TRIES => tries += 1,
                other => return other.map(|_| ()),
            }
        }
    }

    /// Where the server stands now.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn position(&self) -> Result<Position, Failed> {
        const SQL: &str = "SELECT p.system_id, p.timeline, p.lsn, p.at_ms FROM ephor.place() p";
        let rows = self.inner.revoking.call("its position", SQL, &[]).await;
        let rows = rows.map_err(|said| said.failed(self.name()))?;
        Position::of(self.access(), self.only(&rows)?, 0)
    }

    /// Opens what a revocation needs, where it is not open yet.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn ready_to_revoke(&self) -> Result<(), Failed> {
        let inner = &self.inner;
        inner.revoking.ready().await?;
        inner.watching.ready().await?;
        for pool in inner.members.values() {
            pool.ready().await?;
        }
        Ok(())
    }

    fn name(&self) -> &str {
        &self.inner.access.name
    }

    /// The one row of an answer.
    fn only<'a>(&self, rows: &'a [Row]) -> Result<&'a Row, Failed> {
        rows.first().ok_or_else(|| Failed::Missing {
            target: self.name().to_owned(),
            what: "an answer".to_owned(),
            mend: "run `ephor target init` again".to_owned(),
        })
    }

    /// A call under `epoch`; the epoch is begun there if it has not been.
    async fn under(
        &self,
        pool: &Pool,
        epoch: u32,
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Failed> {
        match pool.call(asked, sql, params).await {
            Err(Said::OtherEpoch) => self.begin_epoch(epoch).await?,
            Err(Said::Failed(failed) | Said::Ended(failed)) => return Err(failed),
            Ok(rows) => return Ok(rows),
        }
        let again = pool.call(asked, sql, params).await;
        again.map_err(|said| said.failed(self.name()))
    }
}

#[cfg(test)]
mod tests;
