//! Where each target's history was when it was last heard. A server that was put back, or a replica
//! that took over without all of it, says another system id or timeline, or an earlier position: then
//! what was proven there may not be true any more. That is told, everything there is compared with
//! the store, and what was proven lately is looked for again.

use ephor_proto::event::Outcome;
use ephor_proto::stage::Stage;

use super::reconcile::{NotCompared, answered};
use super::{NotEnded, written};
use crate::app::Broker;
use crate::kind::effect::{Content, Seen};
use crate::kind::targets::Known;
use crate::ledger::{Batch, Lane, ReadError, Row};
use crate::limits;

/// Name of the setting in the store; the target's name follows.
const META: &str = "seen at target ";

impl Broker {
    /// A target said where it is. If that is another history than before, it is compared with the
    /// store at the next tick and not at its next turn.
    pub(crate) fn heard_of(&self, target: &str, seen: &Seen) {
        if self.targets.heard(target, seen) {
            self.targets.hurry_look(target);
        }
    }

    /// Asks a target where it is, and tells when that does not follow from what it said before.
    pub(super) async fn follow_history(
        &self,
        target: &str,
        known: &Known,
    ) -> Result<Seen, NotCompared> {
        // Before it is asked: what calls that are under way hear meanwhile may be later.
        let before = match self.targets.last_heard(target) {
            Some(before) => Some(before),
            None => self.stored_history(target)?,
        };
        let now = answered(known.at.seen()).await?;
        let is_new = before.as_ref().is_none_or(|before| !now.follows(before));
        let mut events = Vec::new();
        if let Some(before) = before.filter(|_| is_new) {
            let again = self.proven_lately(target)?;
            let mut event = self.event(Stage::Revoke, "target_changed", Outcome::Failed)?;
            let facts = [
                ("target", target.to_owned()),
                ("before", before.to_string()),
                ("now", now.to_string()),
                ("looked_at_again", again.len().to_string()),
            ];
            event
                .facts
                .extend(facts.map(|(name, value)| (name.to_owned(), value)));
            events.push(event.into());
            tracing::error!(target, %before, %now, "a target has another history than before; what was proven there is looked at again");
            for id in again {
                self.later_looks.set(id, self.clock.wall());
            }
        }
        let text = serde_json::to_string(&now).map_err(NotEnded::defect)?;
        let batch = Batch {
            name: "revoke.target_changed",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![Row::Meta(format!("{META}{target}"), text)],
            events,
        };
        written(self.ledger.submit(batch).map_err(NotEnded::from)?.await)?;
        self.targets.set_heard(target, now.clone());
        Ok(now)
    }

    fn stored_history(&self, target: &str) -> Result<Option<Seen>, ReadError> {
        let stored = self.ledger.reader().meta(&format!("{META}{target}"))?;
        Ok(stored.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// What was proven dead there not long ago.
    fn proven_lately(&self, target: &str) -> Result<Vec<ephor_proto::id::CredentialId>, ReadError> {
        let since = self.clock.wall();
        let since = since.saturating_sub_millis(limits::LOOK_AGAIN_BEFORE_MILLIS);
        let reader = self.ledger.reader();
        let mut ids = Vec::new();
        for id in reader.gone_since(since)? {
            let content = reader.credential(id)?.as_ref().and_then(Content::of);
            if content.is_some_and(|content| content.target == target) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}
