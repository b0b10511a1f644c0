//! Rotation of a whole broker in virtual time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use ephor_proto::log::{SignedNote, VerifierKey};

use super::*;
use crate::issue::tests::harness::Bench;

const LEAD: u64 = limits::KEY_LEAD_SECONDS * 1000;

fn asked(now: bool, force: bool) -> admin::Rotate {
    admin::Rotate {
        now,
        force,
        reason: "a test".to_owned(),
    }
}

fn states(bench: &Bench, kind: KeyKind) -> Vec<(u32, KeyState)> {
    let keys = bench.broker.keys.load();
    let mut of_kind: Vec<_> = keys
        .held()
        .iter()
        .filter(|key| key.kind == kind)
        .map(|key| (key.version, key.state))
        .collect();
    of_kind.sort_unstable();
    of_kind
}

fn kid(token: &str) -> String {
    use base64::Engine;
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(header)
        .unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

fn published(bench: &Bench) -> Vec<String> {
    let keys = bench.broker.keys.load();
    keys.token_keys()
        .iter()
        .map(|(kid, _)| kid.clone())
        .collect()
}

/// What a row of the store still holds of a private key.
fn sealed(bench: &Bench, kind: KeyKind, version: u32) -> usize {
    let rows = stored_keys(&bench.broker.ledger).unwrap();
    of(&rows, kind, version).unwrap().sealed.len()
}

#[tokio::test]
async fn a_token_key_is_published_used_retired_and_gone_on_time() {
    use KeyState::{Active, Destroyed, Retired};
    let bench = Bench::new().await;
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 0);
    bench
        .broker
        .rotate_key(KeyKind::Token, &asked(false, false))
        .await
        .unwrap();
    let (_, _, before) = bench.token().await;
    assert_eq!(published(&bench).len(), 2);
    assert_eq!(kid(&before), published(&bench)[0], "published, not used");

    // Its whole lead, and not a moment less.
    bench.clock.advance_millis(LEAD - 1_000);
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 0);
    let early = bench
        .broker
        .rotate_key(KeyKind::Token, &asked(true, false))
        .await;
    let early = early.unwrap_err();
    assert_eq!(early.code, Code::Conflict);
    assert!(early.detail.contains("--force"), "{}", early.detail);
    let (_, _, old) = bench.token().await;
    bench.clock.advance_millis(2_000);
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 1);
    assert_eq!(states(&bench, KeyKind::Token), [(1, Retired), (2, Active)]);
    assert_eq!(
        sealed(&bench, KeyKind::Token, 1),
        0,
        "wiped with its last signature"
    );
    let (_, id, new) = bench.token().await;
    assert_eq!(kid(&new), published(&bench)[1]);
    assert!(bench.is_active(&old) && bench.is_active(&new));

    // The list follows the key at once.
    let list = bench.row(id).status_list;
    let built = bench
        .broker
        .lists
        .current(list, bench.broker.clock.wall())
        .await
        .unwrap();
    assert_eq!(kid(std::str::from_utf8(&built.token).unwrap()), kid(&new));

    bench.clock.advance_millis(limits::KEY_SETTLE_MILLIS);
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 1);
    let until = bench.broker.list_keys().unwrap();
    let until = until
        .iter()
        .find(|key| key.kind == "token" && key.version == 1);
    let until = until.unwrap().until.unwrap();
    assert_eq!(
        until,
        bench
            .row(id)
            .expires_at
            .saturating_add_millis(limits::KEY_LEEWAY_MILLIS)
    );
    let left = until.millis_since(bench.broker.clock.wall());
    bench.clock.advance_millis(left - 1);
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 0);
    assert_eq!(published(&bench).len(), 2);
    bench.clock.advance_millis(1);
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 1);
    assert_eq!(
        states(&bench, KeyKind::Token),
        [(1, Destroyed), (2, Active)]
    );
    assert_eq!(published(&bench), [kid(&new)]);

    let told: Vec<String> = bench
        .events()
        .into_iter()
        .map(|event| event.event_type)
        .collect();
    let told: Vec<&str> = told
        .iter()
        .filter_map(|event| event.strip_prefix("operate.key_"))
        .collect();
    assert_eq!(
        told,
        ["prepared", "activated", "retired", "settled", "destroyed"]
    );

    // What is in force is what is stored.
    let bench = bench.reopened().await;
    assert_eq!(
        states(&bench, KeyKind::Token),
        [(1, Destroyed), (2, Active)]
    );
    assert_eq!(published(&bench), [kid(&new)]);
}

#[tokio::test]
async fn the_schedule_rotates_by_itself_and_a_ca_is_kept_for_its_lists() {
    use KeyState::{Active, Prepared, Retired};
    let bench = Bench::new().await;
    let first = bench.broker.keys.load().ca().sha256();
    let sequence = bench.broker.keys.load().bundle().sequence;
    bench
        .clock
        .advance_millis((limits::CA_ISSUING_SECONDS - limits::CA_LEAD_SECONDS) * 1000);
    // The token key is due since long, and gets its whole lead all the same.
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 2);
    assert_eq!(states(&bench, KeyKind::Ca), [(1, Active), (2, Prepared)]);
    assert_eq!(states(&bench, KeyKind::Token), [(1, Active), (2, Prepared)]);
    let keys = bench.broker.keys.load_full();
    assert_eq!((keys.ca().sha256(), keys.trusted().len()), (first, 2));
    assert_eq!(
        bench.broker.trust.current().len(),
        2,
        "trusted before it issues"
    );
    assert!(keys.bundle().roots.len() == 2 && keys.bundle().sequence > sequence);
    assert!(keys.ca_chain().is_empty(), "a root has nothing above it");

    bench.clock.advance_millis(limits::CA_LEAD_SECONDS * 1000);
    assert_eq!(bench.broker.sweep_keys().await.unwrap(), 2);
    let keys = bench.broker.keys.load_full();
    assert_ne!(keys.ca().sha256(), first);
    assert_eq!(states(&bench, KeyKind::Ca), [(1, Retired), (2, Active)]);
    assert_ne!(
        sealed(&bench, KeyKind::Ca, 1),
        0,
        "still signs its revocation lists"
    );
    assert_eq!(keys.cas()[0].ca.sha256(), first);

    // Nobody waits for the leaves of a CA that others may have.
    bench
        .broker
        .distrust_keys(KeyKind::Ca, "stolen")
        .await
        .unwrap();
    let trusted = bench.broker.trust.current();
    assert_eq!(trusted.len(), 1);
    assert_ne!(trusted[0].sha256(), first);
    assert_eq!(sealed(&bench, KeyKind::Ca, 1), 0);
    let none = bench.broker.distrust_keys(KeyKind::Ca, "again").await;
    assert_eq!(none.unwrap_err().code, Code::Conflict);
}

#[tokio::test]
async fn what_was_stored_and_never_came_into_force_does_so_when_it_is_asked_again() {
    let bench = Bench::new().await;
    let forced = asked(true, true);
    bench.broker.rotate_key(KeyKind::Ca, &forced).await.unwrap();
    // The commit of a distrust, and nothing after it.
    let rows = stored_keys(&bench.broker.ledger).unwrap();
    let gone = moved(
        of(&rows, KeyKind::Ca, 1).unwrap(),
        KeyKind::Ca,
        KeyState::Destroyed,
        after_all(&rows, bench.broker.clock.wall()),
    );
    let batch = Batch {
        name: "test.distrust",
        lane: Lane::Normal,
        require: Vec::new(),
        rows: vec![Row::Key(gone)],
        events: Vec::new(),
    };
    bench.broker.ledger.submit(batch).unwrap().await.unwrap();
    assert_eq!(bench.broker.trust.current().len(), 2);
    bench.broker.distrust_keys(KeyKind::Ca, "").await.unwrap();
    assert_eq!(bench.broker.trust.current().len(), 1);
}

#[tokio::test]
async fn what_stops_issuing_stops_no_distrust() {
    let bench = Bench::new().await;
    let forced = asked(true, true);
    for kind in [KeyKind::Ca, KeyKind::Token] {
        bench.broker.rotate_key(kind, &forced).await.unwrap();
    }
    bench.clock.step_wall_millis(400 * 86_400_000);
    let again = bench.broker.rotate_key(KeyKind::Ca, &forced).await;
    assert_eq!(again.unwrap_err().code, Code::ClockStep);
    bench.broker.distrust_keys(KeyKind::Ca, "").await.unwrap();
    assert_eq!(bench.broker.trust.current().len(), 1);
    // But never on an old copy, which is nobody's to change.
    bench.fall_behind().await;
    let behind = bench.broker.distrust_keys(KeyKind::Token, "").await;
    assert_eq!(behind.unwrap_err().code, Code::LogRewound);
    assert_eq!(published(&bench).len(), 2);
}

#[tokio::test]
async fn checkpoints_are_signed_by_both_log_keys_while_one_follows_the_other() {
    let bench = Bench::new().await;
    let verify = |public: &[u8; 32], message: &[u8], signature: &[u8]| {
        ephor_crypto::ed25519::verify(public, message, signature)
    };
    let old: VerifierKey = bench.broker.keys.load().log_vkey().parse().unwrap();
    let seen = bench.broker.newest_checkpoint().unwrap();
    let forced = asked(true, true);
    bench
        .broker
        .rotate_key(KeyKind::Log, &forced)
        .await
        .unwrap();
    let new: VerifierKey = bench.broker.keys.load().log_vkey().parse().unwrap();
    assert_ne!(old, new);
    let note: SignedNote = bench.broker.newest_checkpoint().unwrap().parse().unwrap();
    assert_eq!(note.signatures.len(), 2);
    for key in [&old, &new] {
        note.verify(key, verify).unwrap();
    }
    // A receipt is good by either, too; the harness checks by the newest.
    let (task, _, _) = bench.token().await;
    bench.verified(&bench.complete(task, "exited").await.unwrap().receipt);

    bench
        .clock
        .advance_millis(limits::KEY_SETTLE_MILLIS + 1_000);
    bench.broker.sweep_keys().await.unwrap();
    bench
        .clock
        .advance_millis(limits::LOG_OVERLAP_SECONDS * 1000);
    bench.broker.sweep_keys().await.unwrap();
    let note: SignedNote = bench.broker.newest_checkpoint().unwrap().parse().unwrap();
    assert!(note.verify(&old, verify).is_err() && note.verify(&new, verify).is_ok());
    // An agent that was off all the time shows a note by the old key: still a note of this log.
    bench
        .broker
        .compare_with_seen("web-1", &seen)
        .await
        .unwrap();
    assert!(bench.broker.may_issue().is_ok());
}

#[tokio::test]
async fn every_log_key_that_is_trusted_signs() {
    let bench = Bench::new().await;
    let key = || -> VerifierKey { bench.broker.keys.load().log_vkey().parse().unwrap() };
    let mut keys = vec![key()];
    for _ in 1..limits::KEY_VERSIONS {
        let forced = asked(true, true);
        bench
            .broker
            .rotate_key(KeyKind::Log, &forced)
            .await
            .unwrap();
        keys.push(key());
    }
    let note: SignedNote = bench.broker.newest_checkpoint().unwrap().parse().unwrap();
    for (version, key) in (1..).zip(&keys) {
        let verify = |public: &[u8; 32], message: &[u8], signature: &[u8]| {
            ephor_crypto::ed25519::verify(public, message, signature)
        };
        assert!(note.verify(key, verify).is_ok(), "version {version}");
    }
}

#[tokio::test]
async fn versions_are_bounded_and_a_doubted_clock_rotates_nothing() {
    let bench = Bench::new().await;
    for _ in 1..limits::KEY_VERSIONS {
        bench
            .broker
            .rotate_key(KeyKind::Token, &asked(true, true))
            .await
            .unwrap();
    }
    let full = bench
        .broker
        .rotate_key(KeyKind::Token, &asked(false, false))
        .await;
    let full = full.unwrap_err();
    assert!(full.detail.contains("--distrust"), "{}", full.detail);
    bench
        .broker
        .distrust_keys(KeyKind::Token, "")
        .await
        .unwrap();
    assert_eq!(published(&bench).len(), 1);
    bench.clock.step_wall_millis(400 * 86_400_000);
    assert_eq!(
        bench.broker.sweep_keys().await.unwrap_err().code,
        Code::ClockStep
    );
    assert_eq!(published(&bench).len(), 1);
}

#[test]
fn the_file_of_cas_is_whole_and_written_only_when_it_changes() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    write_if_other(&path, "a").unwrap();
    let first = std::fs::metadata(&path).unwrap();
    write_if_other(&path, "a").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), first.ino());
    write_if_other(&path, "b").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "b");
    assert_eq!(first.permissions().mode() & 0o777, 0o644);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_file_of_cas_is_tried_until_it_is_written_and_never_from_an_old_copy() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/ca.pem");
    let mut file = CaFile {
        path: path.clone(),
        pem: Keys::roots_pem,
        state: Written::No,
    };
    file.keep(&bench.broker, true);
    assert!(file.state == Written::Failed && !path.exists());
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    file.keep(&bench.broker, false);
    let roots = bench.broker.keys.load().roots_pem();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), roots);
    std::fs::write(&path, "of before").unwrap();
    bench.fall_behind().await;
    file.keep(&bench.broker, true);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "of before");
}

/// Nobody but people takes it to the servers: they are told when it must be there, and can have an alarm.
#[tokio::test]
async fn when_the_next_ca_for_databases_is_used_is_told_before() {
    let bench = Bench::new().await;
    let line = |page: String| {
        let name = "ephor_database_ca_next_seconds ";
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().to_owned()
    };
    assert_eq!(line(bench.broker.metrics().await.unwrap()), "0");
    // By the schedule.
    bench.pass_seconds(limits::DATABASE_CA_ISSUING_SECONDS - limits::DATABASE_CA_LEAD_SECONDS);
    bench.broker.sweep_keys().await.unwrap();
    let prepared = bench.events_of("operate.key_prepared");
    let facts = prepared.iter().map(|event| &event.facts);
    let of_databases: Vec<_> = facts.filter(|facts| facts["key"] == "database").collect();
    assert_eq!(of_databases.len(), 1);
    let used_from: UnixMillis = of_databases[0]["used_from"].parse().unwrap();
    let days = used_from.millis_since(bench.broker.clock.wall()) / 86_400_000;
    assert!((29..=30).contains(&days), "{days}");
    let seconds: u64 = line(bench.broker.metrics().await.unwrap()).parse().unwrap();
    assert!(seconds.abs_diff(limits::DATABASE_CA_LEAD_SECONDS) < 60);
    bench.pass_seconds(limits::DATABASE_CA_LEAD_SECONDS - 7_200);
    let seconds: u64 = line(bench.broker.metrics().await.unwrap()).parse().unwrap();
    assert!(seconds.abs_diff(7_200) < 60, "{seconds}");
}
