//! Task ends that the broker has not acknowledged, oldest first.
//!
//! What is taken for sending stays here until it is acknowledged, so a lost answer only
//! means that the end is told twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use ephor_proto::id::TaskId;
use tokio::sync::Notify;

/// An end to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Which task.
    pub task: TaskId,
    /// `exited` or `released`: what the wire knows.
    pub cause: &'static str,
}

/// The queue. It is bounded by the number of tasks that can be open at once.
#[derive(Default)]
pub struct Spool {
    /// Guards the queue; never held across an await.
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, End>,
    tasks: BTreeSet<TaskId>,
}

impl Spool {
    /// Adds an end, unless that task's end is here already.
    pub fn add(&self, end: End) {
        let mut queue = self.lock();
        if queue.tasks.insert(end.task) {
            let place = queue.next;
            queue.next += 1;
            queue.waiting.insert(place, end);
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// The oldest end whose place is not in `taken`.
    #[must_use]
    pub fn oldest(&self, taken: &BTreeSet<u64>) -> Option<(u64, End)> {
        let queue = self.lock();
        queue
            .waiting
            .iter()
            .find(|(place, _)| !taken.contains(place))
            .map(|(place, end)| (*place, *end))
    }

    /// The end at `place` was acknowledged.
    pub fn done(&self, place: u64) {
        let mut queue = self.lock();
        if let Some(end) = queue.waiting.remove(&place) {
            queue.tasks.remove(&end.task);
        }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until something was added.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_first_until_acknowledged_and_once_each() {
        let spool = Spool::default();
        let end = |n: u8| End {
            task: TaskId::from_parts(u64::from(n), [n; 10]),
            cause: "exited",
        };
        for n in [3, 1, 2, 1] {
            spool.add(end(n));
        }
        assert_eq!(spool.len(), 3);
        let (place, first) = spool.oldest(&BTreeSet::new()).unwrap();
        assert_eq!(first, end(3));
        assert_eq!(spool.oldest(&BTreeSet::from([place])).unwrap().1, end(1));
        assert_eq!(
            spool.oldest(&BTreeSet::new()).unwrap().1,
            end(3),
            "taking is not removing"
        );
        spool.done(place);
        spool.done(place);
        assert_eq!(spool.len(), 2);
    }
}
