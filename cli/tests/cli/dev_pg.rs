//! `ephor dev --pg` beside others who want something from it, and what is left of it at a server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use ephor_testkit::postgres::{Cluster, Options};
use nix::sys::signal::Signal;

use super::database::{OURS, clean, dev_pg, server};
use super::support::{
    assert_code, children, command_line, end_of, ephor, is_running, pid_of, send, text, wait_for,
};

/// Members of the owners' roles who are no superusers.
const KEPT: &str = "SELECT count(*) FROM pg_auth_members WHERE member = 'bo'::regrole AND roleid::regrole::text IN ('ephor_owner', 'ephor_signal')";

fn with(options: &Options) -> Cluster {
    let server = Cluster::with(options).unwrap();
    server.psql("postgres", "CREATE DATABASE shop").unwrap();
    server
}

fn ours(server: &Cluster) -> String {
    server.psql("postgres", OURS).unwrap()
}

/// A user who may make roles and databases, and owns one.
fn bo(server: &Cluster) -> String {
    let made = "CREATE ROLE bo LOGIN CREATEROLE CREATEDB PASSWORD 'bos-own-word'; ALTER DATABASE shop OWNER TO bo;";
    server.psql("postgres", made).unwrap();
    let public = "ALTER SCHEMA public OWNER TO bo";
    server.psql("shop", public).unwrap();
    server.url("bo", "shop")
}

/// Whoever may make functions in the database waits there for its administrator.
#[test]
fn dev_runs_nothing_that_others_left_in_the_database() {
    let server = server();
    let body = "language plpgsql as $$ begin
        begin execute 'alter role mallory superuser'; exception when others then null; end;";
    let ambush = format!(
        "create role mallory login; grant create, usage on schema public to mallory; set role mallory;
         create function public.format(text, text) returns text {body} return pg_catalog.format($1, variadic array[$2]); end $$;
         create function public.format(text, text, text) returns text {body} return pg_catalog.format($1, variadic array[$2, $3]); end $$;
         create function public.format(text, name) returns text {body} return pg_catalog.format($1, variadic array[$2::text]); end $$;
         grant execute on all functions in schema public to public;"
    );
    server.psql("shop", &ambush).unwrap();
    let superusers =
        "select string_agg(rolname, ',' order by rolname) from pg_roles where rolsuper";
    assert_code(&dev_pg(&server, &["psql", "-Atc", "select 1"]), 0);
    assert_eq!(
        server.psql("postgres", superusers).unwrap().trim(),
        "postgres"
    );
    // The ambush works on whoever does not look out.
    server
        .psql("shop", "select format('%I', 'x'::text)")
        .unwrap();
    assert_eq!(
        server.psql("postgres", superusers).unwrap().trim(),
        "mallory,postgres"
    );
}

/// Takes what is said on a port, and asks whoever comes for his password in clear.
fn stranger(port: u16) -> Arc<Mutex<Vec<u8>>> {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut said = [0; 4096];
            while let Ok(length @ 1..) = client.read(&mut said) {
                kept.lock().unwrap().extend_from_slice(&said[..length]);
                let asks_for_tls = said[..length].ends_with(&80_877_103_u32.to_be_bytes());
                let answer: &[u8] = match asks_for_tls {
                    true => b"N",
                    false => b"R\0\0\0\x08\0\0\0\x03",
                };
                if client.write_all(answer).is_err() {
                    break;
                }
            }
        }
    });
    heard
}

/// The server is behind its socket only, and somebody else has taken its port on loopback.
#[test]
fn who_listens_on_loopback_is_told_nothing() {
    let behind = || vec!["listen_addresses = ''".to_owned()];
    let server = with(&Options {
        settings: behind(),
        ..Options::default()
    });
    let heard = stranger(server.port());
    assert_code(&dev_pg(&server, &["psql", "-Atc", "select 1"]), 0);
    assert_eq!(*heard.lock().unwrap(), b"");
    assert_eq!(ours(&server), "");
    if !rustix::process::geteuid().is_root() {
        // Only root's server runs as somebody else than this test.
        return;
    }
    // By the socket only names of the host are let in, as Debian has it.
    let server = with(&Options {
        settings: behind(),
        hba: vec![
            "local all postgres trust".into(),
            "local all all reject".into(),
        ],
        ..Options::default()
    });
    let heard = stranger(server.port());
    let refused = dev_pg(&server, &["true"]);
    assert_code(&refused, 77);
    let said = text(&refused.stderr);
    assert!(
        said.contains("who listens there has uid 0") && said.contains("nothing was sent"),
        "{said}"
    );
    assert_eq!(*heard.lock().unwrap(), b"");
    assert_eq!(ours(&server), "");
}

/// Debian's own settings: the socket wants a name of the host, loopback a password.
#[test]
fn a_server_that_wants_passwords_on_loopback_only_is_reached_there() {
    let server = with(&Options {
        hba: vec![
            "local all postgres trust".into(),
            "local all all peer".into(),
        ],
        ..Options::default()
    });
    let output = dev_pg(&server, &["sh", "-c", "echo $PGHOST"]);
    assert_code(&output, 0);
    assert_eq!(
        text(&output.stdout),
        "127.0.0.1\n",
        "{}",
        text(&output.stderr)
    );
    assert_eq!(ours(&server), "");
}

#[test]
fn what_fails_after_the_login_was_made_takes_it_back() {
    let server = with(&Options {
        hba: vec![
            "local all postgres trust".into(),
            "local all all reject".into(),
            "host all all all reject".into(),
        ],
        ..Options::default()
    });
    let refused = dev_pg(&server, &["true"]);
    assert_code(&refused, 77);
    let said = text(&refused.stderr);
    assert!(said.contains("pg_hba.conf needs a line"), "{said}");
    assert_eq!(ours(&server), "", "{said}");
}

#[test]
fn a_signal_while_the_server_is_prepared_leaves_nothing_there() {
    let server = server();
    assert_code(&dev_pg(&server, &["true"]), 0);
    server
        .psql(
            "postgres",
            "CREATE ROLE holder LOGIN SUPERUSER PASSWORD 'h'",
        )
        .unwrap();
    let mut holder = server.session(("holder", "h"), "ephor", "").unwrap();
    holder.send("BEGIN; LOCK TABLE ephor.version;").unwrap();
    server
        .wait_true("ephor", "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'ephor.version'::regclass AND mode = 'AccessExclusiveLock'")
        .unwrap();
    let mut dev = ephor();
    dev.args([
        "dev",
        "--pg",
        &server.socket_url("postgres", "shop"),
        "--",
        "true",
    ]);
    let mut dev = clean(&mut dev).stderr(Stdio::piped()).spawn().unwrap();
    server
        .wait_true("postgres", "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'ephor target' AND wait_event_type = 'Lock'")
        .unwrap();
    assert!(
        ours(&server).contains("ephor_broker_"),
        "half of it was done"
    );
    send(dev.id(), Signal::SIGTERM);
    holder.send("COMMIT;").unwrap();
    assert_eq!(end_of(&mut dev, "the end of dev").code(), Some(143));
    assert_eq!(ours(&server), "");
}

/// `dev --pg` with a command that says when it runs, in a directory for its files.
pub fn running(url: &str, password: &str, tmp: &Path, script: &str) -> Child {
    let mut dev = ephor();
    dev.args(["dev", "--pg", url, "--", "sh", "-c", script]);
    let dev = clean(&mut dev)
        .env("TMPDIR", tmp)
        .env("PGPASSWORD", password);
    let mut dev = dev
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(dev.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "runs\n");
    dev
}

pub fn tmp() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("et.").tempdir().unwrap()
}

/// The child whose command line begins like this, its program without the directory. It is waited for: a shell's
/// `exec` shows another command line until it is done, and for a moment none.
pub fn child_with(of: u32, command: &str) -> u32 {
    let runs_it = |pid: &u32| {
        let line = command_line(*pid);
        let program = line.split(' ').next().unwrap_or_default();
        let name_at = program.rfind('/').map_or(0, |slash| slash + 1);
        line[name_at..].starts_with(command)
    };
    wait_for(command, || children(of).into_iter().find(runs_it))
}

#[test]
fn a_killed_dev_leaves_nothing_at_the_server_and_nobody_running() {
    let server = server();
    let url = bo(&server);
    let tmp = tmp();
    // What it makes as itself belongs to the login, in the database of the URL.
    let script = "psql -qc 'set role none; create table mine (n int)' && { psql -qc 'select pg_sleep(600)' 2>/dev/null & \
                  echo runs; exec sleep 600; }";
    let mut dev = running(&url, "bos-own-word", tmp.path(), script);
    let run = child_with(dev.id(), "ephor run --parent");
    let command = child_with(run, "sleep 600");
    let keeper = child_with(dev.id(), "ephor __keep-pg");
    assert!(ours(&server).contains("eph_dev_db_"));
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE query = 'select pg_sleep(600)' AND backend_type = 'client backend'";
    server
        .wait_true("postgres", &format!("SELECT ({sessions}) = 1"))
        .unwrap();
    dev.kill().unwrap();
    dev.wait().unwrap();
    wait_for("the end of run, its command and the keeper", || {
        (![run, command, keeper].into_iter().any(is_running)).then_some(())
    });
    assert_eq!(ours(&server), "");
    server
        .wait_true("postgres", &format!("SELECT ({sessions}) = 0"))
        .unwrap();
    assert_eq!(
        server
            .psql("ephor", "SELECT count(*) FROM ephor.installation")
            .unwrap(),
        "0"
    );
    assert_eq!(server.psql("postgres", KEPT).unwrap(), "0");
    // The next start finds nothing of it worth keeping.
    let mut next = ephor();
    let next = next.args(["dev", "--", "true"]).env("TMPDIR", tmp.path());
    assert_code(&clean(next).output().unwrap(), 0);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}

#[test]
fn the_next_start_takes_back_what_was_left_when_the_keeper_was_killed_too() {
    let server = server();
    let tmp = tmp();
    let url = server.socket_url("postgres", "shop");
    let mut dev = running(&url, "", tmp.path(), "echo runs; exec sleep 600");
    let keeper = child_with(dev.id(), "ephor __keep-pg");
    let run = child_with(dev.id(), "ephor run --parent");
    send(keeper, Signal::SIGKILL);
    dev.kill().unwrap();
    dev.wait().unwrap();
    wait_for("the end of run", || (!is_running(run)).then_some(()));
    assert!(ours(&server).contains("ephor_broker_"));
    let start = |args: &[&str]| {
        let mut next = ephor();
        let next = next.arg("dev").args(args).args(["--", "true"]);
        assert_code(&clean(next).env("TMPDIR", tmp.path()).output().unwrap(), 0);
    };
    // The record is kept by whoever cannot use it.
    start(&[]);
    assert!(ours(&server).contains("ephor_broker_"));
    let other = Cluster::start().unwrap();
    other.psql("postgres", "CREATE DATABASE shop").unwrap();
    start(&["--pg", &other.socket_url("postgres", "shop")]);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
    start(&["--pg", &url]);
    assert_eq!(ours(&server), "");
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}

/// A login that left something where nobody looks cannot be dropped; the rights for the clean-up go all
/// the same.
#[test]
fn a_clean_up_that_fails_keeps_no_right_of_the_owners() {
    let server = server();
    let url = bo(&server);
    server.psql("postgres", "CREATE DATABASE other").unwrap();
    let tmp = tmp();
    let script = "psql -qAtd other -c 'set role none; select lo_create(0)' >/dev/null && echo runs; exec sleep 600";
    let mut dev = running(&url, "bos-own-word", tmp.path(), script);
    let keeper = child_with(dev.id(), "ephor __keep-pg");
    dev.kill().unwrap();
    dev.wait().unwrap();
    wait_for("the end of the keeper", || {
        (!is_running(keeper)).then_some(())
    });
    let left = ours(&server);
    assert!(left.contains("eph_dev_db_"), "{left}");
    let can = format!("SELECT count(*) FROM pg_roles WHERE rolcanlogin AND rolname IN ({OURS})");
    assert_eq!(server.psql("postgres", &can).unwrap(), "0");
    assert_eq!(server.psql("postgres", KEPT).unwrap(), "0");
    // Once it is gone from there, the next start removes the rest.
    server
        .psql(
            "other",
            "SELECT lo_unlink(oid) FROM pg_largeobject_metadata",
        )
        .unwrap();
    let mut next = ephor();
    let next = next.args(["dev", "--pg", &url, "--", "true"]);
    let next = clean(next)
        .env("TMPDIR", tmp.path())
        .env("PGPASSWORD", "bos-own-word");
    assert_code(&next.output().unwrap(), 0);
    assert_eq!(ours(&server), "");
}

/// docs/postgres-clients.md says how to remove all of it.
#[test]
fn what_dev_keeps_at_a_server_can_be_removed_as_written() {
    let server = server();
    let url = bo(&server);
    let mut dev = ephor();
    dev.args([
        "dev",
        "--pg",
        &url,
        "--",
        "psql",
        "-qc",
        "create table made (n int)",
    ]);
    let dev = clean(&mut dev).env("PGPASSWORD", "bos-own-word");
    assert_code(&dev.output().unwrap(), 0);
    let written = include_str!("../../../docs/postgres-clients.md");
    let (_, script) = written.split_once("```sql\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    server.psql("postgres", script).unwrap();
    let left = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'ephor%'";
    assert_eq!(server.psql("postgres", left).unwrap(), "0");
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'ephor'";
    assert_eq!(server.psql("shop", left).unwrap(), "0");
}

#[test]
fn the_administrators_password_is_handed_to_nobody() {
    let server = server();
    let url = bo(&server);
    let tmp = tmp();
    let mut dev = running(
        &url,
        "bos-own-word",
        tmp.path(),
        "echo runs; exec sleep 600",
    );
    let dir = std::fs::read_dir(tmp.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let run = child_with(dev.id(), "ephor run --parent");
    let command = child_with(run, "sleep 600");
    for pid in [run, command, pid_of(&dir, "broker"), pid_of(&dir, "agent")] {
        let environment = wait_for("an environment to look into", || {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
            let environment = String::from_utf8_lossy(&environment).into_owned();
            environment.contains("PATH=").then_some(environment)
        });
        assert!(
            !environment.contains("bos-own-word"),
            "{}",
            command_line(pid)
        );
    }
    send(dev.id(), Signal::SIGTERM);
    end_of(&mut dev, "the end of dev");
    assert_eq!(ours(&server), "");
}
