//! The records, and what a run over them leaves unfinished.

use std::collections::BTreeMap;

use ephor_proto::id::TaskId;
use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule::{Process, TaskKey};
use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

/// One record. The order of a task's records is opened, ending, closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// A task may be handed credentials from now on.
    TaskOpened(TaskOpened),
    /// A task ended; the broker may not know yet.
    TaskEnding {
        /// Which.
        id: TaskId,
        /// Why.
        cause: EndCause,
    },
    /// The broker has completed the task.
    TaskClosed {
        /// Which.
        id: TaskId,
    },
}

/// How to find a task again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOpened {
    /// Its id.
    pub id: TaskId,
    /// What it is bound to.
    pub key: TaskKey,
    /// The uid that opened it.
    pub uid: u32,
    /// The boot in which its processes mean anything.
    pub boot_id: String,
    /// Wall time.
    pub opened_at: UnixMillis,
    /// The processes of which the first to end ends the task; none for a unit that tells itself.
    pub processes: Vec<ProcessHandle>,
    /// The unit, when that is what it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<UnitHandle>,
}

/// A process as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessHandle {
    /// Pid and start time.
    #[serde(flatten)]
    pub process: Process,
    /// Its executable; none when the agent might not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<ExeHandle>,
}

/// An executable file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExeHandle {
    /// Device, major number above minor.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// One run of a unit or container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitHandle {
    /// Its cgroup directory.
    pub directory: std::path::PathBuf,
    /// Inode of that directory.
    pub inode: u64,
    /// Whether the kernel tells when it is empty.
    pub has_events: bool,
}

/// A task of an earlier run of the agent that the broker may hold open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// How to find it.
    pub opened: TaskOpened,
    /// Set when it had ended already.
    pub ended: Option<EndCause>,
}

/// Tasks that are open or ending, by the records so far.
#[derive(Debug, Default)]
pub(super) struct Live(BTreeMap<TaskId, Unfinished>);

impl Live {
    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::TaskOpened(opened) => {
                self.0.insert(
                    opened.id,
                    Unfinished {
                        opened: opened.clone(),
                        ended: None,
                    },
                );
            }
            Record::TaskEnding { id, cause } => {
                if let Some(task) = self.0.get_mut(id) {
                    task.ended.get_or_insert(*cause);
                }
            }
            Record::TaskClosed { id } => {
                self.0.remove(id);
            }
        }
    }

    /// The fewest records that say the same.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        self.0.values().flat_map(|task| {
            let ending = task.ended.map(|cause| Record::TaskEnding {
                id: task.opened.id,
                cause,
            });
            std::iter::once(Record::TaskOpened(task.opened.clone())).chain(ending)
        })
    }

    pub(super) fn unfinished(&self) -> Vec<Unfinished> {
        self.0.values().cloned().collect()
    }
}
