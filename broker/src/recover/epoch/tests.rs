//! A new epoch beside everything else that wants to write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use super::*;
use crate::issue::tests::harness::Bench;
use crate::keys::state::KeyState;

fn forced() -> admin::Recover {
    admin::Recover {
        reason: "a test".to_owned(),
        admit: None,
        force: true,
    }
}

async fn ended(bench: &Bench) {
    let ended = tokio::time::timeout(Duration::from_secs(20), bench.broker.epoch_ended());
    ended
        .await
        .expect("this run goes on with a store that is nobody's");
}

async fn commit(bench: &Bench, row: Row) {
    let batch = Batch {
        name: "test",
        lane: Lane::Normal,
        require: Vec::new(),
        rows: vec![row],
        events: Vec::new(),
    };
    bench.broker.ledger.submit(batch).unwrap().await.unwrap();
}

#[tokio::test]
async fn an_epoch_that_ended_unnoticed_ends_this_run_when_it_is_asked_again() {
    let bench = Bench::new().await;
    let epoch = NewEpoch {
        origin: "broker.test/log.2".to_owned(),
        admit: None,
        at: bench.broker.clock.wall(),
    };
    commit(&bench, Row::NewEpoch(epoch)).await;
    let refused = bench.broker.recover(&forced()).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    ended(&bench).await;
}

#[tokio::test]
async fn a_rotation_under_way_is_waited_for_and_what_it_made_is_distrusted_too() {
    let bench = Bench::new().await;
    let broker = std::sync::Arc::clone(&bench.broker);
    let rotating = broker.rotating.lock().await;
    let again = std::sync::Arc::clone(&bench.broker);
    let recovered = broker.tasks.run(
        "test.recover",
        async move { again.recover(&forced()).await },
    );
    let mut recovered = std::pin::pin!(recovered);
    // As far as it comes by itself.
    let early = tokio::time::timeout(Duration::from_millis(300), recovered.as_mut()).await;
    assert!(early.is_err(), "beside a rotation: {early:?}");
    let owner = Owner {
        trust_domain: &broker.installation.trust_domain,
        installation: &broker.installation.id,
    };
    let now = broker.clock.wall();
    let made = Keys::generate(&broker.sealer, owner.trust_domain, owner.installation, now).unwrap();
    let token = made.into_iter().find(|row| row.name == "token").unwrap();
    let stored = stored_keys(&broker.ledger).unwrap();
    let next = KeyRow {
        version: 2,
        state: KeyState::Prepared,
        ..token
    };
    commit(&bench, Row::Key(next)).await;
    drop(rotating);
    recovered.await.unwrap().unwrap();
    ended(&bench).await;
    let after = stored_keys(&broker.ledger).unwrap();
    assert!(after.len() > stored.len());
    let of_token = |version| {
        let mut rows = after.iter();
        rows.find(|row| row.name == "token" && row.version == version)
    };
    assert_eq!(of_token(2).unwrap().state, KeyState::Destroyed);
    assert_eq!(of_token(3).unwrap().state, KeyState::Active);
}

/// It may have been stolen, replaced and distrusted after the copy was made.
#[tokio::test]
async fn the_ca_for_databases_of_an_older_copy_is_distrusted_too() {
    let bench = Bench::new().await;
    let broker = std::sync::Arc::clone(&bench.broker);
    let before = broker.keys.load().database_roots_pem();
    broker.recover(&forced()).await.unwrap();
    ended(&bench).await;
    let rows = stored_keys(&broker.ledger).unwrap();
    let of = |version| {
        let mut rows = rows.iter();
        let found = rows.find(|row| row.name == "database" && row.version == version);
        found.unwrap()
    };
    assert_eq!(of(1).state, KeyState::Destroyed);
    assert!(of(1).sealed.is_empty());
    assert_eq!(of(2).state, KeyState::Active);
    let domain = &broker.installation.trust_domain;
    let keys = Keys::unseal(&broker.sealer, &rows, domain, "o").unwrap();
    let after = keys.database_roots_pem();
    assert_eq!(after.matches("BEGIN CERTIFICATE").count(), 1);
    assert_ne!(after, before);
}
