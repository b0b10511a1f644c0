//! A broker and an agent that serve, from nothing: init, run, invite, join, run.

use std::ffi::OsString;
use std::path::Path;

use ephor_proto::http::admin::{Invite, Invited};
use ephor_proto::spiffe::HostName;
use nix::sys::signal::SigSet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::daemon::{Daemon, Plan};
use super::layout::Layout;
use crate::client::Peer;
use crate::exit::Failure;
use crate::words::shell_quoted;

/// Life of the agent's join token, used at once.
const INVITE_SECONDS: u64 = 120;

/// What the broker writes when it serves.
#[derive(Debug, Clone, Deserialize)]
pub struct BrokerReady {
    /// Issuer URL, below which discovery is.
    pub issuer: String,
    /// Base URL of the plain listener.
    pub lists_url: String,
    /// Verifier key of the audit log.
    pub log_key: String,
}

#[derive(Debug, Deserialize)]
struct AgentReady {}

/// Both, running.
pub struct Installation {
    // In the order of their end: an agent without broker is fine, the directory goes last.
    agent: Daemon,
    broker: Daemon,
    ready: BrokerReady,
    layout: Layout,
}

impl Installation {
    /// Starts both in `layout`; children get the signal mask `mask`.
    ///
    /// # Errors
    /// Which step failed, with the end of that process' log. Nothing is left running.
    pub async fn start(layout: Layout, mask: SigSet) -> Result<Self, Failure> {
        let _ = std::fs::remove_file(layout.env_file());
        let starting = Starting {
            layout: &layout,
            mask: &mask,
        };
        let (broker, ready) = starting.broker().await?;
        let agent = starting.agent(&ready.issuer).await?;
        let installation = Self {
            agent,
            broker,
            ready,
            layout,
        };
        let env_file = installation.layout.env_file();
        installation
            .layout
            .write(&env_file, &installation.env_text())?;
        Ok(installation)
    }

    /// Where it is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the broker said when it served.
    pub fn broker(&self) -> &BrokerReady {
        &self.ready
    }

    /// What a program needs to find it.
    pub fn variables(&self) -> [(&'static str, String); 7] {
        let shown = |path: std::path::PathBuf| path.display().to_string();
        [
            ("EPHOR_SOCKET", shown(self.layout.socket())),
            ("EPHOR_ADMIN_SOCKET", shown(self.layout.admin_socket())),
            ("EPHOR_BROKER_URL", self.ready.issuer.clone()),
            ("EPHOR_LISTS_URL", self.ready.lists_url.clone()),
            ("EPHOR_CA_FILE", shown(self.layout.ca_file())),
            (
                "EPHOR_BROKER_CONFIG",
                shown(self.layout.file("broker", "toml")),
            ),
            (
                "EPHOR_AGENT_CONFIG",
                shown(self.layout.file("agent", "toml")),
            ),
        ]
    }

    fn env_text(&self) -> String {
        env_text(&self.variables())
    }

    /// Waits until one of both ends by itself, and says which and why.
    pub async fn died(&self) -> Failure {
        tokio::select! {
            failure = self.broker.died() => failure,
            failure = self.agent.died() => failure,
        }
    }

    /// Stops both cleanly, the agent first.
    pub async fn stop(self) {
        let _ = std::fs::remove_file(self.layout.env_file());
        self.agent.stop().await;
        self.broker.stop().await;
    }
}

/// The steps of a start.
struct Starting<'a> {
    layout: &'a Layout,
    mask: &'a SigSet,
}

impl Starting<'_> {
    async fn broker(&self) -> Result<(Daemon, BrokerReady), Failure> {
        self.layout.make_target_secrets()?;
        let settings = broker_settings(self.layout);
        self.layout
            .write(&self.layout.file("broker", "toml"), &settings)?;
        if !self.layout.broker_state().join("ephor.db").exists() {
            self.plan("broker", &["init", "--no-token"])
                .complete()
                .await?;
        }
        self.serve("broker").await
    }

    async fn agent(&self, broker: &str) -> Result<Daemon, Failure> {
        let host = host_name();
        let settings = agent_settings(self.layout, broker, &host);
        self.layout
            .write(&self.layout.file("agent", "toml"), &settings)?;
        if !self.layout.joined().exists() {
            self.join(broker, &host).await?;
        }
        let (agent, AgentReady {}) = self.serve("agent").await?;
        Ok(agent)
    }

    async fn join(&self, broker: &str, host: &str) -> Result<(), Failure> {
        let token = self.layout.file("join", "token");
        invite(self.layout, host, &token).await?;
        let args = [
            "join",
            "--broker",
            broker,
            "--host",
            host,
            "--token-file",
            text(&token)?,
        ];
        let joined = self.plan("agent", &args).complete().await;
        let _ = std::fs::remove_file(&token);
        joined?;
        self.layout.write(&self.layout.joined(), "")
    }

    async fn serve<T: DeserializeOwned>(&self, what: &'static str) -> Result<(Daemon, T), Failure> {
        let ready = self.layout.file(what, "ready");
        let args = ["run", "--stop-on-stdin-eof", "--ready-file", text(&ready)?];
        self.plan(what, &args).serve(&ready).await
    }

    fn plan(&self, what: &'static str, args: &[&str]) -> Plan<'_> {
        let config: OsString = self.layout.file(what, "toml").into();
        let mut all: Vec<OsString> = args.iter().map(OsString::from).collect();
        all.extend(["--config".into(), config]);
        Plan {
            what,
            args: all,
            log: self.layout.file(what, "log"),
            mask: self.mask,
        }
    }
}

/// Assignments that both a shell and a line reader understand, then the export.
fn env_text(variables: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        text.push_str(&format!("{name}={}\n", shell_quoted(value)));
    }
    let names: Vec<&str> = variables.iter().map(|(name, _)| *name).collect();
    text.push_str(&format!("export {}\n", names.join(" ")));
    text
}

async fn invite(layout: &Layout, host: &str, file: &Path) -> Result<(), Failure> {
    let admin = Peer::broker_at(layout.admin_socket());
    let body = Invite {
        host: host.to_owned(),
        ttl_seconds: Some(INVITE_SECONDS),
    };
    let invited: Invited = admin.post("/v1/hosts/invite", &body).await?;
    let line = Zeroizing::new(format!("{}\n", invited.token));
    layout.write(file, &line)
}

fn broker_settings(layout: &Layout) -> String {
    let mut settings = "# Written by `ephor dev` at every start.\n".to_owned();
    for (key, value) in [
        ("state_dir", layout.broker_state().display().to_string()),
        ("policy_dir", layout.policy().display().to_string()),
        ("admin_socket", layout.admin_socket().display().to_string()),
        ("https_listen", "127.0.0.1:0".to_owned()),
        ("http_listen", "127.0.0.1:0".to_owned()),
        (
            "target_secrets_dir",
            layout.target_secrets().display().to_string(),
        ),
    ] {
        settings.push_str(&setting(key, &value));
    }
    let ports = layout.target_ports();
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        settings.push_str("# Those of the servers that the policy named when this was written.\n");
        settings.push_str(&format!("target_ports = [{}]\n", ports.join(", ")));
    }
    settings
}

fn agent_settings(layout: &Layout, broker: &str, host: &str) -> String {
    let mut settings = "# Written by `ephor dev` at every start.\n".to_owned();
    for (key, value) in [
        ("broker", broker.to_owned()),
        ("state_dir", layout.agent_state().display().to_string()),
        ("socket", layout.socket().display().to_string()),
        ("host", host.to_owned()),
    ] {
        settings.push_str(&setting(key, &value));
    }
    settings
}

/// A TOML line; a basic string takes JSON's escapes, and control characters were refused.
fn setting(key: &str, value: &str) -> String {
    format!("{key} = {}\n", serde_json::Value::from(value))
}

fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .ok_or_else(|| Failure::usage(format!("{} is not UTF-8.", path.display())))
}

/// The node's name where it is a host name, else `localhost`.
fn host_name() -> String {
    let system = rustix::system::uname();
    let name = system
        .nodename()
        .to_str()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match name.parse::<HostName>() {
        Ok(name) => name.to_string(),
        Err(_) => "localhost".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_sources_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        let value = "/tmp/it's \"here\" $HOME";
        std::fs::write(
            &file,
            env_text(&[("EPHOR_SOCKET", value.into()), ("EPHOR_X", "plain".into())]),
        )
        .unwrap();
        let out = std::process::Command::new("sh")
            .args([
                "-c",
                ". \"$1\"; sh -c 'printf \"%s|%s\" \"$EPHOR_SOCKET\" \"$EPHOR_X\"'",
                "sh",
            ])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            format!("{value}|plain")
        );
    }

    #[test]
    fn settings_are_quoted() {
        assert_eq!(setting("k", "a\"b\\c"), "k = \"a\\\"b\\\\c\"\n");
    }
}
