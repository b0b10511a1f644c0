//! Listings are kept until expiry + 24 h; then the index is free again and the stored content goes.

use ephor_proto::limits::LISTING_KEPT_MILLIS;
use ephor_proto::state::credential::CredentialState;

use super::written;
use crate::app::Broker;
use crate::ledger::{Batch, Lane, Row};
use crate::limits;

impl Broker {
    /// Forgets listings that nobody needs any more. Never on a wall clock that is not believed: after
    /// a step forward and back a revoked token would be valid again.
    pub async fn prune_listings(&self) {
        let Ok(now) = self.clock_guard.check() else {
            return;
        };
        let before = now.saturating_sub_millis(LISTING_KEPT_MILLIS);
        let old = match self.ledger.reader().expiring_before(
            CredentialState::Dead,
            before,
            limits::LEDGER_PRUNE_CHUNK,
        ) {
            Ok(old) => old,
            Err(error) => {
                tracing::warn!(%error, "old listings could not be read; pruned at the next tick");
                return;
            }
        };
        if old.is_empty() {
            return;
        }
        let rows = old.iter().map(|row| Row::Unlist(row.id)).collect();
        let batch = Batch {
            name: "revoke.prune",
            lane: Lane::Normal,
            require: Vec::new(),
            rows,
            events: Vec::new(),
        };
        let Ok(ticket) = self.ledger.submit(batch) else {
            return;
        };
        match written(ticket.await) {
            Ok(Some(_)) => {
                for row in &old {
                    self.unlist(row);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "old listings could not be pruned; tried at the next tick")
            }
        }
    }
}
