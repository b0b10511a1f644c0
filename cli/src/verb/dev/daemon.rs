//! A broker or agent of ours: this binary again, in a process group of its own so that ^C
//! reaches only us, and told to stop by the end of its standard input should we be killed.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::de::DeserializeOwned;

use super::layout;
use crate::exit::{CHECK_FAILED, CONFIG, Failure, UNREACHABLE, USAGE};
use crate::process::{Child, Command, Environment, Exit, SELF, Stdio};

/// Longest wait until one serves, or until `init` or `join` is done.
const READY_MAX: Duration = Duration::from_secs(20);
/// Between two looks at a ready file.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// From SIGTERM to SIGKILL.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How much of a log is shown when its process failed.
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 8;

/// What to start: `broker` or `agent`, with its arguments.
pub struct Plan<'a> {
    /// `broker` or `agent`.
    pub what: &'static str,
    /// Arguments after `__broker` or `__agent`.
    pub args: Vec<OsString>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Its signal mask.
    pub mask: &'a SigSet,
}

/// A running one; killed when dropped.
pub struct Daemon {
    what: &'static str,
    child: Child,
    log: PathBuf,
    /// Where its own part of the log begins.
    log_from: u64,
    /// Its end stops the daemon.
    _alive: OwnedFd,
    stopped: bool,
}

impl Plan<'_> {
    /// Runs it to its end, as `init` and `join`.
    ///
    /// # Errors
    /// When it fails or takes too long, with the end of its log.
    pub async fn complete(self) -> Result<(), Failure> {
        let mut daemon = self.start()?;
        match tokio::time::timeout(READY_MAX, daemon.child.wait()).await {
            Ok(Ok(Exit::Code(0))) => {
                daemon.stopped = true;
                Ok(())
            }
            Ok(exit) => {
                daemon.stopped = true;
                Err(daemon.failed(&exit.unwrap_or(Exit::Unknown), "failed"))
            }
            Err(_) => Err(daemon.late()),
        }
    }

    /// Starts it and reads its ready file once it serves.
    ///
    /// # Errors
    /// When it ends before or takes too long, with the end of its log.
    pub async fn serve<T: DeserializeOwned>(self, ready: &Path) -> Result<(Daemon, T), Failure> {
        let _ = std::fs::remove_file(ready);
        let mut daemon = self.start()?;
        let ready = tokio::select! {
            ready = tokio::time::timeout(READY_MAX, read_when_there(ready)) => Ok(ready),
            exit = daemon.child.wait() => Err(exit),
        };
        match ready {
            Ok(Ok(ready)) => Ok((daemon, ready?)),
            Ok(Err(_)) => Err(daemon.late()),
            Err(exit) => {
                daemon.stopped = true;
                Err(daemon.failed(&exit.unwrap_or(Exit::Unknown), "ended before it served"))
            }
        }
    }

    fn start(self) -> Result<Daemon, Failure> {
        let what = self.what;
        let failed =
            |why: &dyn std::fmt::Display| Failure::local(format!("cannot start the {what}"), why);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log);
        let log = log.map_err(|why| failed(&format!("{}: {why}", self.log.display())))?;
        let log_from = log.metadata().map_or(0, |known| known.len());
        let (stdin, alive) = pipe_with(PipeFlags::CLOEXEC).map_err(|why| failed(&why))?;
        let mut argv: Vec<OsString> = vec!["ephor".into(), format!("__{what}").into()];
        argv.extend(self.args);
        let command = Command {
            program: OsStr::new(SELF),
            argv: &argv,
            environment: &environment(),
            mask: *self.mask,
            stdio: Some(Stdio {
                stdin: stdin.as_fd(),
                stdout: log.as_fd(),
                stderr: log.as_fd(),
            }),
            own_group: true,
        };
        let child = command.spawn().map_err(|why| failed(&why.desc()))?;
        Ok(Daemon {
            what,
            child,
            log: self.log,
            log_from,
            _alive: alive,
            stopped: false,
        })
    }
}

/// Ours without settings meant for an installed daemon.
fn environment() -> Environment {
    let mut environment = Environment::inherited();
    for prefix in [
        // An administrator's password for `dev --pg`, among others.
        "PG",
        "EPHOR_BROKER_",
        "EPHOR_AGENT_",
        "CREDENTIALS_DIRECTORY",
        "NOTIFY_SOCKET",
    ] {
        environment.remove_prefix(prefix);
    }
    environment
}

impl Daemon {
    /// Waits until it has ended by itself; says so, with the end of its log.
    pub async fn died(&self) -> Failure {
        let _ = self.child.gone().await;
        let exit = self.child.wait().await.unwrap_or(Exit::Unknown);
        let log = self.end_of_log();
        Failure::unreachable(format!(
            "the {} ended unexpectedly ({exit}); {log}",
            self.what
        ))
    }

    /// Stops it cleanly, by force after a while.
    pub async fn stop(mut self) {
        self.child.signal(Signal::SIGTERM);
        if tokio::time::timeout(STOP_MAX, self.child.wait())
            .await
            .is_ok()
        {
            self.stopped = true;
        }
    }

    /// Without its path where that goes with us.
    fn end_of_log(&self) -> String {
        let tail = tail(&self.log, self.log_from);
        if self.log.parent().is_some_and(layout::is_temporary) {
            return format!("the end of its log:\n{tail}");
        }
        format!("the end of {}:\n{tail}", self.log.display())
    }

    fn late(&self) -> Failure {
        let seconds = READY_MAX.as_secs();
        let log = self.end_of_log();
        Failure::unreachable(format!(
            "the {} was not ready within {seconds} s; {log}",
            self.what
        ))
    }

    fn failed(&self, exit: &Exit, how: &str) -> Failure {
        let code = match exit {
            Exit::Code(code @ (USAGE | UNREACHABLE | CONFIG)) => *code,
            Exit::Code(_) | Exit::Signal(_) | Exit::Unknown => CHECK_FAILED,
        };
        let log = self.end_of_log();
        Failure::new(
            code,
            format!("invalid: the {} {how} ({exit}); {log}", self.what),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.stopped {
            self.child.kill_and_reap();
        }
    }
}

async fn read_when_there<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    loop {
        if let Ok(text) = std::fs::read(path) {
            let read = serde_json::from_slice(&text);
            return read
                .map_err(|why| Failure::local(format!("cannot read {}", path.display()), why));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn tail(path: &Path, from: u64) -> String {
    let Ok(mut file) = std::fs::File::open(path) else {
        return "(no log)".to_owned();
    };
    let length = file.metadata().map_or(0, |known| known.len());
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES).max(from)));
    let mut bytes = Vec::new();
    let _ = file.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}
