//! `ephor broker keys|rotate|ca` against a running broker.

use std::process::Output;

use serde_json::Value;

use super::support::{Dev, assert_code, text};

fn ephor(dev: &Dev, args: &[&str]) -> Output {
    dev.ephor().arg("broker").args(args).output().unwrap()
}

#[track_caller]
fn listed(dev: &Dev, args: &[&str]) -> Vec<(String, u64, String)> {
    let output = ephor(dev, args);
    assert_code(&output, 0);
    let keys: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = |key: &Value| {
        let word = |name: &str| key[name].as_str().unwrap().to_owned();
        (
            word("kind"),
            key["version"].as_u64().unwrap(),
            word("state"),
        )
    };
    keys.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn an_operator_sees_rotates_and_distrusts_keys() {
    let dev = Dev::start();
    let row = |kind: &str, version, state: &str| (kind.to_owned(), version, state.to_owned());
    assert_eq!(
        listed(&dev, &["keys", "-o", "json"]),
        [
            row("ca", 1, "active"),
            row("database", 1, "active"),
            row("log", 1, "active"),
            row("token", 1, "active")
        ]
    );
    let table = ephor(&dev, &["keys"]);
    assert!(
        text(&table.stdout).starts_with("KEY "),
        "{}",
        text(&table.stdout)
    );

    // Nothing is used that nobody could know.
    let early = ephor(&dev, &["rotate", "token", "--now"]);
    assert_code(&early, 64);
    assert!(
        text(&early.stderr).contains("--force"),
        "{}",
        text(&early.stderr)
    );
    let asked = ephor(&dev, &["rotate", "token", "-o", "json"]);
    assert_code(&asked, 0);
    assert!(text(&asked.stderr).contains("version 2 of the token key is published"));
    let pair = [row("token", 2, "prepared"), row("token", 1, "active")];
    assert_eq!(
        listed(&dev, &["rotate", "token", "-o", "json"]),
        pair,
        "asked again, the same"
    );
    let early = ephor(&dev, &["rotate", "token", "--now"]);
    assert_code(&early, 64);
    assert!(
        text(&early.stderr).contains("published since"),
        "{}",
        text(&early.stderr)
    );
    let none = ephor(&dev, &["rotate", "token", "--distrust"]);
    assert_code(&none, 64);

    let token = dev
        .ephor()
        .args(["token", "--audience", "billing"])
        .output()
        .unwrap();
    assert_code(&token, 0);
    assert_eq!(
        listed(&dev, &["rotate", "token", "--now", "--force", "-o", "json"]),
        [row("token", 2, "active"), row("token", 1, "retired")]
    );
    assert_eq!(
        listed(&dev, &["rotate", "token", "--distrust", "-o", "json"]),
        [row("token", 2, "active")]
    );
    let all = listed(&dev, &["keys", "--all", "-o", "json"]);
    assert!(all.contains(&row("token", 1, "destroyed")), "{all:?}");
    assert_code(&ephor(&dev, &["rotate", "ssh"]), 64);
    assert_code(&ephor(&dev, &["rotate", "log", "--force"]), 64);
}

#[test]
fn a_ca_is_requested_and_what_is_no_chain_is_refused() {
    let dev = Dev::start();
    let csr = ephor(&dev, &["ca", "csr"]);
    assert_code(&csr, 0);
    let csr = text(&csr.stdout);
    assert!(
        csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"),
        "{csr}"
    );
    let path = dev.dir.join("chain.pem");
    std::fs::write(&path, &csr).unwrap();
    let refused = ephor(&dev, &["ca", "import", path.to_str().unwrap()]);
    assert_code(&refused, 64);
    let said = text(&refused.stderr);
    assert!(said.contains("the CA's own first, its root last"), "{said}");
    let missing = ephor(&dev, &["ca", "import", "/nonexistent"]);
    assert!(text(&missing.stderr).contains("/nonexistent"));
}
