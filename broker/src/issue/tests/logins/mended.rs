//! Ends at a target that are not those of the store, and who is told to come again.

use std::time::Duration;

use ephor_proto::time::UnixMillis;
use tokio::sync::Notify;

use super::*;

/// A live login that was handed over, longer ago than a mint may take.
async fn settled(kit: &Kit) -> (TaskId, CredentialId, String) {
    kit.orders
        .with(|inner| inner.groups = vec!["orders_rw".to_owned()]);
    let task = kit.bench.new_task();
    let (id, login) = login(&kit.ask(task).await.unwrap());
    kit.confirm(&[id]).await;
    kit.bench.clock.advance_millis(31_000);
    (task, id, login.user)
}

fn renewal(kit: &Kit, task: TaskId, id: CredentialId) -> v1::IssueRequest {
    let mut r = kit.bench.request(task, "orders-db");
    r.renews = id.to_bytes().to_vec();
    r
}

fn ends_there(kit: &Kit, user: &str) -> UnixMillis {
    kit.orders.with(|inner| inner.alive[user].1)
}

fn extended(kit: &Kit, user: &str) -> usize {
    let call = format!("extend {user}");
    let calls = kit.orders.with(|inner| inner.calls.clone());
    calls.iter().filter(|one| **one == call).count()
}

/// Each failed try moves the end in the store, and neither that of the server nor that of the agent.
#[tokio::test]
async fn one_whose_renewals_failed_is_not_told_to_wait_past_the_end_that_it_holds() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (task, id, user) = settled(&kit).await;
    let first = ends_there(&kit, &user);
    bench
        .broker
        .pace
        .is_steady("orders", 100.0, bench.clock.boottime());
    bench.pass_seconds(170);
    kit.orders.is(Mood::Away);
    for _ in 0..3 {
        let failed = bench.issue(renewal(&kit, task, id)).await.unwrap_err();
        assert_eq!(failed.code, Code::TargetFailed);
        bench.pass_seconds(30);
    }
    assert!(bench.row(id).expires_at > first.saturating_add_millis(200_000));
    assert_eq!(ends_there(&kit, &user), first);
    kit.orders.is(Mood::Well);
    let long = Duration::from_secs(300);
    for _ in 0..1_000 {
        let at = bench.clock.boottime();
        let _ = bench.broker.pace.admit("orders", long, at);
    }
    let left = first.millis_since(bench.clock.wall());
    let mut r = renewal(&kit, task, id);
    r.left_milliseconds = left;
    assert!((1..20_000).contains(&left), "{left}");
    bench.issue(r).await.unwrap();
    assert_eq!(ends_there(&kit, &user), bench.row(id).expires_at);
    // One that has the time is told when, and that is long before.
    let mut r = renewal(&kit, task, id);
    r.left_milliseconds = 100_000;
    let busy = bench.issue(r).await.unwrap_err();
    assert_eq!(busy.code, Code::Busy);
    assert!(busy.retry_after.is_some_and(|seconds| seconds <= 50));
}

#[tokio::test]
async fn a_comparison_does_not_take_back_what_is_renewed_meanwhile() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (task, id, user) = settled(&kit).await;
    let (other_task, other_id, other) = settled(&kit).await;
    let soon = bench.clock.wall().saturating_add_millis(100_000);
    let gate = Arc::new(Notify::new());
    kit.orders.with(|inner| {
        for (_, until) in inner.alive.values_mut() {
            *until = soon;
        }
        inner.alive.get_mut(&other).unwrap().1 = soon.saturating_add_millis(1);
        inner.gate = Some((user.clone(), Arc::clone(&gate)));
    });
    let (broker, reconciled) = (Arc::clone(&bench.broker), Arc::new(Notify::new()));
    let told = Arc::clone(&reconciled);
    bench.broker.tasks.spawn("test.reconcile", async move {
        broker.reconcile("orders").await;
        told.notify_one();
    });
    kit.until("it is on its way", |kit| extended(kit, &user) == 1)
        .await;
    let stale = bench.row(id).expires_at;
    for (task, id) in [(task, id), (other_task, other_id)] {
        bench.issue(renewal(&kit, task, id)).await.unwrap();
        assert!(bench.row(id).expires_at > stale);
    }
    gate.notify_one();
    reconciled.notified().await;
    for (id, user) in [(id, &user), (other_id, &other)] {
        assert_eq!(ends_there(&kit, user), bench.row(id).expires_at, "{user}");
    }
    assert_eq!(extended(&kit, &other), 1, "by its renewal");
}

#[tokio::test]
async fn what_lives_too_long_and_what_is_missing_do_not_wait_for_what_is_lengthened() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(settled(&kit).await);
    }
    let soon = bench.clock.wall().saturating_add_millis(100_000);
    let gate = Arc::new(Notify::new());
    let (_, too_long, of_too_long) = all[3].clone();
    let (_, missing, of_missing) = all[4].clone();
    kit.orders.with(|inner| {
        for (_, _, user) in &all[..3] {
            inner.alive.get_mut(user).unwrap().1 = soon;
        }
        inner.alive.get_mut(&all[0].2).unwrap().1 = soon.saturating_sub_millis(1);
        let later = soon.saturating_add_millis(3_600_000);
        inner.alive.get_mut(&of_too_long).unwrap().1 = later;
        inner.alive.remove(&of_missing);
        inner.gate = Some((all[0].2.clone(), Arc::clone(&gate)));
    });
    // The server has more to do than it should.
    let long = Duration::from_secs(300);
    let at = bench.clock.boottime();
    while bench.broker.pace.admit("orders", long, at).is_ok() {}
    let (broker, reconciled) = (Arc::clone(&bench.broker), Arc::new(Notify::new()));
    let told = Arc::clone(&reconciled);
    bench.broker.tasks.spawn("test.reconcile", async move {
        broker.reconcile("orders").await;
        told.notify_one();
    });
    kit.until("the first is on its way", |kit| {
        extended(kit, &all[0].2) == 1
    })
    .await;
    let end = bench.row(too_long).expires_at;
    assert_eq!(ends_there(&kit, &of_too_long), end);
    assert!(!bench.row(missing).state.is_usable());
    // Another comparison is wanted: it finds the rest.
    bench.broker.targets.hurry_look("orders");
    gate.notify_one();
    reconciled.notified().await;
    let counts = |kit: &Kit| [0, 1, 2].map(|n: usize| extended(kit, &all[n].2));
    assert_eq!(counts(&kit), [1, 0, 0]);
    bench.broker.targets.hurried();
    bench.broker.reconcile("orders").await;
    assert_eq!(counts(&kit), [1, 1, 1]);
    for (_, id, user) in &all[..3] {
        assert_eq!(ends_there(&kit, user), bench.row(*id).expires_at);
    }
}
