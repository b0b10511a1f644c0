//! The broker's own keys: list, rotate, distrust.
//!
//! A change is done to its end by a task of its own: whoever asked may go away between what is
//! stored and what comes into force.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use ephor_proto::http::admin::{CaRequest, Chain, DatabaseCas, Key, Reason, Rotate};
use ephor_proto::problem::Code;

use super::{Answer, Shared, body, refuse, to_its_end};
use crate::app::Broker;
use crate::keys::state::KeyKind;
use crate::request::Refusal;

/// Name of the tasks that change keys.
const CHANGE: &str = "operate.keys";

pub(super) async fn list(State(broker): Shared) -> Answer<Vec<Key>> {
    refuse(&broker, broker.list_keys())
}

/// What database servers are to trust.
pub(super) async fn databases(State(broker): Shared) -> Answer<DatabaseCas> {
    let keys = broker.keys.load();
    let cas = DatabaseCas {
        pem: keys.database_roots_pem(),
        issuing: keys.database_ca().certificate().pem(),
    };
    refuse(&broker, Ok(cas))
}

pub(super) async fn rotate(
    State(broker): Shared,
    Path(kind): Path<String>,
    asked: Result<Json<Rotate>, JsonRejection>,
) -> Answer<Vec<Key>> {
    refuse(&broker, rotate_within(&broker, &kind, asked).await)
}

async fn rotate_within(
    broker: &Arc<Broker>,
    kind: &str,
    asked: Result<Json<Rotate>, JsonRejection>,
) -> Result<Vec<Key>, Refusal> {
    let (kind, asked) = (known(kind)?, body(asked)?);
    let work = async move |broker: Arc<Broker>| broker.rotate_key(kind, &asked).await;
    to_its_end(broker, CHANGE, work).await
}

pub(super) async fn distrust(
    State(broker): Shared,
    Path(kind): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<Vec<Key>> {
    refuse(&broker, distrust_within(&broker, &kind, reason).await)
}

async fn distrust_within(
    broker: &Arc<Broker>,
    kind: &str,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<Vec<Key>, Refusal> {
    let (kind, Reason { reason }) = (known(kind)?, body(reason)?);
    let work = async move |broker: Arc<Broker>| broker.distrust_keys(kind, &reason).await;
    to_its_end(broker, CHANGE, work).await
}

pub(super) async fn request(
    State(broker): Shared,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<CaRequest> {
    refuse(&broker, request_within(&broker, reason).await)
}

async fn request_within(
    broker: &Arc<Broker>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<CaRequest, Refusal> {
    let Reason { reason } = body(reason)?;
    let work = async move |broker: Arc<Broker>| broker.ca_request(&reason).await;
    let csr_pem = to_its_end(broker, CHANGE, work).await?;
    Ok(CaRequest { csr_pem })
}

pub(super) async fn chain(
    State(broker): Shared,
    asked: Result<Json<Chain>, JsonRejection>,
) -> Answer<Vec<Key>> {
    refuse(&broker, chain_within(&broker, asked).await)
}

async fn chain_within(
    broker: &Arc<Broker>,
    asked: Result<Json<Chain>, JsonRejection>,
) -> Result<Vec<Key>, Refusal> {
    let asked = body(asked)?;
    let work = async move |broker: Arc<Broker>| broker.import_ca(&asked).await;
    to_its_end(broker, CHANGE, work).await
}

fn known(kind: &str) -> Result<KeyKind, Refusal> {
    kind.parse()
        .map_err(|error| Refusal::new(Code::NotFound, format!("{error}")))
}
