//! `ephor run`: what the command gets, what is left, and with which code it ends.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::support::{
    Dev, assert_code, end_of, is_running, is_token, policy, send, text, wait_for,
};

#[test]
fn arguments_and_input_are_verbatim() {
    let dev = Dev::start();
    let hard = [
        "a b", "it's", "\"q\"", "*", "", "--env", "-x", "$HOME", "--", "ü",
    ];
    let output = dev.run(&[&["--", "printf", "<%s>\n"][..], &hard].concat());
    assert_code(&output, 0);
    let expected: String = hard.iter().map(|arg| format!("<{arg}>\n")).collect();
    assert_eq!(text(&output.stdout), expected);

    let mut child = dev
        .ephor()
        .args(["run", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"through\0and through")
        .unwrap();
    assert_eq!(
        child.wait_with_output().unwrap().stdout,
        b"through\0and through"
    );
}

#[test]
fn exit_codes_are_as_shells_have_them() {
    let dev = Dev::start();
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["sh", "-c", "kill -PIPE $$"], 141),
        (&["/nonexistent/program"], 127),
        (&["no-such-program-anywhere"], 127),
        (&["/etc/passwd"], 126),
        (&["/"], 126),
    ] {
        assert_code(&dev.run(&[&["--"][..], command].concat()), code);
    }
}

#[test]
fn each_way_of_delivery_and_nothing_left() {
    let dev = Dev::start();
    let runtime = tempfile::tempdir().unwrap();
    let work = tempfile::tempdir().unwrap();
    let report = work.path().join("report.json");
    std::fs::write(
        work.path().join("ephor.env"),
        "E=cred://identity/billing\nF=cred://billing-api?as=file\nD=cred://both/two?as=fd\n",
    )
    .unwrap();
    let script = "printf '%s\\n' \"$E\" \"$(cat \"$F\")\" \"$(cat \"$D\")\" \"$F\" \"$D\" \"$EPHOR_TASK\" \"$EPHOR_SOCKET\"
                  stat -c %a \"$F\" \"$(dirname \"$F\")\"";
    let output = dev
        .ephor()
        .current_dir(work.path())
        .env("XDG_RUNTIME_DIR", runtime.path())
        .args(["run", "--reason", "INC-1", "--report"])
        .arg(&report)
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap();
    assert_code(&output, 0);
    let out = text(&output.stdout);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[..3].iter().all(|line| is_token(line)), "{lines:?}");
    assert_eq!(
        lines[3],
        format!("{}/ephor/{}/F", runtime.path().display(), lines[5])
    );
    assert!(lines[4].starts_with("/dev/fd/"), "{}", lines[4]);
    assert_eq!(lines[6], dev.variables["EPHOR_SOCKET"]);
    assert_eq!(lines[7..], ["600", "700"]);
    assert_eq!(
        std::fs::read_dir(runtime.path()).unwrap().count(),
        0,
        "files are left"
    );

    let said = text(&output.stderr);
    for part in [
        "(ephor.env, 3 names)\n",
        "ephor: E  identity/billing  5m token, until ",
        "ephor: F  billing-api       5m token, file rewritten every ",
        "ephor: D  both/two          5m token in /dev/fd/",
        "ephor: E, D goes stale",
        "ephor: 4 listed (token, until ",
        ".  Receipt r-",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    for token in &lines[..3] {
        assert!(!said.contains(token), "a secret was printed");
    }
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["task"], lines[5]);
    assert_eq!(report["receipt"], lines[5]);
    // `both` gives two tokens together; all four die with the task.
    for (key, expected) in [
        ("exit", 0),
        ("child_exit", 0),
        ("issued", 3),
        ("dead", 0),
        ("listed", 4),
    ] {
        assert_eq!(report[key], expected, "{key} in {report:#}");
    }
    assert_eq!(report["cause"], "exited", "the command");
    assert_eq!(report["task_cause"], "released", "the task");
    let task = dev
        .ephor()
        .args(["task", "show", lines[5], "-o", "json"])
        .output();
    let task: serde_json::Value = serde_json::from_slice(&task.unwrap().stdout).unwrap();
    assert_eq!(task["cause"], report["task_cause"], "one truth: {task:#}");
    assert!(report["receipt_document"]["leaf"].is_string());
}

#[test]
fn a_file_is_rewritten_before_its_token_ends() {
    let dev = Dev::with_policy(&policy("3s"));
    let script = "first=$(cat \"$F\"); while [ \"$(cat \"$F\")\" = \"$first\" ]; do sleep 0.05; done; cat \"$F\"";
    let output = dev.run(&[
        "--env",
        "F=cred://billing-api?as=file",
        "--",
        "timeout",
        "20",
        "sh",
        "-c",
        script,
    ]);
    assert_code(&output, 0);
    assert!(is_token(&text(&output.stdout)));
}

/// A command that was given a file and waits until it is gone, and what a test needs of it.
struct Given {
    run: std::process::Child,
    task: String,
    file: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn given_a_file(dev: &Dev) -> Given {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let script = "echo \"$EPHOR_TASK $F\" > \"$0.new\"; mv \"$0.new\" \"$0\"
                  while [ -e \"$F\" ]; do sleep 0.05; done";
    let run = dev
        .ephor()
        .env("XDG_RUNTIME_DIR", dir.path())
        .args(["run", "--env", "F=cred://billing-api?as=file"])
        .args(["--env", "E=cred://identity/else"])
        .args(["--", "timeout", "25", "sh", "-c", script])
        .arg(&said)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let line = wait_for("the command's start", || {
        std::fs::read_to_string(&said).ok()
    });
    let (task, file) = line.trim().split_once(' ').unwrap();
    assert!(Path::new(file).exists());
    Given {
        run,
        task: task.to_owned(),
        file: file.into(),
        _dir: dir,
    }
}

fn revoke(dev: &Dev, task: &str, entitlement: &str) {
    let output = dev
        .ephor()
        .args(["credential", "ls", "-o", "json"])
        .output();
    let known: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let mut of_it = known.as_array().unwrap().iter();
    let one = of_it.find(|row| row["task"] == task && row["entitlement"] == entitlement);
    let id = one.unwrap_or_else(|| panic!("{known:#}"))["id"]
        .as_str()
        .unwrap();
    let output = dev.ephor().args(["credential", "revoke", id]).output();
    assert_code(&output.unwrap(), 0);
}

#[test]
fn a_file_goes_when_its_credential_is_revoked() {
    let dev = Dev::start();
    let given = given_a_file(&dev);
    revoke(&dev, &given.task, "billing-api");
    let output = given.run.wait_with_output().unwrap();
    assert_code(&output, 0);
    assert!(!given.file.exists());
    let said = text(&output.stderr);
    let line = "ephor: revoked: F (billing-api) is refused from now on; file removed.\n";
    assert_eq!(said.matches(line).count(), 1, "{said}");
    assert!(!said.contains("revoked: E"), "{said}");
}

#[test]
fn what_is_in_no_file_is_told_when_it_is_revoked() {
    let dev = Dev::start();
    let mut given = given_a_file(&dev);
    revoke(&dev, &given.task, "identity");
    let mut lines = BufReader::new(given.run.stderr.take().unwrap()).lines();
    let line = lines.find_map(|line| line.ok().filter(|line| line.contains("revoked")));
    assert_eq!(
        line.as_deref(),
        Some("ephor: revoked: E (identity/else) is refused from now on.")
    );
    assert!(given.file.exists(), "another credential's file stays");
    revoke(&dev, &given.task, "billing-api");
    assert_eq!(end_of(&mut given.run, "the end of run").code(), Some(0));
}

#[test]
fn files_go_when_the_task_is_ended() {
    let dev = Dev::start();
    let given = given_a_file(&dev);
    let output = dev.ephor().args(["task", "end", &given.task]).output();
    assert_code(&output.unwrap(), 0);
    let output = given.run.wait_with_output().unwrap();
    assert_code(&output, 79);
    assert!(!given.file.exists());
    let said = text(&output.stderr);
    assert!(
        said.contains("was ended (revoked); what the command was given is refused from now on; 1 file removed.\n"),
        "{said}"
    );
}

#[test]
fn a_killed_run_leaves_no_files_and_no_task() {
    let dev = Dev::start();
    let runtime = tempfile::tempdir().unwrap();
    let mut run = dev
        .ephor()
        .env("XDG_RUNTIME_DIR", runtime.path())
        .args([
            "run",
            "--env",
            "F=cred://billing-api?as=file",
            "--",
            "sh",
            "-c",
            "echo $$ > \"$0\"; exec sleep 60",
        ])
        .arg(runtime.path().join("pid"))
        .spawn()
        .unwrap();
    let child: u32 = wait_for("the command's pid", || {
        std::fs::read_to_string(runtime.path().join("pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    });
    assert!(
        runtime.path().join("ephor").exists(),
        "there is a file while it runs"
    );
    run.kill().unwrap();
    run.wait().unwrap();
    wait_for("the removal of its files", || {
        (!runtime.path().join("ephor").exists()).then_some(())
    });
    wait_for("the end of its task", || {
        dev.log("agent").contains("cause=\"exited\"").then_some(())
    });
    assert!(is_running(child), "the command itself is not run's to kill");
    send(child, Signal::SIGKILL);
}

#[test]
fn wait_tree_waits_for_the_last() {
    let dev = Dev::start();
    let dir = tempfile::tempdir().unwrap();
    let (go, done) = (dir.path().join("go"), dir.path().join("done"));
    // The grandchild outlives its parent, and ends only when it is told to.
    let script = "(while [ ! -e \"$0\" ]; do sleep 0.02; done; touch \"$1\") & echo left; exit 4";
    let mut run = dev
        .ephor()
        .args([
            "run",
            "--wait-tree",
            "--env",
            "F=cred://billing-api?as=file",
            "--",
            "sh",
            "-c",
            script,
        ])
        .args([&go, &done])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let shell = wait_for("the shell's end", || {
        let orphans = children_of(run.id());
        orphans
            .iter()
            .any(|(_, name)| name == "sh")
            .then_some(orphans)
    });
    assert!(run.try_wait().unwrap().is_none(), "it waits: {shell:?}");
    std::fs::write(&go, "").unwrap();
    assert_eq!(end_of(&mut run, "the end of run").code(), Some(4));
    assert!(done.exists());
}

fn children_of(parent: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) =
            std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        else {
            continue;
        };
        let (head, rest) = stat.rsplit_once(')').unwrap();
        if rest.split_ascii_whitespace().nth(1) == Some(&parent.to_string()) {
            found.push((pid, head.split_once('(').unwrap().1.to_owned()));
        }
    }
    found
}

/// What the last line names can be looked at, and the help and the README say so.
#[test]
fn the_receipt_that_is_named_at_the_end_can_be_shown() {
    let dev = Dev::start();
    let output = dev.run(&["--env", "T=cred://billing-api", "--", "true"]);
    assert_code(&output, 0);
    let said = text(&output.stderr);
    let (_, receipt) = said.rsplit_once("Receipt ").unwrap();
    let receipt = receipt.trim_end().trim_end_matches('.');
    assert!(receipt.starts_with("r-"), "{said}");
    let shown = dev.ephor().args(["audit", "show", receipt]).output();
    let shown = shown.unwrap();
    assert_code(&shown, 0);
    assert!(text(&shown.stdout).contains("prove.receipt"), "{shown:?}");
    let help = dev.ephor().args(["audit", "show", "--help"]).output();
    assert!(text(&help.unwrap().stdout).contains("of a receipt (r-"));
    assert!(include_str!("../../../README.md").contains("`ephor audit show r-"));
}
