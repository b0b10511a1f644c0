//! What is left of a login: the proof, and how far it reaches.

use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;

use super::connect::{Params, field};
use super::failed::Failed;
use super::name::RoleName;
use super::pool::Pool;
use super::{Access, Position, Target};

/// That a login is dead, as its server said after the last act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// No role with its oid, nor with its name. Always true: else there is no evidence.
    pub role_absent: bool,
    /// Of the role that was dropped, or had been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_oid: Option<u32>,
    /// Whether it was this revocation that dropped it; false when it was gone, or had never been made.
    pub dropped: bool,
    /// Sessions that were told to end, and did.
    pub sessions_ended: u32,
    /// Those of them that the server did not show.
    pub hidden_ended: u32,
    /// The name that somebody had given to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_named: Option<String>,
    /// Of the cluster.
    pub system_id: String,
    /// See [`Position`].
    pub timeline: u32,
    /// See [`Position`].
    pub lsn: String,
    /// What servers that follow said.
    pub standbys: Vec<(String, Seen)>,
    /// Processes of sessions that were just starting and had no name yet, or another one's; a second look
    /// must not be the last before each has a name or is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starting: Vec<i32>,
    /// What was not looked at, or is left: then the proof says only so much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
    /// By the server's clock.
    pub at: UnixMillis,
}

/// What a server that follows said of a dead login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "seen")]
pub enum Seen {
    /// Neither role nor session.
    Absent {
        /// How far it had replayed.
        lsn: String,
        /// Sessions that were told to end there, and did.
        sessions_ended: u32,
        /// As [`Evidence::starting`], there.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        starting: Vec<i32>,
    },
    /// It has not replayed the end of the login yet, or sessions have not ended.
    Behind {
        /// What is left there.
        why: String,
    },
    /// It could not be asked.
    Unreachable {
        /// What was tried.
        why: String,
    },
}

/// A second look at what was proven dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// No role with that oid, nor with that name.
    pub role_absent: bool,
    /// Sessions of it, here and on standbys; they were told to end.
    pub sessions: u32,
    /// Those of [`Evidence::starting`] that have no name yet: look once more.
    pub starting: Vec<i32>,
    /// The same on standbys.
    pub starting_there: Vec<i32>,
    /// Standbys that could not be asked.
    pub not_asked: Vec<String>,
    /// Where the server stands now.
    pub position: Position,
}

/// One row of `ephor.census`.
pub(super) struct Left {
    pub(super) credential: String,
    pub(super) fenced: bool,
    pub(super) can_login: bool,
    pub(super) role_oid: Option<u32>,
    pub(super) present: bool,
    pub(super) sessions: u32,
    pub(super) prepared: Vec<String>,
}

impl Left {
    fn of(access: &Access, row: &Row) -> Result<Self, Failed> {
        Ok(Self {
            credential: field(access, row, 0)?,
            fenced: field(access, row, 1)?,
            can_login: field(access, row, 2)?,
            role_oid: field(access, row, 3)?,
            present: field(access, row, 4)?,
            sessions: count(field(access, row, 5)?),
            prepared: field(access, row, 6)?,
        })
    }

    /// Whether nothing of it can act.
    pub(super) fn is_dead(&self) -> bool {
        self.fenced && !self.present && self.sessions == 0
    }
}

pub(super) fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

/// What is left of `credentials`, as the server of `pool` sees it, and where that stands.
pub(super) async fn census(
    access: &Access,
    pool: &Pool,
    credentials: &[String],
) -> Result<(Vec<Left>, Position, u32), Failed> {
    const SQL: &str =
        "SELECT c.credential::text, c.fenced, c.can_login, c.role_oid, c.present, c.sessions, c.prepared,
            p.system_id, p.timeline, p.lsn, p.at_ms, n
        FROM ephor.place() p CROSS JOIN ephor.followers() n LEFT JOIN ephor.census($1::text[]::uuid[]) c ON true";
    let rows = pool.call("a census", SQL, &[&credentials]).await;
    let rows = rows.map_err(|said| said.failed(&access.name))?;
    let first = rows.first().ok_or_else(|| Failed::Missing {
        target: access.name.clone(),
        what: "an answer".to_owned(),
        mend: "run `ephor target init` again".to_owned(),
    })?;
    let position = Position::of(access, first, 7)?;
    let followers = count(field(access, first, 11)?);
    let mut left = Vec::with_capacity(rows.len());
    for row in &rows {
        if field::<Option<String>>(access, row, 0)?.is_some() {
            left.push(Left::of(access, row)?);
        }
    }
    Ok((left, position, followers))
}

impl Target {
    /// Looks again for a login that was proven dead, after the longest time that a connection may take
    /// to start (`authentication_timeout`). What it finds it ends; a session found reopens the proof.
    /// `starting` is [`Evidence::starting`], then by standby what [`Seen::Absent`] has.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn census_again(
        &self,
        role_oid: Option<u32>,
        role: &RoleName,
        (starting, there): (&[i32], &[(String, Vec<i32>)]),
    ) -> Result<Census, Failed> {
        let access = self.access();
        let (role_absent, mut sessions, starting, position) =
            look_again(access, &self.inner.revoking, (role_oid, role), starting).await?;
        let mut not_asked = Vec::new();
        let mut starting_there = Vec::new();
        for (host, pool) in &self.inner.standbys {
            let host = host.to_string();
            let known = there.iter().find(|(known, _)| *known == host);
            let known = known.map_or(&[][..], |(_, pids)| pids);
            match look_again(access, pool, (role_oid, role), known).await {
                Ok((_, found, starting, _)) => {
                    sessions = sessions.saturating_add(found);
                    starting_there.extend(starting);
                }
                Err(why) => not_asked.push(format!("{host}: {why}")),
            }
        }
        Ok(Census {
            role_absent,
            sessions,
            starting,
            starting_there,
            not_asked,
            position,
        })
    }
}

async fn look_again(
    access: &Access,
    pool: &Pool,
    (role_oid, role): (Option<u32>, &RoleName),
    starting: &[i32],
) -> Result<(bool, u32, Vec<i32>, Position), Failed> {
    const SQL: &str =
        "SELECT l.present, l.sessions, l.starting, p.system_id, p.timeline, p.lsn, p.at_ms
        FROM ephor.look_again($1, $2, $3) l, ephor.place() p";
    let oids = [role_oid.unwrap_or(0)];
    let names = [role.as_str()];
    let params: Params<'_> = &[&oids.as_slice(), &names.as_slice(), &starting];
    let rows = pool.call("a second census", SQL, params).await;
    let rows = rows.map_err(|said| said.failed(&access.name))?;
    let row = rows.first().ok_or_else(|| Failed::Missing {
        target: access.name.clone(),
        what: "an answer".to_owned(),
        mend: "run `ephor target init` again".to_owned(),
    })?;
    let present: bool = field(access, row, 0)?;
    let sessions = count(field(access, row, 1)?);
    let starting = field(access, row, 2)?;
    let position = Position::of(access, row, 3)?;
    Ok((!present, sessions, starting, position))
}
