//! Waiting for the end of a task, by kernel event.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ephor_proto::id::TaskId;
use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule::TaskKey;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::TaskTable;
use super::handle::TaskHandle;
use super::table::Watched;
use crate::attest::{has_ended, is_running};
use crate::journal::UnitHandle;

impl TaskTable {
    /// Watches a task that is in the table already.
    pub(super) fn watch(&self, task: &TaskHandle, watched: Watched) {
        if let Some(unit) = task.0.opened.unit.as_ref().filter(|unit| unit.has_events) {
            self.watch_unit(task, unit);
        }
        for pidfd in watched.pidfds {
            let (table, task) = (self.clone(), task.clone());
            self.0.tasks.spawn("complete.watch", async move {
                let stop = table.0.tasks.stop().clone();
                tokio::select! {
                    () = exit(pidfd) => table.exited(task.id()).await,
                    _ = task.ended() => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// Ends a task whose process or unit has ended, and queues that.
    async fn exited(&self, id: TaskId) {
        if let Some(ended) = self.end(id, EndCause::Exited) {
            // The receiver ends with the agent only; then the journal has it.
            let _ = self.0.ends.send(ended).await;
        }
    }

    fn watch_unit(&self, task: &TaskHandle, unit: &UnitHandle) {
        if let Err(error) = self.0.units.add(task.id(), unit) {
            tracing::warn!(task = %task.id(), %error, "unit cannot be watched: its task ends now");
        }
        // Registered; now see whether it ended before. What cannot be watched is not kept.
        let (table, id) = (self.clone(), task.id());
        if !table.0.units.has(id) || !table.unit_runs(id) {
            self.0
                .tasks
                .spawn("complete.unit_gone", async move { table.exited(id).await });
        }
    }

    /// Turns events of cgroups into ends, until the agent stops.
    pub(super) async fn watch_units(&self) {
        let stop = self.0.tasks.stop().clone();
        loop {
            let changed = tokio::select! {
                changed = self.0.units.changed() => changed,
                () = stop.cancelled() => return,
            };
            for id in changed {
                if !self.unit_runs(id) {
                    self.0.units.remove(id);
                    self.exited(id).await;
                }
            }
        }
    }

    fn unit_runs(&self, id: TaskId) -> bool {
        self.open_task(id)
            .is_some_and(|task| match (&task.0.opened.unit, task.key()) {
                (Some(at), TaskKey::Unit(unit)) => is_running(unit, &at.directory, at.inode),
                (
                    Some(_) | None,
                    TaskKey::Run(_) | TaskKey::Unit(_) | TaskKey::Ancestor(_) | TaskKey::Peer(_),
                ) => false,
            })
    }
}

/// Returns once the process of this pidfd has ended. Registers first, then looks, so that an
/// end before the registration is seen too.
async fn exit(pidfd: OwnedFd) {
    let registered = match register(pidfd) {
        Ok(registered) => registered,
        Err(error) => {
            // What cannot be watched is not kept alive.
            tracing::error!(%error, "pidfd cannot be watched: its task ends now");
            return;
        }
    };
    while !has_ended(registered.get_ref().as_fd()) {
        match registered.readable().await {
            Ok(mut ready) if !has_ended(registered.get_ref().as_fd()) => ready.clear_ready(),
            // Ended, or the runtime is going down.
            Ok(_) | Err(_) => return,
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, which this crate forbids; an OwnedFd meets the condition: it is always the same open descriptor"
)]
fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// `cgroup.events` of all unit tasks, on one inotify instance: the kernel gives a user few.
pub(super) struct Units {
    inotify: AsyncFd<OwnedFd>,
    /// Guards which tasks wait for which watch.
    waiting: Mutex<HashMap<i32, Vec<TaskId>>>,
}

impl Units {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            inotify: register(inotify)?,
            waiting: Mutex::default(),
        })
    }

    fn add(&self, id: TaskId, unit: &UnitHandle) -> io::Result<()> {
        let events = unit.directory.join("cgroup.events");
        // Held over the call: an event for the new watch must find its task.
        let mut waiting = self.lock();
        let watch = inotify::add_watch(
            self.inotify.get_ref(),
            events,
            WatchFlags::MODIFY | WatchFlags::DELETE_SELF,
        )?;
        waiting.entry(watch).or_default().push(id);
        Ok(())
    }

    fn has(&self, id: TaskId) -> bool {
        self.lock().values().any(|tasks| tasks.contains(&id))
    }

    pub(super) fn remove(&self, id: TaskId) {
        self.lock().retain(|watch, tasks| {
            tasks.retain(|task| *task != id);
            if tasks.is_empty() {
                // Fails when the kernel has dropped the watch with its file.
                let _ = inotify::remove_watch(self.inotify.get_ref(), *watch);
            }
            !tasks.is_empty()
        });
    }

    /// Tasks whose unit has changed.
    async fn changed(&self) -> Vec<TaskId> {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else {
                return std::future::pending().await;
            };
            if let Ok(Ok(changed)) = ready.try_io(|inotify| self.read(inotify.get_ref())) {
                return changed;
            }
        }
    }

    fn read(&self, inotify: &OwnedFd) -> io::Result<Vec<TaskId>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        let mut changed = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let (waiting, lost) = (
                        self.lock(),
                        event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                    );
                    let of = |watch: &i32| lost || *watch == event.wd();
                    changed.extend(
                        waiting
                            .iter()
                            .filter(|(watch, _)| of(watch))
                            .flat_map(|(_, tasks)| tasks),
                    );
                }
                Err(Errno::AGAIN) if changed.is_empty() => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(Errno::AGAIN) => return Ok(changed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Vec<TaskId>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
