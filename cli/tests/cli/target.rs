//! `ephor target init | check` on real servers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ephor_testkit::postgres::{Cluster, Options};

use super::support::{assert_code, ephor, text};

fn target(args: &[&str]) -> Command {
    let mut command = ephor();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.arg("target").args(args).env("HOME", "/nonexistent");
    command
}

fn run(args: &[&str]) -> Output {
    target(args).output().unwrap()
}

fn seeded() -> Cluster {
    let cluster = Cluster::with(&Options::default()).unwrap();
    let seed = "create database orders; create database billing; create role orders_rw nologin;
        revoke connect on database postgres, template1 from public";
    cluster.psql("postgres", seed).unwrap();
    cluster
}

fn private(file: &Path) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn init_prepares_a_server_check_says_so_and_both_may_be_repeated() {
    let cluster = seeded();
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("target-orders");
    std::fs::write(&password, "a-long-password\n").unwrap();
    private(&password);
    let file = password.to_str().unwrap();
    let admin = cluster.socket_url("postgres", "orders");
    let broker = cluster.url("ephor", "orders");
    let wanted = [
        "--group",
        "orders_rw",
        "--database",
        "orders",
        "--database",
        "billing",
    ];
    let check = |more: &[&str]| {
        let args = [
            &["check", &broker, "--password-file", file],
            &wanted[..],
            more,
        ]
        .concat();
        run(&args)
    };
    let before = check(&[]);
    assert_code(&before, 1);
    let said = text(&before.stdout);
    assert!(said.contains("WRONG") && said.contains("-> "), "{said}");

    for _ in 0..2 {
        let args = [&["init", &admin, "--password-file", file], &wanted[..]].concat();
        let done = run(&args);
        assert_code(&done, 0);
        let said = text(&done.stdout);
        assert!(
            said.contains("schema 3 in database ephor, logins may own things in orders, billing."),
            "{said}"
        );
        assert!(!said.contains("a-long-password"), "{said}");
    }
    let after = check(&[]);
    assert_code(&after, 0);
    let said = text(&after.stdout);
    assert!(
        said.contains("logins of \"orders_rw\" may be made") && said.contains(" 0 wrong"),
        "{said}"
    );
    let json: serde_json::Value = serde_json::from_slice(&check(&["-o", "json"]).stdout).unwrap();
    assert_eq!(json["holds"], true);

    // What is named wrongly is told, with what may stay as it is.
    let not = |args: &[&str], mend: &str| {
        let refused = run(args);
        assert_code(&refused, 1);
        let said = text(&refused.stdout);
        assert!(said.contains(&format!("-> {mend}\n")), "{args:?}: {said}");
        assert!(!said.contains("ALTER ROLE"), "{args:?}: {said}");
    };
    let gone = dir.path().join("gone").display().to_string();
    let put = format!("put the password of \"ephor\" into the file {gone}, mode 0600");
    not(&["check", &broker, "--password-file", &gone], &put);
    let give = "--password-file FILE, with the password of \"ephor\"";
    not(&["check", &broker], give);
    let superuser = "use the login that `ephor target init` makes for the broker";
    not(&["check", &admin, "--group", "orders_rw"], superuser);
    let strict = format!("{broker}?sslmode=verify-full");
    let tls = "ALTER SYSTEM SET ssl = on there, with a certificate for its name; or, if it is on this host, \
               tls = \"off\" of the target in the policy";
    not(&["check", &strict], tls);
    let other = "name another one; a group role is NOLOGIN";
    not(
        &[
            "check",
            &broker,
            "--password-file",
            file,
            "--group",
            "postgres",
        ],
        other,
    );

    // A role that is lent, and no group.
    let fixed = "create role fixed login; create role strong nologin createrole; create role weak nologin in role strong";
    cluster.psql("postgres", fixed).unwrap();
    let lent = run(&["init", &admin, "--static-role", "fixed"]);
    assert_code(&lent, 0);
    let said = text(&lent.stdout);
    assert!(
        said.contains("\nfixed may be lent. The broker logs in as ephor"),
        "{said}"
    );
    for (group, why) in [
        ("postgres", "it can log in itself"),
        ("fixed", "it can log in itself"),
        ("strong", "it could act as strong"),
        ("weak", "it could act as strong"),
    ] {
        let refused = run(&["init", &admin, "--group", group]);
        assert_code(&refused, 77);
        let said = text(&refused.stderr);
        let named = format!("no login can be made of the role {group}: {why}");
        assert!(said.contains(&named), "{said}");
    }
    let allowed = cluster.psql("ephor", "select role from ephor.allowed");
    assert_eq!(allowed.unwrap(), "orders_rw");

    cluster
        .psql("postgres", "revoke pg_signal_backend from ephor_signal")
        .unwrap();
    let broken = check(&[]);
    assert_code(&broken, 1);
    assert!(text(&broken.stdout).contains("-> GRANT pg_signal_backend TO ephor_signal"));
    let json: serde_json::Value = serde_json::from_slice(&check(&["-o", "json"]).stdout).unwrap();
    assert_eq!(json["holds"], false);
}

#[test]
fn the_printed_sql_is_enough_and_a_policy_names_the_target() {
    let cluster = seeded();
    let admin = cluster.socket_url("postgres", "orders");
    let printed = run(&["init", &admin, "--group", "orders_rw", "--sql"]);
    assert_code(&printed, 0);
    let none = cluster
        .psql(
            "postgres",
            "select count(*) from pg_roles where rolname ~ '^ephor'",
        )
        .unwrap();
    assert_eq!(none, "0", "--sql changes nothing");
    cluster.psql("postgres", &text(&printed.stdout)).unwrap();
    cluster
        .psql("postgres", "alter role ephor password 'typed'")
        .unwrap();

    let dir = tempfile::tempdir().unwrap();
    let secrets = dir.path().join("secrets");
    let policy = dir.path().join("policy");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::create_dir(&policy).unwrap();
    std::fs::write(secrets.join("target-orders"), "typed\n").unwrap();
    let sample = format!(
        "trust_domain = \"example.org\"\n[ttl]\ndefault = \"15m\"\nmax = \"1h\"\n\n[target.orders]\nowner = \"team:orders\"\n\
         postgres = {{ url = \"{}\", tls = \"off\" }}\n",
        cluster.url("ephor", "orders")
    );
    std::fs::write(policy.join("ephor.toml"), sample).unwrap();
    let loads = ephor()
        .args(["policy", "check"])
        .arg(&policy)
        .output()
        .unwrap();
    assert_code(&loads, 0);
    let named = |name: &str| {
        let mut command = target(&["check", name, "--policy"]);
        command
            .arg(&policy)
            .arg("--password-file")
            .arg(secrets.join("target-orders"));
        command.output().unwrap()
    };
    std::fs::set_permissions(
        secrets.join("target-orders"),
        PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let open = named("orders");
    assert_code(&open, 1);
    let said = text(&open.stdout);
    assert!(
        said.contains("others can read it: chmod 600") && said.contains("-> chmod 600 /"),
        "{said}"
    );
    private(&secrets.join("target-orders"));
    assert_code(&named("orders"), 0);
    let unknown = named("billing");
    assert_code(&unknown, 78);
    assert!(
        text(&unknown.stderr).contains("it has orders"),
        "{}",
        text(&unknown.stderr)
    );

    // What every mint would be refused for, by the entitlement; and each thing once.
    let gives = "[workload.\"orders/web\"]\nowner = \"team:orders\"\nruns = [{ uid = 990 }]\n\
        [entitlement.db]\nowner = \"team:orders\"\npurpose = \"p\"\nwho = [\"orders/web\"]\n\
        gives = [{ postgres = { target = \"orders\", role = \"orders_rw\", settings = { statement_timeot = \"30s\", \
        log_statement = \"none\", lock_timeout = \"soon\", search_path = \"a, b\", \"app.tenant\" = \"7\" } } }, \
        { secret = { target = \"orders\", role = \"fixed\" } }]\n";
    std::fs::write(policy.join("gives.toml"), gives).unwrap();
    let refused = named("orders");
    assert_code(&refused, 1);
    let said = text(&refused.stdout);
    for (grade, line) in [
        (
            "WRONG",
            "unrecognized configuration parameter \"statement_timeot\"",
        ),
        (
            "WRONG",
            "permission denied to set parameter \"log_statement\"; a superuser can allow it: \
             GRANT SET ON PARAMETER log_statement TO ephor_owner",
        ),
        (
            "WRONG",
            "invalid value for parameter \"lock_timeout\": \"soon\"",
        ),
        ("ok", "search_path may be set"),
    ] {
        let line = format!("{grade:<8}entitlement db (gives.toml:4): {line}\n");
        assert!(said.contains(&line), "{line}: {said}");
    }
    let mend = "-> correct statement_timeot in `settings` there, or leave it out\n";
    assert!(said.contains(mend), "{said}");
    // With whose rights logins are made, and not with the broker's own.
    let allow = |to: &str| format!("GRANT SET ON PARAMETER log_statement TO {to}");
    for (to, grade) in [("ephor", "WRONG"), ("ephor_owner", "ok")] {
        cluster.psql("postgres", &allow(to)).unwrap();
        let said = text(&named("orders").stdout);
        let of = format!("{grade:<8}entitlement db (gives.toml:4): ");
        let lines = said.lines().filter(|line| line.starts_with(&of));
        let about = lines.filter(|line| line.contains("log_statement")).count();
        assert_eq!(about, 1, "{to}: {said}");
    }
    let kept = "select count(*) from pg_db_role_setting s join pg_roles r on r.oid = s.setrole where rolname = 'ephor'";
    assert_eq!(cluster.psql("postgres", kept).unwrap(), "0");

    // Where the password is not known, no other one is asked for.
    let without = |config: Option<&Path>| {
        let mut command = target(&["check", "orders", "--policy"]);
        command.arg(&policy).env_remove("EPHOR_BROKER_CONFIG");
        if let Some(config) = config {
            command.arg("--broker-config").arg(config);
        }
        command.output().unwrap()
    };
    if !Path::new("/etc/ephor/broker.toml").exists() {
        let said = text(&without(None).stdout);
        let place = "unknown where the broker has its password: cannot read the settings file /etc/ephor/broker.toml";
        assert!(said.starts_with(place), "{said}");
        assert!(
            said.contains("-> --broker-config FILE, or --password-file FILE\n")
                && !said.contains("ALTER"),
            "{said}"
        );
        assert_eq!(said.matches("WRONG").count(), 1, "{said}");
    }
    let config = dir.path().join("broker.toml");
    let absent = without(Some(&config));
    assert_code(&absent, 78);
    assert!(text(&absent.stderr).contains("broker.toml"));
}

#[test]
fn what_is_wrong_is_said_without_a_password() {
    let cluster = seeded();
    let port = cluster.port();
    let admin = cluster.socket_url("postgres", "orders");
    for (args, code, word) in [
        (
            vec!["init", &admin, "--group", "nobody"],
            77,
            "the group role nobody does not exist",
        ),
        (
            vec!["init", &admin, "--group", "pg_monitor"],
            64,
            "cannot be a name",
        ),
        (
            vec![
                "init",
                &admin,
                "--group",
                "orders_rw",
                "--database",
                "ephor",
            ],
            64,
            "another database",
        ),
        (
            vec!["init", "mysql://a:hunter2@h/d", "--group", "g"],
            64,
            "invalid",
        ),
        (
            vec![
                "init",
                "postgres://a@127.0.0.1:1/d?sslmode=disable",
                "--group",
                "g",
            ],
            69,
            "unreachable",
        ),
    ] {
        let done = run(&args);
        assert_code(&done, code);
        let said = text(&done.stderr);
        assert!(
            said.contains(word) && !said.contains("hunter2"),
            "{args:?}: {said}"
        );
    }
    // Who may not make roles is told so, and nothing is left.
    cluster
        .psql("postgres", "create role plain login password 'hunter2'")
        .unwrap();
    let url = format!("postgres://plain:hunter2@127.0.0.1:{port}/orders?sslmode=disable");
    let done = run(&["init", &url, "--group", "orders_rw"]);
    assert_code(&done, 77);
    let said = text(&done.stderr);
    assert!(
        said.contains("plain is the one that was used") && !said.contains("hunter2"),
        "{said}"
    );
    let none = cluster
        .psql(
            "postgres",
            "select count(*) from pg_roles where rolname ~ '^ephor'",
        )
        .unwrap();
    assert_eq!(none, "0");
}

#[test]
fn a_password_is_taken_only_from_where_nobody_else_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let url = "postgres://a@127.0.0.1:1/d?sslmode=disable";
    let init = |file: &str| {
        run(&[
            "init",
            url,
            "--group",
            "g",
            "--sql",
            "--password-file",
            file,
        ])
    };
    std::fs::write(&file, "long-enough\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let refused = init(file.to_str().unwrap());
    assert_code(&refused, 64);
    assert!(
        text(&refused.stderr).contains("chmod 600"),
        "{}",
        text(&refused.stderr)
    );
    private(&file);
    let taken = init(file.to_str().unwrap());
    assert_code(&taken, 0);
    assert!(text(&taken.stdout).contains("PASSWORD E'SCRAM-SHA-256"));

    // A pipe does; it is read no further than a password is long, though it never ends.
    let mut endless = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let mut init = target(&[
        "init",
        url,
        "--group",
        "g",
        "--sql",
        "--password-file",
        "/dev/stdin",
    ]);
    let refused = init.stdin(endless.stdout.take().unwrap()).output().unwrap();
    endless.kill().unwrap();
    endless.wait().unwrap();
    assert_code(&refused, 64);
    assert!(
        text(&refused.stderr).contains("too long"),
        "{}",
        text(&refused.stderr)
    );
}
