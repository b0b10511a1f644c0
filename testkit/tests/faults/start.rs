//! What a broker finds at start: a damaged file, a newer schema, one bad row.

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;

use ephor_testkit::checker::{History, judge, leaves};
use ephor_testkit::daemon::Started;
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;
use serde_json::Value;

/// The exit code for settings, policy or database that cannot be used.
const CONFIG: i32 = 78;

fn refused(kit: &Installation) -> String {
    let started = kit.try_start(Side::Broker, &[]).unwrap();
    let Started::Ended(status) = started else {
        panic!("it started")
    };
    assert_eq!(
        (status.code(), status.signal()),
        (Some(CONFIG), None),
        "{}",
        kit.tail(Side::Broker)
    );
    kit.tail(Side::Broker).lines().last().unwrap().to_owned()
}

#[test]
fn a_damaged_database_is_refused_with_the_reason_and_left_alone() {
    let kit = super::running();
    Workload::start(&kit).unwrap().ask("a").unwrap().unwrap();
    kit.stop(Side::Broker).unwrap();
    // After a clean stop the store is one file, or a copy of it would not be a backup.
    assert!(!kit.path("state/ephor.db-wal").exists());
    let whole = std::fs::read(kit.database()).unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(kit.database())
        .unwrap();
    // The first bytes of every page but the first: their headers.
    for page in 1..whole.len() / 4096 {
        file.write_all_at(&[0xA5; 64], page as u64 * 4096).unwrap();
    }
    let said = refused(&kit);
    assert!(
        said.contains("invalid:")
            && said.contains("ephor.db is damaged")
            && said.contains("restore a backup"),
        "{said}"
    );
    // No SQLite file at all.
    file.write_all_at(b"nonsense", 0).unwrap();
    let said = refused(&kit);
    assert!(
        said.contains("invalid:") && said.contains("ephor.db"),
        "{said}"
    );
    // Put right, it serves again.
    file.write_all_at(&whole, 0).unwrap();
    kit.start_daemon(Side::Broker, &[]).unwrap();
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let kit = super::running();
    kit.stop(Side::Broker).unwrap();
    let known: i64 = rusqlite::Connection::open(kit.database())
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    kit.sql("PRAGMA user_version = 900").unwrap();
    let said = refused(&kit);
    assert!(
        said.contains("has schema 900") && said.contains(&format!("knows {known}")),
        "{said}"
    );
    kit.sql(&format!("PRAGMA user_version = {known}")).unwrap();
    kit.start_daemon(Side::Broker, &[]).unwrap();
}

/// The others go on; the bad one is refused, counted and told.
#[test]
fn one_bad_row_is_set_aside_and_reported() {
    let kit = super::running();
    let (mut one, mut other) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    let bad = one.ask("bad").unwrap().unwrap();
    let good = other.ask("good").unwrap().unwrap();
    kit.stop(Side::Broker).unwrap();
    let id = bad.jti.replace('-', "");
    assert_eq!(
        kit.sql(&format!(
            "UPDATE credential SET state = 'undead' WHERE lower(hex(id)) = '{id}'"
        ))
        .unwrap(),
        1
    );
    kit.start_daemon(Side::Broker, &[]).unwrap();
    kit.wait_connected().unwrap();
    assert_eq!(kit.admin("/v1/status").unwrap()["quarantined"], 1);
    assert!(
        kit.tail(Side::Broker)
            .contains("set aside in the table `quarantine`"),
        "{}",
        kit.tail(Side::Broker)
    );
    let answer = kit.introspect(&bad.token).unwrap();
    assert_ne!(answer.body["active"], true, "{answer:?}");
    let mut history = History {
        running: vec![good],
        ..History::default()
    };
    history.running.push(other.ask("more").unwrap().unwrap());
    judge(&kit, &history).unwrap_or_else(|why| panic!("{why:#}\n{}", kit.tail(Side::Broker)));
    // Its task has an end all the same.
    one.kill().unwrap();
    wait::until("the task of the bad row is closed", SETTLE, || {
        let tasks = kit.admin("/v1/tasks?state=closed").ok()?;
        let closed = tasks
            .as_array()?
            .iter()
            .any(|task| task["pid"] == one.pid());
        closed.then_some(())
    })
    .unwrap();
    assert_ne!(kit.introspect(&bad.token).unwrap().body["active"], true);
    // An export works and strangers accept every receipt, and that of this task tells of the token.
    judge(&kit, &history).unwrap_or_else(|why| panic!("{why:#}\n{}", kit.tail(Side::Broker)));
    let leaves = leaves(&kit.path("export")).unwrap();
    let of_type =
        |name: &str| -> Vec<&Value> { leaves.iter().filter(|leaf| leaf["type"] == name).collect() };
    let told = of_type("operate.quarantined");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["facts"]["table"], &told[0]["facts"]["credential"]),
        (&Value::from("credential"), &Value::from(bad.jti.as_str()))
    );
    let receipts = of_type("prove.receipt");
    let [receipt] = receipts.as_slice() else {
        panic!("one task ended: {receipts:?}")
    };
    assert_eq!(receipt["task"], told[0]["task"]);
    assert_eq!(
        (
            &receipt["totals"]["credentials"],
            &receipt["totals"]["listed"]
        ),
        (&Value::from(1), &Value::from(1))
    );
    let evidence = &receipt["evidence"][0];
    assert_eq!(
        (&evidence["credential"], &evidence["state"]),
        (&Value::from(bad.jti.as_str()), &Value::from("contained"))
    );
    // Another start sets nothing aside, and has the whole row again.
    kit.stop(Side::Broker).unwrap();
    kit.start_daemon(Side::Broker, &[]).unwrap();
    assert_eq!(kit.admin("/v1/status").unwrap()["quarantined"], 1);
    assert_ne!(kit.introspect(&bad.token).unwrap().body["active"], true);
}
