//! Changing a host's row: read, decide, commit; again when someone else was faster.

use std::sync::Arc;

use ephor_proto::problem::Code;
use ephor_proto::spiffe::HostName;

use super::Host;
use crate::app::Broker;
use crate::issue::{refused_by_store, store_unavailable};
use crate::ledger::{Batch, CommitError, HostRow, Lane, NewEvent, Require, Row};
use crate::limits;
use crate::request::Refusal;

/// What to write beside the host's row.
pub(super) struct Change {
    pub(super) row: HostRow,
    pub(super) require: Vec<Require>,
    pub(super) rows: Vec<Row>,
    pub(super) events: Vec<NewEvent>,
}

impl Change {
    /// A change that is no event.
    pub(super) fn quiet(row: HostRow) -> Self {
        Self {
            row,
            require: Vec::new(),
            rows: Vec::new(),
            events: Vec::new(),
        }
    }

    pub(super) fn new(row: HostRow, event: NewEvent) -> Self {
        Self {
            row,
            require: Vec::new(),
            rows: Vec::new(),
            events: vec![event],
        }
    }
}

impl Broker {
    /// Changes the row of `host` by `decide`, which sees the stored row (if any) and may be
    /// asked again. `Ok(None)` from it: nothing to change. Gives the host with its row as
    /// committed, and whether it changed.
    pub(super) async fn update_host(
        &self,
        name: &'static str,
        lane: Lane,
        host: &HostName,
        mut decide: impl FnMut(Option<HostRow>) -> Result<Option<Change>, Refusal> + Send,
    ) -> Result<(Option<Arc<Host>>, bool), Refusal> {
        for _ in 0..limits::CONFLICT_RETRIES {
            let stored = self
                .ledger
                .reader()
                .host(host.as_str())
                .map_err(store_unavailable)?;
            let Some(mut change) = decide(stored.clone())? else {
                return Ok((stored.map(|row| self.fleet.store(host, row)), false));
            };
            change.row.version = stored.map_or(1, |row| row.version.saturating_add(1));
            change.rows.push(Row::Host(change.row.clone()));
            let batch = Batch {
                name,
                lane,
                require: change.require,
                rows: change.rows,
                events: change.events,
            };
            let ticket = self
                .ledger
                .submit(batch)
                .map_err(|full| Refusal::new(Code::Busy, full.to_string()))?;
            match ticket.await {
                Ok(_) => return Ok((Some(self.fleet.store(host, change.row)), true)),
                Err(CommitError::Conflict(key)) => {
                    tracing::debug!(%key, batch = name, "someone else was faster; deciding anew");
                }
                Err(CommitError::Refused(reason)) => return Err(refused_by_store(&reason)),
                Err(CommitError::Unknown) => {
                    let detail =
                        "it is not known whether this was stored; look before you try again";
                    return Err(Refusal::new(Code::StoreUnavailable, detail));
                }
            }
        }
        Err(Refusal::new(
            Code::Busy,
            format!("host `{host}` kept changing; try again"),
        ))
    }
}
