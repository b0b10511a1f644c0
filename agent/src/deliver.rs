//! Stage 6: a credential to the attested caller only.
//!
//! From memory where it is held; else one call to the broker for all who ask the same. The task
//! is journalled before its first hand-over, and the caller is checked again before a byte is
//! written: a refused check writes nothing.

pub mod certificates;
pub mod confirm;

use std::pin::Pin;
use std::sync::Arc;

use ephor_crypto::p256::SigningKey;
use ephor_proto::grpc::v1;
use ephor_proto::id::{CredentialId, RequestId, TaskId};
use ephor_proto::problem::{Code, FirstWord, Problem};
use ephor_proto::state::task::EndCause;
use futures_util::future::join_all;

use crate::app::Agent;
use crate::clock::Stopwatch;
use crate::crash_point;
use crate::hold::entry::{Beside, Cost};
use crate::hold::renew::Reissue;
use crate::hold::{Found, Held, Key, KeyRef, Lead};
use crate::limits;
use crate::request::{Asker, Requested};
use crate::revoke;
use crate::uplink::CallError;

/// What makes this request equal to another of the same task.
#[must_use]
pub fn key_of<'a>(asker: &'a Asker, requested: &'a Requested) -> KeyRef<'a> {
    KeyRef {
        fingerprint: &asker.fingerprint,
        entitlement: &requested.entitlement,
        item: &requested.item,
        reason: &requested.reason,
        ttl_seconds: requested.ttl_seconds,
        subject: &requested.subject,
        request: requested.request,
    }
}

/// The credential for `key` if it is in memory, for the path that waits for nothing.
#[must_use]
pub fn held(agent: &Agent, asker: &Asker, key: KeyRef<'_>) -> Option<Arc<Held>> {
    agent.hold.serve(asker.task.id, key, agent.clock.boottime())
}

/// The credential for `key`, from the broker, or from memory if it landed meanwhile; with what
/// asking the broker took, if this waited for it.
///
/// # Errors
/// The broker's refusal, `unreachable`, or that the task has ended.
pub async fn fetch(
    agent: &Arc<Agent>,
    asker: &Arc<Asker>,
    key: Arc<Key>,
    uid: u32,
) -> Result<(Arc<Held>, Option<Cost>), Problem> {
    let task = asker.task.id;
    let Some(_waiting) = agent.waiting.take(uid) else {
        return Err(agent.problem(
            Code::RateLimited,
            "too many requests of this user wait for the broker; nothing was issued",
        ));
    };
    let mut outcome = match agent.hold.enter(task, &key, agent.clock.boottime()) {
        Found::Held(held) => return Ok((held, None)),
        Found::Ended => {
            return Err(agent.problem(Code::TaskEnded, "the task has ended; nothing was issued"));
        }
        Found::Full => {
            let detail =
                "the task holds as many different credentials as it may; nothing was issued";
            return Err(agent.problem(Code::Busy, detail));
        }
        Found::Flying(outcome) => outcome,
        Found::Lead(lead, outcome) => {
            let (agent, asker) = (Arc::clone(agent), Arc::clone(asker));
            // In a task of its own: whoever asked first may leave, the others still wait.
            agent.clone().tasks.spawn("deliver.issue", async move {
                issue_and_land(&agent, &asker, key, lead).await
            });
            outcome
        }
    };
    let landed = tokio::time::timeout(limits::FLIGHT_WAIT, outcome.wait_for(Option::is_some)).await;
    match landed {
        Ok(Ok(outcome)) => match &*outcome {
            Some(Ok(held)) => Ok((Arc::clone(held), Some(held.cost))),
            Some(Err(problem)) => Err(problem.clone()),
            None => Err(agent.problem(
                Code::Internal,
                "the request ended without an outcome; nothing was handed out",
            )),
        },
        Ok(Err(_closed)) => Err(agent.problem(
            Code::Internal,
            "the request broke inside the agent; nothing was handed out",
        )),
        Err(_elapsed) => Err(agent.problem(
            Code::Unreachable,
            "no answer in time; nothing was handed out",
        )),
    }
}

async fn issue_and_land(agent: &Arc<Agent>, asker: &Arc<Asker>, key: Arc<Key>, lead: Lead) {
    let task = asker.task.id;
    let request = key
        .request
        .map_or_else(|| agent.new_id(RequestId::from_parts), Ok);
    let issued = match request {
        Ok(request) => issue(agent, asker, &key, request, None).await,
        Err(problem) => Err(problem),
    };
    let held = match issued {
        Ok(held) => Arc::new(held),
        Err(problem) => return lead.fail(problem),
    };
    // A restart must find the task before anyone has something of it.
    if let Err(error) = asker.identity.journalled().await {
        tracing::error!(%task, %error, "the task could not be journalled; it is ended, and its credentials revoked");
        revoke::end_task(agent, task, EndCause::Released);
        let detail = "the agent's journal could not be written; nothing was handed out, and what was issued is being revoked";
        return lead.fail(agent.problem(Code::StoreUnavailable, detail));
    }
    let landed = lead.land(Arc::clone(&held), || {
        agent.problem(
            Code::TaskEnded,
            "the task ended before its credential came; nothing was handed out",
        )
    });
    if landed {
        crash_point!("deliver.landed");
        agent.renewer.keep(task, key, &held);
    }
}

/// One request to the broker; with the executable's digest when the policy asks for it.
async fn issue(
    agent: &Agent,
    asker: &Arc<Asker>,
    key: &Key,
    request: RequestId,
    renews: Option<(&Held, CredentialId)>,
) -> Result<Held, Problem> {
    let attesting = Stopwatch::start();
    let evidence = match asker.identity.known_evidence() {
        Some(evidence) => evidence,
        None => {
            let identity = Arc::clone(asker);
            let asked = agent
                .tasks
                .blocking("attest.evidence", move || identity.identity.evidence());
            asked
                .await
                .map_err(|error| agent.problem(Code::Internal, error.to_string()))?
        }
    };
    let mut attested = attesting.micros();
    // A fresh one for each certificate, renewals included: what a stolen copy of an old key opens
    // ends with its own certificate.
    let named = key.request.filter(|_| renews.is_none());
    // But of a login, whose two files are read one after the other by whoever connects.
    let kept = renews
        .and_then(|(held, id)| held.kept_key(id))
        .map(Arc::new);
    let new_key = || {
        let key = agent.certificates.key_for(named);
        key.map_err(|error| agent.problem(Code::Internal, error.to_string()))
    };
    let needs_key = renews.is_some_and(|(held, id)| held.is_certificate(id))
        || agent.certificates.are_given_by(&key.entitlement, &key.item);
    let mut signing = match kept {
        Some(kept) => Some(kept),
        None => needs_key.then(new_key).transpose()?,
    };
    let message = |evidence, signing: Option<&SigningKey>| v1::IssueRequest {
        request_id: request.to_bytes().to_vec(),
        task: Some(asker.task.to_wire()),
        evidence: Some(evidence),
        entitlement: key.entitlement.to_string(),
        item: key.item.to_string(),
        reason: key.reason.to_string(),
        ttl_seconds: key.ttl_seconds,
        renews: renews
            .map(|(_, id)| id.to_bytes().to_vec())
            .unwrap_or_default(),
        subject: key.subject.to_string(),
        public_key_der: signing
            .map(|key| key.public_key().spki())
            .unwrap_or_default(),
        left_milliseconds: renews
            .map(|(held, _)| held.lifetime.end.millis_since(agent.clock.boottime()))
            .map(|left| left.max(1))
            .unwrap_or_default(),
    };
    let sent = agent.now();
    agent.told(asker.task.id);
    // In this order: an end that came before is seen here, and one that comes after is told to
    // the broker. Otherwise a task could be opened there that ended here unheard.
    if !asker.identity.is_open() {
        return Err(agent.problem(Code::TaskEnded, "the task has ended; nothing was issued"));
    }
    crash_point!("issue.before_send");
    let mut evidence = evidence;
    let mut answer = agent
        .uplink
        .issue(message(evidence.clone(), signing.as_deref()))
        .await;
    // What policy asks for is known once it was asked: first the digest, then the key.
    if is_refused(&answer, Code::EvidenceNeeded) {
        let hashing = Stopwatch::start();
        evidence = hashed(agent, asker).await?;
        attested += hashing.micros();
        answer = agent
            .uplink
            .issue(message(evidence.clone(), signing.as_deref()))
            .await;
    }
    if is_refused(&answer, Code::KeyNeeded) && signing.is_none() {
        agent.certificates.learn(&key.entitlement);
        signing = Some(new_key()?);
        answer = agent
            .uplink
            .issue(message(evidence, signing.as_deref()))
            .await;
    }
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            // Only a denial says for certain that nothing came of it; one of a target comes after the record.
            let is_denied =
                |code: Code| code.first_word() == FirstWord::Denied && code != Code::TargetRefused;
            if error.refused().is_some_and(is_denied) {
                agent.denied(asker.task.id);
                agent.certificates.answered(named);
            }
            return Err(error.into_problem());
        }
    };
    crash_point!("issue.answered");
    agent.known(asker.task.id);
    agent.certificates.answered(named);
    let beside = signing.map(|key| Beside {
        key,
        trust: Arc::clone(agent.certificates.trust()),
    });
    let times = (sent, agent.now());
    let renewed = renews.map(|(held, _)| held);
    let held = Held::new(answer, Arc::clone(asker), (beside.as_ref(), renewed), times);
    let mut held = held.map_err(|error| {
        agent.problem(Code::Internal, format!("{error}; nothing was handed out"))
    })?;
    held.cost.attest += attested;
    Ok(held)
}

fn is_refused(answer: &Result<v1::IssueResponse, CallError>, code: Code) -> bool {
    matches!(answer, Err(CallError::Refused(problem)) if problem.code == code)
}

async fn hashed(agent: &Agent, asker: &Arc<Asker>) -> Result<v1::Evidence, Problem> {
    let identity = Arc::clone(asker);
    let hashed = agent
        .tasks
        .blocking("attest.hash", move || identity.identity.hashed_evidence())
        .await;
    match hashed {
        Ok(Ok(evidence)) => Ok(evidence),
        Ok(Err(why)) => Err(agent.problem(
            Code::AttestationFailed,
            format!("{why}. Nothing was issued"),
        )),
        Err(error) => Err(agent.problem(Code::Internal, error.to_string())),
    }
}

/// Asks for what a new epoch made void, for callers that are still there and may never ask again
/// themselves: a file of theirs would go stale.
pub fn again(agent: &Arc<Agent>, void: Vec<(TaskId, Arc<Key>, Arc<Asker>)>) {
    let this = Arc::clone(agent);
    agent.tasks.spawn("deliver.again", async move {
        tokio::select! {
            () = this.tasks.stop().cancelled() => return,
            () = this.uplink.connected() => {}
        }
        for some in void.chunks(limits::AGAIN_AT_ONCE) {
            let asked = some.iter().map(|(task, key, asker)| {
                let (this, task, key) = (Arc::clone(&this), *task, Arc::clone(key));
                async move {
                    // Whoever asks for itself meanwhile has the lead.
                    let entered = this.hold.enter(task, &key, this.clock.boottime());
                    if let (Found::Lead(lead, _), Ok(())) = (entered, asker.identity.still()) {
                        issue_and_land(&this, asker, key, lead).await;
                    }
                }
            });
            join_all(asked).await;
        }
    });
}

/// Renewal: the same request, for the same identity, which must still be there.
pub struct Renewals(pub Arc<Agent>);

/// What exists at a target is extended, each by itself; what is only signed is signed again, and several of
/// that come in one answer.
async fn renew(agent: &Agent, key: &Key, held: &Held) -> Result<Held, Problem> {
    let several = held.credentials.len() > 1 && held.at_targets().next().is_none();
    let ids = held.credentials.iter().map(|one| one.id);
    let ids: Vec<Option<CredentialId>> = if several {
        vec![None]
    } else {
        ids.map(Some).collect()
    };
    let mut renewed = Vec::with_capacity(ids.len());
    for id in ids {
        let request = agent.new_id(RequestId::from_parts)?;
        let renews = id.map(|id| (held, id));
        renewed.push(issue(agent, &held.asker, key, request, renews).await?);
    }
    let mut renewed = renewed.into_iter();
    let first = renewed.next();
    let first = first.ok_or_else(|| agent.problem(Code::Internal, "nothing was renewed"))?;
    Ok(first.joined(renewed.collect()))
}

impl Reissue for Renewals {
    fn reissue(
        &self,
        _task: TaskId,
        key: Arc<Key>,
        held: Arc<Held>,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Held>, Problem>> + Send>> {
        let agent = Arc::clone(&self.0);
        Box::pin(async move {
            // Without a process to attest there is no renewal; the next one that asks gets its own.
            if let Err(why) = held.asker.identity.still() {
                return Err(agent.problem(Code::CallerGone, why));
            }
            crash_point!("renew.before_send");
            let renewed = renew(&agent, &key, &held).await;
            crash_point!("renew.answered");
            renewed.map(Arc::new)
        })
    }
}
