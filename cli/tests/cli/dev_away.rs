//! `ephor dev --pg` where nobody answers, at a URL that is none, and with a server that goes away.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ephor_testkit::postgres::Cluster;
use nix::sys::signal::Signal;

use super::database::{OURS, clean, server};
use super::dev_pg::tmp;
use super::support::{
    assert_code, children, command_line, end_of, ephor, is_running, send, text, wait_for,
};

fn dev(url: &str, tmp: &Path, dir: Option<&Path>) -> Command {
    let mut dev = ephor();
    dev.args(["dev", "--pg", url]);
    if let Some(dir) = dir {
        dev.arg("--dir").arg(dir);
    }
    clean(&mut dev).env("TMPDIR", tmp);
    dev
}

fn run(url: &str, tmp: &Path, dir: Option<&Path>) -> Output {
    dev(url, tmp, dir).args(["--", "true"]).output().unwrap()
}

fn keeper_of(dev: u32) -> u32 {
    wait_for("the keeper", || {
        let all = children(dev);
        all.into_iter()
            .find(|pid| command_line(*pid).contains("__keep-pg"))
    })
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

/// A port of loopback where nobody listens.
fn closed() -> String {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    taken.local_addr().unwrap().to_string()
}

#[test]
fn where_nobody_answers_it_says_so_once_and_speaks_of_no_role() {
    let tmp = tmp();
    let address = closed();
    let url = format!("postgres://bo@{address}/shop");
    let refused = run(&url, tmp.path(), None);
    assert_code(&refused, 69);
    let said = text(&refused.stderr);
    let first = format!("ephor: unreachable: connecting to {address} as bo, database shop: ");
    assert!(said.starts_with(&first), "{said}");
    assert_eq!(said.matches("Connection refused").count(), 1, "{said}");
    assert!(
        said.contains("the server runs and listens there") && said.contains("PGHOST"),
        "{said}"
    );
    assert!(said.ends_with("       Nothing was made.\n"), "{said}");
    assert!(!said.contains("role"), "{said}");
    assert!(is_empty(tmp.path()));

    // In a directory that stays nothing tells a later start of a login.
    let dir = tmp.path().join("d");
    assert_code(&run(&url, tmp.path(), Some(&dir)), 69);
    assert!(!dir.join("pg.login").exists());
    // A socket that is not there.
    let url = format!("postgres:///shop?host={}", tmp.path().display());
    let refused = run(&url, tmp.path(), None);
    assert_code(&refused, 69);
    let said = text(&refused.stderr);
    assert!(said.contains(tmp.path().to_str().unwrap()), "{said}");
}

#[test]
fn whom_the_server_does_not_let_in_is_told_what_to_look_at() {
    let (server, tmp) = (server(), tmp());
    let url = server.url("nobody", "shop");
    let refused = run(&url, tmp.path(), None);
    assert_code(&refused, 77);
    let said = text(&refused.stderr);
    assert!(said.starts_with("ephor: denied: connecting to "), "{said}");
    assert!(
        said.contains("PGPASSWORD") && said.contains("pg_hba.conf"),
        "{said}"
    );
    assert!(
        !said.contains("may make roles") && !said.contains("left at"),
        "{said}"
    );
    let init = ["target", "init", &url, "--group", "g"];
    let refused = clean(ephor().args(init)).output().unwrap();
    assert_code(&refused, 77);
    assert!(text(&refused.stderr).starts_with("ephor: denied: connecting to "));
}

#[test]
fn a_url_that_is_none_is_said_in_one_line_and_starts_nothing() {
    let tmp = tmp();
    let dir = tmp.path().join("d");
    for (url, said) in [
        (
            "postgres://bo@db1:x/shop",
            "the URL has a port that is not 1 to 65535.",
        ),
        ("shop/x", "the URL does not begin with postgres://."),
        (
            "postgres://bo@127.0.0.1/shop?sslrootcert=/nonexistent&sslmode=verify-full",
            "sslrootcert /nonexistent: No such file or directory (os error 2).",
        ),
    ] {
        let said = format!("ephor: invalid: {said}\n");
        let refused = run(url, tmp.path(), Some(&dir));
        assert_code(&refused, 64);
        assert_eq!(text(&refused.stderr), said);
        assert!(is_empty(tmp.path()), "{url}");
        for verb in [
            &["target", "init", url, "--group", "g"][..],
            &["target", "check", url],
            &["inventory", "scan", url],
        ] {
            let refused = clean(ephor().args(verb)).output().unwrap();
            assert_code(&refused, 64);
            assert_eq!(text(&refused.stderr), said, "{verb:?}");
        }
    }
}

/// Its keeper knows that it had not got as far as making anything.
#[test]
fn killed_before_it_was_let_in_it_leaves_no_word_and_no_record() {
    let tmp = tmp();
    let dir = tmp.path().join("d");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://bo@{}/shop", silent.local_addr().unwrap());
    let stderr = tmp.path().join("stderr");
    let mut dev = dev(&url, tmp.path(), Some(&dir))
        .stderr(std::fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let (_asks, _) = silent.accept().unwrap();
    let keeper = keeper_of(dev.id());
    dev.kill().unwrap();
    dev.wait().unwrap();
    wait_for("the end of the keeper", || {
        (!is_running(keeper)).then_some(())
    });
    assert_eq!(std::fs::read_to_string(&stderr).unwrap(), "");
    assert!(!dir.join("pg.login").exists());
    silent.set_nonblocking(true).unwrap();
    assert!(silent.accept().is_err(), "nobody came to clean up");
}

/// Half of it was made when it was killed: its keeper was told before.
#[test]
fn killed_while_the_server_is_prepared_it_leaves_nothing_there() {
    let (server, tmp) = (server(), tmp());
    let url = server.socket_url("postgres", "shop");
    assert_code(&run(&url, tmp.path(), None), 0);
    let holds = "CREATE ROLE holder LOGIN SUPERUSER PASSWORD 'h'";
    server.psql("postgres", holds).unwrap();
    let mut holder = server.session(("holder", "h"), "ephor", "").unwrap();
    holder.send("BEGIN; LOCK TABLE ephor.version;").unwrap();
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'ephor.version'::regclass AND NOT granted";
    let locked = waits.replace("NOT granted", "granted AND mode = 'AccessExclusiveLock'");
    server.wait_true("ephor", &locked).unwrap();
    let mut dev = dev(&url, tmp.path(), None).spawn().unwrap();
    server.wait_true("ephor", waits).unwrap();
    let made = server.psql("postgres", OURS).unwrap();
    assert!(
        made.contains("ephor_broker_"),
        "half of it was done: {made}"
    );
    let keeper = keeper_of(dev.id());
    dev.kill().unwrap();
    dev.wait().unwrap();
    holder.send("COMMIT;").unwrap();
    wait_for("the end of the keeper", || {
        (!is_running(keeper)).then_some(())
    });
    assert_eq!(server.psql("postgres", OURS).unwrap(), "");
}

/// What was made there, and cannot be taken back now, is said; and taken back by the next start.
#[test]
fn when_the_server_goes_away_meanwhile_its_role_is_named() {
    let (mut server, tmp) = (server(), tmp());
    let dir = tmp.path().join("d");
    let url = server.socket_url("postgres", "shop");
    for dir in [Some(&*dir), None] {
        let mut running = dev(&url, tmp.path(), dir)
            .args(["--", "sh", "-c", "echo $PGUSER; exec sleep 600"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut made = String::new();
        let mut out = BufReader::new(running.stdout.take().unwrap());
        out.read_line(&mut made).unwrap();
        let record = match dir {
            Some(dir) => dir.join("pg.login"),
            None => unnamed(tmp.path()).unwrap().join("pg.login"),
        };
        let login = std::fs::read_to_string(&record).unwrap();
        server.crash().unwrap();
        send(running.id(), Signal::SIGTERM);
        end_of(&mut running, "the end of dev");
        let mut said = String::new();
        let mut err = running.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut err, &mut said).unwrap();
        let left = format!("The role {login} may be left at ");
        assert!(
            said.contains(&left) && said.contains("logins that it made"),
            "{said}"
        );
        // Still away: what is there from before is named, or its record kept.
        let again = run(&url, tmp.path(), dir);
        assert_code(&again, 69);
        match dir {
            Some(dir) => {
                assert!(text(&again.stderr).contains(&left));
                let hint = format!("with this server and --dir {}", dir.display());
                assert!(said.contains(&hint), "{said}");
            }
            None => assert!(record.exists()),
        }
        server.boot().unwrap();
        let there = |server: &Cluster| server.psql("postgres", OURS).unwrap();
        let all = there(&server);
        assert!(
            all.contains(&login) && all.contains(made.trim_end()),
            "{all}"
        );
        assert_code(&run(&url, tmp.path(), dir), 0);
        assert_eq!(there(&server), "");
        assert!(!record.exists());
        assert_eq!(unnamed(tmp.path()), None);
    }
}

/// The directory of a start that was given none.
fn unnamed(tmp: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(tmp).unwrap().flatten();
    let named = |path: &PathBuf| path.to_string_lossy().contains("/ephor-dev.");
    entries.map(|entry| entry.path()).find(named)
}

/// Each installs and removes what the others do, from the first one on.
#[test]
fn starts_at_one_server_do_not_get_in_each_others_way() {
    let (server, tmp) = (server(), tmp());
    let url = server.socket_url("postgres", "shop");
    let start = |_| {
        let mut dev = dev(&url, tmp.path(), None);
        let dev = dev.args(["--", "true"]).stderr(Stdio::piped());
        dev.spawn().unwrap()
    };
    let all: Vec<_> = (0..4).map(start).collect();
    for one in all {
        assert_code(&one.wait_with_output().unwrap(), 0);
    }
    assert_eq!(server.psql("postgres", OURS).unwrap(), "");
    assert!(is_empty(tmp.path()));
}
