//! `target init` and `target check`.

use std::path::PathBuf;

use ephor_crypto::Secret;
use ephor_proto::postgres::Address;
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions, Tls as ServerTls};

use super::kit::{EPOCH, World, ident, options};
use crate::kind::postgres::*;
use crate::tasks::Tasks;

/// All that `init` leaves in a server, as text.
fn dumped(cluster: &Cluster) -> String {
    let mut all = String::new();
    for database in ["ephor", "orders", "billing"] {
        let functions = "select p.oid::regprocedure || ' ' || proowner::regrole || ' ' || prosecdef || ' ' || md5(prosrc)
            || ' ' || coalesce(proconfig::text, '') || ' ' || coalesce(proacl::text, '') from pg_proc p where pronamespace = 'ephor'::regnamespace order by 1;
            select relname || ' ' || relowner::regrole || ' ' || coalesce(relacl::text, '') from pg_class where relnamespace = 'ephor'::regnamespace order by 1;
            select nspacl from pg_namespace where nspname = 'ephor'; select role from ephor.allowed order by 1;
            select datacl from pg_database where datname = current_database()";
        all.push_str(&cluster.psql(database, functions).unwrap());
    }
    let roles = "select rolname, rolsuper, rolcanlogin, rolcreaterole, rolinherit from pg_roles where rolname !~ '^pg_' order by 1;
        select roleid::regrole, member::regrole, admin_option from pg_auth_members order by 1, 2";
    all + &cluster.psql("postgres", roles).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_does_the_same_as_what_is_run_and_both_may_be_repeated() {
    let world = World::own(ClusterOptions::default()).await;
    let by_run = dumped(&world.cluster);
    install(&world.admin(), &options(None), &world.tasks)
        .await
        .unwrap();
    assert_eq!(dumped(&world.cluster), by_run);
    let script = install_sql(&options(None)).unwrap();
    world.cluster.psql("postgres", &script).unwrap();
    assert_eq!(dumped(&world.cluster), by_run);

    let typed = Cluster::start().unwrap();
    typed
        .psql(
            "postgres",
            "create database orders; create database billing",
        )
        .unwrap();
    for _ in 0..2 {
        typed.psql("postgres", &script).unwrap();
    }
    assert_eq!(dumped(&typed), by_run);
    // A login lives through it, and the password stays.
    let target = world.target();
    let out = world.mint(&target).await;
    install(&world.admin(), &options(None), &world.tasks)
        .await
        .unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);

    // A broker makes nothing where an older version is.
    world
        .cluster
        .psql("ephor", "update ephor.version set version = 1")
        .unwrap();
    let target = world.target();
    let refused = target.begin_epoch(EPOCH).await.unwrap_err().to_string();
    assert!(
        refused.contains("version 1 is there; run `ephor target init` again"),
        "{refused}"
    );
    install(&world.admin(), &options(None), &world.tasks)
        .await
        .unwrap();
    target.begin_epoch(EPOCH).await.unwrap();

    // A newer version is not overwritten.
    world
        .cluster
        .psql("ephor", "insert into ephor.version values (99)")
        .unwrap();
    let refused = install(&world.admin(), &options(None), &world.tasks)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("version 99"), "{refused}");
    let findings = check(&world.access(), &[], &world.tasks).await;
    assert!(
        findings
            .iter()
            .any(|one| one.grade == Grade::Wrong && one.what.contains("schema version 99"))
    );
}

/// A statement of the script waits for others and is waited for: what it locks stays locked until COMMIT.
#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_is_repeated_keeps_nobody_waiting() {
    let world = World::own(ClusterOptions::default()).await;
    let script = install_sql(&options(None)).unwrap();
    let superuser = "create role dba login superuser password 'x'";
    world.cluster.psql("postgres", superuser).unwrap();
    let mut typed = world.cluster.session(("dba", "x"), "postgres", "").unwrap();
    let mut pieces = script.split("\nCOMMIT;\n").peekable();
    let mut held = 0;
    while let Some(piece) = pieces.next() {
        typed.send(piece).unwrap();
        if pieces.peek().is_none() {
            break;
        }
        held += 1;
        typed.send(&format!("SELECT 'held {held}';")).unwrap();
        let is_held = format!(
            "select exists (select from pg_stat_activity where usename = 'dba'
             and state = 'idle in transaction' and query = $$SELECT 'held {held}';$$)"
        );
        world.cluster.wait_true("postgres", &is_held).unwrap();
        // A broker that starts meanwhile, too.
        let target = world.target();
        target.begin_epoch(EPOCH).await.unwrap();
        let out = world.mint(&target).await;
        target.revoke(EPOCH, &out.ending()).await.unwrap();
        world.assert_dead(&out);
        typed.send("COMMIT;").unwrap();
    }
    assert_eq!(held, 6);
    let told = typed.finish().unwrap();
    assert!(!told.contains("ERROR"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused() {
    let world = World::own(ClusterOptions::default()).await;
    let same = Options {
        admin_database: ident("orders"),
        ..options(None)
    };
    assert!(install(&world.admin(), &same, &world.tasks).await.is_err());
    let none = Options {
        make_groups: false,
        static_roles: Vec::new(),
        groups: vec![ident("nobody here")],
        ..options(None)
    };
    let refused = install(&world.admin(), &none, &world.tasks)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("the group role nobody here does not exist"),
        "{refused}"
    );
    world
        .cluster
        .psql("postgres", "create role strong login superuser")
        .unwrap();
    let strong = Options {
        login: ident("strong"),
        ..options(None)
    };
    let refused = install(&world.admin(), &strong, &world.tasks)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("rights that the broker must not have"),
        "{refused}"
    );
    world
        .cluster
        .psql("postgres", "create database tenant")
        .unwrap();
    world
        .cluster
        .psql(
            "tenant",
            "create role tenant; create schema ephor authorization tenant",
        )
        .unwrap();
    let theirs = Options {
        databases: vec![ident("tenant")],
        ..options(None)
    };
    let refused = install(&world.admin(), &theirs, &world.tasks)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("somebody else is in the way"), "{refused}");
    // Hostile names are only names.
    let odd = [
        "a\"b; drop role ephor",
        "it's",
        "back\\slash",
        "$ephor$",
        "@login@",
        "Größe %s %I",
    ];
    for name in odd {
        world
            .cluster
            .psql(
                "postgres",
                &format!("create role \"{}\" nologin", name.replace('"', "\"\"")),
            )
            .unwrap();
    }
    let names = Options {
        groups: odd.iter().map(|name| ident(name)).collect(),
        ..options(None)
    };
    install(&world.admin(), &names, &world.tasks).await.unwrap();
    let target = world.target();
    let (wanted, secret) = super::kit::login(&["x'; drop role weak; --"]);
    let verifier = super::kit::verifier(&secret);
    let refused = target.mint(EPOCH, &wanted, Some(&verifier)).await;
    let refused = refused.unwrap_err().to_string();
    let mend = r"ephor target init URL --group 'x'\''; drop role weak; --'";
    assert!(refused.ends_with(mend), "{refused}");
    for name in odd {
        let (wanted, secret) = super::kit::login(&[name]);
        target
            .mint(EPOCH, &wanted, Some(&super::kit::verifier(&secret)))
            .await
            .unwrap();
        let ending = Ending {
            credential: wanted.credential,
            role: wanted.role,
            reassign: Some(ident(name)),
        };
        target.revoke(EPOCH, &ending).await.unwrap();
    }
}

/// As at a managed server: whoever installs may make roles and databases and is no superuser.
#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_who_is_no_superuser_can_install() {
    let world = World::own(ClusterOptions::default()).await;
    let fresh = Cluster::start().unwrap();
    let make = "create role master login password 'm' createrole createdb;
        grant pg_signal_backend, pg_read_all_stats to master with admin option;
        create database orders owner master; create database billing owner master";
    fresh.psql("postgres", make).unwrap();
    let admin = Admin {
        address: Address::of("127.0.0.1", fresh.port()).unwrap(),
        user: "master".to_owned(),
        password: Some(Secret::from_string("m".to_owned())),
        database: "postgres".to_owned(),
        tls: Tls::Off,
    };
    let secret = Secret::from_string("first".to_owned());
    for _ in 0..2 {
        install(&admin, &options(Some(&secret)), &world.tasks)
            .await
            .unwrap();
        // Else he would be asked for a certificate himself, from the next one on.
        let own = fresh.psql_as(
            ("master", "m"),
            "postgres",
            "grant ephor_certificate to master",
        );
        own.unwrap();
    }
    install(&admin, &options(Some(&secret)), &world.tasks)
        .await
        .unwrap();
    let kept = "select count(*) from pg_auth_members where member = 'master'::regrole and roleid::regrole::text ~ '^ephor'";
    assert_eq!(fresh.psql("postgres", kept).unwrap(), "0");
    let mut access = world.access();
    access.hosts = vec![admin.address.clone()];
    let target = Target::new(access, &world.tasks);
    let out = world.mint(&target).await;
    assert_eq!(
        fresh.psql_as(out.pair(), "orders", "select 1").unwrap(),
        "1"
    );
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert!(fresh.psql_as(out.pair(), "orders", "select 1").is_err());
    assert_eq!(
        fresh
            .psql(
                "postgres",
                &format!("select count(*) from pg_roles where oid = {}", out.oid)
            )
            .unwrap(),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_missing_and_how_to_mend_it() {
    let world = World::own(ClusterOptions::default()).await;
    let groups = [ident("orders_rw"), ident("orders_ro")];
    let wrong = async || -> Vec<Finding> {
        let all = check(&world.access(), &groups, &world.tasks).await;
        all.into_iter()
            .filter(|one| one.grade == Grade::Wrong)
            .collect()
    };
    assert_eq!(wrong().await, []);
    for (breaks, said, mends) in [
        (
            "alter role ephor createrole",
            "may do more",
            "alter role ephor nocreaterole",
        ),
        (
            "revoke pg_signal_backend from ephor_signal",
            "cannot end sessions",
            "grant pg_signal_backend to ephor_signal",
        ),
        (
            "alter role orders_rw login",
            "orders_rw",
            "alter role orders_rw nologin",
        ),
        (
            "alter role ephor_owner nocreaterole",
            "may make roles",
            "alter role ephor_owner createrole",
        ),
        (
            "revoke connect on database billing from ephor, public",
            "billing",
            "grant connect on database billing to ephor",
        ),
    ] {
        world.cluster.psql("postgres", breaks).unwrap();
        let found = wrong().await;
        assert!(
            found
                .iter()
                .any(|one| one.what.contains(said) && one.mend.is_some()),
            "{breaks}: {found:?}"
        );
        world.cluster.psql("postgres", mends).unwrap();
        assert_eq!(wrong().await, [], "{mends}");
    }
    // What may be made and policy does not name: it may be another installation's.
    let found = check(&world.access(), &groups[..1], &world.tasks).await;
    let more = found.iter().find(|one| one.what.contains("orders_ro"));
    assert!(
        more.is_some_and(|one| one.grade == Grade::Weak
            && one
                .mend
                .as_deref()
                .is_some_and(|mend| mend.contains("DELETE FROM ephor.allowed"))),
        "{found:?}"
    );
    // Who is asked for a certificate and is no login of ours; a login that was made is.
    let members = "create role dba login; create role staff nologin; grant staff to dba; create role ann login;
        grant ephor_certificate to staff, ann; create role eph_x_y_z login in role ephor_certificate";
    world.cluster.psql("postgres", members).unwrap();
    let found = check(&world.access(), &groups, &world.tasks).await;
    let asked: Vec<_> = found
        .iter()
        .filter(|one| one.what.contains("is in ephor_certificate"))
        .map(|one| (one.grade, one.what.split(' ').next().unwrap()))
        .collect();
    assert_eq!(asked, [(Grade::Weak, "\"ann\""), (Grade::Weak, "\"dba\"")]);
    let gone = "drop role dba; drop role staff; drop role ann; drop role eph_x_y_z";
    world.cluster.psql("postgres", gone).unwrap();
    // Without the right to see who is connected from where, use is unknown and never guessed.
    world
        .cluster
        .psql("postgres", "revoke pg_read_all_stats from ephor_signal")
        .unwrap();
    let target = world.target();
    let out = world.mint(&target).await;
    let session = world.cluster.session(out.pair(), "orders", "").unwrap();
    let seen = format!(
        "select count(*) = 1 from pg_stat_activity where usesysid = {}",
        out.oid
    );
    world.cluster.wait_true("postgres", &seen).unwrap();
    assert!(matches!(target.uses().await.unwrap(), Uses::Unknown(_)));
    let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
    assert_eq!(evidence.sessions_ended, 1);
    drop(session);
    // A line of pg_hba.conf, the password.
    let conf = world.cluster.data().join("pg_hba.conf");
    let before = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(
        &conf,
        format!("host all ephor 127.0.0.1/32 reject\n{before}"),
    )
    .unwrap();
    world
        .cluster
        .psql("postgres", "select pg_reload_conf()")
        .unwrap();
    let found = wrong().await;
    assert!(
        found.iter().any(|one| one
            .mend
            .as_deref()
            .is_some_and(|mend| mend.contains("pg_hba.conf"))),
        "{found:?}"
    );
    std::fs::write(&conf, before).unwrap();
    world
        .cluster
        .psql("postgres", "select pg_reload_conf()")
        .unwrap();
    world.set_password("another");
    let found = wrong().await;
    assert!(
        found.iter().any(|one| one
            .mend
            .as_deref()
            .is_some_and(|mend| mend.contains("PASSWORD"))),
        "{found:?}"
    );
}

/// A server with a certificate is believed by its name under the CA, and by nothing less.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_by_name() {
    let made = ServerTls::make().unwrap();
    let world = World::own(ClusterOptions {
        hba: vec![
            "hostssl ephor,orders,billing ephor 127.0.0.1/32 scram-sha-256".into(),
            "hostnossl all ephor all reject".into(),
        ],
        ..made.options()
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let reach = async |host: &str, ca_file: PathBuf| {
        let mut access = world.access();
        access.tls = Tls::VerifyFull { ca_file };
        access.hosts = vec![Address::of(host, world.cluster.port()).unwrap()];
        Target::new(access, &Tasks::new()).position().await
    };
    let good = file("ca.pem", &made.ca);
    // A slow start refuses whoever asks whether it is ready.
    let start = world.cluster.log().len();
    reach("localhost", good.clone()).await.unwrap();
    let bound = world.cluster.log().split_off(start);
    assert!(!bound.contains("FATAL"), "{bound}");
    let wrong_name = reach("127.0.0.1", good).await;
    assert!(
        matches!(&wrong_name, Err(Failed::Unreachable { why, .. }) if why.contains("127.0.0.1")),
        "{wrong_name:?}"
    );
    let other = ServerTls::make().unwrap();
    let wrong_ca = reach("localhost", file("other.pem", &other.ca)).await;
    assert!(
        matches!(wrong_ca, Err(Failed::Unreachable { .. })),
        "{wrong_ca:?}"
    );
    let none = reach("localhost", file("none.pem", b"not a certificate")).await;
    assert!(
        matches!(&none, Err(Failed::Unreachable { why, .. }) if why.contains("none.pem")),
        "{none:?}"
    );
    let off = Target::new(world.access(), &world.tasks).position().await;
    assert!(off.is_err(), "the server wants TLS: {off:?}");
}

/// Somebody who may make functions in a database where an administrator works waits for him there,
/// with functions that fit a call better than the server's own.
fn ambushed(cluster: &Cluster, database: &str) {
    let body = "language plpgsql as $$ begin
        begin execute 'alter role mallory superuser'; exception when others then null; end;";
    let sql = format!(
        "grant create, usage on schema public to mallory; set role mallory;
         create function public.format(text, text) returns text {body} return pg_catalog.format($1, variadic array[$2]); end $$;
         create function public.format(text, text, text) returns text {body} return pg_catalog.format($1, variadic array[$2, $3]); end $$;
         create function public.format(text, name) returns text {body} return pg_catalog.format($1, variadic array[$2::text]); end $$;
         create function public.format(text, regprocedure, text) returns text {body} return pg_catalog.format($1, $2, $3); end $$;
         create function public.quote_ident(name) returns text {body} return pg_catalog.quote_ident($1::text); end $$;
         create function public.has_function_privilege(regprocedure, text) returns boolean {body} return true; end $$;"
    );
    cluster.psql(database, &sql).unwrap();
}

fn superusers(cluster: &Cluster) -> String {
    let sql = "select string_agg(rolname, ',' order by rolname) from pg_roles where rolsuper";
    cluster.psql("postgres", sql).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_who_waits_for_the_administrator_gains_nothing() {
    let world = World::own(ClusterOptions::default()).await;
    world
        .cluster
        .psql("postgres", "create role mallory login")
        .unwrap();
    for database in ["orders", "billing"] {
        ambushed(&world.cluster, database);
    }
    // The ambush itself works: unpinned, it does what it says.
    world
        .cluster
        .psql("orders", "select format('%I', 'x'::text)")
        .unwrap();
    assert_eq!(superusers(&world.cluster), "mallory,postgres");
    let again = || {
        world
            .cluster
            .psql("postgres", "alter role mallory nosuperuser")
            .unwrap()
    };
    again();

    let new = Options {
        login: ident("ephor2"),
        groups: vec![ident("new_rw")],
        ..options(None)
    };
    let admin = Admin {
        database: "orders".to_owned(),
        ..world.admin()
    };
    install(&admin, &new, &world.tasks).await.unwrap();
    assert_eq!(superusers(&world.cluster), "postgres", "init");

    let new = Options {
        login: ident("ephor3"),
        groups: vec![ident("newer_rw")],
        ..options(None)
    };
    let script = install_sql(&new).unwrap();
    world.cluster.psql("orders", &script).unwrap();
    assert_eq!(superusers(&world.cluster), "postgres", "--sql");

    let as_superuser = Access {
        user: "postgres".to_owned(),
        password: Password::None,
        hosts: vec![world.admin().address],
        ..world.access()
    };
    let found = check(&as_superuser, &[ident("orders_rw")], &world.tasks).await;
    assert!(
        found.iter().any(|one| one.what.contains("can be dropped")),
        "{found:?}"
    );
    assert_eq!(superusers(&world.cluster), "postgres", "check");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_check_and_lending_say_the_same_of_a_role_that_may_not_be_lent() {
    let world = World::own(ClusterOptions::default()).await;
    let psql = |sql: &str| world.cluster.psql("postgres", sql).unwrap();
    psql(
        "create role fixed login; create role helper; grant pg_execute_server_program to helper; grant helper to fixed",
    );
    let lent = || Options {
        static_roles: vec![ident("fixed")],
        ..options(None)
    };
    let reaches = "could act as pg_execute_server_program";
    let refused = install(&world.admin(), &lent(), &world.tasks).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains(reaches), "{refused}");
    psql("revoke helper from fixed");
    for _ in 0..2 {
        install(&world.admin(), &lent(), &world.tasks)
            .await
            .unwrap();
    }
    let roles = [ident("fixed")];
    let say = async || check_static_roles(&world.access(), &roles, &world.tasks).await;
    let found = say().await;
    assert_eq!(
        found,
        [Finding {
            grade: Grade::Ok,
            what: "\"fixed\" may be lent".to_owned(),
            mend: None
        }]
    );
    for (breaks, said, mends) in [
        ("grant helper to fixed", reaches, "revoke helper from fixed"),
        (
            "grant fixed to helper",
            "others may act as the role fixed",
            "revoke fixed from helper",
        ),
        (
            "alter role fixed nologin",
            "somebody has shut it",
            "alter role fixed login",
        ),
        (
            "grant ephor to fixed",
            "could act as ephor",
            "revoke ephor from fixed",
        ),
    ] {
        psql(breaks);
        let found = say().await;
        assert!(
            found[0].grade == Grade::Wrong && found[0].what.contains(said),
            "{breaks}: {found:?}"
        );
        assert!(found[0].mend.is_some());
        psql(mends);
        assert_eq!(say().await[0].grade, Grade::Ok, "{mends}");
    }
}
