//! At start: what is in memory is rebuilt from the store, and ends that hang are driven on.

use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::{EndCause, TaskState};

use super::{Work, slot};
use crate::app::Broker;
use crate::issue::dead_at;
use crate::ledger::ReadError;

impl Broker {
    /// Rebuilds lists and timers and finds unfinished ends. Call before anything is served.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn restore(&self) -> Result<(), ReadError> {
        let mut count = 0_u64;
        self.ledger.reader().each_listed(|row| {
            count += 1;
            // A place in the lists, and a bit for all that must not be accepted again.
            self.lists.restore(slot(row), !row.state.is_usable() && row.state != CredentialState::Intended);
            if row.state != CredentialState::Dead {
                self.timers.set(row.id, dead_at(row.expires_at));
            }
        })?;
        for (list, index) in self.ledger.reader().quarantined_slots()? {
            // Nobody can say any more what it was: listed, to be safe.
            self.lists.restore(super::Slot { list, index }, true);
        }
        self.find_unfinished()?;
        tracing::info!(credentials = count, "status lists and timers rebuilt");
        Ok(())
    }

    /// Puts every unfinished end of the store among those to drive.
    pub(super) fn find_unfinished(&self) -> Result<(), ReadError> {
        let now = self.clock.boottime();
        let reader = self.ledger.reader();
        for task in reader.completing_tasks()? {
            let cause = task.state.cause().unwrap_or(EndCause::Lost);
            self.pending.add(Work::Task(task.id, cause), now);
        }
        for row in reader.revoking_credentials()? {
            let completing = reader.task(row.task)?.is_some_and(|task| task.state != TaskState::Open);
            if !completing {
                self.pending.add(Work::Credential(row.id), now);
            }
        }
        Ok(())
    }
}
