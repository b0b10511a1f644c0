#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use ephor_proto::id::TaskId;
use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule::{Process, TaskKey};
use ephor_proto::time::UnixMillis;

use super::*;

fn opened(number: u8) -> TaskOpened {
    let process = Process {
        pid: u32::from(number),
        start_time: 7,
    };
    TaskOpened {
        id: TaskId::from_parts(u64::from(number), [number; 10]),
        key: TaskKey::Peer(process),
        uid: 1000,
        boot_id: "0a".to_owned(),
        opened_at: UnixMillis::from_millis(5),
        processes: vec![ProcessHandle {
            process,
            exe: Some(ExeHandle { dev: 1, ino: 2 }),
        }],
        unit: None,
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    (directory, path)
}

async fn write(journal: &Journal, record: Record) {
    journal.append(record).unwrap().durable().await.unwrap();
}

fn unfinished(path: &Path) -> Vec<Unfinished> {
    Journal::open(path).unwrap().1
}

#[tokio::test]
async fn what_is_open_or_ending_is_found_again() {
    let (_directory, path) = place();
    let (journal, nothing) = Journal::open(&path).unwrap();
    assert!(nothing.is_empty());
    for number in 1..=3 {
        write(&journal, Record::TaskOpened(opened(number))).await;
    }
    write(
        &journal,
        Record::TaskEnding {
            id: opened(2).id,
            cause: EndCause::Exited,
        },
    )
    .await;
    write(
        &journal,
        Record::TaskEnding {
            id: opened(2).id,
            cause: EndCause::Revoked,
        },
    )
    .await;
    write(&journal, Record::TaskClosed { id: opened(3).id }).await;
    drop(journal);
    let expected = [
        Unfinished {
            opened: opened(1),
            ended: None,
        },
        Unfinished {
            opened: opened(2),
            ended: Some(EndCause::Exited),
        },
    ];
    // The second time from the compacted file.
    assert_eq!(unfinished(&path), expected);
    assert_eq!(unfinished(&path), expected);
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn a_file_cut_anywhere_keeps_every_whole_record() {
    let (_directory, path) = place();
    let (journal, _) = Journal::open(&path).unwrap();
    let mut ends = vec![std::fs::metadata(&path).unwrap().len()];
    for number in 1..=3 {
        write(&journal, Record::TaskOpened(opened(number))).await;
        ends.push(std::fs::metadata(&path).unwrap().len());
    }
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole.len() as u64, ends[3]);
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let records = ends
            .iter()
            .skip(1)
            .filter(|end| **end <= cut as u64)
            .count();
        assert_eq!(unfinished(&path).len(), records, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_damaged_record_ends_the_file_and_is_never_believed() {
    let (_directory, path) = place();
    let (journal, _) = Journal::open(&path).unwrap();
    let head = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
    write(&journal, Record::TaskOpened(opened(1))).await;
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for place in head..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x40;
        std::fs::write(&path, &damaged).unwrap();
        assert!(unfinished(&path).is_empty(), "byte {place}");
        // What comes after is written to a whole file.
        let (journal, _) = Journal::open(&path).unwrap();
        write(&journal, Record::TaskOpened(opened(2))).await;
        drop(journal);
        assert_eq!(unfinished(&path).len(), 1, "byte {place}");
    }
}

#[test]
fn a_newer_version_and_another_file_are_refused_and_left_alone() {
    let (_directory, path) = place();
    for (content, newer) in [
        ("ephor-agent-journal 2\nwhatever", true),
        ("SQLite format 3", false),
        ("ephor-agent-journal x\n", false),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert_eq!(
            matches!(error, OpenError::Newer { found: 2, .. }),
            newer,
            "{error}"
        );
        assert_eq!(matches!(error, OpenError::Foreign(_)), !newer, "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
}

#[tokio::test]
async fn a_record_that_no_reader_would_take_is_refused_alone() {
    let (_directory, path) = place();
    let (journal, _) = Journal::open(&path).unwrap();
    let large = TaskOpened {
        boot_id: "x".repeat(crate::limits::MAX_JOURNAL_RECORD_BYTES),
        ..opened(1)
    };
    let large = journal.append(Record::TaskOpened(large)).unwrap();
    let small = journal.append(Record::TaskOpened(opened(2))).unwrap();
    assert_eq!(large.durable().await, Err(JournalError::Refused));
    assert_eq!(small.durable().await, Ok(()));
    drop(journal);
    assert_eq!(
        unfinished(&path),
        [Unfinished {
            opened: opened(2),
            ended: None
        }]
    );
}

#[tokio::test]
async fn a_disk_that_refuses_hands_nothing_over() {
    let (_directory, path) = place();
    let (mut writer, _) = Writer::open(&path).unwrap();
    // Read-only: every write fails, and so does cutting off what it left.
    writer.replace_file(std::fs::File::open(&path).unwrap());
    let (jobs, queue) = sync_channel(8);
    let thread = std::thread::spawn(move || writer.run(&queue));
    let journal = Journal { jobs };
    let first = journal.append(Record::TaskOpened(opened(1))).unwrap();
    assert_eq!(first.durable().await, Err(JournalError::Refused));
    assert!(first.has_failed());
    let second = journal.append(Record::TaskOpened(opened(2))).unwrap();
    assert_eq!(second.durable().await, Err(JournalError::Broken));
    drop(journal);
    thread.join().unwrap();
    assert!(unfinished(&path).is_empty());
}

#[tokio::test]
async fn a_large_file_of_ended_tasks_shrinks() {
    let (_directory, path) = place();
    let (mut writer, _) = Writer::open(&path).unwrap();
    writer.compact_at(4096);
    let (jobs, queue) = sync_channel(8);
    let thread = std::thread::spawn(move || writer.run(&queue));
    let journal = Journal { jobs };
    write(&journal, Record::TaskOpened(opened(1))).await;
    let mut largest = 0;
    for round in 0..200_u64 {
        let task = TaskOpened {
            id: TaskId::from_parts(round + 1000, [9; 10]),
            ..opened(2)
        };
        let id = task.id;
        write(&journal, Record::TaskOpened(task)).await;
        write(&journal, Record::TaskClosed { id }).await;
        largest = largest.max(std::fs::metadata(&path).unwrap().len());
    }
    drop(journal);
    thread.join().unwrap();
    assert!(largest < 3 * 4096, "{largest}");
    assert_eq!(
        unfinished(&path),
        [Unfinished {
            opened: opened(1),
            ended: None
        }]
    );
}
