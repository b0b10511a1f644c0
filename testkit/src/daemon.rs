//! One process under test: started with a log file, killed or stopped by its own pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How long a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a start came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It serves.
    Ready,
    /// It ended before that.
    Ended(ExitStatus),
}

/// See the module. Killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; its output is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until it is ready or has ended.
    ///
    /// # Errors
    /// With the end of its log, when neither comes in time.
    pub fn wait_started(&mut self, ready: impl Fn() -> bool) -> anyhow::Result<Started> {
        let child = &mut self.child;
        let started = wait::until("a daemon is ready", PATIENCE, || match child.try_wait() {
            _ if ready() => Some(Started::Ready),
            Ok(Some(status)) => Some(Started::Ended(status)),
            Ok(None) | Err(_) => None,
        });
        started.with_context(|| self.tail())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// `kill -9`, and waits for it to be gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(Pid::from_raw)
            .context("pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Whether all its threads are stopped by a signal, state `T` of proc_pid_stat(5). The signal
    /// has been sent before the last of them has noticed.
    #[must_use]
    pub fn is_still(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid())) else {
            return false;
        };
        let mut states = threads.filter_map(|thread| {
            let stat = std::fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
            // The name before may hold blanks and parentheses; the last one closes it.
            Some(stat.rsplit_once(')')?.1.trim_start().starts_with('T'))
        });
        states.all(|stopped| stopped)
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// When it does not end in time, or not with 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let child = &mut self.child;
        let status = wait::until("a daemon stops", PATIENCE, || {
            child.try_wait().ok().flatten()
        })?;
        anyhow::ensure!(status.success(), "{status}; {}", self.tail());
        Ok(())
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(25).collect();
        format!(
            "{}:\n{}",
            self.log.display(),
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
