//! Stage 7: a task ended, whoever noticed: which credentials, for which cause.
//!
//! Two commits. The first makes the task `completing` and its credentials `revoking`; once it is
//! durable they are refused and listed. The second, after that was checked, closes the task with
//! its one receipt. Each step reads, decides and commits under the versions it read, so any number
//! of callers, late, early or twice, come to the same end.

mod begin;
mod set_aside;
mod settle;
#[cfg(test)]
mod tests;
mod unheard;

pub(crate) use begin::{closed_grant, revoke_row};

use ephor_proto::grpc::v1;
use ephor_proto::id::{CorrelationId, CredentialId, TaskId};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::stage::Stage;
use ephor_proto::state::task::{EndCause, TaskState};

use tracing::Instrument;

use crate::app::Broker;
use crate::clock::Stopwatch;
use crate::fleet::Peer;
use crate::issue::store_unavailable;
use crate::ledger::{CredentialRow, TaskRow, Ticket};
use crate::limits;
use crate::metrics;
use crate::prove::Proven;
use crate::request::Refusal;
use crate::revoke::{NotEnded, Work, written};

/// Who says that a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// Its own agent, in this call.
    Agent(CorrelationId),
    /// The broker itself: silence, a heartbeat's set, a deadline, recovery.
    Broker,
    /// A policy that came into force and has no place for it.
    Policy {
        /// Its version.
        version: String,
        /// Why, in words of that policy.
        why: String,
    },
    /// A person, with a reason.
    Person {
        /// Free text.
        reason: String,
    },
}

/// An end to reach.
#[derive(Debug, Clone)]
pub struct End {
    /// The task.
    pub task: TaskId,
    /// Why; the first one to be stored stays.
    pub cause: EndCause,
    /// Who says so.
    pub by: By,
}

/// One commit on the way to the end.
enum Step {
    /// It is there.
    Closed(Box<TaskRow>),
    /// Submitted; see [`Broker::finish`].
    Submitted(Ticket, After),
    /// These are being ended at their targets; what comes next waits for that.
    AtTargets(Vec<CredentialId>),
}

/// What follows a commit once it is durable.
enum After {
    /// Refuse and list these; tell the host, unless it was the one who told us.
    List {
        credentials: Vec<CredentialRow>,
        tell: Option<Box<TaskRow>>,
    },
    /// They are contained or dead; their uses were written.
    Forget { credentials: Vec<CredentialRow> },
}

impl Broker {
    /// An agent's word that a task of its host ended.
    ///
    /// # Errors
    /// When the request is malformed, or the end is not proven yet; it is driven on all the same, and
    /// asking again gives its one receipt.
    pub async fn complete(
        &self,
        peer: &Peer,
        r: v1::CompleteRequest,
    ) -> Result<v1::CompleteResponse, Problem> {
        let correlation = self.correlation();
        let span = tracing::info_span!("complete", %correlation);
        let outcome = self
            .complete_within(peer, &r, correlation)
            .instrument(span)
            .await;
        outcome.map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn complete_within(
        &self,
        peer: &Peer,
        r: &v1::CompleteRequest,
        correlation: CorrelationId,
    ) -> Result<v1::CompleteResponse, Refusal> {
        let watch = Stopwatch::start();
        let task = TaskId::from_slice(&r.task_id).map_err(|e| {
            Refusal::new(Code::InvalidRequest, format!("`task_id` is malformed: {e}"))
        })?;
        let cause = agent_cause(&r.cause)?;
        let stored = self.ledger.reader().task(task).map_err(store_unavailable)?;
        match stored {
            Some(row) if row.host != peer.host() => {
                let detail = format!("there is no task {task} on {}", peer.host());
                return Err(Refusal::new(Code::NotFound, detail));
            }
            Some(_) => {}
            None => self
                .close_unheard(peer, task, cause, correlation)
                .await
                .map_err(still_ending)?,
        }
        let proven = self
            .end_task(End {
                task,
                cause,
                by: By::Agent(correlation),
            })
            .await?;
        crate::crash_point!("complete.before_answer");
        Ok(v1::CompleteResponse {
            receipt: proven
                .receipt
                .map(|receipt| receipt.to_string())
                .unwrap_or_default(),
            dead: proven.totals.dead,
            listed: proven.totals.listed,
            listed_until: proven
                .totals
                .listed_until
                .map_or(0, |until| until.as_millis()),
            revoke_microseconds: watch.micros(),
        })
    }

    /// Ends a task and proves it; a task that ended before gives the same receipt.
    ///
    /// # Errors
    /// When the end is not proven yet; it is driven on all the same.
    pub async fn end_task(&self, end: End) -> Result<Proven, Refusal> {
        let work = Work::Task(end.task, end.cause);
        // Registered before the first step: a caller that goes away midway leaves it to the sweep.
        self.pending
            .add_after(work.clone(), self.clock.boottime(), limits::SWEEP_GRACE);
        match self.drive(&end).await {
            Ok(row) => {
                self.pending.done(&work);
                self.proven(&row).map_err(store_unavailable)
            }
            Err(error) => {
                tracing::warn!(task = %end.task, %error, "a task's end is not proven yet");
                self.pending.failed(&work, self.clock.boottime());
                Err(still_ending(error))
            }
        }
    }

    /// Ends many tasks at once, for the same cause: a deadline, another boot, a ban.
    pub async fn complete_tasks(&self, tasks: Vec<TaskId>, cause: EndCause) {
        let end = |task| End {
            task,
            cause,
            by: By::Broker,
        };
        self.end_tasks(tasks.into_iter().map(end).collect()).await;
    }

    /// Ends many tasks at once. What cannot be ended now is driven on by the sweep.
    pub async fn end_tasks(&self, ends: Vec<End>) {
        for some in ends.chunks(limits::ENDS_AT_ONCE) {
            let now = self.clock.boottime();
            for end in some {
                let work = Work::Task(end.task, end.cause);
                self.pending.add_after(work, now, limits::SWEEP_GRACE);
            }
            self.drive_together(some.to_vec()).await;
        }
    }

    /// Drives several ends side by side, so that they share commits.
    pub(crate) async fn drive_together(&self, mut ends: Vec<End>) {
        for _ in 0..limits::CONFLICT_TRIES {
            let mut submitted = Vec::new();
            for end in ends {
                match self.advance(&end).await {
                    Ok(Step::Closed(_)) => self.pending.done(&Work::Task(end.task, end.cause)),
                    Ok(Step::Submitted(ticket, after)) => submitted.push((end, ticket, after)),
                    // A target that hangs must not hold up the others: whoever ends the last one there
                    // hurries this.
                    Ok(Step::AtTargets(_)) => self
                        .pending
                        .park(&Work::Task(end.task, end.cause), self.clock.boottime()),
                    Err(error) => self.end_failed(&end, &error).await,
                }
            }
            ends = Vec::new();
            for (end, ticket, after) in submitted {
                match self.finish(ticket, after).await {
                    Ok(()) => ends.push(end),
                    Err(error) => self.end_failed(&end, &error).await,
                }
            }
            if ends.is_empty() {
                return;
            }
        }
    }

    async fn end_failed(&self, end: &End, error: &NotEnded) {
        tracing::warn!(task = %end.task, %error, "a task's end is not proven yet");
        let failed = self
            .pending
            .failed(&Work::Task(end.task, end.cause), self.clock.boottime());
        if failed.is_overdue {
            self.flag_overdue(end.task, &failed, error).await;
        }
    }

    /// Steps until the task is closed.
    async fn drive(&self, end: &End) -> Result<TaskRow, NotEnded> {
        for _ in 0..limits::CONFLICT_TRIES {
            match self.advance(end).await? {
                Step::Closed(row) => return Ok(*row),
                Step::Submitted(ticket, after) => self.finish(ticket, after).await?,
                Step::AtTargets(ids) => {
                    let most = self.queues.patience(&ids);
                    if !self.queues.wait(&ids, most).await {
                        return Err(NotEnded::AtTarget);
                    }
                }
            }
        }
        Err(NotEnded::Contended)
    }

    /// Reads where the task is and submits what comes next.
    async fn advance(&self, end: &End) -> Result<Step, NotEnded> {
        let row = self.ledger.reader().task(end.task)?;
        let row = row.ok_or_else(|| NotEnded::Defect(format!("there is no task {}", end.task)))?;
        match row.state {
            TaskState::Open => self.begin(row, end),
            TaskState::Completing(_) => self.settle(row).await,
            TaskState::Closed { .. } => Ok(Step::Closed(Box::new(row))),
        }
    }

    /// Waits for a step's commit and does what follows it. A precondition that did not hold is no
    /// failure: the next [`Broker::advance`] reads again.
    async fn finish(&self, ticket: Ticket, after: After) -> Result<(), NotEnded> {
        let watch = Stopwatch::start();
        if written(ticket.await)?.is_none() {
            return Ok(());
        }
        match after {
            After::List { credentials, tell } => {
                self.began(&credentials, tell.as_deref());
                metrics::STAGES.passed(Stage::Complete, watch.micros());
            }
            After::Forget { credentials } => {
                self.settled(&credentials);
                metrics::STAGES.passed(Stage::Prove, watch.micros());
            }
        }
        Ok(())
    }
}

/// What an agent may say; the other causes are the broker's to find.
pub(crate) fn agent_cause(word: &str) -> Result<EndCause, Refusal> {
    match word.parse() {
        Ok(cause @ (EndCause::Exited | EndCause::Released)) => Ok(cause),
        Ok(EndCause::Deadline | EndCause::Lost | EndCause::Revoked) | Err(_) => {
            let detail = format!("cause `{word}` is neither `exited` nor `released`");
            Err(Refusal::new(Code::InvalidRequest, detail))
        }
    }
}

fn still_ending(error: NotEnded) -> Refusal {
    let detail = format!(
        "the task is being ended and nothing new is issued in it, but its end is not proven yet ({error}); \
         it is tried until it is"
    );
    Refusal::new(Code::Overdue, detail)
}
