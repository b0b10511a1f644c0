//! What administrators do meanwhile, and what happens to their servers.

use std::time::Duration;

use ephor_proto::time::UnixMillis;
use ephor_testkit::postgres::Options as ClusterOptions;

use super::kit::{EPOCH, World, login, now, options, shared, verifier};
use crate::kind::postgres::*;

#[tokio::test(flavor = "multi_thread")]
async fn attack_116_a_role_that_a_dba_dropped_is_proven_and_its_session_ended() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let mut session = world.cluster.session(out.pair(), "orders", "").unwrap();
    session.send("select 6;").unwrap();
    let seen = format!(
        "select count(*) = 1 from pg_stat_activity where usesysid = {} and state = 'idle'",
        out.oid
    );
    world.cluster.wait_true("postgres", &seen).unwrap();
    world.ask(&format!("drop role \"{}\"", out.name()));
    // Still told: its row lives, and a session.
    let found = target.ours().await.unwrap();
    let mine = found.iter().find(|one| one.oid == out.oid).unwrap();
    assert_eq!(
        (mine.now.as_deref(), mine.sessions, mine.fenced),
        (None, 1, false)
    );
    assert_eq!(mine.role, out.name());
    let Uses::Seen(uses) = target.uses().await.unwrap() else {
        panic!()
    };
    assert!(
        uses.iter()
            .any(|one| one.oid == out.oid && one.role == out.name())
    );
    let again = target
        .mint(EPOCH, &out.login, Some(&verifier(&out.password)))
        .await;
    assert!(matches!(again, Err(Failed::Refused { .. })), "{again:?}");
    let until = UnixMillis::from_millis(now() + 90_000);
    let extended = target
        .extend(EPOCH, out.login.credential, &out.login.role, until)
        .await;
    assert!(
        matches!(extended, Err(Failed::Refused { .. })),
        "{extended:?}"
    );

    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert_eq!(
        (evidence.dropped, evidence.sessions_ended, evidence.role_oid),
        (false, 1, Some(out.oid))
    );
    world.assert_dead(&out);
    assert!(!session.finish().unwrap().contains("still here"));
    assert!(
        !target
            .ours()
            .await
            .unwrap()
            .iter()
            .any(|one| one.oid == out.oid)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_a_dba_renamed_is_ours_all_the_same() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let name = format!("bob {}", out.oid);
    world.ask(&format!("alter role \"{}\" rename to \"{name}\"; alter role \"{name}\" password 'new' createdb valid until 'infinity'", out.name()));
    world
        .cluster
        .psql_as((&name, "new"), "orders", "create table bobs (n int)")
        .unwrap();
    let found = target.ours().await.unwrap();
    let mine = found.iter().find(|one| one.oid == out.oid).unwrap();
    assert_eq!(mine.now.as_deref(), Some(name.as_str()));
    assert_eq!(mine.role, out.name());
    assert_eq!(mine.attributes, ["createdb"]);
    assert_eq!(mine.valid_until, None);
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert_eq!(
        (evidence.dropped, evidence.was_named.as_deref()),
        (true, Some(name.as_str()))
    );
    world.assert_dead(&out);
    assert!(
        world
            .cluster
            .psql_as((&name, "new"), "orders", "select 1")
            .is_err()
    );
}

/// Made by hand, or come back with a restore: ours by name, unknown to the fence.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_our_name_that_the_fence_does_not_know_is_found_and_ended() {
    let world = shared();
    let target = world.target();
    let (login, _) = login(&["orders_rw"]);
    let make = format!(
        "create role \"{}\" login password 'x' in role orders_rw",
        login.role
    );
    world.cluster.psql("orders", &make).unwrap();
    let found = target.ours().await.unwrap();
    let mine = found
        .iter()
        .find(|one| one.role == login.role.as_str())
        .unwrap();
    assert_eq!((mine.credential, mine.can_login), (None, true));
    let ending = Ending {
        credential: login.credential,
        role: login.role.clone(),
        reassign: None,
    };
    let evidence = target.revoke(EPOCH, &ending).await.unwrap();
    assert_eq!(
        (evidence.dropped, evidence.role_oid),
        (true, Some(mine.oid))
    );
    assert_eq!(
        world.ask(&format!(
            "select count(*) from pg_roles where rolname = '{}'",
            login.role
        )),
        "0"
    );
    // And once more, after the fence has it as dead.
    world.cluster.psql("orders", &make).unwrap();
    target.revoke(EPOCH, &ending).await.unwrap();
    assert_eq!(
        world.ask(&format!(
            "select count(*) from pg_roles where rolname = '{}'",
            login.role
        )),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_117_a_changed_admin_password_is_said_and_followed_without_a_restart() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let out = world.mint(&target).await;
    world.ask("alter role ephor password 'second'; select pg_terminate_backend(pid) from pg_stat_activity where usename = 'ephor'");
    let refused = target.revoke(EPOCH, &out.ending()).await;
    assert!(
        matches!(refused, Err(Failed::Unauthorized { .. })),
        "{refused:?}"
    );
    let host = format!("127.0.0.1:{}", world.cluster.port());
    let tried = format!("connecting to {host} as ephor, database ephor");
    let said = refused.unwrap_err().to_string();
    assert_eq!(
        said,
        format!(
            "target orders does not let the broker in: {tried}: password authentication failed for user \"ephor\"; \
             put its password into its credential file, which is read at every connect"
        )
    );
    world.ask("alter role ephor nologin");
    world.set_password("second");
    let said = target.position().await.unwrap_err().to_string();
    assert_eq!(
        said,
        format!(
            "target orders does not let the broker in: {tried}: role \"ephor\" is not permitted to log in; \
             run `ephor target check` to see how to mend it"
        )
    );
    world.ask("alter role ephor login");
    world.set_password("second");
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    std::fs::remove_file(world.password_file()).unwrap();
    world.ask("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'ephor'");
    let away = target.position().await;
    assert!(
        matches!(&away, Err(Failed::Unreachable { why, .. }) if why.contains("credential file")),
        "{away:?}"
    );
    // An administrator who is not let in, and one whose statement fails.
    let mut admin = world.admin();
    admin.user = "nobody_here".to_owned();
    let said = install(&admin, &options(None), &world.tasks).await;
    let said = said.unwrap_err().to_string();
    let who = "as nobody_here, database postgres: it asks for a password, and there is none";
    assert!(
        said.starts_with("connecting to /") && said.ends_with(who),
        "{said}"
    );
    world.ask("create role weak login; drop schema ephor cascade");
    admin.user = "postgres".to_owned();
    world.ask("create schema ephor authorization weak");
    let said = install(&admin, &options(None), &world.tasks).await;
    let said = said.unwrap_err().to_string();
    assert_eq!(
        said,
        "database orders: a schema \"ephor\" of somebody else is in the way"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_free_connections_still_revokes() {
    let settings = vec![
        "max_connections = 30".to_owned(),
        "superuser_reserved_connections = 3".to_owned(),
    ];
    let world = World::own(ClusterOptions {
        settings,
        ..ClusterOptions::default()
    })
    .await;
    let target = world.target();
    let out = world.mint(&target).await;
    world
        .cluster
        .psql("postgres", "create role crowd login password 'c'")
        .unwrap();
    let crowd: Vec<_> = (0..30)
        .map(|_| world.cluster.session(("crowd", "c"), "orders", "").unwrap())
        .collect();
    ephor_testkit::wait::until("no connection is left", Duration::from_secs(30), || {
        let refused = world
            .cluster
            .psql_as(out.pair(), "orders", "select 1")
            .err()?;
        refused
            .to_string()
            .contains("remaining connection slots")
            .then_some(())
    })
    .unwrap();
    // One that has no connections yet makes nothing that it could not end.
    let (login, secret) = login(&["orders_rw"]);
    let late = world
        .target()
        .mint(EPOCH, &login, Some(&verifier(&secret)))
        .await;
    assert!(matches!(late, Err(Failed::Unreachable { .. })), "{late:?}");
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    drop(crowd);
    ephor_testkit::wait::until("connections are free", Duration::from_secs(30), || {
        world
            .cluster
            .psql_as(("crowd", "c"), "orders", "select 1")
            .ok()
    })
    .unwrap();
    world.assert_dead(&out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_and_restarts_is_asked_again() {
    let mut world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let (out, other) = (world.mint(&target).await, world.mint(&target).await);
    world.cluster.crash().unwrap();
    let away = target.revoke(EPOCH, &out.ending()).await;
    assert!(
        matches!(
            away,
            Err(Failed::Unreachable { .. } | Failed::Unknown { .. })
        ),
        "{away:?}"
    );
    let away = target.revoke(EPOCH, &out.ending()).await;
    assert!(matches!(away, Err(Failed::Unreachable { .. })), "{away:?}");
    world.cluster.boot().unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    // Sessions that were kept open have ended with it; nobody notices.
    world.cluster.stop().unwrap();
    world.cluster.boot().unwrap();
    let revoked = target
        .revoke_many(EPOCH, &[other.ending(), out.ending()])
        .await;
    assert!(revoked.iter().all(Result::is_ok), "{revoked:?}");
    world.assert_dead(&other);
}
