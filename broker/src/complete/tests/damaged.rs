//! Rows of a task that go bad while the broker runs: its end tells of them and waits for none.

use ephor_proto::event::Outcome;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::{EndCause, TaskState};

use crate::complete::{By, End};
use crate::issue::tests::harness::{Bench, only};
use crate::ledger::{Batch, Lane};

/// One of a task that has a token already.
async fn another_token(bench: &Bench, task: TaskId) -> (CredentialId, String) {
    only(
        &bench
            .issue(bench.request(task, "billing-api"))
            .await
            .unwrap(),
    )
}

fn spoil(bench: &Bench, id: CredentialId, set: &str) {
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    let sql = format!("UPDATE credential SET {set} WHERE id = ?1");
    let spoilt = connection.execute(&sql, [id.to_bytes()]).unwrap();
    assert_eq!(spoilt, 1);
}

/// Leaves the store not even place for one event.
async fn fill(bench: &Bench) {
    bench.broker.ledger.faults().set_max_pages(1);
    loop {
        let event = bench.broker.event(Stage::Operate, "test", Outcome::Ok);
        let batch = Batch {
            name: "test.fill",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: Vec::new(),
            events: vec![event.unwrap().into()],
        };
        if bench.broker.ledger.submit(batch).unwrap().await.is_err() {
            return;
        }
    }
}

/// Whether it still counts as live in the store or not: neither hangs, and neither is left out.
#[tokio::test]
async fn an_end_does_not_hang_on_a_row_that_went_bad_and_tells_of_it() {
    for damage in [
        "kind = 'no kind'",
        "state = 'no state'",
        "grant_id = x'00', expires_at = -1",
        "subject = 'somebody', leaf = 99999",
    ] {
        let bench = Bench::new().await;
        let (task, good, token) = bench.token().await;
        let (bad, other) = another_token(&bench, task).await;
        spoil(&bench, bad, damage);
        let ended = bench.complete(task, "exited").await;
        let ended = ended.unwrap_or_else(|problem| panic!("{damage}: {problem:?}"));
        assert_eq!((ended.dead, ended.listed), (0, 2), "{damage}");
        assert!(!bench.is_active(&token) && bench.is_listed(good).await);
        assert!(!bench.is_active(&other) && bench.is_listed(bad).await);
        assert_eq!(bench.row(bad).state, CredentialState::Contained);

        let receipt = bench.verified(&ended.receipt);
        assert_eq!(receipt.totals.unwrap().credentials, 2, "{damage}");
        assert_eq!(receipt.facts["set_aside"], bad.to_string(), "{damage}");
        let told = bench.events_of("operate.quarantined");
        assert_eq!((told.len(), told[0].task), (1, Some(task)), "{damage}");
        assert_eq!(told[0].outcome, Outcome::Failed);
        assert_eq!(told[0].facts["credential"], bad.to_string());
        let aside = bench.broker.ledger.reader().quarantined(10).unwrap();
        assert_eq!(aside.len(), 1, "{damage}: {aside:?}");

        // A restart finds nothing more to set aside, and both are still refused.
        let bench = bench.reopened().await;
        assert_eq!(bench.broker.ledger.set_aside_at_open(), 0);
        assert!(!bench.is_active(&other) && bench.is_listed(bad).await);
    }
}

/// All that can be read is refused at once; what cannot waits for space, and fills nothing meanwhile.
#[tokio::test]
async fn a_bad_row_and_a_full_disk_at_once_stop_no_revocation() {
    let bench = Bench::new().await;
    let (task, good, token) = bench.token().await;
    let (bad, other) = another_token(&bench, task).await;
    spoil(&bench, bad, "kind = 'no kind'");
    fill(&bench).await;
    // More than a page of it, so that it finds no place in the store.
    let end = End {
        task,
        cause: EndCause::Revoked,
        by: By::Person {
            reason: "p".repeat(8_000),
        },
    };
    for _ in 0..3 {
        assert!(bench.broker.end_task(end.clone()).await.is_err());
    }
    assert!(!bench.is_active(&token) && bench.is_listed(good).await);
    assert!(bench.broker.introspect(Some(&other), &other).is_err());
    let reserved = bench.broker.ledger.health().reserved;
    assert_eq!(reserved, 2, "the end and the setting aside, once each");

    bench.broker.ledger.faults().set_max_pages(1 << 30);
    let ended = loop {
        if let Ok(ended) = bench.complete(task, "exited").await {
            break ended;
        }
    };
    assert_eq!(ended.listed, 2);
    assert_eq!(bench.events_of("operate.quarantined").len(), 1);
    let row = bench.broker.ledger.reader().task(task).unwrap().unwrap();
    assert!(matches!(row.state, TaskState::Closed { .. }));
}

/// One that was revoked by itself lies in the reserve when its task ends.
#[tokio::test]
async fn an_end_after_a_revocation_that_lies_in_the_reserve_goes_there_too() {
    let bench = Bench::new().await;
    let (task, first, token) = bench.token().await;
    let (second, other) = another_token(&bench, task).await;
    fill(&bench).await;
    bench.broker.revoke(first, "a test").await.unwrap();
    assert!(bench.broker.ledger.health().reserve_in_use);
    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (0, 2));
    assert!(!bench.is_active(&token) && !bench.is_active(&other));
    bench.broker.ledger.faults().set_max_pages(1 << 30);
    let bench = bench.reopened().await;
    assert!(!bench.is_active(&other) && bench.is_listed(second).await);
    let aside = bench.broker.ledger.reader().quarantined_count().unwrap();
    assert_eq!(aside, 0, "both apply, one after the other");
}
