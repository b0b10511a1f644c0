//! The daemons as their sockets show them, and what they say of themselves.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use ephor_agent::config::{Config, Partial};
use ephor_agent::uplink::identity::Identity;
use ephor_broker::config::Settings;
use ephor_proto::http::admin::Status;
use ephor_proto::http::agent::Whoami;
use ephor_proto::time::UnixMillis;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::daemon::Daemon;
use super::{Check, State, confined};
use crate::client::Peer;
use crate::clock;
use crate::show::moment;

/// A disk with less than this free is said to be nearly full, in bytes.
const DISK_LOW: u64 = 64 << 20;

/// A daemon that answers on its socket.
pub(super) struct Seen {
    peer: Peer,
    path: PathBuf,
    pub(super) daemon: Option<Daemon>,
}

impl Seen {
    pub(super) fn agent() -> Result<Self, Check> {
        Self::at(Peer::agent(), "agent", "ephor-agent").map_err(|check| {
            check.advise("start it (scripts/start agent), or name its socket in EPHOR_SOCKET")
        })
    }

    pub(super) fn broker() -> Result<Self, Check> {
        Self::at(Peer::broker(), "broker", "ephor-broker")
    }

    fn at(peer: Peer, of: &'static str, name: &str) -> Result<Self, Check> {
        let path = peer.path().to_owned();
        let stream = UnixStream::connect(&path).map_err(|why| {
            let found = format!("{}: {why}", path.display());
            Check::new(of, "socket", State::Wrong, found)
        })?;
        let pid = rustix::net::sockopt::socket_peercred(&stream)
            .ok()
            .and_then(|credentials| u32::try_from(credentials.pid.as_raw_nonzero().get()).ok());
        let owner = std::fs::metadata(&path).map(|socket| socket.uid()).ok();
        let daemon = pid.and_then(|pid| Daemon::find(pid, name, owner?));
        Ok(Self { peer, path, daemon })
    }

    /// The socket's directory is such that nobody else can listen in its place.
    fn socket(&self, of: &'static str, mode: u32) -> Check {
        let name = "socket";
        // Through a link, as who connects would.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let (socket, dir) = (
            std::fs::metadata(&path),
            path.parent().map(std::fs::metadata),
        );
        let (Ok(socket), Some(Ok(dir))) = (socket, dir) else {
            return Check::new(of, name, State::Unknown, "its directory cannot be read");
        };
        let owner = self.daemon.as_ref().and_then(Daemon::uid);
        let ours = |uid| uid == 0 || Some(uid) == owner;
        let is_wide = socket.mode() & 0o777 & !mode != 0;
        let shared = dir.mode() & 0o022 != 0;
        let found = format!(
            "{} mode {:04o} of uid {}, in a directory {:04o} of uid {}",
            path.display(),
            socket.mode() & 0o7777,
            socket.uid(),
            dir.mode() & 0o7777,
            dir.uid()
        );
        let holds = socket.file_type().is_socket()
            && !is_wide
            && !shared
            && ours(socket.uid())
            && ours(dir.uid());
        let advice = "another user could listen there, or connect who should not; \
                      scripts/make-directories sets them";
        Check::that(holds, (of, name), found, (State::Wrong, advice))
    }

    fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    fn process(&self, of: &'static str) -> Vec<Check> {
        match &self.daemon {
            Some(daemon) => daemon.checks(of),
            None => vec![
                Check::new(of, "process", State::Unknown, "it cannot be seen from here")
                    .advise("run doctor in the host's own PID namespace"),
            ],
        }
    }
}

/// Everything about the agent.
pub(super) async fn agent_checks(seen: &Result<Seen, Check>, settings: &Path) -> Vec<Check> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(absent) => return vec![again(absent)],
    };
    let mut checks = vec![seen.socket("agent", 0o666)];
    checks.extend(seen.process("agent"));
    checks.push(reaches_broker(seen).await);
    // `EPHOR_AGENT_*` is for the agent's own environment, which is not this one.
    match Config::load(
        Some(settings).filter(|path| path.exists()),
        std::iter::empty(),
        Partial::default(),
    ) {
        Ok(config) => {
            checks.extend(confined::checks("agent", &config.state_dir, seen.pid()));
            checks.push(identity(&config.state_dir));
            checks.extend(disk("agent", &config.state_dir));
        }
        Err(error) => checks.push(Check::new(
            "agent",
            "settings",
            State::Wrong,
            error.to_string(),
        )),
    }
    checks
}

/// Asked through the agent, as any caller would: the answer came from the broker.
async fn reaches_broker(seen: &Seen) -> Check {
    let name = "reaches broker";
    match seen.peer.read::<Whoami>("/v1/whoami").await {
        Ok(known) => Check::new(
            "agent",
            name,
            State::Ok,
            format!("host {} of {}", known.host, known.trust_domain),
        ),
        Err(failure) => Check::new("agent", name, State::Wrong, failure.message)
            .advise("what is in memory is served on; the agent's log says why the link is down"),
    }
}

/// The certificate that the agent proves itself with.
fn identity(state_dir: &Path) -> Check {
    let name = "certificate";
    let file = state_dir.join("identity.pem");
    if let Err(error) = std::fs::File::open(&file) {
        let found = format!("{}: {error}", file.display());
        let advice = match error.kind() {
            std::io::ErrorKind::NotFound => "name the agent's settings: --agent-config FILE",
            _ => "run doctor as root",
        };
        return Check::new("agent", name, State::Unknown, found).advise(advice);
    }
    // The file holds the key, too.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        return Check::new("agent", name, State::Unknown, format!("not read: {error}"));
    }
    match Identity::load(state_dir) {
        Ok(identity) => {
            let end = u64::try_from(identity.leaf.not_after).unwrap_or(0);
            let (end, now) = (UnixMillis::from_unix_seconds(end), clock::wall());
            let found = format!("good until {}", moment(end, now));
            let advice = "the agent renews it at 2/3 of its life when it reaches the broker; \
                          else join this host again";
            Check::that(now < end, ("agent", name), found, (State::Wrong, advice))
        }
        Err(error) => Check::new("agent", name, State::Wrong, error.to_string()),
    }
}

fn disk(of: &'static str, dir: &Path) -> Option<Check> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} MiB free at {}", free >> 20, dir.display());
    let advice = "a full disk stops everything new; make room";
    Some(Check::that(
        free >= DISK_LOW,
        (of, "disk"),
        found,
        (State::Wrong, advice),
    ))
}

/// Everything about a broker on this host, if there is one.
pub(super) async fn broker_checks(
    seen: &Result<Seen, Check>,
    agent: &Result<Seen, Check>,
    settings: &Path,
) -> Vec<Check> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(absent) if !Peer::broker().path().exists() => {
            return vec![Check::new(
                "broker",
                absent.name,
                State::Unknown,
                "none on this host",
            )];
        }
        // Mode 0600: it is there, and not for this user.
        Err(absent) => {
            let check = again(absent);
            let may_ask = rustix::process::geteuid().is_root();
            let state = if may_ask {
                State::Wrong
            } else {
                State::Unknown
            };
            return vec![Check { state, ..check }.advise("run doctor as root")];
        }
    };
    let mut checks = vec![seen.socket("broker", 0o600)];
    checks.extend(seen.process("broker"));
    let uid = |seen: &Seen| seen.daemon.as_ref().and_then(Daemon::uid);
    if let (Some(broker), Some(agent)) = (uid(seen), agent.as_ref().ok().and_then(uid)) {
        checks.push(Check::that(
            broker != agent,
            ("broker", "own user"),
            format!("broker uid {broker}, agent uid {agent}"),
            (
                State::Weak,
                "each can read what the other keeps: scripts/install makes two users",
            ),
        ));
    }
    let named = Some(settings).filter(|path| path.exists());
    match ephor_broker::config::Config::load(named, Settings::default()) {
        Ok(config) => {
            checks.extend(confined::checks("broker", &config.state_dir, seen.pid()));
            checks.extend(disk("broker", &config.state_dir));
        }
        Err(error) => {
            let wrong = Check::new("broker", "settings", State::Wrong, error.to_string());
            checks.push(wrong);
        }
    }
    match seen.peer.read::<Status>("/v1/status").await {
        Ok(status) => checks.extend(says(&status)),
        Err(failure) => {
            checks.push(Check::new(
                "broker",
                "answers",
                State::Wrong,
                failure.message,
            ));
        }
    }
    checks
}

/// What the broker says of itself.
fn says(status: &Status) -> [Check; 3] {
    let because = status.stopped_because.as_deref().unwrap_or("issuing");
    let policy = status.policy_version.get(..4).unwrap_or_default();
    [
        Check::that(
            status.issuing,
            ("broker", "issues"),
            because,
            (
                State::Wrong,
                "nothing new is issued until this is mended; revoking goes on",
            ),
        ),
        Check::new(
            "broker",
            "policy",
            State::Ok,
            format!("version {policy} in force"),
        ),
        Check::that(
            status.quarantined == 0,
            ("broker", "store"),
            format!(
                "{} rows set aside, {} leaves",
                status.quarantined, status.log_size
            ),
            (
                State::Wrong,
                "rows that could not be read were set aside; the log names them",
            ),
        ),
    ]
}

fn again(check: &Check) -> Check {
    Check {
        of: check.of,
        name: check.name,
        state: check.state,
        found: check.found.clone(),
        advice: check.advice.clone(),
    }
}
