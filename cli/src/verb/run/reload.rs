//! Telling the command that files were rewritten: many servers read their certificate once.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};

use crate::args;
use crate::exit::Failure;
use crate::process::{Child, Command, Environment};
use crate::show::to_stderr;

/// What to do when files were rewritten.
#[derive(Debug, Clone, Default)]
pub struct Reload {
    signal: Option<Signal>,
    command: Option<OsString>,
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
        if let Some(line) = &self.command {
            start(line, &names.join(" "), files);
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
fn start(line: &OsStr, names: &str, files: &[(String, PathBuf)]) {
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
        own_group: false,
    };
    if let Err(why) = command.spawn() {
        to_stderr(&format!(
            "ephor: invalid: the reload command cannot be run: {}.\n",
            why.desc()
        ));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
