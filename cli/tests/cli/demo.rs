//! `ephor demo`: everyone's first minute.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::support::{assert_code, end_of, ephor, send, text};

#[test]
fn every_step_holds_and_nothing_is_left() {
    tour(true);
}

/// As on a host without PostgreSQL.
#[test]
fn every_step_holds_without_a_database() {
    tour(false);
}

fn tour(with_login: bool) {
    let tmp = tempfile::tempdir().unwrap();
    // The server runs as another user than root, and must reach its directory.
    std::fs::set_permissions(
        tmp.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .unwrap();
    let mut demo = ephor();
    demo.env("TMPDIR", tmp.path()).arg("demo");
    if !with_login {
        demo.arg("--no-postgres");
    }
    let output = demo.output().unwrap();
    assert_code(&output, 0);
    let out = text(&output.stdout);
    let mut rest = out.as_str();
    let both = |with: &'static str, without: &'static str| if with_login { with } else { without };
    for part in [
        "Real parts, nothing mocked",
        both(
            ", an mTLS service and PostgreSQL ",
            " and a service that checks tokens\n",
        ),
        "  request   orders-web (pid ",
        both(
            ") asks for a login, a token and a certificate\n",
            ") asks for a token and a certificate\n",
        ),
        "  attest    uid ",
        ", exe sha256:",
        ", held by ",
        "  decide    allowed by orders.toml:",
        ", owner team:billing ",
        "  approve   by rule",
        "  issue     recorded first (leaf ",
        both("login  eph_billing_api_", ""),
        "token  jti k-",
        "(5m: ttl.kind.jwt)",
        "cert   serial …",
        "(10m: ttl.default)",
        both(
            "  deliver   used: 3 rows read, 1 call answered 200",
            "  deliver   used: 1 call answered 200",
        ),
        ", 1 mTLS handshake",
        both(
            "he keeps a session and a connection open\n",
            "he keeps a connection open\n",
        ),
        "  $ kill -9 ",
        "  complete  the kernel reported the exit",
        both(
            "  revoke    host: 3 copies wiped.  target: session ended, role dropped,\n",
            "  revoke    host: 2 copies wiped.  target: both listed ",
        ),
        "  prove     the thief tries his copies",
        both(
            "login  FATAL: password authentication failed         refused\n",
            "",
        ),
        both(
            "login  the session that he kept open                 ended\n",
            "",
        ),
        "introspection says active=false               listed\n",
        "freshly fetched list      listed\n",
        "cert   TLS alert: certificate_revoked                listed\n",
        "freshly fetched CRL        listed\n",
        "the connection that he kept open              closed\n",
        both("1 dead, 2 listed ", "2 listed "),
        " after kill -9.  Receipt r-",
        "Receipt verified: leaf ",
        "Limit: a verifier that never asks us takes them to ",
        "Check it without us:   ",
        "ephor demo --keep DIR\n",
        "Now your own command:  ",
        "ephor dev -- ",
        "ephor token --audience billing\n",
    ] {
        let at = rest
            .find(part)
            .unwrap_or_else(|| panic!("{part:?} is missing or out of order in {out}"));
        rest = &rest[at + part.len()..];
    }
    let begins = |name: &str| format!("  {name:8}  ");
    let second = "            token and certificate listed".to_owned();
    for name in [
        begins("attest"),
        begins("decide"),
        begins("issue"),
        if with_login {
            begins("complete")
        } else {
            begins("deliver")
        },
        begins("complete"),
        if with_login { second } else { begins("revoke") },
        begins("prove"),
    ] {
        let line = out.lines().find(|line| line.starts_with(&name)).unwrap();
        let mut words = line.rsplit(' ');
        let (unit, figure) = (words.next().unwrap(), words.next().unwrap());
        assert!(
            matches!(unit, "ms" | "s") && figure.parse::<f64>().is_ok() && line.len() == 76,
            "no measured time in its column: {line:?}"
        );
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
        if line.contains(" asks for ") {
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

#[test]
fn what_it_keeps_verifies_and_what_it_prints_says_how() {
    let tmp = tempfile::tempdir().unwrap();
    let kept = tmp.path().join("kept");
    let output = ephor()
        .env("TMPDIR", tmp.path())
        .args(["demo", "--keep"])
        .arg(&kept)
        .output()
        .unwrap();
    assert_code(&output, 0);
    let out = text(&output.stdout);
    let check = out
        .lines()
        .find_map(|line| line.strip_prefix("Check it without us:   "))
        .unwrap();
    let words: Vec<&str> = check.split(' ').collect();
    let dir = kept.to_str().unwrap();
    assert_eq!(
        (words[0], words[2], words[4]),
        ("python3", dir, "--key"),
        "{check}"
    );
    assert!(std::path::Path::new(words[1]).is_file(), "{check}");
    let verify = |key: &str| {
        ephor()
            .args(["audit", "verify", dir, words[3], "--key", key])
            .output()
            .unwrap()
    };
    assert_code(&verify(words[5]), 0);
    let other = "demo.ephor/other+08f524aa+AUghZo/SiFc3aX+/oIEzsIScRgpqaRyMSGLFunVcqO3r";
    assert_ne!(
        verify(other).status.code(),
        Some(0),
        "another log's key must not do"
    );

    for unusable in [
        kept.as_os_str(),
        OsStr::new("/proc/nowhere/kept"),
        OsStr::new("/etc/passwd"),
        OsStr::new("/"),
    ] {
        let output = ephor()
            .env("TMPDIR", tmp.path())
            .args(["demo", "--keep"])
            .arg(unusable)
            .output()
            .unwrap();
        assert_code(&output, 64);
        let said = text(&output.stderr);
        assert!(said.starts_with("ephor: invalid: --keep: /"), "{said}");
        assert_eq!(text(&output.stdout), "", "before the tour begins");
    }
    assert_eq!(
        std::fs::read_dir(tmp.path()).unwrap().count(),
        1,
        "only what was asked to be kept"
    );
}
