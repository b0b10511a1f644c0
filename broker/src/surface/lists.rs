//! What anyone may fetch: status lists, revocation lists, the trust bundle, checkpoint and tiles. Served on the HTTPS, the plain and
//! the admin listener alike.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use ephor_crypto::jwk;
use ephor_proto::http::lists::{CrlIndex, CrlVersion};
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
/// Media type of a revocation list (RFC 2585 §4.2).
const CRL: &str = "application/pkix-crl";
/// A full tile never changes again.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// A partial tile and the checkpoint are outgrown by the next commit.
const NO_CACHE: &str = "no-cache";

/// The public routes.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/status/{number}", get(status_list))
        .route("/crl", get(crl_index))
        .route("/crl.pem", get(whole_crl))
        .route("/crl/{number}", get(crl))
        .route("/bundle", get(bundle))
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
    // An older list would take revocations back.
    if let Err(refusal) = broker.vouch() {
        return refuse(refusal);
    }
    match broker.lists.current(number, broker.clock.wall()).await {
        Ok(built) => answer(
            built.token.clone(),
            STATUS_LIST,
            &format!("public, max-age={}", limits::STATUS_LIST_TTL_SECONDS),
        ),
        Err(error @ (ListError::Unknown(_) | ListError::Distrusted(_))) => {
            refuse(Refusal::new(Code::NotFound, error.to_string()))
        }
        Err(error @ (ListError::Full(_) | ListError::Random(_) | ListError::Build(..))) => {
            refuse(defect(error))
        }
    }
}

async fn crl(State(broker): State<Arc<Broker>>, Path(number): Path<String>) -> Response {
    let refuse = |refusal| ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    let Ok(number) = number.parse::<u32>() else {
        return refuse(Refusal::new(
            Code::NotFound,
            "a revocation list has a number: /crl/0; /crl names all",
        ));
    };
    if let Err(refusal) = broker.vouch() {
        return refuse(refusal);
    }
    match broker.crls.current(number, &broker.keys).await {
        Ok(built) => answer(
            built.der.clone(),
            CRL,
            &format!("public, max-age={}", limits::CRL_TTL_SECONDS),
        ),
        Err(error @ (ListError::Unknown(_) | ListError::Distrusted(_))) => {
            refuse(Refusal::new(Code::NotFound, error.to_string()))
        }
        Err(error @ (ListError::Full(_) | ListError::Random(_) | ListError::Build(..))) => {
            refuse(defect(error))
        }
    }
}

/// All that is revoked, a list for each CA: for nginx and others that read lists from a file.
async fn whole_crl(State(broker): State<Arc<Broker>>) -> Response {
    let refuse = |refusal| ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    if let Err(refusal) = broker.vouch() {
        return refuse(refusal);
    }
    match broker.crls.whole(&broker.keys).await {
        Ok(pem) => answer(
            pem,
            "application/x-pem-file",
            &format!("public, max-age={}", limits::CRL_TTL_SECONDS),
        ),
        Err(error) => refuse(defect(error)),
    }
}

/// All revocation lists, each with a count that is another one after every change: who polls this
/// fetches what changed, and no more.
async fn crl_index(State(broker): State<Arc<Broker>>) -> Response {
    if let Err(refusal) = broker.vouch() {
        return ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    }
    let versions = broker.crls.versions();
    let lists: Vec<_> = versions
        .into_iter()
        .map(|(number, version)| CrlVersion {
            url: broker.crls.uri(number),
            version: version.to_string(),
        })
        .collect();
    json(&CrlIndex { lists })
}

/// The trust bundle (SPIFFE Trust Domain and Bundle §4): a JWKS of roots and token keys.
async fn bundle(State(broker): State<Arc<Broker>>) -> Response {
    // An old copy may hold keys that were distrusted since.
    if let Err(refusal) = broker.vouch() {
        return ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    }
    let bundle = broker.keys.load().bundle();
    // A third of the time for which a key is published before it is used, at most.
    let hint = broker
        .schedule
        .refresh_hint_seconds()
        .min(limits::BUNDLE_REFRESH_SECONDS);
    let roots = bundle.roots.iter().map(|root| jwk::root_entry(root));
    let keys = match roots.collect::<Result<Vec<_>, _>>() {
        Ok(keys) => keys,
        Err(error) => {
            return ProblemResponse::of(defect(error), broker.clock.as_ref()).into_response();
        }
    };
    let tokens = bundle.tokens.iter();
    let tokens = tokens.map(|(kid, key)| serde_json::json!(key.jwk(kid).into_token_entry()));
    json(&serde_json::json!({
        "keys": keys.into_iter().chain(tokens).collect::<Vec<_>>(),
        "spiffe_sequence": bundle.sequence,
        "spiffe_refresh_hint": hint,
    }))
}

fn json<T: serde::Serialize>(body: &T) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => answer(body.into(), "application/json", NO_CACHE),
        Err(_) => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn checkpoint(State(broker): State<Arc<Broker>>) -> Response {
    if let Err(refusal) = broker.vouch() {
        return ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    }
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
    // Two logs of one name would be published otherwise.
    if let Err(refusal) = broker.vouch() {
        return ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    }
    match log::tile(&broker.ledger.reader(), &format!("tile/{path}")) {
        Ok(Some(log::Found::Pruned(at))) => {
            let at = at.map(|at| format!(" on {at}")).unwrap_or_default();
            let detail = format!(
                "the text of these entries was pruned by retention{at}; their hashes are in tile/0 as before"
            );
            let refusal = Refusal::new(Code::Pruned, detail);
            ProblemResponse::of(refusal, broker.clock.as_ref()).into_response()
        }
        Ok(Some(log::Found::Bytes(bytes))) => {
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
