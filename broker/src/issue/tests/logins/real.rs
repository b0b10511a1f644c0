//! The same at a real PostgreSQL server, judged by `psql`.

use ephor_crypto::Secret;
use ephor_crypto::scram::ScramVerifier;
use ephor_proto::grpc::v1;
use ephor_proto::id::TaskId;
use ephor_proto::problem::Code;
use ephor_proto::state::credential::{CredentialState, Proof};
use ephor_proto::time::Clock;
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions};

use super::super::harness::{Bench, POLICY};
use super::login;
use crate::kind::effect::Content;
use crate::kind::postgres::{Ident, Options, install_sql};

mod crash;
mod lent;
mod receipt;
mod rotate;
mod servers;

struct World {
    bench: Bench,
    cluster: Cluster,
}

impl World {
    async fn new() -> Self {
        let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
        let bench = Bench::new().await;
        begin(&bench, cluster.port());
        Self { bench, cluster }
    }

    fn roles(&self) -> String {
        roles(&self.cluster)
    }
}

/// A server with our schema.
fn cluster() -> Cluster {
    prepared(&ClusterOptions::default())
}

fn prepared(options: &ClusterOptions) -> Cluster {
    let cluster = Cluster::with(options).unwrap();
    let ident = |name: &str| Ident::parse(name).unwrap();
    let options = Options {
        login: ident("ephor"),
        verifier: Some(
            ScramVerifier::new(
                &Secret::from_string("of-ephor".to_owned()),
                4096.try_into().unwrap(),
            )
            .unwrap(),
        ),
        groups: vec![ident("orders_rw")],
        make_groups: true,
        static_roles: vec![ident("legacy_app")],
        admin_database: ident("ephor"),
        databases: vec![ident("orders")],
    };
    let before = "create database orders; create role legacy_app login password 'of-old'";
    cluster.psql("postgres", before).unwrap();
    cluster
        .psql("postgres", &install_sql(&options).unwrap())
        .unwrap();
    cluster
        .psql("orders", "grant all on schema public to orders_rw")
        .unwrap();
    cluster
}

/// What a start would find in its configuration and policy.
fn begin(bench: &Bench, port: u16) {
    begin_with(bench, port, "connections = 8");
}

/// The same, with more of the target's settings.
fn begin_with(bench: &Bench, port: u16, more: &str) {
    bench.put_target_secret("orders", "of-ephor\n");
    bench.put_policy(&policy_with(port, more));
    bench.broker.start_timers();
}

fn policy(port: u16) -> String {
    policy_with(port, "connections = 8")
}

fn policy_with(port: u16, more: &str) -> String {
    format!(
        r#"{POLICY}
[target.orders]
owner = "team:dba"
postgres = {{ url = "postgres://ephor@127.0.0.1:{port}/orders", tls = "off", {more} }}
[entitlement.orders-db]
owner = "team:orders"
purpose = "Serve the order page"
who = ["orders/web"]
gives = [{{ postgres = {{ target = "orders", role = "orders_rw", connection_limit = 3, settings = {{ statement_timeout = "30s" }} }} }}]
[entitlement.legacy]
owner = "team:orders"
purpose = "A program that knows one login"
who = ["orders/web"]
gives = [{{ secret = {{ target = "orders", role = "legacy_app" }} }}]
"#
    )
}

fn roles(cluster: &Cluster) -> String {
    let sql = "select count(*) from pg_roles where rolname like 'eph\\_%'";
    cluster.psql("postgres", sql).unwrap()
}

/// The end of a task. On a busy machine it may take longer than an answer waits, and be tried again.
async fn completed(bench: &Bench, task: TaskId) -> v1::CompleteResponse {
    for _ in 0..30 {
        match bench.complete(task, "exited").await {
            Ok(ended) => return ended,
            Err(problem) => assert_eq!(problem.code, Code::Overdue, "{problem}"),
        }
        bench.clock.advance_millis(1_000);
    }
    panic!("{:?}", bench.broker.queues.waiting(bench.clock.boottime()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_works_until_its_task_ends_and_its_sessions_end_with_it() {
    let world = World::new().await;
    let bench = &world.bench;
    let task = bench.new_task();
    let answer = bench.issue(bench.request(task, "orders-db")).await.unwrap();
    let (id, given) = login(&answer);
    let pair = (given.user.as_str(), given.password.as_str());
    let who = world
        .cluster
        .psql_as(pair, "orders", "select session_user")
        .unwrap();
    assert_eq!(who, given.user);
    let mut open = world
        .cluster
        .session(pair, "orders", "-c role=orders_rw")
        .unwrap();
    open.send("create table made_by_a_task (n int); begin;")
        .unwrap();
    let is_there = "select count(*) = 1 from pg_stat_activity where usename like 'eph\\_%' and xact_start is not null";
    world.cluster.wait_true("orders", is_there).unwrap();

    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (1, 0));
    let receipt = bench.verified(&ended.receipt);
    let seen = &receipt.evidence[0];
    assert_eq!(
        (seen.credential, seen.proof),
        (id, Some(Proof::Dropped)),
        "{seen:?}"
    );
    assert!(
        seen.place.starts_with("orders (system id "),
        "{}",
        seen.place
    );
    let gone = Content::of(&bench.row(id)).unwrap().gone.unwrap();
    assert_eq!(gone.sessions_ended, 1, "{gone:?}");
    assert_eq!(world.roles(), "0");
    let refused = world.cluster.psql_as(pair, "orders", "select 1");
    assert!(refused.is_err());
    let said = open.finish().unwrap();
    assert!(!said.contains("still here"), "{said}");
    // What a migration made belongs to the group and stays.
    let owner = "select tableowner from pg_tables where tablename = 'made_by_a_task'";
    assert_eq!(world.cluster.psql("orders", owner).unwrap(), "orders_rw");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_look_is_made_again_until_every_standby_was_asked() {
    let world = World::new().await;
    let bench = &world.bench;
    let port = world.cluster.port();
    // Nobody is there.
    let standbys = r#"standbys = ["127.0.0.1:1"]"#;
    bench.put_policy(&policy_with(port, standbys));
    let r = bench.request(bench.new_task(), "orders-db");
    let (id, _) = login(&bench.issue(r).await.unwrap());
    bench.broker.revoke(id, "a test").await.unwrap();
    for _ in 0..2 {
        bench.clock.advance_millis(66_000);
        bench.broker.look_again(bench.clock.wall()).await;
        assert_eq!(bench.broker.later_looks.len(), 1);
    }
    bench.put_policy(&policy_with(port, "connections = 4"));
    bench.clock.advance_millis(66_000);
    bench.broker.look_again(bench.clock.wall()).await;
    assert!(bench.broker.later_looks.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_told_and_asked_until_it_is_back() {
    let mut world = World::new().await;
    let task = world.bench.new_task();
    let r = world.bench.request(task, "orders-db");
    let (id, _) = login(&world.bench.issue(r).await.unwrap());
    world.cluster.crash().unwrap();
    let problem = world.bench.complete(task, "exited").await.unwrap_err();
    assert_eq!(problem.code, ephor_proto::problem::Code::Overdue);
    world.bench.clock.advance_millis(5_000);
    world.bench.broker.flag_late().await;
    let row = world.bench.row(id);
    assert_eq!(row.state, CredentialState::Revoking);
    let why = row.overdue.unwrap().to_string();
    assert!(
        why.contains("target orders") && why.contains("team:dba"),
        "{why}"
    );
    world.cluster.boot().unwrap();
    assert_eq!(world.roles(), "1");
    // A machine with much to do may not connect within the time that a call waits.
    let mut ended = None;
    for _ in 0..20 {
        world.bench.clock.advance_millis(60_000);
        match world.bench.complete(task, "exited").await {
            Ok(answer) => {
                ended = Some(answer.dead);
                break;
            }
            Err(problem) => assert_eq!(problem.code, ephor_proto::problem::Code::Overdue),
        }
    }
    assert_eq!(ended, Some(1));
    assert_eq!(world.roles(), "0");
    assert_eq!(world.bench.row(id).overdue, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_the_server_refuses_is_for_policy_to_mend() {
    let world = World::new().await;
    let task = world.bench.new_task();
    let good = "statement_timeout = \"30s\"";
    for (setting, said) in [
        (
            "statement_timeot = \"30s\"",
            "unrecognized configuration parameter \"statement_timeot\"; correct `settings` of the entitlement in the policy",
        ),
        (
            "statement_timeout = \"soon\"",
            "invalid value for parameter \"statement_timeout\": \"soon\"; correct `settings`",
        ),
        (
            "log_connections = true",
            "parameter \"log_connections\" cannot be set after connection start; correct `settings`",
        ),
        (
            "log_statement = \"none\"",
            "permission denied to set parameter \"log_statement\"; run `ephor target check`",
        ),
    ] {
        let policy = policy(world.cluster.port()).replace(good, setting);
        world.bench.put_policy(&policy);
        let refused = world.bench.issue(world.bench.request(task, "orders-db"));
        let refused = refused.await.unwrap_err();
        assert_eq!(refused.code, Code::TargetRefused, "{refused:?}");
        assert!(refused.detail.contains(said), "{refused:?}");
        assert!(!refused.detail.contains("ask again"), "{refused:?}");
    }
    assert_eq!(world.roles(), "0");
}
