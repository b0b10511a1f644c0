//! The end by time: a credential whose expiry, and the leeway of verifiers, has passed is dead.

use std::collections::BTreeMap;

use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::stage::Stage;
use ephor_proto::state::Effect;
use ephor_proto::state::credential::{self, CredentialEvent, CredentialState};
use ephor_proto::state::task::{self, EndCause, TaskEvent, TaskState};
use ephor_proto::time::UnixMillis;

use super::{NotEnded, machine, written};
use crate::app::Broker;
use crate::issue::over_at;
use crate::ledger::{Batch, CredentialRow, Lane, NewEvent, Row, Ticket};
use crate::limits;

impl Broker {
    /// One tick of the expiry timers. A wall clock that is not believed stops it: what such a
    /// clock calls expired may come back to life when the clock is put right.
    pub async fn expire_due(&self) {
        let Ok(now) = self.clock_guard.check() else {
            return;
        };
        loop {
            // Ended ones are among them: to end a task twice changes nothing.
            let ended = self.deadlines.due(now, limits::ENDS_AT_ONCE);
            if ended.is_empty() {
                break;
            }
            self.complete_tasks(ended, EndCause::Deadline).await;
        }
        loop {
            let mut due = self.timers.due(now, limits::EXPIRIES_AT_ONCE);
            if due.is_empty() {
                return;
            }
            // Twice in one batch, a row would conflict with itself.
            due.sort_unstable();
            due.dedup();
            let mut at_targets = Vec::new();
            let mut by_task: BTreeMap<TaskId, Vec<CredentialRow>> = BTreeMap::new();
            for id in due {
                match self.still_to_expire(id, now) {
                    Ok(Some(row)) if !row.kind.is_signed() => at_targets.push(row),
                    Ok(Some(row)) => by_task.entry(row.task).or_default().push(row),
                    Ok(None) => {}
                    Err(error) => self.expire_later(&[id], now, &error),
                }
            }
            self.end_expired(at_targets, now).await;
            self.expire_together(by_task, now).await;
        }
    }

    /// What has an effect outside does not end by itself: it is ended at its target.
    async fn end_expired(&self, rows: Vec<CredentialRow>, now: UnixMillis) {
        let mut submitted = Vec::new();
        for row in rows {
            let id = row.id;
            match self.submit_over(row, now) {
                Ok((row, ticket)) => submitted.push((row, ticket)),
                Err(error) => self.expire_later(&[id], now, &error),
            }
        }
        for (row, ticket) in submitted {
            match written(ticket.await) {
                Ok(Some(_)) => {
                    crate::crash_point!("revoke.after_expiry");
                    self.announce(&row);
                }
                Ok(None) => self.expire_later(&[row.id], now, &NotEnded::Contended),
                Err(error) => self.expire_later(&[row.id], now, &error),
            }
        }
    }

    fn submit_over(
        &self,
        mut row: CredentialRow,
        now: UnixMillis,
    ) -> Result<(CredentialRow, Ticket), NotEnded> {
        let outcome_due = UnixMillis::MAX;
        let tick = CredentialEvent::Tick { outcome_due };
        row.state = credential::step(machine(&row), tick, now)?.0.state;
        row.version += 1;
        row.revoked_at = Some(now);
        let mut event = self.about(Stage::Revoke, "started", &row)?;
        event.cause = Some("expired".to_owned());
        let batch = Batch {
            name: "revoke.expired",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![row.clone().into()],
            events: vec![event.into()],
        };
        Ok((row, self.ledger.submit(batch)?))
    }

    /// The row, if its time is over; a renewed one gets a new timer.
    fn still_to_expire(
        &self,
        id: CredentialId,
        now: UnixMillis,
    ) -> Result<Option<CredentialRow>, NotEnded> {
        let Some(row) = self.ledger.reader().credential(id)? else {
            return Ok(None);
        };
        match row.state {
            CredentialState::Dead => Ok(None),
            // Its target is asked until it is dead. Said again here: whoever stored this end may not have
            // learnt that it was stored.
            CredentialState::Revoking if !row.kind.is_signed() => {
                self.end_at_target(&row, false);
                Ok(None)
            }
            // Its end is being proven, which makes it dead or asks again here.
            CredentialState::Revoking | CredentialState::Intended => {
                self.timers
                    .set(id, now.saturating_add_millis(limits::EXPIRE_AGAIN_MILLIS));
                Ok(None)
            }
            CredentialState::Live | CredentialState::Replacing | CredentialState::Contained => {
                if now < over_at(&row) {
                    self.timers.set(id, over_at(&row));
                    return Ok(None);
                }
                Ok(Some(row))
            }
        }
    }

    /// One batch for each task, since the last of a task also writes its closing leaf; submitted
    /// side by side so that they share commits.
    async fn expire_together(
        &self,
        by_task: BTreeMap<TaskId, Vec<CredentialRow>>,
        now: UnixMillis,
    ) {
        let mut submitted = Vec::new();
        for (task, rows) in by_task {
            let ids: Vec<CredentialId> = rows.iter().map(|row| row.id).collect();
            match self.submit_expiry(task, rows, now) {
                Ok((ticket, rows)) => submitted.push((ticket, rows)),
                Err(error) => self.expire_later(&ids, now, &error),
            }
        }
        for (ticket, rows) in submitted {
            let ids: Vec<CredentialId> = rows.iter().map(|row| row.id).collect();
            match written(ticket.await) {
                Ok(Some(_)) => {
                    crate::crash_point!("prove.after_expiry");
                    for row in &rows {
                        // Also for one that was never revoked: a clock that goes back must not revive it.
                        self.list(row);
                        self.uses.forget(row.id);
                    }
                }
                Ok(None) => self.expire_later(&ids, now, &NotEnded::Contended),
                Err(error) => self.expire_later(&ids, now, &error),
            }
        }
    }

    fn submit_expiry(
        &self,
        task: TaskId,
        rows: Vec<CredentialRow>,
        now: UnixMillis,
    ) -> Result<(Ticket, Vec<CredentialRow>), NotEnded> {
        let mut dead = Vec::with_capacity(rows.len());
        let mut events: Vec<NewEvent> = Vec::new();
        for mut row in rows {
            let was_live = row.state.is_usable();
            let tick = CredentialEvent::Tick {
                outcome_due: UnixMillis::MAX,
            };
            row.state = credential::step(machine(&row), tick, now)?.0.state;
            row.version += 1;
            row.evidence = Some(format!(
                "expired at {}, verifiers' leeway included at {now}",
                row.expires_at
            ));
            if was_live {
                let mut event = self.about(Stage::Prove, "expired", &row)?;
                event.used = Some(self.used(&row));
                events.push(event.into());
            }
            dead.push(row);
        }
        let mut all_rows: Vec<Row> = dead.iter().cloned().map(Row::from).collect();
        if let Some((closing, event)) = self.closing(task, &dead, now)? {
            all_rows.push(closing);
            events.push(event);
        }
        let batch = Batch {
            name: "prove.expired",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: all_rows,
            events,
        };
        crate::crash_point!("prove.before_expiry");
        Ok((self.ledger.submit(batch)?, dead))
    }

    /// The closing leaf, when `dead` holds the last contained ones of a closed task.
    fn closing(
        &self,
        task: TaskId,
        dead: &[CredentialRow],
        now: UnixMillis,
    ) -> Result<Option<(Row, NewEvent)>, NotEnded> {
        let reader = self.ledger.reader();
        let Some(mut row) = reader.task(task)? else {
            return Ok(None);
        };
        let TaskState::Closed {
            contained: true, ..
        } = row.state
        else {
            return Ok(None);
        };
        let mut all = reader.credentials_of(task)?;
        for credential in &mut all {
            if let Some(now_dead) = dead.iter().find(|dead| dead.id == credential.id) {
                credential.clone_from(now_dead);
            }
        }
        let contained = all
            .iter()
            .any(|row| row.state == CredentialState::Contained);
        let (state, effects) = task::step(row.state, TaskEvent::Settled { contained }, now)?;
        if !effects.contains(Effect::WriteClosingLeaf) {
            return Ok(None);
        }
        row.state = state;
        row.version += 1;
        let event = self.closing_event(&row, &all)?;
        Ok(Some((Row::Task(row), event.into())))
    }

    fn expire_later(&self, ids: &[CredentialId], now: UnixMillis, error: &NotEnded) {
        tracing::warn!(credentials = ids.len(), %error, "expired credentials could not be recorded as dead yet");
        for id in ids {
            self.timers
                .set(*id, now.saturating_add_millis(limits::EXPIRE_AGAIN_MILLIS));
        }
    }
}
