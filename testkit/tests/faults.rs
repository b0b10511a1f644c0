//! Faults against real processes: `kill -9` at every crash point, lost networks, full disks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "faults/crash.rs"]
mod crash;
#[path = "faults/away.rs"]
mod away;

use std::path::PathBuf;

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
