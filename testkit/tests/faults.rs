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
#[path = "faults/crash.rs"]
mod crash;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/frozen.rs"]
mod frozen;
#[path = "faults/heads.rs"]
mod heads;
#[path = "faults/named.rs"]
mod named;
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
