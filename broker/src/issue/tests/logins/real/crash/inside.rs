//! The server's own process stands still inside the function that it was called for, in its middle or at
//! its commit, and so does the broker that called it; another broker, on a copy of the store and in a
//! later epoch, revokes meanwhile. Nothing may be called dead then, and nothing may be left after.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use ephor_proto::state::credential::CredentialState;
use ephor_testkit::postgres::{Cluster, Session};
use rustix::process::{Pid, Signal, kill_process};

use super::super::{begin, cluster};
use super::{OVER, is_stopped, judge, recorded, start, there};
use crate::issue::tests::harness::Bench;
use crate::ledger::CredentialRow;

/// Where a call stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Its rows are written, and it waits for a lock on the roles of the server.
    Roles,
    /// It waits for the lock on the role that it drops.
    ItsRole,
    /// All is done and on disk, but nobody sees it yet: it waits for a standby that never answers.
    Commit,
}

/// Function, where it stands still, and the broker's last point before it calls it.
const CASES: [(&str, At, &str); 7] = [
    ("mint", At::Roles, "mint.before_call"),
    ("mint", At::Commit, "mint.before_call"),
    ("extend", At::Roles, "renew.before_extend"),
    ("extend", At::Commit, "renew.before_extend"),
    ("fence_login", At::Roles, "revoke.before_target"),
    ("fence_login", At::Commit, "revoke.before_target"),
    ("drop_logins", At::ItsRole, "revoke.before_target"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_inside_the_servers_own_function_while_another_broker_revokes() {
    let some = CASES.chunks(4).map(async |cases| {
        let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
        let dba =
            "create role dba superuser login password 'dba'; create table public.probe (n int)";
        cluster.psql("postgres", dba).unwrap();
        let mut epoch = 1;
        for case in cases {
            // Some of these waits are short: on a busy machine one is over before it is seen.
            for attempt in 1.. {
                let caught = pause_inside(*case, epoch, &cluster).await;
                epoch += 2;
                if caught {
                    break;
                }
                assert!(attempt < 5, "{case:?} was not seen to wait");
            }
        }
    });
    futures_util::future::join_all(some).await;
}

/// False when the call was over before it could be stopped; then nothing is shown, and nothing is left.
async fn pause_inside(case: (&str, At, &str), epoch: u32, cluster: &Cluster) -> bool {
    let (function, at, point) = case;
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(dir.path(), cluster, epoch, ("EPHOR_PAUSE", point));
    until_stopped(&mut first).await;
    let blocker = block(cluster, at);
    let go_on = || signal(&first, Signal::CONT);
    let caught = tokio::task::block_in_place(|| catch(cluster, function, at, go_on));
    let Some(backend) = caught else {
        unblock(cluster, blocker);
        let ended = tokio::task::spawn_blocking(move || first.wait().unwrap());
        ended.await.unwrap();
        judge(&format!("{case:?}"), dir.path(), cluster, epoch + 1).await;
        return false;
    };
    // What it does next must not tell it from its copy.
    signal(&first, Signal::STOP);
    unblock(cluster, blocker);
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let name = file.unwrap().file_name();
        std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    }
    meanwhile(&format!("{case:?}"), copy.path(), cluster, epoch + 1).await;
    cluster.signal_backend(backend, Signal::CONT).unwrap();
    judge(&format!("{case:?}"), copy.path(), cluster, epoch + 1).await;
    signal(&first, Signal::CONT);
    let ended = tokio::task::spawn_blocking(move || first.wait().unwrap());
    ended.await.unwrap();
    let left = there(cluster);
    assert_eq!(left, BTreeSet::new(), "{case:?}: made after it was revoked");
    true
}

/// The second broker tries, as often as it can in this time. Whatever the stopped call still does, it
/// holds the epoch that this one would begin: so nothing is proven, and nothing is unknown to the log.
async fn meanwhile(case: &str, copy: &Path, cluster: &Cluster, epoch: u32) {
    let before = there(cluster);
    let bench = Bench::take_over_at(copy, OVER, epoch);
    begin(&bench, cluster.port());
    bench.broker.reconcile("orders").await;
    for _ in 0..100 {
        bench.broker.sweep().await;
        bench.broker.expire_due().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.clock.advance_millis(200);
    }
    let (told, dead) = recorded(&bench);
    assert_eq!(dead, BTreeSet::new(), "{case}: called dead meanwhile");
    assert!(
        before.is_subset(&told),
        "{case}: {before:?} without a record"
    );
    assert_eq!(there(cluster), before, "{case}");
    // It did try.
    let rows = bench
        .broker
        .ledger
        .reader()
        .credentials(&Default::default());
    let revoking = |row: &CredentialRow| row.state == CredentialState::Revoking;
    assert!(rows.unwrap().iter().any(revoking), "{case}");
    // Its calls that wait must not be there when it comes back.
    bench.broker.tasks.shutdown(Duration::from_secs(30)).await;
    bench.broker.ledger.clone().shutdown();
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

async fn until_stopped(child: &mut Child) {
    for _ in 0..3_000 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "its point was not reached"
        );
        if is_stopped(child.id()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its point was not reached in time");
}

/// Somebody stronger stands in the way.
fn block(cluster: &Cluster, at: At) -> Option<Session> {
    let lock = match at {
        At::Roles => "lock table pg_catalog.pg_authid in share row exclusive mode".to_owned(),
        At::ItsRole => {
            let names = there(cluster).into_iter();
            let each = names.map(|name| format!("alter role {name} set work_mem = '1MB';"));
            each.collect()
        }
        At::Commit => {
            let on =
                "alter system set synchronous_standby_names = 'nobody'; select pg_reload_conf()";
            cluster.psql("postgres", on).unwrap();
            let mut probe = cluster.session(("dba", "dba"), "postgres", "").unwrap();
            let waits = "select count(*) = 1 from pg_stat_activity where usename = 'dba' and wait_event = 'SyncRep'";
            // Until the server has read it.
            while cluster.psql("postgres", waits).unwrap() != "t" {
                probe.send("insert into public.probe values (1);").unwrap();
            }
            return Some(probe);
        }
    };
    let mut holder = cluster.session(("dba", "dba"), "postgres", "").unwrap();
    holder.send(&format!("begin; {lock};")).unwrap();
    let holds = "select count(*) = 1 from pg_stat_activity where usename = 'dba' and state = 'idle in transaction'";
    cluster.wait_true("postgres", holds).unwrap();
    Some(holder)
}

fn unblock(cluster: &Cluster, blocker: Option<Session>) {
    let off = "alter system reset synchronous_standby_names; select pg_reload_conf();
        select pg_terminate_backend(pid) from pg_stat_activity where usename = 'dba'";
    cluster.psql("postgres", off).unwrap();
    drop(blocker);
    let gone = "select count(*) = 0 from pg_stat_activity where usename = 'dba'";
    cluster.wait_true("postgres", gone).unwrap();
}

/// Lets the broker go on, and stops the server's process of the call while it is inside; none when that
/// was over before.
fn catch(cluster: &Cluster, function: &str, at: At, go_on: impl FnOnce()) -> Option<i32> {
    let waits = match at {
        At::Roles | At::ItsRole => "wait_event_type = 'Lock'",
        At::Commit => "wait_event = 'SyncRep'",
    };
    let inside = format!(
        "from pg_stat_activity where usename = 'ephor' and state = 'active' and query ~ 'ephor[.]{function}[(]' and {waits}"
    );
    // Asked inside the server, which is quicker than we are.
    let found = format!(
        "do $$ begin for i in 1 .. 5000 loop perform pg_stat_clear_snapshot();
            exit when exists (select {inside}); perform pg_sleep(0.002); end loop; end $$;
        select pid {inside}"
    );
    let looks = "select count(*) = 1 from pg_stat_activity where usename = 'postgres' and wait_event = 'PgSleep'";
    let pid = std::thread::scope(|scope| {
        let looking = scope.spawn(|| cluster.psql("postgres", &found).unwrap());
        cluster.wait_true("postgres", looks).unwrap();
        go_on();
        looking.join().unwrap()
    });
    let pid = pid.parse().ok()?;
    cluster.signal_backend(pid, Signal::STOP).unwrap();
    let still = format!("select count(*) {inside} and pid = {pid}");
    if cluster.psql("postgres", &still).unwrap() == "1" {
        return Some(pid);
    }
    cluster.signal_backend(pid, Signal::CONT).unwrap();
    None
}
