//! What the outside sees. Each module parses, calls a stage and encodes; nothing else.

pub mod admin;
pub mod grpc;
pub mod lists;
pub mod listener;
pub mod metrics;
pub mod oauth;
pub mod problem;
pub mod tls;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, map_response_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use ephor_proto::limits::MAX_BODY_BYTES;
use ephor_proto::problem::Code;

use crate::app::Broker;
use crate::request::Refusal;
use listener::Connection;
use problem::{ProblemResponse, in_our_form};

/// Agents (gRPC), OAuth, and what is public.
pub fn https_router(broker: &Arc<Broker>) -> Router {
    let http = Router::new()
        .merge(oauth::router(Arc::clone(broker)))
        .merge(lists::router(Arc::clone(broker)))
        .route("/healthz", get(health).with_state(Arc::clone(broker)))
        .fallback_service(fallback(broker))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(map_response_with_state(Arc::clone(broker), in_our_form));
    grpc::router(broker).merge(http)
}

/// What is public and signed.
pub fn http_router(broker: &Arc<Broker>) -> Router {
    Router::new()
        .merge(lists::router(Arc::clone(broker)))
        .fallback_service(fallback(broker))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(map_response_with_state(Arc::clone(broker), in_our_form))
}

/// Metrics and health, for programs on this host.
pub fn metrics_router(broker: &Arc<Broker>) -> Router {
    metrics::router(Arc::clone(broker))
        .fallback_service(fallback(broker))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(map_response_with_state(Arc::clone(broker), in_our_form))
}

/// Administration, for root and our own uid.
pub fn admin_router(broker: &Arc<Broker>) -> Router {
    Router::new()
        .merge(admin::router(Arc::clone(broker)))
        .fallback_service(fallback(broker))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(map_response_with_state(Arc::clone(broker), in_our_form))
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(broker),
            only_administrators,
        ))
}

async fn only_administrators(
    State(broker): State<Arc<Broker>>,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let own_uid = rustix::process::geteuid().as_raw();
    if may_administer(&connection, own_uid) {
        return next.run(request).await;
    }
    let detail =
        format!("only root and uid {own_uid}, which the broker runs as, may use the admin socket");
    ProblemResponse::of(Refusal::new(Code::Forbidden, detail), broker.clock.as_ref())
        .into_response()
}

/// Until people exist: root, or who the broker itself runs as, by the kernel's word.
fn may_administer(connection: &Connection, own_uid: u32) -> bool {
    match connection {
        Connection::Admin { uid, pid: _ } => *uid == 0 || *uid == own_uid,
        Connection::Https { .. } | Connection::Http { .. } => false,
    }
}

/// Whether this process serves; says why when it issues nothing.
async fn health(State(broker): State<Arc<Broker>>) -> Response {
    let (issuing, because) = match broker.may_issue() {
        Ok(_) => (true, None),
        Err(refusal) => (false, Some(refusal.code.as_str())),
    };
    // Where it is, is for the admin socket to say.
    let policy = match broker.inforce.trouble() {
        None => "current",
        Some(_) => "last_good",
    };
    Json(serde_json::json!({ "status": "ok", "issuing": issuing, "because": because, "policy": policy }))
        .into_response()
}

fn fallback(broker: &Arc<Broker>) -> axum::routing::MethodRouter {
    let broker = Arc::clone(broker);
    axum::routing::any(move || async move {
        let refusal = Refusal::new(Code::NotFound, "there is nothing at this path");
        ProblemResponse::of(refusal, broker.clock.as_ref())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt;

    use super::*;
    use crate::app::tests::TestBroker;

    #[tokio::test]
    async fn another_user_on_the_admin_socket_gets_a_problem_and_nothing_else() {
        let test = TestBroker::new().await;
        let router = admin_router(&test.broker);
        let stranger = rustix::process::geteuid().as_raw().wrapping_add(1);
        for (uid, path, expected) in [
            (stranger, "/v1/hosts", 403),
            (stranger, "/nothing", 403),
            (0, "/v1/hosts", 200),
        ] {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap();
            request
                .extensions_mut()
                .insert(Connection::Admin { uid, pid: None });
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), expected, "{uid} {path}");
            let body = to_bytes(answer.into_body(), 1 << 16).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["code"] == "forbidden", expected == 403, "{body}");
        }
    }

    #[test]
    fn only_root_and_ourselves_administer() {
        let admin = |uid| Connection::Admin { uid, pid: None };
        assert!(may_administer(&admin(0), 1000));
        assert!(may_administer(&admin(1000), 1000));
        assert!(!may_administer(&admin(1001), 1000));
        let remote = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(!may_administer(&Connection::Http { remote }, 0));
        assert!(!may_administer(
            &Connection::Https {
                remote,
                agent: None
            },
            0
        ));
    }
}
