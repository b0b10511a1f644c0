//! An export that holds is accepted, by our verifier and by the Python script that goes with it, and
//! each way to tamper is refused by both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod synthetic;

use std::path::{Path, PathBuf};
use std::process::Command;

use ephor_proto::id::TaskId;
use ephor_proto::log::{VerifierKey, bundle_path, split_bundle};

use super::export::export_from;
use super::*;
use synthetic::{NAME, Synthetic, event, task_id};

/// An export in a directory of its own.
struct Export {
    _keep: tempfile::TempDir,
    dir: PathBuf,
}

impl Export {
    fn of(log: &Synthetic) -> Self {
        Self::tried(log).map_err(|failure| failure.message).unwrap()
    }

    fn tried(log: &Synthetic) -> Result<Self, crate::exit::Failure> {
        let keep = tempfile::tempdir().unwrap();
        let dir = keep.path().join("export");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(export_from(log, &dir))?;
        Ok(Self { _keep: keep, dir })
    }

    /// Another copy, to tamper with.
    fn copy(&self) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let dir = keep.path().join("export");
        let copied = Command::new("cp")
            .arg("-r")
            .args([&self.dir, &dir])
            .status()
            .unwrap();
        assert!(copied.success());
        Self { _keep: keep, dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    fn edit(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(path)).unwrap();
        let before = bytes.clone();
        change(&mut bytes);
        assert_ne!(bytes, before, "the test changed nothing");
        std::fs::write(self.path(path), bytes).unwrap();
    }

    fn receipt(&self, task: TaskId) -> String {
        let path = format!("receipts/{task}.json");
        assert!(self.path(&path).is_file());
        path
    }

    /// Our own verdict.
    fn rust(&self, task: TaskId, key: &VerifierKey) -> Result<(), String> {
        let source = Dir(self.dir.clone());
        let log = Log::read(&source, key).map_err(|why| why.to_string())?;
        log.check(&source, task)
            .map(|_| ())
            .map_err(|why| why.to_string())
    }

    /// The script's verdict.
    fn python(&self, task: TaskId, key: &VerifierKey) -> Result<(), String> {
        self.script(&[
            &self.dir.display().to_string(),
            &task.to_string(),
            "--key",
            &key.to_string(),
        ])
    }

    fn script(&self, args: &[&str]) -> Result<(), String> {
        let python = std::env::var("EPHOR_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let has = Command::new(&python)
            .args(["-c", "import cryptography"])
            .output();
        assert!(
            has.is_ok_and(|has| has.status.success()),
            "{python} lacks the package `cryptography`: run scripts/test, or set EPHOR_TEST_PYTHON to one that has it"
        );
        let out = Command::new(python)
            .arg(self.path("verify.py"))
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        match out.status.code() {
            Some(0) => Ok(()),
            // A refusal says so; a stack trace would be a defect of the script.
            Some(1) if said.starts_with("REFUSED: ") => Err(said),
            code => panic!("verify.py ended with {code:?}: {said}"),
        }
    }

    fn accepted(&self, task: TaskId, key: &VerifierKey) {
        self.rust(task, key).unwrap();
        self.python(task, key).unwrap();
    }

    /// Refused by both; gives our reason.
    fn refused(&self, what: &str, task: TaskId, key: &VerifierKey) -> String {
        let python = self.python(task, key);
        assert!(python.is_err(), "verify.py accepted {what}");
        let rust = self.rust(task, key);
        rust.expect_err(&format!("ephor accepted {what}"))
    }
}

fn flip(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 1;
}

#[test]
fn an_export_that_holds_is_accepted_at_every_kind_of_size() {
    for size in [8, 255, 256, 257, 512, 700] {
        let log = Synthetic::of(size);
        Export::of(&log).accepted(task_id(1), &log.vkey());
    }
}

#[test]
fn all_receipts_at_once_as_the_demo_says_it() {
    let log = Synthetic::of(700);
    let export = Export::of(&log);
    export.script(&["--key", &log.vkey().to_string()]).unwrap();
    let source = Dir(export.dir.clone());
    let read = Log::read(&source, &log.vkey()).unwrap();
    let receipts = source.receipts().unwrap();
    assert_eq!((read.size(), receipts.len()), (700, log.receipts.len()));
    for task in receipts {
        assert_eq!(read.check(&source, task).unwrap().event.task, Some(task));
    }
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let log = Synthetic::of(700);
    let export = Export::of(&log);
    let (task, key) = (task_id(1), log.vkey());
    let receipt = export.receipt(task);
    let in_leaf = |bytes: &[u8]| bytes.windows(4).position(|w| w == b"inst").unwrap();
    type Place = Box<dyn Fn(&[u8]) -> usize>;
    let cases: Vec<(String, Place)> = vec![
        ("log/tile/entries/000".to_owned(), Box::new(|_| 100)),
        ("log/tile/entries/000".to_owned(), Box::new(|_| 0)),
        (
            "log/tile/entries/002.p/188".to_owned(),
            Box::new(|bytes| bytes.len() - 1),
        ),
        ("log/tile/0/001".to_owned(), Box::new(|_| 8191)),
        ("log/tile/0/002.p/188".to_owned(), Box::new(|_| 0)),
        ("log/tile/1/000.p/2".to_owned(), Box::new(|_| 40)),
        ("log/checkpoint".to_owned(), Box::new(|_| NAME.len() + 2)),
        (
            "log/checkpoint".to_owned(),
            Box::new(|bytes| bytes.len() - 10),
        ),
        (receipt.clone(), Box::new(in_leaf)),
        (
            receipt.clone(),
            Box::new(|bytes| bytes.windows(9).position(|w| w == b"\"proof\":[").unwrap() + 12),
        ),
        (receipt, Box::new(|bytes| bytes.len() - 20)),
    ];
    for (path, at) in cases {
        let bad = export.copy();
        bad.edit(&path, |bytes| {
            let at = at(bytes);
            flip(bytes, at);
        });
        bad.refused(&format!("a changed byte in {path}"), task, &key);
    }
    export.accepted(task, &key);
}

#[test]
fn our_verifier_refuses_every_changed_byte_of_the_log() {
    let log = Synthetic::of(20);
    let export = Export::of(&log);
    for path in [
        "log/checkpoint",
        "log/tile/entries/000.p/20",
        "log/tile/0/000.p/20",
    ] {
        let good = std::fs::read(export.path(path)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            flip(&mut bad, at);
            std::fs::write(export.path(path), bad).unwrap();
            assert!(
                Log::read(&Dir(export.dir.clone()), &log.vkey()).is_err(),
                "byte {at} of {path}"
            );
        }
        std::fs::write(export.path(path), good).unwrap();
    }
    export.rust(task_id(1), &log.vkey()).unwrap();
}

#[test]
fn a_removed_leaf_is_refused() {
    let log = Synthetic::of(700);
    let export = Export::of(&log);
    let (task, key) = (task_id(1), log.vkey());
    // Cut out of its bundle.
    let bad = export.copy();
    bad.edit(&bundle_path(1, 0).replace("tile", "log/tile"), |bytes| {
        let first = split_bundle(bytes).unwrap()[0].len();
        bytes.drain(..first + 2);
    });
    bad.refused("a bundle without a leaf", task, &key);
    // Everything made again without it, under the old signature.
    let mut without = Synthetic::of(700);
    without.leaves = log.leaves.clone();
    without.leaves.remove(300);
    without.published = 699;
    without.receipts.clear();
    let bad = Export::of(&without);
    std::fs::copy(export.path("log/checkpoint"), bad.path("log/checkpoint")).unwrap();
    let receipt = export.receipt(task);
    std::fs::copy(export.path(&receipt), bad.path(&receipt)).unwrap();
    bad.refused("a log without a leaf", task, &key);
    // A missing file.
    let bad = export.copy();
    std::fs::remove_file(bad.path("log/tile/entries/001")).unwrap();
    bad.refused("a missing bundle", task, &key);
}

#[test]
fn a_swapped_receipt_is_refused() {
    let log = Synthetic::of(700);
    let export = Export::of(&log);
    let (task, other) = (task_id(1), task_id(2));
    std::fs::copy(
        export.path(&export.receipt(other)),
        export.path(&export.receipt(task)),
    )
    .unwrap();
    let why = export.refused("another task's receipt", task, &log.vkey());
    assert!(why.contains("of another task"), "{why}");
}

#[test]
fn a_forged_checkpoint_and_another_logs_key_are_refused() {
    let log = Synthetic::of(700);
    let export = Export::of(&log);
    let (task, key) = (task_id(1), log.vkey());
    let bad = export.copy();
    bad.edit("log/checkpoint", |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text.replacen("\n700\n", "\n699\n", 1).into_bytes();
    });
    bad.refused("a checkpoint of another size", task, &key);
    // A whole log under the same name, by another key.
    let mut twin = Synthetic::new();
    twin.leaves = log.leaves.clone();
    twin.receipts = log.receipts.clone();
    twin.published = 700;
    let forged = Export::of(&twin);
    forged.accepted(task, &twin.vkey());
    forged.refused("a log signed by another key", task, &key);
    // Its head and receipts in our log.
    let bad = export.copy();
    std::fs::copy(forged.path("log/checkpoint"), bad.path("log/checkpoint")).unwrap();
    bad.refused("another key's checkpoint", task, &key);
    let bad = export.copy();
    std::fs::copy(
        forged.path(&forged.receipt(task)),
        bad.path(&bad.receipt(task)),
    )
    .unwrap();
    bad.refused("a receipt by another key", task, &key);
    // The right log and another's key.
    let renamed = VerifierKey::new("other.example.org", *key.public_key()).unwrap();
    for wrong in [twin.vkey(), renamed] {
        export.refused("another log's key", task, &wrong);
    }
}

#[test]
fn a_second_history_under_the_same_key_is_refused() {
    let log = Synthetic::of(700);
    let export = Export::of(&log);
    // The same key signed another log: the receipt is of that one.
    let mut other = log;
    other.leaves[3] = event(ephor_proto::stage::Stage::Operate, "policy")
        .leaf_bytes()
        .unwrap();
    let task = other.receipts.last().unwrap().0;
    let receipt = serde_json::to_vec(&other.receipt_of(task)).unwrap();
    std::fs::write(export.path(&export.receipt(task)), receipt).unwrap();
    let why = export.refused("a receipt of another history", task, &other.vkey());
    assert!(why.contains("another history"), "{why}");
}

/// A broker that lies consistently: signed, but the receipt does not tell all.
fn lie(make: impl FnOnce(&mut Synthetic, TaskId)) -> (Export, Synthetic, TaskId) {
    let mut log = Synthetic::of(50);
    let (task, good) = (task_id(900), log.receipts.clone());
    log.whole_task(task_id(901), 1);
    make(&mut log, task);
    let receipt = serde_json::to_vec(&log.receipt_of(task)).unwrap();
    log.receipts = good;
    let export = Export::of(&log);
    std::fs::write(export.path(&format!("receipts/{task}.json")), receipt).unwrap();
    (export, log, task)
}

#[test]
fn a_receipt_that_does_not_tell_all_is_refused() {
    let (export, log, task) = lie(|log, task| {
        let all = log.issue(task, 3);
        log.receipt(task, &all[..2], 3);
    });
    assert!(
        export
            .refused("a credential left out", task, &log.vkey())
            .contains("does not tell of")
    );
    let (export, log, task) = lie(|log, task| {
        let all = log.issue(task, 3);
        log.receipt(task, &all, 2);
    });
    assert!(
        export
            .refused("a wrong count", task, &log.vkey())
            .contains("the receipt counts 2")
    );
    let (export, log, task) = lie(|log, task| {
        let mut all = log.issue(task, 1);
        all.extend(log.issue(task_id(902), 1));
        log.receipt(task, &all, 2);
    });
    assert!(
        export
            .refused("a stranger's credential", task, &log.vkey())
            .contains("did not issue")
    );
    let (export, log, task) = lie(|log, task| {
        log.whole_task(task, 1);
        log.issue(task, 1);
    });
    export.refused("a credential issued after the receipt", task, &log.vkey());
    let (export, log, task) = lie(|log, task| {
        log.whole_task(task, 1);
        let all: Vec<_> = log.issue(task, 0);
        log.receipt(task, &all, 1);
    });
    assert!(
        export
            .refused("a second receipt", task, &log.vkey())
            .contains("more than one receipt")
    );
}

#[test]
fn beyond_a_hundred_credentials_the_rest_are_counted() {
    let (export, log, task) = lie(|log, task| {
        let all = log.issue(task, 120);
        log.receipt(task, &all[..100], 120);
    });
    export.accepted(task, &log.vkey());
    let (export, log, task) = lie(|log, task| {
        let all = log.issue(task, 120);
        log.receipt(task, &all[..100], 100);
    });
    export.refused("twenty credentials not counted", task, &log.vkey());
}

#[test]
fn an_export_of_a_log_that_grows_meanwhile_holds() {
    let mut log = Synthetic::of(700);
    // The head is that of a moment ago: its last bundle and tile are full by now.
    log.receipts.retain(|(_, index)| *index < 300);
    log.published = 300;
    let export = Export::of(&log);
    assert!(export.path("log/tile/entries/001.p/44").is_file());
    // The tree is larger than its head only for the tiles; the signature says 300.
    export.accepted(task_id(1), &log.vkey());
}

#[test]
fn a_log_that_does_not_hold_is_not_exported() {
    let mut log = Synthetic::of(300);
    let all = log.issue(task_id(900), 2);
    log.receipt(task_id(900), &all[..1], 2);
    let failure = Export::tried(&log).err().unwrap();
    assert_eq!(failure.code, crate::exit::CHECK_FAILED);
    assert!(
        failure.message.contains("does not tell of")
            && failure.message.contains("Nothing was exported")
    );
}

fn export_to(log: &Synthetic, dir: &Path) -> Result<Summary, crate::exit::Failure> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(export_from(log, dir))
}

#[test]
fn an_export_appears_whole_in_a_new_or_empty_directory_only() {
    let log = Synthetic::of(20);
    let keep = tempfile::tempdir().unwrap();
    let (new, empty, full) = (
        keep.path().join("a/new"),
        keep.path().join("empty"),
        keep.path().join("full"),
    );
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("mine"), "").unwrap();
    for dir in [&new, &empty] {
        let summary = export_to(&log, dir)
            .map_err(|failure| failure.message)
            .unwrap();
        assert_eq!((summary.events, summary.receipts), (20, log.receipts.len()));
        assert_eq!(summary.key, log.vkey().to_string());
        assert!(dir.join("verify.py").is_file());
    }
    let refused = export_to(&log, &full).unwrap_err();
    assert!(
        refused.code == crate::exit::USAGE && refused.message.contains("not empty"),
        "{}",
        refused.message
    );
    let mut lying = Synthetic::of(20);
    lying.receipt(task_id(900), &[], 1);
    assert!(export_to(&lying, &keep.path().join("never")).is_err());
    let mut left: Vec<_> = std::fs::read_dir(keep.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["a", "empty", "full"]);
}

/// A log of 700 of which the text of the first 256 is gone, and which says so if `told`.
fn pruned(told: bool) -> Synthetic {
    let mut log = Synthetic::of(690);
    // Of this one, both that it was issued to and its receipt are kept.
    log.whole_task(task_id(800), 2);
    // Of this one, half of what was issued is in the pruned part, its receipt is not.
    let all = log.issue_at(100, task_id(801));
    let more = log.issue(task_id(801), 1);
    log.receipt(task_id(801), &[all, more[0]], 2);
    let mut pruning = event(ephor_proto::stage::Stage::Operate, "pruned");
    if told {
        pruning
            .facts
            .insert("entries_below".to_owned(), "256".to_owned());
    }
    log.push(pruning);
    log.receipts.retain(|(_, index)| *index >= 256);
    log.pruned = 256;
    log
}

#[test]
fn a_log_whose_first_text_was_pruned_holds_by_its_hashes() {
    let log = pruned(true);
    let export = Export::of(&log);
    assert!(!export.path("log/tile/entries/000").exists());
    for task in [800, 801] {
        export.accepted(task_id(task), &log.vkey());
    }
    let read = Log::read(&Dir(export.dir.clone()), &log.vkey()).unwrap();
    assert_eq!((read.pruned(), read.size()), (256, log.leaves.len() as u64));
    // A receipt that its owner kept from before holds, too.
    let (early, index) = Synthetic::of(690).receipts[0];
    assert!(index < 256);
    let mut log = log;
    log.receipts.push((early, index));
    let kept = serde_json::to_vec(&log.receipt_of(early)).unwrap();
    std::fs::write(export.path(&format!("receipts/{early}.json")), kept).unwrap();
    export.accepted(early, &log.vkey());
}

#[test]
fn what_is_missing_without_the_log_saying_so_is_refused() {
    let task = task_id(800);
    let log = pruned(true);
    let export = Export::of(&log);
    // More is missing than the log tells of.
    let bad = export.copy();
    bad.edit("log/pruned", |bytes| *bytes = b"512\n".to_vec());
    let why = bad.refused("more pruned than told", task, &log.vkey());
    assert!(why.contains("512"), "{why}");
    for wrong in ["255\n", "-256\n", "many\n", "1024\n"] {
        bad.edit("log/pruned", |bytes| *bytes = wrong.as_bytes().to_vec());
        bad.refused(wrong, task, &log.vkey());
    }
    // A hash in the place of text is as good as the root says.
    let bad = export.copy();
    bad.edit("log/tile/0/000", |bytes| flip(bytes, 40));
    bad.refused("a changed hash", task, &log.vkey());
    let bad = export.copy();
    std::fs::remove_file(bad.path("log/pruned")).unwrap();
    bad.refused("a missing bundle", task, &log.vkey());
    // Not told at all: not even exported.
    assert!(Export::tried(&pruned(false)).is_err());
    // What is known to be issued must still be told of.
    let mut lying = pruned(true);
    let all = lying.issue(task_id(802), 3);
    lying.receipt(task_id(802), &all[..2], 3);
    assert!(Export::tried(&lying).is_err());
}
