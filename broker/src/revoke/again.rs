//! A second look at what was proven dead: a connection that was starting then may have hidden, and a
//! server that went back in its history has taken its proofs with it. It can only reopen.

use std::collections::BTreeMap;
use std::sync::Arc;

use ephor_proto::event::Outcome;
use ephor_proto::id::CredentialId;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::{self, CredentialEvent, CredentialState};
use ephor_proto::time::UnixMillis;

use super::reconcile::{NotCompared, answered};
use super::{NotEnded, Work, machine, written};
use crate::app::Broker;
use crate::kind::effect::{Content, Failed};
use crate::ledger::{Batch, CredentialRow, Lane};
use crate::limits;

/// What is to be looked for at one target.
type Looks = Vec<CredentialId>;

impl Broker {
    /// Starts what is due, each target for itself, so that one that hangs holds up no other.
    pub(super) fn look_again_at_targets(self: &Arc<Self>) {
        let now = self.clock.wall();
        for (target, looks) in self.due_looks(now) {
            if !self.targets.begin_again(&target) {
                let soon = now.saturating_add_millis(limits::LOOK_AGAIN_BUSY_MILLIS);
                for id in looks {
                    self.later_looks.set(id, soon);
                }
                continue;
            }
            let again = Again {
                broker: Arc::clone(self),
                target,
            };
            self.tasks.spawn("revoke.look_again", again.run(looks));
        }
    }

    /// The same to its end.
    #[cfg(test)]
    pub(crate) async fn look_again(&self, now: UnixMillis) {
        for (_, looks) in self.due_looks(now) {
            self.look_again_at(looks).await;
        }
    }

    fn due_looks(&self, now: UnixMillis) -> BTreeMap<String, Looks> {
        let mut by_target: BTreeMap<String, Looks> = BTreeMap::new();
        let mut due = self.later_looks.due(now, limits::LOOKS_AT_ONCE);
        due.sort_unstable();
        due.dedup();
        for id in due {
            let row = match self.ledger.reader().credential(id) {
                Ok(row) => row,
                Err(error) => {
                    self.look_later(id, &error);
                    continue;
                }
            };
            let Some(row) = row.filter(|row| row.state == CredentialState::Dead) else {
                continue;
            };
            if let Some(content) = Content::of(&row).filter(|content| content.gone.is_some()) {
                by_target.entry(content.target).or_default().push(id);
            }
        }
        by_target
    }

    async fn look_again_at(&self, looks: Looks) {
        let mut away = None;
        for id in looks {
            if let Some(failed) = &away {
                self.look_later(id, failed);
                continue;
            }
            match self.look_again_for(id).await {
                Ok(()) => {}
                Err(NotCompared::Target(failed)) => {
                    self.look_later(id, &failed);
                    let is_silent = matches!(failed, Failed::NoAnswer(_));
                    away = (failed.is_away() || is_silent).then_some(failed);
                }
                Err(error) => self.look_later(id, &error),
            }
        }
    }

    fn look_later(&self, id: CredentialId, error: &dyn std::error::Error) {
        tracing::warn!(credential = %id, %error, "a later look at a target failed; it is made again");
        let later = self.clock.wall();
        let later = later.saturating_add_millis(limits::LOOK_AGAIN_MILLIS);
        self.later_looks.set(id, later);
    }

    pub(super) async fn look_again_for(&self, id: CredentialId) -> Result<(), NotCompared> {
        self.not_behind()?;
        let row = self.ledger.reader().credential(id)?;
        let Some(row) = row.filter(|row| row.state == CredentialState::Dead) else {
            return Ok(());
        };
        let Some(content) = Content::of(&row) else {
            return Ok(());
        };
        let Some(gone) = &content.gone else {
            return Ok(());
        };
        let known = self.target(&content.target)?;
        let again = answered(known.at.look_again((id, &content), gone)).await?;
        if again.sessions > 0 || !again.is_absent {
            let why = format!(
                "a later look found {} sessions{}",
                again.sessions,
                if again.is_absent { "" } else { ", and itself" }
            );
            self.reopen(row, &why).await?;
        } else if again.is_incomplete {
            let later = self.clock.wall();
            let later = later.saturating_add_millis(limits::LOOK_AGAIN_MILLIS);
            self.later_looks.set(id, later);
        }
        Ok(())
    }

    /// What was proven dead is there again, or was: its proof does not hold, and it is ended anew.
    async fn reopen(&self, mut row: CredentialRow, why: &str) -> Result<(), NotEnded> {
        let now = self.clock.wall();
        let event = CredentialEvent::Reopened;
        row.state = credential::step(machine(&row), event, now)?.0.state;
        row.version += 1;
        let before = row.evidence.take();
        if let Some(mut content) = Content::of(&row) {
            content.gone = None;
            row.content = content.to_json().map_err(NotEnded::defect)?;
        }
        let mut event = self.about(Stage::Revoke, "reopened", &row)?;
        event.outcome = Outcome::Failed;
        event.facts.insert("why".to_owned(), why.to_owned());
        if let Some(before) = before {
            event.facts.insert("before".to_owned(), before);
        }
        let batch = Batch {
            name: "revoke.reopened",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![row.clone().into()],
            events: vec![event.into()],
        };
        // Ended also when nobody knows whether this is stored, and when the earlier end is just leaving
        // its queue.
        let work = Work::Credential(row.id);
        let now = self.clock.boottime();
        self.pending.add_after(work, now, limits::SWEEP_GRACE);
        if written(self.ledger.submit(batch)?.await)?.is_some() {
            tracing::error!(credential = %row.id, why, "what was proven dead is not");
            self.end_at_target(&row, false);
        }
        Ok(())
    }
}

/// Looks under way at one target; further ones wait for their end, however that comes.
struct Again {
    broker: Arc<Broker>,
    target: String,
}

impl Again {
    async fn run(self, looks: Looks) {
        self.broker.look_again_at(looks).await;
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.broker.targets.end_again(&self.target);
    }
}
