//! The process that takes back what `ephor dev --pg` made at a server, at its end by whatever cause,
//! also by `kill -9`: it waits for the end of a pipe whose other end only `dev` has.
//!
//! It is there before the first role is made, in a session of its own, with all signals blocked, and is
//! told before that. Not told, it does and says nothing: then nothing is there. Should it be killed as
//! well, the next start with that server finds the record of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::clean::clean;
use super::{SECRET_FILE, login_file, recorded};
use crate::exit::{Failure, Outcome};
use crate::postgres::Target;
use crate::process::{Child, Command, Environment, SELF, Stdio};
use crate::show::to_stderr;
use crate::verb::dev::Layout;
use crate::verb::dev::layout::is_temporary;
use crate::words::shell_quoted;

/// Says that the login may be at its server. It stays in the pipe, whatever becomes of `dev`.
const TOLD: &[u8] = b"made\n";
/// Longest wait for it to be done; nothing depends on it afterwards.
const FINISH_MAX: Duration = Duration::from_secs(60);

/// What it must know. It goes by the pipe: a URL may hold a password.
#[derive(Serialize, Deserialize)]
struct Order {
    url: String,
    login: String,
    dir: PathBuf,
    password: PathBuf,
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
    alive: File,
    login: String,
}

impl Keeper {
    /// Starts it for `login`, the one of `layout`, and waits until it stands by.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(url: &str, login: &str, layout: &Layout) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::local("cannot start the process that cleans up", why)
        };
        let order = Order {
            url: url.to_owned(),
            login: login.to_owned(),
            dir: layout.dir().to_owned(),
            password: layout.target_secrets().join(SECRET_FILE),
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
        let mut alive = File::from(alive);
        alive.write_all(&line).map_err(|why| failed(&why))?;
        let mut said = Vec::new();
        let read = File::from(ready).read_to_end(&mut said);
        read.map_err(|why| failed(&why))?;
        if said.is_empty() {
            return Err(failed(&"it ended at once"));
        }
        let keeper = Self {
            process,
            alive,
            login: login.to_owned(),
        };
        // One that an earlier start left in this directory may be there from the beginning.
        if recorded(layout.dir()).is_some() {
            keeper.tell().map_err(|why| failed(&why))?;
        }
        Ok(keeper)
    }

    /// From now on the login may be at its server: the keeper is told, then the record is written.
    ///
    /// # Errors
    /// When either cannot be done; then nothing may be made.
    pub fn may_be_there(&self, layout: &Layout) -> Result<(), Failure> {
        let told = self.tell();
        told.map_err(|why| Failure::local("cannot tell the process that cleans up", why))?;
        layout.write(&login_file(layout.dir()), &self.login)
    }

    fn tell(&self) -> std::io::Result<()> {
        (&self.alive).write_all(TOLD)
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
    let told = std::io::copy(&mut input, &mut std::io::sink());
    if matches!(told, Ok(0)) {
        return Ok(ExitCode::SUCCESS);
    }
    let _ = std::fs::remove_file(&order.password);
    match take_back(&server, &order.login, &order.dir).await {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(why) => {
            to_stderr(&format!("ephor: {why}\n"));
            Ok(ExitCode::from(why.code))
        }
    }
}

/// Removes a login; then the record of it. Says whether it was at that server.
///
/// # Errors
/// What is left.
pub async fn take_back(server: &Target, login: &str, dir: &Path) -> Result<bool, Failure> {
    let was_there = clean(server, login).await.map_err(|why| {
        let place = match is_temporary(dir) {
            true => String::new(),
            false => format!(" and --dir {}", shell_quoted(&dir.display().to_string())),
        };
        let left = format!(
            "The role {login} may be left at {}, and logins that it made, which are let in until they expire.\n       \
             The next `ephor dev --pg` with this server{place} removes them.",
            server.address
        );
        Failure::new(why.code, format!("{}\n       {left}", why.message))
    })?;
    let _ = std::fs::remove_file(login_file(dir));
    Ok(was_there)
}
