//! A full disk: ordinary work is refused, revocations go on.

use ephor_proto::event::AuditEvent;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::{EndCause, TaskState};

use super::fixture::*;
use crate::ledger::*;

const FULL: CommitError = CommitError::Refused(Reason::DiskFull);

/// Leaves no page to grow into.
fn fill(ledger: &Ledger) {
    ledger.faults().set_max_pages(1);
    // Free space inside pages is used up first.
    let mut index = 1_000;
    while commit(ledger, issue(index).1).is_ok() {
        index += 1;
        assert!(index < 2_000);
    }
}

fn end(credential: &CredentialRow) -> Batch {
    let ended = TaskRow {
        version: 2,
        state: TaskState::Completing(EndCause::Exited),
        ..task(credential.task)
    };
    let mut told = event("completed");
    told.task = Some(credential.task);
    told.purpose = Some("p".repeat(6000));
    let mut batch = revoke(
        vec![Row::Task(ended), Row::from(revoked(credential))],
        vec![told],
    );
    batch.require = vec![Require::LiveCredentials {
        task: credential.task,
        count: 1,
    }];
    batch
}

fn state(ledger: &Ledger, credential: &CredentialRow) -> CredentialState {
    ledger
        .reader()
        .credential(credential.id)
        .unwrap()
        .unwrap()
        .state
}

fn issued(ledger: &Ledger, count: u32) -> Vec<CredentialRow> {
    (0..count)
        .map(|index| {
            let (credential, batch) = issue(index);
            commit(ledger, batch).unwrap();
            credential
        })
        .collect()
}

#[test]
fn revocations_are_acknowledged_seen_and_merged_when_there_is_space() {
    let store = Store::new();
    let ledger = store.open();
    let credentials = issued(&ledger, 3);
    fill(&ledger);
    let size = ledger.head().size;

    let mut leaves = Vec::new();
    for credential in &credentials {
        let committed = commit(&ledger, end(credential)).unwrap();
        assert!(committed.in_reserve);
        leaves.push(committed.first_leaf);
    }
    assert_eq!(leaves, [size, size + 1, size + 2]);
    assert_eq!(ledger.head().size, size);
    assert_eq!(commit(&ledger, issue(5_000).1).unwrap_err(), FULL);
    let health = ledger.health();
    assert_eq!(
        (health.stopped, health.reserve_in_use, health.reserved),
        (Some(Reason::DiskFull), true, 3)
    );

    // Readers see what was acknowledged, by id and in lists.
    let reader = ledger.reader();
    for credential in &credentials {
        assert_eq!(state(&ledger, credential), CredentialState::Revoking);
        assert!(matches!(
            reader.task(credential.task).unwrap().unwrap().state,
            TaskState::Completing(_)
        ));
        assert_eq!(
            reader.credentials_of(credential.task).unwrap()[0].state,
            CredentialState::Revoking
        );
    }
    let revoking = CredentialFilter {
        state: Some(CredentialState::Revoking),
        ..Default::default()
    };
    assert_eq!(reader.credentials(&revoking).unwrap().len(), 3);
    let live = CredentialFilter {
        state: Some(CredentialState::Live),
        ..Default::default()
    };
    assert!(
        reader
            .credentials(&live)
            .unwrap()
            .iter()
            .all(|row| credentials.iter().all(|c| c.id != row.id))
    );
    let mut set = 0;
    reader
        .listings(|listing| set += u32::from(listing.revoked))
        .unwrap();
    assert_eq!(set, 3);
    let mut revoking = 0;
    reader
        .expiries(|expiry| revoking += u32::from(expiry.state == CredentialState::Revoking))
        .unwrap();
    assert_eq!(revoking, 3);
    drop(reader);

    // The same end again is late, not new: its precondition is checked here, too.
    let again = commit(&ledger, end(&credentials[0])).unwrap_err();
    assert_eq!(again, CommitError::Conflict(Key::Task(credentials[0].task)));

    ledger.faults().set_max_pages(1_000_000);
    assert_eq!(
        commit(&ledger, issue(6_000).1).unwrap().first_leaf,
        size + 3
    );
    assert!(!ledger.health().reserve_in_use);
    assert_eq!(ledger.health().stopped, None);
    for (credential, leaf) in credentials.iter().zip(leaves) {
        assert_eq!(state(&ledger, credential), CredentialState::Revoking);
        let event = ledger
            .reader()
            .event(leaf)
            .unwrap()
            .unwrap()
            .event()
            .unwrap();
        assert_eq!(event.task, Some(credential.task));
    }
    assert_eq!(ledger.reader().quarantined_count().unwrap(), 0);
}

#[test]
fn the_reserve_is_merged_by_itself_once_there_is_space() {
    let store = Store::new();
    let ledger = store.open();
    let credentials = issued(&ledger, 1);
    fill(&ledger);
    let size = ledger.head().size;
    commit(&ledger, end(&credentials[0])).unwrap();
    ledger.faults().set_max_pages(1_000_000);
    for _ in 0..200 {
        if ledger.head().size == size + 1 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("not merged: {:?}", ledger.health());
}

#[test]
fn what_lies_in_the_reserve_at_the_end_is_merged_first_at_the_next_open_and_once() {
    let store = Store::new();
    let ledger = store.open();
    let credentials = issued(&ledger, 2);
    fill(&ledger);
    let size = ledger.head().size;
    for credential in &credentials {
        assert!(commit(&ledger, end(credential)).unwrap().in_reserve);
    }
    // As after `kill -9` between the merge and the emptying: the frames are still there.
    let frames = std::fs::read(store.dir.path().join("reserve")).unwrap();
    ledger.shutdown();

    let ledger = store.open();
    assert_eq!(ledger.head().size, size + 2);
    assert_eq!(state(&ledger, &credentials[1]), CredentialState::Revoking);
    ledger.shutdown();

    std::fs::write(store.dir.path().join("reserve"), frames).unwrap();
    let ledger = store.open();
    assert_eq!(ledger.head().size, size + 2);
    assert_eq!(ledger.reader().quarantined_count().unwrap(), 0);
    assert!(!ledger.health().reserve_in_use);
}

#[test]
fn revocations_that_still_fit_go_into_the_store_beside_work_that_does_not() {
    let store = Store::new();
    let ledger = store.open();
    let credentials = issued(&ledger, 1);
    fill(&ledger);
    // Rewrites rows in place and adds no leaf: needs no new page.
    let small = revoke(
        vec![Row::from(CredentialRow {
            content: String::new(),
            ..revoked(&credentials[0])
        })],
        vec![],
    );
    let committed = commit(&ledger, small).unwrap();
    assert!(!committed.in_reserve);
    assert_eq!(state(&ledger, &credentials[0]), CredentialState::Revoking);
}

#[test]
fn a_full_reserve_refuses_and_keeps_what_it_has() {
    let store = Store::new();
    let ledger = store.open();
    fill(&ledger);
    let mut taken = 0;
    let error = loop {
        let mut told = event("revoked");
        told.purpose = Some("p".repeat(60_000));
        match commit(
            &ledger,
            revoke(
                vec![],
                vec![
                    told.clone(),
                    AuditEvent {
                        id: event_id(),
                        ..told
                    },
                ],
            ),
        ) {
            Ok(committed) => assert!(committed.in_reserve),
            Err(error) => break error,
        }
        taken += 1;
        assert!(taken < 1_000);
    };
    assert_eq!(error, FULL);
    assert!(taken > 50, "{taken}");
    let size = ledger.head().size;
    ledger.shutdown();
    assert_eq!(store.open().head().size, size + 2 * taken);
}

#[test]
fn a_full_store_finds_space_by_itself_though_nothing_is_asked_of_it() {
    let store = Store::new();
    let ledger = store.open();
    fill(&ledger);
    // Nothing lies in the reserve, and who sees the store full asks nothing new of it.
    assert!(matches!(ledger.health().stopped, Some(Reason::DiskFull)));
    ledger.faults().set_max_pages(1_000_000);
    for _ in 0..200 {
        if ledger.health().stopped.is_none() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("still refused: {:?}", ledger.health());
}
