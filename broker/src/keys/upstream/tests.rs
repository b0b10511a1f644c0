//! Chains that an upstream CA signs, made by a program that is not ours.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::process::Command;

use super::*;
use crate::issue::tests::harness::Bench;

/// What a careful upstream CA puts into our certificate.
const GOOD: &str = "basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
subjectAltName=URI:spiffe://prod.example
";

fn openssl(dir: &Path, words: &str) {
    let done = Command::new("openssl")
        .args(words.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{words}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

const CONFIG: &str = "[ca]
default_ca = d
[d]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = p
unique_subject = no
[p]
commonName = supplied
";

/// Signs `NAME.csr` with these extensions, from 2026 until then.
fn sign(dir: &Path, name: &str, by: &str, extensions: &str, until: &str) {
    std::fs::write(dir.join("extensions"), extensions).unwrap();
    openssl(
        dir,
        &format!(
            "ca -batch -notext -config ca.cnf -in {name}.csr {by} -extfile extensions \
             -startdate 20260101000000Z -enddate {until} -out {name}.pem"
        ),
    );
}

/// An upstream root, and an intermediate under it.
fn upstream(dir: &Path) {
    std::fs::write(dir.join("ca.cnf"), CONFIG).unwrap();
    std::fs::write(dir.join("index.txt"), "").unwrap();
    openssl(
        dir,
        "req -newkey rsa:2048 -nodes -keyout root.key -out root.csr -subj /CN=Root",
    );
    let mid = "req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout mid.key -out mid.csr -subj /CN=Mid";
    openssl(dir, mid);
    let extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n\
                      subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
    sign(
        dir,
        "root",
        "-selfsign -keyfile root.key",
        extensions,
        "20360101000000Z",
    );
    sign(
        dir,
        "mid",
        "-cert root.pem -keyfile root.key",
        extensions,
        "20350101000000Z",
    );
}

/// Our request signed by the intermediate with these extensions, and the chain above it.
fn signed(dir: &Path, csr: &str, extensions: &str, not_after: &str) -> String {
    std::fs::write(dir.join("own.csr"), csr).unwrap();
    sign(
        dir,
        "own",
        "-cert mid.pem -keyfile mid.key",
        extensions,
        not_after,
    );
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    [read("own.pem"), read("mid.pem"), read("root.pem")].concat()
}

const LONG: &str = "20290101000000Z";

fn chain(pem: &str) -> admin::Chain {
    admin::Chain {
        chain_pem: pem.to_owned(),
        reason: String::new(),
    }
}

#[tokio::test]
async fn an_intermediate_that_was_signed_elsewhere_issues() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    upstream(dir.path());
    let none = bench.broker.import_ca(&chain("x")).await.unwrap_err();
    assert!(
        none.detail.contains("ephor broker ca csr"),
        "{}",
        none.detail
    );
    let csr = bench.broker.ca_request("").await.unwrap();
    // Asked again, it is for the same key: there is one request.
    bench.broker.ca_request("").await.unwrap();
    let listed = bench.broker.list_keys().unwrap();
    let out = listed.iter().filter(|key| key.state == "requested");
    assert_eq!(out.count(), 1);
    let before = bench.broker.keys.load().ca().sha256();
    let pem = signed(dir.path(), &csr, GOOD, LONG);
    bench.broker.import_ca(&chain(&pem)).await.unwrap();
    let keys = bench.broker.keys.load_full();
    assert_eq!(
        (keys.ca().sha256(), keys.trusted().len()),
        (before, 2),
        "published first"
    );

    bench
        .clock
        .advance_millis(limits::CA_LEAD_SECONDS * 1000 + 1_000);
    bench.broker.sweep_keys().await.unwrap();
    let keys = bench.broker.keys.load_full();
    assert_ne!(keys.ca().sha256(), before);
    assert_eq!(
        keys.ca_chain().len(),
        2,
        "itself and the one above it, not the root"
    );
    let root = std::fs::read_to_string(dir.path().join("root.pem")).unwrap();
    let root = certificates_of_pem(root.as_bytes()).unwrap().remove(0);
    assert!(
        keys.bundle().roots.contains(&root),
        "verifiers get the upstream root"
    );
    let now = bench.broker.clock.wall();
    let spki = SigningKey::generate().unwrap().public_key().spki();
    let id = "spiffe://prod.example/agent/web-1";
    let (leaf, _) = keys.issue_agent(id, &spki, now).unwrap();
    // Judged by another program, with nothing but the upstream root.
    let write = |name: &str, ders: &[Vec<u8>]| {
        let pem: String = ders
            .iter()
            .map(|der| ephor_crypto::x509::pem("CERTIFICATE", der))
            .collect();
        std::fs::write(dir.path().join(name), pem).unwrap();
    };
    write("leaf.pem", &[leaf]);
    write("between.pem", &keys.ca_chain());
    let at = now.as_unix_seconds();
    openssl(
        dir.path(),
        &format!(
            "verify -attime {at} -x509_strict -CAfile root.pem -untrusted between.pem leaf.pem"
        ),
    );

    // It is stored whole, and no root of ours follows it by itself.
    let bench = bench.reopened().await;
    assert_eq!(bench.broker.keys.load().ca().sha256(), keys.ca().sha256());
    assert_eq!(bench.broker.keys.load().ca_chain(), keys.ca_chain());
    let listed = bench.broker.list_keys().unwrap();
    let active = listed
        .iter()
        .find(|key| key.kind == "ca" && key.state == "active")
        .unwrap();
    assert_eq!(
        active.until, active.ends,
        "used until its end, or until someone imports the next"
    );
}

#[tokio::test]
async fn chains_under_which_nothing_could_be_issued_are_refused_with_the_reason() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    upstream(dir.path());
    let csr = bench.broker.ca_request("").await.unwrap();
    let good = signed(dir.path(), &csr, GOOD, LONG);
    let with = |from: &str, to: &str| signed(dir.path(), &csr, &GOOD.replace(from, to), LONG);
    let certificates: Vec<&str> = good
        .split_inclusive("-----END CERTIFICATE-----\n")
        .collect();
    let other_key = {
        let key = SigningKey::generate().unwrap();
        let csr = ca_csr(&key, "x", "prod.example").unwrap();
        signed(dir.path(), &csr, GOOD, LONG)
    };
    let constrained = format!("{GOOD}nameConstraints=critical,permitted;DNS:other.example\n");
    for (pem, wanted) in [
        ("".to_owned(), "not a list of PEM certificates"),
        (certificates[0].to_owned(), "no certificate above the first"),
        (certificates[..2].concat(), "not a root"),
        (
            [certificates[0], certificates[2]].concat(),
            "would be refused",
        ),
        (
            with("CA:TRUE,pathlen:0", "CA:FALSE"),
            "not a CA certificate",
        ),
        (with(",cRLSign", ""), "cRLSign"),
        (with("keyCertSign,", ""), "keyCertSign"),
        (
            with("spiffe://prod.example", "spiffe://other.example"),
            "`other.example`",
        ),
        (
            with("subjectAltName=URI:spiffe://prod.example\n", ""),
            "-copy_extensions",
        ),
        (
            signed(dir.path(), &csr, &constrained, LONG),
            "name constraints",
        ),
        (signed(dir.path(), &csr, GOOD, "20270115070000Z"), "refused"),
        (
            signed(dir.path(), &csr, GOOD, "20270116120000Z"),
            "signed for longer",
        ),
        (other_key, "another certificate"),
        ("x".repeat(limits::CHAIN_BYTES + 1), "longer than"),
    ] {
        let refused = bench.broker.import_ca(&chain(&pem)).await.unwrap_err();
        assert!(
            refused.detail.contains(wanted),
            "{wanted}: {}",
            refused.detail
        );
    }
    assert_eq!(
        bench.broker.keys.load().trusted().len(),
        1,
        "nothing was changed"
    );
    bench.broker.import_ca(&chain(&good)).await.unwrap();
}

/// The words of docs/operations.md: nothing but what the request itself asks for.
#[tokio::test]
async fn a_request_signed_as_it_stands_is_accepted() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    upstream(dir.path());
    std::fs::write(
        dir.path().join("own.csr"),
        bench.broker.ca_request("").await.unwrap(),
    )
    .unwrap();
    openssl(
        dir.path(),
        "x509 -req -in own.csr -CA root.pem -CAkey root.key -days 3650 -copy_extensions copy -out own.pem",
    );
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    // openssl 3.0 signs from now on only; the test's clock may be behind this machine's.
    let made = std::fs::metadata(dir.path().join("own.pem"))
        .unwrap()
        .modified()
        .unwrap();
    let made = made
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    let behind = u64::try_from(made)
        .unwrap()
        .saturating_sub(bench.broker.clock.wall().as_millis());
    bench.clock.advance_millis(behind);
    let pem = [read("own.pem"), read("root.pem")].concat();
    bench.broker.import_ca(&chain(&pem)).await.unwrap();
}
