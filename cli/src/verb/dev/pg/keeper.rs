//! The process that takes back what `ephor dev --pg` made at a server, at its end by whatever cause,
//! also by `kill -9`: it waits for the end of a pipe whose other end only `dev` has.
//!
//! It is there before the first role is made, in a session of its own, with all signals blocked.
//! Should it be killed as well, the next start with that server finds the record of it.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::clean::clean;
use super::{login_file, password_file};
use crate::exit::{Failure, Outcome};
use crate::postgres::Target;
use crate::process::{Child, Command, Environment, SELF, Stdio};
use crate::show::to_stderr;
use crate::verb::dev::Layout;

/// Longest wait for it to be done; nothing depends on it afterwards.
const FINISH_MAX: Duration = Duration::from_secs(60);

/// What it must know. It goes by the pipe: a URL may hold a password.
#[derive(Serialize, Deserialize)]
struct Order {
    url: String,
    login: String,
    dir: PathBuf,
}

impl Drop for Order {
    fn drop(&mut self) {
        self.url.zeroize();
    }
}

/// The keeper, as seen by `ephor dev`. Dropped, it does the same without being waited for.
pub struct Keeper {
    process: Child,
    /// Its end tells the keeper to work, whether closed by us or by our death.
    alive: OwnedFd,
}

impl Keeper {
    /// Starts it for the login of `layout`, which is named now, and waits until it stands by.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(url: &str, layout: &Layout) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::local("cannot start the process that cleans up", why)
        };
        let order = Order {
            url: url.to_owned(),
            login: super::login_name(layout)?,
            dir: layout.dir().to_owned(),
        };
        let mut line = Zeroizing::new(serde_json::to_vec(&order).map_err(|why| failed(&why))?);
        line.push(b'\n');
        let (their_in, alive) = pipe_with(PipeFlags::CLOEXEC).map_err(|why| failed(&why))?;
        let (ready, their_out) = pipe_with(PipeFlags::CLOEXEC).map_err(|why| failed(&why))?;
        let argv = ["ephor", "__keep-pg"].map(OsString::from);
        let command = Command {
            program: OsStr::new(SELF),
            argv: &argv,
            environment: &Environment::inherited(),
            mask: SigSet::all(),
            stdio: Some(Stdio {
                stdin: their_in.as_fd(),
                stdout: their_out.as_fd(),
                stderr: rustix::stdio::stderr(),
            }),
            own_group: false,
        };
        let process = command.spawn().map_err(|why| failed(&why.desc()))?;
        drop((their_in, their_out));
        let mut alive = std::fs::File::from(alive);
        alive.write_all(&line).map_err(|why| failed(&why))?;
        let mut said = Vec::new();
        let read = std::fs::File::from(ready).read_to_end(&mut said);
        read.map_err(|why| failed(&why))?;
        if said.is_empty() {
            return Err(failed(&"it ended at once"));
        }
        let alive = alive.into();
        Ok(Self { process, alive })
    }

    /// Lets it work, and waits until it is done.
    pub async fn finish(self) {
        drop(self.alive);
        let _ = tokio::time::timeout(FINISH_MAX, self.process.wait()).await;
    }
}

/// `ephor __keep-pg`
pub async fn keeper_main() -> Outcome {
    let failed = |why: &dyn std::fmt::Display| Failure::local("the process that cleans up", why);
    // Started with every signal blocked; a session of its own keeps it from the terminal's end.
    let _ = rustix::process::setsid();
    let mut input = BufReader::new(std::io::stdin().lock());
    let mut line = Zeroizing::new(String::new());
    input.read_line(&mut line).map_err(|why| failed(&why))?;
    let order: Order = serde_json::from_str(&line).map_err(|why| failed(&why))?;
    let server = Target::of(&order.url)?;
    let told = std::io::stdout().write_all(b"ready\n");
    told.and_then(|()| std::io::stdout().flush())
        .map_err(|why| failed(&why))?;
    // Our standard output must end, so that `dev` sees the end of "ready".
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
    let null = null.map_err(|why| failed(&why))?;
    rustix::stdio::dup2_stdout(null).map_err(|why| failed(&why))?;
    let _ = std::io::copy(&mut input, &mut std::io::sink());
    match take_back(&server, &order.login, &order.dir).await {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(why) => {
            to_stderr(&format!("ephor: {why}\n"));
            Ok(ExitCode::from(why.code))
        }
    }
}

/// Removes a login and its password; then the record of it. Says whether it was at that server.
///
/// # Errors
/// What is left.
pub async fn take_back(server: &Target, login: &str, dir: &Path) -> Result<bool, Failure> {
    let _ = std::fs::remove_file(password_file(dir));
    let was_there = clean(server, login).await.map_err(|why| {
        Failure::new(
            why.code,
            format!(
                "{}\n       The role {login} is left at {}; it can do nothing without its password, which is gone.",
                why.message, server.address
            ),
        )
    })?;
    let _ = std::fs::remove_file(login_file(dir));
    Ok(was_there)
}
