//! `ephor policy` against a running broker: policies that take each other's place while applications
//! hold what they were given.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::support::{Dev, assert_code, ephor, policy, send, text, wait_for};

/// From the call of `apply` to the last credential that it revoked.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

fn run(dev: &Dev, args: &[&str]) -> Output {
    dev.ephor().arg("policy").args(args).output().unwrap()
}

#[track_caller]
fn json(dev: &Dev, args: &[&str]) -> Value {
    let output = dev
        .ephor()
        .args(args)
        .args(["-o", "json"])
        .output()
        .unwrap();
    assert_code(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Another policy directory beside that of the installation.
fn directory(dev: &Dev, name: &str, policy: &str) -> PathBuf {
    let dir = dev.dir.parent().unwrap().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("test.toml"), policy).unwrap();
    dir
}

fn own_directory(dev: &Dev) -> PathBuf {
    dev.dir.parent().unwrap().join("policy")
}

fn shown(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

/// Without `billing-api`.
fn narrow() -> String {
    let whole = policy("5m");
    let from = whole.find("[entitlement.billing-api]").unwrap();
    let to = whole.find("[entitlement.both]").unwrap();
    format!("{}{}", &whole[..from], &whole[to..])
}

fn current(dev: &Dev) -> String {
    json(dev, &["policy", "show"])["version"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn live(dev: &Dev) -> Vec<(String, String)> {
    let rows = json(dev, &["credential", "ls"]);
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = rows.as_array().unwrap();
    rows.iter()
        .map(|row| (field(row, "scope"), field(row, "short")))
        .collect()
}

#[track_caller]
fn token(dev: &Dev, args: &[&str]) {
    let output = dev.ephor().arg("token").args(args).output().unwrap();
    assert_code(&output, 0);
}

#[test]
fn a_narrower_policy_revokes_within_a_second_and_leaves_the_others_alone() {
    let dev = Dev::start();
    // An application of its own that holds nothing of what goes away.
    let done = dev.dir.parent().unwrap().join("done");
    let script = format!("until [ -e '{}' ]; do sleep 0.05; done", done.display());
    let mut bystander = dev
        .ephor()
        .args([
            "run",
            "--env",
            "T=cred://identity/bystander",
            "--",
            "sh",
            "-c",
            &script,
        ])
        .spawn()
        .unwrap();
    wait_for("the bystander's token", || {
        live(&dev)
            .iter()
            .any(|(scope, _)| scope == "bystander")
            .then_some(())
    });
    token(&dev, &["billing-api"]);
    token(&dev, &["--audience", "shop"]);
    let (_, billing) = live(&dev)
        .into_iter()
        .find(|(scope, _)| scope == "billing")
        .unwrap();

    let narrower = directory(&dev, "narrower", &narrow());
    let differs = run(&dev, &["diff", shown(&narrower)]);
    assert_code(&differs, 1);
    assert!(
        text(&differs.stdout)
            .contains("removed  entitlement billing-api  dev/me: token for billing"),
        "{}",
        text(&differs.stdout)
    );
    let dry = run(&dev, &["apply", shown(&narrower), "--dry-run"]);
    assert_code(&dry, 0);
    assert!(text(&dry.stdout).ends_with("It would revoke 1 credential.  Nothing was done.\n"));
    assert_eq!(live(&dev).len(), 3);

    let begun = Instant::now();
    let applied = run(&dev, &["apply", shown(&narrower)]);
    assert_code(&applied, 0);
    assert!(begun.elapsed() < REVOKED_WITHIN, "{:?}", begun.elapsed());
    let said = text(&applied.stdout);
    assert!(
        said.contains("\n1 credential revoked.\n") && said.contains("\nnote: "),
        "{said}"
    );
    let mut left: Vec<String> = live(&dev).into_iter().map(|(scope, _)| scope).collect();
    left.sort();
    assert_eq!(left, ["bystander", "shop"]);
    assert_code(&run(&dev, &["diff", shown(&narrower)]), 0);

    let version = current(&dev);
    let row = json(&dev, &["credential", "show", &billing]);
    assert_eq!(
        (&row["narrowed_by"], &row["cause"]),
        (&version.as_str().into(), &"revoked".into())
    );
    let story = dev
        .ephor()
        .args(["audit", "show", &billing])
        .output()
        .unwrap();
    let why = format!(
        ", policy {} no longer allows it: billing-api does not exist any more\n",
        &version[..4]
    );
    assert!(
        text(&story.stdout).contains(&why),
        "{}",
        text(&story.stdout)
    );
    let refused = dev.ephor().args(["token", "billing-api"]).output().unwrap();
    assert_code(&refused, 77);

    receipt_says(&dev, &row, &version);
    std::fs::write(done, "").unwrap();
    let ended = wait_for("the bystander's end", || bystander.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0), "undisturbed");
}

/// The receipt of the task that lost one of its credentials, as it stands in the log.
fn receipt_says(dev: &Dev, row: &Value, version: &str) {
    let task = row["task"].as_str().unwrap();
    let ended = dev.ephor().args(["task", "end", task]).output().unwrap();
    assert_code(&ended, 0);
    let events = json(dev, &["audit", "show", task]);
    let events = events.as_array().unwrap_or_else(|| panic!("{events}"));
    let mut told = events.iter().map(|record| &record["event"]);
    let receipt = told
        .rfind(|event| event["type"] == "prove.receipt")
        .unwrap();
    assert_eq!(receipt["facts"]["narrowed"], "1", "{receipt}");
    assert_eq!(receipt["facts"]["narrowed_by"], version);
}

#[test]
fn a_broken_policy_never_takes_the_place_of_a_good_one() {
    let dev = Dev::start();
    token(&dev, &["billing-api"]);
    let before = current(&dev);
    let broken = policy("5m").replace("who = [\"dev/me\"]", "who = [\"dev/mee\"]");
    let refused = run(&dev, &["apply", shown(&directory(&dev, "broken", &broken))]);
    assert_code(&refused, 78);
    let said = text(&refused.stderr);
    assert!(
        said.starts_with("ephor: invalid: dev/mee does not exist (dev/me?). test.toml:"),
        "{said}"
    );
    assert!(
        said.ends_with(&format!("Policy {} stays in force.\n", &before[..4])),
        "{said}"
    );
    // What only the broker can know, it refuses itself.
    let other = policy("5m").replace("test.ephor", "other.ephor");
    let refused = run(&dev, &["apply", shown(&directory(&dev, "other", &other))]);
    assert_code(&refused, 78);
    let said = text(&refused.stderr);
    assert!(
        said.starts_with("ephor: invalid: the policy is for trust domain other.ephor"),
        "{said}"
    );
    assert_eq!(current(&dev), before);
    assert_eq!(live(&dev).len(), 1);
    token(&dev, &["--audience", "shop"]);
    for (args, code) in [
        (&["show", "ffff"][..], 64),
        (&["diff", "/nonexistent"], 78),
        (&["apply", "/nonexistent"], 78),
    ] {
        assert_code(&run(&dev, args), code);
    }
}

#[test]
fn sighup_reads_the_directory_again_and_a_broken_one_changes_nothing() {
    let dev = Dev::start();
    token(&dev, &["billing-api"]);
    let broker = dev.pid_of("broker");
    let first = current(&dev);
    std::fs::write(own_directory(&dev).join("test.toml"), narrow()).unwrap();
    send(broker, Signal::SIGHUP);
    let second = wait_for("the new policy", || {
        Some(current(&dev)).filter(|now| *now != first)
    });
    wait_for("the revocation", || live(&dev).is_empty().then_some(()));
    let chain = json(&dev, &["policy", "history"]);
    assert_eq!(chain[0]["applied_by"], "sighup");
    assert_eq!(
        (&chain[0]["version"], &chain[0]["previous"]),
        (&second.as_str().into(), &first.as_str().into())
    );
    assert_eq!(chain[1]["applied_by"], "start");
    let old = json(&dev, &["policy", "show", &first[..8]]);
    assert_eq!(old["files"][0]["text"], policy("5m"));

    std::fs::write(own_directory(&dev).join("test.toml"), "nonsense").unwrap();
    send(broker, Signal::SIGHUP);
    let trouble = wait_for("the complaint", || {
        json(&dev, &["policy", "show"])["trouble"]
            .as_str()
            .map(str::to_owned)
    });
    assert!(
        trouble.contains("test.toml:1") && trouble.contains("stays in force"),
        "{trouble}"
    );
    assert_eq!(current(&dev), second);
    token(&dev, &["--audience", "shop"]);
    let told = json(&dev, &["audit", "ls", "--limit", "1000"]);
    let refused = told.as_array().unwrap().iter();
    let refused = refused.filter(|record| record["event"]["type"] == "operate.policy_refused");
    assert_eq!(refused.count(), 1);

    std::fs::write(own_directory(&dev).join("test.toml"), policy("5m")).unwrap();
    send(broker, Signal::SIGHUP);
    wait_for("the mended policy", || {
        (current(&dev) == first).then_some(())
    });
    assert_eq!(json(&dev, &["policy", "show"])["trouble"], Value::Null);
    token(&dev, &["billing-api"]);
}

#[test]
fn twenty_policies_under_requests_fail_none_of_what_stays_allowed() {
    let dev = Dev::start();
    let both = [
        directory(&dev, "narrow", &narrow()),
        directory(&dev, "wide", &policy("5m")),
    ];
    let (done, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (dev, done, asked) = (&dev, &done, &asked);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let number = asked.fetch_add(1, Ordering::SeqCst);
                    // Another audience each time, so that none is answered from memory.
                    token(dev, &["--audience", &format!("a{thread}-{number}")]);
                }
            });
        }
        let applying = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 0..20 {
                assert_code(&run(&dev, &["apply", shown(&both[number % 2])]), 0);
            }
        }));
        done.store(true, Ordering::SeqCst);
        applying.unwrap();
    });
    assert!(
        asked.load(Ordering::SeqCst) >= 10,
        "{asked:?} requests went on between"
    );
    assert_eq!(live(&dev).len(), asked.load(Ordering::SeqCst) as usize);
    let chain = json(&dev, &["policy", "history"]);
    assert_eq!(chain.as_array().unwrap().len(), 21, "each is in the chain");
}

#[test]
fn what_was_applied_outlives_a_restart_until_the_directory_changes() {
    let mut dev = Dev::start();
    let narrower = directory(&dev, "narrower", &narrow());
    assert_code(&run(&dev, &["apply", shown(&narrower)]), 0);
    let applied = current(&dev);
    assert_eq!(dev.stop(), Some(0));
    let again = |dev: &Dev| {
        let output = ephor()
            .args([
                "dev",
                "--dir",
                shown(&dev.dir),
                "--policy",
                shown(&own_directory(dev)),
                "--",
            ])
            .args([env!("CARGO_BIN_EXE_ephor"), "policy", "show", "-o", "json"])
            .output()
            .unwrap();
        assert_code(&output, 0);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        (
            told["version"].as_str().unwrap().to_owned(),
            text(&output.stderr),
        )
    };
    let (version, said) = again(&dev);
    assert_eq!(version, applied);
    assert!(
        said.contains("ephor: policy: ") && said.contains("applied another. Policy "),
        "{said}"
    );
    std::fs::write(own_directory(&dev).join("test.toml"), policy("4m")).unwrap();
    let (version, said) = again(&dev);
    assert!(
        version != applied && !said.contains("ephor: policy: "),
        "{said}"
    );
}

#[test]
fn cases_are_asked_of_a_directory_without_a_broker_or_of_what_is_in_force() {
    let dev = Dev::start();
    let dir = own_directory(&dev);
    let file = dev.dir.parent().unwrap().join("cases.toml");
    let good = "[[case]]\nsubject = \"dev/me\"\nentitlement = \"billing-api\"\naudience = \"billing\"\n\
                expect = \"allow\"\nttl = \"5m\"\ncapped_by = \"ttl.default\"\n";
    std::fs::write(&file, good).unwrap();
    let ask = ["policy", "test", shown(&file), "--policy", shown(&dir)];
    let output = ephor().args(ask).output().unwrap();
    assert_code(&output, 0);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("ok: 1 case holds (policy ") && said.contains(", read from "),
        "{said}"
    );
    assert_code(&run(&dev, &["test", shown(&file)]), 0);

    let wrong = good.replace(
        "\"allow\"\nttl = \"5m\"\ncapped_by = \"ttl.default\"",
        "\"deny\"",
    );
    std::fs::write(&file, format!("{good}{wrong}")).unwrap();
    let output = ephor().args(ask).output().unwrap();
    assert_code(&output, 1);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("1 of 2 cases not as expected (policy "),
        "{said}"
    );
    assert!(said.contains("\ncase 2\n  expected deny\n  found allow: billing-api as dev/me, 5m (ttl.default), by test.toml:"), "{said}");
    std::fs::write(&file, "[[case]]\nexpct = 1\n").unwrap();
    assert_code(&ephor().args(ask).output().unwrap(), 78);
}
