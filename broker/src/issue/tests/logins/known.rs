//! What is known of a target and of what is there, and what is done with it.

use ephor_proto::state::task::EndCause;
use ephor_proto::time::UnixMillis;

use super::super::harness::POLICY;
use super::*;

#[tokio::test]
async fn files_of_a_target_that_come_or_change_later_are_read() {
    let bench = Bench::new().await;
    let ca_file = bench.dir().join("ca.pem");
    std::fs::write(&ca_file, "one").unwrap();
    bench.put_policy(&format!(
        r#"{POLICY}
[target.orders]
owner = "team:dba"
postgres = {{ url = "postgres://ephor@db1/orders", ca_file = {ca_file:?} }}
"#
    ));
    let target = || bench.broker.target("orders").unwrap();
    let first = target();
    assert_eq!(first.endpoint.sslrootcert, "one");
    assert!(Arc::ptr_eq(&first, &target()), "nothing changed");
    std::fs::write(&ca_file, "another").unwrap();
    assert_eq!(target().endpoint.sslrootcert, "another");
    let has_password = || {
        let known = target();
        known.at.own_login().unwrap().target().has_password_file()
    };
    assert!(!has_password());
    bench.put_target_secret("orders", "of-ephor");
    assert!(has_password());
    // What cannot be read is no other: what is there must still be ended.
    std::fs::remove_file(&ca_file).unwrap();
    assert_eq!(target().endpoint.sslrootcert, "another");
}

#[tokio::test]
async fn use_by_logins_of_another_installation_is_not_kept() {
    let kit = Kit::new().await;
    let (_, login) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    let foreign = crate::kind::name::make("orders-db", "another", [9; 16]);
    let one = |role: &str| crate::kind::postgres::Use {
        role: role.to_owned(),
        oid: 7,
        pid: 1,
        from: None,
        database: None,
        first: UnixMillis::from_millis(1_000),
        last: UnixMillis::from_millis(2_000),
        is_static: false,
    };
    let uses = vec![one(&login.user), one(&foreign)];
    kit.orders.with(|inner| inner.uses = uses);
    kit.bench.broker.sample("orders").await.unwrap();
    let used = &kit.bench.broker.logins_used;
    assert!(used.of(&login.user).is_some());
    assert!(used.of(&foreign).is_none());
}

#[tokio::test]
async fn a_successor_is_not_missing_where_its_predecessor_was() {
    let kit = Kit::new().await;
    let r = kit.bench.request(kit.bench.new_task(), "orders-db");
    let (first, _) = login(&kit.bench.issue(r.clone()).await.unwrap());
    kit.confirm(&[first]).await;
    kit.bench.clock.advance_millis(31_000);
    // The look began before it was made.
    let earlier = kit.orders.with(|inner| inner.alive.clone());
    let (next, _) = login(&kit.bench.issue(r).await.unwrap());
    kit.orders.with(|inner| inner.earlier = Some(earlier));
    kit.bench.broker.reconcile("orders").await;
    assert_eq!(kit.bench.row(next).state, CredentialState::Live);
}

#[tokio::test]
async fn what_others_were_given_of_a_login_ends_it() {
    let kit = Kit::new().await;
    let groups = vec!["orders_rw".to_owned()];
    kit.orders.with(|inner| inner.groups = groups);
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.bench.broker.reconcile("orders").await;
    assert_eq!(kit.bench.row(id).state, CredentialState::Live);
    kit.orders
        .with(|inner| inner.granted_to = vec!["mallory".to_owned()]);
    kit.bench.broker.reconcile("orders").await;
    kit.until("it is dead", |kit| {
        kit.bench.row(id).state == CredentialState::Dead
    })
    .await;
    let told = kit.bench.events_of("revoke.drift");
    assert_eq!(told[0].facts["differs"], "it was granted to mallory");
}

#[tokio::test]
async fn what_is_only_listed_does_not_wait_for_a_target_that_hangs() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let task = bench.new_task();
    let (id, _) = login(&kit.ask(task).await.unwrap());
    kit.orders.is(Mood::Hangs);
    bench
        .broker
        .complete_tasks(vec![task], EndCause::Lost)
        .await;
    bench.clock.advance_millis(31_000);
    bench.broker.sweep().await;
    let rows = bench.broker.ledger.reader().credentials_of(task).unwrap();
    let token = rows.iter().find(|row| row.kind.is_signed()).unwrap();
    assert_eq!(token.state, CredentialState::Contained);
    assert_eq!(bench.row(id).state, CredentialState::Revoking);
    assert_eq!(bench.events_of("revoke.listed").len(), 1);
}

#[tokio::test]
async fn logins_of_one_request_are_made_side_by_side() {
    let kit = Kit::new().await;
    let both = r#"
[entitlement.both-db]
owner = "team:orders"
purpose = "Move orders"
who = ["orders/web"]
gives = [{ postgres = { target = "orders", role = "orders_rw" } }, { postgres = { target = "other", role = "other_ro" } }]
"#;
    kit.bench.put_policy(&format!("{POLICY}{LOGINS}{both}"));
    kit.orders.is(Mood::Hangs);
    kit.other.is(Mood::Hangs);
    let r = kit.bench.request(kit.bench.new_task(), "both-db");
    let asked = kit.bench.issue(r);
    let hung = tokio::time::timeout(std::time::Duration::from_millis(300), asked).await;
    assert!(hung.is_err());
    for script in [&kit.orders, &kit.other] {
        assert_eq!(script.with(|inner| inner.calls.len()), 1);
    }
}

#[tokio::test]
async fn what_a_login_owned_goes_to_its_group_also_by_the_log() {
    let kit = Kit::new().await;
    let text = format!("{POLICY}{LOGINS}");
    let text = text.replace(
        r#"role = "orders_rw""#,
        r#"role = "orders_rw", reassign = true"#,
    );
    kit.bench.put_policy(&text);
    let task = kit.bench.new_task();
    let (id, _) = login(&kit.ask(task).await.unwrap());
    let connection = rusqlite::Connection::open(kit.bench.database()).unwrap();
    let sql = "UPDATE credential SET content = '{}' WHERE id = ?1";
    assert_eq!(connection.execute(sql, [id.to_bytes()]).unwrap(), 1);
    kit.bench.complete(task, "exited").await.unwrap();
    let content = Content::of(&kit.bench.row(id)).unwrap();
    let ending = crate::kind::effect::Ending::of(id, content);
    assert_eq!(ending.reassign.as_deref(), Some("orders_rw"));
}

#[tokio::test]
async fn nobody_answers_for_what_a_newer_policy_can_end() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (id, _) = login(&kit.ask(bench.new_task()).await.unwrap());
    kit.orders.is(Mood::Refuses);
    bench.broker.revoke(id, "a test").await.unwrap_err();
    bench.clock.advance_millis(5_000);
    bench.broker.flag_late().await;
    // Stored, and not in force here yet.
    let newer = format!("{POLICY}{LOGINS}");
    bench.apply(&newer).await.unwrap();
    bench.put_policy(POLICY);
    let refused = bench.broker.accept(id, "scrapped", "uid 0").await;
    assert_eq!(refused.unwrap_err().code, Code::Busy);
    assert_eq!(Content::of(&bench.row(id)).unwrap().accepted, None);
    bench.put_policy(&newer);
    let refused = bench.broker.accept(id, "scrapped", "uid 0").await;
    assert_eq!(refused.unwrap_err().code, Code::Conflict);
}

#[tokio::test]
async fn one_that_is_refused_is_not_tried_again_with_each_that_is_not() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let task = bench.new_task();
    let (_, of_tenant) = login(&kit.ask(task).await.unwrap());
    let refused = format!("refused {}", of_tenant.user);
    kit.orders
        .with(|inner| inner.refused = [of_tenant.user].into());
    bench
        .broker
        .complete_tasks(vec![task], EndCause::Lost)
        .await;
    let tries = |kit: &Kit| {
        let calls = kit.orders.with(|inner| inner.calls.clone());
        calls.iter().filter(|call| **call == refused).count()
    };
    kit.until("it was tried", |kit| tries(kit) == 1).await;
    for _ in 0..10 {
        let (id, _) = login(&kit.ask(bench.new_task()).await.unwrap());
        let revoked = bench.broker.revoke(id, "a test").await.unwrap();
        assert_eq!(revoked.row.state, CredentialState::Dead);
    }
    assert!(tries(&kit) <= 2, "{} tries", tries(&kit));
}
