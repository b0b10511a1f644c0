//! Servers that follow: a dead login's session there, one that is behind, one that takes over.

use ephor_proto::postgres::Address;
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions, Session};

use super::kit::{EPOCH, Out, World, login, verifier};
use crate::kind::postgres::*;

async fn followed(settings: &[&str]) -> (World, Cluster) {
    let world = World::own(ClusterOptions::default()).await;
    let settings: Vec<String> = settings.iter().map(|line| (*line).to_owned()).collect();
    let standby = world.cluster.standby(&settings).unwrap();
    (world, standby)
}

fn address(cluster: &Cluster) -> Address {
    Address::of("127.0.0.1", cluster.port()).unwrap()
}

fn target(world: &World, standbys: &[&Cluster]) -> Target {
    let mut access = world.access();
    access.standbys = standbys.iter().map(|one| address(one)).collect();
    Target::new(access, &world.tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_a_standby_end_too_and_one_that_is_not_listed_makes_the_proof_partial() {
    let (world, standby) = followed(&[]).await;
    let listed = target(&world, &[&standby]);
    let out = world.mint(&listed).await;
    world.cluster.wait_followed(&standby).unwrap();
    let mut session = standby.session(out.pair(), "orders", "").unwrap();
    session.send("select 7;").unwrap();
    let hidden = standby
        .session(out.pair(), "orders", "-c post_auth_delay=20")
        .unwrap();
    let both = "select count(distinct pid) = 2 from pg_locks where pid <> pg_backend_pid() and virtualtransaction is not null
        and (pid not in (select pid from pg_stat_activity) or pid in (select pid from pg_stat_activity where query = 'select 7;'))";
    let idle = format!(
        "select count(*) = 1 from pg_stat_activity where usesysid = {} and state = 'idle'",
        out.oid
    );
    standby.wait_true("postgres", &idle).unwrap();
    let starting = both.replace("= 2", ">= 1");
    standby.wait_true("postgres", &starting).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let evidence = listed.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    let [(host, Seen::Absent { sessions_ended, .. })] = evidence.standbys.as_slice() else {
        panic!("{evidence:?}")
    };
    assert_eq!(
        (host.as_str(), *sessions_ended),
        (address(&standby).to_string().as_str(), 2)
    );
    assert_eq!(evidence.partial, None);
    assert!(!session.finish().unwrap().contains("still here"));
    assert!(!hidden.finish().unwrap().contains("still here"));
    let left = format!(
        "select count(*) from pg_stat_activity where usesysid = {}",
        out.oid
    );
    assert_eq!(standby.psql("postgres", &left).unwrap(), "0");

    let unlisted = target(&world, &[]);
    let out = world.mint(&unlisted).await;
    let evidence = unlisted.revoke(EPOCH, &out.ending()).await.unwrap();
    assert!(
        evidence
            .partial
            .unwrap()
            .contains("1 of the servers that follow are not listed")
    );
    let findings = check(unlisted.access(), &[], &world.tasks).await;
    assert!(
        findings
            .iter()
            .any(|one| one.what.contains("1 servers follow")),
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_behind_or_away_is_said() {
    let (world, mut standby) = followed(&["recovery_min_apply_delay = '1h'"]).await;
    let target = target(&world, &[&standby]);
    let out = world.mint(&target).await;
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert!(
        matches!(evidence.standbys.as_slice(), [(_, Seen::Behind { .. })]),
        "{evidence:?}"
    );
    assert!(evidence.partial.unwrap().contains("not replayed"));
    standby.stop().unwrap();
    let out = world.mint(&target).await;
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert!(
        matches!(
            evidence.standbys.as_slice(),
            [(_, Seen::Unreachable { .. })]
        ),
        "{evidence:?}"
    );
    assert!(evidence.partial.unwrap().contains("was not asked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_recovery_makes_and_ends_nothing_and_the_next_host_is_asked() {
    let (world, standby) = followed(&[]).await;
    let mut access = world.access();
    access.hosts = vec![address(&standby)];
    let alone = Target::new(access.clone(), &world.tasks);
    let (wanted, secret) = login(&["orders_rw"]);
    let refused = alone.mint(EPOCH, &wanted, Some(&verifier(&secret))).await;
    assert!(
        matches!(refused, Err(Failed::NotPrimary { .. })),
        "{refused:?}"
    );
    access.hosts = vec![address(&standby), address(&world.cluster)];
    let both = Target::new(access, &world.tasks);
    let out = world.mint(&both).await;
    both.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

/// A failover to a replica that has never seen the fence: the dead login lives again there.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_that_lost_the_fence_the_login_is_found_and_ended_again() {
    let (mut world, standby) = followed(&[]).await;
    let before = world.target();
    let out = world.mint(&before).await;
    world.cluster.wait_followed(&standby).unwrap();
    // Cut off before the login ends, so that nothing of it arrives.
    let cut = "alter system set primary_conninfo = ''; select pg_reload_conf()";
    standby.psql("postgres", cut).unwrap();
    let alone = "select count(*) = 0 from pg_stat_wal_receiver";
    standby.wait_true("postgres", alone).unwrap();
    let evidence = before.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    world.cluster.crash().unwrap();
    standby.promote().unwrap();
    let mut access = world.access();
    access.hosts = vec![address(&standby)];
    let after = Target::new(access, &world.tasks);
    let position = after.position().await.unwrap();
    assert_eq!(position.system_id, evidence.system_id);
    let found = after.ours().await.unwrap();
    match found.iter().find(|one| one.oid == out.oid) {
        Some(one) => {
            assert!(one.can_login && !one.fenced, "{one:?}");
            assert!(position.timeline > evidence.timeline);
            let again = after.revoke(EPOCH, &out.ending()).await.unwrap();
            assert!(again.dropped && again.timeline > evidence.timeline);
            assert!(standby.psql_as(out.pair(), "orders", "select 1").is_err());
        }
        None => panic!("promotion replayed the fence: {found:?}"),
    }
}

/// A session there that is just starting has no name yet, as here: a second look asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_starting_on_a_standby_is_looked_at_again() {
    let (world, standby) = followed(&[]).await;
    let target = target(&world, &[&standby]);
    let (out, other) = (world.mint(&target).await, world.mint(&target).await);
    world.cluster.wait_followed(&standby).unwrap();
    let innocent = hidden(&standby, &other, 8);
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    let [(host, Seen::Absent { starting, .. })] = evidence.standbys.as_slice() else {
        panic!("{evidence:?}")
    };
    assert_eq!(starting.len(), 1, "{evidence:?}");
    let there = [(host.clone(), starting.clone())];
    let look = || target.census_again(Some(out.oid), &out.login.role, (&[], &there));
    assert_eq!(look().await.unwrap().starting_there.len(), 1);
    assert!(innocent.finish().unwrap().contains("still here"));
    assert!(look().await.unwrap().starting_there.is_empty());
}

/// Connects, and is let in without being shown.
fn hidden(server: &Cluster, out: &Out, seconds: u32) -> Session {
    let options = format!("-c post_auth_delay={seconds}");
    let session = server.session(out.pair(), "orders", &options).unwrap();
    let seen = "select count(*) > 0 from pg_locks where pid is not null and pid not in (select pid from pg_stat_activity)";
    server.wait_true("postgres", seen).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    session
}

/// The fence alone comes first: until the role is NOLOGIN there too, it lets people in.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_standby_that_knows_only_of_the_fence_is_not_asked_too_early() {
    let (world, standby) = followed(&[]).await;
    let target = target(&world, &[&standby]);
    let out = world.mint(&target).await;
    let fence = format!(
        "select ephor.fence_only({EPOCH}, array['{}'::uuid], array['{}'])",
        out.login.credential,
        out.name()
    );
    world
        .cluster
        .psql_as(("ephor", "first"), "ephor", &fence)
        .unwrap();
    world.cluster.wait_followed(&standby).unwrap();
    standby
        .psql("postgres", "select pg_wal_replay_pause()")
        .unwrap();
    let paused = "select pg_get_wal_replay_pause_state() = 'paused'";
    standby.wait_true("postgres", paused).unwrap();
    let ending = out.ending();
    let late = async {
        let gone = format!("select count(*) = 0 from pg_roles where oid = {}", out.oid);
        while world.ask(&gone) != "t" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let session = hidden(&standby, &out, 20);
        standby
            .psql("postgres", "select pg_wal_replay_resume()")
            .unwrap();
        session
    };
    let (evidence, session) = tokio::join!(target.revoke(EPOCH, &ending), async {
        tokio::time::timeout(std::time::Duration::from_secs(60), late)
            .await
            .unwrap()
    });
    let evidence = evidence.unwrap();
    let told = match evidence.standbys.as_slice() {
        [(_, Seen::Absent { starting, .. })] => !starting.is_empty(),
        [(_, Seen::Behind { .. })] => evidence.partial.is_some(),
        other => panic!("{other:?}"),
    };
    assert!(told, "a session nobody told of: {evidence:?}");
    drop(session);
}
