//! A broker that dies, or stands still, at each step of making, renewing and ending a login at a real
//! server: no login without an audit record, none called dead that can still act, and nothing left
//! once another broker has the store. Judged by `psql`.

mod inside;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ephor_proto::id::CredentialId;
use ephor_proto::state::credential::CredentialState;
use ephor_testkit::postgres::Cluster;

use super::super::super::harness::Bench;
use super::{begin, cluster, login};

const CHILD: &str = "EPHOR_TEST_LOGINS_DIR";
const PORT: &str = "EPHOR_TEST_LOGINS_PORT";
const EPOCH: &str = "EPHOR_TEST_LOGINS_EPOCH";
const NAME: &str = "issue::tests::logins::real::crash::child";
/// Life of a token and of a login here, and a little more.
const OVER: u64 = 400;

/// Every point that lies on the way of a login.
const POINTS: [&str; 11] = [
    "mint.before_call",
    "mint.after_call",
    "mint.after_commit",
    "mint.successor",
    "deliver.confirmed",
    "renew.before_extend",
    "renew.after_extend",
    "revoke.before_target",
    "revoke.after_target",
    "revoke.gone",
    "revoke.after_expiry",
];

/// The process that dies; does nothing when it was not started for that.
#[tokio::test]
async fn child() {
    let told = [CHILD, PORT, EPOCH].map(std::env::var);
    let [Ok(dir), Ok(port), Ok(epoch)] = told else {
        return;
    };
    crate::crash::armed::check().unwrap();
    let bench = Bench::create_at(Path::new(&dir), epoch.parse().unwrap()).await;
    begin(&bench, port.parse().unwrap());
    let confirm = async |id: CredentialId| {
        let r = ephor_proto::grpc::v1::ConfirmRequest {
            instance_id: Vec::new(),
            credential_ids: vec![id.to_bytes().to_vec()],
        };
        drop(bench.broker.confirm(&bench.peer("web-1"), r).await);
    };
    let (task, other) = (bench.new_task(), bench.new_task());
    // Once it was paused and another broker took over, the rest is refused.
    if let Ok(answer) = bench.issue(bench.request(task, "orders-db")).await {
        let id = login(&answer).0;
        confirm(id).await;
        bench.pass_seconds(10);
        let mut r = bench.request(task, "orders-db");
        r.renews = id.to_bytes().to_vec();
        drop(bench.issue(r).await);
    }
    let r = bench.request(other, "orders-db");
    drop(bench.issue(r.clone()).await);
    drop(bench.issue(r).await);
    drop(bench.complete(task, "exited").await);
    bench.pass_seconds(301);
    bench.broker.expire_due().await;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        bench.clock.advance_millis(5);
    }
}

fn start(dir: &Path, cluster: &Cluster, epoch: u32, how: (&str, &str)) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(CHILD, dir)
        .env(PORT, cluster.port().to_string())
        .env(EPOCH, epoch.to_string())
        .env(how.0, how.1)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Names of ours at the server.
fn there(cluster: &Cluster) -> BTreeSet<String> {
    let sql = "select rolname from pg_roles where rolname like 'eph\\_%'";
    let names = cluster.psql("postgres", sql).unwrap();
    names.lines().map(str::to_owned).collect()
}

/// What the store says, as it lies on the disk: names by whether they are called dead.
fn recorded(bench: &Bench) -> (BTreeSet<String>, BTreeSet<String>) {
    let told = bench.events_of("issue.recorded");
    let told = told
        .iter()
        .filter_map(|event| event.facts.get("name").cloned());
    let reader = bench.broker.ledger.reader();
    let rows = reader.credentials(&Default::default()).unwrap();
    let dead = rows.iter().filter(|row| row.state == CredentialState::Dead);
    (told.collect(), dead.map(|row| row.item.clone()).collect())
}

/// Judges what the first broker left, lets the second one end it, and judges again.
async fn judge(point: &str, dir: &Path, cluster: &Cluster, epoch: u32) {
    let left = there(cluster);
    let bench = Bench::take_over_at(dir, OVER, epoch);
    let (told, dead) = recorded(&bench);
    assert!(left.is_subset(&told), "{point}: {left:?} without a record");
    assert!(left.is_disjoint(&dead), "{point}: {dead:?} called dead");
    begin(&bench, cluster.port());
    bench.broker.reconcile("orders").await;
    for _ in 0..2_000 {
        bench.broker.sweep().await;
        bench.broker.expire_due().await;
        let reader = bench.broker.ledger.reader();
        let rows = reader.credentials(&Default::default()).unwrap();
        drop(reader);
        if rows.iter().all(|row| row.state == CredentialState::Dead) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        bench.clock.advance_millis(50);
    }
    let (told, dead) = recorded(&bench);
    assert_eq!(told, dead, "{point}");
    assert_eq!(there(cluster), BTreeSet::new(), "{point}");
    let sessions = "select count(*) from pg_stat_activity where usename like 'eph\\_%'";
    assert_eq!(cluster.psql("postgres", sessions).unwrap(), "0", "{point}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_of_a_login() {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    for point in POINTS {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start(dir.path(), &cluster, 1, ("EPHOR_CRASH", point));
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        let status = status.await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was not reached");
        judge(point, dir.path(), &cluster, 1).await;
    }
}

/// Whether a process stands still.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('T'))
}

/// It goes on after another broker, on a copy of its store and in a later epoch, ended everything:
/// whatever it still does at the target comes to nothing. Most of it is waiting, so several go on
/// beside each other, each with a server of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_at_every_step_while_another_broker_revokes() {
    let some = POINTS.chunks(3).map(async |points| {
        let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
        for (epoch, point) in (1..).step_by(2).zip(points) {
            pause_and_revoke(point, epoch, &cluster).await;
        }
    });
    futures_util::future::join_all(some).await;
}

async fn pause_and_revoke(point: &str, epoch: u32, cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path(), cluster, epoch, ("EPHOR_PAUSE", point));
    let pid = child.id();
    let mut waited = 0;
    while !is_stopped(pid) {
        let is_running = child.try_wait().unwrap().is_none();
        assert!(is_running && waited < 3_000, "{point} was not reached");
        waited += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let name = file.unwrap().file_name();
        std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    }
    judge(point, copy.path(), cluster, epoch + 1).await;
    let first = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(first, rustix::process::Signal::CONT).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    ended.await.unwrap();
    assert_eq!(
        there(cluster),
        BTreeSet::new(),
        "{point}: made after it was revoked"
    );
}

/// Every point of these steps is one of the above.
#[test]
fn every_point_is_reached() {
    let of_logins = |point: &&&str| {
        let begins = [
            "mint.",
            "deliver.",
            "renew.before_extend",
            "renew.after_extend",
        ];
        let ends = [
            "revoke.before_target",
            "revoke.after_target",
            "revoke.gone",
            "revoke.after_expiry",
        ];
        begins
            .iter()
            .chain(&ends)
            .any(|start| point.starts_with(start))
    };
    let all: BTreeSet<_> = crate::crash::POINTS
        .iter()
        .filter(of_logins)
        .copied()
        .collect();
    assert_eq!(all, BTreeSet::from(POINTS));
}
