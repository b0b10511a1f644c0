//! Cases of the corpus about doors, listings and answers.

use axum::http::Method;

use super::*;
use crate::ledger::{Batch, Lane};
use crate::limits;
use ephor_proto::event::Outcome;
use ephor_proto::stage::Stage;

/// What could change something, by its name at the admin socket or as others have named it.
const CHANGES: [&str; 16] = [
    "/v1/recover",
    "/v1/backup",
    "/v1/tasks/t-00000000/end",
    "/v1/credentials/c-00000000/revoke",
    "/v1/hosts/invite",
    "/v1/hosts/web-1/ban",
    "/v1/keys/ca/rotate",
    "/v1/keys/log/distrust",
    "/v1/keys/ca/request",
    "/v1/policy/apply",
    "/v1/sys/rekey/cancel",
    "/v1/sys/seal",
    "/healthz",
    "/readyz",
    "/checkpoint",
    "/jwks",
];

#[tokio::test]
async fn attack_123_nobody_changes_anything_without_a_credential() {
    let bench = Bench::new().await;
    let (_, _, token) = bench.token().await;
    let before = (
        bench.broker.ledger.head(),
        bench.broker.ledger.health().commits,
    );
    let doors = [
        crate::surface::https_router(&bench.broker),
        crate::surface::http_router(&bench.broker),
        crate::surface::metrics_router(&bench.broker),
    ];
    for door in doors {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            for path in CHANGES {
                let request = Request::builder()
                    .method(method.clone())
                    .uri(path)
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(Body::from(r#"{"reason":"an attack","force":true}"#));
                let got = call(door.clone(), request.unwrap()).await;
                assert!(
                    got.status.is_client_error(),
                    "{method} {path}: {}",
                    got.status
                );
            }
        }
    }
    let after = (
        bench.broker.ledger.head(),
        bench.broker.ledger.health().commits,
    );
    assert_eq!(before, after);
    assert!(bench.is_active(&token));
}

/// Whether there is none, it ended, or it is not the caller's to ask about.
#[tokio::test]
async fn attack_125_a_token_that_is_not_yours_looks_like_none() {
    let bench = Bench::new().await;
    let service = bench.service_token().await;
    let (task, _, ended) = bench.token().await;
    let (_, _, live) = bench.token().await;
    bench.complete(task, "exited").await.unwrap();
    let mut search = bench.request(bench.new_task(), "identity");
    search.item = ISSUER.to_owned();
    let foreign = crate::issue::tests::harness::only(&bench.issue(search).await.unwrap()).1;
    let ask = async |token: &str| {
        let got = form(
            &bench,
            "/introspect",
            Some(&service),
            format!("token={token}"),
        )
        .await;
        let mut headers = got.headers;
        headers.remove(header::DATE);
        (got.status, headers, got.bytes)
    };
    let (altered, _) = live.rsplit_once('.').unwrap();
    let none = ask("x").await;
    assert_eq!(none.0, StatusCode::OK);
    for token in [ended.as_str(), foreign.as_str(), altered, "a.b.c"] {
        assert_eq!(ask(token).await, none, "{token}");
    }
    assert_ne!(ask(&live).await, none);
}

#[tokio::test]
async fn attack_126_no_listing_is_longer_than_its_limit() {
    let bench = Bench::new().await;
    for some in (0..=limits::ADMIN_ROWS).collect::<Vec<_>>().chunks(1_000) {
        let event = |_: &usize| {
            let event = bench.broker.event(Stage::Operate, "test", Outcome::Ok);
            event.unwrap().into()
        };
        let batch = Batch {
            name: "test.many",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: Vec::new(),
            events: some.iter().map(event).collect(),
        };
        bench.broker.ledger.submit(batch).unwrap().await.unwrap();
    }
    for asked in ["10001", "2147483648", "18446744073709551615"] {
        let got = admin(&bench, &format!("/v1/audit?limit={asked}")).await;
        let listed = got.json().as_array().map(Vec::len);
        assert_eq!(listed, Some(limits::ADMIN_ROWS), "{asked}");
    }
    for asked in ["-1", "18446744073709551616", "many"] {
        let got = admin(&bench, &format!("/v1/audit?limit={asked}")).await;
        assert!(got.status.is_client_error(), "{asked}: {}", got.status);
    }
}
