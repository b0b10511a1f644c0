//! Attack 45 of docs/threat-model.md: what a daemon that dies in the middle of a write leaves on
//! the disk.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;

/// What others may read: none is a secret.
const PUBLIC: [&str; 3] = ["ca.pem", "database-ca.pem", "protections.json"];

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn is_closed_to_others(kit: &Installation, after: &str) {
    for directory in ["agent", "state"] {
        let directory = kit.path(directory);
        assert_eq!(mode(&directory), 0o700, "{after}");
        let found = files(&directory);
        assert!(!found.is_empty(), "{after}");
        for file in found {
            let name = file.file_name().unwrap().to_str().unwrap();
            let others = if PUBLIC.contains(&name) { 0o022 } else { 0o077 };
            let shown = file.display();
            assert_eq!(mode(&file) & others, 0, "{after}: {shown}");
        }
    }
}

#[test]
fn attack_45_a_crash_in_the_middle_of_a_write_leaves_nothing_to_others() {
    // The worst umask that one can be started with.
    const OPEN: [&str; 4] = ["sh", "-c", "umask 0; exec \"$@\"", "sh"];
    for (side, point) in [
        (Side::Agent, "journal.before_write"),
        (Side::Agent, "journal.before_sync"),
        (Side::Agent, "journal.written"),
        (Side::Broker, "ledger.before_commit"),
        (Side::Broker, "ledger.after_commit"),
        (Side::Broker, "ledger.before_checkpoint"),
    ] {
        let kit = Installation::create(&super::binary()).unwrap();
        kit.run_broker_under(&OPEN);
        kit.run_agent_under(&OPEN);
        kit.start().unwrap();
        kit.wait_connected().unwrap();
        is_closed_to_others(&kit, "a good start");
        kit.stop(side).unwrap();
        // A broker writes before it serves, and may die of it there.
        kit.try_start(side, &[("EPHOR_CRASH", point)]).unwrap();
        let mut asks = Workload::start(&kit).unwrap();
        asks.say("wanted").unwrap();
        wait::until(&format!("{point} is reached"), SETTLE, || {
            (kit.killed_by(side) == Some(9)).then_some(())
        })
        .unwrap();
        is_closed_to_others(&kit, point);
    }
}
