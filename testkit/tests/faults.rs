//! Faults against real processes: `kill -9` at every crash point, lost networks, full disks,
//! frozen daemons, damaged files. The list of them is in the documentation of the library.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "faults/away.rs"]
mod away;
#[path = "faults/callers.rs"]
mod callers;
#[path = "faults/chaos.rs"]
mod chaos;
#[path = "faults/crash.rs"]
mod crash;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/files.rs"]
mod files;
#[path = "faults/frozen.rs"]
mod frozen;
#[path = "faults/handover.rs"]
mod handover;
#[path = "faults/heads.rs"]
mod heads;
#[path = "faults/metrics.rs"]
mod metrics;
#[path = "faults/named.rs"]
mod named;
#[path = "faults/rewind.rs"]
mod rewind;
#[path = "faults/rotate.rs"]
mod rotate;
#[path = "faults/speaker.rs"]
mod speaker;
#[path = "faults/start.rs"]
mod start;

use std::path::PathBuf;

use ephor_testkit::installation::Installation;

/// The binary with crash points; `scripts/test` builds it and says where it is.
fn binary() -> PathBuf {
    let named = std::env::var_os("EPHOR_CRASH_BINARY").map(PathBuf::from);
    let binary = named.unwrap_or_else(|| {
        PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../target/crash/ephor"
        ))
    });
    assert!(
        binary.is_file(),
        "{} is missing: run scripts/test, which builds it",
        binary.display()
    );
    binary
}

/// A broker and an agent that run and are connected.
fn running() -> Installation {
    let kit = Installation::create(&binary()).unwrap();
    kit.start().unwrap();
    kit.wait_connected().unwrap();
    kit
}

/// The list in the library's documentation names tests, each of which is there.
#[test]
fn every_test_of_the_list_exists() {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let list = std::fs::read_to_string(root.join("testkit/src/lib.rs")).unwrap();
    let mut sources = String::new();
    let mut folders = vec![
        root.join("broker/src"),
        root.join("agent/src"),
        root.join("agent/tests"),
        root.join("testkit/tests"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let rows = list.lines().filter(|line| line.starts_with("//! |"));
    let named: Vec<&str> = rows
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .filter_map(|name| name.rsplit_once("::"))
        .map(|(_, test)| test)
        .filter(|test| test.len() > "crash".len() && !test.ends_with('*'))
        .collect();
    assert!(named.len() > 15, "{named:?}");
    for test in named {
        assert!(sources.contains(&format!("fn {test}(")), "{test}");
    }
}
