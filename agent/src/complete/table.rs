//! The maps of the task table and their rules, without any I/O.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ephor_proto::id::TaskId;
use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule::{Process, TaskKey};

use super::error::TaskError;
use super::handle::{Entry, TaskHandle};
use super::{Ended, Snapshot};
use crate::limits::{ENDED_TASKS_KEPT, MAX_TASKS, MAX_TASKS_PER_UID};

/// The pidfds whose first end ends a task.
pub(super) struct Watched {
    pub(super) pidfds: Vec<OwnedFd>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Heartbeats so far.
    seq: u64,
    open: BTreeMap<TaskId, Arc<Entry>>,
    by_key: HashMap<TaskKey, TaskId>,
    /// Main processes of runs.
    runs: HashMap<Process, TaskId>,
    of_uid: HashMap<u32, usize>,
    /// Ended, and the broker may not know yet.
    ending: BTreeMap<TaskId, EndCause>,
    /// Ended ones that are remembered, oldest first.
    ended: Remembered,
}

#[derive(Debug, Default)]
struct Remembered {
    causes: HashMap<TaskId, EndCause>,
    /// Whom policy told to stop: it gets no new task by asking again.
    barred: HashMap<TaskKey, TaskId>,
    order: VecDeque<(TaskId, TaskKey)>,
}

impl State {
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn has_runs(&self) -> bool {
        !self.runs.is_empty()
    }

    /// The run of the first process in `line` that is the main one of a run.
    pub(super) fn nearest_run(&self, mut line: impl Iterator<Item = Process>) -> Option<TaskId> {
        line.find_map(|process| self.runs.get(&process).copied())
    }

    pub(super) fn by_id(&self, id: TaskId) -> Option<TaskHandle> {
        self.open.get(&id).cloned().map(TaskHandle)
    }

    pub(super) fn by_key(&self, key: &TaskKey) -> Option<TaskHandle> {
        self.by_key.get(key).and_then(|id| self.by_id(*id))
    }

    pub(super) fn outcome(&self, id: TaskId) -> Option<EndCause> {
        self.ending
            .get(&id)
            .or_else(|| self.ended.causes.get(&id))
            .copied()
    }

    /// The open task of this key. One that could not be journalled is dropped: nothing was
    /// ever handed over for it.
    ///
    /// # Errors
    /// When policy ended the task of this key.
    pub(super) fn joined(&mut self, key: &TaskKey) -> Result<Option<TaskHandle>, TaskError> {
        if let Some(task) = self.ended.barred.get(key) {
            let cause = self
                .ended
                .causes
                .get(task)
                .copied()
                .unwrap_or(EndCause::Revoked);
            return Err(TaskError::Ended { task: *task, cause });
        }
        let found = self.by_key(key);
        if let Some(failed) = found.as_ref().filter(|found| found.has_failed()) {
            if let Some(entry) = self.remove(failed.id()) {
                entry.finish(EndCause::Lost);
            }
            return Ok(None);
        }
        Ok(found)
    }

    pub(super) fn check_room(&self, uid: u32) -> Result<(), TaskError> {
        if self.open.len() + self.ending.len() >= MAX_TASKS {
            return Err(TaskError::Full(
                "this host has as many tasks as one heartbeat carries",
            ));
        }
        if self.of_uid.get(&uid).copied().unwrap_or(0) >= MAX_TASKS_PER_UID {
            return Err(TaskError::Full(
                "this user has as many open tasks as one user may have",
            ));
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, entry: Entry) -> TaskHandle {
        let (entry, opened) = (Arc::new(entry), |entry: &Entry| entry.opened.clone());
        let opened = opened(&entry);
        self.by_key.insert(opened.key.clone(), opened.id);
        if let (TaskKey::Run(_), Some(main)) = (&opened.key, opened.processes.first()) {
            self.runs.insert(main.process, opened.id);
        }
        *self.of_uid.entry(opened.uid).or_default() += 1;
        self.open.insert(opened.id, Arc::clone(&entry));
        TaskHandle(entry)
    }

    /// Moves a task from open to ending; `None` when it is not open.
    pub(super) fn end(&mut self, id: TaskId, cause: EndCause) -> Option<Arc<Entry>> {
        let entry = self.remove(id)?;
        self.ending.insert(id, cause);
        self.ended.remember(id, &entry.opened.key, cause);
        Some(entry)
    }

    /// A task that was found ended at the start.
    pub(super) fn ended_before(&mut self, id: TaskId, key: &TaskKey, cause: EndCause) {
        self.ending.insert(id, cause);
        self.ended.remember(id, key, cause);
    }

    /// Whether it was ending until now.
    pub(super) fn closed(&mut self, id: TaskId) -> bool {
        self.ending.remove(&id).is_some()
    }

    pub(super) fn unclosed(&self) -> Vec<Ended> {
        self.ending
            .iter()
            .map(|(task, cause)| Ended {
                task: *task,
                cause: *cause,
            })
            .collect()
    }

    pub(super) fn open_tasks(&self) -> Vec<TaskId> {
        self.open.keys().copied().collect()
    }

    /// Everything opened so far has a lower `opened_seq` than this snapshot; everything
    /// opened from now on has at least the same.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        self.seq += 1;
        Snapshot {
            seq: self.seq,
            tasks: self.open.keys().copied().collect(),
            ended: self.unclosed(),
        }
    }

    fn remove(&mut self, id: TaskId) -> Option<Arc<Entry>> {
        let entry = self.open.remove(&id)?;
        let opened = &entry.opened;
        if self.by_key.get(&opened.key) == Some(&id) {
            self.by_key.remove(&opened.key);
        }
        self.runs.retain(|_, task| *task != id);
        if let Some(count) = self.of_uid.get_mut(&opened.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_uid.remove(&opened.uid);
            }
        }
        Some(entry)
    }
}

impl Remembered {
    fn remember(&mut self, id: TaskId, key: &TaskKey, cause: EndCause) {
        match cause {
            EndCause::Deadline | EndCause::Revoked => {
                self.barred.insert(key.clone(), id);
            }
            // Its process is gone, or it gave up by itself and may come back.
            EndCause::Exited | EndCause::Released | EndCause::Lost => {}
        }
        self.causes.insert(id, cause);
        self.order.push_back((id, key.clone()));
        if self.order.len() > ENDED_TASKS_KEPT
            && let Some((oldest, key)) = self.order.pop_front()
        {
            self.causes.remove(&oldest);
            if self.barred.get(&key) == Some(&oldest) {
                self.barred.remove(&key);
            }
        }
    }
}
