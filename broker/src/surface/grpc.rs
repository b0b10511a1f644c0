//! gRPC for agents: find out who is calling, call a stage, encode the answer.
//!
//! Who is calling is decided at every request from the connection's certificate and the
//! host's row; the request's own words about its host count for nothing.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use ephor_proto::grpc::v1::enrolment_server::{Enrolment, EnrolmentServer};
use ephor_proto::grpc::v1::uplink_server::{Uplink, UplinkServer};
use ephor_proto::grpc::{PROBLEM_METADATA, v1};
use ephor_proto::limits::{MAX_ISSUE_BATCH, MAX_MESSAGE_BYTES};
use ephor_proto::problem::{Code, Problem};
use futures_util::future::join_all;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::listener::Connection;
use super::tls::AgentCertificate;
use crate::app::Broker;
use crate::fleet::{Member, Peer};
use crate::request::Refusal;

/// The services of `ephor.v1`.
pub fn router(broker: &Arc<Broker>) -> Router {
    let service = Service {
        broker: Arc::clone(broker),
    };
    let enrolment = EnrolmentServer::new(service.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let uplink = UplinkServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    // Not `Routes::default`: its fallback would answer every path of this listener.
    Routes::from(Router::new())
        .add_service(enrolment)
        .add_service(uplink)
        .into_axum_router()
}

#[derive(Clone)]
struct Service {
    broker: Arc<Broker>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    fn refuse(&self, refusal: Refusal) -> Status {
        status(&refusal.into_problem(self.broker.correlation()))
    }

    /// What the connection showed of its agent.
    fn certificate<'r, T>(&self, request: &'r Request<T>) -> Result<&'r AgentCertificate, Status> {
        match request.extensions().get::<Connection>() {
            Some(Connection::Https {
                agent: Some(agent),
                remote: _,
            }) => Ok(agent),
            Some(Connection::Https { .. } | Connection::Http { .. } | Connection::Admin { .. })
            | None => {
                let detail = "this call needs the certificate of a joined agent";
                Err(self.refuse(Refusal::new(Code::Unauthenticated, detail)))
            }
        }
    }

    /// Whether it is of an epoch whose agents come back: good for a new one, and nothing else.
    fn is_of_epoch_before(&self, agent: &AgentCertificate) -> bool {
        let before = self.broker.readmission.as_ref();
        before.is_some_and(|before| before.issued(agent.authority_key_id()))
    }

    fn member<T>(&self, request: &Request<T>) -> Result<Member, Status> {
        let agent = self.certificate(request)?;
        if self.is_of_epoch_before(agent) {
            let detail = format!(
                "a new epoch began at this broker; the certificate of host `{}` is good for a new one only",
                agent.host()
            );
            return Err(self.refuse(Refusal::new(Code::EpochEnded, detail)));
        }
        let keys = self.broker.keys.load();
        if !keys.trusts(agent.authority_key_id()) {
            let detail = format!(
                "the CA that issued the certificate of host `{0}` is no longer trusted; without a renewed one \
                 the host joins again: ephor host invite {0}",
                agent.host()
            );
            return Err(self.refuse(Refusal::new(Code::Unauthenticated, detail)));
        }
        self.broker
            .fleet
            .member(agent)
            .map_err(|refusal| self.refuse(refusal))
    }

    fn peer<T>(&self, request: &Request<T>, instance_id: &[u8]) -> Result<Peer, Status> {
        let member = self.member(request)?;
        self.broker
            .vouch()
            .map_err(|refusal| self.refuse(refusal))?;
        self.broker
            .fleet
            .peer(member, instance_id)
            .map_err(|refusal| self.refuse(refusal))
    }

    /// Runs a stage to its end, also when the caller's connection goes away meanwhile.
    async fn to_the_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Answer<T> {
        match self.broker.tasks.run(name, work).await {
            Ok(Ok(answer)) => Ok(Response::new(answer)),
            Ok(Err(problem)) => Err(status(&problem)),
            Err(panicked) => Err(self.refuse(Refusal::new(Code::Internal, panicked.to_string()))),
        }
    }
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let broker = Arc::clone(&self.broker);
        self.to_the_end(
            "join",
            async move { broker.join(request.into_inner()).await },
        )
        .await
    }
}

#[tonic::async_trait]
impl Uplink for Service {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Answer<v1::HelloResponse> {
        // What an agent has seen counts before who it is: the store may be too old to know it.
        let certificate = self.certificate(&request)?;
        let host = certificate.host().as_str().to_owned();
        // One of the epoch before has seen another log.
        let seen = if self.is_of_epoch_before(certificate) {
            ""
        } else {
            request.get_ref().checkpoint.as_str()
        };
        let compared = self.broker.compare_with_seen(&host, seen);
        compared.await.map_err(|refusal| self.refuse(refusal))?;
        let (member, broker) = (self.member(&request)?, Arc::clone(&self.broker));
        self.to_the_end("hello", async move {
            broker.hello(&member, request.into_inner()).await
        })
        .await
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Answer<v1::HeartbeatResponse> {
        let peer = self.peer(&request, &request.get_ref().instance_id)?;
        let broker = Arc::clone(&self.broker);
        self.to_the_end("heartbeat", async move {
            broker.heartbeat(&peer, request.into_inner()).await
        })
        .await
    }

    async fn whoami(&self, request: Request<v1::WhoamiRequest>) -> Answer<v1::WhoamiResponse> {
        let peer = self.peer(&request, &request.get_ref().instance_id)?;
        let answer = self.broker.whoami(&peer, request.into_inner()).await;
        answer
            .map(Response::new)
            .map_err(|problem| status(&problem))
    }

    async fn issue(&self, request: Request<v1::IssueBatch>) -> Answer<v1::IssueOutcomes> {
        let peer = self.peer(&request, &request.get_ref().instance_id)?;
        let requests = request.into_inner().requests;
        if requests.len() > MAX_ISSUE_BATCH {
            let detail = format!("more than {MAX_ISSUE_BATCH} requests in one message");
            return Err(self.refuse(Refusal::new(Code::InvalidRequest, detail)));
        }
        // Not to its end at any price: with nobody to take it, nothing should be issued.
        let outcomes = requests
            .into_iter()
            .map(|one| async { outcome(self.broker.issue(&peer, one).await) });
        let outcomes = self.broker.ledger.together(join_all(outcomes)).await;
        Ok(Response::new(v1::IssueOutcomes { outcomes }))
    }

    async fn confirm(&self, request: Request<v1::ConfirmRequest>) -> Answer<v1::ConfirmResponse> {
        let peer = self.peer(&request, &request.get_ref().instance_id)?;
        let broker = Arc::clone(&self.broker);
        self.to_the_end("confirm", async move {
            broker.confirm(&peer, request.into_inner()).await
        })
        .await
    }

    async fn complete(
        &self,
        request: Request<v1::CompleteRequest>,
    ) -> Answer<v1::CompleteResponse> {
        let peer = self.peer(&request, &request.get_ref().instance_id)?;
        let broker = Arc::clone(&self.broker);
        self.to_the_end("complete", async move {
            broker.complete(&peer, request.into_inner()).await
        })
        .await
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Push, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        let peer = self.peer(&request, &request.get_ref().instance_id)?;
        let pushes = ReceiverStream::new(self.broker.fleet.watch(&peer));
        // Only now: what is revoked from here on is in the stream.
        let missed = self.broker.revoked_at(peer.host());
        let missed = missed.map_err(|refusal| self.refuse(refusal))?;
        let pushes = tokio_stream::iter(missed).chain(pushes);
        Ok(Response::new(Box::pin(pushes.map(Ok))))
    }

    async fn renew_identity(
        &self,
        request: Request<v1::RenewIdentityRequest>,
    ) -> Answer<v1::RenewIdentityResponse> {
        let certificate = self.certificate(&request)?;
        if self.is_of_epoch_before(certificate) {
            let (certificate, broker) = (certificate.clone(), Arc::clone(&self.broker));
            return self
                .to_the_end("readmit", async move {
                    broker.readmit(&certificate, request.into_inner()).await
                })
                .await;
        }
        let (member, broker) = (self.member(&request)?, Arc::clone(&self.broker));
        self.to_the_end("renew_identity", async move {
            broker.renew_identity(&member, request.into_inner()).await
        })
        .await
    }
}

/// One request's outcome among others.
fn outcome(outcome: Result<v1::IssueResponse, Problem>) -> v1::IssueOutcome {
    use v1::issue_outcome::Outcome;
    let outcome = match outcome {
        Ok(issued) => Outcome::Issued(issued),
        Err(problem) => {
            tracing::debug!(code = %problem.code, correlation = %problem.correlation_id, "refused");
            // Plain data, which always serialises.
            Outcome::Refused(serde_json::to_vec(&problem).unwrap_or_default())
        }
    };
    v1::IssueOutcome {
        outcome: Some(outcome),
    }
}

/// A refusal as gRPC has it: the problem in the metadata, the code for generic clients.
fn status(problem: &Problem) -> Status {
    tracing::debug!(code = %problem.code, correlation = %problem.correlation_id, "refused");
    let mut metadata = MetadataMap::new();
    // A problem is plain data and always serialises; without it the code and text still say it.
    if let Ok(json) = serde_json::to_vec(problem) {
        metadata.insert_bin(PROBLEM_METADATA, MetadataValue::from_bytes(&json));
    }
    Status::with_metadata(grpc_code(problem.status), problem.to_string(), metadata)
}

/// The nearest gRPC code of an HTTP status.
fn grpc_code(status: u16) -> tonic::Code {
    match status {
        202 | 502..=504 => tonic::Code::Unavailable,
        400 | 421 => tonic::Code::InvalidArgument,
        401 => tonic::Code::Unauthenticated,
        403 => tonic::Code::PermissionDenied,
        404 => tonic::Code::NotFound,
        409 => tonic::Code::Aborted,
        413 | 429 | 507 => tonic::Code::ResourceExhausted,
        426 => tonic::Code::FailedPrecondition,
        405 | 501 => tonic::Code::Unimplemented,
        400..=499 => tonic::Code::FailedPrecondition,
        _ => tonic::Code::Internal,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ephor_proto::id::CorrelationId;

    use super::*;

    #[test]
    fn a_refusal_travels_whole() {
        let correlation = CorrelationId::from_parts(1, [7; 10]);
        for code in Code::ALL {
            let problem = Problem::new(*code, correlation, "what was wrong");
            let status = status(&problem);
            assert_ne!(status.code(), tonic::Code::Ok);
            let json = status
                .metadata()
                .get_bin(PROBLEM_METADATA)
                .unwrap()
                .to_bytes()
                .unwrap();
            assert_eq!(serde_json::from_slice::<Problem>(&json).unwrap(), problem);
            assert_eq!(
                status.code() == tonic::Code::Internal,
                *code == Code::Internal,
                "{code}"
            );
        }
    }
}
