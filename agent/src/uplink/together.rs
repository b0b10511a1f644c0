//! What is asked at the same time travels in one message.
//!
//! A call costs both sides several times what one more request in it costs. Nothing waits for
//! company: an agent with nothing on its way sends at once, and only while
//! [`limits::BATCHES_AT_ONCE`] messages are on their way does the next one fill up. One whose answer
//! takes long, because a login's target hangs, steps aside and does not count.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ephor_crypto::Secret;
use ephor_proto::grpc::v1;
use ephor_proto::limits::{MAX_ISSUE_BATCH, MAX_MESSAGE_BYTES};
use prost::Message;
use tokio::sync::oneshot;

use super::CallError;
use crate::limits;

type Answer = Result<v1::IssueResponse, CallError>;

/// One request and who waits for it.
pub(super) struct Asked {
    request: v1::IssueRequest,
    answer: oneshot::Sender<Answer>,
}

/// What waits, and how much is on its way.
#[derive(Default)]
pub(super) struct Together(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: VecDeque<Asked>,
    carriers: usize,
    /// Those that have stepped aside.
    aside: usize,
}

/// Carries message after message until nothing waits; one of [`limits::BATCHES_AT_ONCE`].
pub(super) struct Carrier {
    together: Option<Arc<Together>>,
    is_aside: bool,
}

/// Those who wait for the answers to one message, in its order.
pub(super) struct Answers(Vec<oneshot::Sender<Answer>>);

impl Asked {
    /// A request, and where its answer arrives.
    pub(super) fn new(request: v1::IssueRequest) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        (Self { request, answer }, answered)
    }
}

impl Together {
    /// Adds a request; with a carrier when it need not wait for one that is under way.
    pub(super) fn add(self: &Arc<Self>, asked: Asked) -> Option<Carrier> {
        let mut state = self.lock();
        state.waiting.push_back(asked);
        if state.carriers >= limits::BATCHES_AT_ONCE {
            return None;
        }
        state.carriers += 1;
        Some(Carrier::of(self))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier {
    fn of(together: &Arc<Together>) -> Self {
        Self {
            together: Some(Arc::clone(together)),
            is_aside: false,
        }
    }

    /// Its message is not answered soon: its place is another's, who carries what waits. Only so many
    /// may; the others keep their places.
    pub(super) fn step_aside(&mut self) -> Option<Self> {
        let together = self.together.as_ref()?;
        let mut state = together.lock();
        if self.is_aside || state.aside >= limits::BATCHES_ASIDE {
            return None;
        }
        self.is_aside = true;
        state.aside += 1;
        if state.waiting.is_empty() {
            state.carriers = state.carriers.saturating_sub(1);
            return None;
        }
        Some(Self::of(together))
    }

    /// The next message; `None` when nothing waits, or it has stepped aside, and then never again.
    pub(super) fn next(&mut self) -> Option<(Vec<v1::IssueRequest>, Answers)> {
        if self.is_aside {
            return None;
        }
        let together = Arc::clone(self.together.as_ref()?);
        let mut state = together.lock();
        let (mut requests, mut answers, mut size) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = state.waiting.front() {
            size += next.request.encoded_len();
            let full = requests.len() >= MAX_ISSUE_BATCH || size > MAX_MESSAGE_BYTES / 2;
            // One that is too large by itself goes alone: its refusal is not its neighbours'.
            if full && !requests.is_empty() {
                break;
            }
            let Some(asked) = state.waiting.pop_front() else {
                break;
            };
            // Nobody waits for it any more.
            if asked.answer.is_closed() {
                continue;
            }
            requests.push(asked.request);
            answers.push(asked.answer);
        }
        if requests.is_empty() {
            // Under the same lock as the look, so that whoever adds next starts a carrier.
            state.carriers = state.carriers.saturating_sub(1);
            self.together = None;
            return None;
        }
        Some((requests, Answers(answers)))
    }
}

impl Drop for Carrier {
    /// After a panic, the next one who asks starts another.
    fn drop(&mut self) {
        if let Some(together) = &self.together {
            let mut state = together.lock();
            if self.is_aside {
                state.aside = state.aside.saturating_sub(1);
            } else {
                state.carriers = state.carriers.saturating_sub(1);
            }
        }
    }
}

impl Answers {
    /// Tells everybody; what was for one who has left is wiped.
    pub(super) fn give(self, outcome: Result<Vec<Answer>, CallError>) {
        match outcome {
            Ok(outcomes) => {
                for (waiting, outcome) in self.0.into_iter().zip(outcomes) {
                    if let Err(Ok(unclaimed)) = waiting.send(outcome) {
                        wipe(unclaimed);
                    }
                }
            }
            Err(error) => {
                for waiting in self.0 {
                    let _ = waiting.send(Err(error.clone()));
                }
            }
        }
    }
}

/// The secrets are overwritten as they are dropped.
fn wipe(unclaimed: v1::IssueResponse) {
    for credential in unclaimed.credentials {
        drop(Secret::from_string(credential.token));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(reason: &str) -> v1::IssueRequest {
        v1::IssueRequest {
            reason: reason.to_owned(),
            ..Default::default()
        }
    }

    fn add(together: &Arc<Together>, reason: &str) -> (Option<Carrier>, oneshot::Receiver<Answer>) {
        let (asked, answered) = Asked::new(request(reason));
        (together.add(asked), answered)
    }

    fn reasons(requests: &[v1::IssueRequest]) -> Vec<&str> {
        requests.iter().map(|one| one.reason.as_str()).collect()
    }

    #[test]
    fn the_first_goes_at_once_and_what_comes_meanwhile_together() {
        let together = Arc::<Together>::default();
        let mut carriers = Vec::new();
        let mut waiting = Vec::new();
        for number in 0..limits::BATCHES_AT_ONCE {
            let (carrier, answered) = add(&together, &number.to_string());
            let mut carrier = carrier.unwrap();
            assert_eq!(carrier.next().unwrap().0.len(), 1);
            carriers.push(carrier);
            waiting.push(answered);
        }
        for number in 0..MAX_ISSUE_BATCH + 1 {
            let (carrier, answered) = add(&together, &number.to_string());
            assert!(carrier.is_none());
            waiting.push(answered);
        }
        let mut carrier = carriers.pop().unwrap();
        assert_eq!(carrier.next().unwrap().0.len(), MAX_ISSUE_BATCH);
        assert_eq!(
            reasons(&carrier.next().unwrap().0),
            [MAX_ISSUE_BATCH.to_string()]
        );
        assert!(carrier.next().is_none() && carrier.next().is_none());
        let (carrier, _answered) = add(&together, "next");
        assert!(carrier.is_some(), "the place of the one that ended is free");
    }

    #[test]
    fn one_that_is_slow_steps_aside_for_what_waits() {
        let together = Arc::<Together>::default();
        let mut slow = Vec::new();
        let mut waiting = Vec::new();
        for number in 0..limits::BATCHES_AT_ONCE + limits::BATCHES_ASIDE {
            let (carrier, answered) = add(&together, &number.to_string());
            let mut carrier = carrier.unwrap();
            carrier.next().unwrap();
            assert!(carrier.step_aside().is_none(), "nothing waits");
            slow.push(carrier);
            waiting.push(answered);
        }
        // So many are slow that the last ones kept their places.
        let (none, _first) = add(&together, "first");
        let (_, _second) = add(&together, "second");
        assert!(none.is_none());
        let mut last = slow.pop().unwrap();
        assert!(last.step_aside().is_none());
        // One is answered.
        let mut answered = slow.swap_remove(0);
        assert!(answered.next().is_none());
        drop(answered);
        let mut other = last.step_aside().unwrap();
        assert!(last.next().is_none(), "its place is another's");
        assert_eq!(reasons(&other.next().unwrap().0), ["first", "second"]);
        assert!(other.next().is_none());
    }

    #[test]
    fn a_carrier_that_broke_leaves_its_place() {
        let together = Arc::<Together>::default();
        for _ in 0..limits::BATCHES_AT_ONCE + 1 {
            let (carrier, answered) = add(&together, "x");
            drop((carrier.unwrap(), answered));
        }
    }

    #[test]
    fn what_is_too_large_goes_alone_and_who_left_is_not_carried() {
        let together = Arc::<Together>::default();
        let (carrier, _first) = add(&together, "first");
        let (_, left) = add(&together, "left");
        drop(left);
        let (_, _large) = add(&together, &"x".repeat(MAX_MESSAGE_BYTES));
        let (_, _last) = add(&together, "last");
        let mut carrier = carrier.unwrap();
        assert_eq!(reasons(&carrier.next().unwrap().0), ["first"]);
        assert_eq!(carrier.next().unwrap().0.len(), 1);
        assert_eq!(reasons(&carrier.next().unwrap().0), ["last"]);
    }

    #[tokio::test]
    async fn each_gets_its_own_answer_or_all_the_same_failure() {
        let together = Arc::<Together>::default();
        let (carrier, one) = add(&together, "one");
        let (_, two) = add(&together, "two");
        let mut carrier = carrier.unwrap();
        let (requests, answers) = carrier.next().unwrap();
        let echo = requests.into_iter().map(|request| {
            Ok(v1::IssueResponse {
                owner: request.reason,
                ..Default::default()
            })
        });
        answers.give(Ok(echo.collect()));
        assert_eq!(one.await.unwrap().unwrap().owner, "one");
        assert_eq!(two.await.unwrap().unwrap().owner, "two");
    }
}
