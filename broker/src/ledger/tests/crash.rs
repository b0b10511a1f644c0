//! `kill -9` at each of the ledger's crash points: the test runs itself again as a child that
//! dies there, then opens what it left.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use super::fixture::*;
use crate::ledger::*;

const CHILD: &str = "EPHOR_TEST_LEDGER_CHILD";

fn options(dir: &std::path::Path, clock: SharedClock) -> Options {
    Options {
        take_over: false,
        reserve_path: dir.join("reserve"),
        clock,
    }
}

/// Only in the child: commits, acknowledges on stdout, and is killed somewhere in between.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD).map(std::path::PathBuf::from) else {
        return;
    };
    let clock = Store::new().clock;
    let ledger = Ledger::open(&dir.join("ephor.db"), options(&dir, clock)).unwrap();
    let full = std::env::var("EPHOR_CRASH").is_ok_and(|name| name.contains("reserve"));
    if full {
        ledger.faults().set_max_pages(1);
    }
    for index in 0..5_000 {
        let (credential, batch) = issue(index);
        let batch = if full {
            Batch {
                lane: Lane::Revoke,
                ..batch
            }
        } else {
            batch
        };
        let committed = commit(&ledger, batch).unwrap();
        // By rename: the kill may come from another thread, in the middle of this write.
        let (writing, written) = (
            dir.join("writing"),
            dir.join(format!("ack-{}", credential.id)),
        );
        std::fs::write(&writing, committed.first_leaf.to_string()).unwrap();
        std::fs::rename(writing, written).unwrap();
    }
}

fn killed_at(point: &str) {
    let store = Store::new();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ledger::tests::crash::child", "--nocapture"])
        .env(CHILD, store.dir.path())
        .env("EPHOR_CRASH", point)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "{point}: {status}");

    let ledger = store.open();
    let reader = ledger.reader();
    let mut acknowledged = 0;
    for entry in std::fs::read_dir(store.dir.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let Some(id) = name.strip_prefix("ack-") else {
            continue;
        };
        assert!(
            reader.credential(id.parse().unwrap()).unwrap().is_some(),
            "{point}: {id} was lost"
        );
        let leaf: u64 = std::fs::read_to_string(entry.path())
            .unwrap()
            .parse()
            .unwrap();
        assert!(reader.event(leaf + 2).unwrap().is_some());
        acknowledged += 1;
    }
    let leaves = reader.events(0, 10_000).unwrap();
    assert_eq!(leaves.len() as u64, reader.head().unwrap().size);
    assert!(leaves.len() >= 3 * acknowledged, "{point}");
    assert_eq!(leaves.len() % 3, 0, "{point}: half a batch");
    drop(reader);
    commit(&ledger, issue(9_999).1).unwrap();
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_every_crash_point() {
    let own = crate::crash::POINTS
        .iter()
        .filter(|point| point.starts_with("ledger."));
    let mut walked = 0;
    for point in own {
        killed_at(point);
        if *point != "ledger.wal_checkpoint" {
            killed_at(&format!("{point}:7"));
        }
        walked += 1;
    }
    assert!(walked >= 5);
}
