//! The loops: expiry every second, unfinished ends as their backoff says, refusals and pruning now and
//! then. Each tick is safe to run twice.

use std::sync::Arc;
use std::time::Duration;

use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::state::credential::CredentialState;

use super::{Failed, NotEnded, Work, written};
use crate::app::Broker;
use crate::complete::{By, End};
use crate::kind::effect::Content;
use crate::ledger::{Batch, CredentialRow, Lane, Overdue};
use crate::limits;

const REASON: &str = "an earlier step was not finished";
const UNCONFIRMED: &str = "its agent did not confirm that it was handed over";

impl Broker {
    /// Starts the loops in the broker's task group.
    pub fn start_timers(self: &Arc<Self>) {
        let broker = Arc::clone(self);
        self.tasks
            .spawn_vital("revoke.targets", broker.serve_targets());
        let broker = Arc::clone(self);
        self.tasks.spawn_vital("revoke.sweep", async move {
            while broker.tick(limits::SWEEP_TICK).await {
                broker.flag_late().await;
                if broker.may_sweep() {
                    broker.sweep().await;
                }
            }
        });
        let broker = Arc::clone(self);
        self.tasks.spawn_vital("prove.expire", async move {
            while broker.tick(limits::EXPIRY_TICK).await {
                if broker.may_sweep() {
                    broker.expire_due().await;
                }
            }
        });
        let broker = Arc::clone(self);
        self.tasks.spawn_vital("revoke.reconcile", async move {
            // The first time as soon as it may.
            let mut wait = Duration::ZERO;
            while broker.tick(limits::SWEEP_TICK).await {
                wait = wait.saturating_sub(limits::SWEEP_TICK);
                if !broker.may_sweep() {
                    continue;
                }
                if wait.is_zero() {
                    broker.reconcile_targets();
                    wait = limits::RECONCILE_EVERY;
                }
                broker.reconcile_changed();
            }
        });
        let broker = Arc::clone(self);
        self.tasks.spawn_vital("revoke.look_again", async move {
            while broker.tick(limits::EXPIRY_TICK).await {
                if broker.may_sweep() {
                    broker.look_again_at_targets();
                }
            }
        });
        let broker = Arc::clone(self);
        self.tasks.spawn_vital("prove.uses", async move {
            while broker.tick(limits::SAMPLE_EVERY).await {
                if broker.behind().is_none() {
                    broker.sample_uses();
                }
            }
        });
        let broker = Arc::clone(self);
        self.tasks.spawn_vital("request.refusals", async move {
            while broker.tick(limits::REFUSAL_TICK).await {
                broker.write_refusals(false).await;
            }
            broker.write_refusals(true).await;
        });
        let broker = Arc::clone(self);
        self.tasks.spawn_vital("revoke.prune", async move {
            while broker.tick(limits::PRUNE_TICK).await {
                if broker.may_sweep() {
                    broker.prune_listings().await;
                    broker.retain(broker.retention).await;
                }
            }
        });
    }

    /// Waits for the next tick; false when the broker stops.
    async fn tick(&self, wait: std::time::Duration) -> bool {
        let stop = self.tasks.stop_token();
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
    }

    /// Drives what is due, once. Tasks share commits; one that hangs does not hold up the others.
    pub async fn sweep(&self) {
        let found = match (self.pending.needs_scan(), self.queues.needs_scan()) {
            (true, _) => self.find_unfinished(),
            (false, true) => self.find_at_targets(),
            (false, false) => Ok(()),
        };
        if let Err(error) = found {
            tracing::warn!(%error, "unfinished ends could not be read from the store");
        }
        for id in self.handovers.overdue(self.clock.boottime()) {
            self.revoke_unconfirmed(id).await;
        }
        let mut ends = Vec::new();
        for work in self
            .pending
            .due(self.clock.boottime(), limits::ENDS_AT_ONCE)
        {
            match work {
                Work::Task(task, cause) => ends.push(End {
                    task,
                    cause,
                    by: By::Broker,
                }),
                Work::Credential(id) => {
                    let outcome = self.drive_stored(id).await;
                    self.tried(Work::Credential(id), outcome).await;
                }
                Work::Doubtful(request) => {
                    let outcome = self.resolve_doubt(request).await;
                    self.tried(Work::Doubtful(request), outcome).await;
                }
            }
        }
        self.drive_together(ends).await;
    }

    /// Drives a credential on; one that was never stored needs no end.
    async fn drive_stored(&self, id: CredentialId) -> Result<(), NotEnded> {
        let is_stored = self.ledger.reader().credential(id)?.is_some();
        if is_stored {
            self.drive_credential(id, REASON).await?;
        }
        Ok(())
    }

    /// Nobody said that it was handed over: it must not live without anyone who has it.
    async fn revoke_unconfirmed(&self, id: CredentialId) {
        let row = self.ledger.reader().credential(id);
        let row = row.ok().flatten();
        let content = row.as_ref().and_then(Content::of);
        let is_confirmed = content.is_some_and(|content| content.confirmed);
        let is_over = row.is_some_and(|row| !row.state.is_usable());
        if is_confirmed || is_over {
            return;
        }
        let work = Work::Credential(id);
        self.pending.add(work.clone(), self.clock.boottime());
        let outcome = self.drive_credential(id, UNCONFIRMED).await.map(drop);
        self.tried(work, outcome).await;
    }

    async fn tried(&self, work: Work, outcome: Result<(), NotEnded>) {
        let error = match outcome {
            Ok(()) => return self.pending.done(&work),
            Err(error) => error,
        };
        tracing::warn!(?work, %error, "an end is not proven yet");
        let failed = self.pending.failed(&work, self.clock.boottime());
        let Work::Credential(id) = work else { return };
        let row = self.ledger.reader().credential(id);
        if let (true, Ok(Some(row))) = (failed.is_overdue, row) {
            self.flag(vec![row], &failed, &error).await;
        }
    }

    /// Flags what of a task is still revoking as overdue.
    pub(crate) async fn flag_overdue(&self, task: TaskId, failed: &Failed, error: &NotEnded) {
        let rows = self.ledger.reader().credentials_of(task);
        match rows {
            Ok(rows) => self.flag(rows, failed, error).await,
            Err(error) => {
                tracing::warn!(%task, %error, "an overdue revocation could not be flagged")
            }
        }
    }

    async fn flag(&self, rows: Vec<CredentialRow>, failed: &Failed, error: &NotEnded) {
        let is_unflagged = |row: &CredentialRow| {
            // What waits at a target is flagged with what is known of that.
            row.kind.is_signed() && row.state == CredentialState::Revoking && row.overdue.is_none()
        };
        for mut row in rows.into_iter().filter(is_unflagged) {
            row.version += 1;
            let next_in = u64::try_from(failed.next_in.as_millis()).unwrap_or(u64::MAX);
            row.overdue = Some(Overdue {
                why: error.to_string(),
                attempts: failed.attempts,
                next_try: Some(self.clock.wall().saturating_add_millis(next_in)),
                ..Overdue::default()
            });
            if let Err(error) = self.write_flag(&row).await {
                tracing::warn!(credential = %row.id, %error, "an overdue revocation could not be flagged");
            }
        }
    }

    async fn write_flag(&self, row: &CredentialRow) -> Result<(), NotEnded> {
        let event = self.overdue_event(row)?;
        let batch = Batch {
            name: "revoke.overdue",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![row.clone().into()],
            events: vec![event.into()],
        };
        written(self.ledger.submit(batch)?.await).map(drop)
    }
}
