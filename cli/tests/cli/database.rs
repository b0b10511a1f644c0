//! Database logins on a real server: from a URL to a command, and gone with it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ephor_testkit::postgres::Cluster;
use nix::sys::signal::Signal;

use super::support::{
    assert_code, children, command_line, end_of, ephor, is_running, send, text, variables, wait_for,
};

/// Every role that was ever ours; the group and the owners stay.
pub const OURS: &str = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'eph\\_%' OR rolname LIKE 'ephor\\_broker\\_%'";

pub fn server() -> Cluster {
    let server = Cluster::start().unwrap();
    server.psql("postgres", "CREATE DATABASE shop").unwrap();
    server
        .psql(
            "shop",
            "CREATE TABLE orders (id int); INSERT INTO orders VALUES (1), (2), (3)",
        )
        .unwrap();
    server
}

/// Without anything of the tester's own.
pub fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("HOME", "/nonexistent")
}

pub fn dev_pg(server: &Cluster, command: &[&str]) -> Output {
    let url = server.socket_url("postgres", "shop");
    let mut dev = ephor();
    dev.args(["dev", "--pg", &url, "--"]).args(command);
    clean(&mut dev).output().unwrap()
}

#[test]
fn dev_gives_a_login_without_a_policy_and_takes_it_back() {
    let server = server();
    let asked = "select session_user, current_user, (select count(*) from orders)";
    let output = dev_pg(&server, &["psql", "-Atc", asked]);
    assert_code(&output, 0);
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    let mut row = out.trim().split('|');
    let login = row.next().unwrap().to_owned();
    assert!(
        login.starts_with("eph_dev_db_") && login.len() <= 63,
        "{login}"
    );
    assert_eq!(row.collect::<Vec<_>>(), ["ephor_dev", "3"]);
    let short = format!("eph_dev_db_{}", &login[login.len() - 4..]);
    assert!(
        said.contains(&format!(
            "ephor: DATABASE_URL  dev-db  login {short}, kept until psql ends\n"
        )),
        "{said}"
    );
    assert!(!said.contains("goes stale"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("ephor: 1 of 1 dead and proven in "),
        "{said}"
    );
    assert!(last.contains("  Receipt r-"), "{said}");
    // The prompt is back: nothing that could log in is left, nor the broker's own login.
    assert_eq!(server.psql("postgres", OURS).unwrap(), "");
    let known = "SELECT count(*) FROM ephor.installation";
    assert_eq!(server.psql("ephor", known).unwrap().trim(), "0");

    // What it makes is the group's and stays; the next one has it.
    let made = dev_pg(
        &server,
        &["psql", "-c", "create table kept as select 7 as n"],
    );
    assert_code(&made, 0);
    let read = dev_pg(&server, &["psql", "-Atc", "select n from kept"]);
    assert_eq!(text(&read.stdout).trim(), "7", "{}", text(&read.stderr));

    // The command's own exit code, and a server that is not there.
    assert_code(&dev_pg(&server, &["sh", "-c", "exit 7"]), 7);
    let mut nowhere = ephor();
    nowhere.args(["dev", "--pg", "postgres://x@127.0.0.1:1/shop", "--", "true"]);
    let nowhere = clean(&mut nowhere).output().unwrap();
    assert_ne!(nowhere.status.code(), Some(0));
    assert!(
        text(&nowhere.stderr).contains("127.0.0.1:1"),
        "{}",
        text(&nowhere.stderr)
    );
}

/// `ephor dev --pg` that serves until it is dropped.
pub struct Serving {
    process: Child,
    dir: tempfile::TempDir,
}

impl Serving {
    pub fn start(server: &Cluster) -> Self {
        let dir = tempfile::Builder::new().prefix("et.").tempdir().unwrap();
        let url = server.socket_url("postgres", "shop");
        let mut dev = ephor();
        dev.args(["dev", "--pg", &url, "--dir"])
            .arg(dir.path().join("d"));
        let said = std::fs::File::create(dir.path().join("stderr")).unwrap();
        let mut process = clean(&mut dev)
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = process.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let said = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
        assert_eq!(line, "ready\n", "{said}");
        Self { process, dir }
    }

    pub fn ephor(&self) -> Command {
        let mut command = ephor();
        clean(&mut command).envs(variables(&self.dir.path().join("d/env")));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.ephor().args(args).output().unwrap()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            send(self.process.id(), Signal::SIGTERM);
            end_of(&mut self.process, "the end of ephor dev");
        }
    }
}

#[test]
fn every_form_lets_psql_in() {
    let server = server();
    let dev = Serving::start(&server);
    let who = "select current_user || ' ' || count(*) from orders";
    for (names, script) in [
        (
            &["DATABASE_URL=cred://dev-db"][..],
            "psql -Atc \"$0\" \"$DATABASE_URL\"",
        ),
        (
            &["U=cred://dev-db?as=file"],
            "psql -Atc \"$0\" \"$(cat \"$U\")\"",
        ),
        (
            &["U=cred://dev-db?as=fd"],
            "psql -Atc \"$0\" \"$(cat \"$U\")\"",
        ),
        (
            &["PGPASSWORD=cred://dev-db"],
            "test -n \"$PGUSER$PGHOST\" && psql -Atc \"$0\"",
        ),
        (
            &["PGPASSFILE=cred://dev-db"],
            "test -z \"$PGPASSWORD\" && psql -Atc \"$0\"",
        ),
        (
            &["PGSERVICEFILE=cred://dev-db"],
            "test -z \"$PGUSER\" && psql -Atc \"$0\"",
        ),
        (
            &["DB_JSON=cred://dev-db"],
            "psql -Atc \"$0\" \"$(printf %s \"$DB_JSON\" | sed 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/')\"",
        ),
    ] {
        let mut run = dev.ephor();
        run.arg("run");
        for name in names {
            run.args(["--env", name]);
        }
        // What is inherited leads elsewhere.
        run.env("PGSERVICE", "nowhere")
            .env("PGPASSWORD", "wrong")
            .env("PGHOSTADDR", "192.0.2.1");
        if script.contains("DATABASE_URL") || script.contains("$U") || script.contains("JSON") {
            run.env_remove("PGSERVICE").env_remove("PGHOSTADDR");
        }
        let output = run.args(["--", "sh", "-c", script, who]).output().unwrap();
        assert_code(&output, 0);
        assert_eq!(
            text(&output.stdout),
            "ephor_dev 3\n",
            "{names:?}: {}",
            text(&output.stderr)
        );
        let wire = text(&output.stderr);
        assert!(
            wire.contains(" of 1 dead and proven in "),
            "{names:?}: {wire}"
        );
    }
    // What a user sets is kept beside ours.
    let mut run = dev.ephor();
    run.args([
        "db",
        "dev-db",
        "--",
        "psql",
        "-Atc",
        "show statement_timeout",
    ]);
    let output = run
        .env("PGOPTIONS", "-c statement_timeout=9s")
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "9s\n", "{}", text(&output.stderr));
    let output = dev.run(&["db", "dev-db", "--", "psql", "-Atc", "select current_user"]);
    assert_eq!(
        text(&output.stdout),
        "ephor_dev\n",
        "{}",
        text(&output.stderr)
    );

    // Whoever finds a name in a log of the server learns whose it was: whole, short, or its end.
    let whole = dev.run(&["db", "dev-db", "--", "psql", "-Atc", "select session_user"]);
    let whole = text(&whole.stdout).trim().to_owned();
    let short = format!("eph_dev_db_{}", &whole[whole.len() - 4..]);
    for name in [&whole, &short, &whole[whole.len() - 12..]] {
        let shown = dev.run(&["audit", "show", name]);
        assert_code(&shown, 0);
        let shown = text(&shown.stdout);
        let first = shown.lines().next().unwrap();
        assert!(first.starts_with(&format!("login {short} (k-")), "{shown}");
        assert!(first.contains("DEAD since "), "{shown}");
        for line in [
            "  asked by ",
            "  allowed by   dev.toml:",
            "  lifetime ",
            "  ended ",
            "  proof ",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(shown.contains("dropped"), "{shown}");
    }
    let one = dev.run(&["credential", "show", &short]);
    assert_code(&one, 0);
    let late = dev.run(&["credential", "ls", "--overdue"]);
    assert_eq!(text(&late.stdout), "None is overdue.\n");
    let refused = dev.run(&["credential", "accept", &short, "--reason", "INC-7"]);
    assert_ne!(refused.status.code(), Some(0));
    assert!(
        text(&refused.stderr).contains("nothing to accept"),
        "{}",
        text(&refused.stderr)
    );

    // Nothing is left, neither there nor here.
    let left = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'eph\\_dev%'";
    assert_eq!(server.psql("postgres", left).unwrap().trim(), "0");
    let wrong = dev.run(&["db", "identity"]);
    assert_code(&wrong, 64);
    let wrong = dev.run(&["db", "dev-bd"]);
    assert_code(&wrong, 77);
    assert!(
        text(&wrong.stderr).contains("dev-db"),
        "{}",
        text(&wrong.stderr)
    );
}

/// On a laptop one is no superuser: enough is to own the database and to be allowed to make roles and
/// databases.
#[test]
fn dev_needs_no_superuser_and_keeps_no_right() {
    let server = server();
    let made =
        "CREATE ROLE bo LOGIN CREATEROLE CREATEDB PASSWORD 'x'; ALTER DATABASE shop OWNER TO bo;";
    server.psql("postgres", made).unwrap();
    server
        .psql(
            "shop",
            "ALTER TABLE orders OWNER TO bo; ALTER SCHEMA public OWNER TO bo",
        )
        .unwrap();
    let mut dev = ephor();
    dev.args([
        "dev",
        "--pg",
        &server.url("bo", "shop"),
        "--",
        "psql",
        "-Atc",
    ]);
    dev.arg("select current_user || count(*) from orders");
    let output = clean(&mut dev).env("PGPASSWORD", "x").output().unwrap();
    assert_code(&output, 0);
    let said = text(&output.stderr);
    assert_eq!(text(&output.stdout), "ephor_dev3\n", "{said}");
    assert!(
        said.ends_with(".\n") && !said.contains(" left at "),
        "{said}"
    );
    assert_eq!(server.psql("postgres", OURS).unwrap(), "", "{said}");
    let kept = "SELECT count(*) FROM pg_auth_members WHERE member = 'bo'::regrole AND roleid::regrole::text LIKE 'ephor\\_%'";
    let version = server.psql("postgres", "SHOW server_version_num").unwrap();
    // From 16 on whoever makes a role may grant it; that is no right of the role.
    if version.trim() < "160000" {
        assert_eq!(server.psql("postgres", kept).unwrap().trim(), "0");
    }

    // One who may not leaves nothing behind, and is told what it takes.
    server
        .psql("postgres", "CREATE ROLE al LOGIN CREATEROLE PASSWORD 'x'")
        .unwrap();
    let mut dev = ephor();
    dev.args(["dev", "--pg", &server.url("al", "shop"), "--", "true"]);
    let refused = clean(&mut dev).env("PGPASSWORD", "x").output().unwrap();
    assert_code(&refused, 77);
    assert!(
        text(&refused.stderr).contains("a user who may make roles"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(server.psql("postgres", OURS).unwrap(), "");
}

/// A login that somebody copied dies with the program that it was given to, however that ends.
#[test]
fn a_copied_login_is_refused_after_kill_9() {
    let server = server();
    let dev = Serving::start(&server);
    let file = dev.dir.path().join("stolen");
    let script = format!(
        "printf %s \"$DATABASE_URL\" > {0}.new; mv {0}.new {0}; exec sleep 600",
        file.display()
    );
    let mut run = dev.ephor();
    run.args([
        "run",
        "--env",
        "DATABASE_URL=cred://dev-db",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    let mut run = run.stderr(Stdio::null()).spawn().unwrap();
    wait_for("the theft", || Path::new(&file).exists().then_some(()));
    let url = std::fs::read_to_string(&file).unwrap();
    let thief = |sql: &str| {
        let mut psql = Command::new("psql");
        clean(&mut psql).args(["-Atc", sql, &url]).output().unwrap()
    };
    assert_eq!(text(&thief("select count(*) from orders").stdout), "3\n");
    let mut session = Command::new("psql");
    clean(&mut session).args(["-Atc", "select pg_sleep(600)", &url]);
    let mut session = session.stderr(Stdio::piped()).spawn().unwrap();
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE query = 'select pg_sleep(600)' AND state = 'active'";
    wait_for("a session of the thief's", || {
        (server.psql("postgres", busy).unwrap().trim() == "1").then_some(())
    });
    // The password is with the thief and in memory: in no store, log or journal, nor the server's.
    let password = url.split(['@', ':']).nth(2).unwrap().to_owned();
    assert!(password.len() > 40, "{url}");
    let mut files = vec![dev.dir.path().join("d")];
    let mut looked_at = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes
                .windows(password.len())
                .any(|some| some == password.as_bytes());
            assert!(!found, "the password is in {}", path.display());
            looked_at += 1;
        }
    }
    assert!(looked_at > 8, "{looked_at}");
    assert!(!server.log().contains(&password));
    send(run.id(), Signal::SIGKILL);
    end_of(&mut run, "the run that was killed");
    end_of(&mut session, "the thief's session");
    let refused = wait_for("the refusal", || {
        let tried = thief("select 1");
        (!tried.status.success()).then(|| text(&tried.stderr))
    });
    assert!(
        refused.contains("FATAL:  password authentication failed"),
        "{refused}"
    );
}

#[test]
fn what_is_held_is_shown_and_ends_with_ctrl_c() {
    let server = server();
    let dev = Serving::start(&server);
    let mut hold = dev.ephor();
    hold.args(["hold", "dev-db", "-o", "url"]);
    let mut hold = hold
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(hold.stdout.as_mut().unwrap())
        .read_line(&mut url)
        .unwrap();
    let mut psql = Command::new("psql");
    let psql = clean(&mut psql)
        .args(["-Atc", "select current_user", url.trim()])
        .output()
        .unwrap();
    assert_eq!(text(&psql.stdout), "ephor_dev\n", "{}", text(&psql.stderr));
    send(hold.id(), Signal::SIGINT);
    let ended = hold.wait_with_output().unwrap();
    let said = text(&ended.stderr);
    assert!(
        said.contains("\nephor: dev-db  login ")
            && said.contains(", kept until Ctrl-C\n")
            && said.contains("1 of 1 dead"),
        "{said}"
    );
    assert_code(&ended, 0);

    // Killed, it holds nothing either: what shows the login ends with it.
    let mut hold = dev.ephor();
    hold.args(["hold", "dev-db", "-o", "url"]);
    let mut hold = hold
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(hold.stdout.as_mut().unwrap())
        .read_line(&mut url)
        .unwrap();
    let shows = children(hold.id());
    let shows = shows
        .iter()
        .find(|pid| command_line(**pid).contains("__hold"));
    let shows = *shows.unwrap();
    send(hold.id(), Signal::SIGKILL);
    end_of(&mut hold, "the hold that was killed");
    wait_for("the end of what shows it", || {
        (!is_running(shows)).then_some(())
    });

    let table = {
        let mut hold = dev.ephor();
        let mut hold = hold
            .args(["hold", "dev-db"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(hold.stdout.as_mut().unwrap()).lines();
        let table: Vec<String> = lines.take(8).map(Result::unwrap).collect();
        send(hold.id(), Signal::SIGTERM);
        end_of(&mut hold, "ephor hold");
        table.join("\n")
    };
    for line in [
        "host      ",
        "port      ",
        "database  shop",
        "user      eph_dev_db_",
        "password  ",
    ] {
        assert!(table.contains(line), "{table}");
    }
}

/// The end of `dev` takes back what a program still has.
#[test]
fn the_end_of_dev_leaves_no_login() {
    let server = server();
    let mut dev = Serving::start(&server);
    let mut run = dev.ephor();
    run.args(["run", "--env", "U=cred://dev-db", "--", "sleep", "600"])
        .stderr(Stdio::null());
    let mut run = run.spawn().unwrap();
    let there = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'eph\\_dev%'";
    wait_for("a login", || {
        (server.psql("postgres", there).unwrap().trim() == "1").then_some(())
    });
    send(dev.process.id(), Signal::SIGTERM);
    let ended = end_of(&mut dev.process, "the end of ephor dev");
    assert_eq!(ended.code(), Some(0), "{}", dev.said());
    assert_eq!(server.psql("postgres", OURS).unwrap(), "", "{}", dev.said());
    send(run.id(), Signal::SIGKILL);
    run.wait().unwrap();
}
