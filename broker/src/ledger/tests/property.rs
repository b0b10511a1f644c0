//! Whatever is interleaved, refused, doubted or reopened: leaves, hashes and checkpoint agree.

use proptest::prelude::*;

use super::fixture::*;
use crate::ledger::tree::naive_root;
use crate::ledger::*;

#[derive(Debug, Clone)]
enum Step {
    /// Batches submitted together, each with so many events; a conflicting one adds none.
    Together(Vec<(bool, usize, bool)>),
    /// The next commit is rolled back and called unknown.
    Lose,
    /// The next commit stands and is called unknown.
    Doubt,
    /// Closed and opened again.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = (any::<bool>(), 0usize..5, prop::bool::weighted(0.2));
    let step = prop_oneof![
        6 => prop::collection::vec(one, 1..12).prop_map(Step::Together),
        1 => Just(Step::Lose),
        1 => Just(Step::Doubt),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..10)
}

fn together(ledger: &Ledger, batches: &[(bool, usize, bool)]) {
    let mut tickets = Vec::new();
    for (urgent, events, conflict) in batches {
        let events = (0..*events).map(|_| event("happened")).collect();
        let version = if *conflict { 7 } else { 1 };
        let rows = vec![Row::Task(TaskRow {
            version,
            ..task(task_id())
        })];
        let batch = if *urgent {
            revoke(rows, events)
        } else {
            batch(rows, events)
        };
        tickets.push((*conflict, ledger.submit(batch).unwrap()));
    }
    let mut indices = Vec::new();
    for (conflict, ticket) in tickets {
        match ticket.wait() {
            Ok(committed) => {
                assert!(!conflict);
                indices.push(committed.first_leaf);
            }
            Err(CommitError::Conflict(_)) => assert!(conflict),
            Err(CommitError::Unknown) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(indices.iter().all(|index| *index <= ledger.head().size));
}

fn check(ledger: &Ledger) {
    let reader = ledger.reader();
    let head = reader.head().unwrap();
    assert_eq!(head, ledger.head());
    let leaves: Vec<Vec<u8>> = reader
        .events(0, 10_000)
        .unwrap()
        .into_iter()
        .map(|event| event.json.into_bytes())
        .collect();
    assert_eq!(leaves.len() as u64, head.size);
    assert_eq!(naive_root(&leaves).0, head.root);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn size_is_the_number_of_leaves_and_the_root_is_theirs(steps in steps()) {
        let store = Store::new();
        let mut ledger = store.open();
        for step in steps {
            match step {
                Step::Together(batches) => together(&ledger, &batches),
                Step::Lose => ledger.faults().lose_next(),
                Step::Doubt => ledger.faults().doubt_next(),
                Step::Reopen => {
                    ledger.shutdown();
                    ledger = store.open();
                }
            }
            check(&ledger);
        }
    }
}
