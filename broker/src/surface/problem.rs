//! Refusals as HTTP answers: RFC 9457 bodies with a stable code and a correlation id.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ephor_crypto::random::RandomError;
use ephor_proto::id::CorrelationId;
use ephor_proto::problem::{CONTENT_TYPE, Code, Problem};
use ephor_proto::time::Clock;

use crate::app::Broker;
use crate::request::Refusal;

/// A problem as the answer of an HTTP handler.
#[derive(Debug)]
pub struct ProblemResponse(pub Problem);

impl ProblemResponse {
    /// A refusal with a fresh correlation id.
    #[must_use]
    pub fn of(refusal: Refusal, clock: &dyn Clock) -> Self {
        Self(refusal.into_problem(correlation(clock)))
    }
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.0.retry_after;
        tracing::debug!(code = %self.0.code, correlation = %self.0.correlation_id, "refused");
        let mut response = (status, Json(self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Gives what the router refused by itself (a method, a path that is no text) the form of every
/// other refusal. For [`axum::middleware::map_response_with_state`].
pub async fn in_our_form(State(broker): State<Arc<Broker>>, response: Response) -> Response {
    let status = response.status();
    let kind = response
        .headers()
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes);
    let has_our_form =
        kind.is_some_and(|kind| kind == CONTENT_TYPE.as_bytes() || kind == b"application/json");
    if has_our_form || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (code, detail) = match status {
        StatusCode::METHOD_NOT_ALLOWED => (
            Code::MethodNotAllowed,
            "this path takes another method; see the header `Allow`",
        ),
        StatusCode::NOT_FOUND => (Code::NotFound, "there is nothing at this path"),
        StatusCode::PAYLOAD_TOO_LARGE => {
            (Code::TooLarge, "the body is larger than this path takes")
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (
            Code::UnsupportedMediaType,
            "this path does not take a body of this type",
        ),
        other if other.is_client_error() => (
            Code::InvalidRequest,
            "the request is not in a form that this path takes",
        ),
        _ => (Code::Internal, "the request could not be answered"),
    };
    let allowed = response.headers().get(header::ALLOW).cloned();
    let mut refused =
        ProblemResponse::of(Refusal::new(code, detail), broker.clock.as_ref()).into_response();
    if let Some(allowed) = allowed {
        refused.headers_mut().insert(header::ALLOW, allowed);
    }
    refused
}

/// A correlation id of now. Without randomness the id still has its time: a refusal must
/// never fail for want of an id.
#[must_use]
pub fn correlation(clock: &dyn Clock) -> CorrelationId {
    let random: Result<[u8; 10], RandomError> = ephor_crypto::random::bytes();
    CorrelationId::from_parts(clock.wall().as_millis(), random.unwrap_or_default())
}
