//! One side is away for a while.

use std::time::Duration;

use ephor_testkit::checker::{History, judge};
use ephor_testkit::installation::Installation;
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;

const PATIENCE: Duration = Duration::from_secs(15);

/// Running tasks keep what they have, new requests are refused, ends are delivered on return.
#[test]
fn broker_away_ends_no_task_and_loses_no_end() {
    let mut kit = Installation::create(&super::binary()).unwrap();
    kit.start().unwrap();
    let (mut stays, mut goes) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    let kept = stays.ask("kept").unwrap().unwrap();
    goes.ask("gone").unwrap().unwrap();
    kit.broker().unwrap().kill().unwrap();
    assert_eq!(
        stays.ask("kept").unwrap().unwrap().jti,
        kept.jti,
        "cached tokens are served without the broker"
    );
    assert!(
        stays.ask("new").unwrap().is_none(),
        "nothing new without the broker"
    );
    goes.kill().unwrap();
    kit.start_broker(None).unwrap();
    let running = wait::until("a new token", PATIENCE, || stays.ask("new").ok().flatten()).unwrap();
    let history = History {
        ended: goes.held().to_vec(),
        running: vec![running],
    };
    judge(&kit, &history).unwrap();
}

/// Tasks that live are taken over, those that ended meanwhile are completed.
#[test]
fn agent_killed_and_started_again_adopts_and_completes() {
    let mut kit = Installation::create(&super::binary()).unwrap();
    kit.start().unwrap();
    let (mut stays, mut goes) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    let first = stays.ask("kept").unwrap().unwrap();
    goes.ask("gone").unwrap().unwrap();
    kit.agent().unwrap().kill().unwrap();
    goes.kill().unwrap();
    kit.start_agent(None).unwrap();
    let again = wait::until("a token", PATIENCE, || stays.ask("kept").ok().flatten()).unwrap();
    let tasks = kit.admin("/v1/tasks?state=open").unwrap();
    let open: Vec<_> = tasks
        .as_array()
        .unwrap()
        .iter()
        .filter(|task| task["pid"] == first.pid)
        .collect();
    assert_eq!(
        open.len(),
        1,
        "the task was adopted, not opened again: {tasks}"
    );
    let history = History {
        ended: goes.held().to_vec(),
        running: vec![again],
    };
    judge(&kit, &history).unwrap();
}
