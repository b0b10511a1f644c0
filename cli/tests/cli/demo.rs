//! `ephor demo`: everyone's first minute.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::support::{assert_code, end_of, ephor, send, text};

#[test]
fn every_step_holds_and_nothing_is_left() {
    let tmp = tempfile::tempdir().unwrap();
    let output = ephor()
        .env("TMPDIR", tmp.path())
        .arg("demo")
        .output()
        .unwrap();
    assert_code(&output, 0);
    let out = text(&output.stdout);
    let mut rest = out.as_str();
    for part in [
        "Real parts, nothing mocked",
        "\n  request   orders-web (pid ",
        ") asks for a token\n",
        "\n  attest    uid ",
        ", exe sha256:",
        ", held by ",
        "\n  decide    allowed by orders.toml:",
        ", owner team:billing\n",
        "\n  approve   by rule",
        "\n  issue     recorded first (leaf ",
        "token  jti k-",
        "(5m: ttl.kind.jwt)",
        "\n  deliver   used: 1 call answered 200",
        "\n  $ kill -9 ",
        "\n  complete  the kernel reported the exit",
        "\n  revoke    ",
        "\n  prove     the thief tries his copy",
        "introspection says active=false               listed\n",
        "freshly fetched list      listed\n",
        "1 listed ",
        " after kill -9.  Receipt r-",
        "Receipt verified: leaf ",
        "Limit: a verifier that never asks us takes the token to ",
        "\nCheck it without us:   cargo run -- demo --keep DIR\n",
        "Now your own command:  cargo run -- dev -- ",
    ] {
        let at = rest
            .find(part)
            .unwrap_or_else(|| panic!("{part:?} is missing or out of order in {out}"));
        rest = &rest[at + part.len()..];
    }
    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        std::fs::read_dir(tmp.path()).unwrap().count(),
        0,
        "something is left"
    );
}

#[test]
fn an_interrupted_one_leaves_nothing_either() {
    let tmp = tempfile::tempdir().unwrap();
    let mut demo = ephor()
        .env("TMPDIR", tmp.path())
        .arg("demo")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    for line in lines.map(Result::unwrap) {
        if line.contains("asks for a token") {
            send(demo.id(), Signal::SIGINT);
        }
    }
    assert_eq!(end_of(&mut demo, "the end of the demo").code(), Some(130));
    assert_eq!(
        std::fs::read_dir(tmp.path()).unwrap().count(),
        0,
        "something is left"
    );
}
