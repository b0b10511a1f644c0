//! The calls themselves: taken from a queue, made at the target, and what it said stored.

use std::sync::Arc;

use ephor_proto::id::CredentialId;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::{self, CredentialEvent, CredentialState};
use ephor_proto::state::task::TaskState;

use super::Setback;
use crate::app::Broker;
use crate::clock::Stopwatch;
use crate::kind::effect::{Content, Ending, Failed, Gone};
use crate::ledger::{Batch, CredentialRow, Lane, Ticket};
use crate::revoke::{NotEnded, Work, machine, written};
use crate::{crash_point, limits, metrics};

impl Broker {
    /// Starts calls whenever something is due and there is a place, until the broker stops.
    pub(in crate::revoke) async fn serve_targets(self: Arc<Self>) {
        let stop = self.tasks.stop_token();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.queues.rung() => {}
                () = tokio::time::sleep(limits::SWEEP_TICK) => {}
            }
            self.start_calls();
        }
    }

    /// As many calls for each target that is ready as it has places.
    fn start_calls(self: &Arc<Self>) {
        if self.behind().is_some() {
            return;
        }
        let (now, may_sweep) = (self.clock.boottime(), self.may_sweep());
        for target in self.queues.ready(now, may_sweep) {
            loop {
                let ids = self.queues.take(&target, now, may_sweep);
                if ids.is_empty() {
                    break;
                }
                let call = Call {
                    broker: Arc::clone(self),
                    target: target.clone(),
                    ids,
                };
                self.tasks.spawn("revoke.target", call.run());
            }
        }
    }

    /// Ends some at their target and stores what it said; each goes back to the queue or leaves it.
    pub(super) async fn end_at(&self, target: &str, ids: &[CredentialId]) {
        let queues = &self.queues;
        let watch = Stopwatch::start();
        let (rows, endings) = self.still_revoking(target, ids);
        if rows.is_empty() {
            return;
        }
        crash_point!("revoke.before_target");
        let begun = self.clock.boottime();
        let answers = self.revoke_at(target, &endings).await;
        crash_point!("revoke.after_target");
        let is_unanswered = |answer: &Result<_, _>| matches!(answer, Err(Failed::NoAnswer(_)));
        queues.answered(target, answers.len(), answers.iter().any(is_unanswered));
        let is_single = answers.len() == 1 && !queues.is_failing(target);
        let has_ended_some = answers.iter().any(Result::is_ok);
        let mut gone = Vec::new();
        for (row, answer) in rows.into_iter().zip(answers) {
            match answer.and_then(|said| of_its_server(&row, said)) {
                Ok(said) => {
                    self.heard_of(target, &said.seen, begun);
                    gone.push((row, said));
                }
                Err(failed) => {
                    tracing::warn!(credential = %row.id, target, %failed, "not ended at its target yet");
                    let is_refused = matches!(
                        failed,
                        Failed::Refused(_) | Failed::UntilMended(_) | Failed::Taken(_)
                    );
                    let is_own = has_ended_some || (is_single && is_refused);
                    queues.failed(
                        target,
                        row.id,
                        self.clock.boottime(),
                        Setback::at_target(&failed, is_own),
                    );
                }
            }
        }
        self.store_gone(target, gone, watch).await;
    }

    /// Stores what a target said; together, so that they share commits. Whoever wrote to a row
    /// meanwhile, such as that it is late, did not make it untrue.
    async fn store_gone(
        &self,
        target: &str,
        mut gone: Vec<(CredentialRow, Gone)>,
        watch: Stopwatch,
    ) {
        let queues = &self.queues;
        for _ in 0..limits::CONFLICT_TRIES {
            let mut submitted = Vec::new();
            for (row, said) in std::mem::take(&mut gone) {
                let id = row.id;
                match self.submit_gone(row, said.clone()) {
                    Ok((row, ticket)) => submitted.push((row, said, ticket)),
                    Err(error) => {
                        queues.failed(target, id, self.clock.boottime(), Setback::here(&error));
                    }
                }
            }
            for (row, said, ticket) in submitted {
                match written(ticket.await) {
                    Ok(Some(_)) => {
                        crash_point!("revoke.gone");
                        metrics::STAGES.passed(Stage::Revoke, watch.micros());
                        self.is_gone(target, &row);
                    }
                    Ok(None) => match self.ending_of(row.id) {
                        Ok(Some((row, _))) => gone.push((row, said)),
                        Ok(None) | Err(_) => queues.again(target, row.id),
                    },
                    Err(error) => {
                        queues.failed(target, row.id, self.clock.boottime(), Setback::here(&error));
                    }
                }
            }
            if gone.is_empty() {
                return;
            }
        }
        for (row, _) in gone {
            queues.again(target, row.id);
        }
    }

    /// The rows that are still to be ended, and how each is called at its target.
    fn still_revoking(
        &self,
        target: &str,
        ids: &[CredentialId],
    ) -> (Vec<CredentialRow>, Vec<Ending>) {
        let (mut rows, mut endings) = (Vec::new(), Vec::new());
        for id in ids {
            let found = self.ending_of(*id);
            let now = self.clock.boottime();
            match found {
                Ok(Some((row, ending))) => {
                    rows.push(row);
                    endings.push(ending);
                }
                Ok(None) => self.queues.done(target, *id, now),
                Err(error) => self.queues.failed(target, *id, now, Setback::here(&error)),
            }
        }
        (rows, endings)
    }

    fn ending_of(&self, id: CredentialId) -> Result<Option<(CredentialRow, Ending)>, NotEnded> {
        let row = self.ledger.reader().credential(id)?;
        let Some(row) = row.filter(|row| row.state == CredentialState::Revoking) else {
            return Ok(None);
        };
        let content = Content::of(&row).ok_or_else(unreadable)?;
        Ok(Some((row, Ending::of(id, content))))
    }

    async fn revoke_at(&self, target: &str, endings: &[Ending]) -> Vec<Result<Gone, Failed>> {
        let all = |failed: &Failed| endings.iter().map(|_| Err(failed.clone())).collect();
        let known = match self.target(target) {
            Ok(known) => known,
            Err(failed) => return all(&failed),
        };
        let call = known.at.revoke(self.installation.epoch, endings);
        match tokio::time::timeout(limits::TARGET_CALL, call).await {
            Ok(answers) => answers,
            Err(_) => all(&Failed::NoAnswer(limits::TARGET_CALL)),
        }
    }

    /// Submits that it is dead, with the evidence.
    fn submit_gone(
        &self,
        mut row: CredentialRow,
        gone: Gone,
    ) -> Result<(CredentialRow, Ticket), NotEnded> {
        let event = CredentialEvent::Proven(gone.proof);
        let (next, _) = credential::step(machine(&row), event, self.clock.wall())?;
        let mut content = Content::of(&row).ok_or_else(unreadable)?;
        row.state = next.state;
        row.version += 1;
        row.overdue = None;
        row.evidence = Some(gone.text(&content));
        content.gone = Some(gone);
        row.content = content.to_json().map_err(NotEnded::defect)?;
        let event = self.gone_event(&row, &content)?;
        let batch = Batch {
            name: "prove.dead",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![row.clone().into()],
            events: vec![event],
        };
        Ok((row, self.ledger.submit(batch)?))
    }

    /// After that commit: who waited goes on, and a task that only waited for this one is closed at
    /// the next tick.
    fn is_gone(&self, target: &str, row: &CredentialRow) {
        if let Some(content) = Content::of(row) {
            self.logins_used.forget(&content.used_as());
        }
        let later = self
            .clock
            .wall()
            .saturating_add_millis(limits::LOOK_AGAIN_MILLIS);
        self.later_looks.set(row.id, later);
        self.queues.done(target, row.id, self.clock.boottime());
        let task = self.ledger.reader().task(row.task).ok().flatten();
        if let Some(TaskState::Completing(cause)) = task.map(|task| task.state) {
            self.pending
                .hurry(&Work::Task(row.task, cause), self.clock.boottime());
        }
    }
}

fn of_its_server(row: &CredentialRow, said: Gone) -> Result<Gone, Failed> {
    match Content::of(row) {
        Some(content) => said.of_its_server(&content),
        None => Ok(said),
    }
}

fn unreadable() -> NotEnded {
    NotEnded::defect("what it is called at its target cannot be read from its row; the log says it")
}

/// One call at a target. What it took goes back, and its place too, however it ends.
struct Call {
    broker: Arc<Broker>,
    target: String,
    ids: Vec<CredentialId>,
}

impl Call {
    async fn run(self) {
        self.broker.end_at(&self.target, &self.ids).await;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let now = self.broker.clock.boottime();
        self.broker.queues.left(&self.target, &self.ids, now);
    }
}
