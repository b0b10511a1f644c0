//! The state `behind`: this store is older than what others have seen of its log.
//!
//! It is kept in the store, so that a restart does not end it. In memory first: what cannot be
//! stored holds for as long as the process runs.

use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use ephor_proto::event::Outcome;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::time::{Boottime, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::app::Broker;
use crate::ledger::{Batch, Lane, ReadError, Row};
use crate::limits;
use crate::request::Refusal;

/// Name of the setting that holds it; empty is none.
pub(super) const META: &str = "behind";

/// Why this store is known to be old, and how far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Since when that is known.
    pub since: UnixMillis,
    /// Host whose agent has seen more; none when `restore` put this store here.
    pub host: Option<String>,
    /// Events of the log when that was found.
    pub size: u64,
    /// Events in the highest checkpoint that was shown; 0 when none was.
    pub seen_size: u64,
    /// That checkpoint, a signed note of our own; empty when none was shown.
    pub seen: String,
}

impl Behind {
    /// What happened, and what to do about it.
    #[must_use]
    pub fn reason(&self) -> String {
        let what = match &self.host {
            Some(host) => format!(
                "this store went back in time: host `{host}` has seen {} events of its log, signed by this broker, and \
                 {} are here or they are others",
                self.seen_size, self.size
            ),
            None => format!(
                "this store was restored from a backup of {} events; what came after is not in it",
                self.size
            ),
        };
        format!(
            "{what}. Nothing is issued, revoked or published meanwhile. Bring the newest copy back; if there is none, \
             begin a new epoch: ephor broker recover"
        )
    }
}

/// Whether this store is what others have seen of it.
#[derive(Default)]
pub(crate) struct Standing {
    behind: ArcSwapOption<Behind>,
    /// An agent has shown a checkpoint that this log extends.
    confirmed: AtomicBool,
}

impl Standing {
    fn confirm(&self) {
        self.confirmed.store(true, Ordering::Release);
    }
}

impl Broker {
    /// Why this store must not be believed, if so.
    #[must_use]
    pub fn behind(&self) -> Option<std::sync::Arc<Behind>> {
        self.standing.behind.load_full()
    }

    /// Whether what this store says may be told to others.
    ///
    /// # Errors
    /// `log_rewound`, with what to do.
    pub fn vouch(&self) -> Result<(), Refusal> {
        match self.behind() {
            Some(behind) => Err(Refusal::new(Code::LogRewound, behind.reason())),
            None => Ok(()),
        }
    }

    /// Whether the broker may end things by itself. Not before an agent has confirmed the log, or
    /// had the time to: a restored store has much to sweep that is none of its business.
    pub(crate) fn may_sweep(&self) -> bool {
        if self.behind().is_some() {
            return false;
        }
        if self.standing.confirmed.load(Ordering::Acquire) {
            return true;
        }
        let heard_since = self
            .fleet
            .ready_since()
            .unwrap_or(Boottime::from_millis(u64::MAX));
        let waited = self.clock.boottime().millis_since(heard_since);
        self.fleet.has_nobody() || waited >= limits::CONFIRM_LOG_MILLIS
    }

    /// Reads at start what an earlier run found out.
    pub(crate) fn restore_standing(&self) -> Result<(), ReadError> {
        let stored = self.ledger.reader().meta(META)?.unwrap_or_default();
        if stored.is_empty() {
            return Ok(());
        }
        // One that cannot be read still says that there is something.
        let behind = serde_json::from_str(&stored).unwrap_or_else(|_| Behind {
            since: self.clock.wall(),
            host: None,
            size: self.ledger.head().size,
            seen_size: 0,
            seen: String::new(),
        });
        tracing::error!(reason = behind.reason(), "this store is behind");
        self.standing
            .behind
            .store(Some(std::sync::Arc::new(behind)));
        Ok(())
    }

    /// An agent's checkpoint is a prefix of this log.
    pub(crate) fn confirmed(&self) {
        self.standing.confirm();
    }

    /// An agent has seen what this store does not have. From here on nothing is issued; the
    /// highest that was seen is kept for the new epoch to name.
    pub(crate) async fn fell_behind(&self, behind: Behind) {
        let before = self.behind();
        if before
            .as_ref()
            .is_some_and(|before| before.seen_size >= behind.seen_size)
        {
            return;
        }
        let since = before.as_ref().map_or(behind.since, |before| before.since);
        let behind = std::sync::Arc::new(Behind { since, ..behind });
        self.standing
            .behind
            .store(Some(std::sync::Arc::clone(&behind)));
        tracing::error!(reason = behind.reason(), "this store is behind");
        if let Err(error) = self.store_behind(&behind, before.is_none()).await {
            tracing::error!(%error, "that the store is behind could not be stored; it holds until this process ends");
        }
    }

    async fn store_behind(&self, behind: &Behind, is_new: bool) -> Result<(), String> {
        let text = serde_json::to_string(behind).map_err(|error| error.to_string())?;
        let mut events = Vec::new();
        if is_new {
            let event = self.event(Stage::Operate, "behind", Outcome::Failed);
            let mut event = event.map_err(|refusal| refusal.detail)?;
            event.code = Some(Code::LogRewound);
            event.agent = behind.host.as_deref().map(|host| self.agent_id(host));
            event
                .facts
                .insert("size".to_owned(), behind.size.to_string());
            event
                .facts
                .insert("seen_size".to_owned(), behind.seen_size.to_string());
            events.push(event.into());
        }
        let batch = Batch {
            name: "operate.behind",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: vec![Row::Meta(META.to_owned(), text)],
            events,
        };
        let ticket = self.ledger.submit(batch).map_err(|full| full.to_string())?;
        ticket.await.map(drop).map_err(|error| error.to_string())
    }
}
