//! Stage 5: one transaction stores the intent and its audit events; then, and only then, a
//! [`Permit`] lets the credential out.
//!
//! Nothing leaves on a commit that is refused or whose fate is unknown. Signing runs beside the
//! flush, sealed until the record is durable.

mod events;
mod intent;
mod lent;
mod mint;
mod plan;
mod refused;
mod renew;
mod replay;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use events::credential_part;
pub use intent::{Intent, Made, Opened, Permit, Planned, Sealed, WrongProof};
pub use mint::{Access, By};

use std::sync::Arc;

use ephor_crypto::p256::KeyError;
use ephor_crypto::x509::X509Error;
use ephor_proto::grpc::v1;
use ephor_proto::id::{CorrelationId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::problem::{Code, Problem};
use ephor_proto::stage::Stage;
use ephor_proto::state::task::TaskState;
use ephor_proto::time::UnixMillis;

use tracing::Instrument;

use crate::app::Broker;
use crate::approve::Approved;
use crate::attest::Attested;
use crate::clock::Stopwatch;
use crate::crash_point;
use crate::decide::{Circumstances, Decided};
use crate::deliver::{self, Delivery, Timings};
use crate::fleet::Peer;
use crate::kind::effect::{Content, Failed};
use crate::kind::{Signed, jwt, x509};
use crate::ledger::{Batch, CommitError, CredentialRow, Key, Reader, Reason, Require, TaskRow};
use crate::limits;
use crate::metrics;
use crate::policy::Snapshot;
use crate::request::{Refusal, Requested};
use crate::revoke::{Crls, Place, Work};
use replay::Before;

/// Why what was planned could not be signed.
#[derive(Debug, thiserror::Error)]
enum Unsigned {
    #[error(transparent)]
    Token(#[from] KeyError),
    #[error(transparent)]
    Certificate(#[from] X509Error),
    #[error("the CA that it was recorded for is distrusted by now")]
    Distrusted,
    #[error(transparent)]
    Target(#[from] Failed),
    #[error("no random password could be made: {0}")]
    Random(String),
    #[error("nothing is made for kind {0}")]
    Kind(Kind),
}

/// What one try at an issue came to.
enum Tried {
    /// It is recorded and delivered.
    Done(v1::IssueResponse),
    /// Someone else changed what it was decided on; decide anew.
    Again,
}

/// An intent with the batch that records it.
struct Plan {
    intent: Intent,
    batch: Batch,
    /// Places in the lists taken for it; given back if it is not recorded.
    places: Vec<Place>,
    /// A task that it opens and that has a deadline.
    opens: Option<(TaskId, UnixMillis)>,
    delivery: Delivery,
}

impl Broker {
    /// Stages 1 to 6 for one request of an agent, renewals included.
    ///
    /// # Errors
    /// A problem with a stable code; nothing was issued then.
    pub async fn issue(
        &self,
        peer: &Peer,
        r: v1::IssueRequest,
    ) -> Result<v1::IssueResponse, Problem> {
        let correlation = self.correlation();
        let span = tracing::info_span!("request", %correlation);
        let outcome = self
            .issue_within(peer, r, correlation)
            .instrument(span)
            .await;
        outcome.map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn issue_within(
        &self,
        peer: &Peer,
        r: v1::IssueRequest,
        correlation: CorrelationId,
    ) -> Result<v1::IssueResponse, Refusal> {
        let parsing = Stopwatch::start();
        let _work = self
            .throttle
            .admit(peer.host(), self.clock.boottime())
            .inspect_err(|_| metrics::STAGES.refused(Stage::Request))?;
        for attempt in 0..limits::CONFLICT_TRIES {
            let requested = Requested::parse(peer.host(), r.clone())
                .inspect_err(|_| metrics::STAGES.refused(Stage::Request))?;
            if attempt == 0 {
                metrics::STAGES.passed(Stage::Request, parsing.micros());
            }
            let now = self.ready_to_issue(peer, &requested)?;
            match self.try_issue(peer, requested, now, correlation).await? {
                Tried::Done(response) => return Ok(response),
                Tried::Again => {}
            }
        }
        Err(Refusal::new(
            Code::Busy,
            "the task or request kept changing while this was decided; try again",
        ))
    }

    /// What must hold before anything is issued; wall time, once it can be believed.
    fn ready_to_issue(&self, peer: &Peer, requested: &Requested) -> Result<UnixMillis, Refusal> {
        if self.fleet.is_silent(peer.host()) {
            let detail = format!(
                "the agent on {} has not been heard for 15 s; nothing new there",
                peer.host()
            );
            return Err(Refusal::new(Code::AgentSilent, detail));
        }
        if self.pending.holds(&Work::Doubtful(requested.id())) {
            return Err(unknown_fate());
        }
        self.may_issue()
    }

    async fn try_issue(
        &self,
        peer: &Peer,
        requested: Requested,
        now: UnixMillis,
        correlation: CorrelationId,
    ) -> Result<Tried, Refusal> {
        let policy = self.policy.load_full();
        let attesting = Stopwatch::start();
        let attested = match Attested::check(requested, peer, &policy) {
            Ok(attested) => attested,
            Err(refused) => {
                let (requested, refusal) = *refused;
                return Err(self
                    .attest_refused(peer, &requested, refusal, correlation)
                    .await);
            }
        };
        let attest_micros = attesting.micros();
        let mut renews = attested.requested().renews();
        let mut follows = None;
        if let Some(credential) = renews
            && let Some(version) = self.of_a_retired_ca(&attested, credential, now)?
        {
            renews = None;
            follows = Some(Require::Version(Key::Credential(credential), version));
        }
        let (before, task) = {
            let reader = self.ledger.reader();
            let before = self.replay(&reader, &attested, now, attest_micros)?;
            let is_new = before.is_none() && renews.is_none();
            let task = is_new.then(|| task_of(&reader, &attested)).transpose()?;
            (before, task.flatten())
        };
        match before {
            Some(Before::Answer(answer)) => return Ok(Tried::Done(*answer)),
            Some(Before::AtTarget(before)) => {
                return self
                    .answer_again(&policy, &attested, *before, now, attest_micros)
                    .await;
            }
            None => {}
        }
        if let Some(credential) = renews {
            return self
                .renew(
                    &policy,
                    attested,
                    credential,
                    now,
                    attest_micros,
                    correlation,
                )
                .await;
        }
        let deciding = Stopwatch::start();
        let given = Circumstances {
            now,
            task_opened_at: task.as_ref().map_or(now, |task| task.opened_at),
            task_deadline: task.as_ref().and_then(|task| task.deadline),
            ca_end: self.keys.load().ca_end(),
            renewing: None,
        };
        let decided = self.decide(&policy, attested, given, correlation).await?;
        let mut timings = Timings {
            attest: attest_micros,
            decide: deciding.micros(),
            issue: 0,
        };
        let issuing = Stopwatch::start();
        let mut plan = self.plan(Approved::by_rule(decided), task.as_ref(), correlation)?;
        plan.batch.require.extend(follows);
        crash_point!("issue.before_commit");
        let Some((permit, sealed, delivery)) = self.record(plan).await? else {
            return Ok(Tried::Again);
        };
        crash_point!("issue.after_commit");
        let (permit, sealed) = self.mint(permit, sealed).await?;
        timings.issue = issuing.micros();
        self.expect_confirmation(&permit);
        let response = deliver::deliver(&permit, sealed, &delivery, timings)?;
        crash_point!("issue.before_answer");
        Ok(Tried::Done(response))
    }

    async fn decide(
        &self,
        policy: &Snapshot,
        attested: Attested,
        given: Circumstances<'_>,
        correlation: CorrelationId,
    ) -> Result<Decided, Refusal> {
        let id = self.new_id()?;
        match Decided::by(policy, attested, id, given) {
            Ok(decided) => Ok(decided),
            Err(denied) => {
                let (attested, denied) = *denied;
                Err(self.denied(&attested, &denied, id, correlation).await)
            }
        }
    }

    /// Submits a plan and signs while it is flushed. `None`: a precondition did not hold.
    async fn record(&self, plan: Plan) -> Result<Option<(Permit, Vec<Made>, Delivery)>, Refusal> {
        let Plan {
            intent,
            batch,
            places,
            opens,
            delivery,
        } = plan;
        let release = || places.iter().for_each(|place| self.release(*place));
        let ticket = match self.ledger.submit(batch) {
            Ok(ticket) => ticket,
            Err(full) => {
                release();
                return Err(Refusal::new(Code::Busy, full.to_string()));
            }
        };
        self.watch_over(intent.rows());
        let number = ticket.batch();
        // First those who travelled with it submit theirs; all are signed while that is flushed.
        tokio::task::yield_now().await;
        let sealed = self.sign(&intent);
        let outcome = ticket.await;
        match outcome {
            Ok(committed) => {
                if let Some((task, deadline)) = opens {
                    self.deadlines.set(task, deadline);
                }
                // A renewed one has its timer, which is set anew when it fires.
                for row in intent.rows().iter().filter(|row| row.version == 1) {
                    self.timers.set(row.id, over_at(row));
                }
                let permit = intent
                    .recorded(number, &committed.durable)
                    .map_err(defect)?;
                Ok(Some((permit, sealed.map_err(defect)?, delivery)))
            }
            Err(CommitError::Conflict(key)) => {
                tracing::debug!(%key, "decided on stale data; deciding anew");
                release();
                if let Key::Policy(_) = key {
                    self.newest_policy_in_force().await;
                }
                Ok(None)
            }
            Err(CommitError::Refused(reason)) => {
                metrics::STAGES.refused(Stage::Issue);
                release();
                Err(refused_by_store(&reason))
            }
            Err(CommitError::Unknown) => {
                // Whatever was signed is wiped here; the sweep finds out and revokes by id.
                drop(sealed);
                self.pending
                    .add(Work::Doubtful(delivery.request), self.clock.boottime());
                Err(unknown_fate())
            }
        }
    }

    /// Signs the stored contents; the result stays sealed.
    fn sign(&self, intent: &Intent) -> Result<Vec<Made>, Unsigned> {
        // A password stays as it was handed out; a certificate is made anew with each renewal.
        let to_make = |planned: &Planned<'_>| {
            planned.kind().is_signed() || planned.is_intended() || planned.has_certificate()
        };
        let planned = intent.planned().filter(to_make);
        planned.map(|planned| self.sign_one(&planned)).collect()
    }

    fn sign_one(&self, planned: &Planned<'_>) -> Result<Made, Unsigned> {
        match planned.kind() {
            Kind::Jwt => {
                let kind = jwt::token_kind(planned.entitlement());
                let signer = Arc::clone(self.keys.load().token_signer(kind));
                Ok(Made::Token(jwt::Signer::new(signer).sign(planned)?))
            }
            Kind::X509 => {
                let keys = self.keys.load();
                // The one whose list the certificate names, also when another is active by now.
                let held = keys.ca_of(Crls::ca_of(planned.list()));
                let signer = x509::Signer::new(held.ok_or(Unsigned::Distrusted)?);
                Ok(Made::Certificate(signer.sign(planned)?))
            }
            kind @ (Kind::Postgres | Kind::Secret) => {
                let content: Content =
                    serde_json::from_str(planned.content()).map_err(|_| Unsigned::Kind(kind))?;
                self.access(planned, &content)
            }
            kind @ (Kind::Ssh | Kind::Sudo | Kind::Exec) => Err(Unsigned::Kind(kind)),
        }
    }
}

/// The task as stored, if it is open and of this host; `None` when it is new.
fn task_of(reader: &Reader, attested: &Attested) -> Result<Option<TaskRow>, Refusal> {
    let id = attested.requested().task().id;
    let Some(task) = reader.task(id).map_err(store_unavailable)? else {
        return Ok(None);
    };
    if task.host != attested.host() {
        return Err(Refusal::new(
            Code::NotFound,
            format!("there is no task {id} on {}", attested.host()),
        ));
    }
    match task.state {
        TaskState::Open => Ok(Some(task)),
        TaskState::Completing(cause) | TaskState::Closed { cause, .. } => {
            let detail = format!(
                "task {} has ended ({}); nothing more is issued in it",
                id.short(),
                cause.as_str()
            );
            Err(Refusal::new(Code::TaskEnded, detail))
        }
    }
}

/// When a credential counts as dead: its expiry and the leeway of verifiers.
pub(crate) fn dead_at(expires_at: UnixMillis) -> UnixMillis {
    expires_at.saturating_add_millis(ephor_proto::limits::VERIFIER_LEEWAY_MILLIS)
}

/// When to look at a credential because its time is over: what is only a signature may be accepted a
/// little longer, an effect at a target is ended there at once.
pub(crate) fn over_at(row: &CredentialRow) -> UnixMillis {
    if row.kind.is_signed() {
        dead_at(row.expires_at)
    } else {
        row.expires_at
    }
}

/// The store did not take it; nothing was written.
pub(crate) fn refused_by_store(reason: &Reason) -> Refusal {
    let code = match reason {
        Reason::DiskFull => Code::StoreFull,
        Reason::Invalid(_) => Code::Internal,
        Reason::EpochLost | Reason::Busy | Reason::Damaged(_) => Code::StoreUnavailable,
    };
    Refusal::new(code, format!("nothing was issued: {reason}"))
}

/// The store could not be read.
pub(crate) fn store_unavailable(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "reading the store failed");
    Refusal::new(
        Code::StoreUnavailable,
        "the store could not be read; nothing was changed, try again",
    )
}

/// A defect of ours; the log has the detail.
pub(crate) fn defect(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "defect");
    Refusal::new(
        Code::Internal,
        "a defect in the broker; nothing left it. The log has the correlation id",
    )
}

fn unknown_fate() -> Refusal {
    let detail = "it is not known whether the record of this request was stored; the secret was dropped and \
                  whatever was stored is being revoked. Ask again with a new request id";
    Refusal::new(Code::StoreUnavailable, detail)
}
