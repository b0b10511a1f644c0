//! Waiting for the command, and with `--wait-tree` for all that descends from it. Orphans
//! come to this process, which is their reaper.

use std::collections::HashSet;

use nix::sys::signal::Signal;
use rustix::process::{Pid, WaitOptions, getpid};

use super::keep::Keeper;
use super::reload::Reload;
use crate::exit::Failure;
use crate::process::{Child, Exit};
use crate::signals::{Caught, Signals};

/// Waits; signals that somebody sent to us alone are passed on.
///
/// # Errors
/// When signals can no longer be read.
pub async fn supervise(
    command: &Child,
    cleaner: Option<Pid>,
    signals: &Signals,
    keeper: &mut Keeper<'_>,
    reload: &Reload,
    wait_tree: bool,
) -> Result<Exit, Failure> {
    let mut tree = Tree {
        command: command.pid(),
        cleaner,
        reload,
        wait_tree,
        exit: None,
    };
    let watching = async {
        loop {
            let caught = signals
                .next()
                .await
                .map_err(|why| Failure::local("cannot read signals", why))?;
            if caught.signal == Signal::SIGCHLD {
                tree.reap();
                if let Some(exit) = tree.done() {
                    return Ok(exit);
                }
                reload.go_on();
            } else {
                tree.pass_on(caught);
            }
        }
    };
    tokio::select! {
        exit = watching => exit,
        never = keeper.keep() => match never {},
    }
}

struct Tree<'a> {
    command: Pid,
    cleaner: Option<Pid>,
    reload: &'a Reload,
    wait_tree: bool,
    exit: Option<Exit>,
}

impl Tree<'_> {
    /// Takes the status of every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.command {
                self.exit = Some(Exit::from_status(
                    status.exit_status(),
                    status.terminating_signal(),
                ));
            }
        }
    }

    fn done(&self) -> Option<Exit> {
        let exit = self.exit?;
        (!self.wait_tree || self.others().is_empty()).then_some(exit)
    }

    fn others(&self) -> HashSet<Pid> {
        let mut children = children();
        for own in [self.cleaner, self.reload.pid()].into_iter().flatten() {
            children.remove(&own);
        }
        children
    }

    fn pass_on(&self, caught: Caught) {
        if caught.to_group {
            return;
        }
        let targets = match self.exit {
            None => HashSet::from([self.command]),
            Some(_) => self.others(),
        };
        for pid in targets {
            // A child of ours keeps its pid until we reap it, so this hits no stranger.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get()),
                caught.signal,
            );
        }
    }
}

/// Our children that have not been reaped, from `/proc/PID/stat` (proc(5)).
fn children() -> HashSet<Pid> {
    let own = getpid().as_raw_nonzero().get();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return HashSet::new();
    };
    let numbers =
        processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|pid| parent(*pid) == Some(own))
        .filter_map(Pid::from_raw)
        .collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold blanks and parentheses; the last one closes it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen_until_it_is_reaped() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        assert!(children().contains(&pid));
        assert_eq!(
            parent(i32::try_from(child.id()).unwrap()),
            Some(getpid().as_raw_nonzero().get())
        );
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!children().contains(&pid));
    }
}
