//! Which task a caller belongs to: the nearest of (1) the `ephor run` or elevation record it
//! descends from, (2) its service unit or container, (3) an attested ancestor of the same uid that
//! the request names, (4) the peer process itself.
//!
//! Pure: the agent gathers the facts by attestation; this never looks at a process.

use serde::{Deserialize, Serialize};

pub use crate::http::agent::Bind;
use crate::id::TaskId;
use crate::limits::MAX_ANCESTORS;

/// A process, told apart from a later one with the same pid by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Host pid.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// One process above the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// Which process.
    pub process: Process,
    /// Its host-mapped uid.
    pub uid: u32,
}

/// A service unit or container, and one run of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Unit {
    /// Unit name or container id.
    pub name: String,
    /// `InvocationID` or what else tells one run from the next.
    pub invocation: String,
}

/// Attested facts about a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The peer process.
    pub peer: Process,
    /// Its host-mapped uid.
    pub uid: u32,
    /// Its parents, the nearest first.
    pub ancestors: &'a [Ancestor],
    /// The nearest open run or elevation record that the peer is or descends from.
    pub run: Option<TaskId>,
    /// Its service unit or container, when it is in one that is a task by itself
    /// (not a login session's scope).
    pub unit: Option<&'a Unit>,
    /// The ancestor that the request names: its parent for a helper, or another by pid.
    pub bind: Option<Bind>,
}

/// What identifies a task on a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKey {
    /// A run or elevation record.
    Run(TaskId),
    /// A service unit or container.
    Unit(Unit),
    /// An ancestor that the request named.
    Ancestor(Process),
    /// The peer process.
    Peer(Process),
}

impl TaskKey {
    /// The word by which an answer says which rule held.
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Unit(_) => "unit",
            Self::Ancestor(_) => "ancestor",
            Self::Peer(_) => "peer",
        }
    }

    /// The process whose exit ends the task, where it is one process.
    pub const fn process(&self) -> Option<Process> {
        match self {
            Self::Ancestor(process) | Self::Peer(process) => Some(*process),
            Self::Run(_) | Self::Unit(_) => None,
        }
    }
}

/// Why a named ancestor cannot be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The caller has no parent that could be attested.
    #[error("bind=parent: process {0} has no parent that can be attested; leave bind out")]
    NoParent(u32),
    /// The pid is not an ancestor of the caller.
    #[error("bind: process {0} is not an ancestor of the caller; name one of its parents")]
    NotAncestor(u32),
    /// The ancestor, or one between it and the caller, runs as another uid.
    #[error(
        "bind: process {pid} runs as uid {uid}, the caller does not; bind to a process of the same uid"
    )]
    OtherUid {
        /// The process of another uid.
        pid: u32,
        /// Its uid.
        uid: u32,
    },
    /// Process 1 outlives everything, so a task bound to it would never end.
    #[error("bind: the parent is process 1, which never ends; the caller was orphaned")]
    Init,
}

/// The task that the caller belongs to.
///
/// # Errors
/// When an ancestor is named that may not be bound to. That holds even where a nearer rule
/// would have decided: a wrong request is refused, not reinterpreted.
pub fn task_of(caller: &Caller<'_>) -> Result<TaskKey, BindError> {
    let named = named_ancestor(caller)?;
    if let Some(task) = caller.run {
        return Ok(TaskKey::Run(task));
    }
    if let Some(unit) = caller.unit {
        return Ok(TaskKey::Unit(unit.clone()));
    }
    Ok(named.map_or(TaskKey::Peer(caller.peer), TaskKey::Ancestor))
}

fn named_ancestor(caller: &Caller<'_>) -> Result<Option<Process>, BindError> {
    let chain = || caller.ancestors.iter().take(MAX_ANCESTORS);
    let depth = match caller.bind {
        None => return Ok(None),
        // A process may name itself: it is then simply the peer.
        Some(Bind::Ancestor(pid)) if pid == caller.peer.pid => return Ok(None),
        Some(Bind::Parent) if caller.ancestors.is_empty() => {
            return Err(BindError::NoParent(caller.peer.pid));
        }
        Some(Bind::Parent) => 0,
        Some(Bind::Ancestor(pid)) => chain()
            .position(|ancestor| ancestor.process.pid == pid)
            .ok_or(BindError::NotAncestor(pid))?,
    };
    let mut last = None;
    // Each step must keep the uid: a setuid process between would let its child speak for
    // a parent that never gave it that.
    for ancestor in chain().take(depth + 1) {
        if ancestor.process.pid <= 1 {
            return Err(BindError::Init);
        }
        if ancestor.uid != caller.uid {
            return Err(BindError::OtherUid {
                pid: ancestor.process.pid,
                uid: ancestor.uid,
            });
        }
        last = Some(ancestor.process);
    }
    Ok(last)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn process(pid: u32) -> Process {
        Process {
            pid,
            start_time: u64::from(pid) * 10,
        }
    }

    fn pid(pid: u32) -> Option<Bind> {
        Some(Bind::Ancestor(pid))
    }

    fn above(pid: u32, uid: u32) -> Ancestor {
        Ancestor {
            process: process(pid),
            uid,
        }
    }

    fn caller<'a>(ancestors: &'a [Ancestor], bind: Option<Bind>) -> Caller<'a> {
        Caller {
            peer: process(90),
            uid: 1000,
            ancestors,
            run: None,
            unit: None,
            bind,
        }
    }

    #[test]
    fn the_nearest_rule_holds() {
        let run = TaskId::from_parts(1, [1; 10]);
        let unit = Unit {
            name: "orders.service".into(),
            invocation: "ab12".into(),
        };
        let chain = [above(80, 1000), above(70, 1000)];
        let rules = [
            (
                Some(run),
                Some(&unit),
                Some(Bind::Parent),
                TaskKey::Run(run),
            ),
            (Some(run), None, None, TaskKey::Run(run)),
            (Some(run), Some(&unit), None, TaskKey::Run(run)),
            (
                None,
                Some(&unit),
                Some(Bind::Parent),
                TaskKey::Unit(unit.clone()),
            ),
            (None, Some(&unit), None, TaskKey::Unit(unit.clone())),
            (
                None,
                None,
                Some(Bind::Parent),
                TaskKey::Ancestor(process(80)),
            ),
            (None, None, pid(80), TaskKey::Ancestor(process(80))),
            (None, None, pid(70), TaskKey::Ancestor(process(70))),
            (None, None, pid(90), TaskKey::Peer(process(90))),
            (None, None, None, TaskKey::Peer(process(90))),
        ];
        for (run, unit, bind, expected) in rules {
            let facts = Caller {
                run,
                unit,
                ..caller(&chain, bind)
            };
            assert_eq!(task_of(&facts), Ok(expected), "{facts:?}");
        }
    }

    #[test]
    fn an_ancestor_that_may_not_be_named_is_refused() {
        let other = BindError::OtherUid { pid: 80, uid: 0 };
        let cases: [(&[Ancestor], Option<Bind>, BindError); 7] = [
            (&[], Some(Bind::Parent), BindError::NoParent(90)),
            (&[above(80, 1000)], pid(81), BindError::NotAncestor(81)),
            (&[], pid(1), BindError::NotAncestor(1)),
            (&[above(80, 0)], Some(Bind::Parent), other),
            (&[above(80, 0), above(70, 1000)], pid(70), other),
            (&[above(1, 0)], Some(Bind::Parent), BindError::Init),
            (&[above(80, 1000), above(1, 1000)], pid(1), BindError::Init),
        ];
        for (chain, bind, expected) in cases {
            assert_eq!(
                task_of(&caller(chain, bind)),
                Err(expected),
                "{chain:?} {bind:?}"
            );
        }
    }

    #[test]
    fn a_wrong_name_is_refused_even_inside_a_run() {
        let facts = Caller {
            run: Some(TaskId::from_parts(1, [1; 10])),
            ..caller(&[], pid(5))
        };
        assert_eq!(task_of(&facts), Err(BindError::NotAncestor(5)));
    }

    #[test]
    fn the_walk_is_bounded() {
        let chain: Vec<Ancestor> = (0..200).map(|n| above(1000 + n, 1000)).collect();
        let last = u32::try_from(MAX_ANCESTORS).unwrap() + 999;
        assert!(task_of(&caller(&chain, pid(last))).is_ok());
        assert_eq!(
            task_of(&caller(&chain, pid(last + 1))),
            Err(BindError::NotAncestor(last + 1))
        );
    }

    #[test]
    fn a_reused_pid_is_another_task() {
        let (old, new) = (
            process(80),
            Process {
                pid: 80,
                start_time: 1,
            },
        );
        assert_ne!(TaskKey::Peer(old), TaskKey::Peer(new));
    }
}
