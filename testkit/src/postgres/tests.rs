//! The server under the tests is a real one, and ends with them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;

#[test]
fn it_starts_answers_restarts_and_leaves_nothing() {
    let mut cluster = Cluster::start().unwrap();
    let fsync = cluster.psql("postgres", "show fsync").unwrap();
    assert_eq!(fsync, "on");
    cluster
        .psql(
            "postgres",
            "create role r login password 'p'; create table t (n int)",
        )
        .unwrap();
    let name = cluster.psql_as(("r", "p"), "postgres", "select session_user");
    assert_eq!(name.unwrap(), "r");
    let refused = cluster
        .psql_as(("r", "q"), "postgres", "select 1")
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("password authentication failed"),
        "{refused}"
    );
    cluster.crash().unwrap();
    assert!(cluster.psql("postgres", "select 1").is_err());
    cluster.boot().unwrap();
    assert_eq!(
        cluster.psql("postgres", "select count(*) from t").unwrap(),
        "0"
    );
    cluster.stop().unwrap();
    cluster.boot().unwrap();
    let (pid, dir) = (cluster.postmaster().unwrap(), cluster.data());
    drop(cluster);
    assert!(!Path::new(&format!("/proc/{pid}")).exists() && !dir.exists());
}

#[test]
fn a_standby_follows_and_can_take_over() {
    let primary = Cluster::start().unwrap();
    let standby = primary.standby(&[]).unwrap();
    primary.psql("postgres", "create role r login").unwrap();
    primary.wait_followed(&standby).unwrap();
    let seen = |question| standby.psql("postgres", question).unwrap();
    assert_eq!(
        seen("select count(*) from pg_roles where rolname = 'r'"),
        "1"
    );
    assert_eq!(seen("select pg_is_in_recovery()"), "t");
    standby.promote().unwrap();
    assert_eq!(seen("select pg_is_in_recovery()"), "f");
}
