//! The agent's client of the broker: one long-lived connection, multiplexed.
//!
//! Every connection begins with `Hello`. While the broker is away a call has the next attempt made
//! now, and is refused as `unreachable` when that fails; task ends wait in the [`spool`] and are
//! delivered on return. It must never log a message's content.

pub mod backoff;
mod bundle;
pub mod checkpoint;
pub mod connect;
mod ends;
pub mod identity;
pub mod join;
pub mod refusal;
pub mod session;
pub mod spool;
mod together;

use std::sync::Arc;
use std::time::Duration;

use ephor_proto::grpc::v1;
use ephor_proto::id::{CorrelationId, CredentialId, InstanceId, TaskId};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::time::Clock;
use tokio::sync::{Notify, watch};

use crate::limits;
use crate::tasks::Tasks;
use connect::Client;
pub use refusal::CallError;
use together::{Asked, Carrier, Together};

/// A source of correlation ids.
pub type NewCorrelation = Arc<dyn Fn() -> CorrelationId + Send + Sync>;

/// A connection on which `Hello` was answered.
pub struct Session {
    client: Client,
    /// What the broker said.
    pub info: v1::HelloResponse,
}

/// The state of the connection.
#[derive(Clone)]
pub enum Link {
    /// The first attempt since the start is running.
    Connecting,
    /// Up.
    Up(Arc<Session>),
    /// Down; the next attempt comes in about so many seconds.
    Away {
        /// What went wrong, safe for a caller.
        why: Arc<str>,
        /// Seconds until the next attempt, at least 1.
        retry_after: u32,
    },
}

/// The handle everyone calls through. Cheap to clone.
#[derive(Clone)]
pub struct Uplink {
    link: watch::Sender<Link>,
    instance: InstanceId,
    correlation: NewCorrelation,
    clock: Arc<dyn Clock + Send + Sync>,
    /// Rung when any call is answered that this host is banned.
    banned: Arc<Notify>,
    /// Rung when a call needs the connection that is away.
    wanted: Arc<Notify>,
    together: Arc<Together>,
    tasks: Tasks,
}

impl Uplink {
    /// A handle that is not connected yet; [`session::run`] connects it.
    #[must_use]
    pub fn new(
        instance: InstanceId,
        correlation: NewCorrelation,
        clock: Arc<dyn Clock + Send + Sync>,
        tasks: Tasks,
    ) -> Self {
        Self {
            link: watch::Sender::new(Link::Connecting),
            instance,
            correlation,
            clock,
            banned: Arc::default(),
            wanted: Arc::default(),
            together: Arc::default(),
            tasks,
        }
    }

    /// This start of the agent.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The state of the connection now.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Waits until the connection is up.
    pub async fn connected(&self) {
        let mut watch = self.link.subscribe();
        // The sender lives in `self`, so this only ends by the condition.
        let _ = watch.wait_for(|link| matches!(link, Link::Up(_))).await;
    }

    /// Request, attest, decide, approve, issue at the broker, together with what else is asked
    /// now. The request id makes it repeatable: when the connection breaks under it and returns
    /// in time, it is sent again.
    ///
    /// # Errors
    /// The broker's refusal, or `unreachable`.
    pub async fn issue(&self, request: v1::IssueRequest) -> Result<v1::IssueResponse, CallError> {
        // Not after those whose call the same broken connection holds up.
        self.session().await?;
        let (asked, answered) = Asked::new(request);
        if let Some(carrier) = self.together.add(asked) {
            self.carry(carrier);
        }
        // One deadline to wait for those before it, and one of its own; who gives up is not sent.
        match tokio::time::timeout(2 * limits::REQUEST_DEADLINE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_broke)) => Err(CallError::Broken(
                self.unreachable("the request broke inside the agent", 1),
            )),
            Err(_elapsed) => Err(CallError::Broken(
                self.unreachable("the broker did not answer in time", 1),
            )),
        }
    }

    fn carry(&self, mut carrier: Carrier) {
        let uplink = self.clone();
        self.tasks.spawn("uplink.issue", async move {
            while let Some((requests, answers)) = carrier.next() {
                let mut call = std::pin::pin!(uplink.issue_all(requests));
                let answer = tokio::select! {
                    biased;
                    answer = &mut call => answer,
                    () = tokio::time::sleep(limits::BATCH_IS_SLOW) => {
                        if let Some(other) = carrier.step_aside() {
                            uplink.carry(other);
                        }
                        call.await
                    }
                };
                answers.give(answer);
            }
        });
    }

    async fn issue_all(
        &self,
        requests: Vec<v1::IssueRequest>,
    ) -> Result<Vec<Result<v1::IssueResponse, CallError>>, CallError> {
        let asked = requests.len();
        let batch = v1::IssueBatch {
            instance_id: self.instance.to_bytes().to_vec(),
            requests,
        };
        let answer = self
            .repeatable(|mut client| {
                let batch = batch.clone();
                async move { client.issue(timed(batch)).await }
            })
            .await?;
        if answer.outcomes.len() != asked {
            return Err(CallError::Broken(
                self.unreachable("the broker's answer is not to what was asked", 1),
            ));
        }
        let outcomes = answer.outcomes.into_iter();
        Ok(outcomes.map(|outcome| self.outcome(outcome)).collect())
    }

    fn outcome(&self, outcome: v1::IssueOutcome) -> Result<v1::IssueResponse, CallError> {
        use v1::issue_outcome::Outcome;
        match outcome.outcome {
            Some(Outcome::Issued(issued)) => Ok(issued),
            Some(Outcome::Refused(problem)) => {
                Err(self.heard(refusal::from_json(&problem, &self.correlation)))
            }
            None => Err(refusal::unreadable(&self.correlation)),
        }
    }

    /// Which subjects a caller is.
    ///
    /// # Errors
    /// The broker's refusal, or `unreachable`.
    pub async fn whoami(&self, evidence: v1::Evidence) -> Result<v1::WhoamiResponse, CallError> {
        let request = v1::WhoamiRequest {
            instance_id: self.instance.to_bytes().to_vec(),
            evidence: Some(evidence),
        };
        self.repeatable(|mut client| {
            let request = request.clone();
            async move { client.whoami(timed(request)).await }
        })
        .await
    }

    /// Tells that these were handed over. Repeatable.
    ///
    /// # Errors
    /// The broker's refusal, or `unreachable`.
    pub async fn confirm(&self, ids: &[CredentialId]) -> Result<(), CallError> {
        let request = v1::ConfirmRequest {
            instance_id: self.instance.to_bytes().to_vec(),
            credential_ids: ids.iter().map(|id| id.to_bytes().to_vec()).collect(),
        };
        let answer = self.repeatable(|mut client| {
            let request = request.clone();
            async move { client.confirm(timed(request)).await }
        });
        answer.await.map(|v1::ConfirmResponse {}| ())
    }

    /// Tells that a task ended; answers with its receipt. Repeatable.
    async fn complete(
        &self,
        session: &Session,
        task: TaskId,
        cause: &str,
    ) -> Result<v1::CompleteResponse, CallError> {
        let request = v1::CompleteRequest {
            instance_id: self.instance.to_bytes().to_vec(),
            task_id: task.to_bytes().to_vec(),
            cause: cause.to_owned(),
        };
        let mut client = session.client.clone();
        self.call(client.complete(timed(request))).await
    }

    /// Runs one call within the deadline; when the connection breaks under it, once more on
    /// the next one.
    async fn repeatable<T, F>(&self, send: impl Fn(Client) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let whole = async {
            let session = self.session().await?;
            match self.call(send(session.client.clone())).await {
                Err(CallError::Broken(_)) => {}
                // The agent's certificate was renewed, and a new connection has used the new one
                // while this call was on its way.
                Err(error) if error.refused() == Some(Code::Unauthenticated) => {
                    let next = self.session_after(&session);
                    return match tokio::time::timeout(limits::RENEWED_WAIT, next).await {
                        Ok(Ok(next)) => self.call(send(next.client.clone())).await,
                        Ok(Err(_)) | Err(_) => Err(error),
                    };
                }
                answer @ (Ok(_) | Err(CallError::Refused(_))) => return answer,
            }
            let next = self.session_after(&session).await?;
            self.call(send(next.client.clone())).await
        };
        match tokio::time::timeout(limits::REQUEST_DEADLINE, whole).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(CallError::Broken(
                self.unreachable("the broker did not answer in time", 1),
            )),
        }
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(limits::REQUEST_DEADLINE, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.heard(refusal::from_status(&status, &self.correlation))),
            Err(_elapsed) => Err(CallError::Broken(
                self.unreachable("the broker did not answer in time", 1),
            )),
        }
    }

    /// A ban is news for the whole agent.
    fn heard(&self, error: CallError) -> CallError {
        if error.refused() == Some(Code::AgentBanned) {
            self.banned.notify_one();
        }
        error
    }

    /// The session, waited for while an attempt runs: the first since the start, or one that this
    /// call has made now. A broker that came back is not waited for longer than it takes to reach.
    async fn session(&self) -> Result<Arc<Session>, CallError> {
        let mut watch = self.link.subscribe();
        let link = watch
            .wait_for(|link| !matches!(link, Link::Connecting))
            .await;
        let mut link = link.map_or(Link::Connecting, |link| link.clone());
        if matches!(link, Link::Away { .. }) {
            self.wanted.notify_one();
            // Also an attempt that failed is a change.
            if let Ok(Ok(())) = tokio::time::timeout(limits::AWAY_WAIT, watch.changed()).await {
                link = watch.borrow().clone();
            }
        }
        self.up(link)
    }

    async fn session_after(&self, broken: &Arc<Session>) -> Result<Arc<Session>, CallError> {
        let mut watch = self.link.subscribe();
        loop {
            match watch.borrow_and_update().clone() {
                link @ Link::Up(_) if !is_of(&link, broken) => return self.up(link),
                Link::Up(_) | Link::Connecting => {}
                Link::Away { .. } => self.wanted.notify_one(),
            }
            // The sender lives in `self`.
            if watch.changed().await.is_err() {
                return self.up(Link::Connecting);
            }
        }
    }

    fn up(&self, link: Link) -> Result<Arc<Session>, CallError> {
        match link {
            Link::Up(session) => Ok(session),
            Link::Away { why, retry_after } => {
                Err(CallError::Broken(self.unreachable(&why, retry_after)))
            }
            Link::Connecting => Err(CallError::Broken(
                self.unreachable("the agent is stopping", 1),
            )),
        }
    }

    fn unreachable(&self, why: &str, retry_after: u32) -> Problem {
        let detail = format!("{why}. Nothing was issued; what is held goes on until it expires");
        Problem::new(Code::Unreachable, (self.correlation)(), detail).with_retry_after(retry_after)
    }
}

fn is_of(link: &Link, session: &Arc<Session>) -> bool {
    matches!(link, Link::Up(up) if Arc::ptr_eq(up, session))
}

/// A request that tells the broker our deadline too.
fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limits::REQUEST_DEADLINE);
    request
}

/// A wait in whole seconds, rounded up, at least 1.
fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1_000))
        .unwrap_or(u32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_in_whole_seconds() {
        for (millis, told) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (30_000, 30)] {
            assert_eq!(seconds(Duration::from_millis(millis)), told, "{millis}");
        }
    }
}
