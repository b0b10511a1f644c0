//! Issue, retry and renewal against a real store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub(crate) mod harness;
mod logins;
mod x509;

use ephor_crypto::jwt::{Expected, TokenKind, verify};
use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::Clock;

use harness::{Bench, ISSUER, POLICY, only};

#[tokio::test]
async fn an_issued_token_is_recorded_active_and_verifies() {
    let bench = Bench::new().await;
    let task = bench.new_task();
    let answer = bench
        .issue(bench.request(task, "billing-api"))
        .await
        .unwrap();
    let (id, token) = only(&answer);
    assert_eq!(answer.subject, "spiffe://prod.example/orders/web");
    assert_eq!(answer.owner, "team:billing");
    let credential = &answer.credentials[0];
    assert_eq!(credential.expires_at - credential.issued_at, 300_000);
    assert_eq!(credential.refresh_at - credential.issued_at, 200_000);
    assert_eq!(credential.capped_by, "ttl.default");

    let expected = Expected {
        kind: TokenKind::Access,
        issuer: ISSUER,
        audience: &["billing"],
        now_unix: bench.clock.wall().as_unix_seconds() as i64,
        leeway_seconds: 0,
    };
    let verified = verify(&token, bench.broker.keys.load().verify_keys(), &expected).unwrap();
    let claims = verified.claims();
    assert_eq!(claims.jti, id.to_string());
    assert_eq!(claims.rest["plan"], "gold");
    let row = bench.row(id);
    assert_eq!(
        claims.rest["status"]["status_list"]["idx"],
        row.status_index
    );
    assert_eq!(
        claims.rest["status"]["status_list"]["uri"],
        "http://lists.test/status/0"
    );

    assert!(bench.is_active(&token));
    assert!(!bench.is_listed(id).await);
    let types: Vec<String> = bench
        .events()
        .into_iter()
        .map(|event| event.event_type)
        .collect();
    assert_eq!(
        types,
        ["attest.task_opened", "decide.allowed", "issue.recorded"]
    );
    let leaves = format!("{:?}", bench.events());
    assert!(!leaves.contains(&token) && !leaves.contains(token.split('.').nth(2).unwrap()));
}

#[tokio::test]
async fn the_reason_stands_in_the_leaf_as_a_commitment_only() {
    let bench = Bench::new().await;
    let mut r = bench.request(bench.new_task(), "billing-api");
    r.reason = "INC-482 queue stuck".into();
    bench.issue(r).await.unwrap();
    let reader = bench.broker.ledger.reader();
    let stored = reader.events(0, 10).unwrap();
    assert!(stored.iter().all(|event| !event.json.contains("INC-482")));
    let decided = stored
        .iter()
        .find(|event| event.json.contains("decide.allowed"))
        .unwrap();
    let kept = reader.personal(decided.index).unwrap();
    assert_eq!(kept[0].1.value, "INC-482 queue stuck");
}

#[tokio::test]
async fn a_retry_gets_the_same_credential_and_another_content_a_conflict() {
    let bench = Bench::new().await;
    let r = bench.request(bench.new_task(), "billing-api");
    let (id, token) = only(&bench.issue(r.clone()).await.unwrap());
    let size = bench.broker.ledger.head().size;
    let (again, second) = only(&bench.issue(r.clone()).await.unwrap());
    assert_eq!(again, id);
    assert_eq!(
        token.rsplit_once('.').unwrap().0,
        second.rsplit_once('.').unwrap().0,
        "the same content"
    );
    assert_eq!(
        bench.broker.ledger.head().size,
        size,
        "nothing was issued or recorded twice"
    );

    let mut other = r.clone();
    other.reason = "something else".into();
    assert_eq!(bench.issue(other).await.unwrap_err().code, Code::Conflict);
    let elsewhere = bench.broker.issue(&bench.peer("web-2"), r).await;
    assert_eq!(
        elsewhere.unwrap_err().code,
        Code::Conflict,
        "another host cannot take it over"
    );
}

#[tokio::test]
async fn two_requests_of_a_new_task_at_once_open_it_once() {
    let bench = Bench::new().await;
    let task = bench.new_task();
    let (one, two) = (
        bench.request(task, "billing-api"),
        bench.request(task, "billing-api"),
    );
    let (one, two) = tokio::join!(bench.issue(one), bench.issue(two));
    assert_ne!(only(&one.unwrap()).0, only(&two.unwrap()).0);
    assert_eq!(bench.events_of("attest.task_opened").len(), 1);
    assert_eq!(
        bench
            .broker
            .ledger
            .reader()
            .credentials_of(task)
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn the_same_request_twice_at_once_is_one_credential() {
    let bench = Bench::new().await;
    let r = bench.request(bench.new_task(), "billing-api");
    let (one, two) = tokio::join!(bench.issue(r.clone()), bench.issue(r));
    assert_eq!(only(&one.unwrap()).0, only(&two.unwrap()).0);
    assert_eq!(bench.events_of("issue.recorded").len(), 1);
}

#[tokio::test]
async fn equal_denials_are_one_event_with_one_decision() {
    let bench = Bench::new().await;
    let denied = |r| async { bench.issue(r).await.unwrap_err() };
    let first = denied(bench.request(bench.new_task(), "billing-check")).await;
    assert_eq!(first.code, Code::UnknownEntitlement);
    let decision = first.decision.unwrap();
    for _ in 0..3 {
        let again = denied(bench.request(bench.new_task(), "billing-check")).await;
        assert_eq!(again.decision, Some(decision));
    }
    assert_eq!(bench.events_of("decide.denied").len(), 1);
    assert!(
        !bench
            .broker
            .ledger
            .reader()
            .decision(decision)
            .unwrap()
            .unwrap()
            .allowed
    );
    bench.pass_seconds(61);
    bench.broker.write_refusals(false).await;
    let told = bench.events_of("decide.denied");
    assert_eq!(
        (told.len(), told[1].count, told[1].decision),
        (2, Some(3), Some(decision))
    );
}

#[tokio::test]
async fn a_stranger_is_told_who_he_looked_like() {
    let bench = Bench::new().await;
    let mut r = bench.request(bench.new_task(), "billing-api");
    r.evidence.as_mut().unwrap().uid = 4711;
    let refused = bench.issue(r).await.unwrap_err();
    assert_eq!(refused.code, Code::UnknownWorkload);
    assert!(
        refused.detail.contains("4711") && refused.detail.contains("web-1"),
        "{}",
        refused.detail
    );
    assert_eq!(bench.events_of("attest.refused").len(), 1);
}

#[tokio::test]
async fn ttl_extremes_are_capped_or_refused() {
    let bench = Bench::new().await;
    for (asked, life, by) in [(1, 1_000, "request"), (u64::MAX, 3_600_000, "ttl.max")] {
        let mut r = bench.request(bench.new_task(), "billing-api");
        r.ttl_seconds = Some(asked);
        let answer = bench.issue(r).await.unwrap();
        let credential = &answer.credentials[0];
        assert_eq!(credential.expires_at - credential.issued_at, life);
        assert_eq!(credential.capped_by, by);
    }
    let mut r = bench.request(bench.new_task(), "billing-api");
    r.ttl_seconds = Some(0);
    assert_eq!(bench.issue(r).await.unwrap_err().code, Code::TtlZero);
}

#[tokio::test]
async fn a_renewal_keeps_the_credential_and_moves_its_end() {
    let bench = Bench::new().await;
    let (task, id, token) = bench.token().await;
    let before = bench.row(id);
    bench.pass_seconds(200);
    let mut r = bench.request(task, "billing-api");
    r.renews = id.to_bytes().to_vec();
    let (same, renewed) = only(&bench.issue(r.clone()).await.unwrap());
    let after = bench.row(id);
    assert_eq!(same, id);
    assert_eq!(
        (after.status_list, after.status_index),
        (before.status_list, before.status_index)
    );
    assert_eq!(after.expires_at.millis_since(before.expires_at), 200_000);
    assert_eq!(bench.events_of("issue.renewed").len(), 1);
    assert!(bench.is_active(&token) && bench.is_active(&renewed));
    let (again, _) = only(&bench.issue(r).await.unwrap());
    assert_eq!(again, id, "a retried renewal is the same renewal");
    assert_eq!(bench.events_of("issue.renewed").len(), 1);

    bench.pass_seconds(150);
    assert!(
        !bench.is_active(&token) && bench.is_active(&renewed),
        "each copy has its own end"
    );
}

#[tokio::test]
async fn a_renewal_after_the_end_never_lives_again() {
    let bench = Bench::new().await;
    let (task, id, token) = bench.token().await;
    bench.broker.revoke(id, "leaked").await.unwrap();
    let mut r = bench.request(task, "billing-api");
    r.renews = id.to_bytes().to_vec();
    let late = bench.issue(r).await.unwrap_err();
    assert_eq!(late.code, Code::CredentialEnded);
    assert!(
        late.detail.contains("contained (revoked)"),
        "{}",
        late.detail
    );
    assert!(!bench.is_active(&token));

    let (task, id, _) = bench.token().await;
    bench.complete(task, "exited").await.unwrap();
    let mut r = bench.request(task, "billing-api");
    r.renews = id.to_bytes().to_vec();
    assert_eq!(
        bench.issue(r).await.unwrap_err().code,
        Code::CredentialEnded
    );

    let (task, id, _) = bench.token().await;
    bench.pass_seconds(300);
    let mut r = bench.request(task, "billing-api");
    r.renews = id.to_bytes().to_vec();
    assert_eq!(
        bench.issue(r).await.unwrap_err().code,
        Code::CredentialEnded,
        "expired"
    );
}

#[tokio::test]
async fn a_newer_policy_narrows_a_renewal_and_never_widens_it() {
    let bench = Bench::new().await;
    let (task, id, _) = bench.token().await;
    let renew = || {
        let mut r = bench.request(task, "billing-api");
        r.renews = id.to_bytes().to_vec();
        r
    };
    bench.put_policy(&POLICY.replace("gold", "platinum"));
    let other_claims = bench.issue(renew()).await.unwrap_err();
    assert_eq!(other_claims.code, Code::CredentialEnded);
    bench.put_policy(&POLICY.replace("max = \"1h\"", "max = \"6m\""));
    bench.pass_seconds(100);
    let mut r = renew();
    r.ttl_seconds = Some(3600);
    assert_eq!(
        bench.issue(r).await.unwrap().credentials[0].capped_by,
        "ttl.max"
    );
    bench.put_policy(&POLICY.replace("[\"orders/web\"]\ngives", "[\"billing/api\"]\ngives"));
    let denied = bench.issue(renew()).await.unwrap_err();
    assert_eq!(denied.code, Code::UnknownEntitlement);
    assert!(denied.decision.is_some());
}

#[tokio::test]
async fn a_renewal_of_unknown_fate_ends_what_it_renewed_if_it_was_stored() {
    for stands in [true, false] {
        let bench = Bench::new().await;
        let (task, id, token) = bench.token().await;
        bench.pass_seconds(10);
        let faults = bench.broker.ledger.faults();
        if stands {
            faults.doubt_next()
        } else {
            faults.lose_next()
        }
        let mut r = bench.request(task, "billing-api");
        r.renews = id.to_bytes().to_vec();
        assert_eq!(
            bench.issue(r).await.unwrap_err().code,
            Code::StoreUnavailable
        );
        bench.broker.sweep().await;
        assert_eq!(bench.is_active(&token), !stands);
    }
}

#[tokio::test]
async fn another_host_or_task_cannot_renew() {
    let bench = Bench::new().await;
    let (_, id, _) = bench.token().await;
    let mut r = bench.request(bench.new_task(), "billing-api");
    r.renews = id.to_bytes().to_vec();
    assert_eq!(
        bench.issue(r.clone()).await.unwrap_err().code,
        Code::NotFound
    );
    assert_eq!(
        bench
            .broker
            .issue(&bench.peer("web-2"), r)
            .await
            .unwrap_err()
            .code,
        Code::NotFound
    );
}

#[tokio::test]
async fn a_commit_of_unknown_fate_lets_nothing_out_and_is_revoked() {
    for stands in [true, false] {
        let bench = Bench::new().await;
        // The task is open already, so that the next commit is the one in doubt.
        let (task, ..) = bench.token().await;
        let faults = bench.broker.ledger.faults();
        if stands {
            faults.doubt_next()
        } else {
            faults.lose_next()
        }
        let r = bench.request(task, "billing-api");
        let refused = bench.issue(r.clone()).await.unwrap_err();
        assert_eq!(refused.code, Code::StoreUnavailable);
        assert!(refused.retry_after.is_some());
        let again = bench.issue(r.clone()).await.unwrap_err();
        assert_eq!(
            again.code,
            Code::StoreUnavailable,
            "not while it is in doubt"
        );

        bench.broker.sweep().await;
        let stored = bench.broker.ledger.reader().credentials_of(task).unwrap();
        assert_eq!(stored.len(), if stands { 2 } else { 1 });
        if stands {
            let doubted = stored
                .iter()
                .find(|row| row.state != CredentialState::Live)
                .unwrap();
            assert_eq!(doubted.state, CredentialState::Contained);
            assert!(bench.is_listed(doubted.id).await);
            assert_eq!(
                bench.issue(r).await.unwrap_err().code,
                Code::CredentialEnded
            );
        } else {
            assert!(
                bench.issue(r).await.is_ok(),
                "it never happened, so it may happen now"
            );
        }
        let events = bench.events_of("issue.doubted");
        assert_eq!(events.len(), 1);
        assert!(
            bench
                .issue(bench.request(task, "billing-api"))
                .await
                .is_ok()
        );
    }
}

#[tokio::test]
async fn a_clock_that_stepped_stops_issuing_and_nothing_else() {
    let bench = Bench::new().await;
    let (task, _, token) = bench.token().await;
    bench.clock.step_wall_millis(-7_200_000);
    assert_eq!(
        bench
            .issue(bench.request(task, "billing-api"))
            .await
            .unwrap_err()
            .code,
        Code::ClockStep
    );
    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (0, 1));
    bench.clock.step_wall_millis(7_200_000);
    assert!(!bench.is_active(&token));
    assert_eq!(
        bench
            .issue(bench.request(task, "billing-api"))
            .await
            .unwrap_err()
            .code,
        Code::TaskEnded
    );
}

#[tokio::test]
async fn a_silent_host_gets_nothing_new() {
    let bench = Bench::new().await;
    bench.broker.fleet.listening();
    for _ in 0..20 {
        bench.pass_seconds(1);
        bench.broker.fleet.judge_silence();
    }
    let refused = bench
        .issue(bench.request(bench.new_task(), "billing-api"))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::AgentSilent);
}
