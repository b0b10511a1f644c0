//! Every key rotated under load and under `kill -9`: no request fails, no verifier that keeps to
//! what it is told meets a key it does not know, and what was issued before goes on.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_testkit::checker::{History, judge};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::{Held, Workload};
use serde_json::{Value, json};

/// As short as it may be set: copies of the key set are then good for a second.
const QUICK: &str = "key_lead = \"3s\"\nca_lead = \"3s\"\n";
const WORKERS: usize = 4;
const KINDS: [&str; 3] = ["token", "ca", "log"];
/// Between the commit of a change of keys and its last effect.
const POINTS: [&str; 3] = ["keys.before_commit", "keys.after_commit", "keys.after_swap"];

fn quick() -> Installation {
    let kit = Installation::create(&super::binary()).unwrap();
    let file = kit.path("broker.toml");
    let settings = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, settings + QUICK).unwrap();
    kit.start().unwrap();
    kit.wait_connected().unwrap();
    kit
}

fn kid(token: &str) -> String {
    let header = URL_SAFE_NO_PAD
        .decode(token.split('.').next().unwrap())
        .unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

/// Versions of a kind, and their states, oldest first.
fn versions(kit: &Installation, kind: &str) -> Vec<(u64, String)> {
    let keys = kit.admin("/v1/keys").unwrap();
    let of_kind = keys
        .as_array()
        .unwrap()
        .iter()
        .filter(|key| key["kind"] == kind);
    let mut found: Vec<_> = of_kind
        .map(|key| {
            let state = key["state"].as_str().unwrap().to_owned();
            (key["version"].as_u64().unwrap(), state)
        })
        .collect();
    found.sort();
    found
}

fn active(kit: &Installation, kind: &str) -> u64 {
    let all = versions(kit, kind);
    all.iter().find(|(_, state)| state == "active").unwrap().0
}

/// A verifier that keeps its copy of the key set as long as it may, to the second.
struct Verifier<'k> {
    kit: &'k Installation,
    /// Guards the copy: known kids, and until when they may be used.
    copy: Mutex<(BTreeSet<String>, Option<Instant>)>,
    fetched: AtomicU64,
}

impl Verifier<'_> {
    fn knows(&self, kid: &str) -> bool {
        let mut copy = self.copy.lock().unwrap();
        // The clippy ban is for the daemons; a verifier has a clock of its own.
        #[allow(clippy::disallowed_methods)]
        let now = Instant::now();
        if copy.1.is_none_or(|until| now >= until) {
            let answer = self.kit.jwks().unwrap();
            let cache = answer.header("cache-control").unwrap();
            let seconds = cache.rsplit_once("max-age=").unwrap().1.parse().unwrap();
            let keys = answer.body["keys"].as_array().unwrap().clone();
            let kids = keys
                .iter()
                .map(|key| key["kid"].as_str().unwrap().to_owned());
            *copy = (kids.collect(), Some(now + Duration::from_secs(seconds)));
            self.fetched.fetch_add(1, Ordering::Relaxed);
        }
        copy.0.contains(kid)
    }
}

/// Rotates a kind and waits until the new one is in use.
fn rotate(kit: &Installation, kind: &str) {
    let before = active(kit, kind);
    kit.admin_post(&format!("/v1/keys/{kind}/rotate"), &json!({}))
        .unwrap();
    wait::until(&format!("the next {kind} key is in use"), SETTLE, || {
        (active(kit, kind) > before).then_some(())
    })
    .unwrap();
}

#[test]
fn every_key_twice_under_load_and_nobody_notices() {
    let kit = quick();
    let key_before = kit.admin("/v1/status").unwrap()["log_key"]
        .as_str()
        .unwrap()
        .to_owned();
    let verifier = Verifier {
        kit: &kit,
        copy: Mutex::default(),
        fetched: AtomicU64::new(0),
    };
    let done = AtomicBool::new(false);
    let (issued, kids) = (AtomicU64::new(0), Mutex::new(BTreeSet::new()));
    let mut stays = Workload::start(&kit).unwrap();
    let first = stays.ask("first").unwrap().unwrap();
    let history = Mutex::new(History::default());
    std::thread::scope(|scope| {
        let stop = Stop(&done);
        for worker in 0..WORKERS {
            let (kit, verifier, done) = (&kit, &verifier, &done);
            let (issued, kids, history) = (&issued, &kids, &history);
            scope.spawn(move || {
                let mut workload = Workload::start(kit).unwrap();
                let mut turn = 0;
                while !done.load(Ordering::SeqCst) {
                    turn += 1;
                    // One task may hold 256 credentials; on a slow day these are more.
                    if turn % 200 == 0 {
                        history.lock().unwrap().end(&mut workload).unwrap();
                        workload = Workload::start(kit).unwrap();
                    }
                    let audience = format!("w{worker}-{turn}");
                    let held: Held = workload
                        .ask(&audience)
                        .unwrap()
                        .unwrap_or_else(|| panic!("request {turn} was refused"));
                    let kid = kid(&held.token);
                    assert!(verifier.knows(&kid), "an unknown kid after {turn} requests");
                    kids.lock().unwrap().insert(kid);
                    issued.fetch_add(1, Ordering::Relaxed);
                    // Load, not a race: the judge looks at each of them afterwards.
                    std::thread::sleep(Duration::from_millis(50));
                }
                history.lock().unwrap().end(&mut workload).unwrap();
            });
        }
        for _ in 0..2 {
            for kind in KINDS {
                rotate(&kit, kind);
            }
        }
        drop(stop);
    });
    assert_eq!(
        kids.lock().unwrap().len(),
        3,
        "three token keys were in use"
    );
    assert!(issued.load(Ordering::Relaxed) > 100 && verifier.fetched.load(Ordering::Relaxed) > 10);
    for kind in KINDS {
        let states: Vec<String> = versions(&kit, kind)
            .into_iter()
            .map(|(_, state)| state)
            .collect();
        assert_eq!(states, ["retired", "retired", "active"], "{kind}");
    }
    // A token of the first key still verifies, and introspects.
    assert!(verifier.knows(&kid(&first.token)));
    assert_eq!(kit.introspect(&first.token).unwrap().body["active"], true);
    let held = stays.ask("last").unwrap().unwrap();
    let mut history = history.into_inner().unwrap();
    history.running.extend([first, held]);
    judge(&kit, &history).unwrap();
    // Who has only the key from before both rotations verifies the log all the same.
    let note = kit.public("/checkpoint").unwrap();
    let note = String::from_utf8(note.bytes).unwrap();
    assert_eq!(
        note.lines()
            .filter(|line| line.starts_with('\u{2014}'))
            .count(),
        3,
        "{note}"
    );
    let export = kit.path("by-the-old-key");
    let run = |words: &[&std::ffi::OsStr]| {
        let done = kit.ephor().args(words).output().unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    run(&[
        "audit".as_ref(),
        "export".as_ref(),
        "--to".as_ref(),
        export.as_ref(),
    ]);
    run(&[
        "audit".as_ref(),
        "verify".as_ref(),
        export.as_ref(),
        "--key".as_ref(),
        key_before.as_ref(),
    ]);

    let judged = std::process::Command::new(ephor_testkit::checker::python())
        .arg(export.join("verify.py"))
        .arg(&export)
        .args(["--key", &key_before])
        .output()
        .unwrap();
    assert!(
        judged.status.success(),
        "{}",
        String::from_utf8_lossy(&judged.stderr)
    );

    // The agent follows with a certificate of the new CA, and so is still there when the old
    // ones are distrusted.
    let identity = || std::fs::read_to_string(kit.path("agent/identity.pem")).unwrap();
    let renewals = |state: &str| {
        let told = kit.admin("/v1/audit?limit=10000").unwrap();
        let told = told.as_array().unwrap().clone();
        told.iter()
            .filter(|record| record["event"]["type"] == state)
            .count()
    };
    wait::until("the agent renewed under each new CA", SETTLE, || {
        (renewals("operate.identity_renewed") >= 2).then_some(())
    })
    .unwrap();
    assert_eq!(
        identity().matches("BEGIN CERTIFICATE").count(),
        4,
        "its own, and three CAs"
    );
    kit.admin_post("/v1/keys/ca/distrust", &json!({"reason": "a test"}))
        .unwrap();
    wait::until("only one CA is left at the agent", SETTLE, || {
        (identity().matches("BEGIN CERTIFICATE").count() == 2).then_some(())
    })
    .unwrap();
    wait::until("the agent works under the new CA alone", SETTLE, || {
        stays.ask("after").ok().flatten()
    })
    .unwrap();
}

/// Away while the CA was replaced and distrusted: it says why, and what to do, and that works.
#[test]
fn a_host_that_was_off_all_the_time_is_told_to_join_again() {
    let kit = quick();
    kit.stop(Side::Agent).unwrap();
    rotate(&kit, "ca");
    kit.admin_post("/v1/keys/ca/distrust", &json!({})).unwrap();
    kit.start_daemon(Side::Agent, &[]).unwrap();
    wait::until("it says what to do", SETTLE, || {
        kit.tail(Side::Agent)
            .contains("join it again")
            .then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}: {}", kit.tail(Side::Agent)));
    assert!(kit.tail(Side::Agent).contains("ephor host invite"));
    kit.stop(Side::Agent).unwrap();
    let ban = json!({"reason": "joins again"});
    kit.admin_post("/v1/hosts/kit/ban", &ban).unwrap();
    let invited = kit
        .admin_post("/v1/hosts/invite", &json!({"host": "kit"}))
        .unwrap();
    std::fs::write(kit.path("token-2"), invited["token"].as_str().unwrap()).unwrap();
    std::fs::remove_file(kit.path("agent/identity.pem")).unwrap();
    kit.join(&kit.path("token-2")).unwrap();
    kit.start_daemon(Side::Agent, &[]).unwrap();
    kit.wait_connected().unwrap();
    let mut app = Workload::start(&kit).unwrap();
    wait::until("a token", SETTLE, || app.ask("a").ok().flatten()).unwrap();
}

/// Off while the next CA was published and came into use, but not until the old one was
/// distrusted: nothing is to be done by hand.
#[test]
fn a_host_that_was_off_for_the_lead_only_comes_back_by_itself() {
    let kit = quick();
    kit.stop(Side::Agent).unwrap();
    rotate(&kit, "ca");
    kit.start_daemon(Side::Agent, &[]).unwrap();
    kit.wait_connected().unwrap();
    let mut app = Workload::start(&kit).unwrap();
    wait::until("a token", SETTLE, || app.ask("a").ok().flatten()).unwrap();
}

/// At each point of each change of each key: after the restart there is one active key of each
/// kind, the rotation goes on by itself, and tokens verify.
#[test]
fn killed_at_every_point_of_a_rotation() {
    for kind in KINDS {
        // The first change publishes, the second brings into use.
        for change in [1, 2] {
            for point in POINTS {
                let kit = quick();
                let mut app = Workload::start(&kit).unwrap();
                let before = app.ask("before").unwrap().unwrap();
                kit.stop(Side::Broker).unwrap();
                let armed = format!("{point}:{change}");
                kit.try_start(Side::Broker, &[("EPHOR_CRASH", &armed)])
                    .unwrap();
                // Dies in the first change under the caller's hands.
                let asked = kit.admin_post(&format!("/v1/keys/{kind}/rotate"), &json!({}));
                assert_eq!(asked.is_err(), change == 1, "{armed}");
                wait::until(&format!("{kind}: {armed} is reached"), SETTLE, || {
                    (kit.killed_by(Side::Broker) == Some(9)).then_some(())
                })
                .unwrap();
                kit.start_daemon(Side::Broker, &[]).unwrap();
                if change == 1 && point == POINTS[0] {
                    // Nothing was written: asked again, as a person would.
                    assert_eq!(versions(&kit, kind).len(), 1, "{kind} {armed}");
                    kit.admin_post(&format!("/v1/keys/{kind}/rotate"), &json!({}))
                        .unwrap();
                }
                wait::until(
                    &format!("{kind}: the second is in use after {armed}"),
                    SETTLE,
                    || (active(&kit, kind) == 2).then_some(()),
                )
                .unwrap();
                let states = versions(&kit, kind);
                assert_eq!(
                    states,
                    [(1, "retired".to_owned()), (2, "active".to_owned())]
                );
                let after =
                    wait::until("a token after", SETTLE, || app.ask("after").ok().flatten());
                let after = after.unwrap();
                let history = History {
                    running: vec![before, after],
                    ..History::default()
                };
                judge(&kit, &history).unwrap_or_else(|why| panic!("{kind} {armed}: {why:#}"));
            }
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
