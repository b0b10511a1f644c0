//! Months in virtual time: what goes, what stays, and how large the file is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::PathBuf;

use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::problem::Code;

use super::*;
use crate::issue::tests::harness::Bench;
use crate::ledger::log::{Found, tile};

const DAY: u64 = 24 * 3600;

fn days(days: u64) -> Ttl {
    Ttl::from_seconds(days * DAY)
}

/// One day of a busy host: so many tasks, each with a token and an end; then the timers.
async fn one_day(
    bench: &Bench,
    tasks: usize,
    retention: Option<Retention>,
) -> Vec<(TaskId, CredentialId)> {
    let work = (0..tasks).map(|_| async {
        let (task, credential, _) = bench.token().await;
        bench.complete(task, "exited").await.unwrap();
        (task, credential)
    });
    let made = futures_util::future::join_all(work).await;
    bench.pass_seconds(3600);
    bench.broker.expire_due().await;
    bench.pass_seconds(DAY - 3600);
    bench.broker.prune_listings().await;
    if let Some(retention) = retention {
        bench.broker.retain(retention).await;
    }
    made
}

fn counted(bench: &Bench, table: &str) -> u64 {
    let raw = rusqlite::Connection::open(bench.database()).unwrap();
    raw.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
        row.get::<_, i64>(0)
    })
    .unwrap() as u64
}

/// One whose log an agent has confirmed.
async fn bench() -> Bench {
    let bench = Bench::new().await;
    bench.broker.confirmed();
    bench
}

#[tokio::test]
async fn what_is_over_goes_and_its_leaves_stay() {
    let bench = bench().await;
    let retention = Retention {
        detail: days(3),
        log: None,
    };
    let open = bench.token().await;
    let asked = {
        let task = bench.new_task();
        let mut wire = bench.request(task, "billing-api");
        wire.reason = "nightly run".to_owned();
        bench.issue(wire.clone()).await.unwrap();
        bench.complete(task, "exited").await.unwrap();
        wire
    };
    let old = one_day(&bench, 3, Some(retention)).await;
    let (task, credential) = old[0];
    let receipt = bench.receipt(task);
    for _ in 0..3 {
        one_day(&bench, 0, None).await;
    }
    // Rows and event go in one commit: one that is lost lost both, and is made again.
    bench.broker.ledger.faults().lose_next();
    bench.broker.retain(retention).await;
    assert_eq!(
        (
            counted(&bench, "task"),
            bench.events_of("operate.pruned").len()
        ),
        (5, 0)
    );
    bench.broker.ledger.faults().doubt_next();
    bench.broker.retain(retention).await;
    bench.broker.retain(retention).await;
    let reader = bench.broker.ledger.reader();
    assert!(
        reader.task(task).unwrap().is_none() && reader.credential(credential).unwrap().is_none()
    );
    assert!(reader.task(open.0).unwrap().is_some(), "its task runs");
    assert_eq!(counted(&bench, "personal"), 0);
    for (table, kept) in [
        ("task", 1),
        ("credential", 1),
        ("request", 1),
        ("decision", 1),
        ("grants", 1),
    ] {
        assert_eq!(counted(&bench, table), kept, "{table}");
    }
    // The log tells what was there, by task and by any id, and what went.
    let told = reader.events_of_task(task, 100).unwrap();
    let types: Vec<String> = told
        .iter()
        .map(|event| event.event().unwrap().event_type)
        .collect();
    for wanted in [
        "attest.task_opened",
        "decide.allowed",
        "issue.recorded",
        "prove.receipt",
        "prove.closed",
    ] {
        assert!(
            types.iter().any(|known| known == wanted),
            "{wanted}: {types:?}"
        );
    }
    let about = reader.events_about(&credential.to_string(), 100).unwrap();
    assert!(
        about
            .iter()
            .any(|event| event.event().unwrap().event_type == "issue.recorded")
    );
    let told = bench.events_of("operate.pruned");
    let sum = |name: &str| -> u64 {
        told.iter()
            .filter_map(|event| event.facts.get(name)?.parse::<u64>().ok())
            .sum()
    };
    assert_eq!(
        (
            sum("tasks"),
            sum("credentials"),
            sum("requests"),
            sum("texts")
        ),
        (4, 4, 4, 1)
    );
    assert_eq!(sum("decisions"), 4);
    assert_eq!(told.len(), 1, "not again for what a doubtful commit took");
    // A receipt that was kept holds; a new one of the same leaf can be had.
    bench.verified(&receipt);
    bench.verified(&bench.receipt(task));
    drop(reader);
    // The same request again is no new request, now and after a restart.
    let again = bench.issue(asked.clone()).await.unwrap_err();
    assert_eq!(again.code, Code::Conflict);
    assert!(again.detail.contains("retention"), "{}", again.detail);
    let bench = bench.reopened().await;
    assert_eq!(bench.issue(asked).await.unwrap_err().code, Code::Conflict);
    let (_, fresh, _) = bench.token().await;
    assert!(
        bench
            .broker
            .ledger
            .reader()
            .credential(fresh)
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn nothing_goes_on_a_clock_that_is_not_believed() {
    let bench = bench().await;
    let retention = Retention {
        detail: days(3),
        log: None,
    };
    one_day(&bench, 2, None).await;
    bench.clock.step_wall_millis(30 * DAY as i64 * 1000);
    bench.broker.retain(retention).await;
    assert_eq!(
        (
            counted(&bench, "task"),
            bench.events_of("operate.pruned").len()
        ),
        (2, 0)
    );
}

#[tokio::test]
async fn pruning_ends_between_two_commits_when_it_may_not_go_on() {
    let retention = Retention {
        detail: days(3),
        log: None,
    };
    for why in ["an old copy", "a doubted clock", "a stop"] {
        let bench = bench().await;
        one_day(&bench, limits::RETENTION_CHUNK + 8, None).await;
        for _ in 0..3 {
            one_day(&bench, 0, None).await;
        }
        let pruned = || bench.events_of("operate.pruned").len();
        assert_eq!(pruned(), 0);
        let meanwhile = async {
            while pruned() == 0 {
                tokio::task::yield_now().await;
            }
            match why {
                "an old copy" => bench.fall_behind().await,
                "a doubted clock" => bench.clock.step_wall_millis(30 * DAY as i64 * 1000),
                _ => bench.broker.tasks.stop_token().cancel(),
            }
        };
        tokio::join!(biased; meanwhile, bench.broker.retain(retention));
        assert_eq!((pruned(), counted(&bench, "task")), (1, 8), "{why}");
    }
}

#[tokio::test]
async fn the_text_of_old_leaves_goes_in_whole_bundles_and_the_tree_stands() {
    let bench = bench().await;
    let retention = Retention {
        detail: days(2),
        log: Some(days(4)),
    };
    let (running, _, _) = bench.token().await;
    let old = one_day(&bench, 80, Some(retention)).await;
    let receipt = bench.receipt(old[0].0);
    for _ in 0..6 {
        one_day(&bench, 5, Some(retention)).await;
    }
    let reader = bench.broker.ledger.reader();
    let pruned = reader.pruned().unwrap();
    assert!(
        pruned.leaves >= 256 && pruned.leaves % 256 == 0,
        "{pruned:?}"
    );
    assert!(matches!(
        tile(&reader, "tile/entries/000").unwrap(),
        Some(Found::Pruned(Some(_)))
    ));
    assert!(matches!(
        tile(&reader, "tile/0/000").unwrap(),
        Some(Found::Bytes(_))
    ));
    assert!(reader.receipt_leaf(old[0].0).unwrap().is_none());
    bench.verified(&receipt);
    // A task that runs keeps the leaves that its receipt is made from.
    assert!(!reader.events_of_task(running, 10).unwrap().is_empty());
    let told = bench.events_of("operate.pruned");
    let below = told
        .iter()
        .filter_map(|event| event.facts.get("entries_below"))
        .next_back();
    assert_eq!(below, Some(&pruned.leaves.to_string()));
    drop(reader);
    let copy = bench.database().with_file_name("copy.db");
    bench.broker.ledger.copy_to(&copy).unwrap();
    let inspected = crate::ledger::inspect(&copy).unwrap();
    assert!(inspected.pruned > 0 && inspected.pruned <= pruned.leaves);
    let bench = bench.reopened().await;
    assert_eq!(bench.broker.ledger.reader().pruned().unwrap(), pruned);
}

fn size(path: &PathBuf) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// Sizes of the file after each tenth of the time.
async fn churn(retention: Option<Retention>) -> Vec<u64> {
    let bench = bench().await;
    let mut sizes = Vec::new();
    for day in 1..=90 {
        one_day(&bench, 24, retention).await;
        if day % 9 == 0 {
            // Copied back from the write-ahead log first.
            let raw = rusqlite::Connection::open(bench.database()).unwrap();
            raw.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .unwrap();
            sizes.push(size(&bench.database()));
        }
    }
    sizes
}

#[tokio::test]
async fn three_months_of_tasks_leave_a_file_that_stays_flat() {
    let retention = Retention {
        detail: days(7),
        log: Some(days(14)),
    };
    let (pruned, kept) = (churn(Some(retention)).await, churn(None).await);
    // From the third tenth on, every retention has begun to take.
    let growth = |sizes: &[u64]| sizes[9] as f64 / sizes[2] as f64;
    assert!(growth(&pruned) < 1.5, "{pruned:?}");
    assert!(growth(&kept) > 2.5, "{kept:?}");
    assert!(pruned[9] * 2 < kept[9], "{pruned:?} {kept:?}");
}
