//! The process that removes a task's files when `ephor run` cannot, because it was killed.
//!
//! It holds nothing but the path: it waits for the end of a pipe whose other end only `run`
//! has, in a session of its own with all signals blocked, and is ready before the first
//! secret is written.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::files::{self, Place};
use crate::exit::Failure;
use crate::process::{Child, Command, Environment, SELF, Stdio};

/// Longest wait for it to be done; nothing depends on it afterwards.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// The cleaner, as seen by `ephor run`.
pub struct Cleaner {
    process: Child,
    /// Its end tells the cleaner to work, whether closed by us or by our death.
    alive: OwnedFd,
}

impl Cleaner {
    /// Starts it and waits until it can no longer be hit by accident.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(place: &Place) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::local("cannot start the process that cleans up", why)
        };
        let (their_in, alive) = pipe_with(PipeFlags::CLOEXEC).map_err(|why| failed(&why))?;
        let (ready, their_out) = pipe_with(PipeFlags::CLOEXEC).map_err(|why| failed(&why))?;
        let null = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map_err(|why| failed(&why))?;
        let argv = [
            "ephor".into(),
            "__clean".into(),
            place.path().into_os_string(),
        ] as [OsString; 3];
        let command = Command {
            program: OsStr::new(SELF),
            argv: &argv,
            environment: &Environment::empty(),
            mask: SigSet::all(),
            stdio: Some(Stdio {
                stdin: their_in.as_fd(),
                stdout: their_out.as_fd(),
                stderr: null.as_fd(),
            }),
            own_group: false,
        };
        let process = command.spawn().map_err(|why| failed(&why.desc()))?;
        drop((their_in, their_out));
        let mut said = Vec::new();
        std::fs::File::from(ready)
            .read_to_end(&mut said)
            .map_err(|why| failed(&why))?;
        if said.is_empty() {
            return Err(failed(&"it ended at once"));
        }
        Ok(Self { process, alive })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Lets it work, and waits for it a little.
    pub async fn finish(self) {
        drop(self.alive);
        let _ = tokio::time::timeout(FINISH_MAX, self.process.gone()).await;
    }
}

/// `ephor __clean DIR`
pub fn cleaner_main(dir: &Path) -> ExitCode {
    // Started with every signal blocked; a session of its own keeps it from the terminal's end.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    let told = std::io::stdout()
        .write_all(b"ready\n")
        .and_then(|()| std::io::stdout().flush());
    // Our standard output must end, so that `run` sees the end of "ready".
    let closed = std::fs::OpenOptions::new().write(true).open("/dev/null");
    if let (Ok(()), Ok(null)) = (told, closed) {
        let _ = rustix::stdio::dup2_stdout(null);
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    }
    files::remove(dir);
    ExitCode::SUCCESS
}
