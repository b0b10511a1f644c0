//! One connection to a server, with the broker's own login.

use ephor_proto::postgres::Address;
use ephor_proto::time::Clock as _;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ephor_crypto::Secret;
use tokio::time::timeout;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use super::access::{Access, Password, Tls};
use super::failed::{Failed, Said, Tried, not_connected, said};
use super::install::SCHEMA_VERSION;
use super::password;
use super::tls::Encrypt;
use crate::clock::SystemClock;
use crate::limits;
use crate::tasks::Tasks;

/// Parameters of a call.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What a connection is opened for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purpose<'a> {
    /// Into which database.
    pub(super) database: &'a str,
    /// How long one of its statements waits for a lock.
    pub(super) lock_wait: Duration,
}

/// An open connection. Its other half runs in the background until this one is dropped.
pub(super) struct Conn {
    client: Client,
    /// The server's process of it.
    pub(super) pid: i32,
    /// Whether the server follows another one.
    pub(super) in_recovery: bool,
    /// How far the server's clock is ahead of ours, in milliseconds.
    pub(super) ahead: i64,
    /// Guards only the map: held for a look-up or an insertion.
    statements: Mutex<HashMap<&'static str, Statement>>,
    calls: AtomicU32,
}

impl Conn {
    /// Connects to `host`. Of a password that is just being replaced both are tried.
    ///
    /// # Errors
    /// [`Failed`], with nothing done.
    pub(super) async fn open(
        access: &Access,
        host: &Address,
        purpose: Purpose<'_>,
        tasks: &Tasks,
    ) -> Result<Self, Failed> {
        let file = match &access.password {
            Password::None | Password::Absent(_) => {
                return Self::open_with(access, host, purpose, None, tasks).await;
            }
            Password::Given(password) => {
                return Self::open_with(access, host, purpose, Some(password), tasks).await;
            }
            Password::File(file) => file,
        };
        let next = password::next(file);
        let tried = Tried::of(access, host, purpose.database);
        let mut refusals: Vec<Secret> = Vec::new();
        let mut refused = None;
        // The first once more: it may have changed while we asked.
        for file in [file, &next, file] {
            let read = password::read(file).await;
            let Some(secret) = read.map_err(|why| unreachable(&tried, why))? else {
                continue;
            };
            if refusals.iter().any(|one| one.eq_ct(secret.expose())) {
                continue;
            }
            match Self::open_with(access, host, purpose, Some(&secret), tasks).await {
                Err(failed @ Failed::Unauthorized { .. }) => {
                    refused.get_or_insert(failed);
                    refusals.push(secret);
                }
                other => return other,
            }
        }
        Err(refused.unwrap_or_else(|| {
            let why = format!("credential file {} is not there", file.display());
            unreachable(&tried, why)
        }))
    }

    /// Connects to `host` with this password, or none.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) async fn open_with(
        access: &Access,
        host: &Address,
        purpose: Purpose<'_>,
        password: Option<&Secret>,
        tasks: &Tasks,
    ) -> Result<Self, Failed> {
        let mut config = config(&access.user, host, purpose);
        if let Some(password) = password {
            config.password(password.expose());
        }
        let opened = connected(&config, host, &access.tls, tasks);
        let client = timeout(limits::PG_CONNECT, opened).await;
        let tried = Tried::of(access, host, purpose.database);
        let client = client.map_err(|_| {
            unreachable(&tried, format!("no answer within {:?}", limits::PG_CONNECT))
        })?;
        let client = client.map_err(|why| match why {
            NotConnected::Tls(why) => unreachable(&tried, why),
            NotConnected::Server(why) => not_connected(&tried, &why),
        })?;
        Self::greeted(access, client).await
    }

    /// Learns what must be known of every connection, and makes its commits durable.
    async fn greeted(access: &Access, client: Client) -> Result<Self, Failed> {
        const GREETING: &str = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(),
            (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint,
            CASE WHEN pg_catalog.current_setting('synchronous_commit') IN ('off', 'local')
                 THEN pg_catalog.set_config('synchronous_commit', 'on', false) END";
        let mut conn = Self {
            client,
            pid: 0,
            in_recovery: false,
            ahead: 0,
            statements: Mutex::default(),
            calls: AtomicU32::new(0),
        };
        let rows = conn.call(access, "greeting", GREETING, &[]).await;
        let rows = rows.map_err(|said| said.failed(&access.name))?;
        if let Some(row) = rows.first() {
            conn.pid = field(access, row, 0)?;
            conn.in_recovery = field(access, row, 1)?;
            let ours = i64::try_from(SystemClock.wall().as_millis()).unwrap_or(i64::MAX);
            conn.ahead = field::<i64>(access, row, 2)?.saturating_sub(ours);
        }
        Ok(conn)
    }

    /// A login that was made there might be one that cannot be ended.
    ///
    /// # Errors
    /// [`Failed`].
    pub(super) async fn refuse_older_schema(&self, access: &Access) -> Result<(), Failed> {
        const SQL: &str = "SELECT max(v.version) FROM ephor.version v";
        let rows = self.call(access, "looking at the schema", SQL, &[]).await;
        let rows = rows.map_err(|said| said.failed(&access.name))?;
        let version = rows.first().map(|row| field(access, row, 0)).transpose()?;
        match version.flatten().unwrap_or(0) {
            older if older < SCHEMA_VERSION => Err(Failed::Missing {
                target: access.name.clone(),
                what: format!("schema version {SCHEMA_VERSION}, version {older} is there"),
                mend: "run `ephor target init` again".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs `sql`, a constant, prepared once per connection. `asked` says in words what it is.
    pub(super) async fn call(
        &self,
        access: &Access,
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Said> {
        let work = async {
            let known = self.statements().get(sql).cloned();
            let statement = match known {
                Some(statement) => statement,
                None => {
                    let statement = self.client.prepare(sql).await?;
                    self.statements().insert(sql, statement.clone());
                    statement
                }
            };
            // Sent one after the other, without waiting in between.
            let call = self.client.query(&statement, params);
            tokio::join!(self.plans(), call).1
        };
        match timeout(limits::PG_ANSWER, work).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(said(&access.name, asked, &error)),
            Err(_) => Err(Said::Failed(Failed::Unknown {
                target: access.name.clone(),
                why: format!("{asked}: nothing within {:?}", limits::PG_ANSWER),
            })),
        }
    }

    /// Has plans made anew now and then. A plan that was good for few logins may take a thousand times as
    /// long for very many, and the server keeps it until it looks at its statistics.
    async fn plans(&self) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let due = match calls {
            0..limits::PG_PLANS_FIRST => false,
            limits::PG_PLANS_FIRST..limits::PG_PLANS_KEPT => calls.is_power_of_two(),
            _ => calls.is_multiple_of(limits::PG_PLANS_KEPT),
        };
        if due {
            // Old plans do as well, and a connection that has ended shows by the call itself.
            let _ = self.client.batch_execute("DISCARD PLANS").await;
        }
    }

    /// Runs `sql`, made here of nothing from outside; once, and with no answer but that it was done.
    pub(super) async fn run(&self, access: &Access, asked: &str, sql: &str) -> Result<(), Failed> {
        match timeout(limits::PG_ANSWER, self.client.batch_execute(sql)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(said(&access.name, asked, &error).failed(&access.name)),
            Err(_) => Err(Failed::Unknown {
                target: access.name.clone(),
                why: format!("{asked}: nothing within {:?}", limits::PG_ANSWER),
            }),
        }
    }

    fn statements(&self) -> std::sync::MutexGuard<'_, HashMap<&'static str, Statement>> {
        self.statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    /// The failure, where an epoch can play no part.
    pub(super) fn failed(self, target: &str) -> Failed {
        match self {
            Self::Failed(failed) | Self::Ended(failed) => failed,
            Self::OtherEpoch => Failed::Fenced {
                target: target.to_owned(),
                why: "the epoch there is another one".to_owned(),
            },
        }
    }
}

fn unreachable(tried: &Tried<'_>, why: String) -> Failed {
    Failed::Unreachable {
        target: tried.target.to_owned(),
        why: format!("{tried}: {why}"),
    }
}

/// One column; a server that answers in another form is not one of ours.
pub(super) fn field<'a, T: tokio_postgres::types::FromSql<'a>>(
    access: &Access,
    row: &'a Row,
    place: usize,
) -> Result<T, Failed> {
    row.try_get(place).map_err(|why| Failed::Missing {
        target: access.name.clone(),
        what: format!("an answer in the form of this version: {why}"),
        mend: "run `ephor target init` again".to_owned(),
    })
}

pub(super) fn config(user: &str, host: &Address, purpose: Purpose<'_>) -> Config {
    let mut config = Config::new();
    config.user(user).dbname(purpose.database);
    config.application_name("ephor-broker");
    // Plans are kept: the server would rather make one for each call, since it takes every array for ten long.
    // Made while there were ten logins, one may read all of ten thousand; hence no sequential scans, and
    // [`Conn::plans`].
    config.options(format!(
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} \
         -c client_min_messages=warning -c search_path=pg_catalog -c jit=off -c enable_seqscan=off \
         -c plan_cache_mode=force_generic_plan \
         -c DateStyle=ISO -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed",
        limits::PG_STATEMENT.as_millis(),
        purpose.lock_wait.as_millis(),
        limits::PG_STATEMENT.as_millis(),
    ));
    match host {
        Address::Tcp { host, port } => config.host(host.as_str()).port(*port),
        Address::Socket { dir, port } => config.host_path(dir).port(*port),
    };
    config.connect_timeout(limits::PG_CONNECT);
    config.tcp_user_timeout(limits::PG_ANSWER);
    config.keepalives_idle(limits::PG_KEEPALIVE);
    config.keepalives_interval(limits::PG_KEEPALIVE);
    config
}

pub(super) enum NotConnected {
    Tls(String),
    Server(tokio_postgres::Error),
}

/// Connects and lets the connection's other half run in the group.
pub(super) async fn connected(
    config: &Config,
    host: &Address,
    tls: &Tls,
    tasks: &Tasks,
) -> Result<Client, NotConnected> {
    let mut config = config.clone();
    match (tls, host) {
        (Tls::VerifyFull { ca_file }, Address::Tcp { .. }) => {
            let verify = Encrypt::verify_full(ca_file)
                .await
                .map_err(NotConnected::Tls)?;
            config.ssl_mode(SslMode::Require);
            config.channel_binding(ChannelBinding::Prefer);
            let (client, connection) =
                config.connect(verify).await.map_err(NotConnected::Server)?;
            background(tasks, connection);
            Ok(client)
        }
        (Tls::VerifyFull { .. }, Address::Socket { .. }) | (Tls::Off, _) => {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) = config.connect(NoTls).await.map_err(NotConnected::Server)?;
            background(tasks, connection);
            Ok(client)
        }
    }
}

fn background<S, T>(tasks: &Tasks, connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let stop = tasks.stop_token();
    tasks.spawn("connection to a target", async move {
        // Whoever waits for an answer learns the error himself.
        tokio::select! {
            _ = connection => {}
            () = stop.cancelled() => {}
        }
    });
}
