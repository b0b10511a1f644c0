//! What is opened, what is refused and why, and what is set aside.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

use super::fixture::*;
use crate::ledger::*;

fn refusal(store: &Store) -> OpenError {
    store.try_open(false).err().expect("it opened")
}

#[test]
fn a_reopened_store_has_everything_and_goes_on() {
    let store = Store::new();
    let ledger = store.open();
    let (credential, first) = issue(0);
    commit(&ledger, first).unwrap();
    let head = ledger.head();
    ledger.shutdown();

    // Dropped without a shutdown, too.
    drop(store.open());

    let ledger = store.open();
    assert_eq!(ledger.head(), head);
    assert_eq!(ledger.installation().epoch, 1);
    assert_eq!(ledger.installation().origin, "ephor.test/log");
    assert_eq!(ledger.clock_high_water().as_millis(), NOW);
    assert_eq!(
        ledger.reader().credential(credential.id).unwrap(),
        Some(credential)
    );
    assert_eq!(commit(&ledger, issue(1).1).unwrap().first_leaf, 3);
}

#[test]
fn the_clocks_high_water_mark_never_falls() {
    let store = Store::new();
    let ledger = store.open();
    commit(&ledger, issue(0).1).unwrap();
    store.clock.0.store(NOW - 60_000, Ordering::SeqCst);
    commit(&ledger, issue(1).1).unwrap();
    assert_eq!(ledger.clock_high_water().as_millis(), NOW);
    ledger.shutdown();
    assert_eq!(store.open().clock_high_water().as_millis(), NOW);
}

#[test]
fn there_must_be_a_store_and_only_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.db");
    let clock = Store::new().clock;
    let options = Options {
        take_over: false,
        reserve_path: dir.path().join("reserve"),
        clock,
    };
    assert!(matches!(
        Ledger::open(&path, options),
        Err(OpenError::Missing(_))
    ));
    let store = Store::new();
    assert!(matches!(
        Ledger::create(&store.path(), "i", "o", "t"),
        Err(OpenError::Exists(_))
    ));
    store.open();
}

#[test]
fn a_second_opener_is_refused_until_it_takes_over_and_then_the_first_is_fenced() {
    let store = Store::new();
    let first = store.open();
    commit(&first, issue(0).1).unwrap();
    match refusal(&store) {
        OpenError::Held { pid, .. } => assert_eq!(pid, std::process::id()),
        other => panic!("{other}"),
    }
    // Refusing changed nothing for the first.
    commit(&first, issue(1).1).unwrap();

    let second = store.try_open(true).unwrap();
    assert_eq!(second.installation().epoch, 2);
    let lost = CommitError::Refused(Reason::EpochLost);
    assert_eq!(commit(&first, issue(2).1).unwrap_err(), lost);
    assert_eq!(
        commit(&first, revoke(vec![], vec![event("late")])).unwrap_err(),
        lost
    );
    assert_eq!(first.health().stopped, Some(Reason::EpochLost));
    assert_eq!(commit(&second, issue(3).1).unwrap().first_leaf, 6);
    // The first one's shutdown must not give away what the second holds.
    first.shutdown();
    assert!(matches!(refusal(&store), OpenError::Held { .. }));
    commit(&second, issue(4).1).unwrap();
}

#[test]
fn a_newer_schema_and_a_foreign_file_are_refused_untouched() {
    let store = Store::new();
    store.raw().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(
        refusal(&store),
        OpenError::Newer { found: 99, .. }
    ));

    let foreign = Store::new();
    foreign
        .raw()
        .pragma_update(None, "application_id", 7)
        .unwrap();
    assert!(matches!(refusal(&foreign), OpenError::Foreign(_)));

    let empty = Store::new();
    std::fs::remove_file(empty.path()).unwrap();
    std::fs::File::create(empty.path()).unwrap();
    assert!(matches!(refusal(&empty), OpenError::Foreign(_)));
    assert_eq!(std::fs::metadata(empty.path()).unwrap().len(), 0);
}

#[test]
fn a_damaged_file_is_refused_with_a_reason() {
    let store = Store::new();
    let ledger = store.open();
    for index in 0..50 {
        commit(&ledger, issue(index).1).unwrap();
    }
    ledger.shutdown();
    let whole = std::fs::read(store.path()).unwrap();
    let damaged = |bytes: &[u8]| {
        std::fs::write(store.path(), bytes).unwrap();
        match refusal(&store) {
            OpenError::Damaged { reason, .. } => assert!(!reason.is_empty()),
            other => panic!("{other}"),
        }
    };
    // Torn in the middle.
    damaged(&whole[..whole.len() / 2]);
    // A page overwritten.
    let mut overwritten = whole.clone();
    overwritten[5 * 4096..6 * 4096].fill(0x55);
    damaged(&overwritten);
    // No SQLite at all.
    damaged(&[0x55; 8192]);
    std::fs::write(store.path(), &whole).unwrap();
    assert_eq!(store.open().head().size, 150);
}

#[test]
fn attack_121_a_log_that_is_not_its_checkpoint_is_refused() {
    for tampering in [
        "UPDATE checkpoint SET root = zeroblob(32) WHERE size = 6",
        "DELETE FROM leaf WHERE idx = 5",
        "DELETE FROM hash WHERE size = 6",
        "UPDATE hash SET hashes = zeroblob(length(hashes)) WHERE size = 6",
        "DELETE FROM checkpoint",
    ] {
        let store = Store::new();
        let ledger = store.open();
        commit(&ledger, issue(0).1).unwrap();
        commit(&ledger, issue(1).1).unwrap();
        ledger.shutdown();
        store.raw().execute_batch(tampering).unwrap();
        assert!(
            matches!(refusal(&store), OpenError::Damaged { .. }),
            "{tampering}"
        );
    }
}

/// What is written to a file without a name is lost with the process: nothing is recorded any more, and
/// so nothing is issued, also when another file has its name.
#[test]
fn attack_121_a_store_that_was_removed_while_it_is_open_takes_nothing_more() {
    for replaced in [false, true] {
        let store = Store::new();
        let ledger = store.open();
        commit(&ledger, issue(0).1).unwrap();
        let copy = store.dir.path().join("copy.db");
        std::fs::copy(store.path(), &copy).unwrap();
        std::fs::remove_file(store.path()).unwrap();
        if replaced {
            std::fs::rename(&copy, store.path()).unwrap();
        }
        for batch in [issue(1).1, revoke(vec![], vec![event("late")])] {
            match commit(&ledger, batch).unwrap_err() {
                CommitError::Refused(Reason::Damaged(why)) => {
                    assert!(why.contains("removed or replaced"), "{why}");
                }
                other => panic!("{other}"),
            }
        }
        assert_eq!(ledger.head().size, 3);
    }
}

#[test]
fn a_row_that_cannot_be_read_is_set_aside_and_stays_listed() {
    let store = Store::new();
    let ledger = store.open();
    let (bad, first) = issue(7);
    let (good, second) = issue(8);
    commit(&ledger, first).unwrap();
    commit(&ledger, second).unwrap();
    let sql = format!(
        "UPDATE credential SET state = 'undead' WHERE hex(id) = '{}'",
        hex(bad.id.to_bytes())
    );
    assert_eq!(store.raw().execute(&sql, []).unwrap(), 1);
    // Met while running: the others are still listed, and it itself is an error, not "absent".
    let listed = ledger
        .reader()
        .credentials(&CredentialFilter::default())
        .unwrap();
    assert_eq!(listed, std::slice::from_ref(&good));
    assert!(matches!(
        ledger.reader().credential(bad.id),
        Err(ReadError::Unreadable { .. })
    ));
    ledger.shutdown();

    let ledger = store.open();
    let reader = ledger.reader();
    assert_eq!(reader.quarantined_count().unwrap(), 1);
    assert_eq!(ledger.set_aside_at_open(), 1);
    let aside = reader.quarantined(10).unwrap().remove(0);
    assert_eq!(aside.id("id"), Some(bad.id.to_bytes()));
    assert_eq!((aside.id("state"), aside.id("nothing")), (None, None));
    assert_eq!(aside.kind, "credential");
    assert!(
        aside.reason.contains("state") && aside.reason.contains("undead"),
        "{}",
        aside.reason
    );
    assert!(aside.content.contains("orders.toml:12"));
    assert_eq!(reader.credential(bad.id).unwrap(), None);
    assert_eq!(reader.credential(good.id).unwrap(), Some(good));
    let mut listings = Vec::new();
    reader
        .listings(|listing| listings.push((listing.index, listing.revoked)))
        .unwrap();
    listings.sort_unstable();
    assert_eq!(listings, [(7, true), (8, false)]);
    drop(reader);
    ledger.shutdown();
    // Set aside once.
    let ledger = store.open();
    assert_eq!(ledger.reader().quarantined_count().unwrap(), 1);
    assert_eq!(ledger.set_aside_at_open(), 0);
}

/// Several of one task, then the row that is made anew from the log: nothing of the task is lost.
#[test]
fn what_only_a_set_aside_credential_led_to_is_still_found() {
    let store = Store::new();
    let ledger = store.open();
    let (first, opening) = issue(0);
    commit(&ledger, opening).unwrap();
    let task = first.task;
    let mut rows = vec![first];
    for index in 1..3 {
        let (other, mut more) = issue(index);
        more.rows.retain(|row| !matches!(row, Row::Task(_)));
        for row in &mut more.rows {
            match row {
                Row::Credential(row) => row.task = task,
                Row::Grant(row) => row.task = task,
                _ => {}
            }
        }
        for event in &mut more.events {
            event.event.task = Some(task);
        }
        commit(&ledger, more).unwrap();
        rows.push(CredentialRow { task, ..other });
    }
    let found = |ledger: &Ledger| {
        let reader = ledger.reader();
        let events = reader.events_of_task(task, 100).unwrap();
        let indices: Vec<_> = events.iter().map(|event| event.index).collect();
        (indices, reader.open_grants_of(task).unwrap().len())
    };
    let nine: Vec<u64> = (0..9).collect();
    assert_eq!(found(&ledger), (nine.clone(), 3));
    let sql = "UPDATE credential SET state = 'undead'";
    assert_eq!(store.raw().execute(sql, []).unwrap(), 3);
    ledger.shutdown();
    let ledger = store.open();
    assert_eq!(ledger.set_aside_at_open(), 3);
    assert_eq!(found(&ledger), (nine.clone(), 3));
    // As at the end of the task: rows made anew, with one event for each and no request.
    let mut events = vec![
        event("listed"),
        event("listed"),
        event("listed"),
        event("receipt"),
    ];
    for event in &mut events {
        event.task = Some(task);
    }
    let anew = rows.into_iter().map(Row::from).collect();
    commit(&ledger, batch(anew, events)).unwrap();
    assert_eq!(found(&ledger).0, (0..13).collect::<Vec<u64>>());
}

/// Its hash is there, so the tree is whole; only retention may leave it at that.
#[test]
fn a_copy_without_an_event_that_was_not_pruned_is_damaged() {
    let store = Store::new();
    let ledger = store.open();
    commit(&ledger, issue(0).1).unwrap();
    commit(&ledger, issue(1).1).unwrap();
    let copy = store.dir.path().join("copy.db");
    ledger.copy_to(&copy).unwrap();
    assert_eq!(inspect(&copy).unwrap().pruned, 0);
    let copied = rusqlite::Connection::open(&copy).unwrap();
    assert_eq!(
        copied
            .execute("DELETE FROM leaf WHERE idx = 1", [])
            .unwrap(),
        1
    );
    let refused = inspect(&copy).unwrap_err().to_string();
    assert!(refused.contains("event 1 is missing"), "{refused}");
    let pruned = |below: u64| {
        let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES ('retention.log_below', ?1)";
        copied.execute(sql, [below.to_string()]).unwrap();
        inspect(&copy).map(|found| found.pruned)
    };
    assert!(pruned(1).is_err());
    assert_eq!(pruned(2).unwrap(), 1);
}

#[test]
fn a_damaged_reserve_is_kept_beside_and_does_not_stop_the_start() {
    let store = Store::new();
    store.open().shutdown();
    let path = store.dir.path().join("reserve");
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"x", 2)
        .unwrap();
    let ledger = store.open();
    assert!(store.dir.path().join("reserve.damaged").exists());
    commit(&ledger, issue(0).1).unwrap();
}

fn hex(bytes: [u8; 16]) -> String {
    ephor_crypto::digest::hex(&bytes).to_uppercase()
}

/// The flags of `.cargo/config.toml`, of which SQLite itself only tells this one.
#[test]
fn sqlite_is_compiled_as_this_workspace_asks() {
    let store = Store::new();
    let raw = store.raw();
    let mut statement = raw.prepare("PRAGMA compile_options").unwrap();
    let options = statement.query_map([], |row| row.get::<_, String>(0));
    let options: Vec<String> = options.unwrap().map(Result::unwrap).collect();
    assert!(
        options.iter().any(|option| option == "DEFAULT_MEMSTATUS=0"),
        "built before its flags were set? cargo clean -p libsqlite3-sys: {options:?}"
    );
}
