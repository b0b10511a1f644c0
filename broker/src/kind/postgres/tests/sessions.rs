//! What a session can be doing when its login is to end.

use super::kit::{EPOCH, Out, World, shared};
use crate::kind::postgres::*;

/// A session that has got to where `seen` says of its row in `pg_stat_activity`.
fn busy(world: &World, out: &Out, sql: &str, seen: &str) -> ephor_testkit::postgres::Session {
    let options = out.login.startup_options();
    let mut session = world
        .cluster
        .session(out.pair(), "orders", &options)
        .unwrap();
    session.send(sql).unwrap();
    let question = format!(
        "select exists (select from pg_stat_activity where usesysid = {} and {seen})",
        out.oid
    );
    world.cluster.wait_true("postgres", &question).unwrap();
    session
}

async fn ended_while(sql: &str, seen: &str) -> Evidence {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let session = busy(world, &out, sql, seen);
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    assert_eq!(evidence.sessions_ended, 1, "{sql}");
    let told = session.finish().unwrap();
    assert!(!told.contains("still here"), "{sql}: {told}");
    evidence
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_ends() {
    ended_while("select 1;", "state = 'idle' and query = 'select 1;'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_ends_and_nothing_of_it_stays() {
    let sql = "begin; insert into t values (777); lock table t in access exclusive mode;";
    ended_while(sql, "state = 'idle in transaction' and query ~ 'lock'").await;
    assert_eq!(shared().ask("select count(*) from t where n = 777"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_ends() {
    ended_while("listen news;", "state = 'idle' and query = 'listen news;'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_statement_ends() {
    ended_while("select pg_sleep(300);", "state = 'active'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_ends_in_either_direction() {
    ended_while("copy t from stdin;\n1\n2", "query ~ '^copy'").await;
    // To a client that does not read: the server's send buffer is full.
    let endless = "copy (select repeat('x', 1000), generate_series(1, 100000000)) to stdout;";
    ended_while(endless, "wait_event = 'ClientWrite'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_reset_role_and_set_role_it_is_still_the_same_session() {
    ended_while(
        "reset role; set role orders_rw; select 2;",
        "query = 'select 2;'",
    )
    .await;
    ended_while(
        "begin; declare c cursor with hold for select 1; commit; select 3;",
        "query = 'select 3;'",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sessions_in_two_databases_end() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let one = busy(world, &out, "select 4;", "query = 'select 4;'");
    let two = busy(world, &out, "select 5;", "query = 'select 5;'");
    let three = world.cluster.session(out.pair(), "billing", "").unwrap();
    let all = format!(
        "select count(*) = 3 from pg_stat_activity where usesysid = {}",
        out.oid
    );
    world.cluster.wait_true("postgres", &all).unwrap();
    let uses = target.uses().await.unwrap();
    let Uses::Seen(uses) = uses else {
        panic!("{uses:?}")
    };
    let mine: Vec<_> = uses.iter().filter(|one| one.oid == out.oid).collect();
    assert_eq!(mine.len(), 3);
    assert!(
        mine.iter()
            .all(|one| one.role == out.name() && one.from.as_deref() == Some("127.0.0.1"))
    );
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert_eq!(evidence.sessions_ended, 3);
    world.assert_dead(&out);
    drop((one, two, three));
}

/// (d): a client that comes back at once, while its sessions are ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_reconnects_for_ever_is_out() {
    let world = shared();
    let target = world.target();
    let out = std::sync::Arc::new(world.mint(&target).await);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let connected = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let racers: Vec<_> = (0..4)
        .map(|_| {
            let (out, stop, connected) = (out.clone(), stop.clone(), connected.clone());
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if shared()
                        .cluster
                        .psql_as(out.pair(), "orders", "select 1")
                        .is_ok()
                    {
                        connected.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    ephor_testkit::wait::until("racers get in", std::time::Duration::from_secs(20), || {
        (connected.load(std::sync::atomic::Ordering::Relaxed) > 5).then_some(())
    })
    .unwrap();
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    let after = connected.load(std::sync::atomic::Ordering::Relaxed);
    // One may have been answered just before, and not been counted yet.
    for _ in 0..5 {
        world.assert_dead(&out);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for racer in racers {
        racer.join().unwrap();
    }
    let last = connected.load(std::sync::atomic::Ordering::Relaxed);
    assert!(last <= after + 4, "{after} then {last}");
    world.assert_dead(&out);
    let census = target
        .census_again(Some(out.oid), &out.login.role, (&evidence.starting, &[]))
        .await
        .unwrap();
    assert!(census.role_absent && census.sessions == 0);
}
