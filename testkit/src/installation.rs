//! A broker and an agent in a directory of their own, each a process that can be killed and
//! started again on the same addresses.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::http::{self, Answer, Call};

/// Tokens live this long here, so that renewals come within seconds.
pub const TOKEN_SECONDS: u64 = 6;

/// See the module.
pub struct Installation {
    dir: tempfile::TempDir,
    binary: PathBuf,
    https: SocketAddr,
    plain: SocketAddr,
    broker: Option<Daemon>,
    agent: Option<Daemon>,
}

impl Installation {
    /// Initialises a broker and joins an agent, with the built-in policy of `ephor dev` but
    /// short-lived tokens. Nothing runs yet.
    ///
    /// # Errors
    /// When any step fails.
    pub fn create(binary: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ephor-kit").tempdir()?;
        let made = Self {
            https: free_port()?,
            plain: free_port()?,
            dir,
            binary: binary.to_owned(),
            broker: None,
            agent: None,
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

    /// Starts both, joining first. `crash` arms a crash point of either daemon.
    ///
    /// # Errors
    /// When one does not get ready.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.start_broker(None)?;
        let mut join = self.agent_command();
        join.args([
            "join",
            "--broker",
            &self.broker_url(),
            "--host",
            "kit",
            "--token-file",
        ])
        .arg(self.path("token"));
        self.once(&mut join)?;
        self.start_agent(None)
    }

    /// Starts the broker, armed to crash at a point if one is named.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_broker(&mut self, crash: Option<&str>) -> anyhow::Result<()> {
        let ready = self.path("broker.ready");
        let mut command = self.broker_command();
        // A broker that was killed still holds its epoch.
        command
            .arg("--take-over")
            .arg("run")
            .arg("--ready-file")
            .arg(&ready);
        self.broker = Some(self.start_daemon(command, &ready, "broker.log", crash)?);
        Ok(())
    }

    /// Starts the agent, armed to crash at a point if one is named.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_agent(&mut self, crash: Option<&str>) -> anyhow::Result<()> {
        let ready = self.path("agent.ready");
        let mut command = self.agent_command();
        command.arg("run").arg("--ready-file").arg(&ready);
        self.agent = Some(self.start_daemon(command, &ready, "agent.log", crash)?);
        Ok(())
    }

    fn start_daemon(
        &self,
        mut command: Command,
        ready: &Path,
        log: &str,
        crash: Option<&str>,
    ) -> anyhow::Result<Daemon> {
        let _ = std::fs::remove_file(ready);
        if let Some(point) = crash {
            command.env("EPHOR_CRASH", point);
        }
        let mut daemon = Daemon::start(command, &self.path(log))?;
        daemon.wait_ready(|| ready.exists().then_some(()))?;
        Ok(daemon)
    }

    /// The running broker.
    ///
    /// # Errors
    /// When it was never started.
    pub fn broker(&mut self) -> anyhow::Result<&mut Daemon> {
        self.broker.as_mut().context("the broker was not started")
    }

    /// The running agent.
    ///
    /// # Errors
    /// When it was never started.
    pub fn agent(&mut self) -> anyhow::Result<&mut Daemon> {
        self.agent.as_mut().context("the agent was not started")
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

    /// Asks the admin socket.
    ///
    /// # Errors
    /// When the broker does not answer, or refuses.
    pub fn admin(&self, target: &str) -> anyhow::Result<Value> {
        let call = Call {
            method: "GET",
            target,
            headers: &[("Ephor-Local", "1")],
            body: b"",
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

    fn broker_url(&self) -> String {
        format!("https://{}", self.https)
    }

    fn broker_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("__broker")
            .arg("--config")
            .arg(self.path("broker.toml"));
        command
    }

    fn agent_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("__agent")
            .env("EPHOR_AGENT_STATE_DIR", self.path("agent"))
            .env("EPHOR_AGENT_SOCKET", self.socket());
        command
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
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
