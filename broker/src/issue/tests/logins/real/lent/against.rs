//! What somebody can do who has had the role, or has it now, so that its password outlives his task or
//! that he is in when the next one has it.

use ephor_proto::time::Clock;
use ephor_testkit::postgres::Options as ClusterOptions;

use super::raw::{Begun, Inside};
use super::*;

const SHUT: &str = "select not rolcanlogin from pg_roles where rolname = 'legacy_app'";

fn refused(login: Result<Inside, String>) {
    let said = login.map(|_| ()).unwrap_err();
    assert!(said.contains("is not permitted to log in"), "{said}");
}

/// What the receipt's evidence says of it.
fn gone(bench: &Bench, id: CredentialId) -> crate::kind::effect::Gone {
    Content::of(&bench.row(id)).unwrap().gone.unwrap()
}

impl World {
    async fn at(options: ClusterOptions) -> Self {
        let cluster = tokio::task::spawn_blocking(move || super::super::prepared(&options));
        let cluster = cluster.await.unwrap();
        let bench = Bench::new().await;
        begin(&bench, cluster.port());
        Self { bench, cluster }
    }

    fn admin(&self, sql: &str) -> String {
        self.cluster.psql("postgres", sql).unwrap()
    }

    /// Until its end is proven again.
    async fn dead(&self, id: CredentialId) {
        for _ in 0..500 {
            self.bench.broker.sweep().await;
            if self.bench.row(id).state == CredentialState::Dead {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.bench.clock.advance_millis(50);
        }
        panic!("{:?}", self.bench.row(id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_begun_with_its_password_gets_in_neither_after_its_end_nor_into_the_next_task() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let (task, _, given) = taken(bench).await;
    let pair = (ROLE, given.password.as_str());
    let (one, two) = (
        Begun::new(cluster.port(), pair),
        Begun::new(cluster.port(), pair),
    );
    let inside = Begun::new(cluster.port(), pair).finish();
    inside.unwrap().run("select 1").unwrap();
    bench.complete(task, "exited").await.unwrap();
    // The server still holds the password that is dead, for these two.
    refused(one.finish());
    assert_back(cluster, "a login under way");
    // Nobody else gets the role while one of them may come in with it.
    let task = bench.new_task();
    let late = bench.issue(bench.request(task, "legacy")).await;
    let late = late.unwrap_err();
    assert!(late.detail.contains("may be under way"), "{late:?}");
    refused(two.finish());
    // Until what was begun for that request is undone.
    for _ in 0..500 {
        if bench.events_of("prove.dead").len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.broker.sweep().await;
    }
    let (_, _, next) = taken(bench).await;
    assert!(is_let_in(cluster, &next.password));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_who_is_slow_to_log_in_delays_a_lending_and_no_longer_than_he_is_there() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let (task, _, _) = taken(bench).await;
    let slow = Begun::new(cluster.port(), ("nobody_at_all", "x"));
    bench.complete(task, "exited").await.unwrap();
    let task = bench.new_task();
    let (lent, ()) = tokio::join!(bench.issue(bench.request(task, "legacy")), async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(slow);
    });
    assert!(is_let_in(cluster, &login(&lent.unwrap()).1.password));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_in_before_the_first_lending_is_out_then_and_so_is_his_password() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let old = (ROLE, "of-old");
    let mut session = Begun::new(cluster.port(), old).finish().unwrap();
    let open = cluster.session(old, "orders", "").unwrap();
    let are_there = "select count(*) = 2 from pg_stat_activity where usename = 'legacy_app'";
    cluster.wait_true("orders", are_there).unwrap();
    let begun = Begun::new(cluster.port(), old);
    let late = async {
        let shut = || cluster.psql("postgres", SHUT).unwrap() == "t";
        for _ in 0..200 {
            if shut() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        refused(begun.finish());
    };
    let ((_, _, given), ()) = tokio::join!(taken(bench), late);
    let mine = "alter role legacy_app password 'mine'";
    let said = session.run(mine).unwrap_err();
    assert!(said.contains("57P01"), "{said}");
    assert!(!open.finish().unwrap().contains("still here"));
    assert!(is_let_in(cluster, &given.password));
    for password in ["of-old", "mine"] {
        assert!(!is_let_in(cluster, password), "{password}");
    }
    assert!(bench.events_of("revoke.stray").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_sets_after_its_end_is_found_and_ended() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let look = async || {
        bench.clock.advance_millis(66_000);
        bench.broker.look_again(bench.clock.wall()).await;
    };
    let (task, id, _) = taken(bench).await;
    bench.complete(task, "exited").await.unwrap();
    // Another password lets nobody in: it is replaced all the same.
    world.admin("alter role legacy_app password 'foreign'");
    look().await;
    assert_eq!(bench.events_of("revoke.reopened").len(), 1);
    world.dead(id).await;
    assert_back(cluster, "another password");
    // Open again: whoever is in is ended.
    world.admin("alter role legacy_app login password 'foreign'");
    let mut inside = Begun::new(cluster.port(), (ROLE, "foreign"))
        .finish()
        .unwrap();
    look().await;
    assert_eq!(bench.events_of("revoke.reopened").len(), 2);
    world.dead(id).await;
    assert!(inside.run("select 1").is_err());
    assert_back(cluster, "open again");
    assert!(!is_let_in(cluster, "foreign"));
    // What was lent since is none of its business.
    let (_, _, next) = taken(bench).await;
    look().await;
    assert_eq!(bench.events_of("revoke.reopened").len(), 2);
    assert!(is_let_in(cluster, &next.password));
    let known = bench.broker.target("orders").unwrap();
    let target = known.at.own_login().unwrap().target();
    let ident = |name| crate::kind::postgres::Ident::parse(name).unwrap();
    let epoch = bench.broker.installation.epoch;
    let (role, database) = (ident(ROLE), ident("orders"));
    let again = target.check_in(epoch, (id, &role), &database);
    let again = again.await.unwrap();
    assert!(again.partial[0].contains("lent again"), "{again:?}");
    assert!(is_let_in(cluster, &next.password));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_act_as_the_role_is_no_way_in() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    world.admin("create role accomplice login password 'of-accomplice'");
    let accomplice = ("accomplice", "of-accomplice");
    let (task, id, given) = taken(bench).await;
    let leaves = "create function set_it(text) returns void language plpgsql security definer as
        $$ begin execute format('alter role legacy_app password %L', $1); end $$";
    let public = "grant create on schema public to legacy_app";
    cluster.psql("orders", public).unwrap();
    let pair = (ROLE, given.password.as_str());
    cluster.psql_as(pair, "orders", leaves).unwrap();
    world.admin("grant legacy_app to accomplice");
    bench.complete(task, "exited").await.unwrap();
    // No member any more.
    assert_back(cluster, "a member");
    let sets = "set role legacy_app; alter role legacy_app password 'by-member'";
    assert!(cluster.psql_as(accomplice, "orders", sets).is_err());
    let remains = gone(bench, id).remains;
    assert!(remains.contains("functions of it"), "{remains}");
    // The function sets what it likes, and nobody gets in with it.
    let sets = "select set_it('by-function')";
    cluster.psql_as(accomplice, "orders", sets).unwrap();
    refused(Begun::new(cluster.port(), (ROLE, "by-function")).finish());
    let (task, _, next) = taken(bench).await;
    assert!(is_let_in(cluster, &next.password));
    assert!(!is_let_in(cluster, "by-function"));
    bench.complete(task, "exited").await.unwrap();
    // With members it is not lent.
    world.admin("grant legacy_app to accomplice");
    let task = bench.new_task();
    let no = bench.issue(bench.request(task, "legacy")).await;
    let no = no.unwrap_err();
    assert!(no.detail.contains("accomplice"), "{no:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_is_known_by_its_credential_and_not_by_its_role() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let (_, id, _) = taken(bench).await;
    bench.clock.advance_millis(60_000);
    // Another one has it there, as after an older copy of the store was put back.
    let other = bench.broker.new_id::<CredentialId>().unwrap();
    let swap = format!(
        "with was as (update ephor.checkout set state = 'in' where credential = '{id}' returning *)
         select 1 from was;
         insert into ephor.checkout (credential, installation, role, role_oid, state, epoch)
         select '{other}', installation, role, role_oid, 'out', epoch from ephor.checkout where credential = '{id}'"
    );
    cluster.psql("ephor", &swap).unwrap();
    bench.broker.reconcile("orders").await;
    assert_eq!(bench.events_of("revoke.stray_ended").len(), 1);
    world.dead(id).await;
    assert_back(cluster, "two of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_fenced_loses_its_sessions_and_says_what_is_in_the_way() {
    let world = World::at(ClusterOptions {
        settings: vec!["max_prepared_transactions = 4".to_owned()],
        ..ClusterOptions::default()
    })
    .await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let late = async |id: CredentialId| {
        bench.clock.advance_millis(5_000);
        bench.broker.flag_late().await;
        bench.row(id).overdue.unwrap().to_string()
    };
    // More than our own right reaches.
    let (task, id, given) = taken(bench).await;
    let pair = (ROLE, given.password.as_str());
    let mut inside = Begun::new(cluster.port(), pair).finish().unwrap();
    world.admin("alter role legacy_app replication");
    let problem = bench.complete(task, "exited").await.unwrap_err();
    assert_eq!(problem.code, Code::Overdue);
    assert!(inside.run("select 1").is_err());
    // Who asks for it meanwhile is told since when, and where to look.
    let asked = async || {
        let asks = bench.request(bench.new_task(), "legacy");
        let refused = bench.issue(asks).await.unwrap_err();
        assert_eq!(refused.code, Code::InUse);
        assert!(
            refused
                .retry_after
                .is_some_and(|seconds| (2..=30).contains(&seconds))
        );
        refused.detail
    };
    let since = bench.row(id).revoked_at.unwrap();
    let said = asked().await;
    let back = format!("being taken back since {since}");
    assert!(
        said.contains(&back) && said.contains("as a rule within 5 s"),
        "{said}"
    );
    assert!(
        said.ends_with("Nothing was issued; ask again in 2 s"),
        "{said}"
    );
    assert!(!late(id).await.is_empty());
    let said = asked().await;
    assert!(
        said.contains(&back) && said.contains("that is overdue (next try at "),
        "{said}"
    );
    assert!(
        said.contains("`ephor credential ls --overdue` says why"),
        "{said}"
    );
    world.admin("alter role legacy_app noreplication");
    bench.clock.advance_millis(60_000);
    world.dead(id).await;
    assert_back(cluster, "replication");
    // A transaction that no session has to be there for.
    let (task, id, given) = taken(bench).await;
    let pair = (ROLE, given.password.as_str());
    let held = "begin; alter role legacy_app password 'later'; prepare transaction 'held by it'";
    cluster.psql_as(pair, "orders", held).unwrap();
    let problem = bench.complete(task, "exited").await.unwrap_err();
    assert_eq!(problem.code, Code::Overdue);
    let why = late(id).await;
    assert!(
        why.contains("'held by it' in orders") && why.contains("ROLLBACK PREPARED"),
        "{why}"
    );
    cluster
        .psql("orders", "rollback prepared 'held by it'")
        .unwrap();
    bench.clock.advance_millis(60_000);
    world.dead(id).await;
    assert_back(cluster, "prepared");
    assert!(!is_let_in(cluster, &given.password));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_one_task_are_not_those_of_the_next() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let settings = || {
        let sql = "select coalesce(d.datname, '') || ':' || one from pg_db_role_setting s
            left join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) one
            where s.setrole = 'legacy_app'::regrole order by 1";
        world.admin(sql)
    };
    world.admin(
        "alter role legacy_app set search_path = \"$user\", \"O'Brien; x\", public;
         alter role legacy_app in database orders set statement_timeout = '7s';
         alter role legacy_app in database orders set datestyle = 'ISO, DMY';
         alter role legacy_app set my.own = 'a, b'",
    );
    let before = settings();
    let (task, id, given) = taken(bench).await;
    let pair = (ROLE, given.password.as_str());
    let changes = "alter role legacy_app set search_path = evil, pg_catalog;
        alter role legacy_app set work_mem = '1MB';
        alter role legacy_app in database orders reset statement_timeout;
        alter role legacy_app in database orders set datestyle = 'SQL, MDY'";
    cluster.psql_as(pair, "orders", changes).unwrap();
    assert_ne!(settings(), before);
    bench.complete(task, "exited").await.unwrap();
    assert_eq!(settings(), before);
    let remains = gone(bench, id).remains;
    assert!(
        remains.contains("put back: DateStyle, search_path, statement_timeout, work_mem"),
        "{remains}"
    );
    let (task, id, _) = taken(bench).await;
    bench.complete(task, "exited").await.unwrap();
    assert_eq!(gone(bench, id).remains, "the role legacy_app goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_longer_than_names_are_is_nobody() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let long = "r".repeat(63);
    world.admin(&format!("create role {long} login password 'of-old'"));
    let allow = format!("insert into ephor.static_role values ('{long}')");
    cluster.psql("ephor", &allow).unwrap();
    // Makes this installation known there.
    taken(bench).await;
    let lend = |name: &str| {
        let id = bench.broker.new_id::<CredentialId>().unwrap();
        let sql = format!(
            "select ephor.check_out(installation, epoch, '{id}', '{name}', (extract(epoch from now()) * 1000)::bigint + 60000, 'SCRAM-SHA-256$1:aaaa$x:y', 4000000000000)
             from (values ('{}', {}::bigint)) i(installation, epoch)",
            crate::kind::name::installation_part(&bench.broker.installation.id),
            bench.broker.installation.epoch
        );
        cluster.psql_as(("ephor", "of-ephor"), "ephor", &sql)
    };
    let said = lend(&format!("{long}zz")).unwrap_err().to_string();
    assert!(said.contains("not allowed to be lent"), "{said}");
    let out = "select count(*) from ephor.checkout where state <> 'in' and role <> 'legacy_app'";
    assert_eq!(cluster.psql("ephor", out).unwrap(), "0");
    // The role itself is only not at rest.
    assert!(lend(&long).unwrap().contains("(open,"));
}
