//! The broker's own keys: list, rotate, distrust.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use ephor_proto::http::admin::{CaRequest, Chain, Key, Reason, Rotate};
use ephor_proto::problem::Code;

use super::{Answer, Shared, body, refuse};
use crate::app::Broker;
use crate::keys::state::KeyKind;
use crate::request::Refusal;

pub(super) async fn list(State(broker): Shared) -> Answer<Vec<Key>> {
    refuse(&broker, broker.list_keys())
}

pub(super) async fn rotate(
    State(broker): Shared,
    Path(kind): Path<String>,
    asked: Result<Json<Rotate>, JsonRejection>,
) -> Answer<Vec<Key>> {
    refuse(&broker, rotate_within(&broker, &kind, asked).await)
}

async fn rotate_within(
    broker: &Broker,
    kind: &str,
    asked: Result<Json<Rotate>, JsonRejection>,
) -> Result<Vec<Key>, Refusal> {
    broker.rotate_key(known(kind)?, &body(asked)?).await
}

pub(super) async fn distrust(
    State(broker): Shared,
    Path(kind): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<Vec<Key>> {
    refuse(&broker, distrust_within(&broker, &kind, reason).await)
}

async fn distrust_within(
    broker: &Broker,
    kind: &str,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<Vec<Key>, Refusal> {
    broker
        .distrust_keys(known(kind)?, &body(reason)?.reason)
        .await
}

pub(super) async fn request(
    State(broker): Shared,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<CaRequest> {
    refuse(&broker, request_within(&broker, reason).await)
}

async fn request_within(
    broker: &Broker,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<CaRequest, Refusal> {
    let csr_pem = broker.ca_request(&body(reason)?.reason).await?;
    Ok(CaRequest { csr_pem })
}

pub(super) async fn chain(
    State(broker): Shared,
    asked: Result<Json<Chain>, JsonRejection>,
) -> Answer<Vec<Key>> {
    let outcome = match body(asked) {
        Ok(asked) => broker.import_ca(&asked).await,
        Err(refusal) => Err(refusal),
    };
    refuse(&broker, outcome)
}

fn known(kind: &str) -> Result<KeyKind, Refusal> {
    kind.parse()
        .map_err(|error| Refusal::new(Code::NotFound, format!("{error}")))
}
