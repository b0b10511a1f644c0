//! The server's process, and its end whatever happens to us.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;
use crate::wait;

/// Waits for our end of a pipe to close, then ends the server it started, by its own pid, and removes its
/// directory: also when this process was killed, or keeps its server in a static. Unless it was
/// told to keep it, for another start.
const GUARD: &str = r#"dir=$1; shift; "$@" & pid=$!; read -r keep
kill -QUIT "$pid" 2>/dev/null; wait "$pid"; cd /; [ "$keep" = keep ] || rm -rf "$dir""#;

/// A running server, or none.
pub(super) struct Server(Option<Child>);

impl Server {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn start(command: &Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let mut guard = Command::new("sh");
        let dir = log.parent().context("the log's directory")?;
        guard.args(["-c", GUARD, "sh"]).arg(dir);
        guard.arg(command.get_program());
        guard.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => guard.env(name, value),
                None => guard.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            let owner = std::fs::metadata(dir)?;
            use std::os::unix::fs::MetadataExt;
            if rustix::process::geteuid().is_root() {
                guard.uid(owner.uid()).gid(owner.gid());
            }
            guard.current_dir(dir);
        }
        guard
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out);
        // Ctrl-C at a terminal ends the tests first, and the server by the pipe.
        guard.process_group(0);
        Ok(Self(Some(guard.spawn().context("starting PostgreSQL")?)))
    }

    /// Signals the server itself and waits until it and its guard are gone.
    pub(super) fn end(&mut self, pid: Option<i32>, signal: Signal) -> anyhow::Result<()> {
        let Some(mut guard) = self.0.take() else {
            return Ok(());
        };
        let pid = pid.and_then(Pid::from_raw).context("no postmaster.pid")?;
        kill_process(pid, signal)?;
        wait::until("PostgreSQL ends", PATIENCE, || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            // A zombie until the guard has waited for it.
            stat.map_or(true, |text| {
                text.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('Z'))
            })
            .then_some(())
        })?;
        if let Some(mut pipe) = guard.stdin.take() {
            pipe.write_all(b"keep\n")?;
        }
        guard.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut guard) = self.0.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}
