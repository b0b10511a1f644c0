//! `ephor task`, `credential`, `host`, `policy` and `audit` against a running broker. The task is that
//! of the test process, which called `ephor token`, so it is open until somebody ends it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use serde_json::Value;

use super::support::{Dev, assert_code, is_running, policy, text};

fn ephor(dev: &Dev, args: &[&str]) -> Output {
    dev.ephor().args(args).output().unwrap()
}

/// What it says, when it succeeds.
#[track_caller]
fn said(dev: &Dev, args: &[&str]) -> String {
    let output = ephor(dev, args);
    assert_code(&output, 0);
    text(&output.stdout)
}

#[track_caller]
fn json(dev: &Dev, args: &[&str]) -> Value {
    serde_json::from_str(&said(dev, args)).unwrap()
}

fn short(of: &Value) -> String {
    of["short"].as_str().unwrap().to_owned()
}

#[test]
fn an_operator_sees_revokes_ends_and_an_auditor_checks() {
    let dev = Dev::start();
    for audience in ["billing", "shop"] {
        said(
            &dev,
            &[
                "token",
                "--audience",
                audience,
                "--reason",
                "=INC-482\u{202e}x",
            ],
        );
    }
    assert!(said(&dev, &["task", "ls"]).contains("  2 live\n"));
    let live = json(&dev, &["credential", "ls", "-o", "json"]);
    let [first, second] = [short(&live[0]), short(&live[1])];

    let ended = said(
        &dev,
        &["credential", "revoke", &first, "--reason", "leaked"],
    );
    assert!(
        ended.starts_with("1 listed (token, until ") && !ended.contains("Receipt"),
        "{ended}"
    );
    let left = json(&dev, &["credential", "ls", "-o", "json"]);
    assert_eq!(
        (left.as_array().unwrap().len(), short(&left[0])),
        (1, second)
    );

    let task = short(&json(&dev, &["task", "ls", "-o", "json"])[0]);
    let ended = said(&dev, &["task", "end", &task]);
    assert!(ended.starts_with("2 listed (token, until "), "{ended}");
    let receipt = task.replacen('t', "r", 1);
    assert!(
        ended.ends_with(&format!(".  Receipt {receipt}.\n")),
        "{ended}"
    );
    assert_eq!(
        said(&dev, &["task", "end", &task]),
        ended,
        "one end, one receipt"
    );
    assert!(said(&dev, &["task", "ls"]).starts_with("No open tasks."));

    story(&dev, &first);
    export(&dev, &receipt);
}

/// What `audit show` tells of a credential that was revoked before its task.
fn story(dev: &Dev, credential: &str) {
    let told = said(dev, &["audit", "show", credential]);
    for line in [
        "  because      =INC-482\\u{202e}x\n",
        ", it was revoked: leaked\n",
        " LISTED since ",
    ] {
        assert!(told.contains(line), "{line:?} in {told}");
    }
    assert!(
        !told.contains('\u{202e}'),
        "a reason reached the terminal raw"
    );
    let csv = said(dev, &["audit", "show", credential, "-o", "csv"]);
    assert!(csv.contains(",\"'=INC-482\\u{202e}x\","), "{csv}");
    for unknown in ["k-zzzz", "nothing", "../../status"] {
        let output = ephor(dev, &["audit", "show", unknown]);
        assert_code(&output, 64);
        assert!(text(&output.stderr).starts_with("ephor: invalid: "));
    }
}

/// An export of a real log, checked by both verifiers.
fn export(dev: &Dev, receipt: &str) {
    let dir = dev.dir.parent().unwrap().join("export");
    let dir = dir.to_str().unwrap();
    let key = said(dev, &["audit", "key"]);
    let key = key.trim_end();
    assert!(said(dev, &["audit", "export", "--to", dir]).contains("receipts/ (1)"));
    assert_code(&ephor(dev, &["audit", "export", "--to", dir]), 64);
    let verified = said(dev, &["audit", "verify", dir, receipt, "--key", key]);
    assert!(verified.contains("2 listed"), "{verified}");
    let python = std::env::var("EPHOR_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = Command::new(python)
        .arg(format!("{dir}/verify.py"))
        .args(["--key", key])
        .output()
        .unwrap();
    assert_code(&script, 0);
    assert_eq!(
        text(&script.stdout)
            .matches(" contained at introspection")
            .count(),
        2
    );
    let wrong = key.replace("test.ephor/", "other.ephor/");
    assert_code(&ephor(dev, &["audit", "verify", dir, "--key", &wrong]), 64);
    std::fs::write(format!("{dir}/log/checkpoint"), "x").unwrap();
    let refused = ephor(dev, &["audit", "verify", dir, "--key", key]);
    assert_code(&refused, 1);
    assert!(text(&refused.stderr).starts_with("ephor: invalid: log/checkpoint: "));
}

#[test]
fn a_host_is_invited_and_banned() {
    let dev = Dev::start();
    said(&dev, &["token", "--audience", "billing"]);
    let file = dev.dir.parent().unwrap().join("token");
    let output = ephor(
        &dev,
        &[
            "host",
            "invite",
            "web-*",
            "--token-file",
            file.to_str().unwrap(),
        ],
    );
    assert_code(&output, 0);
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(token.starts_with("ej1."), "{token}");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(!(text(&output.stdout) + &text(&output.stderr)).contains(token.trim_end()));
    assert!(said(&dev, &["host", "invite", "web-1", "--ttl", "1m"]).starts_with("ej1."));

    let host = json(&dev, &["host", "ls", "-o", "json"])[0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let output = ephor(&dev, &["host", "ban", &host]);
    // Its tasks may still be ending when the ban is answered: then it says so.
    assert!(matches!(output.status.code(), Some(0 | 80)), "{output:?}");
    super::support::wait_for("the end of its tasks", || {
        said(&dev, &["task", "ls"])
            .starts_with("No open tasks.")
            .then_some(())
    });
    assert!(said(&dev, &["credential", "ls"]).starts_with("No live credentials."));
    // What the agent held is not served from its memory either, once it heard of the ban.
    super::support::wait_for("the agent to have wiped what it held", || {
        let held = ephor(&dev, &["token", "--audience", "billing"]);
        (held.status.code() == Some(79)).then_some(())
    });
    let refused = ephor(&dev, &["token", "--audience", "shop"]);
    // Denied, or told that its task was revoked: whichever the agent heard of first.
    assert!(
        matches!(refused.status.code(), Some(77 | 79)),
        "{refused:?}"
    );
    assert_code(&ephor(&dev, &["host", "ban", "nobody"]), 64);
    assert!(is_running(dev.pid_of("broker")));
}

#[test]
fn a_policy_is_checked_and_explained_without_a_broker() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(&file, policy("5m")).unwrap();
    let cli = |args: &[&str]| super::support::ephor().args(args).output().unwrap();
    let output = cli(&["policy", "check", path]);
    assert_code(&output, 0);
    assert!(text(&output.stdout).starts_with("ok: policy "));
    let output = cli(&[
        "policy",
        "explain",
        "--entitlement",
        "both",
        "--policy",
        path,
        "-o",
        "json",
    ]);
    assert_code(&output, 0);
    let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        explained["ways"][0]["subject"],
        "spiffe://test.ephor/dev/me"
    );
    assert_code(&cli(&["policy", "explain", "--policy", path]), 64);

    std::fs::write(
        &file,
        policy("5m").replace("who = [\"dev/me\"]", "who = [\"dev/mee\"]"),
    )
    .unwrap();
    let output = cli(&["policy", "check", path]);
    assert_code(&output, 78);
    assert_eq!(
        text(&output.stderr).matches("invalid: ").count(),
        2,
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stderr).contains("p.toml:"));
}

/// Each denied caller is a process, and so a task, of its own: if its end were recorded, a loop of
/// them would fill the disk that coalesced denials save.
#[test]
fn a_loop_of_denied_callers_leaves_no_tasks_and_few_events() {
    let dev = Dev::start();
    let leaves = || {
        json(&dev, &["audit", "ls", "--limit", "500", "-o", "json"])
            .as_array()
            .unwrap()
            .len()
    };
    let before = leaves();
    for _ in 0..20 {
        let mut shell = Command::new("sh");
        let agent = dev.ephor();
        shell.envs(
            agent
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let denied = shell
            .args(["-c", "\"$0\" token nope; exit $?"])
            .arg(agent.get_program())
            .output()
            .unwrap();
        assert_code(&denied, 77);
    }
    assert_eq!(
        said(&dev, &["task", "ls", "--all", "-o", "csv"])
            .lines()
            .count(),
        1
    );
    let grown = leaves() - before;
    assert!((1..=3).contains(&grown), "{grown} events of 20 denials");
}
