//! `kill -9` at every crash point of both daemons on the way of issue, renew, revoke, complete
//! and prove; then the checker. A point that is listed and never reached fails the test.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ephor_testkit::checker::{History, judge};
use ephor_testkit::daemon::Started;
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;
use serde_json::json;

/// Installations at the same time: most of each one's time is waiting.
const TOGETHER: usize = 4;
/// A life after which a renewal comes within seconds.
const SHORT: u64 = 3;

/// Points that this walk cannot reach, each with the test that does.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "join.after_commit",
        "crash::a_join_that_died_is_repeated_with_a_new_token",
    ),
    ("prove.before_expiry", "crash::killed_while_expiring"),
    ("prove.after_expiry", "crash::killed_while_expiring"),
    (
        "policy.before_commit",
        "crash::killed_while_a_policy_takes_another_ones_place",
    ),
    (
        "policy.after_commit",
        "crash::killed_while_a_policy_takes_another_ones_place",
    ),
    (
        "policy.after_swap",
        "crash::killed_while_a_policy_takes_another_ones_place",
    ),
    (
        "policy.narrowing",
        "crash::killed_while_a_policy_takes_another_ones_place",
    ),
    (
        "mint.before_call",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "mint.after_call",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "mint.after_commit",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "mint.successor",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "deliver.confirmed",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "renew.before_extend",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "renew.after_extend",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "revoke.before_target",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "revoke.after_target",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "revoke.gone",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "revoke.after_expiry",
        "issue::tests::logins::real::crash of the broker",
    ),
    (
        "lent.taken",
        "issue::tests::logins::real::lent of the broker",
    ),
    (
        "lent.fenced",
        "issue::tests::logins::real::lent of the broker",
    ),
    (
        "lent.quiet",
        "issue::tests::logins::real::lent of the broker",
    ),
    ("lent.set", "issue::tests::logins::real::lent of the broker"),
    (
        "lent.back",
        "issue::tests::logins::real::lent of the broker",
    ),
    (
        "rotate.next_written",
        "issue::tests::logins::real::rotate of the broker",
    ),
    (
        "rotate.set",
        "issue::tests::logins::real::rotate of the broker",
    ),
    (
        "rotate.proven",
        "issue::tests::logins::real::rotate of the broker",
    ),
    (
        "rotate.settled",
        "issue::tests::logins::real::rotate of the broker",
    ),
    (
        "keys.before_commit",
        "rotate::killed_at_every_point_of_a_rotation",
    ),
    (
        "keys.after_commit",
        "rotate::killed_at_every_point_of_a_rotation",
    ),
    (
        "keys.after_swap",
        "rotate::killed_at_every_point_of_a_rotation",
    ),
    (
        "handover.offered",
        "handover::killed_at_every_step_no_end_is_lost",
    ),
    (
        "handover.received",
        "handover::killed_at_every_step_no_end_is_lost",
    ),
    (
        "handover.journal_closed",
        "handover::killed_at_every_step_no_end_is_lost",
    ),
    (
        "handover.given",
        "handover::killed_at_every_step_no_end_is_lost",
    ),
    (
        "handover.taken",
        "handover::killed_at_every_step_no_end_is_lost",
    ),
    (
        "ledger.reserve_written",
        "disk::a_full_disk_and_a_kill, and ledger::tests::crash of the broker",
    ),
    (
        "ledger.wal_checkpoint",
        "ledger::tests::crash of the broker",
    ),
    ("restore.moved", "recover::restore::tests of the broker"),
];

fn points(side: Side) -> Vec<String> {
    let listed = Command::new(super::binary())
        .args([side.verb(), "crash-points"])
        .output()
        .unwrap();
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let points: Vec<_> = String::from_utf8(listed.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(points.len() > 15, "{side:?} lists {points:?}");
    points
}

/// Starts an armed daemon's successor as soon as it is dead, as an init system does.
struct Keeper<'k> {
    kit: &'k Installation,
    side: Side,
    deaths: AtomicU32,
    done: AtomicBool,
}

impl Keeper<'_> {
    fn keep(&self) {
        while !self.done.load(Ordering::SeqCst) {
            if self.kit.has_ended(self.side) {
                let by = self.kit.killed_by(self.side);
                assert_eq!(
                    by,
                    Some(9),
                    "{:?} died by itself: {}",
                    self.side,
                    self.kit.tail(self.side)
                );
                self.deaths.fetch_add(1, Ordering::SeqCst);
                self.kit.start_daemon(self.side, &[]).unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn has_died(&self) -> bool {
        self.deaths.load(Ordering::SeqCst) > 0
    }
}

/// Issue, revoke, end and renew; one of the daemons dies on the way and is started again.
fn survive(side: Side, point: &str) {
    let kit = super::running();
    let mut history = History::default();
    let (mut before, mut stays) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    before
        .ask("before")
        .unwrap()
        .expect("a token before the crash");
    stays
        .ask("kept")
        .unwrap()
        .expect("a token before the crash");

    kit.stop(side).unwrap();
    let started = kit.try_start(side, &[("EPHOR_CRASH", point)]).unwrap();
    let keeper = Keeper {
        kit: &kit,
        side,
        deaths: AtomicU32::new(0),
        done: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| keeper.keep());
        // Also when a step below panics: the scope would wait for ever.
        let _done = Finally(|| keeper.done.store(true, Ordering::SeqCst));
        if started == Started::Ready {
            // Without it, the first request would only tell that there is no connection yet.
            let _ = kit.wait_connected();
        }
        walk(&kit, &keeper, &mut history, &mut before, &mut stays);
        let reached = wait::until("the crash point is reached", Duration::from_secs(5), || {
            keeper.has_died().then_some(())
        });
        reached.unwrap_or_else(|why| panic!("{point}: {why}; {}", kit.tail(side)));
        // Works again: a new token for the one that stayed, within the agent's way back.
        let held = wait::until("a token after the crash", SETTLE, || {
            stays.ask("after").ok().flatten()
        });
        history.running.push(held.unwrap_or_else(|why| {
            panic!(
                "{point}: {why}; {}\n{}",
                kit.tail(Side::Broker),
                kit.tail(Side::Agent)
            )
        }));
    });
    assert_eq!(
        keeper.deaths.load(Ordering::SeqCst),
        1,
        "{point}: died again after the restart"
    );
    judge(&kit, &history).unwrap_or_else(|why| {
        panic!(
            "{point}: {why:#}\n{}\n{}",
            kit.tail(Side::Broker),
            kit.tail(Side::Agent)
        )
    });
}

struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Everything that a point can lie on, most common first. What is refused on the way is part of
/// it; what is given goes into the history.
fn walk(
    kit: &Installation,
    keeper: &Keeper<'_>,
    history: &mut History,
    before: &mut Workload,
    stays: &mut Workload,
) {
    let mut during = Workload::start(kit).unwrap();
    let _ = during.ask("during");
    let _ = during.ask_for("short", SHORT);
    let _ = kit.public("/checkpoint");
    let _ = kit.public("/tile/entries/000.p/1");
    if let Ok(Some(revoked)) = stays.ask("to-be-revoked") {
        // Repeated until it is acknowledged, as a person would.
        let target = format!("/v1/credentials/{}/revoke", revoked.jti);
        let told = wait::until("a revocation is acknowledged", SETTLE, || {
            kit.admin_post(&target, &json!({"reason": "a test"})).ok()
        });
        told.unwrap();
        history.ended.push(revoked);
    }
    history.end(before).unwrap();
    // An end takes two commits, a heartbeat or a way back; a renewal two thirds of a short life.
    let _ = wait::until(
        "a renewal or the crash",
        Duration::from_secs(SHORT + 6),
        || keeper.has_died().then_some(()),
    );
    history.end(&mut during).unwrap();
}

fn survive_all(side: Side, points: Vec<String>) {
    let queue = Mutex::new(points);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| {
                loop {
                    let Some(point) = queue.lock().unwrap().pop() else {
                        return;
                    };
                    let outcome = std::panic::catch_unwind(|| survive(side, &point));
                    if outcome.is_err() {
                        failed.lock().unwrap().push(point);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "failed at {failed:?}; each is explained above"
    );
}

/// The points of a daemon that the walk reaches, and later passes of those that every commit
/// makes, so that the crash lies in another step.
fn walked(side: Side) -> Vec<String> {
    if let Ok(only) = std::env::var("EPHOR_TEST_POINT") {
        return only.split(',').map(str::to_owned).collect();
    }
    let is_elsewhere = |point: &String| ELSEWHERE.iter().any(|(elsewhere, _)| elsewhere == point);
    let mut walked: Vec<String> = points(side)
        .into_iter()
        .filter(|point| !is_elsewhere(point))
        .collect();
    let again: &[(&str, u32)] = match side {
        Side::Broker => &[
            ("ledger.before_commit", 4),
            ("ledger.after_commit", 3),
            ("ledger.after_commit", 5),
        ],
        Side::Agent => &[("journal.written", 2), ("journal.before_sync", 2)],
    };
    walked.extend(again.iter().map(|(point, pass)| format!("{point}:{pass}")));
    walked
}

#[test]
fn broker_killed_at_every_crash_point() {
    survive_all(Side::Broker, walked(Side::Broker));
}

#[test]
fn agent_killed_at_every_crash_point() {
    survive_all(Side::Agent, walked(Side::Agent));
}

#[test]
fn what_is_reached_elsewhere_is_a_point() {
    let mut all = points(Side::Broker);
    all.extend(points(Side::Agent));
    for (point, test) in ELSEWHERE {
        assert!(all.iter().any(|known| known == point), "{point} ({test})");
    }
}

/// The token was used up by the commit; nothing else is lost.
#[test]
fn a_join_that_died_is_repeated_with_a_new_token() {
    let kit = Installation::create(&super::binary()).unwrap();
    kit.start_daemon(Side::Broker, &[("EPHOR_CRASH", "join.after_commit")])
        .unwrap();
    kit.join(&kit.path("token")).unwrap_err();
    wait::until("the broker died", SETTLE, || {
        (kit.killed_by(Side::Broker) == Some(9)).then_some(())
    })
    .unwrap();
    kit.start_daemon(Side::Broker, &[]).unwrap();
    let why = kit.join(&kit.path("token")).unwrap_err().to_string();
    assert!(why.contains("used, expired"), "{why}");
    let invited = kit
        .admin_post("/v1/hosts/invite", &json!({"host": "kit"}))
        .unwrap();
    std::fs::write(kit.path("token-2"), invited["token"].as_str().unwrap()).unwrap();
    kit.join(&kit.path("token-2")).unwrap();
    kit.start_daemon(Side::Agent, &[]).unwrap();
    let mut stays = Workload::start(&kit).unwrap();
    let held = wait::until("a token", SETTLE, || stays.ask("a").ok().flatten()).unwrap();
    judge(
        &kit,
        &History {
            running: vec![held],
            ..History::default()
        },
    )
    .unwrap();
}

/// Makes dead what is over, once, whichever side of the commit the crash is on.
#[test]
fn killed_while_expiring() {
    for point in ["prove.before_expiry", "prove.after_expiry"] {
        let kit = super::running();
        let mut goes = Workload::start(&kit).unwrap();
        goes.ask("over").unwrap().unwrap();
        kit.stop(Side::Broker).unwrap();
        // Two hours ago, so that the leeway of verifiers is over, too.
        assert_eq!(
            kit.sql("UPDATE credential SET expires_at = expires_at - 7200000")
                .unwrap(),
            1
        );
        kit.try_start(Side::Broker, &[("EPHOR_CRASH", point)])
            .unwrap();
        wait::until("the broker died", SETTLE, || {
            (kit.killed_by(Side::Broker) == Some(9)).then_some(())
        })
        .unwrap();
        kit.start_daemon(Side::Broker, &[]).unwrap();
        let mut history = History::default();
        history.end(&mut goes).unwrap();
        wait::until("it is dead", SETTLE, || {
            let credential = kit
                .admin(&format!("/v1/credentials/{}", history.ended[0].jti))
                .ok()?;
            (credential["state"] == "dead").then_some(())
        })
        .unwrap();
        judge(&kit, &history).unwrap_or_else(|why| panic!("{point}: {why:#}"));
    }
}

/// Before its commit the old one is in force and nothing was revoked; after it the new one is, and
/// what that does not allow is revoked at the next start.
#[test]
fn killed_while_a_policy_takes_another_ones_place() {
    for point in [
        "policy.before_commit",
        "policy.after_commit",
        "policy.after_swap",
        "policy.narrowing",
    ] {
        let kit = super::running();
        let (mut goes, mut stays) = (
            Workload::start(&kit).unwrap(),
            Workload::start(&kit).unwrap(),
        );
        let gone = goes.ask("goes").unwrap().unwrap();
        stays.ask("stays").unwrap().unwrap();
        kit.stop(Side::Broker).unwrap();
        kit.try_start(Side::Broker, &[("EPHOR_CRASH", point)])
            .unwrap();
        kit.wait_connected().unwrap();
        let text = std::fs::read_to_string(kit.path("policy/kit.toml")).unwrap();
        let narrower = format!("{text}identity = {{ audiences = [\"stays\"] }}\n");
        let body = json!({"files": [{"name": "kit.toml", "text": narrower}]});
        // Nobody is there to answer any more.
        kit.admin_post("/v1/policy/apply", &body).unwrap_err();
        wait::until("the broker died", SETTLE, || {
            (kit.killed_by(Side::Broker) == Some(9)).then_some(())
        })
        .unwrap_or_else(|why| panic!("{point}: {why}; {}", kit.tail(Side::Broker)));
        kit.start_daemon(Side::Broker, &[]).unwrap();

        let chain = kit.admin("/v1/policy/versions").unwrap();
        let is_new = point != "policy.before_commit";
        assert_eq!(
            chain.as_array().unwrap().len(),
            1 + usize::from(is_new),
            "{point}"
        );
        let mut history = History::default();
        let held = wait::until("a token after the crash", SETTLE, || {
            stays.ask("stays").ok().flatten()
        });
        history.running.push(held.unwrap());
        if is_new {
            let row = format!("/v1/credentials/{}", gone.jti);
            wait::until("what is not allowed is refused and listed", SETTLE, || {
                let row = kit.admin(&row).ok()?;
                (row["state"] == "contained" && row["narrowed_by"] == chain[0]["version"])
                    .then_some(())
            })
            .unwrap_or_else(|why| panic!("{point}: {why}; {}", kit.tail(Side::Broker)));
            // The agent was told late, as its stream came back after the sweep, but it was told.
            wait::until("the agent gives it no more", SETTLE, || {
                goes.ask("goes").unwrap().is_none().then_some(())
            })
            .unwrap_or_else(|why| panic!("{point}: {why}; {}", kit.tail(Side::Agent)));
            history.ended.push(gone);
        } else {
            history.running.push(gone);
        }
        judge(&kit, &history).unwrap_or_else(|why| panic!("{point}: {why:#}"));
    }
}
