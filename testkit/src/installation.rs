//! A broker and an agent in a directory of their own, each a process that can be killed and
//! started again on the same addresses.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::daemon::{Daemon, Started};
use crate::http::{self, Answer, Call};
use crate::wait;

/// Tokens live this long here unless the caller asks for less. Longer than any test, so that a
/// refused one was revoked and has not just expired.
pub const TOKEN_SECONDS: u64 = 600;
/// How long both daemons may take to work with each other again.
pub const SETTLE: Duration = Duration::from_secs(20);

/// Where the brokers under test listen.
const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 12_000;
/// The state of an established connection in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// One of the two daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The broker.
    Broker,
    /// The agent.
    Agent,
}

impl Side {
    /// The hidden verb of the binary that is this daemon.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Broker => "__broker",
            Self::Agent => "__agent",
        }
    }
}

/// See the module.
pub struct Installation {
    binary: PathBuf,
    https: SocketAddr,
    plain: SocketAddr,
    /// What the daemons' command lines begin with, such as a tracer's; empty is none.
    broker_under: Mutex<Vec<String>>,
    agent_under: Mutex<Vec<String>>,
    broker: Mutex<Option<Daemon>>,
    agent: Mutex<Option<Daemon>>,
    /// Last, because fields are dropped in this order.
    dir: tempfile::TempDir,
}

impl Installation {
    /// Initialises a broker with a policy like that of `ephor dev`. Nothing runs yet.
    ///
    /// # Errors
    /// When any step fails.
    pub fn create(binary: &Path) -> anyhow::Result<Self> {
        Self::create_in(
            tempfile::Builder::new().prefix("ephor-kit").tempdir()?,
            binary,
        )
    }

    /// As [`Self::create`], in a directory of the caller's choice, such as a small file system.
    ///
    /// # Errors
    /// When any step fails.
    pub fn create_in(dir: tempfile::TempDir, binary: &Path) -> anyhow::Result<Self> {
        let made = Self {
            https: free_port()?,
            plain: free_port()?,
            dir,
            binary: binary.to_owned(),
            broker_under: Mutex::default(),
            agent_under: Mutex::default(),
            broker: Mutex::default(),
            agent: Mutex::default(),
        };
        made.write_policy()?;
        std::fs::write(made.path("broker.toml"), made.broker_settings())?;
        made.once(
            made.broker_command()
                .args(["init", "--token-file"])
                .arg(made.path("token")),
        )?;
        Ok(made)
    }

    /// Starts both, joining first.
    ///
    /// # Errors
    /// When one does not get ready.
    pub fn start(&self) -> anyhow::Result<()> {
        self.start_daemon(Side::Broker, &[])?;
        self.join(&self.path("token"))?;
        self.start_daemon(Side::Agent, &[])
    }

    /// Makes the agent's host part of the fleet.
    ///
    /// # Errors
    /// When the broker refuses or is away.
    pub fn join(&self, token_file: &Path) -> anyhow::Result<()> {
        self.join_with(token_file, &[])
    }

    /// As [`Self::join`], with these additions to its environment.
    ///
    /// # Errors
    /// When the broker refuses or is away.
    pub fn join_with(&self, token_file: &Path, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut join = self.agent_command();
        join.envs(environment.iter().copied());
        join.args([
            "join",
            "--broker",
            &self.broker_url(),
            "--host",
            "kit",
            "--token-file",
        ]);
        self.once(join.arg(token_file))
    }

    /// Starts a daemon with these additions to its environment.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_daemon(&self, side: Side, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        match self.try_start(side, environment)? {
            Started::Ready => Ok(()),
            Started::Ended(status) => {
                anyhow::bail!("{side:?} ended with {status}; {}", self.tail(side))
            }
        }
    }

    /// Starts a daemon that may end before it is ready.
    ///
    /// # Errors
    /// When it neither gets ready nor ends.
    pub fn try_start(&self, side: Side, environment: &[(&str, &str)]) -> anyhow::Result<Started> {
        let (mut command, name) = match side {
            // A broker that was killed still holds its epoch.
            Side::Broker => (self.broker_command(), "broker"),
            Side::Agent => (self.agent_command(), "agent"),
        };
        if side == Side::Broker {
            command.arg("--take-over");
        }
        let ready = self.path(&format!("{name}.ready"));
        let _ = std::fs::remove_file(&ready);
        command
            .arg("run")
            .arg("--ready-file")
            .arg(&ready)
            .envs(environment.iter().copied());
        let mut daemon = Daemon::start(command, &self.path(&format!("{name}.log")))?;
        let started = daemon.wait_started(|| ready.exists());
        *self.slot(side) = Some(daemon);
        started
    }

    /// Starts a second agent, which takes over from the one that runs, and waits until it is ready
    /// or has ended. See [`Self::put_in_place`].
    ///
    /// # Errors
    /// When it neither gets ready nor ends.
    pub fn start_successor(
        &self,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<(Daemon, Started)> {
        let ready = self.path("agent.ready");
        let _ = std::fs::remove_file(&ready);
        let mut command = self.agent_command();
        command
            .args(["run", "--take-over", "--ready-file"])
            .arg(&ready)
            .envs(environment.iter().copied());
        let mut successor = Daemon::start(command, &self.path("agent.log"))?;
        let started = successor.wait_started(|| ready.exists())?;
        Ok((successor, started))
    }

    /// Makes this the agent; gives the one before.
    pub fn put_in_place(&self, agent: Daemon) -> Option<Daemon> {
        self.slot(Side::Agent).replace(agent)
    }

    /// A restart of the agent by hand-over: the one before ends with 0.
    ///
    /// # Errors
    /// When the successor does not take over, or the one before does not end cleanly.
    pub fn hand_over(&self) -> anyhow::Result<()> {
        let (successor, started) = self.start_successor(&[])?;
        anyhow::ensure!(
            started == Started::Ready,
            "{started:?}; {}",
            successor.tail()
        );
        let mut before = self.put_in_place(successor).context("no agent before")?;
        let ended = wait::until("the agent before ends", SETTLE, || before.ended())?;
        anyhow::ensure!(ended.success(), "{ended}; {}", before.tail());
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, side: Side) -> anyhow::Result<()> {
        self.with(side, Daemon::kill)
    }

    /// SIGTERM, and a clean end.
    ///
    /// # Errors
    /// When it does not run, or not end cleanly.
    pub fn stop(&self, side: Side) -> anyhow::Result<()> {
        self.with(side, Daemon::stop)
    }

    /// Stands still, to its last thread, until [`Self::go_on`].
    ///
    /// # Errors
    /// When it does not run, or not stop.
    pub fn freeze(&self, side: Side) -> anyhow::Result<()> {
        self.with(side, |daemon| {
            daemon.signal(rustix::process::Signal::STOP)?;
            wait::until("every thread stands still", SETTLE, || {
                daemon.is_still().then_some(())
            })
        })
    }

    /// Bytes that were sent to the broker on its TLS port and that it has not read: the receive
    /// queues of its established connections in `/proc/net/tcp` (proc_net_tcp in the kernel's
    /// documentation). While it stands still, what its peers send is all there.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn unread_by_broker(&self) -> anyhow::Result<u64> {
        let table = std::fs::read_to_string("/proc/net/tcp")?;
        let here = format!(":{:04X}", self.https.port());
        let queues = table.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let (local, _remote) = (words.next()?, words.next()?);
            let is_ours = words.next()? == ESTABLISHED && local.ends_with(&here);
            let (_sent, received) = words.next()?.split_once(':')?;
            u64::from_str_radix(received, 16).ok().filter(|_| is_ours)
        });
        Ok(queues.sum())
    }

    /// After [`Self::freeze`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn go_on(&self, side: Side) -> anyhow::Result<()> {
        self.with(side, |daemon| daemon.signal(rustix::process::Signal::CONT))
    }

    /// Whether a daemon has ended since it was started.
    #[must_use]
    pub fn has_ended(&self, side: Side) -> bool {
        self.slot(side)
            .as_mut()
            .is_none_or(|daemon| daemon.ended().is_some())
    }

    /// The signal that ended a daemon, if one did.
    #[must_use]
    pub fn killed_by(&self, side: Side) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        self.slot(side)
            .as_mut()
            .and_then(Daemon::ended)
            .and_then(|status| status.signal())
    }

    /// The process of a daemon that was started.
    #[must_use]
    pub fn pid(&self, side: Side) -> Option<u32> {
        self.slot(side).as_ref().map(Daemon::pid)
    }

    /// The end of a daemon's log.
    #[must_use]
    pub fn tail(&self, side: Side) -> String {
        self.slot(side)
            .as_ref()
            .map(Daemon::tail)
            .unwrap_or_default()
    }

    /// The broker's process is started by these words from now on: a tracer, for example.
    pub fn run_broker_under(&self, words: &[&str]) {
        *self
            .broker_under
            .lock()
            .unwrap_or_else(PoisonError::into_inner) =
            words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// The agent's process is started by these words from now on: in other namespaces, for example.
    pub fn run_agent_under(&self, words: &[&str]) {
        *self
            .agent_under
            .lock()
            .unwrap_or_else(PoisonError::into_inner) =
            words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Waits until the agent has a connection to the broker: a heartbeat of this start came.
    ///
    /// # Errors
    /// When it has none in time.
    pub fn wait_connected(&self) -> anyhow::Result<()> {
        let asked = [("Ephor-Local", "1")];
        let call = Call {
            method: "GET",
            target: "/v1/ready",
            headers: &asked,
            body: b"",
        };
        wait::until("the agent is connected", SETTLE, || {
            let answer = http::unix(&self.socket(), &call).ok()?;
            let missing = answer
                .body
                .get("missing")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            (answer.status == 200 && !missing.contains("broker")).then_some(())
        })
    }

    fn with<T>(
        &self,
        side: Side,
        act: impl FnOnce(&mut Daemon) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        act(self.slot(side).as_mut().context("it was not started")?)
    }

    fn slot(&self, side: Side) -> MutexGuard<'_, Option<Daemon>> {
        let slot = match side {
            Side::Broker => &self.broker,
            Side::Agent => &self.agent,
        };
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    /// A path in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The broker's database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.path("state/ephor.db")
    }

    /// The binary under test, with the sockets of this installation in its environment.
    #[must_use]
    pub fn ephor(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("EPHOR_SOCKET", self.socket())
            .env("EPHOR_ADMIN_SOCKET", self.path("admin.sock"));
        command
    }

    /// Asks introspection about a token, as its holder.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn introspect(&self, token: &str) -> anyhow::Result<Answer> {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ];
        let body = format!("token={token}");
        let call = Call {
            method: "POST",
            target: "/introspect",
            headers: &headers,
            body: body.as_bytes(),
        };
        http::tls(self.https, &self.path("state/ca.pem"), &call)
    }

    /// Fetches the published token keys as a verifier does.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn jwks(&self) -> anyhow::Result<Answer> {
        let call = Call {
            method: "GET",
            target: "/jwks",
            headers: &[],
            body: b"",
        };
        http::tls(self.https, &self.path("state/ca.pem"), &call)
    }

    /// Asks the admin socket.
    ///
    /// # Errors
    /// When the broker does not answer, or refuses.
    pub fn admin(&self, target: &str) -> anyhow::Result<Value> {
        self.admin_call("GET", target, b"")
    }

    /// Tells the admin socket something.
    ///
    /// # Errors
    /// When the broker does not answer, or refuses.
    pub fn admin_post(&self, target: &str, body: &Value) -> anyhow::Result<Value> {
        self.admin_call("POST", target, body.to_string().as_bytes())
    }

    fn admin_call(&self, method: &str, target: &str, body: &[u8]) -> anyhow::Result<Value> {
        let headers = [("Ephor-Local", "1"), ("Content-Type", "application/json")];
        let call = Call {
            method,
            target,
            headers: &headers,
            body,
        };
        let answer = http::unix(&self.path("admin.sock"), &call)?;
        anyhow::ensure!(
            answer.status == 200,
            "{target}: {} {}",
            answer.status,
            answer.body
        );
        Ok(answer.body)
    }

    /// Fetches from the plain listener: lists, checkpoint and tiles.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn public(&self, target: &str) -> anyhow::Result<Answer> {
        http::plain(
            self.plain,
            &Call {
                method: "GET",
                target,
                headers: &[],
                body: b"",
            },
        )
    }

    /// A line of SQL in the broker's database, beside a broker that is stopped.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn sql(&self, sql: &str) -> anyhow::Result<usize> {
        Ok(rusqlite::Connection::open(self.database())?.execute(sql, [])?)
    }

    /// What a question to the broker's database counts, read beside it.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn count(&self, sql: &str) -> anyhow::Result<u64> {
        let connection = rusqlite::Connection::open(self.database())?;
        Ok(u64::try_from(
            connection.query_row(sql, [], |row| row.get::<_, i64>(0))?,
        )?)
    }

    fn broker_url(&self) -> String {
        format!("https://{}", self.https)
    }

    fn broker_command(&self) -> Command {
        let mut command = self.under(&self.broker_under);
        command
            .arg("__broker")
            .arg("--config")
            .arg(self.path("broker.toml"));
        command
    }

    fn agent_command(&self) -> Command {
        let mut command = self.under(&self.agent_under);
        command
            .arg("__agent")
            .env("EPHOR_AGENT_STATE_DIR", self.path("agent"))
            .env("EPHOR_AGENT_SOCKET", self.socket());
        command
    }

    fn under(&self, words: &Mutex<Vec<String>>) -> Command {
        let words = words.lock().unwrap_or_else(PoisonError::into_inner);
        match words.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        }
    }

    fn once(&self, command: &mut Command) -> anyhow::Result<()> {
        let done = command.output()?;
        anyhow::ensure!(
            done.status.success(),
            "{}: {}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(())
    }

    fn broker_settings(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "state_dir = \"{dir}/state\"\npolicy_dir = \"{dir}/policy\"\nadmin_socket = \"{dir}/admin.sock\"\n\
             https_listen = \"{}\"\nhttp_listen = \"{}\"\n",
            self.https, self.plain
        )
    }

    fn write_policy(&self) -> anyhow::Result<()> {
        let uid = rustix::process::getuid().as_raw();
        std::fs::create_dir(self.path("policy"))?;
        std::fs::write(
            self.path("policy/kit.toml"),
            format!(
                "trust_domain = \"kit.test\"\n[ttl]\ndefault = \"{TOKEN_SECONDS}s\"\nmax = \"1h\"\nservice = \"none\"\n\
                 [workload.\"kit/app\"]\nowner = \"team:kit\"\nruns = [{{ uid = {uid} }}]\n"
            ),
        )?;
        Ok(())
    }
}

/// A free loopback port. Another process could take it before we do; then the start fails and
/// says so.
/// A port for a broker that comes back on it after every restart: below the range from which the
/// kernel takes ports by itself, so that no connection of another test takes it meanwhile.
fn free_port() -> anyhow::Result<SocketAddr> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        let number = std::process::id() * 64 + TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST_PORT + number % PORTS)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    anyhow::bail!("no port is free from {FIRST_PORT} on")
}
