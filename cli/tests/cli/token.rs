//! `ephor token` and `ephor whoami`.

use super::support::{Dev, assert_code, is_token, text};

#[test]
fn a_token_alone_or_all_as_json() {
    let dev = Dev::start();
    let output = dev
        .ephor()
        .args(["token", "--audience", "https://api/x?y=1&bind=9"])
        .output()
        .unwrap();
    assert_code(&output, 0);
    let out = text(&output.stdout);
    assert!(
        is_token(&out) && out.ends_with('\n') && out.lines().count() == 1,
        "{out}"
    );
    assert_eq!(text(&output.stderr), "");

    let output = dev
        .ephor()
        .args([
            "token",
            "billing-api",
            "--ttl",
            "90s",
            "--reason",
            "x",
            "-o",
            "json",
        ])
        .output()
        .unwrap();
    assert_code(&output, 0);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["task_rule"], "ancestor");
    assert_eq!(answer["credentials"][0]["audience"], "billing");
    assert_eq!(answer["credentials"][0]["capped_by"], "request");

    let output = dev.ephor().args(["token", "both/two"]).output().unwrap();
    assert_code(&output, 0);
    assert!(is_token(&text(&output.stdout)));
    let output = dev.ephor().args(["token", "both"]).output().unwrap();
    assert_code(&output, 64);
    assert!(
        text(&output.stderr).contains("both gives one and two"),
        "{}",
        text(&output.stderr)
    );
    assert_code(
        &dev.ephor()
            .args(["token", "nobody-has-this"])
            .output()
            .unwrap(),
        77,
    );
}

#[test]
fn a_token_that_nobody_can_read_is_no_success() {
    let dev = Dev::start();
    let ended = |redirection: &str| {
        let output = dev
            .ephor()
            .env_clear()
            .envs(&dev.variables)
            .args(["run", "--", "/bin/sh", "-c"])
            .arg(format!("\"$0\" token --audience x {redirection}"))
            .arg(env!("CARGO_BIN_EXE_ephor"))
            .output()
            .unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = ended(">/dev/full");
    assert_eq!(code, Some(69), "{said}");
    let line = "ephor: unreachable: standard output cannot be written: No space left on device";
    assert!(said.contains(line), "{said}");
    assert!(
        said.contains("\n       What was issued is revoked when its task ends."),
        "{said}"
    );
    assert_eq!(ended(">/dev/null").0, Some(0));
}

#[test]
fn a_helper_joins_the_task_of_its_run() {
    let dev = Dev::start();
    let script = "\"$0\" token --audience billing -o json; echo \"$EPHOR_TASK\" >&2";
    let output = dev.run(&["--", "sh", "-c", script, env!("CARGO_BIN_EXE_ephor")]);
    assert_code(&output, 0);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["task_rule"], "run");
    let said = text(&output.stderr);
    assert!(said.contains(answer["task"].as_str().unwrap()), "{said}");
    assert!(
        said.contains("ephor: 1 listed (token"),
        "it dies with the run: {said}"
    );
}

#[test]
fn whoami_tells_of_the_named_ancestor() {
    let dev = Dev::start();
    // The shell's parent is the one that is named, two steps above `ephor`.
    let script = "sh -c '\"$0\" whoami --bind \"$1\" -o json; :' \"$0\" $$; echo $$ >&2";
    let output = dev.ephor_sh(script).output().unwrap();
    assert_code(&output, 0);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        answer["evidence"]["pid"].to_string(),
        text(&output.stderr).trim()
    );
}

#[test]
fn whoami_says_who_and_where() {
    let dev = Dev::start();
    let output = dev.ephor().arg("whoami").output().unwrap();
    assert_code(&output, 0);
    let out = text(&output.stdout);
    assert!(
        out.starts_with("subject   spiffe://test.ephor/dev/me\nhost "),
        "{out}"
    );
    let output = dev.ephor().args(["whoami", "-o", "json"]).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["trust_domain"], "test.ephor");
    assert_eq!(
        answer["evidence"]["uid"],
        rustix::process::getuid().as_raw()
    );
    let own = u64::from(std::process::id());
    assert_eq!(answer["evidence"]["pid"], own, "its caller, as for a token");
    let init = dev.process.id().to_string();
    let output = dev.ephor().args(["whoami", "--bind", &init]).output();
    assert_code(&output.unwrap(), 77);
}
