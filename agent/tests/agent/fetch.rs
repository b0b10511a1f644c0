//! Fetching: once from the broker, then from memory, renewed in time.

use std::collections::BTreeSet;

use ephor_crypto::ed25519::LogKey;
use ephor_proto::grpc::v1;
use ephor_proto::log::{Checkpoint, SignedNote, VerifierKey};
use ephor_proto::problem::Code;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::world::{LOCAL, World, reply, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_second_fetch_is_from_memory() {
    let world = World::start();
    let first = world.get("/v1/token?audience=billing").await;
    assert_eq!(first.status, 200, "{}", first.body);
    let json = first.json();
    assert_eq!(json["audience"], "billing");
    assert_eq!(json["subject"], "spiffe://td.test/tests");
    assert_eq!(json["capped_by"], "ttl.default");
    for header in [
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "content-type: application/json",
    ] {
        assert!(
            first.head.to_ascii_lowercase().contains(header),
            "{header} in {}",
            first.head
        );
    }
    assert_eq!(
        world.get("/v1/token?audience=billing").await.body,
        first.body
    );
    let full = world
        .post(
            "/v1/credentials",
            r#"{"entitlement":"identity","parameters":{"audience":"billing"}}"#,
        )
        .await;
    assert_eq!(full.json()["credentials"][0]["token"], json["token"]);
    assert_eq!(full.json()["task"], json["task"]);
    assert_eq!(world.issues(), 1);
    // What differs is another credential.
    assert_ne!(world.token("search").await, first.token());
    assert_ne!(
        world
            .get("/v1/token?audience=billing&ttl_seconds=60")
            .await
            .token(),
        first.token()
    );
    assert_eq!(world.issues(), 3);
    let issue = world.broker.state().issues[2].clone();
    assert_eq!(
        (
            issue.ttl_seconds,
            issue.item.as_str(),
            issue.entitlement.as_str()
        ),
        (Some(60), "billing", "identity")
    );
    assert_eq!(issue.evidence.unwrap().pid, std::process::id());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_share_one_call() {
    let world = World::start();
    world.broker.gate.forget_permits(1000);
    let opened = async {
        until("the first call", || world.issues() == 1).await;
        world.broker.gate.add_permits(32);
    };
    let mut set = tokio::task::JoinSet::new();
    let socket = world.socket.clone();
    for _ in 0..31 {
        let socket = socket.clone();
        set.spawn(async move {
            let request = format!("GET /v1/token?audience=billing HTTP/1.1\r\n{LOCAL}\r\n");
            crate::world::say(&socket, &request).await.token()
        });
    }
    let (one, ()) = tokio::join!(world.token("billing"), opened);
    let mut tokens: BTreeSet<String> = set.join_all().await.into_iter().collect();
    tokens.insert(one);
    assert_eq!(tokens.len(), 1);
    assert_eq!(world.issues(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_serves_many_requests() {
    let world = World::start();
    let mut stream = UnixStream::connect(&world.socket).await.unwrap();
    let mut bodies = BTreeSet::new();
    for _ in 0..50 {
        stream
            .write_all(format!("GET /v1/token?audience=a HTTP/1.1\r\n{LOCAL}\r\n").as_bytes())
            .await
            .unwrap();
        bodies.insert(reply(&mut stream).await.body);
    }
    assert_eq!((bodies.len(), world.issues()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_renewed_before_its_callers_come_back() {
    let world = World::start();
    world.broker.state().ttl_millis = 1_500;
    let first = world.get("/v1/token?audience=billing").await;
    until("a renewal", || world.issues() >= 2).await;
    let renewal = world.broker.state().issues[1].clone();
    let id: ephor_proto::id::CredentialId = first.json()["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(renewal.renews, id.to_bytes(), "the same credential goes on");
    let first_request = world.broker.state().issues[0].request_id.clone();
    assert_ne!(renewal.request_id, first_request);
    // The broker has the call before the agent has the answer: until then the old one is served.
    let mut served = first.token();
    for _ in 0..2000 {
        served = world.token("billing").await;
        if served != first.token() {
            break;
        }
    }
    assert_ne!(served, first.token());
    let asked = world.broker.state().issues.clone();
    assert!(
        asked[1..].iter().all(|issue| issue.renews == id.to_bytes()),
        "never asked for anew: the old one was there until the new one was"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_credential_is_never_served() {
    let world = World::start();
    world.broker.state().ttl_millis = 600;
    let first = world.token("billing").await;
    world.broker.go_away();
    let mut served = 0;
    loop {
        let now = world.get("/v1/token?audience=billing").await;
        if now.status != 200 {
            assert_eq!(now.code(), "unreachable");
            break;
        }
        assert_eq!(now.token(), first);
        let expires = now.json()["expires_at"]
            .as_str()
            .unwrap()
            .parse::<ephor_proto::time::UnixMillis>()
            .unwrap();
        // Checked after the answer came, so a little late is the test's own.
        use ephor_proto::time::Clock;
        assert!(expires.saturating_add_millis(200) > ephor_agent::clock::SystemClock.wall());
        served += 1;
    }
    assert!(served > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_digest_is_sent_only_when_asked_for() {
    let world = World::start();
    world.broker.state().want_hash = true;
    let got = world.get("/v1/token?audience=billing").await;
    assert_eq!(got.status, 200, "{}", got.body);
    let issues = world.broker.state().issues.clone();
    let sizes: Vec<usize> = issues
        .iter()
        .map(|issue| issue.evidence.as_ref().unwrap().exe_sha256.len())
        .collect();
    assert_eq!(sizes, [0, 32]);
    assert_eq!(issues[0].request_id, issues[1].request_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_the_brokers_own_and_is_not_kept() {
    let world = World::start();
    world.broker.state().refuse_issue = Some(Code::UnknownEntitlement);
    let denied = world
        .post("/v1/credentials", r#"{"entitlement":"orders-db"}"#)
        .await;
    assert_eq!(
        (denied.status, denied.code().as_str()),
        (403, "unknown_entitlement")
    );
    assert!(denied.json()["decision"].is_string() && denied.json()["correlation_id"].is_string());
    world.broker.state().refuse_issue = None;
    assert_eq!(
        world
            .post("/v1/credentials", r#"{"entitlement":"orders-db"}"#)
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_task_and_ready_say_what_is() {
    let world = World::start();
    let who = world.get("/v1/whoami").await.json();
    assert_eq!(who["subjects"][0], "spiffe://td.test/tests");
    assert_eq!(
        (who["host"].as_str(), who["evidence"]["pid"].as_u64()),
        (Some("host-1"), Some(u64::from(std::process::id())))
    );
    assert_eq!(world.get("/v1/ready").await.json()["ready"], false);
    let fetched = world.get("/v1/token?audience=billing").await;
    assert_eq!(world.get("/v1/ready").await.json()["ready"], true);
    let task = world.get("/v1/task").await.json();
    assert_eq!(
        (task["task"].clone(), task["state"].as_str()),
        (fetched.json()["task"].clone(), Some("open"))
    );
    assert_eq!(task["credentials"][0]["id"], fetched.json()["id"]);
    assert!(!world.get("/v1/task").await.body.contains(&fetched.token()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_checkpoint_is_shown_after_a_restart() {
    let key = LogKey::generate().unwrap();
    let verifier = VerifierKey::new("ephor.test/log", key.public()).unwrap();
    let text = Checkpoint::new("ephor.test/log", 7, [1; 32])
        .unwrap()
        .to_string();
    let note = SignedNote::new(text.clone(), &verifier, key.sign(text.as_bytes())).to_string();
    let broker = crate::broker::Broker::new();
    broker.state().log_key = verifier.to_string();
    broker.state().checkpoint.clone_from(&note);
    let world = World::start_with(broker, tempfile::tempdir().unwrap());
    until("heartbeats", || world.broker.state().heartbeats.len() > 3).await;
    let world = world.restart().await;
    until("hello", || world.broker.state().hellos.len() >= 2).await;
    let hellos: Vec<v1::HelloRequest> = world.broker.state().hellos.clone();
    assert_eq!(
        (hellos[0].checkpoint.as_str(), &hellos[1].checkpoint),
        ("", &note)
    );
    assert_ne!(hellos[0].instance_id, hellos[1].instance_id);
    assert_eq!(hellos[0].boot_id, hellos[1].boot_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stages_took_is_told_when_the_broker_was_asked_and_not_from_memory() {
    let world = World::start();
    let head = world
        .get("/v1/token?audience=billing")
        .await
        .head
        .to_ascii_lowercase();
    let timing = head
        .lines()
        .find_map(|line| line.strip_prefix("server-timing: attest;dur="))
        .unwrap_or_else(|| panic!("{head}"));
    let (attest, rest) = timing.split_once(", ").unwrap();
    // The broker's share, and this host's own on top of it.
    assert!(attest.parse::<f64>().unwrap() > 1.04, "{timing}");
    assert_eq!(rest, "decide;dur=0.080, issue;dur=4.200");
    let again = world.get("/v1/token?audience=billing").await;
    assert!(
        !again.head.to_ascii_lowercase().contains("server-timing"),
        "{}",
        again.head
    );
}
