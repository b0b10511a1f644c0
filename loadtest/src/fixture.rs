//! Broker and agent under test: `ephor dev`, as processes of their own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::args::Made;
use crate::client::{Call, Connection};

/// How long the daemons may take to start.
const START_MAX: Duration = Duration::from_secs(30);
/// How long a bare server may take to listen.
const BARE_START_MAX: Duration = Duration::from_secs(5);

/// A running `ephor dev`.
pub struct Fixture {
    dev: Child,
    dir: tempfile::TempDir,
    environment: HashMap<String, String>,
    /// Process id of the broker.
    pub broker: u32,
    /// Process id of the agent.
    pub agent: u32,
    tls: Arc<rustls::ClientConfig>,
}

impl Fixture {
    /// Starts broker and agent in a temporary directory.
    pub async fn start(ephor: &Path) -> anyhow::Result<Self> {
        Self::start_with(ephor, &[]).await
    }

    /// As [`Self::start`], with more arguments of `ephor dev`.
    pub async fn start_with(ephor: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ephor-load").tempdir()?;
        let mut dev = Command::new(ephor)
            .args(["dev", "--dir"])
            .arg(dir.path().join("d"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!("{} (build it with: cargo build --release)", ephor.display())
            })?;
        let mut lines = BufReader::new(dev.stdout.take().context("no standard output")?).lines();
        let ready = tokio::time::timeout(START_MAX, lines.next_line())
            .await
            .context("`ephor dev` did not get ready")??;
        if ready.as_deref() != Some("ready") {
            bail!("`ephor dev` said {ready:?} instead of ready");
        }
        let environment = read_environment(&dir.path().join("d/env"))?;
        let pid = dev.id().context("`ephor dev` is gone")?;
        let tls = tls_config(Path::new(value(&environment, "EPHOR_CA_FILE")?))?;
        Ok(Self {
            broker: child_of(pid, "__broker")?,
            agent: child_of(pid, "__agent")?,
            dev,
            dir,
            environment,
            tls,
        })
    }

    /// The agent's socket.
    pub fn socket(&self) -> anyhow::Result<PathBuf> {
        value(&self.environment, "EPHOR_SOCKET").map(PathBuf::from)
    }

    /// The trust domain's CAs, in PEM.
    pub fn ca_file(&self) -> anyhow::Result<&Path> {
        value(&self.environment, "EPHOR_CA_FILE").map(Path::new)
    }

    /// The broker's admin socket.
    pub fn admin_socket(&self) -> anyhow::Result<PathBuf> {
        value(&self.environment, "EPHOR_ADMIN_SOCKET").map(PathBuf::from)
    }

    /// Where the broker finds passwords of targets.
    pub fn target_secrets(&self) -> PathBuf {
        self.dir.path().join("d/targets")
    }

    /// The policy that `ephor dev` made.
    pub fn policy(&self) -> anyhow::Result<String> {
        let files = std::fs::read_dir(self.dir.path().join("d/policy"))?;
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let [file] = files.as_slice() else {
            bail!("`ephor dev` made {} policy files", files.len());
        };
        Ok(std::fs::read_to_string(file.path())?)
    }

    /// Puts that policy in force; the broker's answer.
    pub async fn apply(&self, policy: &str) -> anyhow::Result<String> {
        let socket = self.admin_socket()?;
        let body = serde_json::json!({"files": [{"name": "ephor.toml", "text": policy}]});
        let call = Call::post("/v1/policy/apply", "application/json", body.to_string());
        let answer = Connection::unix(&socket).await?.call(&call).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Joins one more host, and runs its agent.
    pub async fn another_host(&self, ephor: &Path, name: &str) -> anyhow::Result<Host> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir)?;
        let (token, socket) = (dir.join("token"), dir.join("s"));
        let mut invite = Command::new(ephor);
        invite
            .args(["host", "invite", name, "--token-file"])
            .arg(&token)
            .env(
                "EPHOR_ADMIN_SOCKET",
                value(&self.environment, "EPHOR_ADMIN_SOCKET")?,
            )
            .stdout(Stdio::null());
        done("ephor host invite", &mut invite).await?;
        let agent = |verb: &str| {
            let mut agent = Command::new(ephor);
            agent.args(["__agent", verb, "--host", name, "--state-dir"]);
            agent.arg(dir.join("state")).stderr(Stdio::null());
            agent
        };
        let mut join = agent("join");
        join.args(["--broker", value(&self.environment, "EPHOR_BROKER_URL")?]);
        join.arg("--token-file").arg(&token).stdout(Stdio::null());
        done("ephor-agent join", &mut join).await?;
        let mut run = agent("run");
        run.arg("--socket").arg(&socket).kill_on_drop(true);
        let _agent = run.spawn()?;
        let joined = async {
            listening(&socket, START_MAX).await?;
            // It listens before it has the broker, whom this asks.
            let mut agent = Connection::unix(&socket).await?;
            while agent.call(&Call::get("/v1/whoami")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(START_MAX, joined)
            .await
            .map_err(anyhow::Error::from)
            .flatten()
            .context(format!("the agent of {name}"))?;
        Ok(Host { _agent, socket })
    }

    /// A connection to the broker's HTTPS listener.
    pub async fn https(&self) -> anyhow::Result<Connection> {
        let url = value(&self.environment, "EPHOR_BROKER_URL")?;
        let address: SocketAddr = url
            .strip_prefix("https://")
            .unwrap_or(url)
            .parse()
            .context("EPHOR_BROKER_URL")?;
        Connection::tls(address, Arc::clone(&self.tls)).await
    }

    /// Stops both, waits for them, removes the directory.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self
            .dev
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(rustix::process::Pid::from_raw)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = tokio::time::timeout(START_MAX, self.dev.wait())
            .await
            .context("`ephor dev` did not stop")??;
        if !status.success() {
            bail!("`ephor dev` ended with {status}");
        }
        Ok(())
    }
}

/// One more host's agent.
pub struct Host {
    _agent: Child,
    /// Where it listens.
    pub socket: PathBuf,
}

/// A bare server of this binary, for comparison.
pub struct Bare {
    _server: Child,
    _dir: tempfile::TempDir,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Bare {
    /// Starts one.
    pub async fn start(sign: Option<Made>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ephor-bare").tempdir()?;
        let socket = dir.path().join("s");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("__bare").arg(&socket).kill_on_drop(true);
        match sign {
            Some(Made::Token) => drop(command.args(["--sign", "token"])),
            Some(Made::Certificate) => drop(command.args(["--sign", "certificate"])),
            None => {}
        }
        let server = command.spawn()?;
        listening(&socket, BARE_START_MAX)
            .await
            .context("the bare server")?;
        Ok(Self {
            _server: server,
            _dir: dir,
            socket,
        })
    }
}

async fn listening(socket: &Path, most: Duration) -> anyhow::Result<()> {
    let connected = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let connected = tokio::time::timeout(most, connected).await;
    connected.context("it did not listen in time")
}

async fn done(what: &str, command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().await.context(what.to_owned())?;
    if !status.success() {
        bail!("{what} ended with {status}");
    }
    Ok(())
}

fn value<'a>(environment: &'a HashMap<String, String>, name: &str) -> anyhow::Result<&'a str> {
    environment
        .get(name)
        .map(String::as_str)
        .with_context(|| format!("the environment of `ephor dev` lacks {name}"))
}

fn read_environment(path: &Path) -> anyhow::Result<HashMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let pairs = text
        .lines()
        .filter_map(|line| line.trim_start_matches("export ").split_once('='));
    Ok(pairs
        .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
        .collect())
}

fn child_of(parent: u32, verb: &str) -> anyhow::Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .find(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0)
                .any(|argument| argument == verb.as_bytes())
        })
        .with_context(|| format!("`ephor dev` has no child {verb}"))
}

fn tls_config(ca_file: &Path) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    // Two, while one CA follows another.
    for certificate in CertificateDer::pem_file_iter(ca_file)? {
        roots.add(certificate?)?;
    }
    let config = rustls::ClientConfig::builder_with_provider(ephor_crypto::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
