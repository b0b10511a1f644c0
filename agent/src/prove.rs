//! Stage 9 on the host: hand on the broker's receipt to whoever asks for it.
//!
//! The agent proves nothing itself. It keeps the receipts of the last ended tasks in memory,
//! so that the one who ended a task gets its receipt with the answer; it must never make one up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ephor_proto::grpc::v1;
use ephor_proto::http::agent::Completed;
use ephor_proto::id::TaskId;
use ephor_proto::time::UnixMillis;
use tokio::sync::watch;

use crate::limits;

/// An ended task, and its receipt once the broker sent it.
struct Ended {
    uid: u32,
    cause: &'static str,
    wiped: u32,
    receipt: watch::Sender<Answer>,
}

/// What the broker said about the end.
#[derive(Clone)]
enum Answer {
    Waiting,
    /// The broker has the end, and has not proven it yet.
    Heard,
    /// The end was told; the receipt where there was anything to prove.
    Told(Option<Arc<v1::CompleteResponse>>),
}

/// Ended tasks, the last [`limits::RECEIPTS`] of them.
#[derive(Default)]
pub struct Receipts {
    /// Guards both; never held across an await.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    ended: HashMap<TaskId, Ended>,
    order: VecDeque<TaskId>,
}

impl Receipts {
    /// A task ended, and so many copies were wiped. Repeating it adds to the copies.
    pub fn begin(&self, task: TaskId, uid: u32, cause: &'static str, wiped: u32) {
        let mut inner = self.lock();
        if let Some(ended) = inner.ended.get_mut(&task) {
            ended.wiped += wiped;
            return;
        }
        let ended = Ended {
            uid,
            cause,
            wiped,
            receipt: watch::Sender::new(Answer::Waiting),
        };
        inner.ended.insert(task, ended);
        inner.order.push_back(task);
        if inner.order.len() > limits::RECEIPTS
            && let Some(old) = inner.order.pop_front()
        {
            inner.ended.remove(&old);
        }
    }

    /// The broker took the end.
    pub fn told(&self, task: TaskId, receipt: Option<v1::CompleteResponse>) {
        if let Some(ended) = self.lock().ended.get(&task) {
            ended
                .receipt
                .send_replace(Answer::Told(receipt.map(Arc::new)));
        }
    }

    /// The broker has the end, and is still revoking.
    pub fn heard(&self, task: TaskId) {
        if let Some(ended) = self.lock().ended.get(&task) {
            ended.receipt.send_if_modified(|answer| {
                let is_first = matches!(answer, Answer::Waiting);
                if is_first {
                    *answer = Answer::Heard;
                }
                is_first
            });
        }
    }

    /// The uid that owned an ended task.
    #[must_use]
    pub fn owner(&self, task: TaskId) -> Option<u32> {
        self.lock().ended.get(&task).map(|ended| ended.uid)
    }

    /// Why a task ended.
    #[must_use]
    pub fn cause(&self, task: TaskId) -> Option<&'static str> {
        self.lock().ended.get(&task).map(|ended| ended.cause)
    }

    /// Whether the broker has the end of an ended task.
    #[must_use]
    pub fn is_told(&self, task: TaskId) -> bool {
        self.lock()
            .ended
            .get(&task)
            .is_some_and(|ended| matches!(*ended.receipt.borrow(), Answer::Told(_)))
    }

    /// What to answer about an ended task. Waits for the receipt, but not longer than
    /// `patience`: without it the answer says what is known. `None` for a task not known here.
    pub async fn completed(&self, task: TaskId, patience: Duration) -> Option<Completed> {
        let mut receipt = self
            .lock()
            .ended
            .get(&task)
            .map(|ended| ended.receipt.subscribe())?;
        let told = tokio::time::timeout(
            patience,
            receipt.wait_for(|answer| matches!(answer, Answer::Told(_))),
        );
        // Whether it came in time or not: this is what is known.
        let _ = told.await;
        let answer = receipt.borrow().clone();
        let wiped = self.lock().ended.get(&task).map_or(0, |ended| ended.wiped);
        Some(to_wire(task, wiped, &answer))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_wire(task: TaskId, wiped: u32, answer: &Answer) -> Completed {
    let told = match answer {
        Answer::Told(receipt) => receipt.as_deref(),
        Answer::Waiting | Answer::Heard => None,
    };
    let listed_until = told
        .map(|told| told.listed_until)
        .filter(|until| *until > 0);
    Completed {
        task,
        receipt_id: task.receipt(),
        dead: told.map_or(0, |told| told.dead),
        listed: told.map_or(0, |told| told.listed),
        listed_until: listed_until.map(UnixMillis::from_millis),
        wiped,
        heard: !matches!(answer, Answer::Waiting),
        receipt: told.and_then(|told| serde_json::from_str(&told.receipt).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(n: u8) -> TaskId {
        TaskId::from_parts(u64::from(n), [n; 10])
    }

    fn response() -> v1::CompleteResponse {
        v1::CompleteResponse {
            receipt: r#"{"leaf":"x"}"#.into(),
            dead: 1,
            listed: 2,
            listed_until: 5,
            revoke_microseconds: 7,
        }
    }

    #[tokio::test]
    async fn the_receipt_reaches_who_waits_and_who_asks_again() {
        let receipts = Arc::new(Receipts::default());
        assert!(receipts.completed(task(1), Duration::ZERO).await.is_none());
        receipts.begin(task(1), 1000, "exited", 2);
        receipts.begin(task(1), 1000, "released", 1);
        assert_eq!(
            (receipts.owner(task(1)), receipts.cause(task(1))),
            (Some(1000), Some("exited"))
        );
        let early = receipts.completed(task(1), Duration::ZERO).await.unwrap();
        assert_eq!(
            (early.wiped, early.receipt.is_none(), early.dead),
            (3, true, 0)
        );
        assert!(!early.heard);
        receipts.heard(task(1));
        let heard = receipts.completed(task(1), Duration::ZERO).await.unwrap();
        assert!(heard.heard && heard.receipt.is_none());
        let waiter = async {
            receipts
                .completed(task(1), Duration::from_secs(60))
                .await
                .unwrap()
        };
        let teller = async { receipts.told(task(1), Some(response())) };
        let (late, ()) = tokio::join!(waiter, teller);
        assert_eq!((late.dead, late.listed, late.wiped), (1, 2, 3));
        assert_eq!(late.receipt.unwrap()["leaf"], "x");
        receipts.heard(task(1));
        assert!(receipts.is_told(task(1)));
        assert_eq!(
            receipts
                .completed(task(1), Duration::ZERO)
                .await
                .unwrap()
                .dead,
            1
        );
    }

    #[tokio::test]
    async fn a_task_the_broker_never_had_has_no_receipt() {
        let receipts = Receipts::default();
        receipts.begin(task(2), 0, "exited", 0);
        receipts.told(task(2), None);
        let done = receipts
            .completed(task(2), Duration::from_secs(60))
            .await
            .unwrap();
        assert!(done.receipt.is_none() && done.receipt_id.task() == task(2));
    }

    #[test]
    fn only_the_last_are_kept() {
        let receipts = Receipts::default();
        for n in 0..=limits::RECEIPTS {
            let millis = u64::try_from(n).unwrap();
            receipts.begin(TaskId::from_parts(millis, [0; 10]), 0, "exited", 0);
        }
        assert_eq!(receipts.owner(TaskId::from_parts(0, [0; 10])), None);
        assert_eq!(receipts.owner(TaskId::from_parts(1, [0; 10])), Some(0));
    }
}
