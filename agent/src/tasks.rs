//! Every spawned task of the agent belongs to one group, is waited for at the stop, and never
//! panics unheard: this module is the only one that spawns.

use std::future::Future;
use std::io;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limits;

/// The group. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: Arc<OnceLock<&'static str>>,
}

/// How many threads serve the socket, and how many talk to the broker: one for every two cores, within a
/// limit. The other half is for those who ask, and a thread that has nothing to do but be woken costs
/// more than it brings.
#[must_use]
pub fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (cores / 2).clamp(1, limits::THREADS)
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that asks every member to stop; a child of it may be stopped alone.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs a task. A panic in it is logged and ends only this task.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.member(name, task, false));
    }

    /// A thread with a runtime of its own, for [`Self::spawn_on`]; it ends with the group.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub fn thread(&self, name: String) -> io::Result<Handle> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (handle, group) = (runtime.handle().clone(), self.clone());
        let whole = async move {
            group.stop.cancelled().await;
            group.tracker.wait().await;
        };
        let run = move || runtime.block_on(whole);
        std::thread::Builder::new().name(name).spawn(run)?;
        Ok(handle)
    }

    /// As [`Self::spawn`], on a thread of [`Self::thread`].
    pub fn spawn_on(
        &self,
        thread: &Handle,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tracker
            .spawn_on(self.member(name, task, false), thread);
    }

    /// Runs a task without which the agent is of no use: a panic in it stops the whole group,
    /// and [`Self::failed`] says why.
    pub fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.member(name, task, true));
    }

    /// Runs blocking work of this group on the runtime's blocking threads.
    ///
    /// # Errors
    /// When the work panicked (logged here) or the runtime is shutting down.
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        self.tracker.spawn_blocking(work).await.map_err(|error| {
            tracing::error!(
                task = name,
                panic = error.is_panic(),
                "blocking work did not finish"
            );
            Unfinished(name)
        })
    }

    /// The vital task that panicked, if one did.
    #[must_use]
    pub fn failed(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }

    /// Asks every member to stop and waits for them; false when some did not within `patience`.
    pub async fn finish(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(patience, self.tracker.wait())
            .await
            .is_ok()
    }

    fn member(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        vital: bool,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (group, mut task): (Self, Pin<Box<_>>) = (self.clone(), Box::pin(task));
        std::future::poll_fn(move |context| {
            // The future is dropped right after a panic and never polled again.
            match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
                Ok(poll) => poll,
                Err(_) => {
                    group.panicked(name, vital);
                    Poll::Ready(())
                }
            }
        })
    }

    fn panicked(&self, name: &'static str, vital: bool) {
        // The panic hook has printed message and place.
        tracing::error!(task = name, vital, "task panicked");
        if vital {
            let _ = self.failed.set(name);
            self.stop.cancel();
        }
    }
}

/// Blocking work that panicked or was cut off by the stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` did not finish; the agent's log says why")]
pub struct Unfinished(pub &'static str);

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_panic_stops_the_group_and_says_who() {
        let tasks = Tasks::new();
        let stop = tasks.stop().clone();
        tasks.spawn("other", async move { stop.cancelled().await });
        tasks.spawn_vital("heart", async { panic!("on purpose") });
        tasks.stop().cancelled().await;
        assert_eq!(tasks.failed(), Some("heart"));
        assert!(tasks.finish(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn another_panic_ends_only_its_task() {
        let tasks = Tasks::new();
        tasks.spawn("small", async { panic!("on purpose") });
        assert_eq!(tasks.blocking("sum", || 1 + 1).await, Ok(2));
        assert_eq!(
            tasks.blocking("boom", || panic!("on purpose")).await,
            Err::<(), _>(Unfinished("boom"))
        );
        tasks.tracker.close();
        tasks.tracker.wait().await;
        assert!(!tasks.stop().is_cancelled());
        assert_eq!(tasks.failed(), None);
    }

    #[tokio::test]
    async fn one_who_does_not_stop_is_noticed() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        assert!(!tasks.finish(Duration::from_millis(10)).await);
    }
}
