//! A daemon that stands still (SIGSTOP, a paused virtual machine) and then goes on.

use std::time::Duration;

use ephor_testkit::checker::{History, judge};
use ephor_testkit::http::{self, Answer, Call};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait::{self, monotonic};
use ephor_testkit::workload::Workload;

/// Longest an answer from memory may take on a busy machine; asking the broker takes seconds.
const FROM_MEMORY: f64 = 1.0;

/// This process's own request, so that no helper's start is measured.
fn fetch(kit: &Installation, audience: &str) -> (Answer, f64) {
    let began = monotonic();
    let target = format!("/v1/token?audience={audience}");
    let call = Call {
        method: "GET",
        target: &target,
        headers: &[("Ephor-Local", "1")],
        body: b"",
    };
    let answer = http::unix(&kit.socket(), &call).unwrap();
    (answer, monotonic() - began)
}

#[test]
fn a_frozen_broker_delays_no_cached_answer_and_refuses_new_ones_in_time() {
    let kit = super::running();
    let (held, _) = fetch(&kit, "held");
    assert_eq!(held.status, 200, "{}", held.body);
    let mut goes = Workload::start(&kit).unwrap();
    goes.ask("gone").unwrap().unwrap();
    kit.freeze(Side::Broker).unwrap();
    let slow = std::thread::scope(|scope| {
        let new = scope.spawn(|| fetch(&kit, "new"));
        for _ in 0..50 {
            let (again, took) = fetch(&kit, "held");
            assert_eq!((again.status, &again.body["id"]), (200, &held.body["id"]));
            assert!(took < FROM_MEMORY, "an answer from memory took {took} s");
        }
        new.join().unwrap()
    });
    let (refused, took) = slow;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (503, &"unreachable".into()),
        "{}",
        refused.body
    );
    assert!(
        refused.body["retry_after"].as_u64().is_some(),
        "{}",
        refused.body
    );
    assert!((2.0..12.0).contains(&took), "refused after {took} s");
    let mut history = History::default();
    history.end(&mut goes).unwrap();
    kit.go_on(Side::Broker).unwrap();
    let again = wait::until("a new one", SETTLE, || {
        Some(fetch(&kit, "new").0).filter(|answer| answer.status == 200)
    });
    again.unwrap();
    judge(&kit, &history).unwrap();
}

/// With nobody to renew it a credential is handed out while it is good and not a moment longer.
#[test]
fn a_frozen_broker_makes_the_agent_hand_out_nothing_expired() {
    const SHORT: &str = "short&ttl_seconds=4";
    let kit = super::running();
    let (held, _) = fetch(&kit, SHORT);
    assert_eq!(held.status, 200, "{}", held.body);
    kit.freeze(Side::Broker).unwrap();
    let (mut good, mut refused) = (0, 0);
    wait::until("it has expired for a while", SETTLE, || {
        let asked = wall_millis();
        let (answer, took) = fetch(&kit, SHORT);
        if answer.status == 200 {
            good += 1;
            assert_eq!(refused, 0, "served again after it was refused");
            let expires = answer.body["expires_at"].as_str().unwrap();
            let left = millis_of(expires) - asked;
            assert!(left > 0, "expired {} ms ago: {}", -left, answer.body);
            // A held one that may no longer be given is asked for anew, which takes its time.
            assert!(took < FROM_MEMORY, "an answer from memory took {took} s");
        } else {
            refused += 1;
            assert_eq!(answer.status, 503, "{}", answer.body);
            assert!(answer.body.get("token").is_none(), "{}", answer.body);
        }
        (refused > 2).then_some(())
    })
    .unwrap();
    assert!(good > 3, "it was served while it was good: {good}");
    kit.go_on(Side::Broker).unwrap();
    let again = wait::until("a new one", SETTLE, || {
        Some(fetch(&kit, SHORT).0).filter(|answer| answer.status == 200)
    });
    assert_ne!(again.unwrap().body["token"], held.body["token"]);
}

fn wall_millis() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// RFC 3339, as the agent writes it.
fn millis_of(time: &str) -> i64 {
    let time: ephor_proto::time::UnixMillis = time.parse().unwrap();
    i64::try_from(time.as_millis()).unwrap()
}

/// Nothing new for a silent host; what it holds goes on, and what ended meanwhile is ended.
#[test]
fn a_frozen_agent_is_silent_and_comes_back() {
    let kit = super::running();
    let (mut stays, mut goes) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    let held = stays.ask("held").unwrap().unwrap();
    goes.ask("gone").unwrap().unwrap();
    kit.freeze(Side::Agent).unwrap();
    wait::until("the host is silent", Duration::from_secs(30), || {
        let hosts = kit.admin("/v1/hosts").ok()?;
        (hosts[0]["state"] == "silent").then_some(())
    })
    .unwrap();
    let mut history = History::default();
    history.end(&mut goes).unwrap();
    assert_eq!(
        kit.introspect(&held.token).unwrap().body["active"],
        true,
        "silence ends no task"
    );
    kit.go_on(Side::Agent).unwrap();
    wait::until("the host is heard", SETTLE, || {
        let hosts = kit.admin("/v1/hosts").ok()?;
        (hosts[0]["state"] == "active").then_some(())
    })
    .unwrap();
    let new = wait::until("a new token", SETTLE, || stays.ask("new").ok().flatten()).unwrap();
    history.running.extend([held, new]);
    judge(&kit, &history).unwrap();
}
