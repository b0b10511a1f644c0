//! What is told of a copy, and what is left of one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use super::*;
use crate::issue::tests::harness::Bench;

async fn made(bench: &Bench) -> admin::BackupState {
    let asked = admin::Backup {
        to: "/elsewhere".to_owned(),
        with_master_key: true,
    };
    std::fs::write(&bench.broker.paths.master_key, [7; 32]).unwrap();
    bench.broker.begin_backup(asked).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let last = bench.broker.last_backup().unwrap();
            if last.state != admin::BackupStage::Running {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    ended.await.expect("a backup ends")
}

#[tokio::test]
async fn a_copy_with_the_master_key_is_told_of_before_there_is_one() {
    let bench = Bench::new().await;
    let done = made(&bench).await;
    assert_eq!(done.state, admin::BackupStage::Done, "{:?}", done.error);
    // It stands in the copy itself, which was made after it.
    let copy = inspect(&Path::new(&done.at).join(DATABASE)).unwrap();
    let events = bench.events();
    let begun = events
        .iter()
        .position(|event| event.event_type == "operate.backup_begun");
    assert!((begun.unwrap() as u64) < copy.head.size);
    assert_eq!(events[begun.unwrap()].facts["master_key"], "true");
    assert_eq!(bench.events_of("operate.backup").len(), 1);
}

#[tokio::test]
async fn where_it_cannot_be_told_there_is_no_copy() {
    let bench = Bench::new().await;
    bench.broker.ledger.faults().lose_next();
    let failed = made(&bench).await;
    assert_eq!(failed.state, admin::BackupStage::Failed);
    let why = failed.error.unwrap();
    assert!(why.contains("was not begun"), "{why}");
    assert!(!bench.broker.paths.backups.exists());
}

#[tokio::test]
async fn what_was_cut_short_or_never_fetched_is_removed_and_nothing_else() {
    let bench = Bench::new().await;
    let backups = bench.broker.paths.backups.clone();
    let lay = |name: &str| {
        std::fs::create_dir_all(backups.join(name)).unwrap();
        std::fs::write(backups.join(name).join(MASTER_KEY), "x").unwrap();
    };
    let (left, kept) = (["1790000000000", "1790000000001.partial"], "of-a-person");
    for at_start in [true, false] {
        left.into_iter().for_each(lay);
        lay(kept);
        if at_start {
            bench.broker.remove_left_backups().await;
        } else {
            let done = made(&bench).await;
            assert_eq!(done.state, admin::BackupStage::Done, "{:?}", done.error);
            assert!(Path::new(&done.at).exists());
        }
        assert!(!left.iter().any(|name| backups.join(name).exists()));
        assert!(backups.join(kept).join(MASTER_KEY).exists());
    }
}

/// A second operator's neither removes what the first one fetches, nor takes its place.
#[tokio::test]
async fn what_another_command_fetches_stays_and_the_next_backup_waits() {
    let bench = Bench::new().await;
    let first = made(&bench).await;
    let copy = PathBuf::from(&first.at);
    let asked = || admin::Backup {
        to: "/elsewhere".to_owned(),
        with_master_key: false,
    };
    let refused = || {
        let refused = bench.broker.begin_backup(asked()).unwrap_err();
        assert_eq!(refused.code, Code::Busy);
        assert!(refused.detail.contains(&first.at), "{}", refused.detail);
        assert_eq!(bench.broker.last_backup().unwrap().at, first.at);
    };
    // Its command was told of it a moment ago.
    refused();
    // And then took its lock.
    let fetching = File::open(&copy).unwrap();
    flock(&fetching, FlockOperation::NonBlockingLockShared).unwrap();
    bench.pass_seconds(3_600);
    refused();
    bench.broker.remove_left_backups().await;
    assert!(copy.join(DATABASE).exists(), "as a broker's start would");
    // It died.
    drop(fetching);
    let second = made(&bench).await;
    assert_eq!(second.state, admin::BackupStage::Done, "{:?}", second.error);
    assert!(second.at != first.at && !copy.exists());
    // Fetched and removed: nobody waits.
    std::fs::remove_dir_all(&second.at).unwrap();
    bench.pass_seconds(1);
    assert_eq!(made(&bench).await.state, admin::BackupStage::Done);
}

#[test]
fn what_could_not_be_removed_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (copy, file) = (dir.path().join("copy"), dir.path().join("file"));
    std::fs::create_dir(&copy).unwrap();
    std::fs::write(&file, "").unwrap();
    assert_eq!(
        removed(&copy, "why".to_owned()),
        "why; the copy was removed"
    );
    assert_eq!(removed(&copy, "why".to_owned()), "why");
    let left = removed(&file, "why".to_owned());
    assert!(left.contains("could not be removed"), "{left}");
}
