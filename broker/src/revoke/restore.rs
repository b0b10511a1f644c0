//! At start: what is in memory is rebuilt from the store, and ends that hang are driven on.

use std::collections::{HashMap, HashSet};

use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::TaskState;

use super::Work;
use crate::app::Broker;
use crate::ledger::{CredentialFilter, ReadError};
use crate::limits;

impl Broker {
    /// Rebuilds lists and timers and finds unfinished ends. Call before anything is served.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn restore(&self) -> Result<(), ReadError> {
        let reader = self.ledger.reader();
        reader.listings(|listing| self.restore_listing(&listing))?;
        reader.expiries(|expiry| self.timers.set(expiry.id, expiry.over_at()))?;
        drop(reader);
        for task in self.ledger.reader().unclosed_tasks()? {
            if let Some(deadline) = task.deadline {
                self.deadlines.set(task.id, deadline);
            }
        }
        self.restore_pace()?;
        self.find_unfinished()?;
        self.find_awaited()?;
        tracing::info!(
            credentials = self.timers.len(),
            "status lists and timers rebuilt"
        );
        Ok(())
    }

    /// At which pace renewals come at each target, by what lives there.
    fn restore_pace(&self) -> Result<(), ReadError> {
        let mut steady: HashMap<String, f64> = HashMap::new();
        self.ledger.reader().live_effects(|live| {
            let rate = live.renewals_per_second();
            *steady.entry(live.target).or_default() += rate;
        })?;
        let now = self.clock.boottime();
        for (target, per_second) in steady {
            self.pace.is_steady(&target, per_second, now);
        }
        Ok(())
    }

    /// Puts every unfinished end of the store among those to drive.
    pub(super) fn find_unfinished(&self) -> Result<(), ReadError> {
        let now = self.clock.boottime();
        let reader = self.ledger.reader();
        let mut completing = HashSet::new();
        for task in reader.unclosed_tasks()? {
            if let TaskState::Completing(cause) = task.state {
                completing.insert(task.id);
                self.pending.add(Work::Task(task.id, cause), now);
            }
        }
        let revoking = CredentialFilter {
            state: Some(CredentialState::Revoking),
            ..Default::default()
        };
        for row in reader.credentials(&revoking)? {
            if row.kind.is_signed() && !completing.contains(&row.task) {
                self.pending.add(Work::Credential(row.id), now);
            }
        }
        // Of which nobody knows whether it was made.
        for id in reader.intended()? {
            self.pending.add(Work::Credential(id), now);
        }
        drop(reader);
        self.find_at_targets()
    }

    /// Puts what is being revoked at a target into its queue.
    pub(super) fn find_at_targets(&self) -> Result<(), ReadError> {
        let reader = self.ledger.reader();
        for row in reader.revoking_at_targets(limits::TARGET_SCAN)? {
            self.end_at_target(&row, true);
        }
        Ok(())
    }

    /// What somebody waits for with a time that only memory knows, after a start: more of it than was
    /// left is no harm.
    fn find_awaited(&self) -> Result<(), ReadError> {
        let now = self.clock.wall();
        let reader = self.ledger.reader();
        let since = now.saturating_sub_millis(limits::LOOK_AGAIN_BEFORE_MILLIS);
        let later = now.saturating_add_millis(limits::LOOK_AGAIN_MILLIS);
        for id in reader.gone_since(since)? {
            self.later_looks.set(id, later);
        }
        for id in reader.unconfirmed()? {
            self.handovers.expect(id, self.clock.boottime());
        }
        Ok(())
    }
}
