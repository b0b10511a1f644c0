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
