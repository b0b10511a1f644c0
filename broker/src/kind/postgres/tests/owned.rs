//! What a login owns at its end: which of it a group may get, and what a tenant can do so that it
//! cannot be dropped.

use ephor_testkit::postgres::Options as ClusterOptions;

use super::kit::{EPOCH, Out, World, ident, shared};
use crate::kind::postgres::*;

fn tag(out: &Out) -> &str {
    &out.name()[out.name().len() - 12..]
}

fn kept(out: &Out) -> Ending {
    Ending {
        reassign: Some(ident("orders_rw")),
        ..out.ending()
    }
}

fn owner(world: &World, relation: &str) -> String {
    world.ask(&format!(
        "select relowner::regrole from pg_class where relname = '{relation}'"
    ))
}

/// A rule runs with the rights of the table's owner, whoever uses the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_rule_is_never_given_to_the_group() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let tag = tag(&out);
    let make = format!(
        "create table plain_{tag} (n int); create table door_{tag} (n int);
         create rule opens as on insert to door_{tag} do instead update t set n = new.n;
         grant insert on door_{tag} to public;"
    );
    world.cluster.psql_as(out.pair(), "orders", &make).unwrap();
    target.revoke(EPOCH, &kept(&out)).await.unwrap();
    world.assert_dead(&out);
    assert_eq!(owner(world, &format!("plain_{tag}")), "orders_rw");
    assert_eq!(owner(world, &format!("door_{tag}")), "");
}

/// With the broker's password: a dead login in the list lets nobody else's things be given away.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_own_is_not_given_away_beside_a_dead_login() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let tag = tag(&out);
    // Something of the group's holds it up elsewhere, so that it stays: dead and not gone.
    let own = format!("create table base_{tag} (n int); grant select on base_{tag} to orders_rw;");
    world.cluster.psql_as(out.pair(), "billing", &own).unwrap();
    let built = format!("set role orders_rw; create view on_{tag} as select * from base_{tag}");
    world
        .cluster
        .psql_as(out.pair(), "billing", &built)
        .unwrap();
    let refused = target.revoke(EPOCH, &out.ending()).await;
    assert!(
        matches!(refused, Err(Failed::Refused { .. })),
        "{refused:?}"
    );
    let theirs = format!(
        "create role \"app_{tag}\"; create table theirs_{tag} (n int); alter table theirs_{tag} owner to \"app_{tag}\""
    );
    world.ask(&theirs);
    let steal = format!(
        "select ephor.drop_owned(array['{}', 'app_{tag}'], 'orders_rw')",
        out.name()
    );
    let done = world
        .cluster
        .psql_as(("ephor", "first"), "orders", &steal)
        .unwrap();
    assert_eq!(done, "1", "the dead login, and nobody else");
    assert_eq!(owner(world, &format!("theirs_{tag}")), format!("app_{tag}"));
    world
        .cluster
        .psql("billing", &format!("drop view on_{tag}"))
        .unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

/// A server whose lock table is soon full.
async fn narrow() -> World {
    let settings = vec![
        "max_locks_per_transaction = 10".to_owned(),
        "max_connections = 24".to_owned(),
    ];
    World::own(ClusterOptions {
        settings,
        ..ClusterOptions::default()
    })
    .await
}

/// Revoked in as many tries as it takes; each goes on where the one before has stopped.
async fn revoked_in_pieces(target: &Target, ending: &Ending) {
    for _ in 0..20 {
        match target.revoke(EPOCH, ending).await {
            Ok(_) => return,
            Err(Failed::Busy { why, .. }) if why.contains("the next try goes on") => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("never done");
}

/// `DROP OWNED` locks all that it drops, in one transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_owns_more_than_the_server_can_lock_is_dropped_in_pieces() {
    let world = narrow().await;
    world.allow_schemas();
    let target = world.target();
    let out = world.mint(&target).await;
    // In many transactions, as a task would.
    let make = "set statement_timeout = 0; select lo_create(0) from generate_series(1, 9000);
        do $$ begin for i in 1..240 loop
            execute format('create table many_%s (id int primary key)', i);
            execute format('create view over_%s as select * from many_%s', i, i);
            execute format('create function f_%s() returns int language sql as ''select 1''', i);
            execute format('create schema s_%s', i);
            execute format('create table s_%s.t (n int)', i);
            execute format('create type e_%s as enum (''a'')', i);
            if i % 10 = 0 then commit; end if;
        end loop; end $$";
    world.cluster.psql_as(out.pair(), "orders", make).unwrap();
    revoked_in_pieces(&target, &out.ending()).await;
    world.assert_dead(&out);
    let left = "select (select count(*) from pg_largeobject_metadata), (select count(*) from pg_class where relname ~ '^(many|over)_')";
    assert_eq!(world.ask(left), "0|0");
}

/// The same where the group gets the tables.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tables_go_to_the_group_in_pieces() {
    let world = narrow().await;
    let target = world.target();
    let out = world.mint(&target).await;
    let make = "set statement_timeout = 0; do $$ begin for i in 1..1500 loop
            execute format('create table many_%s (n int)', i);
            if i % 10 = 0 then commit; end if;
        end loop; end $$; select lo_create(0) from generate_series(1, 9000);";
    world.cluster.psql_as(out.pair(), "orders", make).unwrap();
    revoked_in_pieces(&target, &kept(&out)).await;
    world.assert_dead(&out);
    let theirs = "select count(*) from pg_class where relname ~ '^many_' and relowner = 'orders_rw'::regrole";
    assert_eq!(world.ask(theirs), "1500");
}

/// What cannot be taken apart is left to a person, and nobody else's locks are taken for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_and_hangs_together_is_told() {
    let world = narrow().await;
    let target = world.target();
    let out = world.mint(&target).await;
    let make = "set statement_timeout = 0; do $$ begin for i in 1..250 loop
            execute format('create table a_%s (n int primary key)', i);
            execute format('create table b_%s (n int primary key references a_%s)', i, i);
            execute format('alter table a_%s add foreign key (n) references b_%s', i, i);
            if i % 5 = 0 then commit; end if;
        end loop; end $$";
    world.cluster.psql_as(out.pair(), "orders", make).unwrap();
    let why = match target.revoke(EPOCH, &out.ending()).await {
        Err(Failed::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    for word in ["database orders", "more than", "DROP OWNED BY"] {
        assert!(why.contains(word), "{word}: {why}");
    }
    assert!(!world.cluster.log().contains("out of shared memory"));
    world.ask(
        "do $$ begin for i in 1..250 loop execute format('drop table a_%s, b_%s', i, i); commit; end loop; end $$",
    );
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

/// A vacuum that the server began by itself gives way, but only after `deadlock_timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn an_autovacuum_at_its_table_gives_way() {
    let settings = [
        "autovacuum_naptime = 1s",
        "autovacuum_vacuum_threshold = 1",
        "autovacuum_vacuum_scale_factor = 0",
        "autovacuum_vacuum_cost_delay = 100ms",
        "autovacuum_vacuum_cost_limit = 1",
    ];
    let world = World::own(ClusterOptions {
        settings: settings.iter().map(|line| (*line).to_owned()).collect(),
        ..ClusterOptions::default()
    })
    .await;
    let target = world.target();
    let out = world.mint(&target).await;
    let make = "create table big (n int, filler text);
        insert into big select n, repeat('x', 400) from generate_series(1, 40000) n; delete from big where n % 2 = 0;";
    world.cluster.psql_as(out.pair(), "orders", make).unwrap();
    let vacuumed = "select count(*) > 0 from pg_stat_activity a join pg_locks l using (pid)
        where a.backend_type = 'autovacuum worker' and l.relation = 'big'::regclass and l.granted";
    world.cluster.wait_true("orders", vacuumed).unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_on_to_its_table_is_named() {
    let world = shared();
    let target = world.target();
    let out = world.mint(&target).await;
    let tag = tag(&out);
    world
        .cluster
        .psql_as(
            out.pair(),
            "orders",
            &format!("create table mine_{tag} (n int)"),
        )
        .unwrap();
    let dba = format!("dba_{tag}");
    world.ask(&format!(
        "create role \"{dba}\" login password 'd' superuser"
    ));
    let mut session = world.cluster.session((&dba, "d"), "orders", "").unwrap();
    session
        .send(&format!("begin; select * from mine_{tag};"))
        .unwrap();
    let held = format!(
        "select count(*) = 1 from pg_stat_activity where usename = '{dba}' and state = 'idle in transaction'"
    );
    world.cluster.wait_true("orders", &held).unwrap();
    let busy = target.revoke(EPOCH, &out.ending()).await;
    let named =
        matches!(&busy, Err(Failed::Busy { why, .. }) if why.contains(&format!("of {dba}")));
    assert!(named, "{busy:?}");
    session.send("rollback;").unwrap();
    session.finish().unwrap();
    target.revoke(EPOCH, &out.ending()).await.unwrap();
    world.assert_dead(&out);
    world.ask(&format!("drop role \"{dba}\""));
}

/// Each has a view over the table of the other: neither can be dropped before the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_dead_logins_do_not_hold_up_each_other() {
    let world = shared();
    let target = world.target();
    let (one, two) = (world.mint(&target).await, world.mint(&target).await);
    for (out, other) in [(&one, &two), (&two, &one)] {
        let tag = tag(out);
        let make = format!(
            "create table base_{tag} (n int); grant select on base_{tag} to \"{}\"",
            other.name()
        );
        world.cluster.psql_as(out.pair(), "orders", &make).unwrap();
    }
    for (out, other) in [(&one, &two), (&two, &one)] {
        let make = format!(
            "create view over_{} as select * from base_{}",
            tag(out),
            tag(other)
        );
        world.cluster.psql_as(out.pair(), "orders", &make).unwrap();
    }
    // The other one lives: what it built is not ours to destroy.
    let first = target.revoke(EPOCH, &one.ending()).await;
    assert!(matches!(first, Err(Failed::Refused { .. })), "{first:?}");
    target.revoke(EPOCH, &two.ending()).await.unwrap();
    world.assert_dead(&two);
    target.revoke(EPOCH, &one.ending()).await.unwrap();
    world.assert_dead(&one);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_group_cannot_get_is_dropped_or_told() {
    let world = shared();
    let target = world.target();
    world.allow_schemas();
    // In a schema of its own, which goes.
    let out = world.mint(&target).await;
    let name = tag(&out);
    let make = format!("create schema mine_{name}; create table mine_{name}.inner_{name} (n int)");
    world.cluster.psql_as(out.pair(), "orders", &make).unwrap();
    target.revoke(EPOCH, &kept(&out)).await.unwrap();
    world.assert_dead(&out);
    assert_eq!(owner(world, &format!("inner_{name}")), "");
    // Of a type of its own: a person decides.
    let out = world.mint(&target).await;
    let name = tag(&out);
    let make = format!(
        "create type mood_{name} as enum ('good'); create table kept_{name} (m mood_{name})"
    );
    world.cluster.psql_as(out.pair(), "orders", &make).unwrap();
    let why = match target.revoke(EPOCH, &kept(&out)).await {
        Err(Failed::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let mend = format!("ALTER TYPE public.mood_{name} OWNER TO orders_rw");
    assert!(why.contains(&mend), "{why}");
    world.ask(&mend);
    target.revoke(EPOCH, &kept(&out)).await.unwrap();
    world.assert_dead(&out);
    assert_eq!(owner(world, &format!("kept_{name}")), "orders_rw");
}
