//! The broker away, and back.

use ephor_agent::uplink::Link;
use ephor_proto::grpc::v1;
use ephor_proto::id::TaskId;

use crate::world::{World, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_goes_on_and_what_is_new_waits() {
    let world = World::start();
    let held = world.token("billing").await;
    world.lose_broker().await;
    assert_eq!(world.token("billing").await, held);
    let new = world.get("/v1/token?audience=search").await;
    assert_eq!((new.status, new.code().as_str()), (503, "unreachable"));
    assert!(new.json()["retry_after"].as_u64().unwrap() >= 1);
    assert!(new.head.to_ascii_lowercase().contains("retry-after: "));
    assert_eq!(world.get("/v1/whoami").await.code(), "unreachable");
    assert_eq!(world.get("/v1/ready").await.json()["ready"], true);
    world.broker.come_back();
    world.agent.uplink.connected().await;
    assert_eq!(world.get("/v1/token?audience=search").await.status, 200);
    assert!(
        world.broker.state().hellos.len() >= 2,
        "hello on every connection"
    );
}

/// However long it was away, and so however long the pauses between attempts are by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_came_back_answers_the_next_request() {
    let world = World::start();
    world.token("billing").await;
    world.lose_broker().await;
    until(
        "the pauses are long",
        || matches!(world.agent.uplink.link(), Link::Away { retry_after, .. } if retry_after >= 2),
    )
    .await;
    world.broker.come_back();
    assert_eq!(world.get("/v1/token?audience=search").await.status, 200);
}

/// The agent's certificate was renewed, and the new one used, while a call was on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_a_replaced_certificate_is_made_again_under_the_new_one() {
    let world = World::start();
    world.agent.uplink.connected().await;
    world.broker.state().replaced = Some(0);
    let then = async {
        until("the call is refused", || {
            world.broker.state().replaced > Some(0)
        })
        .await;
        world.broker.go_away();
        world.broker.come_back();
    };
    let (answer, ()) = tokio::join!(world.get("/v1/token?audience=billing"), then);
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Also while as many messages as may be under way wait for the broker to return.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_is_refused_at_once() {
    let world = World::start();
    world.broker.gate.forget_permits(1000);
    let stuck = ephor_agent::limits::BATCHES_AT_ONCE;
    let asked = (0..stuck).map(async |number| {
        world
            .get(&format!("/v1/token?audience=stuck-{number}"))
            .await
    });
    let then = async {
        until("all are at the broker", || world.issues() == stuck).await;
        world.lose_broker().await;
        let soon = ephor_agent::limits::REQUEST_DEADLINE / 2;
        let new = tokio::time::timeout(soon, world.get("/v1/token?audience=new")).await;
        assert_eq!(new.expect("at once").code(), "unreachable");
        world.broker.gate.add_permits(1000);
        world.broker.come_back();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(asked), then);
    for answer in answers {
        assert_eq!(answer.status, 200, "sent again on the next connection");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_told_on_return() {
    let world = World::start();
    let fetched = world.get("/v1/token?audience=billing").await;
    world.broker.go_away();
    let task: TaskId = fetched.task();
    assert!(ephor_agent::revoke::end_task(
        &world.agent,
        task,
        ephor_proto::state::task::EndCause::Exited
    ));
    let now = ephor_proto::time::Boottime::default();
    assert!(
        world.agent.hold.list(task, now).is_empty(),
        "wiped without the broker"
    );
    assert_eq!(world.agent.spool.len(), 1);
    world.broker.come_back();
    until("the end at the broker", || {
        world
            .broker
            .state()
            .completes
            .iter()
            .any(|end| end.task_id == task.to_bytes())
    })
    .await;
    until("the spool is empty", || world.agent.spool.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_survives_a_restart_of_the_agent() {
    let world = World::start();
    let fetched = world.get("/v1/token?audience=billing").await;
    world.lose_broker().await;
    let done = world.post("/v1/task/complete", "").await.json();
    assert_eq!(
        (done["wiped"].as_u64(), done.get("receipt")),
        (Some(1), None),
        "{done}"
    );
    let world = world.restart().await;
    world.broker.come_back();
    let task_id = fetched.task().to_bytes();
    until("the end at the broker", || {
        world
            .broker
            .state()
            .completes
            .iter()
            .any(|end| end.task_id == task_id)
    })
    .await;
    let again = world.get("/v1/token?audience=billing").await;
    assert_ne!(
        again.task(),
        fetched.task(),
        "an ended task is not open again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_task_is_adopted_and_in_the_first_heartbeat() {
    let world = World::start();
    let fetched = world.get("/v1/token?audience=billing").await;
    let before = world.broker.state().heartbeats.len();
    let world = world.restart().await;
    until("a heartbeat of the new instance", || {
        let state = world.broker.state();
        let hello = state.hellos.get(1).map(|hello| hello.instance_id.clone());
        hello.is_some_and(|instance| {
            state
                .heartbeats
                .iter()
                .any(|beat| beat.instance_id == instance)
        })
    })
    .await;
    let first = {
        let state = world.broker.state();
        let instance = state.hellos[1].instance_id.clone();
        state
            .heartbeats
            .iter()
            .skip(before)
            .find(|beat| beat.instance_id == instance)
            .unwrap()
            .clone()
    };
    assert!(
        first
            .open_tasks
            .contains(&fetched.task().to_bytes().to_vec())
    );
    let again = world.get("/v1/token?audience=billing").await;
    assert_eq!(again.task(), fetched.task(), "the same task goes on");
    assert_ne!(again.token(), fetched.token(), "but memory did not survive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_too_far_apart_is_not_used() {
    let broker = crate::broker::Broker::new();
    broker.state().version = v1::Version { major: 9, minor: 0 };
    let world = World::start_with(broker, tempfile::tempdir().unwrap());
    until("a hello", || !world.broker.state().hellos.is_empty()).await;
    let refused = world.get("/v1/token?audience=billing").await;
    assert_eq!(refused.code(), "unreachable");
    assert!(
        refused.json()["detail"]
            .as_str()
            .unwrap()
            .contains("minor version"),
        "{}",
        refused.body
    );
    assert_eq!(world.issues(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issue_that_lost_its_connection_is_sent_again_with_the_same_id() {
    let world = World::start();
    world.agent.uplink.connected().await;
    world.broker.gate.forget_permits(1000);
    let cut = async {
        until("the call", || world.issues() == 1).await;
        world.broker.go_away();
        world.broker.come_back();
        until("another connection", || {
            world.broker.state().hellos.len() >= 2
        })
        .await;
        world.broker.gate.add_permits(10);
    };
    let (fetched, ()) = tokio::join!(world.get("/v1/token?audience=billing"), cut);
    assert_eq!(fetched.status, 200, "{}", fetched.body);
    let ids: std::collections::BTreeSet<Vec<u8>> = world
        .broker
        .state()
        .issues
        .iter()
        .map(|issue| issue.request_id.clone())
        .collect();
    assert_eq!((ids.len(), world.issues()), (1, 2));
}
