//! Revocation, expiry and listing against a real store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::{EndCause, TaskState};
use ephor_proto::time::Clock;

use crate::issue::tests::harness::Bench;

#[tokio::test]
async fn one_credential_ends_while_its_task_goes_on() {
    let bench = Bench::new().await;
    let (task, id, token) = bench.token().await;
    let mut r = bench.request(task, "identity");
    r.item = "search".into();
    let (_, other) = crate::issue::tests::harness::only(&bench.issue(r).await.unwrap());
    let revoked = bench.broker.revoke(id, "leaked in a ticket").await.unwrap();
    assert_eq!(revoked.row.state, CredentialState::Contained);
    assert!(!bench.is_active(&token) && bench.is_active(&other));
    let again = bench.broker.revoke(id, "twice").await.unwrap();
    assert_eq!(again.row.version, revoked.row.version);
    assert_eq!(bench.events_of("revoke.started").len(), 1);
    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!(ended.listed, 2);
    assert_eq!(
        bench.verified(&ended.receipt).totals.unwrap().credentials,
        2
    );
}

#[tokio::test]
async fn the_holder_may_hand_its_token_in_and_a_stranger_may_not() {
    let bench = Bench::new().await;
    let (_, id, token) = bench.token().await;
    let (_, _, thief) = bench.token().await;
    assert_eq!(
        bench.broker.introspect(None, &token).unwrap_err().code,
        Code::Unauthenticated
    );
    assert_eq!(
        bench
            .broker
            .introspect(Some("garbage"), "garbage")
            .unwrap_err()
            .code,
        Code::Unauthenticated
    );
    let refused = bench.broker.introspect(Some(&thief), &token).unwrap_err();
    assert_eq!(
        refused.code,
        Code::Unauthenticated,
        "a token for another audience proves nobody here"
    );
    assert!(
        bench
            .broker
            .revoke_token(Some(&thief), &token)
            .await
            .is_err()
    );
    let revoked = bench
        .broker
        .revoke_token(Some(&token), &token)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(revoked.row.id, id);
    assert!(!bench.is_active(&token), "it may still ask about itself");
}

#[tokio::test]
async fn a_service_sees_only_its_own_audience() {
    let bench = Bench::new().await;
    let service = bench.service_token().await;
    let (task, _, token) = bench.token().await;
    let mut r = bench.request(task, "identity");
    r.item = "search".into();
    let (_, other) = crate::issue::tests::harness::only(&bench.issue(r).await.unwrap());
    assert!(
        bench
            .broker
            .introspect(Some(&service), &token)
            .unwrap()
            .is_some()
    );
    assert!(
        bench
            .broker
            .introspect(Some(&service), &other)
            .unwrap()
            .is_none()
    );
    assert!(
        bench
            .broker
            .introspect(Some(&service), "unknown")
            .unwrap()
            .is_none()
    );
    assert!(
        bench
            .broker
            .revoke_token(Some(&service), &other)
            .await
            .unwrap()
            .is_none()
    );
    assert!(bench.is_active(&other));
    bench.pass_seconds(300);
    let refused = bench.broker.introspect(Some(&service), &token).unwrap_err();
    assert_eq!(
        refused.code,
        Code::Unauthenticated,
        "the caller's own token has expired"
    );
}

#[tokio::test]
async fn a_tampered_copy_is_not_the_token() {
    let bench = Bench::new().await;
    let (_, _, token) = bench.token().await;
    let service = bench.service_token().await;
    let (message, signature) = token.rsplit_once('.').unwrap();
    let other = bench.token().await.2;
    let swapped = format!("{message}.{}", other.rsplit_once('.').unwrap().1);
    assert!(
        bench
            .broker
            .introspect(Some(&service), &swapped)
            .unwrap()
            .is_none()
    );
    let cut = format!("{message}.{}", &signature[..signature.len() - 2]);
    assert!(
        bench
            .broker
            .introspect(Some(&service), &cut)
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn time_makes_dead_what_was_live_or_contained() {
    let bench = Bench::new().await;
    let (open, live, _) = bench.token().await;
    let (closed, contained, _) = bench.token().await;
    bench.complete(closed, "exited").await.unwrap();
    bench.pass_seconds(300);
    bench.broker.expire_due().await;
    assert_eq!(
        bench.row(live).state,
        CredentialState::Live,
        "a verifier's leeway is not over"
    );
    bench.pass_seconds(60);
    bench.broker.expire_due().await;
    assert_eq!(bench.row(live).state, CredentialState::Dead);
    assert_eq!(bench.row(contained).state, CredentialState::Dead);
    assert_eq!(bench.events_of("prove.expired").len(), 1);
    let closing = bench.events_of("prove.closed");
    assert_eq!(closing.len(), 1);
    let totals = closing[0].totals.unwrap();
    assert_eq!(
        (totals.dead, totals.listed, totals.listed_until),
        (1, 0, None)
    );
    let row = bench.broker.ledger.reader().task(closed).unwrap().unwrap();
    assert!(matches!(
        row.state,
        TaskState::Closed {
            contained: false,
            ..
        }
    ));
    let ended = bench.complete(open, "exited").await.unwrap();
    assert_eq!(
        (ended.dead, ended.listed),
        (1, 0),
        "what expired before the end is dead at the end"
    );
    bench.broker.expire_due().await;
    assert_eq!(bench.events_of("prove.closed").len(), 1);
}

#[tokio::test]
async fn a_renewed_credential_outlives_its_first_timer() {
    let bench = Bench::new().await;
    let (task, id, _) = bench.token().await;
    bench.pass_seconds(290);
    let mut r = bench.request(task, "billing-api");
    r.renews = id.to_bytes().to_vec();
    bench.issue(r).await.unwrap();
    bench.pass_seconds(100);
    bench.broker.expire_due().await;
    assert_eq!(bench.row(id).state, CredentialState::Live);
    bench.pass_seconds(300);
    bench.broker.expire_due().await;
    assert_eq!(bench.row(id).state, CredentialState::Dead);
}

#[tokio::test]
async fn a_task_ends_at_its_deadline_at_the_latest_also_after_a_restart() {
    let bench = Bench::new().await;
    bench.put_policy(&crate::issue::tests::harness::with_deadline());
    let (task, id, _) = bench.token().await;
    bench.pass_seconds(290);
    let mut r = bench.request(task, "billing-api");
    r.renews = id.to_bytes().to_vec();
    r.ttl_seconds = Some(3600);
    let renewed = bench.issue(r).await.unwrap();
    assert_eq!(renewed.credentials[0].capped_by, "ttl.task");
    bench.put_policy(crate::issue::tests::harness::POLICY);
    let bench = bench.reopened().await;
    bench.pass_seconds(1509);
    bench.broker.expire_due().await;
    assert_eq!(bench.row(id).state, CredentialState::Live);
    bench.pass_seconds(1);
    bench.broker.expire_due().await;
    let row = bench.broker.ledger.reader().task(task).unwrap().unwrap();
    assert_eq!(row.state.cause(), Some(EndCause::Deadline));
    assert_eq!(bench.row(id).state, CredentialState::Contained);
}

#[tokio::test]
async fn timers_and_lists_are_rebuilt_at_start() {
    let bench = Bench::new().await;
    let (_, live, _) = bench.token().await;
    let (task, gone, _) = bench.token().await;
    bench.complete(task, "exited").await.unwrap();
    let bench = bench.reopened().await;
    assert!(bench.is_listed(gone).await && !bench.is_listed(live).await);
    bench.pass_seconds(400);
    bench.broker.expire_due().await;
    assert_eq!(bench.row(live).state, CredentialState::Dead);
    assert_eq!(bench.row(gone).state, CredentialState::Dead);
}

#[tokio::test]
async fn a_clock_two_hours_ahead_and_back_revives_nothing() {
    let bench = Bench::new().await;
    let (task, revoked, token) = bench.token().await;
    let (_, live, _) = bench.token().await;
    bench.complete(task, "exited").await.unwrap();
    for hours in [2, 26] {
        bench.clock.step_wall_millis(hours * 3_600_000);
        bench.broker.expire_due().await;
        bench.broker.prune_listings().await;
        assert!(
            bench.is_listed(revoked).await,
            "still there {hours} h ahead"
        );
        bench.clock.step_wall_millis(-hours * 3_600_000);
        assert!(!bench.is_active(&token) && bench.is_listed(revoked).await);
        assert_eq!(bench.row(revoked).state, CredentialState::Contained);
        assert_eq!(bench.row(live).state, CredentialState::Live);
    }
}

#[tokio::test]
async fn a_listing_is_pruned_a_day_after_its_expiry() {
    let bench = Bench::new().await;
    let (task, id, _) = bench.token().await;
    bench.complete(task, "exited").await.unwrap();
    bench.pass_seconds(400);
    bench.broker.expire_due().await;
    bench.pass_seconds(23 * 3600);
    bench.broker.prune_listings().await;
    assert!(bench.is_listed(id).await);
    bench.pass_seconds(3600);
    bench.broker.prune_listings().await;
    assert!(!bench.is_listed(id).await, "the index is free again");
    assert_eq!(
        bench.row(id).state,
        CredentialState::Dead,
        "the record stays"
    );
    assert!(bench.broker.receipt(task).unwrap().is_some());
}

#[tokio::test]
async fn a_revocation_that_is_not_proven_in_time_is_overdue_until_it_is() {
    let bench = Bench::new().await;
    let (task, id, token) = bench.token().await;
    bench.broker.lists.break_builds(true);
    let refused = bench.complete(task, "exited").await.unwrap_err();
    assert_eq!(refused.code, Code::Overdue);
    assert!(!bench.is_active(&token), "refused all the same");
    for _ in 0..4 {
        bench.pass_seconds(2);
        bench.broker.sweep().await;
    }
    assert!(bench.row(id).overdue.is_some());
    assert_eq!(bench.events_of("revoke.overdue").len(), 1);
    bench.broker.lists.break_builds(false);
    bench.pass_seconds(31);
    bench.broker.sweep().await;
    assert_eq!(bench.row(id).state, CredentialState::Contained);
    assert_eq!(bench.row(id).overdue, None);
    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!(ended.listed, 1);
    assert!(bench.clock.wall() > bench.row(id).revoked_at.unwrap());
}
