//! Settings: a TOML file, then the environment, then flags; the later one wins.
//!
//! An unknown key is refused, never ignored: a misspelt setting must not look as if it held.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ephor_confine::Off;
use ephor_proto::spiffe::HostName;
use serde::Deserialize;

use crate::limits;

/// Where the file is looked for when none is named; it may be missing there.
pub const DEFAULT_FILE: &str = "/etc/ephor/agent.toml";
/// Begins the name of every environment variable that is a setting.
pub const PREFIX: &str = "EPHOR_AGENT_";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// How callers are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerPidfd {
    /// By the kernel's own pidfd of the connection (Linux 6.5), else by pid and start time.
    #[default]
    Auto,
    /// By pid and start time, as on an older kernel: weaker, and said so in the evidence.
    Off,
}

/// The settings of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The broker's URL; where the host joined, when left out.
    pub broker: Option<String>,
    /// Where identity, journal and checkpoint are.
    pub state_dir: PathBuf,
    /// The socket that callers use.
    pub socket: PathBuf,
    /// The name this host must have joined as; checked at start when given.
    pub host: Option<HostName>,
    /// Whether callers are held by the kernel's pidfd of their connection where there is one.
    pub peer_pidfd: PeerPidfd,
    /// The user to become when started as root.
    pub user: Option<String>,
    /// Protections that are turned off, with the reasons.
    pub hardening_off: Off,
    /// Where metrics and health are told, if anywhere; always loopback.
    pub metrics_listen: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Largest executable that is hashed, in bytes.
    pub max_exe_hash_bytes: u64,
}

/// Settings as one source gives them; absent ones leave an earlier source's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partial {
    /// See [`Config::broker`].
    pub broker: Option<String>,
    /// See [`Config::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// See [`Config::socket`].
    pub socket: Option<PathBuf>,
    /// See [`Config::host`].
    pub host: Option<String>,
    /// See [`Config::peer_pidfd`].
    pub peer_pidfd: Option<PeerPidfd>,
    /// See [`Config::user`].
    pub user: Option<String>,
    /// See [`Config::hardening_off`].
    pub hardening_off: Option<Off>,
    /// See [`Config::metrics_listen`].
    pub metrics_listen: Option<SocketAddr>,
    /// See [`Config::log_format`].
    pub log_format: Option<LogFormat>,
    /// See [`Config::max_exe_hash_bytes`].
    pub max_exe_hash_bytes: Option<u64>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("invalid: reading {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The file is wrong.
    #[error("invalid: {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Line, value and what was expected.
        error: Box<toml::de::Error>,
    },
    /// A variable is wrong.
    #[error("invalid: {PREFIX}{name}={value:?}: {problem}")]
    Variable {
        /// The name after the prefix.
        name: String,
        /// What it holds.
        value: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A setting is wrong.
    #[error("invalid: {0}")]
    Value(String),
}

impl Config {
    /// Reads all sources. A named file must be there; the default one may be missing.
    ///
    /// # Errors
    /// Says which source and which value is wrong.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: Partial,
    ) -> Result<Self, ConfigError> {
        let from_file = match file {
            Some(path) => Partial::from_file(path)?,
            None => match Partial::from_file(Path::new(DEFAULT_FILE)) {
                Err(ConfigError::Read { error, .. })
                    if error.kind() == std::io::ErrorKind::NotFound =>
                {
                    Partial::default()
                }
                read => read?,
            },
        };
        let environment = Partial::from_environment(environment)?;
        from_file.then(environment).then(flags).complete()
    }
}

impl Partial {
    fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::File {
            path: path.to_owned(),
            error: Box::new(error),
        })
    }

    fn from_environment(
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut partial = Self::default();
        for (name, value) in variables {
            let Some(key) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let wrong = |problem| ConfigError::Variable {
                name: key.to_owned(),
                value: value.clone(),
                problem,
            };
            match key {
                "BROKER" => partial.broker = Some(value),
                "STATE_DIR" => partial.state_dir = Some(value.into()),
                "SOCKET" => partial.socket = Some(value.into()),
                "HOST" => partial.host = Some(value),
                "PEER_PIDFD" => {
                    partial.peer_pidfd = Some(match value.as_str() {
                        "auto" => PeerPidfd::Auto,
                        "off" => PeerPidfd::Off,
                        _ => return Err(wrong("write auto or off")),
                    });
                }
                "USER" => partial.user = Some(value),
                "METRICS_LISTEN" => {
                    let parsed = value.parse().map_err(|_| wrong("write ADDRESS:PORT"))?;
                    partial.metrics_listen = Some(parsed);
                }
                "LOG_FORMAT" => {
                    partial.log_format = Some(match value.as_str() {
                        "human" => LogFormat::Human,
                        "json" => LogFormat::Json,
                        _ => return Err(wrong("write human or json")),
                    });
                }
                "MAX_EXE_HASH_BYTES" => {
                    let parsed = value
                        .parse()
                        .map_err(|_| wrong("write a number of bytes"))?;
                    partial.max_exe_hash_bytes = Some(parsed);
                }
                // Which file: the flag's.
                "CONFIG" => {}
                _ => return Err(wrong("there is no such setting")),
            }
        }
        Ok(partial)
    }

    fn then(self, later: Self) -> Self {
        Self {
            broker: later.broker.or(self.broker),
            state_dir: later.state_dir.or(self.state_dir),
            socket: later.socket.or(self.socket),
            host: later.host.or(self.host),
            peer_pidfd: later.peer_pidfd.or(self.peer_pidfd),
            user: later.user.or(self.user),
            hardening_off: later.hardening_off.or(self.hardening_off),
            metrics_listen: later.metrics_listen.or(self.metrics_listen),
            log_format: later.log_format.or(self.log_format),
            max_exe_hash_bytes: later.max_exe_hash_bytes.or(self.max_exe_hash_bytes),
        }
    }

    fn complete(self) -> Result<Config, ConfigError> {
        if let Some(broker) = &self.broker {
            crate::uplink::connect::Address::parse(broker)
                .map_err(|error| ConfigError::Value(error.to_string()))?;
        }
        let host = self.host.map(|host| {
            host.parse()
                .map_err(|error| ConfigError::Value(format!("host `{host}`: {error}")))
        });
        if let Some(address) = self.metrics_listen.filter(|at| !at.ip().is_loopback()) {
            return Err(ConfigError::Value(format!(
                "metrics_listen = \"{address}\": not a loopback address; whoever reads it can tell \
                 how much goes on here, so let a proxy of yours decide who that is"
            )));
        }
        let socket = self
            .socket
            .unwrap_or_else(|| PathBuf::from("/run/ephor/agent.sock"));
        crate::surface::listener::check_path(&socket)
            .map_err(|error| ConfigError::Value(error.to_string()))?;
        let hardening_off = self.hardening_off.unwrap_or_default();
        hardening_off.check().map_err(ConfigError::Value)?;
        Ok(Config {
            broker: self.broker,
            state_dir: self
                .state_dir
                .unwrap_or_else(|| PathBuf::from("/var/lib/ephor/agent")),
            socket,
            host: host.transpose()?,
            peer_pidfd: self.peer_pidfd.unwrap_or_default(),
            user: self.user,
            hardening_off,
            metrics_listen: self.metrics_listen,
            log_format: self.log_format.unwrap_or_default(),
            max_exe_hash_bytes: self
                .max_exe_hash_bytes
                .unwrap_or(limits::MAX_EXE_HASH_BYTES),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        let owned: Vec<_> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        owned.into_iter()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn the_later_source_wins() {
        let file = file(
            "broker = \"https://file:1\"\nsocket = \"/run/file.sock\"\nhost = \"h1\"\nlog_format = \"json\"\n",
        );
        let environment = variables(&[
            ("EPHOR_AGENT_SOCKET", "/run/env.sock"),
            ("EPHOR_AGENT_HOST", "h2"),
            ("EPHOR_AGENT_CONFIG", "/the/flag/reads/it"),
            ("PATH", "/bin"),
        ]);
        let flags = Partial {
            host: Some("h3".into()),
            ..Partial::default()
        };
        let config = Config::load(Some(file.path()), environment, flags).unwrap();
        assert_eq!(config.broker.as_deref(), Some("https://file:1"));
        assert_eq!(config.socket, Path::new("/run/env.sock"));
        assert_eq!(config.host.as_ref().map(HostName::as_str), Some("h3"));
        assert_eq!(
            (config.log_format, config.peer_pidfd),
            (LogFormat::Json, PeerPidfd::Auto)
        );
    }

    #[test]
    fn wrong_settings_are_named() {
        for (text, hint) in [
            ("brokr = \"x\"", "brokr"),
            ("broker = \"http://x\"", "https://"),
            ("broker = 1", "line 1"),
            ("host = \"a/b\"", "a/b"),
            ("socket = \"relative.sock\"", "relative.sock"),
            ("log_format = \"loud\"", "loud"),
            ("peer_pidfd = \"on\"", "peer_pidfd"),
            ("[hardening_off]\nseccomp = \"no\"", "hardening_off.seccomp"),
            ("[hardening_off]\nlandlok = \"because of it\"", "landlok"),
            ("metrics_listen = \"0.0.0.0:9482\"", "loopback"),
        ] {
            let file = file(text);
            let error = Config::load(Some(file.path()), variables(&[]), Partial::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("invalid: ") && error.contains(hint),
                "{text}: {error}"
            );
        }
        for (name, value) in [
            ("EPHOR_AGENT_SOKET", "x"),
            ("EPHOR_AGENT_LOG_FORMAT", "x"),
            ("EPHOR_AGENT_PEER_PIDFD", "x"),
            ("EPHOR_AGENT_MAX_EXE_HASH_BYTES", "1k"),
        ] {
            let file = file("");
            let error = Config::load(
                Some(file.path()),
                variables(&[(name, value)]),
                Partial::default(),
            )
            .unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let missing = Config::load(
            Some(Path::new("/nonexistent/agent.toml")),
            variables(&[]),
            Partial::default(),
        );
        assert!(matches!(missing, Err(ConfigError::Read { .. })));
    }

    #[test]
    fn the_sample_is_a_valid_file() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.toml");
        let text = std::fs::read_to_string(sample).unwrap();
        let with_all: String = text
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        for text in [text, with_all] {
            let file = file(&text);
            Config::load(Some(file.path()), variables(&[]), Partial::default()).unwrap();
        }
    }
}
