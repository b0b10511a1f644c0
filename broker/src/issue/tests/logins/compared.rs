//! Comparisons and later looks that go wrong: at another server, too late, half.

use std::time::Duration;

use ephor_proto::problem::Code;
use ephor_proto::state::credential::{CredentialState, Proof};
use ephor_proto::state::task::EndCause;

use super::super::harness::POLICY;
use super::*;

impl Kit {
    /// A live login that was handed over, longer ago than a mint may take.
    async fn settled(&self) -> (TaskId, CredentialId, String) {
        self.orders
            .with(|inner| inner.groups = vec!["orders_rw".to_owned()]);
        let task = self.bench.new_task();
        let (id, login) = login(&self.ask(task).await.unwrap());
        self.confirm(&[id]).await;
        self.bench.clock.advance_millis(31_000);
        (task, id, login.user)
    }

    fn stray(&self) -> String {
        let name = crate::kind::name::make("orders-db", "inst-1", [9; 16]);
        let until = self.bench.clock.wall();
        let alive = (name.clone(), (String::new(), until));
        self.orders.with(|inner| inner.alive.extend([alive]));
        name
    }
}

#[tokio::test]
async fn a_server_that_never_had_a_login_cannot_call_it_dead() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (task, id, _) = kit.settled().await;
    // Policy, or a name server, now says another one.
    let on_the_first = kit.orders.with(|inner| std::mem::take(&mut inner.alive));
    kit.orders.with(|inner| inner.system_id = Some(2));
    bench.broker.reconcile("orders").await;
    assert_eq!(bench.row(id).state, CredentialState::Live);
    assert!(bench.events_of("revoke.drift").is_empty());
    bench
        .broker
        .complete_tasks(vec![task], EndCause::Lost)
        .await;
    kit.until("it was tried", |kit| {
        let calls = kit.orders.with(|inner| inner.calls.clone());
        calls.iter().any(|call| call.starts_with("revoke"))
    })
    .await;
    bench.clock.advance_millis(5_000);
    bench.broker.flag_late().await;
    let row = bench.row(id);
    assert_eq!(row.state, CredentialState::Revoking);
    let why = format!("{:?}", row.overdue);
    assert!(
        why.contains("at another server (system id 1)") && why.contains("credential accept"),
        "{why}"
    );
    // It is asked where it was made.
    kit.orders.with(|inner| {
        inner.system_id = None;
        inner.alive = on_the_first;
    });
    bench.clock.advance_millis(61_000);
    kit.all_dead().await;
    assert!(kit.orders.with(|inner| inner.alive.is_empty()));
    let gone = Content::of(&bench.row(id)).unwrap().gone.unwrap();
    assert_eq!(gone.seen.system_id, "1");
}

#[tokio::test]
async fn what_dies_while_its_target_is_compared_is_not_reopened() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (_, id, _) = kit.settled().await;
    let earlier = kit.orders.with(|inner| inner.alive.clone());
    bench.broker.revoke(id, "a test").await.unwrap();
    kit.orders.with(|inner| inner.earlier = Some(earlier));
    bench.broker.reconcile("orders").await;
    let row = bench.row(id);
    assert_eq!(row.state, CredentialState::Dead);
    assert!(row.evidence.is_some());
    assert!(bench.events_of("revoke.reopened").is_empty());
}

#[tokio::test]
async fn one_that_cannot_be_compared_keeps_no_other_from_it() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(kit.settled().await);
    }
    let stray = kit.stray();
    let longer = bench.clock.wall().saturating_add_millis(3_600_000);
    kit.orders.with(|inner| {
        for (_, _, user) in &all {
            inner.alive.get_mut(user).unwrap().1 = longer;
        }
        inner.refused = [all[0].2.clone(), all[2].2.clone()].into();
    });
    bench.broker.reconcile("orders").await;
    kit.orders.with(|inner| {
        assert!(!inner.alive.contains_key(&stray));
        for (place, (_, id, user)) in all.iter().enumerate() {
            let is_mended = inner.alive[user].1 == bench.row(*id).expires_at;
            assert_eq!(is_mended, place % 2 == 1, "{place}");
        }
    });
    // A stray that cannot be ended does not hold up the others either.
    let stray = kit.stray();
    kit.orders.with(|inner| {
        inner.refused = [stray.clone()].into();
        inner.alive.get_mut(&all[1].2).unwrap().1 = longer;
    });
    bench.broker.reconcile("orders").await;
    kit.orders.with(|inner| {
        assert!(inner.alive.contains_key(&stray));
        assert!(inner.alive[&all[1].2].1 < longer);
    });
}

#[tokio::test]
async fn a_comparison_of_a_target_that_hangs_comes_to_an_end() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    for _ in 0..5 {
        kit.settled().await;
    }
    // Too short: mended without a record, so that nothing but the target is waited for.
    kit.orders.with(|inner| {
        for (_, until) in inner.alive.values_mut() {
            *until = bench.clock.wall();
        }
    });
    kit.orders.is(Mood::Hangs);
    let compared = bench.broker.reconcile("orders");
    tokio::pin!(compared);
    // From there on it waits for nothing else: time that is skipped is skipped for the store, too.
    let hangs = |kit: &Kit| kit.orders.with(|inner| inner.hanging > 0);
    tokio::select! {
        () = &mut compared => panic!("it did not wait"),
        () = kit.until("the target was asked", hangs) => {}
    }
    tokio::time::pause();
    let within = Duration::from_secs(100);
    let compared = tokio::time::timeout(within, compared).await;
    tokio::time::resume();
    assert!(compared.is_ok(), "it hangs");
}

#[tokio::test]
async fn nothing_is_ended_by_a_store_that_may_be_old() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (_, missing, user) = kit.settled().await;
    let (_, dead, _) = kit.settled().await;
    bench.broker.revoke(dead, "a test").await.unwrap();
    let stray = kit.stray();
    kit.orders.with(|inner| {
        inner.alive.remove(&user);
        inner.hidden = 1;
    });
    bench.clock.advance_millis(66_000);
    bench.fall_behind().await;
    bench.broker.reconcile("orders").await;
    bench.broker.look_again(bench.clock.wall()).await;
    assert!(kit.orders.with(|inner| inner.alive.contains_key(&stray)));
    assert_eq!(bench.row(missing).state, CredentialState::Live);
    assert_eq!(bench.row(dead).state, CredentialState::Dead);
}

#[tokio::test]
async fn what_was_reopened_has_no_proof_any_more() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (task, id, _) = kit.settled().await;
    bench.broker.revoke(id, "a test").await.unwrap();
    kit.orders.with(|inner| inner.hidden = 1);
    kit.orders.is(Mood::Refuses);
    bench.clock.advance_millis(66_000);
    bench.broker.look_again(bench.clock.wall()).await;
    let row = bench.row(id);
    assert_eq!(row.state, CredentialState::Revoking);
    assert_eq!(Content::of(&row).unwrap().gone, None);
    // Its server never comes back, and somebody answers for it: not with what was seen before.
    bench.clock.advance_millis(5_000);
    bench.broker.flag_late().await;
    bench.put_policy(POLICY);
    bench.broker.accept(id, "scrapped", "uid 0").await.unwrap();
    let ended = bench.complete(task, "exited").await;
    let ended = ended.unwrap_or_else(|problem| panic!("{problem} ({:?})", Code::Overdue));
    let receipt = bench.verified(&ended.receipt);
    let seen = receipt.evidence.iter().find(|seen| seen.credential == id);
    let seen = seen.unwrap();
    assert_eq!(seen.proof, None::<Proof>);
    assert_eq!(seen.place, "orders, not asked: accepted by uid 0");
}
