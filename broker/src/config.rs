//! Settings of the broker: a TOML file, then `EPHOR_BROKER_*`, then flags; the later
//! wins. `docs/broker.toml` documents each key and is loaded by a test.
//!
//! Nothing secret stands here: the master key has a file of its own.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ephor_confine::Off;
use serde::Deserialize;

use ephor_proto::ttl::Ttl;

use crate::keys::plan::Schedule;
use crate::limits;
use crate::policy::suggest::nearest;
use crate::retain::{Keep, Retention};

/// Where the settings file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/ephor/broker.toml";
/// Begins the name of every environment variable that is a setting.
const PREFIX: &str = "EPHOR_BROKER_";
/// Tells programs where a broker is (`ephor dev` sets it), and nothing to a broker.
const NOT_A_SETTING: &str = "EPHOR_BROKER_URL";
const DEFAULT_STATE_DIR: &str = "/var/lib/ephor/broker";
const DEFAULT_POLICY_DIR: &str = "/etc/ephor/policy";
const DEFAULT_ADMIN_SOCKET: &str = "/run/ephor/broker-admin.sock";
const DEFAULT_HTTPS: &str = "0.0.0.0:8443";
const DEFAULT_HTTP: &str = "0.0.0.0:8480";

/// How log lines look on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Settings that one source may give; the keys of `broker.toml`, the variables
/// `EPHOR_BROKER_*` and the flags are the same.
#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
#[group(skip)]
pub struct Settings {
    /// Directory of the database and its keys (0700).
    #[arg(long, global = true, env = "EPHOR_BROKER_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of policy files (*.toml).
    #[arg(long, global = true, env = "EPHOR_BROKER_POLICY_DIR")]
    pub policy_dir: Option<PathBuf>,
    /// Address of the HTTPS listener: agents, OAuth, lists.
    #[arg(long, global = true, env = "EPHOR_BROKER_HTTPS_LISTEN")]
    pub https_listen: Option<SocketAddr>,
    /// Address of the plain listener: status list, checkpoint, tiles.
    #[arg(long, global = true, env = "EPHOR_BROKER_HTTP_LISTEN")]
    pub http_listen: Option<SocketAddr>,
    /// Unix socket for root and the broker's own user.
    #[arg(long, global = true, env = "EPHOR_BROKER_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// Issuer URL in tokens; verifiers must reach discovery below it.
    #[arg(long, global = true, env = "EPHOR_BROKER_ISSUER")]
    pub issuer: Option<String>,
    /// Base URL of the plain listener as verifiers reach it.
    #[arg(long, global = true, env = "EPHOR_BROKER_LISTS_URL")]
    pub lists_url: Option<String>,
    /// DNS names and IP addresses in the server certificate, besides those of the listener.
    #[arg(
        long,
        global = true,
        env = "EPHOR_BROKER_SERVER_NAMES",
        value_delimiter = ','
    )]
    pub server_names: Option<Vec<String>>,
    /// File with the 32-byte master key, mode 0600.
    #[arg(long, global = true, env = "EPHOR_BROKER_MASTER_KEY_FILE")]
    pub master_key_file: Option<PathBuf>,
    /// Directory with the passwords of the broker's own logins at targets: files `target-NAME`.
    #[arg(long, global = true, env = "EPHOR_BROKER_TARGET_SECRETS_DIR")]
    pub target_secrets_dir: Option<PathBuf>,
    /// TCP ports that targets listen on; no connection is made to another.
    #[arg(
        long,
        global = true,
        env = "EPHOR_BROKER_TARGET_PORTS",
        value_delimiter = ','
    )]
    pub target_ports: Option<Vec<u16>>,
    /// How long a token key is used before the next one is.
    #[arg(long, global = true, env = "EPHOR_BROKER_TOKEN_KEY_ROTATION")]
    pub token_key_rotation: Option<Ttl>,
    /// How long a CA issues before the next one does; at most two thirds of its life.
    #[arg(long, global = true, env = "EPHOR_BROKER_CA_ROTATION")]
    pub ca_rotation: Option<Ttl>,
    /// How long a log key signs before the next one does; without it, until someone rotates it.
    #[arg(long, global = true, env = "EPHOR_BROKER_LOG_KEY_ROTATION")]
    pub log_key_rotation: Option<Ttl>,
    /// How long a token or log key is published before it is used.
    #[arg(long, global = true, env = "EPHOR_BROKER_KEY_LEAD")]
    pub key_lead: Option<Ttl>,
    /// How long a CA is trusted before it issues.
    #[arg(long, global = true, env = "EPHOR_BROKER_CA_LEAD")]
    pub ca_lead: Option<Ttl>,
    /// Loopback address for metrics, /healthz and /readyz; off unless set.
    #[arg(long, global = true, env = "EPHOR_BROKER_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Form of log lines on stderr.
    #[arg(long, global = true, env = "EPHOR_BROKER_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Take the database over from a broker that no longer runs.
    #[arg(
        long, global = true, env = "EPHOR_BROKER_TAKE_OVER",
        num_args = 0..=1, default_missing_value = "true", require_equals = true
    )]
    pub take_over: Option<bool>,
    /// The user to become when started as root.
    #[arg(long, global = true, env = "EPHOR_BROKER_USER")]
    pub user: Option<String>,
    /// How long what is over is kept; only in the file.
    #[arg(skip)]
    pub retention: Option<Keep>,
    /// Protections that are turned off, with the reasons; only in the file.
    #[arg(skip)]
    pub hardening_off: Option<Off>,
}

/// The settings in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the database and its keys.
    pub state_dir: PathBuf,
    /// Directory of policy files.
    pub policy_dir: PathBuf,
    /// Address of the HTTPS listener; port 0 takes any free one.
    pub https_listen: SocketAddr,
    /// Address of the plain listener; port 0 takes any free one.
    pub http_listen: SocketAddr,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// Issuer URL; `None`: made from the listener's address.
    pub issuer: Option<String>,
    /// Base URL of lists; `None`: made from the listener's address.
    pub lists_url: Option<String>,
    /// Additional names in the server certificate.
    pub server_names: Vec<String>,
    /// File of the master key; `None`: systemd credential, else `state_dir/master.key`.
    pub master_key_file: Option<PathBuf>,
    /// Directory of the files `target-NAME`; `None`: systemd credentials `ephor-target-NAME`.
    pub target_secrets_dir: Option<PathBuf>,
    /// TCP ports that may be connected to.
    pub target_ports: Vec<u16>,
    /// When keys follow each other.
    pub schedule: Schedule,
    /// Where metrics and health are told, if anywhere; always loopback.
    pub metrics_listen: Option<SocketAddr>,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Whether to take over the database's epoch.
    pub take_over: bool,
    /// The user to become when started as root.
    pub user: Option<String>,
    /// How long what is over is kept.
    pub retention: Retention,
    /// Protections that are turned off, with the reasons.
    pub hardening_off: Off,
}

/// What is wrong with the settings. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("invalid: cannot read the settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Larger than [`limits::CONFIG_FILE`].
    #[error("invalid: the settings file {} is larger than {} bytes", .0.display(), limits::CONFIG_FILE)]
    TooLarge(PathBuf),
    /// Not TOML, or an unknown or ill-typed key; the message names line and column.
    #[error("invalid: {}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A variable of ours that is no setting.
    #[error("invalid: {name}: there is no such setting{nearest}")]
    Variable {
        /// The variable's name.
        name: String,
        /// The nearest right one, in parentheses and with a question mark, if one is near.
        nearest: String,
    },
    /// A protection is turned off without a reason.
    #[error("invalid: {0}")]
    Reason(String),
    /// A value that is well-typed but wrong.
    #[error("invalid: {key} = {value:?}: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Refuses variables that look like settings and are none: a misspelt one must not look as if
/// it held. `known` are the names of all settings.
///
/// # Errors
/// [`ConfigError::Variable`] names the first of them.
pub fn check_variables(
    names: impl Iterator<Item = String>,
    known: &[&str],
) -> Result<(), ConfigError> {
    for name in names.filter(|name| name.starts_with(PREFIX)) {
        if name != NOT_A_SETTING && !known.contains(&name.as_str()) {
            let nearest = nearest(&name, known.iter().copied())
                .map(|right| format!(" ({right}?)"))
                .unwrap_or_default();
            let name = name.escape_debug().to_string();
            return Err(ConfigError::Variable { name, nearest });
        }
    }
    Ok(())
}

impl Config {
    /// Settings from `file` (or [`DEFAULT_FILE`] if it exists) under `over`, which holds
    /// flags and environment.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, key and value.
    pub fn load(file: Option<&Path>, over: Settings) -> Result<Self, ConfigError> {
        let base = match file {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
            None => Settings::default(),
        };
        Self::resolve(base, over)
    }

    fn resolve(base: Settings, over: Settings) -> Result<Self, ConfigError> {
        let path = |over: Option<PathBuf>, base: Option<PathBuf>, default: &str| {
            over.or(base).unwrap_or_else(|| PathBuf::from(default))
        };
        let config = Self {
            state_dir: path(over.state_dir, base.state_dir, DEFAULT_STATE_DIR),
            policy_dir: path(over.policy_dir, base.policy_dir, DEFAULT_POLICY_DIR),
            https_listen: address(
                "https_listen",
                over.https_listen.or(base.https_listen),
                DEFAULT_HTTPS,
            )?,
            http_listen: address(
                "http_listen",
                over.http_listen.or(base.http_listen),
                DEFAULT_HTTP,
            )?,
            admin_socket: path(over.admin_socket, base.admin_socket, DEFAULT_ADMIN_SOCKET),
            issuer: over.issuer.or(base.issuer),
            lists_url: over.lists_url.or(base.lists_url),
            server_names: over.server_names.or(base.server_names).unwrap_or_default(),
            master_key_file: over.master_key_file.or(base.master_key_file),
            target_secrets_dir: over.target_secrets_dir.or(base.target_secrets_dir),
            target_ports: (over.target_ports.or(base.target_ports))
                .unwrap_or_else(|| vec![ephor_proto::postgres::DEFAULT_PORT]),
            schedule: schedule(
                over.token_key_rotation.or(base.token_key_rotation),
                over.ca_rotation.or(base.ca_rotation),
                over.log_key_rotation.or(base.log_key_rotation),
                (
                    over.key_lead.or(base.key_lead),
                    over.ca_lead.or(base.ca_lead),
                ),
            )?,
            metrics_listen: over.metrics_listen.or(base.metrics_listen),
            log_format: over.log_format.or(base.log_format).unwrap_or_default(),
            take_over: over.take_over.or(base.take_over).unwrap_or(false),
            user: over.user.or(base.user),
            retention: Retention::of(base.retention).map_err(|(key, value, problem)| {
                ConfigError::Value {
                    key,
                    value,
                    problem,
                }
            })?,
            hardening_off: base.hardening_off.unwrap_or_default(),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if let Some(issuer) = &self.issuer {
            base_url("issuer", issuer, &["https"])?;
        }
        if let Some(lists_url) = &self.lists_url {
            base_url("lists_url", lists_url, &["http", "https"])?;
        }
        for name in &self.server_names {
            server_name(name)?;
        }
        self.hardening_off.check().map_err(ConfigError::Reason)?;
        if let Some(address) = self.metrics_listen.filter(|at| !at.ip().is_loopback()) {
            return Err(ConfigError::Value {
                key: "metrics_listen",
                value: address.to_string(),
                problem:
                    "not a loopback address; whoever reads it can tell how much goes on here, so \
                          let a proxy of yours decide who that is"
                        .to_owned(),
            });
        }
        if self.admin_socket.as_os_str().len() > limits::SOCKET_PATH {
            return Err(ConfigError::Value {
                key: "admin_socket",
                value: self.admin_socket.display().to_string(),
                problem: format!(
                    "longer than {} bytes, which the kernel cuts off",
                    limits::SOCKET_PATH
                ),
            });
        }
        Ok(())
    }

    /// The database file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("ephor.db")
    }

    /// The preallocated file that takes revocations when the disk is full.
    #[must_use]
    pub fn reserve(&self) -> PathBuf {
        self.state_dir.join("reserve")
    }

    /// The CA certificate in PEM, for those who verify our server certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.state_dir.join("ca.pem")
    }

    /// The CA of database logins in PEM, for the servers' `ssl_ca_file`.
    #[must_use]
    pub fn database_ca_file(&self) -> PathBuf {
        self.state_dir.join("database-ca.pem")
    }
}

/// What was given, in the place of the defaults.
fn schedule(
    token: Option<Ttl>,
    ca: Option<Ttl>,
    log: Option<Ttl>,
    (lead, ca_lead): (Option<Ttl>, Option<Ttl>),
) -> Result<Schedule, ConfigError> {
    let given = |key: &'static str, ttl: Option<Ttl>, default: u64, least: Ttl| match ttl {
        None => Ok(default),
        Some(ttl) if ttl >= least => Ok(ttl.as_seconds().saturating_mul(1000)),
        Some(ttl) => Err(ConfigError::Value {
            key,
            value: ttl.to_string(),
            problem: format!("must be {least} or more"),
        }),
    };
    let default = Schedule::default();
    let least = Ttl::from_seconds(limits::KEY_LEAD_LEAST_SECONDS);
    let lead = given("key_lead", lead, default.lead, least)?;
    let ca_lead = given("ca_lead", ca_lead, default.ca_lead, least)?;
    // A key that is followed before it was used has no life.
    let twice = |lead: u64| Ttl::from_seconds(lead.saturating_mul(2) / 1000);
    Ok(Schedule {
        lead,
        ca_lead,
        token: given("token_key_rotation", token, default.token, twice(lead))?,
        ca: given("ca_rotation", ca, default.ca, twice(ca_lead))?,
        log: match log {
            None => None,
            some => Some(given("log_key_rotation", some, 0, twice(lead))?),
        },
        database_lead: default.database_lead,
        database: default.database,
        log_overlap: default.log_overlap,
    })
}

fn read(path: &Path) -> Result<Settings, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limits::CONFIG_FILE + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > limits::CONFIG_FILE {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })
}

fn address(
    key: &'static str,
    given: Option<SocketAddr>,
    default: &str,
) -> Result<SocketAddr, ConfigError> {
    given.map_or_else(
        || {
            default.parse().map_err(|_| ConfigError::Value {
                key,
                value: default.to_owned(),
                problem: "not an address and port".to_owned(),
            })
        },
        Ok,
    )
}

/// An absolute URL without query, fragment, credentials or a slash at its end: it is
/// compared and extended as text (RFC 8414 §2, OIDC discovery §3).
fn base_url(key: &'static str, url: &str, schemes: &[&str]) -> Result<(), ConfigError> {
    let wrong = |problem: String| ConfigError::Value {
        key,
        value: url.to_owned(),
        problem,
    };
    let parsed: http::Uri = url.parse().map_err(|_| wrong("not a URL".to_owned()))?;
    if !parsed
        .scheme_str()
        .is_some_and(|scheme| schemes.contains(&scheme))
    {
        return Err(wrong(format!(
            "must begin with {}://",
            schemes.join(":// or ")
        )));
    }
    let host_alone = parsed
        .authority()
        .is_some_and(|authority| !authority.as_str().contains('@'));
    if !host_alone || url.contains(['?', '#']) || url.ends_with('/') {
        return Err(wrong(
            "must be scheme://host[:port][/path], without a slash at the end".to_owned(),
        ));
    }
    Ok(())
}

fn server_name(name: &str) -> Result<(), ConfigError> {
    rustls::pki_types::ServerName::try_from(name)
        .map(drop)
        .map_err(|_| ConfigError::Value {
            key: "server_names",
            value: name.to_owned(),
            problem: "neither a DNS name nor an IP address".to_owned(),
        })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../docs/broker.toml");

    fn resolve(base: &str) -> Result<Config, ConfigError> {
        Config::resolve(toml::from_str(base).unwrap(), Settings::default())
    }

    #[test]
    fn sample_names_every_key_once() {
        let uncommented: String = SAMPLE
            .lines()
            .map(|line| line.strip_prefix("#:").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let settings: Settings = toml::from_str(&uncommented).unwrap();
        // Debug shows every field: none may be left without an example.
        assert!(!format!("{settings:?}").contains("None"), "{settings:?}");
        assert!(Config::resolve(settings, Settings::default()).is_ok());
    }

    #[test]
    fn later_sources_win() {
        let base: Settings =
            toml::from_str("state_dir = '/a'\npolicy_dir = '/b'\ntake_over = true").unwrap();
        let over = Settings {
            state_dir: Some("/c".into()),
            take_over: Some(false),
            ..Settings::default()
        };
        let config = Config::resolve(base, over).unwrap();
        assert_eq!(config.state_dir, Path::new("/c"));
        assert_eq!(config.policy_dir, Path::new("/b"));
        assert!(!config.take_over);
        assert_eq!(config.https_listen, DEFAULT_HTTPS.parse().unwrap());
    }

    #[test]
    fn wrong_values_are_named() {
        for (text, wanted) in [
            ("issuer = 'http://a.example'", "https://"),
            ("issuer = 'https://a.example/'", "slash"),
            ("issuer = 'https://u@a.example'", "host"),
            ("issuer = 'a.example'", "https://"),
            ("lists_url = 'ftp://a.example'", "http://"),
            ("server_names = ['a b']", "DNS"),
            ("[hardening_off]\nlandlock = 'no'", "landlock"),
            ("[retention]\ndetail = '1d'", "2d or more"),
            ("[retention]\nlog = '89d'", "retention.detail (90d)"),
            ("key_lead = '2s'", "3s or more"),
            ("ca_lead = '1s'", "3s or more"),
            ("token_key_rotation = '10m'", "30m or more"),
            ("ca_rotation = '1d'", "2d or more"),
            ("log_key_rotation = '1m'", "30m or more"),
        ] {
            let error = resolve(text).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid: ") && error.contains(wanted),
                "{text}: {error}"
            );
        }
        let long = format!("admin_socket = '/{}'", "x".repeat(107));
        assert!(resolve(&long).unwrap_err().to_string().contains("107"));
    }

    #[test]
    fn unknown_variables_are_named() {
        let check = |name: &str| {
            let known = ["EPHOR_BROKER_STATE_DIR", "EPHOR_BROKER_CONFIG"];
            check_variables(std::iter::once(name.to_owned()), &known)
        };
        for fine in [
            "EPHOR_BROKER_STATE_DIR",
            "EPHOR_BROKER_URL",
            "EPHOR_LOG",
            "PATH",
        ] {
            assert!(check(fine).is_ok(), "{fine}");
        }
        assert_eq!(
            check("EPHOR_BROKER_STATEDIR").unwrap_err().to_string(),
            "invalid: EPHOR_BROKER_STATEDIR: there is no such setting (EPHOR_BROKER_STATE_DIR?)"
        );
        assert!(check("EPHOR_BROKER_").is_err());
    }

    #[test]
    fn unknown_and_ill_typed_keys_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("broker.toml");
        for text in [
            "\nstate_dirr = '/a'",
            "\nhttps_listen = 'everywhere'",
            "\ntake_over = 1",
            "=",
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Config::load(Some(&file), Settings::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("broker.toml") && error.contains("line "),
                "{text}: {error}"
            );
        }
        std::fs::write(&file, "#".repeat(70_000)).unwrap();
        assert!(matches!(
            Config::load(Some(&file), Settings::default()),
            Err(ConfigError::TooLarge(_))
        ));
        assert!(matches!(
            Config::load(Some(&dir.path().join("none")), Settings::default()),
            Err(ConfigError::Read { .. })
        ));
    }
}
