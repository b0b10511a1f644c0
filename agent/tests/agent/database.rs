//! Database logins: kept by renewals, confirmed when they are handed over, gone with their task.

use ephor_proto::problem::Code;

use crate::broker::Broker;
use crate::world::{World, until};

const DATABASE: &str = "/v1/database?entitlement=orders-db";

fn world(ttl_millis: u64) -> World {
    let broker = Broker::new();
    broker.state().logins.push("orders-db");
    broker.state().ttl_millis = ttl_millis;
    World::start_with(broker, tempfile::tempdir().unwrap())
}

fn confirmed(world: &World) -> usize {
    world.broker.state().confirmed.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_comes_with_all_that_is_needed_and_is_confirmed_once() {
    let world = world(300_000);
    let first = world.get(DATABASE).await;
    assert_eq!(first.status, 200, "{}", first.body);
    let json = first.json();
    assert_eq!(
        (json["kind"].as_str(), &json["token"]),
        (Some("postgres"), &serde_json::Value::Null)
    );
    let login = &json["login"];
    let user = login["user"].as_str().unwrap();
    let password = login["password"].as_str().unwrap();
    assert_eq!(
        login["url"],
        format!(
            "postgresql://{user}:{password}@db1:5432/orders?sslmode=verify-full&options=-c%20role%3Dorders_rw"
        )
    );
    assert_eq!(
        (&login["port"], &login["role"]),
        (&5432.into(), &"orders_rw".into())
    );
    until("it is confirmed", || confirmed(&world) == 1).await;
    assert_eq!(world.get(DATABASE).await.body, first.body);
    let full = world
        .post("/v1/credentials", r#"{"entitlement":"orders-db"}"#)
        .await;
    assert_eq!(full.json()["credentials"][0]["login"], *login);
    assert_eq!(world.issues(), 1);
    // Something else that is confirmed shows that nothing more of the first was on its way.
    let other = world
        .post(
            "/v1/credentials",
            r#"{"entitlement":"orders-db","reason":"x"}"#,
        )
        .await;
    assert_eq!(other.status, 200);
    until("the other is confirmed", || confirmed(&world) == 2).await;
    let ids = world.broker.state().confirmed.clone();
    assert_ne!(ids[0], ids[1]);
}

/// A program that read `DATABASE_URL` once goes on for as long as its task lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_keeps_what_was_handed_out_and_moves_the_expiry() {
    let world = world(2_000);
    let first = world.get(DATABASE).await.json();
    until("it is renewed twice", || world.issues() >= 3).await;
    let renews = world.broker.state().issues[1].renews.clone();
    assert!(!renews.is_empty(), "extended by id, not asked for anew");
    let left: Vec<u64> = {
        let state = world.broker.state();
        state.issues.iter().map(|r| r.left_milliseconds).collect()
    };
    assert_eq!(left[0], 0, "nothing is held yet");
    assert!((1..60_000).contains(&left[1]), "what is left: {left:?}");
    let mut later = world.get(DATABASE).await.json();
    while later["expires_at"] == first["expires_at"] {
        later = world.get(DATABASE).await.json();
    }
    assert_eq!(
        (&later["id"], &later["login"]),
        (&first["id"], &first["login"])
    );
    assert_eq!(confirmed(&world), 1);
}

/// Beside a token, too: each is renewed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_among_several_credentials_is_extended_too() {
    let world = world(2_000);
    world.broker.state().with_token.push("orders-db");
    let body = r#"{"entitlement":"orders-db"}"#;
    let first = world.post("/v1/credentials", body).await.json();
    assert_eq!(first["credentials"].as_array().unwrap().len(), 2, "{first}");
    assert_eq!(world.get(DATABASE).await.code(), "conflict");
    until("both are renewed", || world.issues() >= 3).await;
    let mut later = world.post("/v1/credentials", body).await.json();
    while later["credentials"][1]["token"] == first["credentials"][1]["token"] {
        later = world.post("/v1/credentials", body).await.json();
    }
    for number in [0, 1] {
        assert_eq!(
            later["credentials"][number]["id"],
            first["credentials"][number]["id"]
        );
    }
    assert_eq!(
        later["credentials"][0]["login"],
        first["credentials"][0]["login"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_could_not_take_is_confirmed_again() {
    let world = world(300_000);
    world.broker.state().refuse_confirm = Some((2, Code::StoreUnavailable));
    assert_eq!(world.get(DATABASE).await.status, 200);
    until("the third try holds", || confirmed(&world) == 1).await;
    until("its answer is here", || {
        world.agent.confirmations.is_empty()
    })
    .await;

    // A broker that says no is not asked for ever, and holds up nothing behind it.
    world.broker.state().refuse_confirm = Some((1, Code::InvalidRequest));
    let body = r#"{"entitlement":"orders-db","reason":"no"}"#;
    assert_eq!(world.post("/v1/credentials", body).await.status, 200);
    until("it is given up", || world.agent.confirmations.is_empty()).await;
    assert_eq!(confirmed(&world), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_while_the_broker_is_lost_is_confirmed_on_return() {
    let world = world(300_000);
    world.broker.state().refuse_confirm = Some((u32::MAX, Code::Busy));
    assert_eq!(world.get(DATABASE).await.status, 200);
    world.lose_broker().await;
    world.broker.state().refuse_confirm = None;
    assert_eq!(confirmed(&world), 0);
    world.broker.come_back();
    until("it is confirmed", || confirmed(&world) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_wiped_with_its_task() {
    let world = world(300_000);
    let first = world.get(DATABASE).await;
    let ended = world.post("/v1/task/complete", "").await;
    assert_eq!(ended.json()["wiped"], 1, "{}", ended.body);
    let next = world.get(DATABASE).await.json();
    assert_ne!(next["login"]["password"], first.json()["login"]["password"]);
}
