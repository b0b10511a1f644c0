//! `ephor inventory scan` on real servers.

use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ephor_testkit::postgres::{Cluster, Options};
use serde_json::Value;

use super::support::{assert_code, ephor, text, wait_for};

/// What Vault leaves when its revocations fail: logins in a group, privileges of their own on
/// tables of two databases.
const LEFT_BY_VAULT: &str = r"
CREATE ROLE orders_rw;
CREATE DATABASE orders;
CREATE DATABASE billing;
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L VALID UNTIL %L IN ROLE orders_rw',
              'v-kubernet-orders-r-' || substr(md5(i::text), 1, 20) || '-' || 1710115200 + i,
              'x', to_timestamp(1710115200 + i + 3600))
  FROM generate_series(1, 2000) i
\gexec
\connect orders
CREATE TABLE t (i int);
SELECT format('GRANT SELECT ON t TO %I', rolname) FROM pg_roles WHERE rolname LIKE 'v-%' LIMIT 500
\gexec
\connect billing
CREATE TABLE t (i int);
SELECT format('GRANT SELECT ON t TO %I', rolname) FROM pg_roles WHERE rolname LIKE 'v-%'
 ORDER BY rolname DESC LIMIT 500
\gexec
";

/// Everything that is known of roles in the cluster.
const ALL_OF_ROLES: &str = "
SELECT to_jsonb(a) FROM pg_authid a ORDER BY oid;
SELECT to_jsonb(m) FROM pg_auth_members m ORDER BY roleid, member;
SELECT to_jsonb(s) FROM pg_shdepend s ORDER BY dbid, classid, objid, refobjid, deptype;
SELECT to_jsonb(c) FROM pg_shdescription c ORDER BY objoid;
SELECT to_jsonb(d) FROM pg_database d ORDER BY oid;
SELECT to_jsonb(s) FROM pg_db_role_setting s ORDER BY setdatabase, setrole;";

fn scan(url: &str, args: &[&str]) -> Output {
    scan_with(url, args, &[])
}

fn scan_with(url: &str, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = ephor();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    let scan = command.args(["inventory", "scan", url]).args(args);
    scan.env("HOME", "/nonexistent")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn json(url: &str) -> Value {
    let output = scan(url, &["-o", "json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

/// The names of logins about which `finding` was found.
fn with(report: &Value, finding: &str) -> Vec<String> {
    let logins = report["logins"].as_array().unwrap().iter();
    let has = |login: &&Value| {
        let findings = login["findings"].as_array().unwrap();
        findings.iter().any(|found| found == finding)
    };
    let name = |login: &Value| login["name"].as_str().unwrap_or("(gone)").to_owned();
    logins.filter(has).map(name).collect()
}

/// A session that stays until it is ended from outside.
struct Session(Child);

impl Session {
    fn open(cluster: &Cluster, user: &str, first: &str, variables: &[(&str, &str)]) -> Self {
        let mut child = psql(cluster, user, "orders")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.as_mut().unwrap();
        input.write_all(format!("{first}\n").as_bytes()).unwrap();
        Self(child)
    }

    fn wait_listed(cluster: &Cluster, user: &str) {
        let query = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}' AND state = 'idle'"
        );
        wait_for("a session", || {
            (cluster.psql("orders", &query).unwrap() == "1").then_some(())
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `psql` as somebody, over the socket.
fn psql(cluster: &Cluster, user: &str, database: &str) -> Command {
    let mut psql = cluster.command("psql");
    psql.args(["-X", "-q", "-w", "-U", user, "-d", database, "-h"])
        .arg(cluster.socket_dir())
        .args(["-p", &cluster.port().to_string()]);
    psql
}

/// Runs what `--sql` printed, as its first lines tell.
fn clean(cluster: &Cluster, user: &str, script: &[u8]) -> Output {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(script).unwrap();
    file.rewind().unwrap();
    psql(cluster, user, "postgres")
        .args(["-f", "-"])
        .stdin(file)
        .output()
        .unwrap()
}

/// A server that trusts everybody on its socket and on loopback.
fn trusting(settings: &[&str]) -> Cluster {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    let options = Options {
        settings: lines(settings),
        hba: lines(&["local all all trust", "host all all 127.0.0.1/32 trust"]),
        files: Vec::new(),
    };
    Cluster::with(&options).unwrap()
}

#[test]
fn two_thousand_left_overs_are_all_found_and_nothing_is_changed() {
    let cluster = trusting(&[]);
    cluster.psql("postgres", LEFT_BY_VAULT).unwrap();
    cluster.psql("postgres", "CREATE ROLE ro LOGIN").unwrap();
    let before = cluster.psql("postgres", ALL_OF_ROLES).unwrap();
    let by_tcp = format!("postgres://ro@127.0.0.1:{}/billing", cluster.port());
    for url in [cluster.socket_url("postgres", "orders"), by_tcp] {
        let output = scan(&url, &[]);
        assert_code(&output, 1);
        let out = text(&output.stdout);
        assert!(
            out.contains(": 2002 logins; 2000 look like Vault's (v-...), "),
            "{out}"
        );
        assert!(
            out.contains("  past VALID UNTIL, still there    2000   oldest 2024-03-11\n"),
            "{out}"
        );
        assert!(
            out.contains("Nothing was changed.  SQL to remove them: --sql."),
            "{out}"
        );
        let report = json(&url);
        let past = with(&report, "past_valid_until");
        assert_eq!(past.len(), 2000);
        assert!(
            past.iter()
                .all(|name| name.starts_with("v-kubernet-orders-r-"))
        );
        assert!(
            report["logins"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|l| l["maker"] == "vault")
                .all(|l| { l["made_at"].as_str().unwrap().starts_with("2024-03-11T") })
        );
        let csv = scan(&url, &["-o", "csv"]);
        assert_code(&csv, 1);
        let lines = text(&csv.stdout).matches("\r\n").count();
        assert_eq!(lines, 1 + report["logins"].as_array().unwrap().len());
        assert_code(&scan(&url, &["--sql"]), 0);
    }
    assert_eq!(cluster.psql("postgres", ALL_OF_ROLES).unwrap(), before);
}

/// Everything that can be in the way of DROP ROLE, under names that try to get out of theirs.
const ODD: &str = r#"
CREATE ROLE orders_ro;
\connect orders
CREATE ROLE "v-token-migrate-AAAAAAAAAAAAAAAAAAA1-1700000000" LOGIN VALID UNTIL '2024-01-02' IN ROLE orders_rw;
GRANT CREATE ON SCHEMA public TO "v-token-migrate-AAAAAAAAAAAAAAAAAAA1-1700000000";
SET SESSION AUTHORIZATION "v-token-migrate-AAAAAAAAAAAAAAAAAAA1-1700000000";
CREATE TYPE mood AS ENUM ('a');
CREATE TABLE made (id serial PRIMARY KEY, m mood);
CREATE VIEW made_view AS SELECT * FROM made;
CREATE FUNCTION definer() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER changed BEFORE INSERT ON made FOR EACH ROW EXECUTE FUNCTION changed();
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO orders_ro;
RESET SESSION AUTHORIZATION;
INSERT INTO made (m) VALUES ('a');
CREATE ROLE nogroup LOGIN VALID UNTIL '2024-01-02';
CREATE DATABASE "we ird""'\=" OWNER nogroup;
CREATE ROLE "x"";--
$do$ '\" LOGIN VALID UNTIL '2024-01-02';
ALTER ROLE "x"";--
$do$ '\" SET work_mem = '1MB';
\connect -reuse-previous=on "dbname='we ird""\'\\='"
CREATE TABLE odd (i int);
GRANT SELECT ON odd TO "x"";--
$do$ '\";
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO "x"";--
$do$ '\";
ALTER TABLE odd ENABLE ROW LEVEL SECURITY;
CREATE POLICY odd ON odd TO "x"";--
$do$ '\" USING (true);
CREATE ROLE used LOGIN VALID UNTIL '2024-01-02';
CREATE ROLE app LOGIN VALID UNTIL '2099-01-01' IN ROLE used;
CREATE ROLE dba_tmp LOGIN SUPERUSER;
COMMENT ON ROLE dba_tmp IS 'Owner: team:dba, made for INC-3';
CREATE ROLE files;
GRANT pg_read_server_files TO files;
CREATE ROLE "bo@example.com" LOGIN VALID UNTIL '2999-01-01' IN ROLE files;
CREATE ROLE gone LOGIN;
CREATE ROLE shut LOGIN;
"#;

#[test]
fn what_is_printed_cleans_up_and_another_scan_finds_nothing() {
    let cluster = trusting(&["max_prepared_transactions = 5"]);
    cluster.psql("postgres", LEFT_BY_VAULT).unwrap();
    cluster.psql("postgres", ODD).unwrap();
    let migrate = "v-token-migrate-AAAAAAAAAAAAAAAAAAA1-1700000000";
    let prepare = "BEGIN; CREATE TABLE prepared (i int); PREPARE TRANSACTION 'g''1';";
    let _sessions = [("gone", ""), ("shut", ""), (migrate, prepare)].map(|(user, first)| {
        let session = Session::open(&cluster, user, first, &[]);
        Session::wait_listed(&cluster, user);
        session
    });
    cluster
        .psql("postgres", "DROP ROLE gone; ALTER ROLE shut NOLOGIN")
        .unwrap();
    let url = cluster.socket_url("postgres", "orders");

    let report = json(&url);
    assert_eq!(with(&report, "past_valid_until").len(), 2004);
    assert_eq!(with(&report, "connected_past_valid_until"), [migrate]);
    assert_eq!(with(&report, "role_gone"), ["(gone)"]);
    assert_eq!(with(&report, "not_a_login"), ["shut"]);
    let strong = with(&report, "over_privileged");
    assert!(
        strong.contains(&"dba_tmp".to_owned()) && strong.contains(&"bo@example.com".to_owned()),
        "{strong:?}"
    );
    assert_eq!(strong.len(), 2);
    let bo = report["logins"]
        .as_array()
        .unwrap()
        .iter()
        .find(|login| login["name"] == "bo@example.com")
        .unwrap();
    assert_eq!(bo["powers"][0]["right"], "pg_read_server_files");
    assert_eq!(
        (&bo["powers"][0]["through"][0], &bo["maker"]),
        (&"files".into(), &"person".into())
    );
    assert_eq!(
        with(&report, "never_expires"),
        ["app", "bo@example.com", "dba_tmp"]
    );

    // First without anybody who takes over what is owned where no group is.
    let script = scan(&url, &["--sql"]);
    assert_code(&script, 0);
    let cleaned = clean(&cluster, "postgres", &script.stdout);
    assert!(cleaned.status.success(), "{}", text(&cleaned.stderr));
    assert!(text(&cleaned.stderr).contains("definer() was SECURITY DEFINER and is not any more"));
    let report = json(&url);
    assert_eq!(with(&report, "past_valid_until"), ["nogroup", "used"]);
    for finding in ["connected_past_valid_until", "role_gone", "not_a_login"] {
        assert!(with(&report, finding).is_empty(), "{finding}");
    }
    let script = scan(&url, &["--sql", "--reassign-to", "orders_ro"]);
    let said = text(&script.stdout);
    assert!(
        said.contains("--   \"used\": others have its rights by membership: app\n"),
        "{said}"
    );
    let cleaned = clean(&cluster, "postgres", &script.stdout);
    assert!(cleaned.status.success(), "{}", text(&cleaned.stderr));

    // A human decided about the last one.
    cluster
        .psql("postgres", "REVOKE used FROM app; DROP ROLE used")
        .unwrap();
    let output = scan(&url, &[]);
    assert_code(&output, 0);
    let out = text(&output.stdout);
    assert!(
        out.contains("  past VALID UNTIL, still there       0\n"),
        "{out}"
    );
    // Nothing was lost, and nothing runs with more rights than before.
    let kept = cluster
        .psql(
            "orders",
            "SELECT count(*), tableowner FROM made, pg_tables WHERE tablename = 'made' GROUP BY 2",
        )
        .unwrap();
    assert_eq!(kept, "1|orders_rw");
    assert_eq!(
        cluster
            .psql(
                "orders",
                "SELECT prosecdef FROM pg_proc WHERE proname = 'definer'"
            )
            .unwrap(),
        "f"
    );
    assert_eq!(
        cluster
            .psql("orders", "SELECT count(*) FROM pg_prepared_xacts")
            .unwrap(),
        "0"
    );
}

#[test]
fn without_a_superuser_and_not_when_something_changed_since() {
    let cluster = trusting(&[]);
    let seed = "
        CREATE DATABASE orders;
        CREATE ROLE admin LOGIN CREATEROLE;
        CREATE ROLE other LOGIN VALID UNTIL '2024-01-02';
        \\connect orders
        CREATE TABLE t (i int);
        ALTER TABLE t OWNER TO admin;
        SET SESSION AUTHORIZATION admin;
        CREATE ROLE left_over LOGIN VALID UNTIL '2024-01-02';
        GRANT SELECT ON t TO left_over;
        RESET SESSION AUTHORIZATION;";
    cluster.psql("postgres", seed).unwrap();
    let url = cluster.socket_url("admin", "orders");
    let script = scan(&url, &["--sql"]);
    assert_code(&script, 0);
    // Somebody gives one of them a new end: the whole of it is not run.
    cluster
        .psql("postgres", "ALTER ROLE other VALID UNTIL '2099-01-01'")
        .unwrap();
    let refused = clean(&cluster, "admin", &script.stdout);
    assert!(!refused.status.success());
    assert!(
        text(&refused.stderr).contains("other changed since the scan: scan again"),
        "{refused:?}"
    );
    let still = "SELECT rolcanlogin FROM pg_roles WHERE rolname IN ('left_over', 'other')";
    assert_eq!(cluster.psql("postgres", still).unwrap(), "t\nt");
    // What owns something by now is not dropped with it.
    let script = scan(&url, &["--sql"]);
    cluster
        .psql(
            "orders",
            "CREATE TABLE late (i int); ALTER TABLE late OWNER TO left_over",
        )
        .unwrap();
    let refused = clean(&cluster, "admin", &script.stdout);
    assert!(
        text(&refused.stderr).contains("owns something since the scan"),
        "{refused:?}"
    );
    cluster
        .psql("orders", "ALTER TABLE late OWNER TO admin")
        .unwrap();

    let script = scan(&url, &["--sql"]);
    let session = Session::open(&cluster, "admin", "", &[]);
    let cleaned = clean(&cluster, "admin", &script.stdout);
    assert!(cleaned.status.success(), "{}", text(&cleaned.stderr));
    drop(session);
    assert!(with(&json(&url), "past_valid_until").is_empty());
}

#[test]
fn what_a_login_may_not_see_is_said() {
    let cluster = trusting(&[]);
    let seed = "
        CREATE DATABASE orders;
        CREATE ROLE ro LOGIN;
        CREATE ROLE past LOGIN VALID UNTIL '2024-01-02';
        \\connect orders
        REVOKE SELECT ON pg_shdepend, pg_stat_activity FROM PUBLIC;";
    cluster.psql("postgres", seed).unwrap();
    let slow = Session::open(
        &cluster,
        "past",
        "",
        &[("PGOPTIONS", "-c post_auth_delay=25")],
    );
    let hidden = "SELECT count(DISTINCT pid) FROM pg_locks WHERE pid NOT IN (SELECT pid FROM pg_stat_activity)";
    wait_for("a backend that is not listed", || {
        (cluster.psql("postgres", hidden).unwrap() == "1").then_some(())
    });
    let all = scan(&cluster.socket_url("postgres", "orders"), &[]);
    let out = text(&all.stdout);
    assert!(
        out.contains(" holds locks and is no listed session: signing in, or hidden\n"),
        "{out}"
    );
    assert!(out.contains("connected now     0\n"), "{out}");

    let url = cluster.socket_url("ro", "orders");
    let output = scan(&url, &[]);
    assert_code(&output, 1);
    let out = text(&output.stdout);
    assert!(
        out.contains("still there       1   oldest 2024-01-02\n"),
        "{out}"
    );
    assert!(!out.contains("connected now"), "{out}");
    assert!(out.contains("  not seen: sessions: refused to ro"), "{out}");
    assert!(
        out.contains("  not seen: what roles own: refused to ro"),
        "{out}"
    );
    let sql = scan(&url, &["--sql"]);
    assert_code(&sql, 77);
    assert!(sql.stdout.is_empty());
    assert!(
        text(&sql.stderr).starts_with("ephor: denied: no SQL without knowing all that they hold.")
    );
    drop(slow);
}

/// A certificate for `name`, signed by itself; with its key.
fn certificate(dir: &Path, name: &str) -> (Vec<u8>, Vec<u8>) {
    let (cert, key) = (dir.join("cert"), dir.join("key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=db",
            "-addext",
            &format!("subjectAltName={name}"),
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (std::fs::read(cert).unwrap(), std::fs::read(key).unwrap())
}

#[test]
fn passwords_and_tls_as_psql_takes_them() {
    let dir = tempfile::tempdir().unwrap();
    let (other, _) = certificate(dir.path(), "IP:127.0.0.1");
    let wrong_roots = dir.path().join("other.pem");
    std::fs::write(&wrong_roots, other).unwrap();
    let (cert, key) = certificate(dir.path(), "IP:127.0.0.1");
    let roots = dir.path().join("cert");
    let options = Options {
        settings: vec!["ssl = on".to_owned()],
        hba: vec![
            "local all all trust".to_owned(),
            "hostssl all plain 127.0.0.1/32 trust".to_owned(),
        ],
        files: vec![
            ("server.crt".to_owned(), cert),
            ("server.key".to_owned(), key),
        ],
    };
    let cluster = Cluster::with(&options).unwrap();
    let password = "hunter:2@/?#%";
    let seed = format!(
        "CREATE DATABASE orders; CREATE ROLE ro LOGIN PASSWORD '{password}'; CREATE ROLE plain LOGIN"
    );
    cluster.psql("postgres", &seed).unwrap();
    let port = cluster.port();
    let escaped = "hunter%3A2%40%2F%3F%23%25";
    let passfile = dir.path().join("pass");
    std::fs::write(
        &passfile,
        format!(
            "127.0.0.1:{port}:orders:ro:{}\n",
            password.replace(':', "\\:")
        ),
    )
    .unwrap();
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (roots, wrong_roots, passfile) = [&roots, &wrong_roots, &passfile]
        .map(|p| p.to_str().unwrap().to_owned())
        .into();
    let url = |user: &str, rest: &str| format!("postgres://{user}@127.0.0.1:{port}/orders{rest}");
    let full = format!("?sslmode=verify-full&sslrootcert={roots}");

    let right = [
        (url(&format!("ro:{escaped}"), &full), vec![]),
        (url(&format!("ro:{escaped}"), "?sslmode=disable"), vec![]),
        (url("ro", ""), vec![("PGPASSWORD", password)]),
        (
            url("ro", "?sslmode=require"),
            vec![("PGPASSFILE", passfile.as_str())],
        ),
        (
            url("ro", &format!("?sslmode=verify-ca&sslrootcert={roots}")),
            vec![("PGPASSWORD", password)],
        ),
        (
            format!("postgres://127.0.0.1:{port}/orders"),
            vec![
                ("PGUSER", "ro"),
                ("PGPASSWORD", password),
                ("PGSSLMODE", "verify-full"),
                ("PGSSLROOTCERT", &roots),
            ],
        ),
        (cluster.socket_url("ro", "orders"), vec![]),
    ];
    for (url, variables) in &right {
        let output = scan_with(url, &[], variables);
        assert_code(&output, 0);
    }
    let wrong = [
        (url("ro:hunter3", &full), 77, "denied: 127.0.0.1:"),
        (url("ro", ""), 77, "denied: 127.0.0.1:"),
        (url("nobody", ""), 77, "denied: 127.0.0.1:"),
        (url("plain", "?sslmode=disable"), 77, "denied: 127.0.0.1:"),
        (
            url(
                "plain",
                &format!("?sslmode=verify-full&sslrootcert={wrong_roots}"),
            ),
            69,
            "unreachable: 127.0.0.1:",
        ),
        (
            url(
                "plain",
                &format!("?sslmode=require&sslrootcert={wrong_roots}"),
            ),
            69,
            "unreachable: 127.0.0.1:",
        ),
        (
            url(
                "plain",
                &format!("?sslmode=verify-full&sslrootcert={roots}"),
            )
            .replace("127.0.0.1", "localhost"),
            69,
            "unreachable: localhost:",
        ),
        (
            url("plain", "?sslmode=verify-full&sslrootcert=/nonexistent"),
            64,
            "invalid: sslrootcert /nonexistent",
        ),
        (
            url("plain", "?sslmode=maybe"),
            64,
            "invalid: sslmode is one of",
        ),
        (
            url("plain", "?options=-crole=x"),
            64,
            "invalid: the URL has parameters other than",
        ),
        (
            "postgres://ro@127.0.0.1:1/orders".to_owned(),
            69,
            "unreachable: 127.0.0.1:1: ",
        ),
        (
            format!("postgres://ro:{password}@127.0.0.1/orders"),
            64,
            "invalid: the URL has a password that cannot be read",
        ),
    ];
    for (url, code, said) in &wrong {
        let output = scan_with(url, &[], &[]);
        let stderr = text(&output.stderr);
        assert_code(&output, *code);
        assert!(
            stderr.starts_with(&format!("ephor: {said}")),
            "{url}: {stderr}"
        );
        assert!(!stderr.contains("hunter"), "{stderr}");
    }
}
