//! Every task the broker spawns belongs to a [`Tasks`] group: it can be cancelled, it is
//! waited for at shutdown, and its panic is logged and never swallowed. The only module
//! that may call `tokio::spawn`.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks with one end.
#[derive(Clone, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    tracker: TaskTracker,
    stop: CancellationToken,
    broken: CancellationToken,
    /// The first vital task that ended by itself.
    culprit: OnceLock<&'static str>,
}

/// A task panicked; the panic's message is in the log under this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("internal error in `{0}`; its panic is in the log")]
pub struct Panicked(pub &'static str);

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the group is asked to stop.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Runs `work` in the background. A panic is logged.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let work = caught(name, work);
        self.inner.tracker.spawn(async move {
            // `caught` has logged it; the rest of the process does not depend on this task.
            let _ = work.await;
        });
    }

    /// Runs `work`, without which the process must not go on: a panic, or an end before
    /// the group was asked to stop, resolves [`Tasks::broken`].
    pub fn spawn_vital(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let work = caught(name, work);
        let inner = Arc::clone(&self.inner);
        self.inner.tracker.spawn(async move {
            let outcome = work.await;
            if outcome.is_err() || !inner.stop.is_cancelled() {
                let _ = inner.culprit.set(name);
                inner.broken.cancel();
            }
        });
    }

    /// Runs `work` to its end even when the caller goes away meanwhile, such as a request
    /// whose connection closes between two commits.
    ///
    /// # Errors
    /// [`Panicked`] when `work` did.
    pub async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Panicked> {
        let (sender, receiver) = oneshot::channel();
        self.spawn(name, async move {
            let value = work.await;
            // The receiver is gone when the caller is; the work was done all the same.
            let _ = sender.send(value);
        });
        receiver.await.map_err(|_| Panicked(name))
    }

    /// Resolves with a name when a vital task ended by itself.
    pub async fn broken(&self) -> &'static str {
        self.inner.broken.cancelled().await;
        self.inner.culprit.get().copied().unwrap_or("unnamed")
    }

    /// Asks all tasks to stop and waits for them. False when some were still running at
    /// the deadline.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.inner.stop.cancel();
        self.inner.tracker.close();
        tokio::time::timeout(deadline, self.inner.tracker.wait())
            .await
            .is_ok()
    }

    /// Tasks running now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.tracker.len()
    }

    /// Whether no task is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.tracker.is_empty()
    }
}

/// `work`, with a panic turned into an error and logged.
fn caught<T>(
    name: &'static str,
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Result<T, Panicked>> + Send {
    let mut work: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(work);
    std::future::poll_fn(move |context| {
        // Nothing of a panicked future is looked at again, so no broken invariant is seen.
        match std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(panic) => {
                tracing::error!(
                    task = name,
                    message = panic_message(panic.as_ref()),
                    "task panicked"
                );
                Poll::Ready(Err(Panicked(name)))
            }
        }
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_vital_task_is_told() {
        let tasks = Tasks::new();
        tasks.spawn("harmless", async { panic!("on purpose") });
        tasks.spawn_vital("ledger", async { panic!("on purpose") });
        assert_eq!(tasks.broken().await, "ledger");
    }

    #[tokio::test]
    async fn a_vital_task_may_end_only_after_stop() {
        let tasks = Tasks::new();
        let stop = tasks.stop_token();
        tasks.spawn_vital("listener", async move { stop.cancelled().await });
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
        assert!(!tasks.inner.broken.is_cancelled());

        let tasks = Tasks::new();
        tasks.spawn_vital("listener", async {});
        assert_eq!(tasks.broken().await, "listener");
    }

    #[tokio::test]
    async fn work_goes_on_without_its_caller() {
        let tasks = Tasks::new();
        let (sender, receiver) = oneshot::channel();
        let (start, started) = oneshot::channel::<()>();
        {
            let work = tasks.run("complete", async move {
                started.await.unwrap();
                sender.send(7).unwrap();
            });
            let mut work = std::pin::pin!(work);
            // Polled once, then dropped: the caller has gone away.
            std::future::poll_fn(|context| {
                assert!(work.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        start.send(()).unwrap();
        assert_eq!(receiver.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_reaches_the_caller_as_an_error() {
        let tasks = Tasks::new();
        let outcome = tasks.run("decide", async { panic!("on purpose") }).await;
        let outcome: Result<(), Panicked> = outcome;
        assert_eq!(outcome, Err(Panicked("decide")));
    }

    #[tokio::test]
    async fn shutdown_has_a_deadline() {
        let tasks = Tasks::new();
        tasks.spawn("stuck", std::future::pending());
        assert!(!tasks.shutdown(Duration::from_millis(10)).await);
    }
}
