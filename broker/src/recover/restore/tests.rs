//! What stands between a copy that was checked and a store that is in its place.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::os::unix::process::ExitStatusExt as _;

use super::*;
use crate::clock::SystemClock;
use crate::config::Settings;
use crate::ledger::{Ledger, Options};

const CHILD: &str = "EPHOR_TEST_RESTORE_CHILD";
const FILES: [&str; 4] = ["ephor.db", "ephor.db-wal", "ephor.db-shm", "reserve"];

fn config(dir: &Path) -> Config {
    let settings = Settings {
        state_dir: Some(dir.to_owned()),
        ..Settings::default()
    };
    Config::load(None, settings).unwrap()
}

fn at(millis: u64) -> UnixMillis {
    UnixMillis::from_millis(millis)
}

fn fill(dir: &Path) {
    for name in FILES {
        std::fs::write(dir.join(name), name).unwrap();
    }
}

/// Only in the child: moves aside what is there, and is killed in between.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(CHILD) {
        move_aside(&config(Path::new(&dir)), at(1)).unwrap();
    }
}

#[test]
fn killed_between_two_files_no_database_lacks_its_log_and_nothing_stays_for_the_next_one() {
    for pass in 1..=FILES.len() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "recover::restore::tests::child"])
            .env(CHILD, dir.path())
            .env("EPHOR_CRASH", format!("restore.moved:{pass}"))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(9), "{pass}: {status}");
        let is_there = |name: &str| dir.path().join(name).exists();
        assert!(
            !is_there("ephor.db") || is_there("ephor.db-wal"),
            "after {pass}: a database without what was committed last"
        );
        move_aside(&config(dir.path()), at(2)).unwrap();
        for name in FILES {
            assert!(!is_there(name), "after {pass}: {name} of another store");
            let aside = |n: u64| dir.path().join(format!("before-restore-{n}")).join(name);
            assert!(aside(1).exists() != aside(2).exists(), "{pass}: {name}");
        }
    }
}

#[test]
fn where_nothing_is_nothing_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(move_aside(&config(dir.path()), at(1)).unwrap(), None);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn options(dir: &Path) -> Options {
    Options {
        take_over: false,
        reserve_path: dir.join("reserve"),
        clock: SystemClock::shared(),
    }
}

#[test]
fn a_broker_that_started_meanwhile_keeps_its_store_and_none_starts_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let database = config.database();
    Ledger::create(&database, "inst-1", "ephor.test/log", "test.example").unwrap();
    let staged = dir.path().join("staged");
    std::fs::write(&staged, "a copy").unwrap();
    let broker = Ledger::open(&database, options(dir.path())).unwrap();
    let held = put_in_place(&config, &staged, true, at(1)).unwrap_err();
    assert!(matches!(held, RestoreError::Held { .. }), "{held}");
    assert!(Ledger::open(&database, options(dir.path())).is_err());
    broker.shutdown();

    let present = put_in_place(&config, &staged, false, at(2)).unwrap_err();
    assert!(matches!(present, RestoreError::Present { .. }), "{present}");
    let aside = put_in_place(&config, &staged, true, at(3))
        .unwrap()
        .unwrap();
    assert_eq!(std::fs::read(&database).unwrap(), b"a copy");
    // Who had the path open before would write where nobody looks.
    let late = Ledger::open(&aside.join("ephor.db"), options(&aside));
    assert!(matches!(late, Err(OpenError::Held { .. })));
}
