//! Certificates: the key is made here, and is nowhere else.

use std::sync::Arc;

use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Ca, Leaf};

use crate::broker::Broker;
use crate::world::{World, until};

fn world() -> World {
    let mut broker = Broker::new();
    let ca = Ca::create("Test", "td.test", 1_700_000_000, 4_000_000_000).unwrap();
    broker.ca = Some(Arc::new(ca));
    World::start_with(broker, tempfile::tempdir().unwrap())
}

fn der(pem: &str) -> Vec<u8> {
    use base64::Engine;
    let lines = pem.lines().filter(|line| !line.starts_with('-'));
    let text: String = lines.collect();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

/// The leaf of an answer, if its private key is the one that it is for.
fn leaf(json: &serde_json::Value) -> Leaf {
    let certificate = &json["certificate"];
    let text = |name: &str| certificate[name].as_str().unwrap();
    let leaf = Leaf::parse(&der(text("chain"))).unwrap();
    let key = SigningKey::from_pkcs8(&Secret::new(der(text("private_key")))).unwrap();
    assert_eq!(leaf.spki, key.public_key().spki());
    assert_eq!(leaf.serial.to_string(), text("serial"));
    leaf
}

#[tokio::test(flavor = "multi_thread")]
async fn ones_own_certificate_comes_with_its_key_and_is_held() {
    let world = world();
    let first = world.get("/v1/certificate").await;
    assert_eq!(first.status, 200, "{}", first.body);
    let json = first.json();
    assert_eq!(
        (json["kind"].as_str(), &json["token"]),
        (Some("x509"), &serde_json::Value::Null)
    );
    let sent = world.broker.state().issues[0].public_key_der.clone();
    assert_eq!(leaf(&json).spki, sent);
    assert_eq!(world.get("/v1/certificate").await.body, first.body);
    assert_eq!(world.issues(), 1);
    // A token of the same identity needs no key, and is no certificate.
    let token = world.get("/v1/token?audience=billing").await;
    assert_eq!(token.json()["certificate"], serde_json::Value::Null);
    assert!(world.broker.state().issues[1].public_key_der.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_asked_again_is_for_the_same_key() {
    let world = world();
    let request = ephor_proto::id::RequestId::from_parts(1, [7; 10]);
    let body = format!(r#"{{"entitlement":"identity","request_id":"{request}"}}"#);
    world.broker.state().refuse_issue = Some(ephor_proto::problem::Code::StoreUnavailable);
    assert_eq!(world.post("/v1/credentials", &body).await.status, 503);
    world.broker.state().refuse_issue = None;
    let answer = world.post("/v1/credentials", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let keys: Vec<_> = (world.broker.state().issues.iter())
        .map(|issue| issue.public_key_der.clone())
        .collect();
    assert!(
        keys.len() > 1 && keys.iter().all(|key| *key == keys[0]),
        "{keys:?}"
    );
    assert_eq!(leaf(&answer.json()["credentials"][0]).spki, keys[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_says_once_that_an_entitlement_gives_one() {
    let world = world();
    world.broker.state().certificates.push("web-cert");
    let body = r#"{"entitlement":"web-cert"}"#;
    let first = world.post("/v1/credentials", body).await;
    assert_eq!(first.status, 200, "{}", first.body);
    leaf(&first.json()["credentials"][0]);
    assert_eq!(world.issues(), 2, "asked without a key, and again with one");
    let ids: Vec<_> = world
        .broker
        .state()
        .issues
        .iter()
        .map(|one| one.request_id.clone())
        .collect();
    assert_eq!(ids[0], ids[1]);
    let other = world
        .post(
            "/v1/credentials",
            r#"{"entitlement":"web-cert","reason":"x"}"#,
        )
        .await;
    leaf(&other.json()["credentials"][0]);
    assert_eq!(world.issues(), 3, "known by then");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_brings_another_key() {
    let world = world();
    world.broker.state().ttl_millis = 1_500;
    let first = leaf(&world.get("/v1/certificate").await.json());
    until("a renewal", || world.issues() >= 2).await;
    let renewal = world.broker.state().issues[1].clone();
    assert!(!renewal.renews.is_empty() && !renewal.public_key_der.is_empty());
    assert_ne!(renewal.public_key_der, first.spki);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_key_is_not_handed_out() {
    let world = world();
    world.broker.state().wrong_key = true;
    let refused = world.get("/v1/certificate").await;
    assert_eq!((refused.status, refused.code().as_str()), (500, "internal"));
    assert!(refused.body.contains("another key"), "{}", refused.body);
}
