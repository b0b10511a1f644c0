//! docs/postgres-clients.md: PgBouncer and an application's pool, as written there.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use ephor_testkit::postgres::Cluster;
use nix::sys::signal::Signal;

use super::database::{Serving, clean, server};
use super::support::{children, command_line, end_of, send, text, wait_for};
use super::wire::{python, workspace};

fn example(name: &str) -> String {
    workspace()
        .join("examples/postgres")
        .join(name)
        .display()
        .to_string()
}

fn no_login(server: &Cluster) -> Option<()> {
    let left = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'eph\\_dev%'";
    (server.psql("postgres", left).unwrap().trim() == "0").then_some(())
}

#[test]
fn pgbouncer_works_as_the_group_and_its_login_dies_with_it() {
    let server = server();
    let dev = Serving::start(&server);
    let top = tempfile::Builder::new().prefix("eb.").tempdir().unwrap();
    // PgBouncer gives up root, and must enter.
    Command::new("chmod")
        .args(["711"])
        .arg(top.path())
        .status()
        .unwrap();
    let dir = top.path().join("pool");
    let mut pool = dev.ephor();
    pool.args(["db", "dev-db", "--", &example("pgbouncer-task")])
        .arg(&dir);
    let mut pool = pool
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ask = |sql: &str| {
        let mut psql = Command::new("psql");
        let place = format!("host={} port=6432 dbname=pool user=app", dir.display());
        let output = clean(&mut psql)
            .args(["-Atc", sql, &place])
            .output()
            .unwrap();
        (text(&output.stdout), text(&output.stderr))
    };
    wait_for("PgBouncer", || {
        let (out, _) = ask("select 1");
        (out == "1\n").then_some(())
    });
    for _ in 0..20 {
        let (out, said) =
            ask("select current_user, session_user like 'eph\\_dev%', count(*) from orders");
        assert_eq!(out, "ephor_dev|t|3\n", "{said}");
    }
    // As when its terminal is closed.
    let task = children(pool.id());
    let task = task
        .iter()
        .find(|pid| command_line(**pid).contains("pgbouncer-task"));
    send(*task.unwrap(), Signal::SIGHUP);
    end_of(&mut pool, "the end of the pool");
    assert_eq!(ask("select 1").0, "");
    no_login(&server).unwrap();
}

/// A directory that others own or may enter would give them the login, and a name with something else in
/// it would become a setting.
#[test]
fn pgbouncer_is_started_only_where_it_cannot_be_misled() {
    let top = tempfile::tempdir().unwrap();
    let made = |name: &str, mode: u32| {
        let dir = top.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode)).unwrap();
        dir
    };
    let (open, own) = (made("open", 0o755), made("own", 0o700));
    let link = top.path().join("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    let start = |dir: &Path, role: &str, database: &str| {
        let mut task = Command::new(example("pgbouncer-task"));
        let task = task.arg(dir).env("PGOPTIONS", format!("-c role={role}"));
        let task = task.env("PGDATABASE", database).env("PGUSER", "u");
        let output = task.env("PGPASSWORD", "p").output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        text(&output.stderr)
    };
    for dir in [&open, &link] {
        let said = start(dir, "orders_rw", "shop");
        assert!(said.contains("that nobody else can enter"), "{said}");
    }
    for (role, database) in [
        ("orders\\ rw", "shop"),
        ("orders_rw", "shop user=postgres"),
        ("a\"b", "shop"),
    ] {
        let said = start(&own, role, database);
        assert!(said.contains("cannot write down the name"), "{said}");
    }
}

#[test]
fn attack_115_an_applications_pool_needs_nothing_and_ends_when_its_login_is_taken() {
    let server = server();
    let dev = Serving::start(&server);
    let python = python().display().to_string();
    let mut app = dev.ephor();
    app.args([
        "run",
        "--env",
        "DATABASE_URL=cred://dev-db",
        "--",
        &python,
        &example("pool.py"),
    ]);
    let app = app
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut app = app.spawn().unwrap();
    let mut say = app.stdin.take().unwrap();
    let mut heard = BufReader::new(app.stdout.take().unwrap()).lines();
    let mut ask = |sql: &str| {
        writeln!(say, "{sql}").unwrap();
        heard.next().map(Result::unwrap)
    };
    for _ in 0..10 {
        assert_eq!(
            ask("select count(*)::text || current_user from orders").as_deref(),
            Some("3ephor_dev")
        );
    }
    // Somebody ends its task.
    let tasks = dev
        .ephor()
        .args(["task", "ls", "-o", "json"])
        .output()
        .unwrap();
    let tasks: serde_json::Value = serde_json::from_slice(&tasks.stdout).unwrap();
    let task = tasks[0]["id"]
        .as_str()
        .or(tasks[0]["task"].as_str())
        .unwrap()
        .to_owned();
    let ended = dev
        .ephor()
        .args(["task", "end", &task, "--reason", "test"])
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(ask("select 1"), None, "it ends instead of trying for ever");
    let output = app.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(
        said.contains("the database login was taken away; ending"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(79), "{said}");
    no_login(&server).unwrap();
}
