//! A login from mint to proof, and every call again.

use ephor_proto::time::UnixMillis;

use super::kit::{EPOCH, login, now, shared, verifier};
use crate::kind::postgres::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_made_used_extended_and_proven_gone() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let run = |sql| world.cluster.psql_as(out.pair(), "orders", sql);
    assert_eq!(run("select session_user").unwrap(), out.name());
    assert_eq!(run("show statement_timeout").unwrap(), "30s");
    assert_eq!(run("insert into t values (1) returning n").unwrap(), "1");
    let mut as_group = world.cluster.client("psql", out.name(), out.pair().1);
    as_group.env("PGOPTIONS", out.login.startup_options());
    as_group.args([
        "-p",
        &world.cluster.port().to_string(),
        "-d",
        "orders",
        "-XAtc",
        "select current_user",
    ]);
    let said = as_group.output().unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap().trim(), "orders_rw");

    let later = UnixMillis::from_millis(now() + 3_600_000);
    target
        .extend(EPOCH, out.login.credential, &out.login.role, later)
        .await
        .unwrap();
    let until = format!(
        "select floor(extract(epoch from rolvaliduntil))::bigint from pg_roles where oid = {}",
        out.oid
    );
    assert_eq!(world.ask(&until), (later.as_millis() / 1000).to_string());

    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    assert!(evidence.role_absent && evidence.dropped);
    assert_eq!(evidence.role_oid, Some(out.oid));
    assert_eq!(
        (evidence.sessions_ended, evidence.partial.as_deref()),
        (0, None)
    );
    let system = "select system_identifier from pg_control_system()";
    assert_eq!(evidence.system_id, world.ask(system));
    assert_eq!(evidence.timeline, 1);

    // Already gone is a proof, and the fence stays.
    let again = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert!(!again.dropped && again.role_absent);
    let extended = target
        .extend(EPOCH, out.login.credential, &out.login.role, later)
        .await;
    assert!(
        matches!(extended, Err(Failed::Fenced { .. })),
        "{extended:?}"
    );
    let minted = target
        .mint(EPOCH, &out.login, Some(&verifier(&out.password)))
        .await;
    assert!(matches!(minted, Err(Failed::Fenced { .. })), "{minted:?}");
    let census = target
        .census_again(Some(out.oid), &out.login.role, (&evidence.starting, &[]))
        .await
        .unwrap();
    assert!(census.role_absent && census.sessions == 0);
}

/// A broker that is paused in a renewal, and goes on after the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_renewal_moves_no_end_back() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let valid_until = || {
        let sql =
            "select floor(extract(epoch from rolvaliduntil))::bigint from pg_roles where oid =";
        world.ask(&format!("{sql} {}", out.oid))
    };
    let extend = async |until| {
        let (credential, role) = (out.login.credential, &out.login.role);
        target.extend(EPOCH, credential, role, until).await.unwrap();
        valid_until()
    };
    let seconds = |time: UnixMillis| (time.as_millis() / 1000).to_string();
    let [late, next] =
        [600_000, 1_200_000].map(|more| out.login.valid_until.saturating_add_millis(more));
    let made = out.login.valid_until.saturating_sub_millis(1000);
    assert_eq!(extend(made).await, seconds(out.login.valid_until));
    assert_eq!(extend(next).await, seconds(next));
    assert_eq!(extend(late).await, seconds(next));
    // What somebody else sets is put right by any call.
    for (set, call) in [("infinity", late), ("2020-01-01", next)] {
        let sql = format!("alter role {} valid until '{set}'", out.name());
        world.cluster.psql("postgres", &sql).unwrap();
        assert_eq!(extend(call).await, seconds(next), "{set}");
    }
    target.revoke(EPOCH, &out.ending()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_mint_again_says_the_same_and_another_is_refused() {
    let world = shared();
    let target = world.target();
    let (login, secret) = login(&["orders_ro"]);
    let verifier = verifier(&secret);
    let (one, two) = tokio::join!(
        target.mint(EPOCH, &login, Some(&verifier)),
        target.mint(EPOCH, &login, Some(&verifier)),
    );
    assert_eq!(one.unwrap().oid, two.unwrap().oid);
    let other = Login {
        groups: vec![super::kit::ident("orders_rw")],
        ..login.clone()
    };
    let refused = target.mint(EPOCH, &other, Some(&verifier)).await;
    assert!(
        matches!(refused, Err(Failed::Refused { .. })),
        "{refused:?}"
    );
    let named = Ending {
        credential: login.credential,
        role: super::kit::login(&[]).0.role,
        reassign: None,
    };
    let refused = target.revoke(EPOCH, &named).await;
    assert!(
        matches!(refused, Err(Failed::Refused { .. })),
        "{refused:?}"
    );
    let ending = Ending {
        role: login.role.clone(),
        ..named
    };
    target.revoke(EPOCH, &ending).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_made_is_proven_and_never_made_later() {
    let world = shared();
    let target = world.target();
    let (login, secret) = login(&["orders_rw"]);
    let ending = Ending {
        credential: login.credential,
        role: login.role.clone(),
        reassign: None,
    };
    let evidence = target.revoke(EPOCH, &ending).await.unwrap();
    assert!(!evidence.dropped && evidence.role_absent && evidence.role_oid.is_none());
    let late = target.mint(EPOCH, &login, Some(&verifier(&secret))).await;
    assert!(matches!(late, Err(Failed::Fenced { .. })), "{late:?}");
    let (login, secret) = super::kit::login(&["orders_rw"]);
    let passed = Login {
        deadline: UnixMillis::from_millis(now() - 1),
        ..login
    };
    let late = target.mint(EPOCH, &passed, Some(&verifier(&secret))).await;
    assert!(matches!(late, Err(Failed::TooLate { .. })), "{late:?}");
    let none = format!(
        "select count(*) from pg_roles where rolname = '{}'",
        passed.role
    );
    assert_eq!(world.ask(&none), "0");
}
