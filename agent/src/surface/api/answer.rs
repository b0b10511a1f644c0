//! Answers as they go out: never cached, never sniffed.

use bytes::Bytes;
use ephor_proto::problem::{CONTENT_TYPE as PROBLEM, Code, FirstWord, Problem};
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::hold::entry::Cost;

/// W3C Server Timing.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A good answer.
pub enum Answer {
    /// JSON that is there already.
    Json(Bytes),
    /// A credential's JSON, with what the stages took if the broker was asked for it.
    Issued(Bytes, Option<Cost>),
    /// It could not be written as JSON.
    Broken(serde_json::Error),
}

impl Answer {
    /// Writes a body without secrets.
    pub fn json<T: serde::Serialize>(body: &T) -> Self {
        match serde_json::to_vec(body) {
            Ok(json) => Self::Json(json.into()),
            Err(error) => Self::Broken(error),
        }
    }

    /// The response.
    #[must_use]
    pub fn into_response(self) -> Response<Full<Bytes>> {
        match self {
            Self::Json(json) => good(json),
            Self::Issued(json, cost) => {
                let mut response = good(json);
                if let Some(timing) = cost.and_then(timing) {
                    response.headers_mut().insert(SERVER_TIMING, timing);
                }
                response
            }
            Self::Broken(error) => {
                tracing::error!(%error, "an answer could not be written as JSON");
                response(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    HeaderValue::from_static(PROBLEM),
                    Bytes::new(),
                )
            }
        }
    }
}

/// A refusal (RFC 9457). After one that the caller's form or identity caused, the connection is
/// closed: what follows on it cannot be trusted to be what it seems.
#[must_use]
pub fn refusal(problem: &Problem) -> Response<Full<Bytes>> {
    crate::metrics::REFUSALS.count(problem.code);
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // So that the id in the answer leads somewhere. Not the detail: it may quote what the caller sent.
    tracing::info!(correlation = %problem.correlation_id, code = %problem.code, "refused");
    let json = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = response(status, HeaderValue::from_static(PROBLEM), json.into());
    let headers = response.headers_mut();
    if let Some(seconds) = problem.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.code == Code::MethodNotAllowed {
        let allowed = if problem.detail.ends_with("POST only") {
            "POST"
        } else {
            "GET"
        };
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    let form = problem.code.first_word() == FirstWord::Invalid && problem.code != Code::NotFound;
    if form
        || matches!(
            problem.code,
            Code::Proxied | Code::CallerGone | Code::AttestationFailed
        )
    {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A refusal as bytes, for a connection that is not served at all.
#[must_use]
pub fn raw(problem: &Problem) -> Vec<u8> {
    crate::metrics::REFUSALS.count(problem.code);
    let body = serde_json::to_string(problem).unwrap_or_default();
    let (status, length) = (problem.status, body.len());
    let retry = problem
        .retry_after
        .map(|seconds| format!("Retry-After: {seconds}\r\n"))
        .unwrap_or_default();
    format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {PROBLEM}\r\nCache-Control: no-store\r\n{retry}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}",
        problem.title
    )
    .into_bytes()
}

fn good(json: Bytes) -> Response<Full<Bytes>> {
    response(
        StatusCode::OK,
        HeaderValue::from_static("application/json"),
        json,
    )
}

/// Stages as W3C Server Timing, durations in milliseconds.
fn timing(cost: Cost) -> Option<HeaderValue> {
    let stages = [
        ("attest", cost.attest),
        ("decide", cost.decide),
        ("issue", cost.issue),
    ];
    let shown = stages
        .map(|(name, micros)| format!("{name};dur={}.{:03}", micros / 1000, micros % 1000))
        .join(", ");
    HeaderValue::from_str(&shown).ok()
}

fn response(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
