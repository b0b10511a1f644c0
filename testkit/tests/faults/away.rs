//! One side is away for a while.

use ephor_testkit::checker::{History, judge};
use ephor_testkit::installation::{SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;

/// Running tasks keep what they have, new requests are refused, ends are delivered on return.
#[test]
fn broker_away_ends_no_task_and_loses_no_end() {
    let kit = super::running();
    let (mut stays, mut goes) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    let kept = stays.ask("kept").unwrap().unwrap();
    goes.ask("gone").unwrap().unwrap();
    kit.kill(Side::Broker).unwrap();
    assert_eq!(
        stays.ask("kept").unwrap().unwrap().jti,
        kept.jti,
        "cached tokens are served without the broker"
    );
    assert!(
        stays.ask("new").unwrap().is_none(),
        "nothing new without the broker"
    );
    let mut history = History::default();
    history.end(&mut goes).unwrap();
    kit.start_daemon(Side::Broker, &[]).unwrap();
    history
        .running
        .push(wait::until("a new token", SETTLE, || stays.ask("new").ok().flatten()).unwrap());
    history.running.push(kept);
    judge(&kit, &history).unwrap();
}

/// Tasks that live are taken over, those that ended meanwhile are completed.
#[test]
fn agent_killed_and_started_again_adopts_and_completes() {
    let kit = super::running();
    let (mut stays, mut goes) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    let first = stays.ask("kept").unwrap().unwrap();
    goes.ask("gone").unwrap().unwrap();
    kit.kill(Side::Agent).unwrap();
    let mut history = History::default();
    history.end(&mut goes).unwrap();
    kit.start_daemon(Side::Agent, &[]).unwrap();
    let again = wait::until("a token", SETTLE, || stays.ask("kept").ok().flatten()).unwrap();
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
    history.running.extend([first, again]);
    judge(&kit, &history).unwrap();
}
