//! Tasks of an earlier run of the agent: adopted when they are provably still the same,
//! ended otherwise.

use std::os::fd::OwnedFd;

use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule::TaskKey;

use super::handle::Entry;
use super::table::Watched;
use super::{Ended, TaskTable};
use crate::attest::{Exe, HeldProcess, is_running};
use crate::journal::{ProcessHandle, Record, TaskOpened, Unfinished, Written};

/// What became of the tasks of an earlier run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Open again, under their old ids.
    pub adopted: usize,
    /// Ended while the agent was away, or before and not told yet; queued as ends.
    pub ended: usize,
}

impl TaskTable {
    /// Takes over what the journal left unfinished. Call it once, before the first heartbeat:
    /// what is not adopted by then is completed by the broker.
    pub fn adopt(&self, unfinished: Vec<Unfinished>) -> Adoption {
        let (mut adoption, mut ends) = (Adoption::default(), Vec::new());
        for Unfinished { opened, ended } in unfinished {
            let found = if ended.is_none() {
                self.found(&opened)
            } else {
                None
            };
            if let Some(pidfds) = found {
                let handle = {
                    let mut state = self.lock();
                    let seq = state.seq();
                    state.insert(Entry::new(opened, seq, Written::already()))
                };
                self.watch(&handle, Watched { pidfds });
                adoption.adopted += 1;
                continue;
            }
            let cause = ended.unwrap_or(EndCause::Exited);
            self.lock().ended_before(opened.id, &opened.key, cause);
            if ended.is_none() {
                self.note(Record::TaskEnding {
                    id: opened.id,
                    cause,
                });
            }
            ends.push(Ended {
                task: opened.id,
                cause,
            });
        }
        adoption.ended = ends.len();
        let table = self.clone();
        self.0.tasks.spawn("complete.adopt", async move {
            for ended in ends {
                let _ = table.0.ends.send(ended).await;
            }
        });
        adoption
    }

    /// The pidfds to watch, if the task is provably still there.
    pub(super) fn found(&self, opened: &TaskOpened) -> Option<Vec<OwnedFd>> {
        if opened.boot_id != self.0.boot_id {
            return None;
        }
        let watches_unit = match (&opened.unit, &opened.key) {
            (Some(at), TaskKey::Unit(unit)) => {
                if !is_running(unit, &at.directory, at.inode) {
                    return None;
                }
                at.has_events
            }
            (
                Some(_) | None,
                TaskKey::Run(_) | TaskKey::Unit(_) | TaskKey::Ancestor(_) | TaskKey::Peer(_),
            ) => false,
        };
        if watches_unit {
            return Some(Vec::new());
        }
        let pidfds: Option<Vec<OwnedFd>> = opened.processes.iter().map(same_process).collect();
        pidfds.filter(|pidfds| !pidfds.is_empty())
    }
}

/// Holds a process if it is the one that was noted: the pid alone may be another's by now.
fn same_process(noted: &ProcessHandle) -> Option<OwnedFd> {
    let held = HeldProcess::hold(noted.process.pid).ok()?;
    let exe = Exe::file_of(&held).ok()?;
    let same_exe = match (noted.exe, exe) {
        (Some(noted), Some(now)) => noted.dev == now.dev && noted.ino == now.ino,
        (Some(_), None) => false,
        (None, Some(_) | None) => true,
    };
    if held.id() != noted.process || !same_exe || !held.is_alive() {
        return None;
    }
    held.pidfd_clone().ok()
}
