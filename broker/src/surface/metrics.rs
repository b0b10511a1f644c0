//! The metrics listener: metrics, life and readiness, for programs on this host. A router of its
//! own, so that none of it is ever reachable where agents and verifiers come in.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use crate::app::Broker;

/// `/metrics`, `/healthz`, `/readyz`.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(broker)
}

async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    let Some(text) = broker.metrics().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let kind = HeaderValue::from_static(ephor_proto::metrics::CONTENT_TYPE);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The process turns; nothing more.
async fn healthz() -> Response {
    Json(serde_json::json!({ "status": "ok" })).into_response()
}

async fn readyz(State(broker): State<Arc<Broker>>) -> Response {
    let readiness = broker.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::{Body, to_bytes};
    use http::Request;
    use tower::ServiceExt;

    use super::*;
    use crate::app::tests::TestBroker;

    async fn get(test: &TestBroker, path: &str) -> (StatusCode, String) {
        let router = crate::surface::metrics_router(&test.broker);
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_broker_says_how_it_is_and_why_not() {
        let test = TestBroker::new().await;
        assert_eq!(get(&test, "/healthz").await.0, 200);
        let (status, ready) = get(&test, "/readyz").await;
        assert_eq!(status, 200, "{ready}");
        let behind = crate::recover::Behind {
            since: test.broker.clock.wall(),
            host: None,
            size: 7,
            seen_size: 0,
            seen: String::new(),
        };
        test.broker.fell_behind(behind.clone()).await;
        let (status, ready) = get(&test, "/readyz").await;
        assert_eq!(status, 503);
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        assert_eq!(ready["ready"], false);
        assert_eq!(ready["issuing"], behind.reason());
        assert_eq!(ready["store"], "ok");
        assert_eq!(get(&test, "/healthz").await.0, 200, "it still lives");
        let (status, text) = get(&test, "/metrics").await;
        assert_eq!(status, 200);
        for line in [
            "ephor_ready 0",
            "ephor_overdue 0",
            r#"ephor_tasks{state="open"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert_eq!(get(&test, "/v1/hosts").await.0, 404);
    }
}
