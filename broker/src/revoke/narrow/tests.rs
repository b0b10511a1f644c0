//! What stands in the way of a narrowing and must not stop it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use ephor_proto::id::CredentialId;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::{EndCause, TaskState};

use crate::issue::tests::harness::{Bench, POLICY};
use crate::policy::Snapshot;
use crate::revoke::Work;

fn outside(bench: &Bench) -> rusqlite::Connection {
    let outside = rusqlite::Connection::open(bench.database()).unwrap();
    outside.busy_timeout(Duration::from_secs(5)).unwrap();
    outside
}

fn set_kind(bench: &Bench, id: CredentialId, kind: &str) {
    let sql = format!("UPDATE credential SET kind = '{kind}' WHERE id = ?1");
    let changed = outside(bench).execute(&sql, [id.to_bytes()]);
    assert_eq!(changed.unwrap(), 1);
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(8), async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn one_row_that_cannot_be_read_keeps_no_other_from_being_revoked() {
    let bench = Bench::new().await;
    let (_, bad, _) = bench.token().await;
    let (_, good, token) = bench.token().await;
    set_kind(&bench, bad, "nonsense");
    let narrower = POLICY.replace("who = [\"orders/web\"]", "who = [\"billing/api\"]");
    let state = |id| bench.row(id).state;
    tokio::select! {
        applied = bench.apply(&narrower) => {
            panic!("it said that all is revoked: {applied:?}")
        }
        () = until("the other is revoked", || state(good) == CredentialState::Contained) => {}
    }
    assert!(!bench.is_active(&token));
    // And it itself as soon as it can be.
    set_kind(&bench, bad, "jwt");
    until("it is revoked", || state(bad) == CredentialState::Contained).await;
}

/// Its end is then submitted again and again; here each time in vain.
#[tokio::test]
async fn a_task_whose_end_was_begun_and_not_proven_is_left_to_the_sweep() {
    let bench = Bench::new().await;
    let (task, id, _) = bench.token().await;
    let nobody = POLICY.replace("runs = [{ uid = 1000 }]", "runs = [{ uid = 1001 }]");
    let nobody = nobody.replace("orders/web", "orders/site");
    let snapshot = Snapshot::from_texts(&[("ephor.toml", &nobody)]).unwrap();
    let outside = outside(&bench);
    outside
        .execute_batch(
            "CREATE TRIGGER another_was_faster BEFORE UPDATE ON task WHEN new.state = 'closed' \
             BEGIN SELECT RAISE(IGNORE); END",
        )
        .unwrap();
    let turn = bench.broker.inforce.narrowing.begin(None);
    bench.broker.policy.store(std::sync::Arc::new(snapshot));
    let (sum, is_all) = bench.broker.narrow(turn).await;
    assert_eq!((sum.tasks, sum.credentials, is_all), (1, 1, true));
    let task_state = || {
        let row = bench.broker.ledger.reader().task(task).unwrap();
        row.unwrap().state
    };
    assert_eq!(task_state(), TaskState::Completing(EndCause::Revoked));
    assert!(
        bench
            .broker
            .pending
            .holds(&Work::Task(task, EndCause::Revoked))
    );
    outside
        .execute_batch("DROP TRIGGER another_was_faster")
        .unwrap();
    bench.broker.sweep().await;
    assert!(matches!(task_state(), TaskState::Closed { .. }));
    assert_eq!(bench.row(id).state, CredentialState::Contained);
}
