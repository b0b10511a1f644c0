//! Tasks that hold a login, each a process; and a session with a copy of it.

use std::process::Stdio;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio_postgres::{Client, Config, NoTls};

use crate::clock::Moment;
use crate::fixture::Fixture;
use crate::host;

/// Made at the same time.
const AT_ONCE: usize = 8;

/// What `GET /v1/database` answers.
#[derive(Deserialize)]
struct Answer {
    login: Login,
}

/// A login as an agent hands it out.
#[derive(Deserialize)]
struct Login {
    host: String,
    port: u16,
    database: String,
    user: String,
    password: String,
    options: String,
}

/// One task.
pub struct Held {
    /// Its process.
    pub process: Child,
    /// The role.
    pub role: String,
    /// Its oid at the server.
    pub oid: u32,
    /// When the session ended; nothing where none was opened.
    pub session: Option<oneshot::Receiver<Moment>>,
    /// Open for as long as the session is to be.
    pub client: Option<Client>,
    /// For another try once it is dead.
    pub config: Config,
}

/// Starts `count` tasks; with `in_use`, a session of each is open.
pub async fn gather(
    fixture: &Fixture,
    entitlement: &str,
    count: usize,
    in_use: bool,
) -> anyhow::Result<Vec<Held>> {
    let one = |_| held(fixture, entitlement, in_use);
    let all: Vec<Held> = stream::iter(0..count)
        .map(one)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    host::say(&format!("{count} tasks hold a login of {entitlement}"));
    Ok(all)
}

async fn held(fixture: &Fixture, entitlement: &str, in_use: bool) -> anyhow::Result<Held> {
    let mut process = Command::new(std::env::current_exe()?)
        .arg("__hold-login")
        .arg(fixture.socket()?)
        .arg(entitlement)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = process.stdout.take().context("no standard output")?;
    let line = BufReader::new(output).lines().next_line().await?;
    let Answer { login } = serde_json::from_str(&line.context("the holder got no login")?)?;
    let mut config = Config::new();
    config
        .host(&login.host)
        .port(login.port)
        .dbname(&login.database);
    config
        .user(&login.user)
        .password(&login.password)
        .options(&login.options);
    let mut held = Held {
        process,
        role: login.user,
        oid: 0,
        session: None,
        client: None,
        config,
    };
    if in_use {
        held.open().await?;
    }
    Ok(held)
}

impl Held {
    async fn open(&mut self) -> anyhow::Result<()> {
        const SQL: &str =
            "SELECT oid, rolname <> current_user FROM pg_roles WHERE rolname = session_user";
        let (client, connection) = self.config.connect(NoTls).await?;
        let (sender, ended) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // However it ended, it did.
            let _ = connection.await;
            let _ = sender.send(Moment::now());
        });
        let row = client.query_one(SQL, &[]).await?;
        ensure!(row.try_get::<_, bool>(1)?, "the session is not the group's");
        self.oid = row.try_get(0)?;
        (self.client, self.session) = (Some(client), Some(ended));
        Ok(())
    }
}
