//! Another password for the broker's own login at a real server, also when the broker is killed in
//! the middle; judged by `psql`.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use ephor_proto::event::Outcome;
use ephor_proto::problem::Code;
use ephor_proto::time::Clock as _;
use ephor_testkit::postgres::Cluster;

use super::super::super::harness::Bench;
use super::{World, begin, cluster, login, policy};
use crate::kind::targets::Secrets;

const CHILD: &str = "EPHOR_TEST_ROTATE_DIR";
const PORT: &str = "EPHOR_TEST_ROTATE_PORT";
const NAME: &str = "issue::tests::logins::real::rotate::child";
const POINTS: [&str; 4] = [
    "rotate.next_written",
    "rotate.set",
    "rotate.proven",
    "rotate.settled",
];

fn secret_file(bench: &Bench) -> PathBuf {
    bench.dir().join("target-orders")
}

fn secret(bench: &Bench) -> String {
    let text = std::fs::read_to_string(secret_file(bench)).unwrap();
    text.trim_end().to_owned()
}

fn is_let_in(cluster: &Cluster, password: &str) -> bool {
    let said = cluster.psql_as(("ephor", password), "ephor", "select 1");
    let text = said
        .as_ref()
        .err()
        .map(ToString::to_string)
        .unwrap_or_default();
    assert!(
        said.is_ok() || text.contains("password authentication failed"),
        "{text}"
    );
    said.is_ok()
}

/// What lies beside the password.
fn beside(bench: &Bench) -> Vec<String> {
    let files = std::fs::read_dir(bench.dir()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("target-orders."))
        .collect()
}

fn told(bench: &Bench, what: &str) -> Vec<(Outcome, String)> {
    let events = bench.events_of(&format!("operate.target_secret_{what}"));
    let facts = |event: &ephor_proto::event::AuditEvent| {
        let fact = if what == "begun" { "by" } else { "old" };
        let text = event.facts.get(fact).cloned().unwrap_or_default();
        (event.outcome, text)
    };
    events.iter().map(facts).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_login_gets_another_password_and_the_one_before_is_refused() {
    let world = World::new().await;
    let bench = &world.bench;
    let said = bench
        .broker
        .rotate_target_secret("orders", "uid 0", "asked for")
        .await
        .unwrap();
    assert_eq!(
        (said.login.as_str(), said.old.as_str()),
        ("ephor", "refused")
    );
    let new = secret(bench);
    assert_eq!(new.len(), 43);
    assert!(is_let_in(&world.cluster, &new));
    assert!(!is_let_in(&world.cluster, "of-ephor"));
    let mode = std::fs::metadata(secret_file(bench)).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert_eq!(beside(bench), Vec::<String>::new());
    assert_eq!(told(bench, "begun"), [(Outcome::Ok, "uid 0".to_owned())]);
    assert_eq!(
        told(bench, "rotated"),
        [(Outcome::Ok, "refused".to_owned())]
    );
    assert!(!world.cluster.log().contains(&new));
    let everything = serde_json::to_string(&bench.events()).unwrap();
    assert!(!everything.contains(&new));

    // Whoever connects meanwhile notices nothing.
    for _ in 0..10 {
        // Kept connections would not ask for a password.
        let end =
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'ephor'";
        world.cluster.psql("postgres", end).unwrap();
        let none = "select count(*) = 0 from pg_stat_activity where usename = 'ephor'";
        world.cluster.wait_true("postgres", none).unwrap();
        let task = bench.new_task();
        let (said, answer) = tokio::join!(
            bench.broker.rotate_target_secret("orders", "uid 0", ""),
            bench.issue(bench.request(task, "orders-db")),
        );
        assert_eq!(said.unwrap().old, "refused");
        login(&answer.unwrap());
        assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 1);
    }
    assert_eq!(world.roles(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_rotations_at_once_one_is_refused_and_ends_nobody_elses_turn() {
    let world = World::new().await;
    let bench = &world.bench;
    let rotate = || bench.broker.rotate_target_secret("orders", "uid 0", "");
    for _ in 0..3 {
        let all = tokio::join!(rotate(), rotate(), rotate());
        let (done, refused): (Vec<_>, Vec<_>) =
            [all.0, all.1, all.2].into_iter().partition(Result::is_ok);
        assert_eq!(done.len(), 1);
        for refused in refused {
            assert_eq!(refused.unwrap_err().code, Code::Busy);
        }
        assert!(is_let_in(&world.cluster, &secret(bench)));
    }
    assert_eq!(told(bench, "begun").len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_not_ours_stays_as_it_is_and_why_is_said() {
    let world = World::new().await;
    let bench = &world.bench;
    let rotate = async || {
        let refused = bench.broker.rotate_target_secret("orders", "uid 0", "");
        refused.await.unwrap_err()
    };
    // Nothing can be made beside it.
    let block = bench.dir().join("target-orders.new");
    std::fs::create_dir(&block).unwrap();
    let refused = rotate().await;
    assert_eq!(refused.code, Code::Conflict);
    assert!(
        refused.detail.contains("not the broker's to write")
            && refused.detail.contains("--password-file"),
        "{}",
        refused.detail
    );
    std::fs::remove_dir(&block).unwrap();
    // A store of secrets that shows its own by a link.
    let real = bench.dir().join("elsewhere");
    std::fs::rename(secret_file(bench), &real).unwrap();
    std::os::unix::fs::symlink(&real, secret_file(bench)).unwrap();
    let refused = rotate().await;
    assert!(refused.detail.contains("is a link"), "{}", refused.detail);
    std::fs::rename(&real, secret_file(bench)).unwrap();
    // Somebody else's password in the place of the next.
    let next = bench.dir().join("target-orders.next");
    crate::files::write_new(&next, b"short\n", crate::files::PRIVATE).unwrap();
    let refused = rotate().await;
    assert!(
        refused.detail.contains("no password of ours"),
        "{}",
        refused.detail
    );
    std::fs::remove_file(&next).unwrap();
    assert!(is_let_in(&world.cluster, "of-ephor"));
    assert!(
        told(bench, "rotated")
            .iter()
            .all(|(outcome, _)| *outcome == Outcome::Failed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_service_manager_is_not_ours_and_a_login_without_a_password_has_none() {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let mut bench = Bench::new().await;
    let copies = Secrets {
        dir: None,
        credentials: Some(bench.dir().to_owned()),
    };
    std::sync::Arc::get_mut(&mut bench.broker)
        .unwrap()
        .target_secrets = copies;
    let copy = bench.dir().join("ephor-target-orders");
    std::fs::write(&copy, "of-ephor\n").unwrap();
    begin(&bench, cluster.port());
    let rotate = async || {
        let refused = bench.broker.rotate_target_secret("orders", "uid 0", "");
        refused.await.unwrap_err()
    };
    let with_mode =
        |mode| std::fs::set_permissions(&copy, PermissionsExt::from_mode(mode)).unwrap();
    with_mode(0o644);
    let refused = rotate().await;
    let open = format!("{}: others can read it: chmod 600", copy.display());
    assert!(refused.detail.contains(&open), "{}", refused.detail);
    // As systemd hands it out.
    with_mode(0o400);
    let refused = rotate().await;
    assert_eq!(refused.code, Code::Conflict);
    assert!(
        refused.detail.contains("systemd credential"),
        "{}",
        refused.detail
    );
    assert!(is_let_in(&cluster, "of-ephor"));

    let server = bench.broker.target("orders").unwrap();
    let server = server.at.own_login().unwrap().target().access().clone();
    let none = crate::kind::postgres::Access {
        password: crate::kind::postgres::Password::None,
        ..server
    };
    let target = crate::kind::postgres::Target::new(none, &bench.broker.tasks);
    let refused = target.begin_rotation().await.unwrap_err().to_string();
    assert!(refused.contains("none to rotate"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_says_how_long_a_password_is_used() {
    let world = World::new().await;
    let bench = &world.bench;
    // The first look, and no time in policy.
    bench.broker.reconcile("orders").await;
    assert_eq!(told(bench, "rotated"), []);
    let every = "owner = \"team:dba\"\nrotate = \"30d\"";
    bench.put_policy(&policy(world.cluster.port()).replace("owner = \"team:dba\"", every));
    let set_age = |days: u64| {
        let now = Duration::from_millis(bench.clock.wall().as_millis());
        let since = SystemTime::UNIX_EPOCH + now - Duration::from_secs(days * 24 * 3600);
        let file = std::fs::File::options()
            .write(true)
            .open(secret_file(bench));
        file.unwrap().set_modified(since).unwrap();
    };
    set_age(29);
    bench.broker.reconcile("orders").await;
    assert_eq!(told(bench, "rotated"), []);
    set_age(31);
    bench.broker.reconcile("orders").await;
    assert_eq!(told(bench, "begun"), [(Outcome::Ok, "schedule".to_owned())]);
    assert_eq!(
        told(bench, "rotated"),
        [(Outcome::Ok, "refused".to_owned())]
    );
    assert!(!is_let_in(&world.cluster, "of-ephor"));
}

/// A server that asks for nothing proves nothing, and that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_no_password_is_told_apart() {
    let world = World::new().await;
    let hba = world.cluster.data().join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("host all ephor 127.0.0.1/32 trust\n{lines}")).unwrap();
    world
        .cluster
        .psql("postgres", "select pg_reload_conf()")
        .unwrap();
    world
        .cluster
        .wait_true("postgres", "select count(*) = 1 from pg_hba_file_rules where auth_method = 'trust' and user_name = '{ephor}'")
        .unwrap();
    let said = world
        .bench
        .broker
        .rotate_target_secret("orders", "uid 0", "");
    let said = said.await.unwrap();
    assert!(said.old.starts_with("not asked for"), "{}", said.old);
}

/// The process that dies; does nothing when it was not started for that.
#[tokio::test]
async fn child() {
    let told = [CHILD, PORT].map(std::env::var);
    let [Ok(dir), Ok(port)] = told else {
        return;
    };
    crate::crash::armed::check().unwrap();
    let bench = Bench::create_at(Path::new(&dir), 1).await;
    begin(&bench, port.parse().unwrap());
    drop(
        bench
            .broker
            .rotate_target_secret("orders", "uid 0", "")
            .await,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_the_next_start_works_and_finishes_it() {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    for point in POINTS {
        let first = "alter role ephor password 'of-ephor'";
        cluster.psql("postgres", first).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(CHILD, dir.path())
            .env(PORT, cluster.port().to_string())
            .env("EPHOR_CRASH", point)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        let status = status.await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was not reached");
        let left = std::fs::read_to_string(dir.path().join("target-orders")).unwrap();

        // A start does not write the file anew, as `begin` would.
        let bench = Bench::take_over_at(dir.path(), 1, 1);
        begin(&bench, cluster.port());
        std::fs::write(secret_file(&bench), &left).unwrap();
        let task = bench.new_task();
        let given = bench.issue(bench.request(task, "orders-db")).await;
        given.unwrap_or_else(|problem| panic!("{point}: {problem:?}"));
        // The start compares by itself, and may be at it.
        let finished = async {
            while !beside(&bench).is_empty() {
                bench.broker.reconcile("orders").await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), finished).await;
        assert!(in_time.is_ok(), "{point}: {:?}", beside(&bench));
        assert!(is_let_in(&cluster, &secret(&bench)), "{point}");
        assert!(!is_let_in(&cluster, "of-ephor"), "{point}");
        let last = told(&bench, "rotated").pop();
        assert_eq!(
            last.map(|(outcome, _)| outcome),
            Some(Outcome::Ok),
            "{point}"
        );
        assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 1);
    }
}

/// Every point of a rotation is one of the above.
#[test]
fn every_point_is_reached() {
    let all = crate::crash::POINTS.iter();
    let of_rotation: Vec<_> = all.filter(|point| point.starts_with("rotate.")).collect();
    assert_eq!(of_rotation, POINTS.iter().collect::<Vec<_>>());
}
