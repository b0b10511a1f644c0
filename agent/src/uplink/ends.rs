//! Telling the broker of ends: oldest first, several on their way at once.
//!
//! The broker answers once an end is proven, and that may take long: a login's target may hang. Then
//! its end must not keep others from being told. One that is slow gives its place up and has one of
//! another kind; one that the broker is at already is only asked after, among few.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use ephor_proto::grpc::v1;
use ephor_proto::problem::Code;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Session;
use super::backoff::{Backoff, jitter};
use super::refusal::CallError;
use super::session::{Over, Wiring};
use super::spool::End;
use crate::limits;

/// Tells all ends; itself ends only with the connection.
pub(super) async fn tell_all(wiring: &Arc<Wiring>, session: &Arc<Session>) -> Over {
    let places = Places::default();
    let mut taken = BTreeSet::new();
    let mut calls = JoinSet::new();
    loop {
        let mut is_full = false;
        while calls.len() < limits::ENDS_TOLD
            && let Some((number, end)) = wiring.spool.oldest(&taken)
        {
            let Some(place) = places.take() else {
                is_full = true;
                break;
            };
            taken.insert(number);
            let (wiring, session) = (Arc::clone(wiring), Arc::clone(session));
            calls.spawn(async move { (number, tell(&wiring, &session, end, place).await) });
        }
        tokio::select! {
            told = calls.join_next(), if !calls.is_empty() => match told {
                Some(Ok((number, Ok(())))) => {
                    wiring.spool.done(number);
                    taken.remove(&number);
                }
                Some(Ok((_, Err(over)))) => return over,
                Some(Err(error)) => tracing::error!(%error, "telling an end failed inside the agent"),
                None => {}
            },
            () = wiring.spool.changed() => {}
            () = places.free(), if is_full => {}
        }
    }
}

/// Tells one end until the broker has proven it. An error is the connection's.
async fn tell(wiring: &Wiring, session: &Session, end: End, mut place: Place) -> Result<(), Over> {
    let mut backoff = Backoff::new(limits::RECONNECT_FIRST, limits::RECONNECT_CAP);
    loop {
        crate::crash_point!("complete.before_send");
        let call = wiring.uplink.complete(session, end.task, end.cause);
        let error = match place.during(call).await {
            Ok(receipt) => {
                wiring.downlink.end_acknowledged(end.task, Some(receipt));
                return Ok(());
            }
            Err(error) => error,
        };
        match error.refused() {
            // The broker never had it, or it ended there in another way: nothing is left to tell.
            Some(Code::NotFound | Code::TaskEnded) => {
                wiring.downlink.end_acknowledged(end.task, None);
                return Ok(());
            }
            Some(Code::StaleInstance | Code::AgentBanned | Code::Unauthenticated) | None => {
                return Err(error.into());
            }
            Some(code) => {
                if code == Code::Overdue {
                    wiring.downlink.end_heard(end.task);
                }
                let wait = backoff.next(jitter());
                tracing::warn!(task = %end.task, %code, ?wait, "the broker did not take a task's end; telling it again");
                place.leave();
                tokio::time::sleep(wait).await;
                place.again().await;
            }
        }
    }
}

/// Places for calls on their way.
struct Places {
    first: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    again: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            first: places(limits::ENDS_IN_FLIGHT),
            slow: places(limits::ENDS_SLOW),
            again: places(limits::ENDS_AGAIN),
        }
    }
}

impl Places {
    fn take(&self) -> Option<Place> {
        let permit = Arc::clone(&self.first).try_acquire_owned().ok()?;
        Some(Place {
            permit: Some(permit),
            is_first: true,
            slow: Arc::clone(&self.slow),
            again: Arc::clone(&self.again),
        })
    }

    /// Resolves once [`Places::take`] may give one.
    async fn free(&self) {
        // It is never closed.
        let _ = self.first.acquire().await;
    }
}

/// One end's.
struct Place {
    permit: Option<OwnedSemaphorePermit>,
    is_first: bool,
    slow: Arc<Semaphore>,
    again: Arc<Semaphore>,
}

impl Place {
    /// Waits for an answer, in another place from when it is slow, if there is one.
    async fn during(
        &mut self,
        call: impl Future<Output = Result<v1::CompleteResponse, CallError>>,
    ) -> Result<v1::CompleteResponse, CallError> {
        let mut call = std::pin::pin!(call);
        if !self.is_first {
            return call.await;
        }
        tokio::select! {
            biased;
            answer = &mut call => return answer,
            () = tokio::time::sleep(limits::END_IS_SLOW) => {}
        }
        let slow = async {
            if let Ok(permit) = Arc::clone(&self.slow).acquire_owned().await {
                self.permit = Some(permit);
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            answer = call => answer,
            never = slow => never,
        }
    }

    fn leave(&mut self) {
        self.permit = None;
        self.is_first = false;
    }

    /// One for asking after what the broker is at.
    async fn again(&mut self) {
        self.permit = Arc::clone(&self.again).acquire_owned().await.ok();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    async fn hangs() -> Result<v1::CompleteResponse, CallError> {
        std::future::pending().await
    }

    /// Until a place is free; not at once, and soon.
    async fn freed(places: &Places) -> Place {
        assert!(places.take().is_none(), "all are taken");
        let soon = limits::END_IS_SLOW * 10;
        tokio::time::timeout(soon, places.free()).await.unwrap();
        places.take().unwrap()
    }

    #[tokio::test]
    async fn ends_that_hang_keep_no_other_from_being_told() {
        let places = Places::default();
        let mut calls = JoinSet::new();
        for _ in 0..limits::ENDS_IN_FLIGHT {
            let mut place = places.take().unwrap();
            calls.spawn(async move { place.during(hangs()).await });
        }
        let mut place = freed(&places).await;
        let answered = place.during(async { Ok(v1::CompleteResponse::default()) });
        assert!(answered.await.is_ok());
        // Nor do those that the broker is at already, of whom only few are asked after.
        let mut told = vec![place];
        while let Some(place) = places.take() {
            told.push(place);
        }
        for mut place in told {
            place.leave();
            calls.spawn(async move {
                place.again().await;
                place.during(hangs()).await
            });
        }
        tokio::task::yield_now().await;
        assert_eq!(places.again.available_permits(), 0);
        assert!(places.take().is_some());
    }

    #[tokio::test]
    async fn a_slow_one_still_gets_its_answer_and_so_many_are_waited_for() {
        let places = Places::default();
        let (word, told) = tokio::sync::oneshot::channel();
        let mut place = places.take().unwrap();
        let mut slow = JoinSet::new();
        slow.spawn(async move {
            place
                .during(async { Ok(told.await.unwrap()) })
                .await
                .unwrap()
                .dead
        });
        while places.slow.available_permits() == limits::ENDS_SLOW {
            tokio::time::sleep(limits::END_IS_SLOW / 10).await;
        }
        word.send(v1::CompleteResponse {
            dead: 7,
            ..Default::default()
        })
        .unwrap();
        assert_eq!(slow.join_next().await.unwrap().unwrap(), 7);
        assert_eq!(places.slow.available_permits(), limits::ENDS_SLOW);
    }
}
