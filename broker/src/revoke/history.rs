//! Where each target's history was when it was last heard. A server that was put back, or a replica
//! that took over without all of it, says another system id or timeline, or an earlier position: then
//! what was proven there may not be true any more. That is told, everything there is compared with
//! the store, and what was proven lately is looked for again.

use ephor_proto::event::Outcome;
use ephor_proto::id::CredentialId;
use ephor_proto::stage::Stage;
use ephor_proto::time::{Boottime, UnixMillis};
use serde::{Deserialize, Serialize};

use super::reconcile::{NotCompared, answered};
use super::{NotEnded, written};
use crate::app::Broker;
use crate::kind::effect::{Content, Seen};
use crate::kind::targets::Known;
use crate::ledger::{Batch, Lane, ReadError, Row};
use crate::limits;

/// Name of the setting in the store; the target's name follows.
const META: &str = "seen at target ";

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    seen: Seen,
    /// When it said so, by our clock.
    at: Option<UnixMillis>,
}

impl Broker {
    /// A target said where it is, when asked at `begun`. If that does not follow from what it said before,
    /// it is compared with the store at the next tick and not at its next turn. What waits because it was
    /// away is tried now: what is made there from here on may end at once.
    pub(crate) fn heard_of(&self, target: &str, seen: &Seen, begun: Boottime) {
        self.queues.is_back(target, self.clock.boottime());
        let times = (begun, self.clock.boottime());
        if self.targets.heard(target, seen, times) {
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
        let before = self.history(target)?;
        let now = answered(known.at.seen()).await?;
        let follows = |before: &Before| !before.is_back && now.follows(&before.seen);
        let mut events = Vec::new();
        let mut is_another = false;
        if let Some(before) = before.filter(|before| !follows(before)) {
            is_another = true;
            let again = self.proven_since(target, before.at).await?;
            let mut event = self.event(Stage::Revoke, "target_changed", Outcome::Failed)?;
            let facts = [
                ("target", target.to_owned()),
                ("before", before.seen.to_string()),
                ("now", now.to_string()),
                ("looked_at_again", again.len().to_string()),
            ];
            event
                .facts
                .extend(facts.map(|(name, value)| (name.to_owned(), value)));
            events.push(event.into());
            tracing::error!(target, before = %before.seen, %now, "a target has another history than before; what was proven there is looked at again");
            for id in again {
                self.later_looks.set(id, self.clock.wall());
            }
        }
        let stored = Stored {
            seen: now.clone(),
            at: Some(self.clock.wall()),
        };
        let text = serde_json::to_string(&stored).map_err(NotEnded::defect)?;
        let batch = Batch {
            name: "revoke.target_changed",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![Row::Meta(format!("{META}{target}"), text)],
            events,
        };
        written(self.ledger.submit(batch).map_err(NotEnded::from)?.await)?;
        let at = self.clock.boottime();
        match is_another {
            // An earlier place must not be told once more at each comparison.
            true => self.targets.set_heard_anew(target, now.clone(), at),
            false => self.targets.set_heard(target, now.clone(), at),
        }
        Ok(now)
    }

    /// Where a target was; after a start as it is stored.
    fn history(&self, target: &str) -> Result<Option<Before>, ReadError> {
        let wall = self.clock.wall();
        if let Some(heard) = self.targets.last_heard(target) {
            let ago = self.clock.boottime().millis_since(heard.at);
            return Ok(Some(Before {
                seen: heard.seen,
                at: wall.saturating_sub_millis(ago),
                is_back: heard.is_back,
            }));
        }
        let stored = self.ledger.reader().meta(&format!("{META}{target}"))?;
        let stored: Option<Stored> = stored.and_then(|text| serde_json::from_str(&text).ok());
        Ok(stored.map(|stored| Before {
            seen: stored.seen,
            at: stored.at.unwrap_or(wall),
            is_back: false,
        }))
    }

    /// What was proven dead there since a while before then. The proofs of a long outage's beginning
    /// are old when it ends.
    async fn proven_since(
        &self,
        target: &str,
        heard: UnixMillis,
    ) -> Result<Vec<CredentialId>, ReadError> {
        let since = heard.min(self.clock.wall());
        let since = since.saturating_sub_millis(limits::LOOK_AGAIN_BEFORE_MILLIS);
        let gone = self.ledger.reader().gone_since(since)?;
        let mut ids = Vec::new();
        for id in gone {
            // There may be many, and each is a read.
            tokio::task::yield_now().await;
            let row = self.ledger.reader().credential(id)?;
            let content = row.as_ref().and_then(Content::of);
            if content.is_some_and(|content| content.target == target) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// Where a target was, and when it said so, by our clock.
struct Before {
    seen: Seen,
    at: UnixMillis,
    /// It has said an earlier place since.
    is_back: bool,
}
