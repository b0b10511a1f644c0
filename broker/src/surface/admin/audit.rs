//! The audit log, by range or about one thing.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use ephor_proto::http::admin::Record;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Answer, Shared, query, read, refuse, resolve};
use crate::app::Broker;
use crate::issue::defect;
use crate::ledger::{Reader, StoredEvent};
use crate::limits;
use crate::request::Refusal;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    after: Option<u64>,
    limit: Option<usize>,
    about: Option<String>,
}

pub(super) async fn range(
    State(broker): Shared,
    asked: Result<Query<Range>, QueryRejection>,
) -> Answer<Vec<Record>> {
    let found = match query(asked) {
        Ok(asked) => records_beside(&broker, asked).await,
        Err(refusal) => Err(refusal),
    };
    refuse(&broker, found)
}

pub(super) async fn about(State(broker): Shared, Path(id): Path<String>) -> Answer<Vec<Record>> {
    let asked = Range {
        after: None,
        limit: None,
        about: Some(id),
    };
    let found = records_beside(&broker, asked).await;
    refuse(&broker, found)
}

/// Beside the runtime's threads: a look for what is about one thing may go through the whole log.
async fn records_beside(broker: &Arc<Broker>, asked: Range) -> Result<Vec<Record>, Refusal> {
    let broker = Arc::clone(broker);
    let look = tokio::task::spawn_blocking(move || records(&broker, &asked));
    look.await.map_err(defect)?
}

fn records(broker: &Broker, asked: &Range) -> Result<Vec<Record>, Refusal> {
    let reader = broker.ledger.long_reader();
    let limit = asked
        .limit
        .unwrap_or(limits::ADMIN_ROWS)
        .min(limits::ADMIN_ROWS);
    let mut found = match &asked.about {
        Some(id) => {
            let named = resolve::any(&reader, id)?;
            read(reader.events_about(&named.full(), limit))?
        }
        None => {
            let from = asked.after.map_or(0, |after| after.saturating_add(1));
            read(reader.events(from, limit))?
        }
    };
    found.retain(|event| asked.after.is_none_or(|after| event.index > after));
    found
        .into_iter()
        .map(|event| record(&reader, event))
        .collect()
}

fn record(reader: &Reader, stored: StoredEvent) -> Result<Record, Refusal> {
    let personal = read(reader.personal(stored.index))?;
    let personal: Map<String, Value> = personal
        .into_iter()
        .map(|(field, kept)| (field, Value::from(kept.value)))
        .collect();
    let event = serde_json::from_str(&stored.json).map_err(defect)?;
    Ok(Record {
        index: stored.index,
        event,
        personal,
    })
}
