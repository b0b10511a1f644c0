//! Telling the command that files were rewritten: many servers read their certificate once.
//!
//! One reload command at a time: what is rewritten while it runs is told to the next one. None
//! outlives the task.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::Pid;

use crate::args;
use crate::exit::Failure;
use crate::process::{Child, Command, Environment};
use crate::show::to_stderr;

/// What to do when files were rewritten.
#[derive(Debug, Default)]
pub struct Reload {
    signal: Option<Signal>,
    command: Option<OsString>,
    /// Borrowed within one call, never across an await.
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Child>,
    /// Names of what was rewritten since the last one was started.
    waiting: BTreeSet<String>,
    files: Vec<(String, PathBuf)>,
}

impl Reload {
    /// As the command line asks.
    ///
    /// # Errors
    /// A name that is no signal.
    pub fn parse(args: &args::Run) -> Result<Self, Failure> {
        let signal = args.reload_signal.as_deref().map(signal).transpose()?;
        Ok(Self {
            signal,
            command: args.reload_command.clone(),
            state: RefCell::default(),
        })
    }

    /// Files of `names` were rewritten; `files` are all that the command was given, by name.
    pub fn tell(&self, command: &Child, names: &[String], files: &[(String, PathBuf)]) {
        if names.is_empty() {
            return;
        }
        if let Some(signal) = self.signal {
            command.signal(signal);
        }
        {
            let mut state = self.state.borrow_mut();
            state.waiting.extend(names.iter().cloned());
            files.clone_into(&mut state.files);
        }
        self.go_on();
    }

    /// Starts the next reload command, if there is something to tell and the last one has ended.
    pub fn go_on(&self) {
        let Some(line) = &self.command else { return };
        let mut state = self.state.borrow_mut();
        if state.running.as_ref().is_some_and(Child::is_running) {
            return;
        }
        state.running = None;
        let names: Vec<_> = std::mem::take(&mut state.waiting).into_iter().collect();
        if !names.is_empty() {
            state.running = start(line, &names.join(" "), &state.files);
        }
    }

    /// The reload command that runs, which is none of the command's descendants.
    pub fn pid(&self) -> Option<Pid> {
        let state = self.state.borrow();
        let running = state.running.as_ref().filter(|child| child.is_running());
        running.map(Child::pid)
    }

    /// Ends the reload command that runs.
    pub fn end(&self) {
        if let Some(running) = self.state.borrow_mut().running.take() {
            running.kill_group_and_reap();
        }
    }
}

/// `HUP`, `SIGHUP` or `hup`.
fn signal(name: &str) -> Result<Signal, Failure> {
    let upper = name.to_ascii_uppercase();
    let whole = match upper.strip_prefix("SIG") {
        Some(_) => upper,
        None => format!("SIG{upper}"),
    };
    whole.parse().map_err(|_| {
        Failure::usage(format!(
            "--reload-signal: `{name}` is no signal, such as HUP or USR1."
        ))
    })
}

/// Runs beside the command; whoever reaps orphans here reaps it.
fn start(line: &OsStr, names: &str, files: &[(String, PathBuf)]) -> Option<Child> {
    let mut environment = Environment::inherited();
    for (name, path) in files {
        environment.set(name, path.as_os_str().as_bytes());
    }
    environment.set("EPHOR_RENEWED", names.as_bytes());
    let argv = [OsString::from("sh"), OsString::from("-c"), line.to_owned()];
    let command = Command {
        program: OsStr::new("/bin/sh"),
        argv: &argv,
        environment: &environment,
        mask: SigSet::empty(),
        stdio: None,
        // So that all it started can be ended with it.
        own_group: true,
    };
    let started = command.spawn().inspect_err(|why| {
        to_stderr(&format!(
            "ephor: invalid: the reload command cannot be run: {}.\n",
            why.desc()
        ));
    });
    started.ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::clock;
    use std::io::Read;
    use std::time::Duration;

    /// Waits until the file at `path` says `what`.
    async fn says(path: &std::path::Path, what: &str) {
        let deadline = clock::wall().saturating_add_millis(10_000);
        while std::fs::read_to_string(path).is_ok_and(|text| text != what) || !path.exists() {
            assert!(
                clock::wall() < deadline,
                "{:?}",
                std::fs::read_to_string(path)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn one_at_a_time_and_none_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let [told, may_end, fifo] = ["told", "may-end", "fifo"].map(|name| dir.path().join(name));
        let line = format!(
            "cd '{}'; echo $EPHOR_RENEWED >>told; [ ! -e fifo ] || exec 9>fifo; until [ -e may-end ]; do sleep 0.01; done",
            dir.path().display()
        );
        let reload = Reload {
            command: Some(line.into()),
            ..Reload::default()
        };
        let cat = OsString::from("cat");
        let (input, _other) = std::io::pipe().unwrap();
        let environment = Environment::inherited();
        let command = Command {
            program: &cat,
            argv: std::slice::from_ref(&cat),
            environment: &environment,
            mask: SigSet::empty(),
            stdio: Some(crate::process::Stdio {
                stdin: std::os::fd::AsFd::as_fd(&input),
                stdout: std::os::fd::AsFd::as_fd(&input),
                stderr: std::os::fd::AsFd::as_fd(&input),
            }),
            own_group: true,
        };
        let command = command.spawn().unwrap();
        for name in ["A", "B", "C", "B"] {
            reload.tell(&command, &[name.to_owned()], &[]);
        }
        says(&told, "A\n").await;
        let first = reload.pid().unwrap();
        reload.go_on();
        assert_eq!(reload.pid(), Some(first));
        std::fs::write(&may_end, "").unwrap();
        let ended = reload.state.borrow_mut().running.take().unwrap();
        ended.wait().await.unwrap();
        std::fs::remove_file(&may_end).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        reload.go_on();
        says(&told, "A\nB C\n").await;
        let (ended, end) = std::sync::mpsc::sync_channel(1);
        let mut held = std::fs::File::open(&fifo).unwrap();
        std::thread::spawn(move || ended.send(held.read(&mut [0]).unwrap()));
        reload.end();
        assert_eq!(reload.pid(), None);
        // All that held its other end are gone.
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(0));
        command.kill_and_reap();
    }

    #[test]
    fn signals_by_any_of_their_names() {
        for name in ["HUP", "SIGHUP", "hup"] {
            assert_eq!(signal(name).unwrap(), Signal::SIGHUP);
        }
        for name in ["", "SIG", "1", "HUPP"] {
            assert!(
                signal(name).unwrap_err().message.contains("no signal"),
                "{name}"
            );
        }
    }
}
