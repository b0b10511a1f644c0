//! The routes as a client sees them, without a socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod attacks;

use std::future::Future as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::issue::tests::harness::{Bench, ISSUER};

struct Got {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    bytes: Vec<u8>,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.bytes)))
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

async fn call(router: Router, request: Request<Body>) -> Got {
    let response: Response<Body> = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes().to_vec();
    Got {
        status: parts.status,
        headers: parts.headers,
        bytes,
    }
}

async fn admin(bench: &Bench, path: &str) -> Got {
    let request = Request::get(path).body(Body::empty()).unwrap();
    call(super::router(Arc::clone(&bench.broker)), request).await
}

async fn admin_post(bench: &Bench, path: &str, body: &str) -> Got {
    let request = Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap();
    call(super::router(Arc::clone(&bench.broker)), request).await
}

/// A request of whoever goes away the moment it was sent.
async fn admin_post_and_leave(bench: &Bench, path: &str, body: &str) {
    let mut call = std::pin::pin!(admin_post(bench, path, body));
    std::future::poll_fn(|context| {
        assert!(call.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
}

async fn form(bench: &Bench, path: &str, bearer: Option<&str>, body: String) -> Got {
    let mut request =
        Request::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    if let Some(bearer) = bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
    }
    let router = crate::surface::oauth::router(Arc::clone(&bench.broker));
    call(router, request.body(Body::from(body)).unwrap()).await
}

#[tokio::test]
async fn a_task_is_found_by_every_id_that_leads_to_it() {
    let bench = Bench::new().await;
    let (task, credential, _) = bench.token().await;
    bench.token().await;
    let row = bench.row(credential);
    let ids = [
        task.to_string(),
        task.short_with(15),
        task.receipt().short_with(15),
        credential.to_string(),
        credential.short_with(15),
        row.request.short_with(15),
        row.decision.short_with(15),
    ];
    for id in ids {
        let got = admin(&bench, &format!("/v1/tasks/{id}")).await;
        assert_eq!(got.status, StatusCode::OK, "{id}");
        assert_eq!(got.json()["id"], task.to_string(), "{id}");
        assert_eq!(got.json()["credentials"][0]["id"], credential.to_string());
        let audit = admin(&bench, &format!("/v1/audit/{id}")).await;
        assert!(!audit.json().as_array().unwrap().is_empty(), "{id}");
    }
    let absent = admin(&bench, "/v1/tasks/t-zzzzzzzz").await;
    assert_eq!(absent.status, StatusCode::NOT_FOUND);
    assert_eq!(absent.json()["code"], "not_found");
    assert!(absent.json()["correlation_id"].is_string());
    assert_eq!(
        absent.header(header::CONTENT_TYPE),
        "application/problem+json"
    );
    assert!(
        !admin(&bench, "/v1/audit/web-1")
            .await
            .json()
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn an_operator_ends_a_task_and_gets_its_receipt() {
    let bench = Bench::new().await;
    let (task, credential, token) = bench.token().await;
    let none = admin(&bench, &format!("/v1/tasks/{task}/receipt")).await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    let got = admin_post(
        &bench,
        &format!("/v1/tasks/{task}/end"),
        r#"{"reason":"on call"}"#,
    )
    .await;
    assert_eq!(got.status, StatusCode::OK);
    assert_eq!(got.json()["listed"], 1);
    assert_eq!(
        bench.verified(&got.json()["receipt"].to_string()).task,
        Some(task)
    );
    assert!(!bench.is_active(&token));
    let receipt = admin(&bench, &format!("/v1/tasks/{task}/receipt")).await;
    assert_eq!(
        bench.verified(&receipt.json().to_string()).cause.as_deref(),
        Some("revoked")
    );
    let told = admin(&bench, &format!("/v1/audit?about={task}"))
        .await
        .json();
    let ended = told
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["event"]["type"] == "complete.revoked")
        .unwrap();
    assert_eq!(ended["personal"]["reason"], "on call");
    assert!(ended["event"]["reason"]["sha256"].is_string());
    assert_eq!(
        admin(&bench, "/v1/receipts").await.json()[0],
        task.to_string()
    );
    let contained = admin(&bench, "/v1/credentials?state=contained")
        .await
        .json();
    assert_eq!(contained[0]["id"], credential.to_string());
    assert_eq!(
        admin(&bench, "/v1/tasks?state=open").await.json(),
        serde_json::json!([])
    );
}

#[tokio::test]
async fn an_operator_revokes_a_credential_by_its_short_form() {
    let bench = Bench::new().await;
    let (_, credential, token) = bench.token().await;
    let shown = admin(&bench, &format!("/v1/credentials/{credential}"))
        .await
        .json();
    let short = shown["short"].as_str().unwrap().to_owned();
    let got = admin_post(&bench, &format!("/v1/credentials/{short}/revoke"), "{}").await;
    assert_eq!(
        (got.status, &got.json()["listed"]),
        (StatusCode::OK, &1.into())
    );
    assert!(!bench.is_active(&token));
    let shown = admin(&bench, &format!("/v1/credentials/{credential}"))
        .await
        .json();
    assert_eq!(
        (&shown["state"], &shown["cause"]),
        (&"contained".into(), &"revoked".into())
    );
}

#[tokio::test]
async fn malformed_calls_are_named() {
    let bench = Bench::new().await;
    let (task, ..) = bench.token().await;
    for (got, code) in [
        (
            admin(&bench, "/v1/tasks?state=alive").await,
            "invalid_request",
        ),
        (
            admin(&bench, "/v1/tasks?colour=red").await,
            "invalid_request",
        ),
        (
            admin(&bench, "/v1/credentials?state=x").await,
            "invalid_request",
        ),
        (
            admin_post(&bench, &format!("/v1/tasks/{task}/end"), "{").await,
            "invalid_request",
        ),
        (
            admin_post(&bench, &format!("/v1/tasks/{task}/end"), r#"{"why":1}"#).await,
            "invalid_request",
        ),
        (
            admin_post(
                &bench,
                &format!("/v1/tasks/{task}/end"),
                &" ".repeat(100_000),
            )
            .await,
            "too_large",
        ),
        (
            admin_post(&bench, "/v1/policy/explain", "{}").await,
            "invalid_request",
        ),
    ] {
        assert_eq!(got.json()["code"], code);
    }
    let status = admin(&bench, "/v1/status").await.json();
    assert_eq!(
        (&status["issuing"], &status["log_size"]),
        (&true.into(), &3.into())
    );
}

#[tokio::test]
async fn introspection_over_http_is_rfc_7662() {
    let bench = Bench::new().await;
    let service = bench.service_token().await;
    let (task, credential, token) = bench.token().await;
    let body = || format!("token={token}&token_type_hint=access_token");
    let active = form(&bench, "/introspect", Some(&service), body()).await;
    let json = active.json();
    assert_eq!(active.header(header::CACHE_CONTROL), "no-store");
    assert_eq!(
        (&json["active"], &json["jti"]),
        (&true.into(), &credential.to_string().into())
    );
    assert_eq!(
        (&json["iss"], &json["aud"]),
        (&ISSUER.into(), &"billing".into())
    );
    assert_eq!(
        (&json["owner"], &json["task_id"]),
        (&"team:billing".into(), &task.to_string().into())
    );

    for bearer in [None, Some("x"), Some(service.get(..20).unwrap())] {
        let refused = form(&bench, "/introspect", bearer, body()).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert!(
            refused
                .header(header::WWW_AUTHENTICATE)
                .starts_with("Bearer")
        );
    }
    for malformed in ["", "tokn=x", "token=%zz&token=y"] {
        let refused = form(&bench, "/introspect", Some(&service), malformed.to_owned()).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{malformed}");
        assert_eq!(refused.json()["error"], "invalid_request");
    }
    let large = form(
        &bench,
        "/introspect",
        Some(&service),
        format!("token={}", "a".repeat(40_000)),
    )
    .await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);

    bench.complete(task, "exited").await.unwrap();
    for bearer in [&service, &token] {
        let ended = form(&bench, "/introspect", Some(bearer), body()).await;
        assert_eq!(
            (ended.status, ended.json()),
            (StatusCode::OK, serde_json::json!({"active": false}))
        );
    }
}

#[tokio::test]
async fn revocation_over_http_is_rfc_7009() {
    let bench = Bench::new().await;
    let (_, credential, token) = bench.token().await;
    let service = bench.service_token().await;
    let unknown = form(&bench, "/revoke", Some(&service), "token=unknown".into()).await;
    assert_eq!(
        (unknown.status, unknown.json()),
        (StatusCode::OK, serde_json::json!({}))
    );
    let anonymous = form(&bench, "/revoke", None, format!("token={token}")).await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
    let revoked = form(&bench, "/revoke", Some(&token), format!("token={token}")).await;
    assert_eq!(revoked.json()["state"], "contained");
    assert_eq!(revoked.json()["credential"], credential.to_string());
    assert!(bench.is_listed(credential).await);
}

#[tokio::test]
async fn what_is_public_is_served_with_its_type_and_cache_rule() {
    let bench = Bench::new().await;
    bench.token().await;
    let list = admin(&bench, "/status/0").await;
    assert_eq!(
        list.header(header::CONTENT_TYPE),
        "application/statuslist+jwt"
    );
    assert_eq!(list.header(header::CACHE_CONTROL), "public, max-age=5");
    assert_eq!(
        admin(&bench, "/status/9").await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        admin(&bench, "/status/x").await.status,
        StatusCode::NOT_FOUND
    );
    let head = admin(&bench, "/checkpoint").await;
    assert!(head.bytes.starts_with(b"broker.test/log\n3\n"));
    let tile = admin(&bench, "/tile/0/000.p/3").await;
    assert_eq!(
        (tile.bytes.len(), tile.header(header::CACHE_CONTROL)),
        (96, "no-cache")
    );
    let bundle = admin(&bench, "/tile/entries/000.p/3").await;
    let entries = ephor_proto::log::split_bundle(&bundle.bytes).unwrap();
    assert_eq!(entries.len(), 3);
    assert_eq!(
        admin(&bench, "/tile/0/000").await.status,
        StatusCode::NOT_FOUND
    );
    let router = crate::surface::oauth::router(Arc::clone(&bench.broker));
    let found = Request::get("/.well-known/openid-configuration")
        .body(Body::empty())
        .unwrap();
    let found = call(router.clone(), found).await.json();
    assert_eq!(
        (&found["issuer"], &found["jwks_uri"]),
        (&ISSUER.into(), &format!("{ISSUER}/jwks").into())
    );
    let keys = call(router, Request::get("/jwks").body(Body::empty()).unwrap())
        .await
        .json();
    assert_eq!(keys["keys"][0]["alg"], "ES256");
}

#[tokio::test]
async fn what_was_pruned_is_told_as_such() {
    use ephor_proto::ttl::Ttl;
    let day = |days: u64| Ttl::from_seconds(days * 24 * 3600);
    let bench = Bench::new().await;
    let (task, credential, _) = bench.token().await;
    bench.complete(task, "exited").await.unwrap();
    bench.pass_seconds(3600);
    bench.broker.expire_due().await;
    for _ in 0..40 {
        let (other, _, _) = bench.token().await;
        bench.complete(other, "exited").await.unwrap();
    }
    let absent = admin(&bench, "/v1/tasks/t-0000").await.json();
    assert!(!absent["detail"].as_str().unwrap().contains("pruned"));
    assert!(
        admin(&bench, "/v1/status")
            .await
            .json()
            .get("pruned")
            .is_none()
    );
    let log = Some(day(30));
    let detail = day(2);
    for _ in 0..4 {
        bench.pass_seconds(24 * 3600);
        bench.broker.expire_due().await;
        bench.broker.prune_listings().await;
    }
    bench.broker.confirmed();
    bench
        .broker
        .retain(crate::retain::Retention { detail, log })
        .await;
    // The rows are gone, the log is whole.
    for path in [
        "/v1/tasks/t-0000".to_owned(),
        format!("/v1/tasks/{task}"),
        format!("/v1/credentials/{credential}"),
    ] {
        let told = admin(&bench, &path).await;
        assert_eq!(told.status, StatusCode::NOT_FOUND, "{path}");
        let told = told.json()["detail"].as_str().unwrap().to_owned();
        assert!(
            told.contains("pruned by retention") && told.contains("audit show"),
            "{told}"
        );
    }
    let receipt = admin(&bench, &format!("/v1/tasks/{task}/receipt")).await;
    bench.verified(&receipt.json().to_string());
    let told = admin(&bench, &format!("/v1/audit/{credential}"))
        .await
        .json();
    assert!(
        told.as_array()
            .unwrap()
            .iter()
            .any(|record| record["event"]["type"] == "issue.recorded")
    );
    let entries = admin(&bench, "/tile/entries/000").await;
    assert_eq!(entries.status, StatusCode::OK);
    // Then its text goes, too.
    for _ in 0..40 {
        bench.pass_seconds(24 * 3600);
        let _ = bench.broker.clock_guard.check();
    }
    bench
        .broker
        .retain(crate::retain::Retention { detail, log })
        .await;
    let entries = admin(&bench, "/tile/entries/000").await;
    assert_eq!(
        (entries.status, &entries.json()["code"]),
        (StatusCode::GONE, &Value::from("pruned"))
    );
    assert_eq!(admin(&bench, "/tile/0/000").await.status, StatusCode::OK);
    let status = admin(&bench, "/v1/status").await.json();
    assert_eq!(status["pruned"]["entries"], 256);
    assert_eq!(
        admin(&bench, &format!("/v1/tasks/{task}/receipt"))
            .await
            .status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_distrust_comes_into_force_whoever_asked_for_it_is_gone() {
    use crate::keys::state::KeyKind;
    let bench = Bench::new().await;
    let forced = ephor_proto::http::admin::Rotate {
        now: true,
        force: true,
        ..Default::default()
    };
    let rotated = bench.broker.rotate_key(KeyKind::Ca, &forced).await;
    rotated.unwrap();
    assert_eq!(bench.broker.trust.current().len(), 2);
    let mut changed = bench.broker.keys_changed.subscribe();
    admin_post_and_leave(&bench, "/v1/keys/ca/distrust", "{}").await;
    let swap = tokio::time::timeout(std::time::Duration::from_secs(20), changed.changed());
    swap.await.expect("it never came into force").unwrap();
    assert_eq!(bench.broker.trust.current().len(), 1);
}

#[tokio::test]
async fn a_new_epoch_ends_this_run_whoever_asked_for_it_is_gone() {
    let bench = Bench::new().await;
    let body = r#"{"reason":"a test","force":true}"#;
    admin_post_and_leave(&bench, "/v1/recover", body).await;
    let ended = tokio::time::timeout(
        std::time::Duration::from_secs(20),
        bench.broker.epoch_ended(),
    );
    ended
        .await
        .expect("it neither serves nor opens the new one");
}

#[tokio::test]
async fn an_old_copy_publishes_nothing() {
    let bench = Bench::new().await;
    bench.token().await;
    let get = async |path: &str| {
        let router = crate::surface::https_router(&bench.broker);
        call(router, Request::get(path).body(Body::empty()).unwrap()).await
    };
    let tile = format!("/tile/0/000.p/{}", bench.broker.ledger.head().size);
    let paths = [
        "/jwks",
        "/bundle",
        "/checkpoint",
        "/crl",
        "/crl.pem",
        "/status/0",
        &tile,
    ];
    for path in paths {
        assert_eq!(get(path).await.status, StatusCode::OK, "{path}");
    }
    bench.fall_behind().await;
    for path in paths {
        let got = get(path).await;
        assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(got.json()["code"], "log_rewound", "{path}");
    }
}
