//! Groups, neighbours, preconditions, lanes, and commits whose fate is not known.

use ephor_proto::state::agent::AgentState;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::{EndCause, TaskState};
use futures_util::FutureExt;

use super::fixture::*;
use crate::ledger::*;

/// Holds SQLite's write lock, so that what is submitted meanwhile queues up.
struct Held(rusqlite::Connection);

impl Held {
    fn new(store: &Store) -> Self {
        let connection = store.raw();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(connection)
    }

    fn release(self) {
        self.0.execute_batch("ROLLBACK").unwrap();
    }
}

#[test]
fn what_queues_during_a_commit_is_one_group_and_a_conflict_harms_no_neighbour() {
    let store = Store::new();
    let ledger = store.open();
    let (taken, first) = issue(0);
    commit(&ledger, first).unwrap();
    let before = ledger.health();

    let held = Held::new(&store);
    let mut tickets = Vec::new();
    for index in 1..=40 {
        let (_, fresh) = issue(index);
        tickets.push((true, ledger.submit(fresh).unwrap()));
        if index % 10 == 0 {
            // The task and grant of this one are new, only its credential is taken.
            let (credential, mut clash) = issue(index);
            clash
                .rows
                .retain(|row| row.key() != Key::Credential(credential.id));
            clash.rows.push(Row::from(taken.clone()));
            tickets.push((false, ledger.submit(clash).unwrap()));
        }
    }
    held.release();

    let mut next_leaf = 3;
    for (fits, ticket) in tickets {
        match ticket.wait() {
            Ok(committed) => {
                assert!(fits);
                assert_eq!(committed.first_leaf, next_leaf);
                next_leaf += 3;
            }
            Err(error) => {
                assert!(!fits);
                assert_eq!(error, CommitError::Conflict(Key::Credential(taken.id)));
            }
        }
    }
    let health = ledger.health();
    assert!(health.commits - before.commits <= 2, "{health:?}");
    assert_eq!((health.batches - before.batches, health.conflicts), (40, 4));
    assert_eq!(ledger.head().size, 3 * 41);
    // Nothing of the refused ones is left: neither rows nor leaves.
    let tasks = ledger.reader().tasks(&TaskFilter::default()).unwrap();
    assert_eq!(tasks.len(), 41);
}

#[test]
fn what_queued_behind_a_new_epoch_was_decided_before_it_and_is_refused() {
    let store = Store::new();
    let ledger = store.open();
    let held = Held::new(&store);
    // The writer waits with the first; the others become one group.
    let first = ledger.submit(issue(0).1).unwrap();
    while ledger.health().waiting != (0, 0) {
        std::thread::yield_now();
    }
    let before = ledger.submit(issue(1).1).unwrap();
    let epoch = Row::NewEpoch(NewEpoch {
        origin: "ephor.test/log.2".to_owned(),
        admit: None,
        at: now(),
    });
    let epoch = ledger.submit(batch(vec![epoch], vec![])).unwrap();
    let (credential, behind) = issue(2);
    let behind = ledger.submit(behind).unwrap();
    held.release();
    for ticket in [first, before, epoch] {
        ticket.wait().unwrap();
    }
    assert_eq!(
        behind.wait().unwrap_err(),
        CommitError::Refused(Reason::EpochLost)
    );
    let reader = ledger.reader();
    assert!(reader.credential(credential.id).unwrap().is_none());
    let all = reader.credentials(&CredentialFilter::default()).unwrap();
    assert_eq!(all.len(), 2);
    assert!(all.iter().all(|row| row.state == CredentialState::Revoking));
}

/// A host that is banned and a policy that is applied between batches that ask for them, all in one group.
#[test]
fn what_held_for_one_batch_of_a_group_is_looked_at_again_after_it_changed() {
    let store = Store::new();
    let ledger = store.open();
    let policy = |number: u64| PolicyRow {
        number,
        version: format!("v{number}"),
        previous: None,
        applied_at: now(),
        applied_by: "start".to_owned(),
        directory: None,
        files: "[]".to_owned(),
    };
    let rows = vec![Row::Host(host()), Row::Policy(Box::new(policy(1)))];
    commit(&ledger, batch(rows, vec![])).unwrap();
    let banned = Row::Host(HostRow {
        version: 2,
        state: AgentState::Banned,
        ..host()
    });
    let admitted = Require::HostAdmitted(host().name);
    let in_force = Require::PolicyInForce("v1".to_owned());
    for (require, change) in [
        (admitted, banned),
        (in_force, Row::Policy(Box::new(policy(2)))),
    ] {
        let held = Held::new(&store);
        let first = ledger.submit(issue(0).1).unwrap();
        while ledger.health().waiting != (0, 0) {
            std::thread::yield_now();
        }
        let asks = || {
            let mut asks = issue(1).1;
            asks.require.push(require.clone());
            ledger.submit(asks).unwrap()
        };
        let before = [asks(), asks()];
        let change = ledger.submit(batch(vec![change], vec![])).unwrap();
        let behind = asks();
        held.release();
        for ticket in before.into_iter().chain([first, change]) {
            ticket.wait().unwrap();
        }
        let refused = behind.wait().unwrap_err();
        assert!(matches!(refused, CommitError::Conflict(_)), "{refused}");
    }
}

#[test]
fn durable_names_the_batch_that_was_queued() {
    let store = Store::new();
    let ledger = store.open();
    let ticket = ledger.submit(issue(0).1).unwrap();
    let id = ticket.batch();
    assert_eq!(ticket.wait().unwrap().durable.batch(), id);
    let other = ledger.submit(issue(1).1).unwrap();
    assert_ne!(other.batch(), id);
}

#[test]
fn versions_admit_only_the_next_one() {
    let store = Store::new();
    let ledger = store.open();
    let id = task_id();
    let key = Key::Task(id);
    let write = |version| {
        commit(
            &ledger,
            batch(
                vec![Row::Task(TaskRow {
                    version,
                    ..task(id)
                })],
                vec![],
            ),
        )
    };
    assert_eq!(write(2).unwrap_err(), CommitError::Conflict(key.clone()));
    write(1).unwrap();
    assert_eq!(write(1).unwrap_err(), CommitError::Conflict(key.clone()));
    write(2).unwrap();
    assert_eq!(write(2).unwrap_err(), CommitError::Conflict(key.clone()));
    assert_eq!(write(4).unwrap_err(), CommitError::Conflict(key));
    assert_eq!(ledger.reader().task(id).unwrap().unwrap().version, 2);
}

#[test]
fn preconditions_hold_at_the_commit_or_nothing_is_written() {
    let store = Store::new();
    let ledger = store.open();
    let (credential, first) = issue(0);
    let id = credential.task;
    commit(&ledger, first).unwrap();
    let tried = |require: Require| {
        let mut batch = batch(vec![Row::Meta("x".to_owned(), "y".to_owned())], vec![]);
        batch.require = vec![require];
        commit(&ledger, batch).is_ok()
    };
    assert!(tried(Require::Absent(Key::Meta("x".to_owned()))));
    assert!(!tried(Require::Absent(Key::Meta("x".to_owned()))));
    assert!(tried(Require::Version(Key::Task(id), 1)));
    assert!(!tried(Require::Version(Key::Task(id), 2)));
    assert!(!tried(Require::Version(Key::Task(task_id()), 1)));
    assert!(tried(Require::TaskOpen(id)));
    assert!(!tried(Require::TaskOpen(task_id())));
    assert!(tried(Require::GrantOpen(credential.grant)));
    assert!(!tried(Require::GrantOpen(grant_id())));
    assert!(!tried(Require::HostAdmitted("web-1".to_owned())));
    assert!(tried(Require::LiveCredentials { task: id, count: 1 }));
    assert!(!tried(Require::LiveCredentials { task: id, count: 0 }));

    let ended = TaskRow {
        version: 2,
        state: TaskState::Completing(EndCause::Exited),
        ..task(id)
    };
    commit(
        &ledger,
        revoke(
            vec![Row::Task(ended), Row::from(revoked(&credential))],
            vec![],
        ),
    )
    .unwrap();
    assert!(!tried(Require::TaskOpen(id)));
    assert!(tried(Require::LiveCredentials { task: id, count: 0 }));
}

/// Submits a batch, goes on as long as `lets_go` is silent, and then submits the last: a poll that
/// takes its time, on a thread of its own.
fn in_two_steps(
    ledger: &Ledger,
    lets_go: std::sync::mpsc::Receiver<()>,
) -> (std::thread::JoinHandle<Result<Ticket, Full>>, Ticket) {
    let (sent, first) = std::sync::mpsc::sync_channel(1);
    let ledger = ledger.clone();
    let thread = std::thread::spawn(move || {
        let submit = |name| ledger.submit(batch(vec![], vec![event(name)]));
        let work = ledger.together(std::future::ready(()).map(|()| {
            sent.send(submit("first").unwrap()).unwrap();
            // A dropped sender lets go as well.
            let _ = lets_go.recv();
            submit("last")
        }));
        work.now_or_never().unwrap()
    });
    (thread, first.recv().unwrap())
}

#[test]
fn what_is_submitted_together_is_one_commit() {
    let store = Store::new();
    let ledger = store.open();
    // Without the announcement the writer takes the first at once, in nearly every round.
    let rounds = 20;
    for _ in 0..rounds {
        let (let_go, lets_go) = std::sync::mpsc::sync_channel(1);
        let_go.send(()).unwrap();
        let (thread, first) = in_two_steps(&ledger, lets_go);
        let last = thread.join().unwrap().unwrap().wait().unwrap();
        assert_eq!(last.first_leaf, first.wait().unwrap().first_leaf + 1);
    }
    let commits = ledger.health().commits;
    // A thread that is not run for longer than the writer waits may cost a round its company.
    assert!(commits < rounds + rounds / 2, "{commits} commits");
}

#[test]
fn who_announces_and_does_not_come_holds_up_nobody_for_long_and_no_revocation() {
    let store = Store::new();
    let ledger = store.open();
    let (let_go, lets_go) = std::sync::mpsc::sync_channel(1);
    let (thread, first) = in_two_steps(&ledger, lets_go);
    first.wait().unwrap();
    commit(&ledger, revoke(vec![], vec![event("revoke")])).unwrap();
    commit(&ledger, batch(vec![], vec![event("beside")])).unwrap();
    drop(let_go);
    assert_eq!(
        thread.join().unwrap().unwrap().wait().unwrap().first_leaf,
        3
    );
}

#[test]
fn revocations_go_first_and_their_places_are_their_own() {
    let store = Store::new();
    let ledger = store.open();
    let held = Held::new(&store);
    let mut normal = Vec::new();
    // The writer may have taken some already and waits for the lock.
    while let Ok(ticket) = ledger.submit(batch(vec![], vec![event("normal")])) {
        normal.push(ticket);
        assert!(normal.len() <= 2 * crate::limits::LEDGER_NORMAL_PLACES);
    }
    let urgent = ledger
        .submit(revoke(vec![], vec![event("revoke")]))
        .unwrap();
    assert_eq!(ledger.health().queue_full, 1);
    held.release();
    let first = urgent.wait().unwrap().first_leaf;
    let behind = normal
        .into_iter()
        .map(|ticket| ticket.wait().unwrap().first_leaf);
    let behind = behind.filter(|leaf| *leaf > first).count();
    assert!(
        behind >= crate::limits::LEDGER_NORMAL_PLACES,
        "{behind} of the queued came after it"
    );
}

#[test]
fn an_unknown_fate_is_told_whichever_truth_it_has() {
    let store = Store::new();
    let ledger = store.open();
    let (lost, first) = issue(0);
    ledger.faults().lose_next();
    assert_eq!(commit(&ledger, first).unwrap_err(), CommitError::Unknown);
    assert_eq!(ledger.reader().credential(lost.id).unwrap(), None);
    assert_eq!(ledger.head().size, 0);

    let (kept, second) = issue(1);
    ledger.faults().doubt_next();
    assert_eq!(commit(&ledger, second).unwrap_err(), CommitError::Unknown);
    assert_eq!(ledger.reader().credential(kept.id).unwrap(), Some(kept));
    assert_eq!(ledger.head(), ledger.reader().head().unwrap());
    assert_eq!(ledger.head().size, 3);
    // And the log goes on from what is really there.
    assert_eq!(commit(&ledger, issue(2).1).unwrap().first_leaf, 3);
}

#[test]
fn what_cannot_be_stored_is_refused_alone() {
    let store = Store::new();
    let ledger = store.open();
    let receipt = Row::Receipt {
        task: task_id(),
        event: 1,
    };
    let error = commit(&ledger, batch(vec![receipt], vec![event("one")])).unwrap_err();
    assert!(
        matches!(error, CommitError::Refused(Reason::Invalid(_))),
        "{error:?}"
    );
    let mut large = event("large");
    large.purpose = Some("x".repeat(ephor_proto::limits::MAX_LEAF_BYTES));
    let error = commit(&ledger, batch(vec![], vec![large])).unwrap_err();
    assert!(
        matches!(error, CommitError::Refused(Reason::Invalid(_))),
        "{error:?}"
    );
    assert_eq!(ledger.head().size, 0);
}

#[test]
fn after_a_shutdown_nothing_is_taken_and_what_was_queued_is_written() {
    let store = Store::new();
    let ledger = store.open();
    let held = Held::new(&store);
    let ticket = ledger.submit(issue(0).1).unwrap();
    let other = ledger.clone();
    held.release();
    ledger.shutdown();
    ticket.wait().unwrap();
    assert_eq!(other.submit(issue(1).1).unwrap_err(), Full);
}

#[tokio::test]
async fn a_ticket_is_a_future() {
    let store = Store::new();
    let ledger = store.open();
    let (credential, batch) = issue(0);
    let committed = ledger.submit(batch).unwrap().await.unwrap();
    assert_eq!(committed.first_leaf, 0);
    assert!(!committed.in_reserve);
    assert!(ledger.reader().credential(credential.id).unwrap().is_some());
}
