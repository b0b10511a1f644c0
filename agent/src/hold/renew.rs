//! The thin shell around [`schedule`](super::schedule): sleeps until something is due, asks
//! for it, and reports back.
//!
//! It holds credentials weakly: what is wiped is gone at once, whatever is planned here.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ephor_proto::id::TaskId;
use ephor_proto::problem::Problem;
use tokio::sync::Notify;

use super::schedule::{Action, Schedule, Ticket};
use super::{Held, Hold, Key};
use crate::clock::SharedClock;
use crate::limits;
use crate::tasks::Tasks;
use crate::uplink::backoff::jitter;

/// Gets a newer credential in place of `held`.
pub trait Reissue: Send + Sync + 'static {
    /// Asks the broker.
    fn reissue(
        &self,
        task: TaskId,
        key: Arc<Key>,
        held: Arc<Held>,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Held>, Problem>> + Send>>;
}

/// What is kept fresh. Cheap to clone.
#[derive(Clone)]
pub struct Renewer {
    inner: Arc<Inner>,
}

struct Inner {
    hold: Hold,
    clock: SharedClock,
    /// Guards plan and items together; never held across an await.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    plan: Schedule,
    items: HashMap<Ticket, Item>,
    next: Ticket,
}

struct Item {
    task: TaskId,
    key: Arc<Key>,
    held: Weak<Held>,
}

impl Renewer {
    /// Keeps what is in `hold` fresh.
    #[must_use]
    pub fn new(hold: Hold, clock: SharedClock) -> Self {
        let inner = Inner {
            hold,
            clock,
            state: Mutex::default(),
            changed: Notify::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Begins to keep one fresh.
    pub fn keep(&self, task: TaskId, key: Arc<Key>, held: &Arc<Held>) {
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        let before = state.plan.next_wake();
        state.plan.add(ticket, held.lifetime, jitter());
        let is_next = state.plan.next_wake() != before;
        state.items.insert(
            ticket,
            Item {
                task,
                key,
                held: Arc::downgrade(held),
            },
        );
        drop(state);
        if is_next {
            self.inner.changed.notify_one();
        }
    }

    /// How many are kept fresh.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().plan.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs until told to stop.
    pub async fn run(self, reissue: Arc<dyn Reissue>, tasks: Tasks) {
        let stop = tasks.stop().clone();
        loop {
            let wait = self.turn(&reissue, &tasks);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.inner.changed.notified() => {}
            }
        }
    }

    /// Does what is due; how long until the next look.
    fn turn(&self, reissue: &Arc<dyn Reissue>, tasks: &Tasks) -> Duration {
        let now = self.inner.clock.boottime();
        let actions = self.lock().plan.due(now, limits::RENEWALS_PER_TURN);
        for action in &actions {
            match action {
                Action::Drop(ticket) => self.over(*ticket),
                Action::Renew(ticket) => self.begin(*ticket, reissue, tasks),
            }
        }
        if actions.len() == limits::RENEWALS_PER_TURN {
            return limits::RENEWAL_TURN;
        }
        let next = self.lock().plan.next_wake();
        let wait = next.map_or(limits::RENEWAL_LOOK, |at| {
            Duration::from_millis(at.millis_since(now))
        });
        // Never the whole of a long wait at once: the timer stands still in a suspend, the
        // plan's clock does not.
        wait.min(limits::RENEWAL_LOOK)
    }

    fn over(&self, ticket: Ticket) {
        let item = self.lock().items.remove(&ticket);
        if let Some((task, held)) = item.and_then(|item| Some((item.task, item.held.upgrade()?))) {
            self.inner.hold.remove(task, &held);
        }
    }

    fn begin(&self, ticket: Ticket, reissue: &Arc<dyn Reissue>, tasks: &Tasks) {
        let found = {
            let state = self.lock();
            state
                .items
                .get(&ticket)
                .and_then(|item| Some((item.task, Arc::clone(&item.key), item.held.upgrade()?)))
        };
        let Some((task, key, held)) = found else {
            return self.forget(ticket);
        };
        let (this, reissue) = (self.clone(), Arc::clone(reissue));
        tasks.spawn("hold.renew", async move {
            match reissue.reissue(task, key, Arc::clone(&held)).await {
                Ok(new) => this.renewed(ticket, task, &held, &new),
                Err(problem) => this.failed(ticket, &problem),
            }
        });
    }

    fn renewed(&self, ticket: Ticket, task: TaskId, old: &Arc<Held>, new: &Arc<Held>) {
        if !self.inner.hold.replace(task, old, Arc::clone(new)) {
            return self.forget(ticket);
        }
        let mut state = self.lock();
        state.plan.renewed(ticket, new.lifetime, jitter());
        if let Some(item) = state.items.get_mut(&ticket) {
            item.held = Arc::downgrade(new);
        }
        drop(state);
        self.inner.changed.notify_one();
    }

    fn failed(&self, ticket: Ticket, problem: &Problem) {
        tracing::info!(code = %problem.code, correlation = %problem.correlation_id, "a held credential was not renewed");
        let again = problem
            .retry_after
            .map(|seconds| Duration::from_secs(u64::from(seconds)));
        self.lock()
            .plan
            .failed(ticket, self.inner.clock.boottime(), again, jitter());
        self.inner.changed.notify_one();
    }

    fn forget(&self, ticket: Ticket) {
        let mut state = self.lock();
        state.plan.remove(ticket);
        state.items.remove(&ticket);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
