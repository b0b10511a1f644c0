//! What is seen of ends: at the server by a superuser, in the broker's log by its admin socket.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ephor_broker::clock::SystemClock;
use ephor_proto::time::{Clock, UnixMillis};
use ephor_testkit::postgres::Cluster;
use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::stock::Held;
use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::fixture::Fixture;

/// Between two looks: what is seen is late by this at most, and looking costs the server and the broker
/// something, too.
const LOOK: Duration = Duration::from_millis(4);
/// An end that is not seen after this is a failure.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What was seen of one end, from the kill of its process on.
pub struct Ended {
    /// By the broker's log: its task's end was recorded.
    pub told: Duration,
    /// The server shows the role without the right to log in, or not any more.
    pub refused: Duration,
    /// Its session's connection ended.
    pub session: Duration,
    /// The server does not show the role.
    pub dropped: Duration,
    /// The log shows that it was proven dead.
    pub proven: Duration,
    /// The log shows its task's receipt.
    pub receipt: Duration,
    config: Config,
}

impl Ended {
    /// Until all of it was seen that is true of a dead login.
    pub fn all(&self) -> Duration {
        let all = [self.refused, self.session, self.dropped, self.proven];
        all.into_iter().max().unwrap_or_default()
    }
}

/// What is seen of a role that is to end.
#[derive(Default, Clone, Copy)]
struct Role {
    refused: Option<Moment>,
    dropped: Option<Moment>,
}

/// What the log tells of a task.
#[derive(Default, Clone, Copy)]
struct Task {
    began: Option<UnixMillis>,
    proven: Option<Moment>,
    receipt: Option<Moment>,
}

#[derive(Default)]
struct Sights {
    /// Of those that end now, by oid.
    roles: HashMap<u32, Role>,
    tasks: HashMap<String, Task>,
    /// The task that a role was made for.
    task_of: HashMap<String, String>,
    /// The last event that was read.
    after: Option<u64>,
}

/// See the module.
#[derive(Clone)]
pub struct Watch {
    sights: Rc<RefCell<Sights>>,
    admin: Rc<PathBuf>,
    failed: Rc<RefCell<Option<String>>>,
}

impl Watch {
    /// Begins to look.
    pub async fn start(cluster: &Cluster, fixture: &Fixture) -> anyhow::Result<Self> {
        let mut config = Config::new();
        config.host_path(cluster.socket_dir()).port(cluster.port());
        config.user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::task::spawn_local(async move {
            // An error shows as a failed query.
            let _ = connection.await;
        });
        let watch = Self {
            sights: Rc::default(),
            admin: Rc::new(fixture.admin_socket()?),
            failed: Rc::default(),
        };
        let (at_server, in_log) = (watch.clone(), watch.clone());
        tokio::task::spawn_local(async move {
            let ended = at_server.roles(&client).await;
            at_server.stopped("looking at the server", ended);
        });
        tokio::task::spawn_local(async move {
            let ended = in_log.log().await;
            in_log.stopped("reading the log", ended);
        });
        Ok(watch)
    }

    fn stopped(&self, what: &str, ended: anyhow::Result<()>) {
        let why = ended
            .err()
            .map_or_else(String::new, |why| format!("{why:#}"));
        *self.failed.borrow_mut() = Some(format!("{what}: {why}"));
    }

    async fn roles(&self, server: &Client) -> anyhow::Result<()> {
        let sql = "SELECT oid, rolcanlogin FROM pg_authid WHERE oid = ANY ($1)";
        let sql = server.prepare(sql).await?;
        loop {
            tokio::time::sleep(LOOK).await;
            let ending: Vec<u32> = {
                let sights = self.sights.borrow();
                let left = sights
                    .roles
                    .iter()
                    .filter(|(_, role)| role.dropped.is_none());
                left.map(|(oid, _)| *oid).collect()
            };
            if ending.is_empty() {
                continue;
            }
            let rows = server.query(&sql, &[&ending]).await?;
            let now = Moment::now();
            let mut there = HashMap::new();
            for row in &rows {
                there.insert(row.try_get::<_, u32>(0)?, row.try_get::<_, bool>(1)?);
            }
            let mut sights = self.sights.borrow_mut();
            for oid in ending {
                let Some(role) = sights.roles.get_mut(&oid) else {
                    continue;
                };
                let can_login = there.get(&oid).copied();
                if can_login != Some(true) {
                    role.refused.get_or_insert(now);
                }
                if can_login.is_none() {
                    role.dropped.get_or_insert(now);
                }
            }
        }
    }

    async fn log(&self) -> anyhow::Result<()> {
        let mut admin = Connection::unix(&self.admin).await?;
        loop {
            while self.read(&mut admin).await? > 0 {}
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads on; how many events there were.
    async fn read(&self, admin: &mut Connection) -> anyhow::Result<usize> {
        let after = self.sights.borrow().after;
        let after = after.map_or_else(String::new, |after| format!("?after={after}"));
        let answer = admin.call(&Call::get(format!("/v1/audit{after}"))).await?;
        let now = Moment::now();
        let records: Vec<Record> = serde_json::from_slice(&answer)?;
        let mut sights = self.sights.borrow_mut();
        for record in &records {
            sights.after = Some(record.index);
            let of = |pointer: &str| {
                let text = record.event.pointer(pointer).and_then(Value::as_str);
                text.unwrap_or_default().to_owned()
            };
            let task = sights.tasks.entry(of("/task")).or_default();
            match of("/type").as_str() {
                "issue.minted" => {
                    sights.task_of.insert(of("/facts/name"), of("/task"));
                }
                // Where the broker hears from a heartbeat first, it says `lost`.
                "complete.exited" | "complete.lost" => task.began = of("/time").parse().ok(),
                "prove.dead" => task.proven = Some(now),
                "prove.receipt" => task.receipt = Some(now),
                _ => {}
            }
        }
        Ok(records.len())
    }

    /// Forgets what ended before, and waits until the log has told of `all`.
    pub async fn begin(&self, all: &[Held]) -> anyhow::Result<()> {
        self.sights.borrow_mut().roles.clear();
        let start = Moment::now();
        let is_known =
            |sights: &Sights| all.iter().all(|one| sights.task_of.contains_key(&one.role));
        while !is_known(&self.sights.borrow()) {
            self.check(start)?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn check(&self, since: Moment) -> anyhow::Result<()> {
        if let Some(why) = &*self.failed.borrow() {
            bail!("{why}");
        }
        ensure!(since.elapsed() < GIVE_UP, "not seen within {GIVE_UP:?}");
        Ok(())
    }

    /// Kills one when it is due, and waits until all of its end was seen.
    pub async fn end(&self, mut held: Held, due: Moment) -> anyhow::Result<Ended> {
        tokio::time::sleep(due.remaining()).await;
        let (killed, wall) = (Moment::now(), SystemClock.wall());
        self.sights
            .borrow_mut()
            .roles
            .insert(held.oid, Role::default());
        held.process.start_kill()?;
        held.process.wait().await?;
        let session = held.session.take().context("no session")?;
        let session = tokio::time::timeout(GIVE_UP, session).await;
        let session = session.context("a session goes on")??;
        let (role, task) = loop {
            if let Some(seen) = self.seen(&held) {
                break seen;
            }
            self.check(killed)?;
            tokio::time::sleep(LOOK).await;
        };
        let since = |seen: Option<Moment>| seen.map(|seen| seen.since(killed)).context("not seen");
        let began = task.began.context("the end of a task has no time")?;
        let told = began.as_millis().saturating_sub(wall.as_millis());
        Ok(Ended {
            told: Duration::from_millis(told),
            refused: since(role.refused)?,
            session: session.since(killed),
            dropped: since(role.dropped)?,
            proven: since(task.proven)?,
            receipt: since(task.receipt)?,
            config: held.config,
        })
    }

    /// Once all of it was seen.
    fn seen(&self, held: &Held) -> Option<(Role, Task)> {
        let sights = self.sights.borrow();
        let role = sights.roles.get(&held.oid)?;
        let task = sights.tasks.get(sights.task_of.get(&held.role)?)?;
        let is_all = role.dropped.is_some() && task.proven.is_some() && task.receipt.is_some();
        is_all.then_some((*role, *task))
    }
}

impl Ended {
    /// A copy of the login must not get in any more.
    pub async fn verify(&self) -> anyhow::Result<()> {
        match self.config.connect(NoTls).await {
            Ok(_) => bail!("a login was let in that was proven dead"),
            Err(why) => {
                let code = why
                    .code()
                    .context("the server did not say why it refuses")?;
                ensure!(*code == SqlState::INVALID_PASSWORD, "refused by {code:?}");
                Ok(())
            }
        }
    }
}

#[derive(Deserialize)]
struct Record {
    index: u64,
    event: Value,
}
