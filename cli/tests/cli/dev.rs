//! `ephor dev`: up, down, many at once, and what is left when somebody is killed.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::support::{
    Dev, assert_code, end_of, ephor, is_running, is_token, pid_of, send, text, variables, wait_for,
};

#[test]
fn up_and_down() {
    let mut one = Dev::start();
    let two = Dev::start();
    let names: Vec<&str> = [
        "EPHOR_SOCKET",
        "EPHOR_ADMIN_SOCKET",
        "EPHOR_BROKER_URL",
        "EPHOR_LISTS_URL",
        "EPHOR_CA_FILE",
        "EPHOR_BROKER_CONFIG",
        "EPHOR_AGENT_CONFIG",
    ]
    .into();
    for name in &names {
        assert_ne!(one.variables[*name], two.variables[*name], "{name}");
    }
    assert_eq!(one.variables.len(), names.len());
    assert!(one.variables["EPHOR_BROKER_URL"].starts_with("https://127.0.0.1:"));
    assert!(one.variables["EPHOR_LISTS_URL"].starts_with("http://127.0.0.1:"));
    assert!(
        std::fs::read_to_string(&one.variables["EPHOR_CA_FILE"])
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    assert_eq!(
        std::fs::metadata(&one.dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert!(
        !one.dir.join("join.token").exists(),
        "the join token is gone once used"
    );

    let output = ephor()
        .args(["dev", "--dir"])
        .arg(&one.dir)
        .output()
        .unwrap();
    assert_code(&output, 64);
    assert!(
        text(&output.stderr).contains("in use by another"),
        "{}",
        text(&output.stderr)
    );
    let nowhere = ephor()
        .args(["dev", "--dir", "/proc/nowhere"])
        .output()
        .unwrap();
    assert_code(&nowhere, 64);
    assert!(text(&nowhere.stderr).contains("choose another --dir"));

    let daemons = [one.pid_of("broker"), one.pid_of("agent")];
    assert!(daemons.iter().all(|pid| is_running(*pid)));
    assert_eq!(one.stop(), Some(0));
    assert!(!daemons.iter().any(|pid| is_running(*pid)));
    assert!(!one.dir.join("env").exists());
    assert!(UnixStream::connect(&one.variables["EPHOR_SOCKET"]).is_err());
    assert_code(&two.ephor().arg("whoami").output().unwrap(), 0);
}

#[test]
fn the_same_directory_serves_again() {
    let mut dev = Dev::start();
    assert_eq!(dev.stop(), Some(0));
    let policy = dev.dir.parent().unwrap().join("policy");
    let mut again = ephor()
        .args(["dev", "--dir"])
        .arg(&dev.dir)
        .arg("--policy")
        .arg(policy)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(again.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    assert_code(
        &ephor()
            .envs(variables(&dev.dir.join("env")))
            .arg("whoami")
            .output()
            .unwrap(),
        0,
    );
    send(again.id(), Signal::SIGINT);
    assert_eq!(end_of(&mut again, "the end of ephor dev").code(), Some(0));
}

#[test]
fn one_command_with_the_built_in_policy() {
    let tmp = tempfile::tempdir().unwrap();
    let output = ephor()
        .env("TMPDIR", tmp.path())
        .args([
            "dev",
            "--",
            "sh",
            "-c",
            "\"$0\" token --audience billing; exit 3",
            env!("CARGO_BIN_EXE_ephor"),
        ])
        .output()
        .unwrap();
    assert_code(&output, 3);
    assert!(
        is_token(&text(&output.stdout)),
        "nothing but the command's output: {}",
        text(&output.stdout)
    );
    let said = text(&output.stderr);
    assert!(
        said.contains("ephor: 1 listed (token, until ") && said.contains(".  Receipt r-"),
        "{said}"
    );
    assert!(!said.contains("ready"), "{said}");
    assert_eq!(
        std::fs::read_dir(tmp.path()).unwrap().count(),
        0,
        "the directory is left"
    );
}

#[test]
fn what_is_wrong_is_said_before_anything_is_made() {
    let tmp = tempfile::tempdir().unwrap();
    let long = tmp.path().join("d".repeat(110));
    let output = ephor().args(["dev", "--dir"]).arg(&long).output().unwrap();
    assert_code(&output, 64);
    assert!(
        text(&output.stderr).contains("at most 107"),
        "{}",
        text(&output.stderr)
    );
    assert!(!long.exists());

    let policy = tmp.path().join("policy");
    std::fs::create_dir(&policy).unwrap();
    std::fs::write(
        policy.join("p.toml"),
        "trust_domain = \"x.ephor\"\nnonsense = 1\n",
    )
    .unwrap();
    let output = ephor()
        .args(["dev", "--dir"])
        .arg(tmp.path().join("d"))
        .arg("--policy")
        .arg(&policy)
        .output()
        .unwrap();
    assert_code(&output, 78);
    assert!(
        text(&output.stderr).contains("nonsense"),
        "{}",
        text(&output.stderr)
    );
    let output = ephor()
        .args(["dev", "--policy", "/nonexistent"])
        .output()
        .unwrap();
    assert_code(&output, 78);
}

#[test]
fn a_daemon_that_dies_ends_dev() {
    for daemon in ["broker", "agent"] {
        let mut dev = Dev::start();
        let (broker, agent) = (dev.pid_of("broker"), dev.pid_of("agent"));
        send(dev.pid_of(daemon), Signal::SIGKILL);
        assert_eq!(
            end_of(&mut dev.process, "the end of ephor dev").code(),
            Some(69),
            "{daemon}"
        );
        assert!(!is_running(broker) && !is_running(agent));
        let said = std::fs::read_to_string(dev.dir.parent().unwrap().join("stderr")).unwrap();
        assert!(
            said.contains(&format!(
                "ephor: unreachable: the {daemon} ended unexpectedly (signal 9)"
            )),
            "{said}"
        );
    }
}

#[test]
fn the_next_start_removes_what_a_killed_one_left() {
    let tmp = tempfile::tempdir().unwrap();
    let start = || {
        let mut dev = ephor()
            .env("TMPDIR", tmp.path())
            .arg("dev")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(dev.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        dev
    };
    let left = || {
        let entries = std::fs::read_dir(tmp.path()).unwrap();
        let mut dirs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        dirs.sort();
        dirs
    };
    let mut killed = start();
    let stale = left().remove(0);
    let daemons = ["broker", "agent"].map(|daemon| pid_of(&stale, daemon));
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait_for("the end of both daemons", || {
        (!daemons.iter().any(|pid| is_running(*pid))).then_some(())
    });
    assert_eq!(
        left(),
        std::slice::from_ref(&stale),
        "nobody else is there to remove it"
    );

    let mut lives = start();
    let one = left();
    assert!(one.len() == 1 && one[0] != stale, "{one:?}");
    let output = ephor()
        .env("TMPDIR", tmp.path())
        .args(["dev", "--", "true"])
        .output()
        .unwrap();
    assert_code(&output, 0);
    assert_eq!(left(), one, "what is in use stays");
    send(lives.id(), Signal::SIGTERM);
    assert_eq!(end_of(&mut lives, "the end of ephor dev").code(), Some(0));
    assert_eq!(left().len(), 0);
}

#[test]
fn a_killed_dev_takes_its_daemons_along() {
    let mut dev = Dev::start();
    let daemons = [dev.pid_of("broker"), dev.pid_of("agent")];
    dev.process.kill().unwrap();
    dev.process.wait().unwrap();
    wait_for("the end of both daemons", || {
        (!daemons.iter().any(|pid| is_running(*pid))).then_some(())
    });
    assert!(
        dev.log("broker").contains("stopped"),
        "cleanly: {}",
        dev.log("broker")
    );
}
