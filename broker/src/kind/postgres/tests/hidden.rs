//! (a): `post_auth_delay` makes a backend that has let its login in and is not in `pg_stat_activity`.

use ephor_testkit::postgres::{Options as ClusterOptions, Session};

use super::kit::{EPOCH, Out, World};

/// Processes that hold a lock and are not shown.
const HIDDEN: &str =
    "select coalesce(string_agg(distinct pid::text, ','), '') from pg_locks where pid is not null
    and pid not in (select pid from pg_stat_activity)";

/// Connects, and stays hidden for `seconds`.
fn hide(world: &World, (user, password): (&str, &str), seconds: u32) -> Session {
    let before = world.ask(HIDDEN);
    let options = format!("-c post_auth_delay={seconds}");
    let session = world
        .cluster
        .session((user, password), "orders", &options)
        .unwrap();
    ephor_testkit::wait::until(
        "a hidden backend",
        std::time::Duration::from_secs(20),
        || (world.ask(HIDDEN) != before).then_some(()),
    )
    .unwrap();
    // The password exchange is over when it no longer talks to its client: it sleeps.
    std::thread::sleep(std::time::Duration::from_millis(300));
    session
}

fn out_of(out: &Out) -> (&str, &str) {
    out.pair()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_a_hidden_session_is_ended_and_nobody_else() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let (out, other) = (world.mint(&target).await, world.mint(&target).await);
    let session = hide(&world, out_of(&out), 6);
    let innocent = hide(&world, out_of(&other), 6);
    let shown = format!(
        "select count(*) from pg_stat_activity where usesysid in ({}, {})",
        out.oid, other.oid
    );
    assert_eq!(world.ask(&shown), "0");
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert_eq!((evidence.hidden_ended, evidence.sessions_ended), (1, 1));
    world.assert_dead(&out);
    let told = session.finish().unwrap();
    assert!(!told.contains("still here"), "{told}");
    // Another login that is just starting is let be, and not taken for ours.
    assert_eq!(evidence.starting.len(), 1);
    let told = innocent.finish().unwrap();
    assert!(
        told.contains(&format!("still here {}", other.name())),
        "{told}"
    );
    let census = target
        .census_again(Some(out.oid), &out.login.role, (&evidence.starting, &[]))
        .await
        .unwrap();
    assert!(census.role_absent && census.sessions == 0 && census.starting.is_empty());
}

/// A DBA drops the role while its backend is hidden: the right to end it is gone with the role.
#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_session_of_a_role_that_a_dba_dropped_is_told_and_found_by_the_second_look() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let out = world.mint(&target).await;
    let mut session = hide(&world, out_of(&out), 4);
    session.send("select pg_sleep(600);").unwrap();
    world.ask(&format!("drop role \"{}\"", out.name()));
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert!(!evidence.dropped);
    assert_eq!(
        evidence.starting.len(),
        1,
        "the proof says that one session has no name yet"
    );
    let look = || target.census_again(Some(out.oid), &out.login.role, (&evidence.starting, &[]));
    let first = look().await.unwrap();
    assert_eq!(
        (first.sessions, first.starting.len()),
        (0, 1),
        "not the last look"
    );
    let shown = format!(
        "select count(*) = 1 from pg_stat_activity where usesysid = {}",
        out.oid
    );
    world.cluster.wait_true("postgres", &shown).unwrap();
    let second = look().await.unwrap();
    assert_eq!(
        (second.sessions, second.starting.len()),
        (1, 0),
        "it reopens the proof"
    );
    let told = session.finish().unwrap();
    assert!(!told.contains("still here"), "{told}");
    world.assert_dead(&out);
    assert_eq!(look().await.unwrap().sessions, 0);
}

/// Whose a session is that is just starting may be seen a moment later: so there is a second look then.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_at_a_first_look_while_somebody_is_starting() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let (out, other) = (world.mint(&target).await, world.mint(&target).await);
    let innocent = hide(&world, out_of(&other), 4);
    let broker = |sql: &str| {
        let said = world.cluster.psql_as(("ephor", "first"), "ephor", sql);
        said.unwrap()
    };
    let ids = format!("{EPOCH}, array['{}']::uuid[]", out.login.credential);
    let fence = format!(
        "select count(*) from ephor.fence_login({ids}, array['{}'])",
        out.name()
    );
    assert_eq!(broker(&fence), "1");
    let drop = |anyway: bool| {
        broker(&format!(
            "select d.done, cardinality(d.starting) from ephor.drop_logins({ids}, {anyway}) d"
        ))
    };
    assert_eq!(drop(false), "f|1");
    assert_eq!(drop(true), "t|1");
    innocent.finish().unwrap();
    world.assert_dead(&out);
    target.revoke(EPOCH, &other.ending()).await.unwrap();
}
