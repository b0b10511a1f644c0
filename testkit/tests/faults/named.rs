//! The issue's named tests that need real processes and have no module of their own.

use ephor_testkit::checker::{History, judge};
use ephor_testkit::http::{self, Call};
use ephor_testkit::installation::{SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;

/// The caller names its request, and asks until it is answered.
#[test]
fn named_2_a_commit_without_an_answer_is_one_usable_credential() {
    for point in ["issue.after_commit", "issue.before_answer"] {
        let kit = super::running();
        kit.stop(Side::Broker).unwrap();
        kit.start_daemon(Side::Broker, &[("EPHOR_CRASH", point)])
            .unwrap();
        kit.wait_connected().unwrap();
        let body = format!(
            r#"{{"entitlement":"identity","parameters":{{"audience":"once"}},"request_id":"{}"}}"#,
            "0193e4a6-7c11-7fff-bfff-0123456789ab"
        );
        let headers = [("Ephor-Local", "1"), ("Content-Type", "application/json")];
        let call = Call {
            method: "POST",
            target: "/v1/credentials",
            headers: &headers,
            body: body.as_bytes(),
        };
        let mut restarted = false;
        let answer = wait::until("the request is answered", SETTLE, || {
            if kit.has_ended(Side::Broker) {
                kit.start_daemon(Side::Broker, &[]).unwrap();
                restarted = true;
            }
            let answer = std::thread::scope(|scope| {
                let asked = scope.spawn(|| http::unix(&kit.socket(), &call));
                // The agent's own retry may find the broker back.
                while !asked.is_finished() {
                    if kit.has_ended(Side::Broker) {
                        kit.start_daemon(Side::Broker, &[]).unwrap();
                        restarted = true;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                asked.join().unwrap()
            });
            answer.ok().filter(|answer| answer.status == 200)
        })
        .unwrap_or_else(|why| panic!("{point}: {why}; {}", kit.tail(Side::Agent)));
        assert!(restarted, "{point} was not reached");
        let given = answer.body["credentials"].as_array().unwrap();
        assert_eq!(given.len(), 1);
        let all = kit.admin("/v1/credentials").unwrap();
        let once: Vec<_> = all
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["scope"] == "once")
            .collect();
        assert_eq!(
            (once.len(), &once[0]["id"], &once[0]["state"]),
            (1, &given[0]["id"], &"live".into()),
            "{point}: {all}"
        );
        let said = kit.introspect(given[0]["token"].as_str().unwrap()).unwrap();
        assert_eq!(said.body["active"], true, "{point}");
        judge(&kit, &History::default()).unwrap();
    }
}

/// Between the broker's answer and the journal, and between the journal and the hand-over, the
/// agent dies, and the task exits before it is back: nothing was handed out, nothing stays.
#[test]
fn named_4_agent_dies_before_the_hand_over_and_the_task_meanwhile() {
    let points = [
        "issue.answered",
        "journal.before_write",
        "journal.before_sync",
        "journal.written",
        "deliver.landed",
        "deliver.before_write",
    ];
    for point in points {
        let kit = super::running();
        kit.stop(Side::Agent).unwrap();
        kit.start_daemon(Side::Agent, &[("EPHOR_CRASH", point)])
            .unwrap();
        kit.wait_connected().unwrap();
        let mut goes = Workload::start(&kit).unwrap();
        goes.say("orphan").unwrap();
        wait::until(&format!("{point} is reached"), SETTLE, || {
            (kit.killed_by(Side::Agent) == Some(9)).then_some(())
        })
        .unwrap();
        assert!(goes.answer().unwrap().is_none(), "{point}: handed out");
        let mut history = History::default();
        history.end(&mut goes).unwrap();
        kit.start_daemon(Side::Agent, &[]).unwrap();
        kit.wait_connected().unwrap();
        wait::until("no orphan is live", SETTLE, || {
            let all = kit.admin("/v1/credentials?state=live").ok()?;
            all.as_array()?.is_empty().then_some(())
        })
        .unwrap_or_else(|why| {
            panic!(
                "{point}: {why}; {}\n{}",
                kit.admin("/v1/tasks").unwrap(),
                kit.tail(Side::Agent)
            )
        });
        judge(&kit, &history).unwrap_or_else(|why| panic!("{point}: {why:#}"));
    }
}
