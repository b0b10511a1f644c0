//! What anyone may fetch: status lists, checkpoint and tiles. Served on the HTTPS, the plain and
//! the admin listener alike.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use ephor_proto::problem::Code;

use super::problem::ProblemResponse;
use crate::app::Broker;
use crate::issue::{defect, store_unavailable};
use crate::ledger::log;
use crate::limits;
use crate::request::Refusal;
use crate::revoke::ListError;

/// Media type of a status list token.
const STATUS_LIST: &str = "application/statuslist+jwt";
/// A full tile never changes again.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// A partial tile and the checkpoint are outgrown by the next commit.
const NO_CACHE: &str = "no-cache";

/// The public routes.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/status/{number}", get(status_list))
        .route("/checkpoint", get(checkpoint))
        .route("/tile/{*path}", get(tile))
        .with_state(broker)
}

async fn status_list(State(broker): State<Arc<Broker>>, Path(number): Path<String>) -> Response {
    let refuse = |refusal| ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    let Ok(number) = number.parse::<u32>() else {
        return refuse(Refusal::new(
            Code::NotFound,
            "a status list has a number: /status/0",
        ));
    };
    match broker.lists.current(number, broker.clock.wall()).await {
        Ok(built) => answer(
            built.token.clone(),
            STATUS_LIST,
            &format!("public, max-age={}", limits::STATUS_LIST_TTL_SECONDS),
        ),
        Err(error @ ListError::Unknown(_)) => {
            refuse(Refusal::new(Code::NotFound, error.to_string()))
        }
        Err(error @ (ListError::Full(_) | ListError::Random(_) | ListError::Build(..))) => {
            refuse(defect(error))
        }
    }
}

async fn checkpoint(State(broker): State<Arc<Broker>>) -> Response {
    match log::signed_checkpoint(&broker.ledger.reader(), &broker.log_signer()) {
        Ok(note) => answer(
            note.to_string().into(),
            "text/plain; charset=utf-8",
            NO_CACHE,
        ),
        Err(error) => {
            ProblemResponse::of(store_unavailable(error), broker.clock.as_ref()).into_response()
        }
    }
}

async fn tile(State(broker): State<Arc<Broker>>, Path(path): Path<String>) -> Response {
    match log::tile(&broker.ledger.reader(), &format!("tile/{path}")) {
        Ok(Some(bytes)) => {
            // Only a partial tile has its width in its path.
            let cache = if path.contains(".p/") {
                NO_CACHE
            } else {
                IMMUTABLE
            };
            answer(bytes.into(), "application/octet-stream", cache)
        }
        Ok(None) => {
            let refusal = Refusal::new(
                Code::NotFound,
                "the log has no such tile; see /checkpoint for its size",
            );
            ProblemResponse::of(refusal, broker.clock.as_ref()).into_response()
        }
        Err(error) => {
            ProblemResponse::of(store_unavailable(error), broker.clock.as_ref()).into_response()
        }
    }
}

fn answer(body: Bytes, content_type: &'static str, cache: &str) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Ok(cache) = HeaderValue::from_str(cache) {
        headers.insert(header::CACHE_CONTROL, cache);
    }
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    response
}
