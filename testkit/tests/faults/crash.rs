//! `kill -9` at every crash point of both daemons, then the checker.

use std::process::Command;
use std::time::Duration;

use ephor_testkit::checker::{History, judge};
use ephor_testkit::installation::{Installation, TOKEN_SECONDS};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;

/// Longest wait for an armed daemon to reach its point.
const PATIENCE: Duration = Duration::from_secs(15);

fn points(daemon: &str) -> Vec<String> {
    let listed = Command::new(super::binary())
        .args([daemon, "crash-points"])
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
    assert!(points.len() > 5, "{daemon} lists {points:?}");
    points
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Broker,
    Agent,
}

/// Issue, renew, end; one of the daemons dies on the way and is started again.
fn survive(side: Side, point: &str) {
    let mut kit = Installation::create(&super::binary()).unwrap();
    kit.start().unwrap();
    let mut history = History::default();
    let mut before = Workload::start(&kit).unwrap();
    before
        .ask("before")
        .unwrap()
        .expect("a token before the crash");

    // Armed from here on.
    match side {
        Side::Broker => {
            kit.broker().unwrap().stop().unwrap();
            kit.start_broker(Some(point)).unwrap();
        }
        Side::Agent => {
            kit.agent().unwrap().stop().unwrap();
            kit.start_agent(Some(point)).unwrap();
        }
    }
    let mut during = Workload::start(&kit).unwrap();
    let mut stays = Workload::start(&kit).unwrap();
    let dies = |kit: &mut Installation| match side {
        Side::Broker => kit.broker().unwrap().ended().is_some(),
        Side::Agent => kit.agent().unwrap().ended().is_some(),
    };
    // Keep asking (issue), wait for renewals, then end a task: one of these passes the point.
    let reached = wait::until("the crash point is reached", PATIENCE, || {
        for (number, workload) in [&mut before, &mut during, &mut stays]
            .into_iter()
            .enumerate()
        {
            let _ = workload.ask(&format!("during-{number}"));
        }
        if !dies(&mut kit) {
            // Renewals come at 2/3 of a token's life.
            std::thread::sleep(Duration::from_millis(TOKEN_SECONDS * 1000 / 5));
            let _ = before.kill();
        }
        dies(&mut kit).then_some(())
    });
    let after_an_end = point.starts_with("join")
        || point.contains("reserve")
        || point.contains("compact")
        || point.contains("wal");
    assert!(reached.is_ok() || after_an_end, "{point}: {reached:?}");

    let _ = during.kill();
    match side {
        Side::Broker if reached.is_ok() => kit.start_broker(None).unwrap(),
        Side::Agent if reached.is_ok() => kit.start_agent(None).unwrap(),
        Side::Broker | Side::Agent => {}
    }
    let _ = before.kill();
    history.ended.extend_from_slice(before.held());
    history.ended.extend_from_slice(during.held());
    // Works again: a new token for the one that stayed, within the agent's way back.
    let held = wait::until("a token after the crash", PATIENCE, || {
        stays.ask("after").ok().flatten()
    });
    history.running.push(held.unwrap());
    judge(&kit, &history)
        .unwrap_or_else(|why| panic!("{point}: {why:#}\n{}", kit.broker().unwrap().tail()));
}

#[test]
fn broker_killed_at_every_crash_point() {
    for point in points("__broker") {
        survive(Side::Broker, &point);
    }
}

#[test]
fn agent_killed_at_every_crash_point() {
    for point in points("__agent") {
        survive(Side::Agent, &point);
    }
}
