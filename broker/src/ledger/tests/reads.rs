//! Reading: rows come back as they were written, ids are found, listings are forgotten in time.

use ephor_proto::event::{Outcome, commit as commit_to};
use ephor_proto::id::{IdQuery, JoinTokenId, TaskId};
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::grant::{GrantEnd, GrantState};
use ephor_proto::state::task::{EndCause, TaskState};
use ephor_proto::time::UnixMillis;

use super::fixture::*;
use crate::keys::state::KeyState;
use crate::ledger::*;

#[test]
fn every_row_comes_back_as_it_was_written() {
    let store = Store::new();
    let ledger = store.open();
    let (credential, first) = issue(3);
    let task = TaskRow {
        state: TaskState::Closed {
            cause: EndCause::Deadline,
            contained: true,
        },
        ended_at: Some(now()),
        closed_at: Some(now()),
        deadline: Some(UnixMillis::MAX),
        start_time: u64::from(u32::MAX) * 9,
        ..task(task_id())
    };
    let grant = GrantRow {
        state: GrantState::Closed(GrantEnd::Narrowed),
        closed_at: Some(now()),
        ..grant(grant_id(), task.id)
    };
    let dead = CredentialRow {
        state: CredentialState::Dead,
        cause: Some(EndCause::Revoked),
        revoked_at: Some(now()),
        evidence: Some("expired".to_owned()),
        overdue: Some(Overdue::of_json("target silent")),
        ..super::fixture::credential(task.id, u32::MAX)
    };
    let host = host();
    let token = JoinTokenRow {
        id: JoinTokenId::from_parts(NOW, [2; 10]),
        version: 1,
        hash: [8; 32],
        host_pattern: "web-*".to_owned(),
        expires_at: now(),
        used_by: Some("web-1".to_owned()),
    };
    let key = |version| KeyRow {
        name: "token".to_owned(),
        version,
        sealed: vec![version as u8; 40],
        public: vec![2; 3],
        chain: Vec::new(),
        state: KeyState::Active,
        created_at: now(),
        since: now(),
        until: None,
    };
    let rows = vec![
        Row::Task(task.clone()),
        Row::Grant(grant.clone()),
        Row::from(dead.clone()),
        Row::Host(host.clone()),
        Row::JoinToken(token.clone()),
        Row::Key(key(2)),
        Row::Key(key(1)),
        Row::Meta("policy".to_owned(), "6b1e".to_owned()),
    ];
    commit(&ledger, batch(rows, vec![])).unwrap();
    let (asked, decided) = (request(&credential), decision(&credential));
    commit(&ledger, first).unwrap();

    let reader = ledger.reader();
    assert_eq!(reader.task(task.id).unwrap(), Some(task));
    assert_eq!(reader.grant(grant.id).unwrap(), Some(grant));
    assert_eq!(reader.credential(dead.id).unwrap(), Some(dead));
    assert_eq!(
        reader.credential(credential.id).unwrap(),
        Some(credential.clone())
    );
    assert_eq!(reader.request(asked.id).unwrap(), Some(asked));
    assert_eq!(reader.decision(decided.id).unwrap(), Some(decided));
    assert_eq!(reader.host("web-1").unwrap(), Some(host.clone()));
    assert_eq!(reader.hosts().unwrap(), [host]);
    assert_eq!(reader.join_token(&[8; 32]).unwrap(), Some(token.clone()));
    assert_eq!(reader.join_token(&[7; 32]).unwrap(), None);
    assert_eq!(reader.join_token_by_id(token.id).unwrap(), Some(token));
    assert_eq!(reader.keys("token").unwrap(), [key(1), key(2)]);
    assert_eq!(reader.meta("policy").unwrap().as_deref(), Some("6b1e"));
    assert_eq!(reader.meta("none").unwrap(), None);
    assert_eq!(reader.open_grants_of(credential.task).unwrap().len(), 1);
    assert_eq!(reader.open_tasks_of("web-1").unwrap().len(), 1);
    assert_eq!(reader.unclosed_tasks().unwrap().len(), 1);
    let closed = TaskFilter {
        state: Some("closed"),
        ..TaskFilter::default()
    };
    assert_eq!(reader.tasks(&closed).unwrap().len(), 1);
    let elsewhere = TaskFilter {
        host: Some("db-1".to_owned()),
        ..TaskFilter::default()
    };
    assert!(reader.tasks(&elsewhere).unwrap().is_empty());
}

#[test]
fn the_expiry_index_gives_what_is_not_dead_soonest_first() {
    let store = Store::new();
    let ledger = store.open();
    let mut ids = Vec::new();
    for (index, state) in [
        CredentialState::Live,
        CredentialState::Dead,
        CredentialState::Contained,
    ]
    .into_iter()
    .enumerate()
    {
        let (credential, mut batch) = issue(index as u32);
        let expires_at = now().saturating_add_millis(1000 * (9 - index as u64));
        batch.rows.pop();
        batch.rows.push(Row::from(CredentialRow {
            state,
            expires_at,
            ..credential.clone()
        }));
        commit(&ledger, batch).unwrap();
        ids.push(credential.id);
    }
    let reader = ledger.reader();
    let mut found = Vec::new();
    reader
        .expiries(|expiry| found.push((expiry.id, expiry.at.millis_since(now()))))
        .unwrap();
    assert_eq!(found, [(ids[0], 9000), (ids[2], 7000)]);
    let soon = |millis| {
        let before = now().saturating_add_millis(millis);
        reader
            .expiring_before(CredentialState::Live, before, 10)
            .unwrap()
            .len()
    };
    assert_eq!((soon(9000), soon(9001)), (0, 1));
    let plan: String = store
        .raw()
        .query_row(
            "EXPLAIN QUERY PLAN SELECT id FROM credential WHERE listed = 1 AND state = 'live' AND expires_at < 5",
            [],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("credential_listed"), "{plan}");
}

#[test]
fn only_the_dead_are_forgotten_and_only_a_day_after_their_expiry() {
    let store = Store::new();
    let ledger = store.open();
    let (dead, mut first) = issue(1);
    first.rows.pop();
    first.rows.push(Row::from(CredentialRow {
        state: CredentialState::Dead,
        ..dead.clone()
    }));
    commit(&ledger, first).unwrap();
    let (live, second) = issue(2);
    commit(&ledger, second).unwrap();
    let day = ephor_proto::limits::LISTING_KEPT_MILLIS;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let prune = |millis| {
        runtime
            .block_on(ledger.prune(dead.expires_at.saturating_add_millis(millis)))
            .unwrap()
    };
    assert_eq!((prune(day), prune(day + 1), prune(day + 1)), (0, 1, 0));
    let reader = ledger.reader();
    let mut listed = Vec::new();
    reader
        .listings(|listing| listed.push(listing.index))
        .unwrap();
    assert_eq!(listed, [2]);
    // What it was is still known; what was signed is not kept.
    let kept = reader.credential(dead.id).unwrap().unwrap();
    assert_eq!((kept.content.as_str(), kept.purpose), ("", dead.purpose));
    let forced = commit(&ledger, batch(vec![Row::Unlist(live.id)], vec![])).unwrap_err();
    assert_eq!(forced, CommitError::Conflict(Key::Credential(live.id)));
}

#[test]
fn short_ids_find_one_and_grow_until_they_are_unique() {
    let store = Store::new();
    let ledger = store.open();
    // Alike in the last 20, 25 and 60 bits.
    let ids: Vec<TaskId> = [
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1, 0x11, 1, 1],
        [0, 0, 1, 1, 1, 1, 2, 1, 1, 1],
        [0, 0, 2, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 2],
    ]
    .into_iter()
    .map(|random| TaskId::from_parts(NOW, random))
    .collect();
    let rows = ids.iter().map(|id| Row::Task(task(*id))).collect();
    commit(&ledger, batch(rows, vec![])).unwrap();
    let reader = ledger.reader();
    for id in &ids {
        let short = reader.short(*id).unwrap();
        let query: IdQuery = short.parse().unwrap();
        assert_eq!(reader.find::<TaskId>(&query).unwrap(), [*id], "{short}");
        let full: IdQuery = id.to_string().parse().unwrap();
        assert_eq!(reader.find::<TaskId>(&full).unwrap(), [*id]);
    }
    assert_eq!(reader.short(ids[4]).unwrap().len(), "t-0000".len());
    let ambiguous: IdQuery = ids[0].short().parse().unwrap();
    assert_eq!(reader.find::<TaskId>(&ambiguous).unwrap().len(), 4);
    let other_kind: IdQuery = ids[0].short().replace("t-", "k-").parse().unwrap();
    assert!(reader.find::<TaskId>(&other_kind).unwrap().is_empty());
}

/// Every id leads to its events by index, until retention takes what leads there.
#[test]
fn an_unknown_id_is_looked_for_in_the_texts_only_where_rows_were_pruned() {
    let store = Store::new();
    let ledger = store.open();
    let (_, mut first) = issue(0);
    let named = task_id().to_string();
    first.events[0]
        .event
        .facts
        .insert("said".to_owned(), format!("of {named}"));
    commit(&ledger, first).unwrap();
    let about = || ledger.long_reader().events_about(&named, 100).unwrap();
    assert_eq!(about().len(), 0);
    for name in ["retention.detail_before", "retention.detail_at"] {
        let row = Row::Meta(name.to_owned(), "1800000000000".to_owned());
        commit(&ledger, batch(vec![row], vec![])).unwrap();
    }
    assert_eq!(about().len(), 1);
}

#[test]
fn events_are_found_by_anything_they_are_about() {
    let store = Store::new();
    let ledger = store.open();
    let (credential, first) = issue(0);
    commit(&ledger, first).unwrap();
    let mut denied = event("denied");
    denied.outcome = Outcome::Denied;
    denied.task = Some(task_id()); // never opened
    denied.decision = Some(decision_id());
    denied.agent = Some("spiffe://test.example/agent/db-1".to_owned());
    commit(&ledger, batch(vec![], vec![denied.clone()])).unwrap();
    let reader = ledger.reader();
    let about = |name: &str| -> Vec<u64> {
        reader
            .events_about(name, 100)
            .unwrap()
            .iter()
            .map(|event| event.index)
            .collect()
    };
    assert_eq!(about(&credential.task.to_string()), [0, 1, 2]);
    assert_eq!(about(&credential.id.to_string()), [0, 1, 2]);
    assert_eq!(about(&credential.request.to_string()), [0, 1, 2]);
    assert_eq!(about("web-1"), [0, 1, 2]);
    assert_eq!(about(&denied.decision.unwrap().to_string()), [3]);
    assert_eq!(about(&denied.id.to_string()), [3]);
    assert_eq!(about("db-1"), [3]);
    assert!(about("nowhere").is_empty() && about(&task_id().to_string()).is_empty());
    assert_eq!(reader.events_about("web-1", 2).unwrap()[0].index, 1);
    assert_eq!(reader.events(2, 10).unwrap().len(), 2);
    assert_eq!(reader.events_of_task(credential.task, 2).unwrap().len(), 2);
}

#[test]
fn personal_values_are_beside_the_log_and_can_be_erased_without_changing_it() {
    let store = Store::new();
    let ledger = store.open();
    let (commitment, value) = commit_to([4; 16], "INC-482 queue stuck");
    let mut told = event("asked");
    told.reason = Some(ephor_proto::event::Text::Committed(commitment.clone()));
    let mut first = batch(vec![], vec![]);
    first.events.push(NewEvent {
        event: told.clone(),
        personal: vec![("reason".to_owned(), value)],
    });
    commit(&ledger, first).unwrap();
    let head = ledger.head();
    let kept = ledger.reader().personal(0).unwrap();
    assert_eq!(kept[0].0, "reason");
    assert!(kept[0].1.opens(&commitment));
    assert!(
        !ledger
            .reader()
            .event(0)
            .unwrap()
            .unwrap()
            .json
            .contains("INC-482")
    );
    assert_eq!(ledger.reader().event_id(0).unwrap(), Some(told.id));
    commit(&ledger, batch(vec![Row::ErasePersonal(told.id)], vec![])).unwrap();
    assert!(ledger.reader().personal(0).unwrap().is_empty());
    assert_eq!(ledger.head(), head);
}

#[test]
fn a_reader_is_a_snapshot_and_its_connection_comes_back() {
    let store = Store::new();
    let ledger = store.open();
    let (credential, first) = issue(0);
    commit(&ledger, first).unwrap();
    let before = ledger.reader();
    before.head().unwrap();
    commit(
        &ledger,
        batch(vec![Row::from(revoked(&credential))], vec![]),
    )
    .unwrap();
    assert_eq!(
        before.credential(credential.id).unwrap().unwrap().state,
        CredentialState::Live
    );
    let after = ledger.reader().credential(credential.id).unwrap().unwrap();
    assert_eq!(after.state, CredentialState::Revoking);
    for _ in 0..3 * crate::limits::LEDGER_READERS {
        ledger.reader().head().unwrap();
    }
    let held: Vec<Reader> = (1..crate::limits::LEDGER_READERS)
        .map(|_| ledger.reader())
        .collect();
    for reader in &held {
        reader.head().unwrap();
    }
    drop(before);
    ledger.reader().head().unwrap();
}

#[test]
fn the_write_ahead_log_is_copied_back_while_commits_go_on() {
    let store = Store::new();
    let ledger = store.open();
    let copied = || {
        let sql = "PRAGMA wal_checkpoint(NOOP)";
        store
            .raw()
            .query_row(sql, [], |row| row.get::<_, i64>(2))
            .unwrap()
    };
    // How many commits share a group, and so how long the log gets, is for the machine to say.
    for round in 0..40 {
        let tickets: Vec<_> = (0..250)
            .map(|index| ledger.submit(issue(round * 250 + index).1).unwrap())
            .collect();
        for ticket in tickets {
            ticket.wait().unwrap();
        }
        if copied() > 0 {
            return;
        }
    }
    panic!("nothing was copied back");
}

/// Two tasks by turns; then the oldest, one in the middle and the newest of one of them cannot be read.
#[test]
fn the_credentials_of_a_task_are_found_after_any_of_them_was_set_aside() {
    let store = Store::new();
    let mut ledger = store.open();
    let tasks = [task_id(), task_id()];
    let opened = tasks.map(|id| Row::Task(task(id))).to_vec();
    commit(&ledger, batch(opened, vec![event("opened")])).unwrap();
    let mut rows = Vec::new();
    let add = |ledger: &Ledger, rows: &mut Vec<CredentialRow>, index: u32| {
        let row = credential(tasks[index as usize % 2], index);
        let recorded = batch(vec![Row::from(row.clone())], vec![event("recorded")]);
        commit(ledger, recorded).unwrap();
        rows.push(row);
    };
    for index in 0..10 {
        add(&ledger, &mut rows, index);
    }
    let found = |ledger: &Ledger, n: usize| -> Vec<u32> {
        let held = ledger.reader().credentials_of(tasks[n]).unwrap();
        let mut found: Vec<u32> = held.iter().map(|row| row.status_index).collect();
        found.sort_unstable();
        found
    };
    assert_eq!(found(&ledger, 0), [0, 2, 4, 6, 8]);
    for (gone, left) in [
        (4, &[0, 2, 6, 8][..]),
        (0, &[2, 6, 8]),
        (8, &[2, 6]),
        (2, &[6]),
        (6, &[]),
    ] {
        let sql = "UPDATE credential SET state = 'undead' WHERE id = ?1";
        let id = rows[gone].id.to_bytes();
        assert_eq!(store.raw().execute(sql, [id]).unwrap(), 1);
        ledger.shutdown();
        ledger = store.open();
        assert_eq!(ledger.set_aside_at_open(), 1);
        assert_eq!(found(&ledger, 0), left);
        assert_eq!(found(&ledger, 1), [1, 3, 5, 7, 9]);
    }
    for index in 10..14 {
        add(&ledger, &mut rows, index);
    }
    assert_eq!(found(&ledger, 0), [10, 12]);
    assert_eq!(found(&ledger, 1), [1, 3, 5, 7, 9, 11, 13]);
}
