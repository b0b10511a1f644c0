//! (c): a creator that stands still inside the one call, while somebody else revokes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use ephor_testkit::postgres::Options as ClusterOptions;
use rustix::process::Signal;

use super::kit::{EPOCH, World, login, verifier};
use crate::kind::postgres::*;

/// The creating call as another broker with the same password sends it.
fn mint_sql(login: &Login) -> String {
    format!(
        "select role_oid from ephor.mint({EPOCH}, '{}', '{}', array['orders_rw'], {}, null, null, array[]::text[], {})",
        login.credential,
        login.role,
        login.valid_until.as_millis(),
        login.deadline.as_millis()
    )
}

fn ending(login: &Login) -> Ending {
    Ending {
        credential: login.credential,
        role: login.role.clone(),
        reassign: None,
    }
}

fn roles(world: &World, login: &Login) -> String {
    world.ask(&format!(
        "select count(*) from pg_roles where rolname = '{}'",
        login.role
    ))
}

fn creator(world: &World) -> String {
    let state = "select pid from pg_stat_activity where usename = 'ephor' and state = 'idle in transaction' and query ~ 'ephor.mint'";
    ephor_testkit::wait::until(
        "the creator has created",
        std::time::Duration::from_secs(20),
        || Some(world.ask(state)).filter(|pid| !pid.is_empty()),
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_c_a_creator_that_does_not_commit_is_ended_and_its_login_never_comes() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    target.begin_epoch(EPOCH).await.unwrap();
    let (login, _) = login(&["orders_rw"]);
    let mut other = world
        .cluster
        .session(("ephor", "first"), "ephor", "")
        .unwrap();
    other
        .send(&format!("begin; {};", mint_sql(&login)))
        .unwrap();
    creator(&world);
    let evidence = target.revoke(EPOCH, &ending(&login)).await.unwrap();
    assert!(evidence.role_absent && !evidence.dropped);
    let told = other.finish().unwrap();
    assert!(told.contains("terminating connection"), "{told}");
    assert_eq!(roles(&world, &login), "0");
}

/// The server's own process of the call stands still: it cannot be ended until it goes on, and nobody
/// says that the login is dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_creator_whose_backend_is_stopped_is_never_called_dead() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    target.begin_epoch(EPOCH).await.unwrap();
    let (login, _) = login(&["orders_rw"]);
    let mut other = world
        .cluster
        .session(("ephor", "first"), "ephor", "")
        .unwrap();
    other
        .send(&format!("begin; {};", mint_sql(&login)))
        .unwrap();
    let pid: i32 = creator(&world).parse().unwrap();
    world.cluster.signal_backend(pid, Signal::STOP).unwrap();
    let stuck = target.revoke(EPOCH, &ending(&login)).await;
    let named = matches!(&stuck, Err(Failed::Busy { why, .. }) if why.contains(&format!("session {pid} of ephor")));
    assert!(named, "{stuck:?}");
    // It would commit now, if it could.
    other.send("commit;").unwrap();
    world.cluster.signal_backend(pid, Signal::CONT).unwrap();
    target.revoke(EPOCH, &ending(&login)).await.unwrap();
    assert!(other.finish().unwrap().contains("terminating connection"));
    assert_eq!(roles(&world, &login), "0");
}

/// The call was sent, and not the message that ends the transaction (extended protocol, no Sync).
#[tokio::test(flavor = "multi_thread")]
async fn a_creator_that_sent_no_sync_is_ended() {
    let hba = vec!["local ephor ephor trust".to_owned()];
    let world = World::own(ClusterOptions {
        hba,
        ..ClusterOptions::default()
    })
    .await;
    let target = world.target();
    target.begin_epoch(EPOCH).await.unwrap();
    let (login, secret) = login(&["orders_rw"]);
    let mut wire = unsynced(&world, &mint_sql(&login));
    let held = "select count(*) = 1 from pg_locks l join pg_stat_activity a using (pid)
        where a.usename = 'ephor' and l.relation = 'ephor.fence'::regclass and l.mode = 'RowExclusiveLock'";
    world.cluster.wait_true("ephor", held).unwrap();
    target.revoke(EPOCH, &ending(&login)).await.unwrap();
    let mut rest = Vec::new();
    // Its connection has ended, whatever it sends now.
    let _ = wire.write_all(b"S\0\0\0\x04");
    let _ = wire.read_to_end(&mut rest);
    assert!(String::from_utf8_lossy(&rest).contains("terminating connection"));
    assert_eq!(roles(&world, &login), "0");
    let late = target.mint(EPOCH, &login, Some(&verifier(&secret))).await;
    assert!(matches!(late, Err(Failed::Fenced { .. })), "{late:?}");
}

/// StartupMessage, then Parse, Bind, Execute and Flush of one statement.
fn unsynced(world: &World, sql: &str) -> UnixStream {
    let path = world
        .cluster
        .socket_dir()
        .join(format!(".s.PGSQL.{}", world.cluster.port()));
    let mut wire = UnixStream::connect(path).unwrap();
    wire.set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let mut startup = vec![0, 3, 0, 0];
    startup.extend(b"user\0ephor\0database\0ephor\0\0");
    let mut message = u32::try_from(startup.len() + 4)
        .unwrap()
        .to_be_bytes()
        .to_vec();
    message.extend(startup);
    wire.write_all(&message).unwrap();
    let mut seen = Vec::new();
    // ReadyForQuery, idle.
    while !seen.ends_with(b"Z\0\0\0\x05I") {
        let mut byte = [0];
        wire.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    let mut send = |kind: u8, body: &[u8]| {
        let mut message = vec![kind];
        message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend(body);
        wire.write_all(&message).unwrap();
    };
    send(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat());
    send(b'B', b"\0\0\0\0\0\0\0\0");
    send(b'E', b"\0\0\0\0\0");
    send(b'H', b"");
    wire
}

/// An old broker, after a new epoch began elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_is_over_does_nothing_and_one_that_begins_waits_for_nobody_of_it() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let out = world.mint(&target).await;
    let (second, secret) = login(&["orders_rw"]);
    let mut other = world
        .cluster
        .session(("ephor", "first"), "ephor", "")
        .unwrap();
    other
        .send(&format!("begin; {};", mint_sql(&second)))
        .unwrap();
    creator(&world);
    target.begin_epoch(EPOCH + 1).await.unwrap();
    assert!(other.finish().unwrap().contains("terminating connection"));
    assert_eq!(roles(&world, &second), "0");
    let minted = target.mint(EPOCH, &second, Some(&verifier(&secret))).await;
    assert!(matches!(minted, Err(Failed::Fenced { .. })), "{minted:?}");
    let revoked = target.revoke(EPOCH, &out.ending()).await;
    assert!(matches!(revoked, Err(Failed::Fenced { .. })), "{revoked:?}");
    let until = ephor_proto::time::UnixMillis::from_millis(super::kit::now() + 60_000);
    let extended = target
        .extend(EPOCH, out.login.credential, &out.login.role, until)
        .await;
    assert!(
        matches!(extended, Err(Failed::Fenced { .. })),
        "{extended:?}"
    );
    assert!(matches!(
        target.begin_epoch(EPOCH).await,
        Err(Failed::Fenced { .. })
    ));
    // A call of a later epoch begins it.
    target.revoke(EPOCH + 2, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    assert!(matches!(
        target.begin_epoch(EPOCH + 1).await,
        Err(Failed::Fenced { .. })
    ));
}

/// Another broker's login may not speak for our installation.
#[tokio::test(flavor = "multi_thread")]
async fn another_installation_is_never_touched() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let out = world.mint(&target).await;
    world.cluster.psql("ephor", "create role ephor_two login password 'two' noinherit; grant connect on database ephor to ephor_two;
        grant usage on schema ephor to ephor_two; grant select on ephor.version to ephor_two;
        grant execute on all functions in schema ephor to ephor_two").unwrap();
    std::fs::write(world.password_file(), "two\n").unwrap();
    let mut access = world.access();
    access.user = "ephor_two".to_owned();
    let stranger = Target::new(access, &world.tasks);
    for epoch in [EPOCH, EPOCH + 1] {
        let refused = stranger.revoke(epoch, &out.ending()).await;
        assert!(
            matches!(refused, Err(Failed::Refused { .. })),
            "{refused:?}"
        );
    }
    let found = target.ours().await.unwrap();
    let mine = found.iter().find(|one| one.oid == out.oid).unwrap();
    assert_eq!(
        mine.installation.as_deref(),
        Some(crate::kind::name::installation_part("test").as_str())
    );
    assert_eq!(
        (mine.can_login, mine.fenced, mine.credential),
        (true, false, Some(out.login.credential))
    );
    assert_eq!(mine.groups, ["orders_rw"]);
}

/// A transaction of one installation that does not end holds up no other one.
#[tokio::test(flavor = "multi_thread")]
async fn installations_do_not_wait_for_each_other() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let out = world.mint(&target).await;
    world
        .cluster
        .psql(
            "ephor",
            "create role ephor_two login password 'two' noinherit; grant connect on database ephor to ephor_two;
             grant usage on schema ephor to ephor_two; grant select on ephor.version to ephor_two;
             grant execute on all functions in schema ephor to ephor_two",
        )
        .unwrap();
    let mut other = world
        .cluster
        .session(("ephor_two", "two"), "ephor", "")
        .unwrap();
    other
        .send("begin; select ephor.begin_epoch('bbbbbb', 1);")
        .unwrap();
    let held = "select count(*) = 1 from pg_stat_activity where usename = 'ephor_two' and state = 'idle in transaction'";
    world.cluster.wait_true("ephor", held).unwrap();
    target.begin_epoch(EPOCH + 1).await.unwrap();
    let (second, secret) = login(&["orders_rw"]);
    target
        .mint(EPOCH + 1, &second, Some(&verifier(&secret)))
        .await
        .unwrap();
    for ending in [ending(&second), out.ending()] {
        target.revoke(EPOCH + 1, &ending).await.unwrap();
    }
    other.send("commit;").unwrap();
    assert!(!other.finish().unwrap().contains("terminating"));
}
