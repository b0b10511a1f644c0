//! Retention: what is over and old is forgotten, so that the store does not grow for ever.
//!
//! Detail (rows of closed tasks, requests, decisions, texts that may be erased) goes first, the text of
//! leaves later or never, their hashes never. Each commit tells in the log what went with it. It must
//! never run on a clock that is not believed, nor while the store may be an old copy, and it makes way
//! for everything else.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::RequestId;
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Ttl;
use serde::Deserialize;

use crate::app::Broker;
use crate::ledger::{Batch, Lane, Prunable, ReadError, Row};
use crate::limits;

/// How long what is over is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Rows of what is over.
    pub detail: Ttl,
    /// Text of leaves; `None` is for ever.
    pub log: Option<Ttl>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            detail: Ttl::from_seconds(limits::RETENTION_DETAIL_SECONDS),
            log: None,
        }
    }
}

/// `[retention]` of the settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// A time such as `90d`.
    pub detail: Option<Ttl>,
    /// A time, or `forever`.
    pub log: Option<KeepLog>,
}

/// How long the text of leaves is kept.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub enum KeepLog {
    /// As long as the store.
    Forever,
    /// So long.
    For(Ttl),
}

impl TryFrom<String> for KeepLog {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        text.parse().map(Self::For).map_err(|error| {
            format!("`{text}` is neither \"forever\" nor a time such as \"400d\": {error}")
        })
    }
}

impl Retention {
    /// The settings in the place of the defaults.
    ///
    /// # Errors
    /// Key, value and what is wrong with it.
    pub fn of(keep: Option<Keep>) -> Result<Self, (&'static str, String, String)> {
        let mut retention = Self::default();
        let Some(keep) = keep else {
            return Ok(retention);
        };
        let least = Ttl::from_seconds(limits::RETENTION_LEAST_SECONDS);
        if let Some(detail) = keep.detail {
            if detail < least {
                let why = format!(
                    "must be {least} or more: what ended is listed until a day after its expiry"
                );
                return Err(("retention.detail", detail.to_string(), why));
            }
            retention.detail = detail;
        }
        retention.log = match keep.log {
            Some(KeepLog::For(log)) if log < retention.detail => {
                let why = format!(
                    "must not be shorter than retention.detail ({})",
                    retention.detail
                );
                return Err(("retention.log", log.to_string(), why));
            }
            Some(KeepLog::For(log)) => Some(log),
            Some(KeepLog::Forever) | None => None,
        };
        Ok(retention)
    }
}

/// Up to which time all that may go is gone, as far as this process knows.
#[derive(Debug, Default)]
pub struct Retained(AtomicU64);

/// So long ago, in whole steps.
fn ago(now: UnixMillis, kept: Ttl) -> UnixMillis {
    let before = now.saturating_sub_millis(kept.as_seconds().saturating_mul(1000));
    let millis = before.as_millis();
    UnixMillis::from_millis(millis - millis % limits::RETENTION_STEP_MILLIS)
}

impl Broker {
    /// Prunes what retention no longer keeps: so many commits, and the rest at the next tick.
    pub async fn retain(&self, retention: Retention) {
        let Some(now) = self.may_prune() else { return };
        let before = ago(now, retention.detail);
        if before.as_millis() <= self.retained.0.load(Ordering::Acquire) {
            return;
        }
        let (mut cursor, mut all_there) = (None, true);
        let stop = self.tasks.stop_token();
        for _ in 0..limits::RETENTION_COMMITS {
            // Each time: what is pruned is gone for good.
            let Some(now) = self.may_prune() else { return };
            let found = match self.prunable(retention, now, cursor) {
                Ok(found) => found,
                Err(error) => return later(&error),
            };
            cursor = found.cursor;
            if !found.is_empty() {
                all_there = false;
                if let Err(error) = self.prune(found).await {
                    return later(&error);
                }
            }
            if cursor.is_none() {
                // Whatever a pass removes may let more go.
                if all_there {
                    self.retained.0.store(before.as_millis(), Ordering::Release);
                    return;
                }
                all_there = true;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(limits::RETENTION_PAUSE) => {}
            }
        }
    }

    /// The time, when it is believed, the store is no old copy as far as is known, and nobody asked
    /// the broker to stop.
    fn may_prune(&self) -> Option<UnixMillis> {
        let may = !self.tasks.stop_token().is_cancelled() && self.may_sweep();
        self.clock_guard.check().ok().filter(|_| may)
    }

    fn prunable(
        &self,
        retention: Retention,
        now: UnixMillis,
        after: Option<RequestId>,
    ) -> Result<Prunable, ReadError> {
        let reader = self.ledger.reader();
        let before = ago(now, retention.detail);
        let mut found = reader.prunable(before, after, limits::RETENTION_CHUNK)?;
        found.prune.at = now;
        if let Some(log) = retention.log
            && let Some((below, leaves)) =
                reader.prunable_leaves(ago(now, log), limits::RETENTION_LEAVES)?
        {
            found.prune.leaves_below = Some(below);
            found.leaves = leaves;
        }
        Ok(found)
    }

    /// One commit: the rows, and the event that tells of them.
    async fn prune(&self, found: Prunable) -> Result<(), String> {
        let event = self.pruned_event(&found)?;
        let batch = Batch {
            name: "operate.pruned",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: vec![Row::Prune(Box::new(found.prune))],
            events: vec![event.into()],
        };
        let ticket = self.ledger.submit(batch).map_err(|full| full.to_string())?;
        ticket.await.map_err(|error| error.to_string())?;
        Ok(())
    }

    fn pruned_event(&self, found: &Prunable) -> Result<AuditEvent, String> {
        let event = self.event(Stage::Operate, "pruned", Outcome::Ok);
        let mut event = event.map_err(|refusal| refusal.detail)?;
        let prune = &found.prune;
        let counts = [
            ("tasks", prune.tasks.len() as u64),
            ("credentials", found.credentials),
            ("requests", prune.requests.len() as u64),
            ("decisions", prune.decisions.len() as u64),
            ("texts", prune.texts.len() as u64),
            ("entries", found.leaves),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        event
            .facts
            .extend(counts.map(|(name, count)| (name.to_owned(), count.to_string())));
        event
            .facts
            .insert("before".to_owned(), prune.before.to_string());
        if let Some(below) = prune.leaves_below {
            event
                .facts
                .insert("entries_below".to_owned(), below.to_string());
        }
        Ok(event)
    }
}

fn later(error: &dyn std::fmt::Display) {
    tracing::warn!(%error, "what retention no longer keeps could not be pruned; tried at the next tick");
}
