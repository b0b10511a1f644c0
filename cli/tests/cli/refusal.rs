//! A refusal: the command is not started, and nothing is left.

use super::support::{Dev, assert_code, policy, text};

#[test]
fn a_denied_command_is_never_started() {
    let dev = Dev::start();
    let dir = tempfile::tempdir().unwrap();
    let ran = dir.path().join("ran");
    let output = dev
        .ephor()
        .args(["run", "--env", "A=cred://nobody-has-this", "--", "touch"])
        .arg(&ran)
        .output()
        .unwrap();
    assert_code(&output, 77);
    let said = text(&output.stderr);
    assert!(said.starts_with("ephor: denied: A: "), "{said}");
    assert!(said.contains("Nothing was issued.  Decision d-"), "{said}");
    assert!(!ran.exists());
}

#[test]
fn what_was_issued_before_a_refusal_is_revoked() {
    let dev = Dev::start();
    let runtime = tempfile::tempdir().unwrap();
    let output = dev
        .ephor()
        .env("XDG_RUNTIME_DIR", runtime.path())
        .args([
            "run",
            "--env",
            "A=cred://billing-api?as=file",
            "--env",
            "B=cred://nobody-has-this",
            "--",
            "true",
        ])
        .output()
        .unwrap();
    assert_code(&output, 77);
    let said = text(&output.stderr);
    assert!(
        said.contains("What had been issued is revoked: 1 listed (token, until "),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(runtime.path()).unwrap().count(), 0);
}

#[test]
fn a_reference_to_several_says_which_there_are() {
    let dev = Dev::start();
    let output = dev.run(&["--env", "A=cred://both", "--", "true"]);
    assert_code(&output, 64);
    let said = text(&output.stderr);
    assert!(
        said.contains("A: both gives one and two; say which: cred://both/one"),
        "{said}"
    );
    let output = dev.run(&["--env", "A=cred://both/three", "--", "true"]);
    assert_code(&output, 64);
    assert!(text(&output.stderr).contains("does not give `three`; it gives one, two"));
}

#[test]
fn who_matches_no_workload_is_told_so() {
    let dev = Dev::with_policy(&policy("5m").replace("runs = [{ uid = ", "runs = [{ uid = 4"));
    let output = dev.run(&["--env", "A=cred://billing-api", "--", "true"]);
    assert_code(&output, 77);
    assert!(
        text(&output.stderr).starts_with("ephor: denied: A: "),
        "{}",
        text(&output.stderr)
    );
    // Without a name it runs: a task needs no credential.
    let output = dev.run(&["--", "echo", "ran"]);
    assert_code(&output, 0);
    assert_eq!(text(&output.stdout), "ran\n");
    let output = dev.ephor().arg("whoami").output().unwrap();
    assert_code(&output, 0);
    assert!(
        text(&output.stdout).contains("no workload of the policy matches"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn a_task_revoked_under_its_command_is_79() {
    let dev = Dev::start();
    let script = "exec \"$0\" task end \"$EPHOR_TASK\" --reason test";
    let binary = env!("CARGO_BIN_EXE_ephor");
    let output = dev.run(&[
        "--env",
        "A=cred://billing-api",
        "--",
        "sh",
        "-c",
        script,
        binary,
    ]);
    assert_code(&output, 79);
    let said = text(&output.stderr);
    assert!(
        said.contains("ephor: revoked: task t-")
            && said.contains("(revoked) while the command ran"),
        "{said}"
    );
}

#[test]
fn with_the_broker_away_the_end_is_said_to_be_open() {
    let mut dev = Dev::start();
    let broker = dev.pid_of("broker");
    let script = "kill -9 \"$0\"";
    let output = dev.run(&[
        "--env",
        "A=cred://billing-api",
        "--",
        "sh",
        "-c",
        script,
        &broker.to_string(),
    ]);
    // Either the agent still answers that the broker is away, or dev has stopped it already.
    assert_code(&output, 80);
    let said = text(&output.stderr);
    assert!(
        said.contains("the broker is away") || said.contains("The agent ends task t-"),
        "{said}"
    );
    let ended = super::support::end_of(&mut dev.process, "the end of ephor dev");
    assert_eq!(ended.code(), Some(69));
}
