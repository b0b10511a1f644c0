//! Tasks: to which one a caller belongs, and when it ends.
//!
//! Every task is watched from the moment it is in the table, by kernel event: a pidfd, or a
//! cgroup's `populated`. Registered first and checked after, so that an end between the two
//! is not missed. A task that ended is never open again. The table never tells the broker
//! itself: ends go out by a queue, and stay listed until somebody says that they were told.

mod adopt;
mod error;
mod handle;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ephor_proto::id::TaskId;
use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule::{Bind, Caller, TaskKey, task_of};
use tokio::sync::mpsc;

pub use adopt::Adoption;
pub use error::TaskError;
pub use handle::TaskHandle;

use crate::attest::{Attested, Peer, ancestors, boot_id, leader, named_by_descriptor};
use crate::clock::SharedClock;
use crate::crash_point;
use crate::journal::{ExeHandle, Journal, ProcessHandle, Record, TaskOpened, UnitHandle};
use crate::limits::ENDS_QUEUED;
use crate::tasks::Tasks;
use handle::Entry;
use table::{State, Watched};
use watch::Units;

/// A task that has ended and must be told to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub task: TaskId,
    /// Why.
    pub cause: EndCause,
}

/// What a heartbeat carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Above `opened_seq` of every task in the set, and not above that of any later one.
    pub seq: u64,
    /// Every open task.
    pub tasks: Vec<TaskId>,
    /// Every one that ended, and that the broker may not know of yet.
    pub ended: Vec<Ended>,
}

/// The tasks of this host. Clones share them.
#[derive(Clone)]
pub struct TaskTable(Arc<Inner>);

struct Inner {
    /// Guards the maps; never held across an await or a read of `/proc`.
    state: Mutex<State>,
    journal: Journal,
    tasks: Tasks,
    clock: SharedClock,
    boot_id: String,
    ends: mpsc::Sender<Ended>,
    units: Units,
}

impl TaskTable {
    /// An empty table, and the queue of ends for the one who wipes and tells the broker. Must
    /// be called in a Tokio runtime.
    ///
    /// # Errors
    /// When the boot id or an inotify instance is not to be had.
    pub fn start(
        journal: Journal,
        tasks: Tasks,
        clock: SharedClock,
    ) -> Result<(Self, mpsc::Receiver<Ended>), TaskError> {
        let (ends, queue) = mpsc::channel(ENDS_QUEUED);
        let (boot_id, units) = (boot_id()?, Units::new().map_err(TaskError::Watch)?);
        let state = Mutex::default();
        let table = Self(Arc::new(Inner {
            state,
            journal,
            tasks,
            clock,
            boot_id,
            ends,
            units,
        }));
        let watching = table.clone();
        table.0.tasks.spawn_vital(
            "complete.units",
            async move { watching.watch_units().await },
        );
        Ok((table, queue))
    }

    /// The task that a caller belongs to, opened if there is none yet. `attested` and `ancestor`
    /// are of the process that `bind` names, where it names one. Before the first secret
    /// leaves, wait for [`TaskHandle::durable`] and look at [`TaskHandle::is_open`].
    ///
    /// # Errors
    /// When `bind` names a wrong process, the task was ended by policy, or a limit is reached.
    pub fn resolve(
        &self,
        caller: &Peer,
        attested: &Attested,
        bind: Option<Bind>,
        ancestor: Option<&Peer>,
    ) -> Result<TaskHandle, TaskError> {
        let key = self.key(caller, attested, bind)?;
        if let Some(open) = self.lock().joined(&key)? {
            return Ok(open);
        }
        let opening = match &key {
            TaskKey::Run(id) => {
                return Err(TaskError::Ended {
                    task: *id,
                    cause: EndCause::Exited,
                });
            }
            TaskKey::Unit(_) => self.unit_opening(ancestor.unwrap_or(caller), attested)?,
            TaskKey::Ancestor(_) => {
                Opening::of(&[(ancestor.ok_or(TaskError::NoAncestor)?, Some(attested))])?
            }
            TaskKey::Peer(_) => Opening::of(&[(caller, Some(attested))])?,
        };
        self.open(Some(key), caller.uid(), opening)
    }

    /// Which rule holds for a caller and its open task, without opening one.
    ///
    /// # Errors
    /// When `bind` names a wrong process or `/proc` fails.
    pub fn find(
        &self,
        caller: &Peer,
        attested: &Attested,
        bind: Option<Bind>,
    ) -> Result<(&'static str, Option<TaskHandle>), TaskError> {
        let key = self.key(caller, attested, bind)?;
        Ok((key.rule(), self.lock().by_key(&key)))
    }

    /// Opens the task of `ephor run`: it ends with the process whose pidfd `speaker` sent, or
    /// with `speaker`, whichever is first. Everything below that process belongs to it.
    ///
    /// # Errors
    /// When the descriptor is no pidfd of the speaker or of a process below it of its uid.
    pub fn open_run(
        &self,
        speaker: &Peer,
        descriptor: std::os::fd::OwnedFd,
    ) -> Result<TaskHandle, TaskError> {
        let main = named_by_descriptor(speaker, descriptor)?;
        // No executable is noted: the main process executes another one after this.
        let mut processes = vec![(&main, None)];
        if main.process().id() != speaker.process().id() {
            processes.push((speaker, None));
        }
        self.open(None, speaker.uid(), Opening::of(&processes)?)
    }

    /// A task by its id, if it is open.
    #[must_use]
    pub fn open_task(&self, id: TaskId) -> Option<TaskHandle> {
        self.lock().by_id(id)
    }

    /// Why a task ended, as long as that is remembered.
    #[must_use]
    pub fn outcome(&self, id: TaskId) -> Option<EndCause> {
        self.lock().outcome(id)
    }

    /// Ends a task because a caller of its uid asked for that. The end is not queued: who calls
    /// this wipes, tells the broker and then calls [`Self::closed`], in a task that is not
    /// dropped with the connection.
    ///
    /// # Errors
    /// When it is not open, or belongs to another uid; both look alike to the caller.
    pub fn complete(&self, id: TaskId, by: &Peer) -> Result<Ended, TaskError> {
        let task = self.open_task(id).filter(|task| task.uid() == by.uid());
        if task.is_none() {
            return Err(TaskError::NotFound { task: id });
        }
        self.end(id, EndCause::Released)
            .ok_or(TaskError::NotFound { task: id })
    }

    /// Ends a task; `None` when it is not open. The end is not queued, see [`Self::complete`].
    #[must_use]
    pub fn end(&self, id: TaskId, cause: EndCause) -> Option<Ended> {
        let entry = self.lock().end(id, cause)?;
        self.note(Record::TaskEnding { id, cause });
        entry.finish(cause);
        if entry.opened.unit.is_some() {
            self.0.units.remove(id);
        }
        crash_point!("complete.noticed");
        Some(Ended { task: id, cause })
    }

    /// The broker has completed the task: it need not be told again.
    pub fn closed(&self, id: TaskId) {
        if self.lock().closed(id) {
            self.note(Record::TaskClosed { id });
            crash_point!("complete.closed");
        }
    }

    /// Every end that is not [`Self::closed`] yet: to be told again after the broker was away.
    #[must_use]
    pub fn unclosed(&self) -> Vec<Ended> {
        self.lock().unclosed()
    }

    /// The open tasks.
    #[must_use]
    pub fn open_tasks(&self) -> Vec<TaskId> {
        self.lock().open_tasks()
    }

    /// The tasks for a heartbeat, all of one moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    fn key(
        &self,
        caller: &Peer,
        attested: &Attested,
        bind: Option<Bind>,
    ) -> Result<TaskKey, TaskError> {
        let process = caller.process();
        let has_runs = self.lock().has_runs();
        // Walking up costs a few reads for each process, so only when it can matter.
        let chain = if has_runs || bind.is_some() {
            ancestors(process)?
        } else {
            Vec::new()
        };
        let line = std::iter::once(process.id()).chain(chain.iter().map(|above| above.process));
        let run = has_runs.then(|| self.lock().nearest_run(line)).flatten();
        let unit = attested
            .evidence()
            .placement
            .run
            .as_ref()
            .map(|run| &run.unit);
        let facts = Caller {
            peer: process.id(),
            uid: caller.uid(),
            ancestors: &chain,
            run,
            unit,
            bind,
        };
        Ok(task_of(&facts).map_err(crate::attest::AttestError::from)?)
    }

    fn unit_opening(&self, member: &Peer, attested: &Attested) -> Result<Opening, TaskError> {
        let run = attested
            .evidence()
            .placement
            .run
            .as_ref()
            .ok_or(TaskError::NoAncestor)?;
        let leader = leader(member.process(), run)?;
        let handle = UnitHandle {
            directory: run.directory.clone(),
            inode: run.inode,
            has_events: run.has_events,
        };
        let process = ProcessHandle {
            process: leader.id(),
            exe: None,
        };
        let pidfds = if run.has_events {
            Vec::new()
        } else {
            vec![leader.pidfd_clone().map_err(TaskError::Watch)?]
        };
        Ok(Opening {
            processes: vec![process],
            pidfds,
            unit: Some(handle),
        })
    }

    fn open(
        &self,
        key: Option<TaskKey>,
        uid: u32,
        opening: Opening,
    ) -> Result<TaskHandle, TaskError> {
        let random = ephor_crypto::random::bytes().map_err(|_| TaskError::Random)?;
        let opened_at = self.0.clock.wall();
        let id = TaskId::from_parts(opened_at.as_millis(), random);
        let (
            boot_id,
            Opening {
                processes,
                pidfds,
                unit,
            },
        ) = (self.0.boot_id.clone(), opening);
        let key = key.unwrap_or(TaskKey::Run(id));
        let opened = TaskOpened {
            id,
            key,
            uid,
            boot_id,
            opened_at,
            processes,
            unit,
        };
        let handle = {
            let mut state = self.lock();
            // Another request of the same task may have opened it meanwhile.
            if let Some(open) = state.joined(&opened.key)? {
                return Ok(open);
            }
            state.check_room(uid)?;
            let written = self.0.journal.append(Record::TaskOpened(opened.clone()))?;
            let seq = state.seq();
            state.insert(Entry::new(opened, seq, written))
        };
        crash_point!("task.opened");
        self.watch(&handle, Watched { pidfds });
        Ok(handle)
    }

    fn note(&self, record: Record) {
        // Without it a restart finds the task open and judges it by its process, or the broker
        // answers that it is closed: late, never wrong.
        if let Err(error) = self.0.journal.append(record) {
            tracing::warn!(%error, "end of a task not journalled");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a new task is found again by, and watched by.
struct Opening {
    processes: Vec<ProcessHandle>,
    pidfds: Vec<std::os::fd::OwnedFd>,
    unit: Option<UnitHandle>,
}

impl Opening {
    fn of(peers: &[(&Peer, Option<&Attested>)]) -> Result<Self, TaskError> {
        let mut opening = Self {
            processes: Vec::new(),
            pidfds: Vec::new(),
            unit: None,
        };
        for (peer, attested) in peers {
            let exe = attested.and_then(|attested| attested.evidence().exe.as_ref());
            let exe = exe.map(|exe| ExeHandle {
                dev: exe.file.dev,
                ino: exe.file.ino,
            });
            opening.processes.push(ProcessHandle {
                process: peer.process().id(),
                exe,
            });
            opening
                .pidfds
                .push(peer.pidfd_clone().map_err(TaskError::Watch)?);
        }
        Ok(opening)
    }
}
