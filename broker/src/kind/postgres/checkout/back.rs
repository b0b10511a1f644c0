//! The end of a checkout, and later looks at it; the order of it is in [`super`].

use std::collections::HashSet;

use ephor_crypto::Secret;
use ephor_crypto::scram::{ScramVerifier, password};
use ephor_proto::id::CredentialId;
use ephor_proto::postgres::Address;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_postgres::Row;

use crate::kind::postgres::census::count;
use crate::kind::postgres::connect::{Params, field};
use crate::kind::postgres::failed::{Failed, Said};
use crate::kind::postgres::name::Ident;
use crate::kind::postgres::pool::Pool;
use crate::kind::postgres::probe::{AsksFor, Who, asks_for};
use crate::kind::postgres::{Position, Target};
use crate::{crash_point, limits};

/// Rounds for a password of 256 random bits that nobody will ever type.
const OF_NOBODY: std::num::NonZeroU32 = std::num::NonZeroU32::MIN;

/// That the password of a checkout is dead, as its server said after the last act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedIn {
    /// Of the role; none when it was never checked out.
    pub role_oid: Option<u32>,
    /// What the role is called; none when somebody has dropped it.
    pub called: Option<String>,
    /// Sessions that were told to end, and did.
    pub sessions_ended: u32,
    /// See [`crate::kind::postgres::Evidence::starting`].
    pub starting: Vec<i32>,
    /// The same on standbys, by their address.
    pub starting_there: Vec<(String, Vec<i32>)>,
    /// Standbys that have it too, with how far they had come.
    pub standbys: Vec<String>,
    /// What goes on of what was done with the role's rights.
    pub remains: String,
    /// What was not looked at, or could not be seen.
    pub partial: Vec<String>,
    /// Where the server stood.
    pub position: Position,
}

/// A later look at a checkout that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOver {
    /// It is out again, or open: the server went back in time, or somebody set LOGIN or a password.
    pub is_out: bool,
    /// Sessions that must not be; they were told to end.
    pub sessions: u32,
    /// Those of the processes asked about that have no name yet.
    pub starting: Vec<i32>,
    /// Whether every standby could be asked, too.
    pub all_asked: bool,
}

/// What the fence says.
struct Fenced {
    state: String,
    role_oid: Option<u32>,
    called: Option<String>,
}

/// What a census says.
struct Census {
    state: Option<String>,
    left: LeftOver,
    /// Of one that is in, and was not lent since: what the role is called, and the salt of its password.
    last: Option<(String, String)>,
}

/// Sessions that were told to end.
#[derive(Default)]
struct Told {
    pids: HashSet<i32>,
    starting: Vec<i32>,
}

impl Target {
    /// Ends a checkout and proves it. One that was never made, or whose role is gone, is proven as well, and
    /// never made from then on.
    ///
    /// # Errors
    /// [`Failed`]: then the password may live; it is to be begun again, for ever.
    pub async fn check_in(
        &self,
        epoch: u32,
        (credential, role): (CredentialId, &Ident),
        database: &Ident,
    ) -> Result<CheckedIn, Failed> {
        let one = CheckIn {
            target: self,
            epoch,
            credential: credential.to_string(),
            role: role.as_str(),
        };
        match one.run(database).await {
            Err(failed) => Err(one.with_prepared(failed).await),
            ended => ended,
        }
    }

    /// Logs in as the role with the password that nobody has. Gives what keeps it from being seen what the server
    /// says to that, if anything does.
    async fn is_of_nobody(
        &self,
        called: &str,
        database: &Ident,
        nobody: &Secret,
    ) -> Result<Option<String>, Failed> {
        let mut why = "the target has no host".to_owned();
        for host in &self.access().hosts {
            let who = Who {
                user: called,
                database: database.as_str(),
                password: Some((nobody, OF_NOBODY)),
            };
            let busy = |why: String| {
                let target = self.name().to_owned();
                Err(Failed::Busy { target, why })
            };
            match asks_for(who, host, &self.access().tls).await {
                AsksFor::Shut => return Ok(None),
                // Somebody has done that meanwhile, or it is another server than the one that we asked.
                AsksFor::Another | AsksFor::Password { .. } => {
                    return busy(format!(
                        "{host} asks {called} for another password than the one that was just set"
                    ));
                }
                AsksFor::Open => {
                    return busy(format!("{host} lets {called} log in, which was just shut"));
                }
                AsksFor::Nothing => why = format!("{host} lets {called} in without a password"),
                AsksFor::Unknown(said) => why = format!("{host}: {said}"),
            }
        }
        Ok(Some(format!(
            "whether the password is refused was not seen from here: {why}"
        )))
    }

    /// Looks again for what an ended checkout may have left; sessions that are found are ended.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn left_over(
        &self,
        credential: CredentialId,
        database: &Ident,
        (starting, there): (&[i32], &[(String, Vec<i32>)]),
    ) -> Result<LeftOver, Failed> {
        let credential = credential.to_string();
        let revoking = &self.inner.revoking;
        let here = self.census_of(revoking, &credential, starting).await?;
        let mut left = here.left;
        if let Some(last) = here.last.filter(|_| !left.is_out) {
            // It may have been lent while that was asked.
            left.is_out = self.has_another_password(&last, database).await
                && self.census_of(revoking, &credential, &[]).await?.last == Some(last);
        }
        for (host, pool) in &self.inner.standbys {
            let host = host.to_string();
            let known = there.iter().find(|(known, _)| *known == host);
            let known = known.map_or(&[][..], |(_, pids)| pids);
            match self.census_of(pool, &credential, known).await {
                Ok(there) => {
                    left.sessions = left.sessions.saturating_add(there.left.sessions);
                    left.starting.extend(there.left.starting);
                }
                Err(_) => left.all_asked = false,
            }
        }
        Ok(left)
    }

    /// Whether the server surely asks for another password than the one with this salt.
    async fn has_another_password(
        &self,
        (called, salt): &(String, String),
        database: &Ident,
    ) -> bool {
        for host in &self.access().hosts {
            let who = Who {
                user: called,
                database: database.as_str(),
                password: None,
            };
            if let AsksFor::Password { salt: asked } = asks_for(who, host, &self.access().tls).await
            {
                return asked != *salt;
            }
        }
        false
    }

    async fn census_of(
        &self,
        pool: &Pool,
        credential: &String,
        starting: &[i32],
    ) -> Result<Census, Failed> {
        const SQL: &str = "SELECT c.state, c.can_login, c.sessions, c.starting, c.called, c.salt
            FROM ephor.check_in_census($1::text::uuid, $2) c";
        let access = self.access();
        let params: Params<'_> = &[credential, &starting];
        let rows = pool.call("a census of a checkout", SQL, params).await;
        let rows = rows.map_err(|said| said.failed(self.name()))?;
        let row = self.only(&rows)?;
        let state: Option<String> = field(access, row, 0)?;
        let can_login: Option<bool> = field(access, row, 1)?;
        let called: Option<String> = field(access, row, 4)?;
        let salt: Option<String> = field(access, row, 5)?;
        let left = LeftOver {
            is_out: state.as_deref() == Some("out") || can_login == Some(true),
            sessions: count(field(access, row, 2)?),
            starting: field(access, row, 3)?,
            all_asked: true,
        };
        Ok(Census {
            state,
            left,
            last: called.zip(salt),
        })
    }
}

/// One checkout to end.
struct CheckIn<'a> {
    target: &'a Target,
    epoch: u32,
    credential: String,
    role: &'a str,
}

impl<'a> CheckIn<'a> {
    async fn run(&self, database: &Ident) -> Result<CheckedIn, Failed> {
        let revoking = &self.target.inner.revoking;
        let standbys = &self.target.inner.standbys;
        let mut told = Told::default();
        let fenced = self.fence(&mut told).await?;
        let mut on_standbys: Vec<_> = standbys.iter().map(|_| Ok(Vec::new())).collect();
        let mut ended_before = 0;
        let (mut partial, mut remains) = (Vec::new(), Vec::new());
        if let (Some(called), "fenced") = (&fenced.called, fenced.state.as_str()) {
            crash_point!("lent.fenced");
            let (here, there) = tokio::join!(
                self.end_sessions(revoking, &mut told),
                self.end_on_standbys()
            );
            here?;
            on_standbys = there;
            crash_point!("lent.quiet");
            let (nobody, settings) = self.set(&told).await?;
            crash_point!("lent.set");
            let seen = self.target.is_of_nobody(called, database, &nobody);
            partial.extend(seen.await?);
            remains.extend(settings);
            remains.extend(self.done().await?);
            crash_point!("lent.back");
        } else if fenced.role_oid.is_some() {
            // Somebody has dropped the role, or it was lent since: its sessions are over all the same.
            let census = self.target.census_of(revoking, &self.credential, &[]);
            ended_before = census.await?.left.sessions;
            self.waited(revoking, "in").await?;
            if fenced.called.is_some() {
                let since = "the role was lent again or taken back since: what its server asks for was not asked";
                partial.push(since.to_owned());
            }
        }
        let (mut seen_at, mut starting_there) = (Vec::new(), Vec::new());
        for ((host, pool), ended) in standbys.iter().zip(on_standbys) {
            match self.seen_at(pool, ended).await {
                Ok((lsn, starting)) => {
                    seen_at.push(format!("{host} at {lsn}"));
                    starting_there
                        .extend((!starting.is_empty()).then(|| (host.to_string(), starting)));
                }
                Err(why) => partial.push(format!("standby {host}: {why}")),
            }
        }
        Ok(CheckedIn {
            role_oid: fenced.role_oid,
            called: fenced.called,
            sessions_ended: count(i32::try_from(told.pids.len()).unwrap_or(i32::MAX))
                + ended_before,
            starting: told.starting,
            starting_there,
            standbys: seen_at,
            remains: remains.join("; "),
            partial,
            position: self.target.position().await?,
        })
    }

    /// Step 1. A session of the role can hold what ALTER ROLE needs, or somebody has given it what our right does
    /// not reach: then the row alone is written first, and with it the right to end its sessions.
    async fn fence(&self, told: &mut Told) -> Result<Fenced, Failed> {
        for _ in 1..limits::PG_FENCE_TRIES {
            let failed = match self.fence_once(false).await {
                Err(
                    failed
                    @ (Failed::Busy { .. } | Failed::Refused { .. } | Failed::Missing { .. }),
                ) => failed,
                other => return other,
            };
            match self.fence_once(true).await {
                Ok(_) => {
                    self.look(&self.target.inner.watching, told).await?;
                }
                Err(Failed::Busy { .. }) => {}
                Err(other) => return Err(other),
            }
            if !matches!(failed, Failed::Busy { .. }) {
                return Err(failed);
            }
        }
        self.fence_once(false).await
    }

    /// The same failure, with what may be in the way and no session ends.
    async fn with_prepared(&self, failed: Failed) -> Failed {
        const SQL: &str = "SELECT ephor.prepared_of($1::text::uuid)";
        let pool = &self.target.inner.watching;
        let Failed::Busy { target, why } = failed else {
            return failed;
        };
        let asked = "prepared transactions";
        let rows = pool.call(asked, SQL, &[&self.credential]).await;
        let rows = rows.unwrap_or_default();
        let access = self.target.access();
        let named = rows.first().and_then(|row| field(access, row, 0).ok());
        let named: Option<String> = named.flatten();
        let why = match named {
            Some(named) => format!(
                "{why}; prepared transactions of the role hold what they changed until somebody ends them \
                 there (ROLLBACK PREPARED): {named}"
            ),
            None => why,
        };
        Failed::Busy { target, why }
    }

    async fn fence_once(&self, alone: bool) -> Result<Fenced, Failed> {
        const SQL: &str = "SELECT f.state, f.role_oid, f.called
            FROM ephor.check_in_fence($1, $2, $3::text::uuid, $4, $5) f";
        let params: Params<'_> = &[
            &self.target.access().installation,
            &i64::from(self.epoch),
            &self.credential,
            &self.role,
            &alone,
        ];
        let rows = self.unblocked("fencing a checkout", SQL, params).await?;
        let (access, row) = (self.target.access(), self.target.only(&rows)?);
        Ok(Fenced {
            state: field(access, row, 0)?,
            role_oid: field(access, row, 1)?,
            called: field(access, row, 2)?,
        })
    }

    async fn unblocked(
        &self,
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Failed> {
        let target = self.target;
        match target.unblocked(asked, sql, params).await {
            Err(Said::OtherEpoch) => target.begin_epoch(self.epoch).await?,
            other => return other.map_err(|said| said.failed(target.name())),
        }
        let again = target.unblocked(asked, sql, params).await;
        again.map_err(|said| said.failed(target.name()))
    }

    /// Step 2: tells sessions to end until there is none.
    async fn end_sessions(&self, pool: &Pool, told: &mut Told) -> Result<(), Failed> {
        let ended = async {
            while !self.look(pool, told).await? {
                sleep(limits::PG_LOOK_PAUSE).await;
            }
            Ok(())
        };
        let ended = timeout(limits::PG_SESSIONS_END, ended).await;
        ended.unwrap_or_else(|_| {
            let mut pids: Vec<_> = told.pids.iter().collect();
            pids.sort();
            Err(self.busy(format!(
                "sessions were told to end and have not: process {pids:?}"
            )))
        })
    }

    /// One look; whether there was no session.
    async fn look(&self, pool: &Pool, told: &mut Told) -> Result<bool, Failed> {
        const SQL: &str = "SELECT e.pids, e.hidden, e.starting
            FROM ephor.check_in_sessions($1::text::uuid) e";
        let access = self.target.access();
        let rows = pool.call("ending sessions", SQL, &[&self.credential]).await;
        let rows = rows.map_err(|said| said.failed(&access.name))?;
        let row = self.target.only(&rows)?;
        let pids: Vec<i32> = field(access, row, 0)?;
        let hidden: Vec<i32> = field(access, row, 1)?;
        let none = pids.is_empty() && hidden.is_empty();
        told.pids.extend(pids.into_iter().chain(hidden));
        told.starting = field(access, row, 2)?;
        Ok(none)
    }

    /// Step 3. Also what became of settings that the task had changed.
    async fn set(&self, told: &Told) -> Result<(Secret, Option<String>), Failed> {
        const SQL: &str = "SELECT ephor.check_in_set($1, $2, $3::text::uuid, $4, $5)";
        let failed = |why: String| self.busy(why);
        let nobody = password().map_err(|why| failed(why.to_string()))?;
        let verifier = ScramVerifier::new(&nobody, OF_NOBODY);
        let verifier = verifier.map_err(|why| failed(why.to_string()))?;
        let params: Params<'_> = &[
            &self.target.access().installation,
            &i64::from(self.epoch),
            &self.credential,
            &verifier.expose(),
            &told.starting,
        ];
        let asked = "giving a role a password of nobody";
        let rows = self.unblocked(asked, SQL, params).await?;
        let settings = field(self.target.access(), self.target.only(&rows)?, 0)?;
        Ok((nobody, settings))
    }

    /// Step 5. Also what goes on.
    async fn done(&self) -> Result<Option<String>, Failed> {
        const SQL: &str = "SELECT ephor.check_in_done($1, $2, $3::text::uuid)";
        let params: Params<'_> = &[
            &self.target.access().installation,
            &i64::from(self.epoch),
            &self.credential,
        ];
        let rows = self.unblocked("checking in a role", SQL, params).await?;
        let remains: Option<String> = field(self.target.access(), self.target.only(&rows)?, 0)?;
        Ok(remains.filter(|remains| !remains.is_empty()))
    }

    /// Step 2 at those that follow, as soon as they know of the fence.
    async fn end_on_standbys(&self) -> Vec<Result<Vec<i32>, Failed>> {
        let at_one = |(_, pool): &'a (Address, Pool)| async move {
            let mut told = Told::default();
            self.waited(pool, "fenced").await?;
            self.end_sessions(pool, &mut told).await?;
            Ok(told.starting)
        };
        join_all(self.target.inner.standbys.iter().map(at_one)).await
    }

    /// That a standby has it, too, and no session of before.
    async fn seen_at(
        &self,
        pool: &Pool,
        ended: Result<Vec<i32>, Failed>,
    ) -> Result<(String, Vec<i32>), Failed> {
        let starting = ended?;
        self.waited(pool, "in").await?;
        let rows = pool
            .call("its position", "SELECT p.lsn FROM ephor.place() p", &[])
            .await;
        let rows = rows.map_err(|said| said.failed(self.target.name()))?;
        let lsn = field(self.target.access(), self.target.only(&rows)?, 0)?;
        Ok((lsn, starting))
    }

    /// Waits until a standby shows this state, and no session of it.
    async fn waited(&self, pool: &Pool, state: &str) -> Result<(), Failed> {
        let looking = async {
            loop {
                let seen = self.target.census_of(pool, &self.credential, &[]).await?;
                if seen.state.as_deref() == Some(state) && seen.left.sessions == 0 {
                    return Ok(());
                }
                sleep(limits::PG_LOOK_PAUSE).await;
            }
        };
        let looked = timeout(limits::PG_STANDBY_REPLAY, looking).await;
        looked.unwrap_or_else(|_| {
            let behind = format!("not replayed within {:?}", limits::PG_STANDBY_REPLAY);
            Err(self.busy(behind))
        })
    }

    fn busy(&self, why: String) -> Failed {
        Failed::Busy {
            target: self.target.name().to_owned(),
            why,
        }
    }
}
