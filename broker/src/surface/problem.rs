//! Refusals as HTTP answers: RFC 9457 bodies with a stable code and a correlation id.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ephor_crypto::random::RandomError;
use ephor_proto::id::CorrelationId;
use ephor_proto::problem::{CONTENT_TYPE, Problem};
use ephor_proto::time::Clock;

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
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
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

/// A correlation id of now. Without randomness the id still has its time: a refusal must
/// never fail for want of an id.
#[must_use]
pub fn correlation(clock: &dyn Clock) -> CorrelationId {
    let random: Result<[u8; 10], RandomError> = ephor_crypto::random::bytes();
    CorrelationId::from_parts(clock.wall().as_millis(), random.unwrap_or_default())
}
