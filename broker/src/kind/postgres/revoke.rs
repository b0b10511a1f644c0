//! The end of logins, in an order of which each step was found necessary:
//!
//! 1. fence, NOLOGIN and no groups, committed: nobody makes it any more, nobody comes in. Sessions that show
//!    themselves are told to end by the same call, and do so while it is being committed;
//! 2. sessions end, those that the server does not show too, here and on standbys;
//! 3. what it owns, if anything, is dropped, in every database: the role cannot be while it owns something;
//! 4. a last look at sessions, while the right to end hidden ones still tells whose they are;
//! 5. the role is dropped, by the call that has looked: most logins own nothing, and then 2 to 5 are one;
//! 6. a census, here and on standbys. Only that is a proof.
//!
//! Any step may be repeated, and a revocation that failed is simply begun again.

mod owned; // step 3

use ephor_proto::postgres::Address;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ephor_proto::id::CredentialId;
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::census::{Evidence, Left, Seen, census};
use super::connect::{Params, field};
use super::failed::{Failed, Said};
use super::name::{Ident, RoleName};
use super::pool::Pool;
use super::{Access, Position, Target};
use crate::clock::Stopwatch;
use crate::limits;

/// One login to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Whose it is.
    pub credential: CredentialId,
    /// Its name, as it was planned: it need not exist.
    pub role: RoleName,
    /// Tables and sequences that it owns go to this group instead of being dropped.
    pub reassign: Option<Ident>,
}

impl Target {
    /// Ends one login and proves it. A login that is gone already, or was never made, is proven
    /// as well, and never made from then on.
    ///
    /// # Errors
    /// [`Failed`]: then it may live, or be half dead; it is to be begun again, for ever.
    pub async fn revoke(&self, epoch: u32, ending: &Ending) -> Result<Evidence, Failed> {
        let one = std::slice::from_ref(ending);
        let mut all = Act::new(self, epoch, one)
            .together(&mut Told::default())
            .await?;
        all.pop()
            .ok_or_else(|| self.not_dead("no census".to_owned()))
    }

    /// Ends many with the same statements, in the order of `endings`. Where there are many batches, the fences come
    /// first. One that cannot be ended holds up none of the others.
    pub async fn revoke_many(
        &self,
        epoch: u32,
        endings: &[Ending],
    ) -> Vec<Result<Evidence, Failed>> {
        let mut places: Vec<usize> = (0..endings.len()).collect();
        places.sort_by_key(|place| endings.get(*place).map(|ending| &ending.reassign));
        let mut batches: Vec<Vec<(usize, Ending)>> = Vec::new();
        for place in places {
            let Some(ending) = endings.get(place) else {
                continue;
            };
            let fits = |batch: &&mut Vec<(usize, Ending)>| {
                let like = batch
                    .first()
                    .is_some_and(|(_, first)| first.reassign == ending.reassign);
                like && batch.len() < limits::PG_BATCH
            };
            match batches.last_mut().filter(fits) {
                Some(batch) => batch.push((place, ending.clone())),
                None => batches.push(vec![(place, ending.clone())]),
            }
        }
        let turns = Semaphore::new(limits::PG_REVOKE_PLACES);
        let each = |batch| self.batch(epoch, batch, &turns);
        let done = join_all(batches.into_iter().map(each)).await;
        let mut done: Vec<_> = done.into_iter().flatten().collect();
        done.sort_by_key(|(place, _)| *place);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }

    async fn batch(
        &self,
        epoch: u32,
        batch: Vec<(usize, Ending)>,
        turns: &Semaphore,
    ) -> Vec<(usize, Result<Evidence, Failed>)> {
        let (places, endings): (Vec<usize>, Vec<Ending>) = batch.into_iter().unzip();
        let mut told = Told::default();
        let act = Act::new(self, epoch, &endings);
        // Turns are given in the order in which they are asked for: the second one when all have begun the first.
        let turn = turns.acquire().await;
        let fenced = act.fence(&mut told).await;
        drop(turn);
        let _turn = turns.acquire().await;
        let done = match fenced {
            Ok(names) => act.after_fence(names, &mut told).await,
            Err(failed) => Err(failed),
        };
        match done {
            Ok(all) => places.into_iter().zip(all.into_iter().map(Ok)).collect(),
            // Each for himself: one of them is in the way of the others.
            Err(Failed::Refused { .. } | Failed::Busy { .. } | Failed::Missing { .. })
                if endings.len() > 1 =>
            {
                let mut all = Vec::with_capacity(endings.len());
                let begun = Stopwatch::start();
                for (place, ending) in places.into_iter().zip(&endings) {
                    if is_over(begun, limits::PG_ONE_BY_ONE) {
                        let why = "others that were ended with it took the time".to_owned();
                        all.push((place, Err(self.not_dead(why))));
                        continue;
                    }
                    let one = std::slice::from_ref(ending);
                    let ended = Act::new(self, epoch, one).together(&mut told).await;
                    let ended = ended.and_then(|mut all| {
                        all.pop()
                            .ok_or_else(|| self.not_dead("no census".to_owned()))
                    });
                    all.push((place, ended));
                }
                all
            }
            Err(failed) => {
                let each = |place| (place, Err(failed.clone()));
                places.into_iter().map(each).collect()
            }
        }
    }

    fn not_dead(&self, why: String) -> Failed {
        Failed::Busy {
            target: self.name().to_owned(),
            why,
        }
    }
}

/// Names that roles had had when they were fenced, by credential; absent: what we had called them.
type Names = HashMap<String, Option<String>>;

/// One revocation of logins that are ended together.
struct Act<'a> {
    target: &'a Target,
    epoch: u32,
    credentials: Vec<String>,
    roles: Vec<&'a str>,
    reassign: Option<&'a Ident>,
}

/// How sessions are looked for.
#[derive(Clone, Copy)]
enum Look<'a> {
    /// Through this pool.
    At(&'a Pool),
    /// By the call that drops the logins when it finds nobody; if they own something, or somebody is just
    /// starting, only `anyway`.
    Last { anyway: bool },
}

/// What a look came to.
enum Looked {
    /// Sessions were told to end.
    Told,
    /// There was none.
    Nobody,
    /// There was none, and the logins are dropped.
    Dropped,
}

/// Sessions that were told to end.
#[derive(Default)]
struct Told {
    /// By process, with the oid of the login.
    shown: HashMap<i32, u32>,
    hidden: HashSet<i32>,
    /// Sessions without a name at the last look, which are not ours to end.
    starting: Vec<i32>,
}

impl Told {
    /// Those that show themselves; what was hidden a moment ago may do so while it ends.
    fn see(&mut self, shown: impl Iterator<Item = (i32, u32)>) {
        let hidden = &self.hidden;
        self.shown
            .extend(shown.filter(|(pid, _)| !hidden.contains(pid)));
    }

    fn all(&self) -> u32 {
        u32::try_from(self.shown.len() + self.hidden.len()).unwrap_or(u32::MAX)
    }

    fn of(&self, oid: Option<u32>) -> u32 {
        let of = |seen: &&u32| Some(**seen) == oid;
        let shown = self.shown.values().filter(of).count() + self.hidden.len();
        u32::try_from(shown).unwrap_or(u32::MAX)
    }
}

impl<'a> Act<'a> {
    fn new(target: &'a Target, epoch: u32, endings: &'a [Ending]) -> Self {
        Self {
            target,
            epoch,
            credentials: endings
                .iter()
                .map(|one| one.credential.to_string())
                .collect(),
            roles: endings.iter().map(|one| one.role.as_str()).collect(),
            reassign: endings.first().and_then(|one| one.reassign.as_ref()),
        }
    }

    fn access(&self) -> &'a Access {
        self.target.access()
    }

    /// All steps.
    async fn together(&self, told: &mut Told) -> Result<Vec<Evidence>, Failed> {
        let names = self.fence(told).await?;
        self.after_fence(names, told).await
    }

    /// Steps 2 to 6.
    async fn after_fence(&self, names: Names, told: &mut Told) -> Result<Vec<Evidence>, Failed> {
        let standbys = if self.target.inner.standbys.is_empty() {
            Vec::new()
        } else {
            let here = Look::At(&self.target.inner.revoking);
            let (here, there) = tokio::join!(self.until_nobody(here, told), self.end_on_standbys());
            here?;
            there
        };
        self.drop_logins(told).await?;
        let census = census(
            self.access(),
            &self.target.inner.revoking,
            &self.credentials,
        )
        .await?;
        let standbys = self.seen_on_standbys(standbys).await;
        self.evidence(names, told, census, &standbys)
    }

    /// Step 1. A session of the login itself can hold what is needed for it (`ALTER ROLE` of its own role in
    /// an open transaction): then the fence alone is committed first, and with it the right to end that session.
    async fn fence(&self, told: &mut Told) -> Result<Names, Failed> {
        const LOGIN: &str = "SELECT f.credential::text, f.was_named, f.role_oid, f.pids
            FROM ephor.fence_login($1, $2::text[]::uuid[], $3) f";
        const ALONE: &str = "SELECT ephor.fence_only($1, $2::text[]::uuid[], $3)";
        let epoch = i64::from(self.epoch);
        let params: Params<'_> = &[&epoch, &self.credentials, &self.roles];
        let mut first = self.unblocked("fencing a login", LOGIN, params).await;
        for _ in 1..limits::PG_FENCE_TRIES {
            if !matches!(first, Err(Failed::Busy { .. })) {
                break;
            }
            match self.unblocked("fencing", ALONE, params).await {
                // Whoever comes back meanwhile is ended again, until he is not let in any more.
                Ok(_) => {
                    self.look(Look::At(&self.target.inner.watching), told)
                        .await?;
                    first = tokio::select! {
                        fenced = self.unblocked("fencing a login", LOGIN, params) => fenced,
                        failed = self.keep_ending(told) => failed,
                    };
                }
                Err(Failed::Busy { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        let rows = match first {
            Ok(rows) => rows,
            Err(failed) => return Err(self.why_not_dropped(failed).await),
        };
        let access = self.access();
        let mut names = HashMap::with_capacity(rows.len());
        for row in &rows {
            names.insert(field(access, row, 0)?, field(access, row, 1)?);
            let oid: u32 = field(access, row, 2)?;
            let pids: Vec<i32> = field(access, row, 3)?;
            told.see(pids.into_iter().map(|pid| (pid, oid)));
        }
        Ok(names)
    }

    /// Ends sessions as they come; itself only when it cannot any more.
    async fn keep_ending(&self, told: &mut Told) -> Result<Vec<tokio_postgres::Row>, Failed> {
        loop {
            self.look(Look::At(&self.target.inner.watching), told)
                .await?;
            sleep(limits::PG_LOOK_PAUSE).await;
        }
    }

    async fn unblocked(
        &self,
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<tokio_postgres::Row>, Failed> {
        let target = self.target;
        match target.unblocked(asked, sql, params).await {
            Err(Said::OtherEpoch) => target.begin_epoch(self.epoch).await?,
            other => return other.map_err(|said| said.failed(target.name())),
        }
        let again = target.unblocked(asked, sql, params).await;
        again.map_err(|said| said.failed(target.name()))
    }

    /// Tells sessions to end until there is none. Whether the logins are dropped.
    async fn until_nobody(&self, look: Look<'_>, told: &mut Told) -> Result<bool, Failed> {
        let begun = Stopwatch::start();
        let mut pause = limits::PG_LOOK_PAUSE_FIRST;
        loop {
            match self.look(look, told).await? {
                Looked::Told => {}
                Looked::Nobody => return Ok(false),
                Looked::Dropped => return Ok(true),
            }
            if is_over(begun, limits::PG_SESSIONS_END) {
                let mut pids: Vec<_> = told.shown.keys().chain(&told.hidden).collect();
                pids.sort();
                let why = format!("sessions were told to end and have not: process {pids:?}");
                return Err(self.target.not_dead(why));
            }
            sleep(pause).await;
            pause = pause.saturating_mul(2).min(limits::PG_LOOK_PAUSE);
        }
    }

    async fn look(&self, look: Look<'_>, told: &mut Told) -> Result<Looked, Failed> {
        const SQL: &str = "SELECT e.pids, e.oids, e.hidden, e.starting, false
            FROM ephor.end_sessions($1::text[]::uuid[]) e";
        const LAST: &str = "SELECT d.pids, d.oids, d.hidden, d.starting, d.done
            FROM ephor.drop_logins($1, $2::text[]::uuid[], $3) d";
        let access = self.access();
        let rows = match look {
            Look::At(pool) => {
                let params: Params<'_> = &[&self.credentials];
                let rows = pool.call("ending sessions", SQL, params).await;
                rows.map_err(|said| said.failed(&access.name))?
            }
            Look::Last { anyway } => {
                let params: Params<'_> = &[&i64::from(self.epoch), &self.credentials, &anyway];
                match self.unblocked("dropping a login", LAST, params).await {
                    Ok(rows) => rows,
                    Err(failed) => return Err(self.why_not_dropped(failed).await),
                }
            }
        };
        let row = self.target.only(&rows)?;
        let pids: Vec<i32> = field(access, row, 0)?;
        let oids: Vec<u32> = field(access, row, 1)?;
        let hidden: Vec<i32> = field(access, row, 2)?;
        let looked = match (pids.is_empty() && hidden.is_empty(), field(access, row, 4)?) {
            (false, _) => Looked::Told,
            (true, false) => Looked::Nobody,
            (true, true) => Looked::Dropped,
        };
        told.see(pids.into_iter().zip(oids));
        // On its way out a session hides once more.
        let shown = &told.shown;
        told.hidden
            .extend(hidden.into_iter().filter(|pid| !shown.contains_key(pid)));
        told.starting = field(access, row, 3)?;
        Ok(looked)
    }

    /// Steps 2 to 5.
    async fn drop_logins(&self, told: &mut Told) -> Result<(), Failed> {
        let last = |anyway| Look::Last { anyway };
        if !self.until_nobody(last(false), told).await? {
            self.drop_owned().await?;
            self.until_nobody(last(true), told).await?;
        }
        Ok(())
    }

    /// A prepared transaction holds on to a role for ever, and only a superuser may end one.
    async fn why_not_dropped(&self, failed: Failed) -> Failed {
        if !matches!(failed, Failed::Busy { .. } | Failed::Refused { .. }) {
            return failed;
        }
        let looked = census(
            self.access(),
            &self.target.inner.revoking,
            &self.credentials,
        )
        .await;
        let left = looked.map(|(left, _, _)| left).unwrap_or_default();
        let gids: Vec<String> = left.into_iter().flat_map(|one| one.prepared).collect();
        if gids.is_empty() {
            return failed;
        }
        Failed::Refused {
            target: self.target.name().to_owned(),
            why: format!("{failed}; {}", prepared(&gids)),
        }
    }

    /// Step 2 at those that follow, as soon as they know of the fence.
    async fn end_on_standbys(&self) -> Vec<Result<Told, Failed>> {
        let at_one = |(_, pool): &'a (Address, Pool)| async move {
            let mut told = Told::default();
            // The fence alone may have come first; then it still lets people in.
            let known = |left: &[Left]| {
                let shut = left.iter().filter(|one| one.fenced && !one.can_login);
                shut.count() >= self.credentials.len()
            };
            self.replayed(pool, known).await?;
            self.until_nobody(Look::At(pool), &mut told).await?;
            Ok(told)
        };
        join_all(self.target.inner.standbys.iter().map(at_one)).await
    }

    /// Waits until a standby shows `state` of what is left.
    async fn replayed(
        &self,
        pool: &Pool,
        state: impl Fn(&[Left]) -> bool,
    ) -> Result<Position, Failed> {
        let looking = async {
            loop {
                let (left, position, _) = census(self.access(), pool, &self.credentials).await?;
                if state(&left) {
                    return Ok(position);
                }
                sleep(limits::PG_LOOK_PAUSE).await;
            }
        };
        let looked = timeout(limits::PG_STANDBY_REPLAY, looking).await;
        looked.unwrap_or_else(|_| {
            let behind = format!("not replayed within {:?}", limits::PG_STANDBY_REPLAY);
            Err(self.target.not_dead(behind))
        })
    }

    /// Step 6 at those that follow.
    async fn seen_on_standbys(&self, ended: Vec<Result<Told, Failed>>) -> Vec<(String, Seen)> {
        let standbys = self.target.inner.standbys.iter().zip(ended);
        let at_one = |((host, pool), ended): (&'a (Address, Pool), Result<Told, Failed>)| async move {
            let seen = match ended {
                Ok(told) => {
                    let gone = |left: &[Left]| left.iter().all(Left::is_dead);
                    let position = self.replayed(pool, gone).await;
                    position.map(|at| Seen::Absent {
                        lsn: at.lsn,
                        sessions_ended: told.all(),
                        starting: told.starting,
                    })
                }
                Err(why) => Err(why),
            };
            let seen = seen.unwrap_or_else(|failed| match failed {
                Failed::Busy { why, .. } => Seen::Behind { why },
                other => Seen::Unreachable {
                    why: other.to_string(),
                },
            });
            (host.to_string(), seen)
        };
        join_all(standbys.map(at_one)).await
    }

    /// What the census proves; an error when something is left.
    fn evidence(
        &self,
        mut names: Names,
        told: &Told,
        (left, position, followers): (Vec<Left>, Position, u32),
        standbys: &[(String, Seen)],
    ) -> Result<Vec<Evidence>, Failed> {
        let mut by_credential: HashMap<String, Left> = left
            .into_iter()
            .map(|one| (one.credential.clone(), one))
            .collect();
        let mut all = Vec::with_capacity(self.credentials.len());
        for (credential, role) in self.credentials.iter().zip(&self.roles) {
            let left = by_credential.remove(credential).filter(Left::is_dead);
            let left = left.ok_or_else(|| {
                self.target
                    .not_dead(format!("the census still finds {role}, or a session of it"))
            })?;
            let dropped = names.contains_key(credential);
            all.push(Evidence {
                role_absent: true,
                role_oid: left.role_oid,
                dropped,
                sessions_ended: told.of(left.role_oid),
                hidden_ended: u32::try_from(told.hidden.len()).unwrap_or(u32::MAX),
                was_named: names.remove(credential).flatten(),
                system_id: position.system_id.clone(),
                timeline: position.timeline,
                lsn: position.lsn.clone(),
                standbys: standbys.to_vec(),
                starting: told.starting.clone(),
                partial: partial(&left, followers, standbys),
                at: position.at,
            });
        }
        Ok(all)
    }
}

fn is_over(begun: Stopwatch, time: Duration) -> bool {
    u128::from(begun.micros()) > time.as_micros()
}

/// How far the proof does not reach, if anywhere.
fn partial(left: &Left, followers: u32, standbys: &[(String, Seen)]) -> Option<String> {
    let mut said = Vec::new();
    let mut absent = 0;
    for (host, seen) in standbys {
        match seen {
            Seen::Absent { .. } => absent += 1,
            Seen::Behind { why } => said.push(format!("standby {host}: {why}")),
            Seen::Unreachable { why } => said.push(format!("standby {host} was not asked: {why}")),
        }
    }
    let listed = u32::try_from(standbys.len()).unwrap_or(u32::MAX);
    if followers > listed.max(absent) {
        let more = followers - listed.max(absent);
        said.push(format!(
            "{more} of the servers that follow are not listed in `standbys`"
        ));
    }
    if !left.prepared.is_empty() {
        said.push(prepared(&left.prepared));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

fn prepared(gids: &[String]) -> String {
    let gids: Vec<String> = gids.iter().map(|gid| super::name::literal(gid)).collect();
    format!(
        "a prepared transaction of it is left, which only a superuser can end: ROLLBACK PREPARED {}",
        gids.join(", ")
    )
}
