//! `ephor inventory scan` where Ephor works itself: its own roles are no left-overs of others.

use ephor_testkit::postgres::{Cluster, Options};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::database::{clean, server};
use super::dev_pg::{child_with, running, tmp};
use super::support::{assert_code, ephor, is_running, send, text, wait_for};

fn scan(url: &str, args: &[&str]) -> std::process::Output {
    let mut scan = ephor();
    scan.args(["inventory", "scan", url]).args(args);
    clean(&mut scan).output().unwrap()
}

/// Name, maker and findings of each login.
fn found(url: &str) -> Vec<(String, String, Vec<String>)> {
    let json: Value = serde_json::from_slice(&scan(url, &["-o", "json"]).stdout).unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let login = |login: &Value| {
        let findings = login["findings"].as_array().unwrap().iter().map(word);
        (
            word(&login["name"]),
            word(&login["maker"]),
            findings.collect(),
        )
    };
    json["logins"]
        .as_array()
        .unwrap()
        .iter()
        .map(login)
        .collect()
}

fn of<'a>(found: &'a [(String, String, Vec<String>)], name: &str) -> (&'a str, &'a [String]) {
    let (_, maker, findings) = found
        .iter()
        .find(|(own, ..)| own.starts_with(name))
        .unwrap();
    (maker, findings)
}

/// By whatever name: it may call Ephor's functions.
#[test]
fn what_the_broker_logs_in_as_is_told_and_left_alone() {
    let server = Cluster::with(&Options {
        hba: vec!["local all all trust".into()],
        ..Options::default()
    })
    .unwrap();
    let made = "CREATE DATABASE shop; CREATE DATABASE other; CREATE ROLE g;
        CREATE ROLE ephor LOGIN; CREATE ROLE ephor_broker_0badcafe LOGIN";
    server.psql("postgres", made).unwrap();
    let admin = server.socket_url("postgres", "shop");
    let init = [
        "target", "init", &admin, "--group", "g", "--login", "logins",
    ];
    assert_code(&clean(ephor().args(init)).output().unwrap(), 0);
    let (client, hello) = (
        [
            "psql",
            "-X",
            "-q",
            "-U",
            "ephor_broker_0badcafe",
            "-d",
            "shop",
            "-h",
        ],
        "SELECT 1",
    );
    let mut named_so = server
        .command(client[0])
        .args(&client[1..])
        .arg(server.socket_dir())
        .args(["-p", &server.port().to_string()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut input = named_so.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, format!("{hello};\n").as_bytes()).unwrap();
    let is_in = "SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'ephor_broker_0badcafe' AND state = 'idle'";
    server.wait_true("postgres", is_in).unwrap();
    // From a database that has nothing of Ephor, by who may see no table of it.
    server.psql("postgres", "CREATE ROLE ro LOGIN").unwrap();
    let url = server.socket_url("ro", "other");
    let found = found(&url);
    assert_eq!(of(&found, "logins"), ("ephors_own", &[][..]));
    // A name says nothing for itself.
    for name in ["ephor", "ephor_broker_0badcafe", "ro"] {
        let (maker, findings) = of(&found, name);
        assert_eq!(
            (maker, findings.len()),
            ("other", 2),
            "{name}: {findings:?}"
        );
    }
    let shown = text(&scan(&url, &[]).stdout);
    assert!(shown.contains("; 1 Ephor's own, "), "{shown}");
    let csv = text(&scan(&url, &["-o", "csv"]).stdout);
    assert!(
        csv.lines()
            .any(|line| line.starts_with("logins,") && line.contains(",ephors_own,")),
        "{csv}"
    );
    let sql = text(&scan(&url, &["--sql"]).stdout);
    assert!(
        sql.contains("\"ephor\" VALID UNTIL") && !sql.contains("\"logins\""),
        "{sql}"
    );
    drop(input);
    named_so.wait().unwrap();
}

#[test]
fn what_a_dev_that_was_killed_left_is_told_with_what_removes_it() {
    let server = server();
    let tmp = tmp();
    let url = server.socket_url("postgres", "shop");
    let mut dev = running(&url, "", tmp.path(), "echo runs; exec sleep 600");
    let now = found(&url);
    assert_eq!(of(&now, "ephor_broker_"), ("ephors_own", &[][..]));
    assert_eq!(of(&now, "eph_dev_db_"), ("ephor", &[][..]));
    assert_code(&scan(&url, &[]), 0);
    let sql = text(&scan(&url, &["--sql"]).stdout);
    assert!(
        !sql.contains("ephor_broker_") && !sql.contains("eph_dev"),
        "{sql}"
    );

    let keeper = child_with(dev.id(), "ephor __keep-pg");
    let run = child_with(dev.id(), "ephor run --parent");
    send(keeper, Signal::SIGKILL);
    dev.kill().unwrap();
    dev.wait().unwrap();
    wait_for("the end of run", || (!is_running(run)).then_some(()));
    let gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename LIKE 'ephor\\_broker\\_%'";
    server.wait_true("postgres", gone).unwrap();
    let now = found(&url);
    assert_eq!(
        of(&now, "ephor_broker_"),
        ("ephors_own", &["left_by_dev".to_owned()][..])
    );
    let output = scan(&url, &[]);
    assert_code(&output, 1);
    let shown = text(&output.stdout);
    assert!(
        shown.contains("  left by a run of ephor dev --pg     1   ephor_broker_"),
        "{shown}"
    );
    // As a person would do it who reads its comments.
    let sql = text(&scan(&url, &["--sql"]).stdout);
    assert!(sql.contains("The next `ephor dev --pg` here"), "{sql}");
    let by_hand: Vec<&str> = sql
        .lines()
        .filter_map(|line| line.strip_prefix("--   "))
        .collect();
    server.psql("postgres", &by_hand.join("\n")).unwrap();
    let left = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'ephor\\_broker\\_%'";
    assert_eq!(server.psql("postgres", left).unwrap(), "0");
    let left = "SELECT count(*) FROM ephor.installation";
    assert_eq!(server.psql("ephor", left).unwrap(), "0");
    assert_code(&scan(&url, &[]), 0);
}

/// Its broker sets its end and shuts it between tasks; a broker that is away leaves it past that end.
#[test]
fn a_role_that_is_lent_is_nobodys_left_over() {
    let server = Cluster::with(&Options {
        hba: vec!["local all all trust".into()],
        ..Options::default()
    })
    .unwrap();
    let made =
        "CREATE DATABASE shop; CREATE ROLE legacy_app LOGIN PASSWORD 'x'; CREATE ROLE ro LOGIN";
    server.psql("postgres", made).unwrap();
    let admin = server.socket_url("postgres", "shop");
    let init = ["target", "init", &admin, "--static-role", "legacy_app"];
    assert_code(&clean(ephor().args(init)).output().unwrap(), 0);
    let past = "ALTER ROLE legacy_app VALID UNTIL '2020-01-01'; COMMENT ON ROLE legacy_app IS 'owner: team:old'";
    server.psql("postgres", past).unwrap();
    let (maker, findings) = {
        let found = found(&admin);
        let (maker, findings) = of(&found, "legacy_app");
        (maker.to_owned(), findings.to_vec())
    };
    assert_eq!((&*maker, &*findings), ("other", &[][..]));
    let script = text(&scan(&admin, &["--sql"]).stdout);
    assert!(!script.contains("legacy_app"), "{script}");
    // What has the name of Ephor's table and is somebody's is not read, and then every such role may be lent.
    let unseen = "whether Ephor lends it to tasks could not be seen";
    let is_kept = |url: &str| {
        let script = text(&scan(url, &["--sql"]).stdout);
        assert!(
            script.contains(unseen) && !script.contains("DROP ROLE \"legacy_app\""),
            "{script}"
        );
    };
    let view = "ALTER TABLE ephor.static_role RENAME TO hidden; \
        CREATE VIEW ephor.static_role AS SELECT ''::name AS role WHERE 1 / (random() * 0)::int = 0; \
        ALTER VIEW ephor.static_role OWNER TO ro";
    server.psql("ephor", view).unwrap();
    is_kept(&admin);
    let told = text(&scan(&admin, &[]).stdout);
    assert!(told.contains("not Ephor's own"), "{told}");
    let back = "DROP VIEW ephor.static_role; ALTER TABLE ephor.hidden RENAME TO static_role";
    server.psql("ephor", back).unwrap();
    let script = text(&scan(&admin, &["--sql"]).stdout);
    assert!(!script.contains("legacy_app"), "{script}");
    // Who may not see it takes it for lent.
    let reader = server.socket_url("ro", "shop");
    let told = text(&scan(&reader, &[]).stdout);
    assert!(
        told.contains("which roles Ephor lends to tasks: refused to ro"),
        "{told}"
    );
    is_kept(&reader);
}
