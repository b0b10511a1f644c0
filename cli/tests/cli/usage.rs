//! What is wrong before anything is started.

use super::support::{assert_code, ephor, text};

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    for args in [
        &[][..],
        &["run"],
        &["run", "true"],
        &["nonsense"],
        &["token"],
        &["token", "a", "--audience", "b"],
        &["token", "--audience", "b", "--bind", "nobody"],
        &["task", "ls", "--bogus"],
    ] {
        let output = ephor().args(args).output().unwrap();
        assert_code(&output, 64);
        let said = text(&output.stderr);
        assert!(said.starts_with("ephor: invalid: "), "{args:?}: {said}");
        assert!(
            !said.contains("error:") && !said.contains("invalid: invalid"),
            "{said}"
        );
    }
    for args in [["--help"], ["--version"]] {
        let output = ephor().args(args).output().unwrap();
        assert_code(&output, 0);
        assert!(text(&output.stdout).contains("ephor"));
    }
}

/// Both daemons: a misspelt variable is refused by its name, good settings are said to be good.
#[test]
fn settings_are_checked_by_both_daemons() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy");
    std::fs::create_dir(&policy).unwrap();
    std::fs::write(policy.join("p.toml"), super::support::policy("5m")).unwrap();
    let check = |daemon: &str, variables: &[(&str, &str)]| {
        let output = ephor()
            .env("EPHOR_BROKER_POLICY_DIR", &policy)
            .env("EPHOR_BROKER_URL", "https://a-dev-shell-has-it")
            .env("EPHOR_AGENT_SOCKET", dir.path().join("a.sock"))
            .envs(variables.iter().copied())
            .args([daemon, "check-config"])
            .output();
        output.unwrap()
    };
    for (daemon, part) in [("__broker", "policy "), ("__agent", "a.sock")] {
        let output = check(daemon, &[]);
        assert_code(&output, 0);
        let out = text(&output.stdout);
        assert!(
            out.starts_with("ok: settings are good; ")
                && out.lines().count() == 1
                && out.contains(part),
            "{out}"
        );
    }
    for (daemon, name) in [
        ("__broker", "EPHOR_BROKER_STATEDIR"),
        ("__agent", "EPHOR_AGENT_STATEDIR"),
    ] {
        let output = check(daemon, &[(name, "/x")]);
        assert_code(&output, 78);
        let said = text(&output.stderr);
        assert!(said.contains(&format!(": invalid: {name}")), "{said}");
    }
}

#[test]
fn an_export_that_is_not_there_is_wrong_usage() {
    let key = "demo.ephor/other+08f524aa+AUghZo/SiFc3aX+/oIEzsIScRgpqaRyMSGLFunVcqO3r";
    for missing in ["/nonexistent", "/etc/passwd"] {
        let output = ephor()
            .args(["audit", "verify", missing, "--key", key])
            .output();
        let output = output.unwrap();
        assert_code(&output, 64);
        let said = text(&output.stderr);
        let begins = format!("ephor: invalid: {missing} is no directory. ");
        assert!(said.starts_with(&begins), "{said}");
    }
}

#[test]
fn what_is_explained_offline_was_read_and_not_in_force() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.toml"), super::support::policy("5m")).unwrap();
    let explain = |entitlement: &str| {
        let output = ephor()
            .args([
                "policy",
                "explain",
                "--entitlement",
                entitlement,
                "--policy",
            ])
            .arg(dir.path())
            .output();
        output.unwrap()
    };
    let shown = dir.path().display().to_string();
    let output = explain("billing-api");
    assert_code(&output, 0);
    let out = text(&output.stdout);
    let first = out.lines().next().unwrap();
    assert!(first.ends_with(&format!(", read from {shown}")), "{first}");
    let output = explain("billing-apu");
    assert_code(&output, 64);
    let said = text(&output.stderr);
    assert!(
        said.contains("billing-apu does not exist (billing-api?); policy "),
        "{said}"
    );
    assert!(
        said.ends_with(&format!(" was read from {shown}\n")),
        "{said}"
    );
    assert!(!said.contains("in force"), "{said}");
}

#[test]
fn a_wrong_file_of_references_names_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let ran = dir.path().join("ran");
    std::fs::write(
        dir.path().join("ephor.env"),
        "# names\nA=cred://ok\nB=hunter2\n",
    )
    .unwrap();
    let output = ephor()
        .current_dir(dir.path())
        .args(["run", "--", "touch"])
        .arg(&ran)
        .output()
        .unwrap();
    assert_code(&output, 64);
    let said = text(&output.stderr);
    assert!(
        said.starts_with("ephor: invalid: ephor.env:3: B must be a reference"),
        "{said}"
    );
    assert!(!said.contains("hunter2") && !ran.exists());

    let output = ephor()
        .args(["run", "--env-file", "/nonexistent", "--", "true"])
        .output()
        .unwrap();
    assert_code(&output, 64);
    assert!(text(&output.stderr).contains("/nonexistent: No such file"));
}

#[test]
fn without_an_agent_nothing_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (ran, report) = (dir.path().join("ran"), dir.path().join("report"));
    let socket = dir.path().join("no.sock");
    let output = ephor()
        .env("EPHOR_SOCKET", &socket)
        .args(["run", "--report"])
        .arg(&report)
        .args(["--", "touch"])
        .arg(&ran)
        .output()
        .unwrap();
    assert_code(&output, 69);
    assert!(
        text(&output.stderr).starts_with("ephor: unreachable: "),
        "{}",
        text(&output.stderr)
    );
    assert!(!ran.exists());
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(
        (report["exit"].as_u64(), report["cause"].as_str()),
        (Some(69), Some("refused"))
    );
    for verb in [&["whoami"][..], &["token", "--audience", "x"]] {
        assert_code(
            &ephor()
                .env("EPHOR_SOCKET", &socket)
                .args(verb)
                .output()
                .unwrap(),
            69,
        );
    }
}
