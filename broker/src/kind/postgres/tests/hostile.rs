//! What a tenant can do about its end, and what it may leave.

use ephor_testkit::postgres::Options as ClusterOptions;

use super::kit::{EPOCH, World, ident, login, shared, verifier};
use crate::kind::postgres::*;

/// (b): any advisory lock can be taken by anybody; none of ours waits for one.
#[tokio::test(flavor = "multi_thread")]
async fn case_b_advisory_locks_hold_up_nothing() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let mut session = world.cluster.session(out.pair(), "orders", "").unwrap();
    session
        .send(
            "select count(pg_advisory_lock(n)) from generate_series(-500, 500) n; select 'locked';",
        )
        .unwrap();
    let held = format!(
        "select count(*) > 1000 from pg_locks l join pg_stat_activity a using (pid) where a.usesysid = {}",
        out.oid
    );
    world.cluster.wait_true("postgres", &held).unwrap();
    let other = world.mint(&target).await;
    target.revoke(EPOCH, &other.ending()).await.unwrap();
    world.assert_dead(&other);
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

/// A session holds its own row of `pg_authid`, which NOLOGIN has to write, or what `DROP ROLE` waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_that_holds_its_own_role_is_ended_first() {
    for sql in [
        "begin; alter role current_user password 'mine';",
        "begin; create table held (n int);",
    ] {
        let world = shared();
        let target = world.target();
        let out = world.mint(&target).await;
        let mut session = world.cluster.session(out.pair(), "orders", "").unwrap();
        session.send(sql).unwrap();
        let seen = format!(
            "select exists (select from pg_stat_activity where usesysid = {} and state = 'idle in transaction' and query ~ 'role|table')",
            out.oid
        );
        world.cluster.wait_true("postgres", &seen).unwrap();
        let evidence = target.revoke(EPOCH, &out.ending()).await.unwrap();
        assert!(evidence.sessions_ended >= 1, "{sql}");
        world.assert_dead(&out);
    }
}

/// (e): what is reassigned could carry the stronger role's rights to anybody.
#[tokio::test(flavor = "multi_thread")]
async fn case_e_only_tables_and_sequences_go_to_the_group_and_functions_are_dropped() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let tag = &out.name()[out.name().len() - 12..];
    let make = format!(
        "create table kept_{tag} (id serial primary key, n int); insert into kept_{tag} (n) values (42);
         create sequence counted_{tag}; create view seen_{tag} as select 1 as n;
         create function trap_{tag}() returns text language sql security definer as 'select current_user::text';
         grant execute on function trap_{tag}() to public;"
    );
    world.cluster.psql_as(out.pair(), "orders", &make).unwrap();
    // Dropped with nothing given to anybody, unless policy says so.
    let ending = Ending {
        reassign: Some(ident("orders_rw")),
        ..out.ending()
    };
    target.revoke(EPOCH, &ending).await.unwrap();
    world.assert_dead(&out);
    let owner = |kind: &str, name: &str| {
        world.ask(&format!("select relkind::text || ' ' || relowner::regrole from pg_class where relname = '{name}_{tag}' and relkind = '{kind}'"))
    };
    assert_eq!(owner("r", "kept"), "r orders_rw");
    assert_eq!(owner("S", "counted"), "S orders_rw");
    assert_eq!(owner("v", "seen"), "");
    assert_eq!(world.ask(&format!("select n from kept_{tag}")), "42");
    assert_eq!(
        world.ask(&format!(
            "select count(*) from pg_proc where proname = 'trap_{tag}'"
        )),
        "0"
    );
    // The owner of the functions keeps no right of the group.
    assert_eq!(
        world.ask("select pg_has_role('ephor_owner', 'orders_rw', 'USAGE')"),
        "f"
    );
    let strong = Ending {
        reassign: Some(ident("postgres")),
        ..world.mint(&target).await.ending()
    };
    world
        .cluster
        .psql(
            "orders",
            &format!(
                "create table owned_{tag} (n int); alter table owned_{tag} owner to \"{}\"",
                strong.role
            ),
        )
        .unwrap();
    let refused = target.revoke(EPOCH, &strong).await;
    assert!(
        matches!(&refused, Err(Failed::Refused { why, .. }) if why.contains("nothing may be given")),
        "{refused:?}"
    );
    let plain = Ending {
        reassign: None,
        ..strong
    };
    target.revoke(EPOCH, &plain).await.unwrap();
}

/// (f): what was made as the group is the group's, and outlives the login. `check` says so.
#[tokio::test(flavor = "multi_thread")]
async fn case_f_what_was_made_as_the_group_stays_with_the_group() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let tag = &out.name()[out.name().len() - 12..];
    let make = format!(
        "set role orders_rw; create function left_{tag}() returns int language sql as 'select 1'"
    );
    world.cluster.psql_as(out.pair(), "orders", &make).unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    let owner = format!("select proowner::regrole from pg_proc where proname = 'left_{tag}'");
    assert_eq!(world.ask(&owner), "orders_rw");
    let findings = check(&world.access(), &[ident("orders_rw")], &world.tasks).await;
    let said = findings
        .iter()
        .any(|one| one.what.contains("a task can leave") && one.what.contains("orders_rw"));
    assert!(said, "{findings:?}");
}

/// (g): up to 15 a role with CREATEROLE may grant nearly anything, itself included.
#[tokio::test(flavor = "multi_thread")]
async fn case_g_neither_the_broker_nor_a_login_gets_further() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let try_mint = async |groups: &[&str]| {
        let (mut login, secret) = login(&["orders_rw"]);
        login.groups = groups
            .iter()
            .map(|g| serde_json::from_value(serde_json::json!(g)).unwrap())
            .collect();
        target.mint(EPOCH, &login, Some(&verifier(&secret))).await
    };
    world
        .cluster
        .psql(
            "postgres",
            "create role makers nologin createrole; create role outside nologin",
        )
        .unwrap();
    for group in ["outside", "makers", "postgres", "ephor"] {
        let refused = try_mint(&[group]).await;
        assert!(
            matches!(refused, Err(Failed::NotAllowed { .. })),
            "{group}: {refused:?}"
        );
    }
    // A group that is allowed, and that somebody has made stronger since.
    for stronger in [
        "makers",
        "pg_execute_server_program",
        "pg_write_server_files",
        "postgres",
        "ephor_signal",
    ] {
        world
            .cluster
            .psql("postgres", &format!("grant {stronger} to orders_rw"))
            .unwrap();
        let refused = try_mint(&["orders_rw"]).await;
        let because =
            matches!(&refused, Err(Failed::NotAllowed { why, .. }) if why.contains(stronger));
        assert!(because, "{stronger}: {refused:?}");
        world
            .cluster
            .psql("postgres", &format!("revoke {stronger} from orders_rw"))
            .unwrap();
    }
    let (mut odd, secret) = login(&["orders_rw"]);
    odd.settings = vec![("role".to_owned(), "postgres".to_owned())];
    let refused = target.mint(EPOCH, &odd, Some(&verifier(&secret))).await;
    assert!(
        matches!(refused, Err(Failed::NotAllowed { .. })),
        "{refused:?}"
    );
    // With the broker's own password there is nothing but the functions.
    let broker = |sql: &str| world.cluster.psql_as(("ephor", "first"), "ephor", sql);
    for sql in [
        "create role x",
        "set role ephor_owner",
        "select * from ephor.fence",
        "select ephor.signal(array[10::oid])",
        "select ephor.pass('abcdef', 3)",
        "create table ephor.x (n int)",
        "update ephor.allowed set role = 'postgres'",
        "select pg_read_file('/etc/passwd')",
        "create table x (n int)",
        "create temp table x (n int)",
    ] {
        let refused = broker(sql).unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{sql}: {refused}");
    }
    let member = world.cluster.psql_as(
        ("ephor", "first"),
        "orders",
        "select ephor.drop_owned(array['orders_rw'], null)",
    );
    assert_eq!(member.unwrap(), "0", "only a fenced login of ours");
    // A login makes no roles, neither as itself nor as its group.
    let out = world.mint(&target).await;
    for sql in [
        "create role child",
        "set role orders_rw; create role child",
        "alter role current_user valid until 'infinity'",
        "alter role current_user createrole",
        "set role ephor_owner",
        "select * from ephor.fence",
    ] {
        assert!(
            world.cluster.psql_as(out.pair(), "orders", sql).is_err(),
            "{sql}"
        );
    }
    assert!(
        world
            .cluster
            .psql_as(out.pair(), "ephor", "select 1")
            .is_err()
    );
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

/// Everything that a role can own or be given, in two databases.
#[tokio::test(flavor = "multi_thread")]
async fn attack_114_objects_in_two_databases_grants_and_default_privileges_go() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let tag = &out.name()[out.name().len() - 12..];
    let make = format!(
        "create schema s_{tag}; create table s_{tag}.mine (n int); grant select on s_{tag}.mine to orders_ro with grant option;
         create type mood_{tag} as enum ('a'); select lo_create(0); comment on schema s_{tag} is 'x';
         alter default privileges grant select on tables to orders_ro;
         alter role current_user set work_mem = '1MB';"
    );
    world.allow_schemas();
    for database in ["orders", "billing"] {
        world.cluster.psql_as(out.pair(), database, &make).unwrap();
    }
    // The group gives it rights on what the group owns; a DBA takes it into a group and sets something.
    let name = out.name();
    let as_group = format!(
        "set role orders_rw; create table shared_{tag} (n int); grant all on shared_{tag} to \"{name}\" with grant option;
         alter default privileges grant all on tables to \"{name}\""
    );
    world
        .cluster
        .psql_as(out.pair(), "orders", &as_group)
        .unwrap();
    let by_dba = format!(
        "grant \"{name}\" to orders_ro; alter role \"{name}\" in database orders set work_mem = '2MB'"
    );
    world.cluster.psql("orders", &by_dba).unwrap();
    // And passes on what it was given.
    let pass_on = format!("grant insert on shared_{tag} to orders_ro");
    world
        .cluster
        .psql_as(out.pair(), "orders", &pass_on)
        .unwrap();
    // A right that a superuser gave, only a superuser can take back; it is named.
    world.ask(&format!("grant insert on t to \"{name}\""));
    let refused = target.revoke(EPOCH, &out.ending()).await;
    let named = matches!(&refused, Err(Failed::Refused { why, .. }) if why.contains("table public.t") && why.contains("DROP OWNED BY"));
    assert!(named, "{refused:?}");
    world.ask(&format!("revoke insert on t from \"{name}\""));
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    let left = format!("select count(*) from pg_namespace where nspname = 's_{tag}'");
    for database in ["orders", "billing"] {
        assert_eq!(world.cluster.psql(database, &left).unwrap(), "0");
    }
    let passed_on = format!("select has_table_privilege('orders_ro', 'shared_{tag}', 'INSERT')");
    assert_eq!(world.ask(&passed_on), "f");
    assert_eq!(
        world.ask("select pg_has_role('ephor_owner', 'orders_rw', 'MEMBER')"),
        "f"
    );
}

/// What others have built on what a login owns is not ours to destroy: a person decides.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_built_on_it_is_told_and_the_login_is_harmless_meanwhile() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let tag = &out.name()[out.name().len() - 12..];
    let own = format!("create table base_{tag} (n int); grant select on base_{tag} to orders_rw;");
    world.cluster.psql_as(out.pair(), "orders", &own).unwrap();
    let built = format!("set role orders_rw; create view on_{tag} as select * from base_{tag}");
    world.cluster.psql_as(out.pair(), "orders", &built).unwrap();
    let why = match target.revoke(EPOCH, &out.ending()).await {
        Err(Failed::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    for word in [
        "database orders",
        &format!("view public.on_{tag} depends on table public.base_{tag}"),
        "DROP OWNED BY",
    ] {
        assert!(why.contains(word), "{word}: {why}");
    }
    let state = format!(
        "select rolcanlogin or pg_has_role('{0}', 'orders_rw', 'MEMBER') from pg_roles where rolname = '{0}'",
        out.name()
    );
    assert_eq!(world.ask(&state), "f");
    world.ask(&format!("drop owned by \"{}\" cascade", out.name()));
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_listed_is_named() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    world
        .cluster
        .psql(
            "other",
            &format!(
                "create table far (n int); alter table far owner to \"{}\"",
                out.name()
            ),
        )
        .unwrap();
    let refused = target.revoke(EPOCH, &out.ending()).await;
    assert!(
        matches!(&refused, Err(Failed::Refused { why, .. }) if why.contains("database other")),
        "{refused:?}"
    );
    world.cluster.psql("other", "drop table far").unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    let findings = check(&world.access(), &[], &world.tasks).await;
    assert!(
        findings.iter().any(|one| one.what.contains("\"other\"")),
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_told_with_what_ends_it() {
    let settings = vec!["max_prepared_transactions = 5".to_owned()];
    let world = World::own(ClusterOptions {
        settings,
        ..ClusterOptions::default()
    })
    .await;
    let target = world.target();
    let (holds, writes) = (world.mint(&target).await, world.mint(&target).await);
    // One holds on to the role itself, the other only to a row.
    let sql = "begin; create table waiting (n int); prepare transaction 'it''s held'";
    world.cluster.psql_as(holds.pair(), "orders", sql).unwrap();
    let sql = "begin; insert into t values (1); prepare transaction 'written'";
    world.cluster.psql_as(writes.pair(), "orders", sql).unwrap();
    let refused = target.revoke(EPOCH, &holds.ending()).await;
    let told = matches!(&refused, Err(Failed::Refused { why, .. }) if why.contains("ROLLBACK PREPARED 'it''s held'"));
    assert!(told, "{refused:?}");
    world.ask("rollback prepared 'it''s held'");
    target.revoke(EPOCH, &holds.ending()).await.unwrap();
    world.assert_dead(&holds);
    let evidence = target.revoke(EPOCH, &writes.ending()).await.unwrap();
    assert!(
        evidence
            .partial
            .unwrap()
            .contains("ROLLBACK PREPARED 'written'")
    );
    assert!(
        check(&world.access(), &[], &world.tasks)
            .await
            .iter()
            .any(|one| one.what.contains("max_prepared_transactions"))
    );
}

/// The row of its role is held for ever, and no session of it is there that could be ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_whose_row_a_prepared_transaction_holds_keeps_no_right_and_is_told() {
    let settings = vec!["max_prepared_transactions = 5".to_owned()];
    let world = World::own(ClusterOptions {
        settings,
        ..ClusterOptions::default()
    })
    .await;
    let target = world.target();
    let out = world.mint(&target).await;
    let hold = "begin; alter role current_user password 'x'; prepare transaction 'k'";
    world.cluster.psql_as(out.pair(), "orders", hold).unwrap();
    let insert = "insert into t values (1)";
    world.cluster.psql_as(out.pair(), "orders", insert).unwrap();
    let refused = target.revoke(EPOCH, &out.ending()).await;
    let told = matches!(&refused, Err(Failed::Refused { why, .. }) if why.contains("ROLLBACK PREPARED 'k'"));
    assert!(told, "{refused:?}");
    // Its password is still good: that is in the row. There is nothing more that it may do.
    let denied = world.cluster.psql_as(out.pair(), "orders", insert);
    let denied = denied.unwrap_err().to_string();
    assert!(denied.contains("permission denied for table t"), "{denied}");
    world.ask("rollback prepared 'k'");
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

/// With the broker's password: what would outlive that password.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_password_burns_no_epoch_and_makes_nothing_for_ever() {
    let world = World::own(ClusterOptions::default()).await;
    let target = world.target();
    let out = world.mint(&target).await;
    let broker = |sql: &str| world.cluster.psql_as(("ephor", "first"), "ephor", sql);
    let part = crate::kind::name::installation_part("test");
    for epoch in [i64::MAX, i64::from(u32::MAX), i64::from(EPOCH) + 1001] {
        let refused = broker(&format!("select ephor.begin_epoch('{part}', {epoch})"));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("no epoch"), "{epoch}: {refused}");
    }
    let first = broker(&format!("select ephor.begin_epoch('bbbbbb', {})", i64::MAX));
    assert!(first.unwrap_err().to_string().contains("no epoch"));
    for sql in [
        format!(
            "select ephor.mint({EPOCH}, gen_random_uuid(), '{}', array['orders_rw'], 4000000000000, null, null, '{{}}', 4000000000000)",
            login(&["orders_rw"]).0.role
        ),
        format!(
            "select ephor.extend({EPOCH}, '{}', '{}', 4000000000000)",
            out.login.credential,
            out.name()
        ),
    ] {
        let refused = broker(&sql).unwrap_err().to_string();
        assert!(refused.contains("days"), "{sql}: {refused}");
    }
    // What it can do, a person undoes with the statement that is told.
    broker(&format!(
        "select ephor.begin_epoch('{part}', {})",
        EPOCH + 7
    ))
    .unwrap();
    let why = match target.revoke(EPOCH, &out.ending()).await {
        Err(Failed::Fenced { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let mend =
        format!("UPDATE ephor.installation SET epoch = {EPOCH} WHERE installation = '{part}'");
    assert!(why.contains(&mend), "{why}");
    world.cluster.psql("ephor", &mend).unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

/// A list is a list, and not one name with a comma in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_path_of_two_schemas_is_one_of_two() {
    let world = shared();
    let target = world.target();
    let (mut wanted, secret) = login(&["orders_rw"]);
    wanted.settings = vec![
        (
            "search_path".to_owned(),
            "\"$user\", app, public".to_owned(),
        ),
        ("application_name".to_owned(), "a, b".to_owned()),
    ];
    target
        .mint(EPOCH, &wanted, Some(&verifier(&secret)))
        .await
        .unwrap();
    let password = secret.expose_str().unwrap();
    let shown = world.cluster.psql_as(
        (wanted.role.as_str(), password),
        "orders",
        "show search_path; select setconfig @> array['application_name=a, b'] from pg_db_role_setting where setrole = current_user::regrole; select count(*) from t",
    );
    assert!(
        shown
            .as_ref()
            .is_ok_and(|shown| shown.starts_with("\"$user\", app, public\nt\n")),
        "{shown:?}"
    );
    let ending = Ending {
        credential: wanted.credential,
        role: wanted.role,
        reassign: None,
    };
    target.revoke(EPOCH, &ending).await.unwrap();
}
