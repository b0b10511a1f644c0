//! Many at once.

use ephor_testkit::postgres::Options as ClusterOptions;
use futures_util::{StreamExt, stream};

use super::kit::{EPOCH, Out, World, shared};
use crate::kind::postgres::connect::{Conn, Purpose, field};
use crate::kind::postgres::*;
use crate::limits;

/// One that cannot be dropped, one that is gone, one that was never made: each has its own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_end_together_and_one_that_cannot_holds_up_no_other() {
    let world = shared();
    let target = world.target();
    let mut outs = Vec::new();
    for _ in 0..100 {
        outs.push(world.mint(&target).await);
    }
    let session = world.cluster.session(outs[3].pair(), "orders", "").unwrap();
    let seen = format!(
        "select count(*) = 1 from pg_stat_activity where usesysid = {}",
        outs[3].oid
    );
    world.cluster.wait_true("postgres", &seen).unwrap();
    world.ask(&format!("drop role \"{}\"", outs[5].name()));
    let stuck = outs[7].name().to_owned();
    world
        .cluster
        .psql(
            "other",
            &format!("create table stuck (n int); alter table stuck owner to \"{stuck}\""),
        )
        .unwrap();
    let mut endings: Vec<Ending> = outs.iter().map(Out::ending).collect();
    let (never, _) = super::kit::login(&["orders_rw"]);
    endings.push(Ending {
        credential: never.credential,
        role: never.role.clone(),
        reassign: None,
    });
    // Two kinds of ending in one call.
    endings[50].reassign = Some(super::kit::ident("orders_rw"));

    let done = target.revoke_many(EPOCH, &endings).await;
    assert_eq!(done.len(), endings.len());
    for (place, outcome) in done.iter().enumerate() {
        match (place, outcome) {
            (7, Err(Failed::Refused { why, .. })) => {
                assert!(why.contains("database other"), "{why}")
            }
            (7, other) => panic!("{other:?}"),
            (3, Ok(evidence)) => assert_eq!((evidence.dropped, evidence.sessions_ended), (true, 1)),
            (5 | 100, Ok(evidence)) => assert!(!evidence.dropped),
            (_, Ok(evidence)) => {
                assert!(evidence.dropped && evidence.sessions_ended == 0, "{place}")
            }
            (_, Err(why)) => panic!("{place}: {why}"),
        }
    }
    let left = outs
        .iter()
        .map(|out| out.oid.to_string())
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(
        world.ask(&format!(
            "select string_agg(rolname, ',') from pg_roles where oid in ({left})"
        )),
        stuck
    );
    assert!(!session.finish().unwrap().contains("still here"));
    world.cluster.psql("other", "drop table stuck").unwrap();
    assert!(
        target
            .revoke_many(EPOCH, &endings)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(
        world.ask(&format!(
            "select count(*) from pg_roles where oid in ({left})"
        )),
        "0"
    );
    assert!(target.revoke_many(EPOCH, &[]).await.is_empty());
}

/// Settings go with the fence, but for those of somebody who has a session and may hold on to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_very_many_the_fences_come_first() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let many = limits::PG_BATCH * limits::PG_REVOKE_PLACES + 1;
    let minted = (0..many).map(|_| world.mint(&target));
    let outs: Vec<Out> = stream::iter(minted).buffered(8).collect().await;
    let mut session = world.cluster.session(outs[3].pair(), "orders", "").unwrap();
    session
        .send("begin; alter role current_user set work_mem = '1MB';")
        .unwrap();
    let holds = format!(
        "select exists (select from pg_stat_activity where usesysid = {} and state = 'idle in transaction')",
        outs[3].oid
    );
    world.cluster.wait_true("postgres", &holds).unwrap();
    let endings: Vec<Ending> = outs.iter().map(Out::ending).collect();
    let some = |of: fn(&Out) -> String| {
        let some: Vec<String> = outs.iter().take(5).map(of).collect();
        format!("array['{}']", some.join("','"))
    };
    let fence = format!(
        "select count(*) from ephor.fence_login({EPOCH}, {}::uuid[], {})",
        some(|out| out.login.credential.to_string()),
        some(|out| out.name().to_owned())
    );
    let broker = ("ephor", "first");
    let fenced = world.cluster.psql_as(broker, "ephor", &fence).unwrap();
    let settings = "select count(*) from pg_db_role_setting where setrole <> 0";
    let kept = world.ask(settings);
    assert_eq!((fenced.as_str(), kept), ("5", (many - 4).to_string()));

    let done = target.revoke_many(EPOCH, &endings).await;
    let proven = done.iter().map(|outcome| outcome.as_ref().unwrap().at);
    let first = proven.min().unwrap().as_millis();
    let last = "select (extract(epoch from max(at)) * 1000)::bigint from ephor.fence where dead";
    let last = world.cluster.psql("ephor", last).unwrap();
    assert!(last.parse::<u64>().unwrap() <= first, "{last} {first}");
    let left = world.ask("select count(*) from pg_roles where rolname ~ '^eph_'");
    assert_eq!(
        (left, world.ask(settings)),
        ("0".to_owned(), "0".to_owned())
    );
    assert!(!session.finish().unwrap().contains("still here"));
}

/// What the server believes about its tables when it plans (all are live, or hardly anybody is there) makes no end read
/// the logins of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_reads_its_own_login_whatever_the_statistics_say() {
    const MANY: usize = 150;
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let minted = (0..MANY).map(|_| world.mint(&target));
    let outs: Vec<Out> = stream::iter(minted).buffered(8).collect().await;
    // Nobody is dead now.
    world.cluster.psql("ephor", "analyze").unwrap();
    for out in &outs {
        let done = target.revoke_many(EPOCH, &[out.ending()]).await;
        assert!(done[0].as_ref().unwrap().dropped);
    }
    // They tell what they have read as they end.
    let end =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'ephor'";
    world.cluster.psql("ephor", end).unwrap();
    let told = format!(
        "select sum(idx_tup_read) > {MANY} from pg_stat_all_indexes where relname = 'fence'"
    );
    world.cluster.wait_true("ephor", &told).unwrap();
    let read = "select relname, indexrelname, idx_scan, idx_tup_read from pg_stat_all_indexes
        where relname in ('fence', 'pg_authid', 'pg_auth_members')";
    let most = format!("select max(idx_tup_read) from ({read}) r");
    let most = world.cluster.psql("ephor", &most).unwrap();
    assert!(
        most.parse::<usize>().unwrap() < MANY * MANY / 2,
        "{}",
        world.cluster.psql("ephor", read).unwrap()
    );
}

/// What is called for immutable is asked when a plan is made: so the answer shows which plan it is.
#[tokio::test(flavor = "multi_thread")]
async fn plans_are_kept_for_a_while_and_then_made_anew() {
    const SQL: &str = "SELECT public.when_planned()";
    let world = shared();
    let access = world.access();
    let made = "create table planned (n int); insert into planned values (1);
        create function when_planned() returns int language sql immutable security definer
            as 'select n from public.planned'";
    world.cluster.psql("ephor", made).unwrap();
    let purpose = Purpose {
        database: "ephor",
        lock_wait: limits::PG_MINT_LOCK,
    };
    let conn = Conn::open(&access, &access.hosts[0], purpose, &world.tasks);
    let conn = conn.await.unwrap();
    let asked = async || {
        let rows = conn.call(&access, "looking", SQL, &[]).await;
        field::<i32>(&access, &rows.ok().unwrap()[0], 0).unwrap()
    };
    // The greeting was the first call.
    assert_eq!(asked().await, 1);
    let changed = "update planned set n = 2";
    world.cluster.psql("ephor", changed).unwrap();
    for _ in 2..limits::PG_PLANS_FIRST {
        assert_eq!(asked().await, 1);
    }
    assert_eq!(asked().await, 2);
}
