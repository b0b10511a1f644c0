#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use ephor_proto::time::Boottime;

use super::*;
use crate::kind::effect::Failed;

const SOON: Duration = Duration::from_millis(50);

fn at(millis: u64) -> Boottime {
    Boottime::from_millis(millis)
}

fn id(n: u8) -> CredentialId {
    CredentialId::from_parts(1, [n; 10])
}

fn wanted(n: u8, urgency: Urgency) -> Wanted {
    Wanted {
        credential: id(n),
        urgency,
        told: None,
        is_found: false,
    }
}

fn expired(n: u8) -> Wanted {
    wanted(n, Urgency::Expiry)
}

fn setback(text: &str, is_away: bool) -> Setback {
    let failed = match is_away {
        true => Failed::Away(text.to_owned()),
        false => Failed::Refused(text.to_owned()),
    };
    Setback::at_target(&failed, false)
}

#[test]
fn people_go_before_ends_and_ends_before_expiries() {
    let queues = Queues::default();
    for (n, urgency) in [
        (1, Urgency::Expiry),
        (2, Urgency::End),
        (3, Urgency::Person),
        (4, Urgency::End),
    ] {
        queues.add("orders", wanted(n, urgency), at(u64::from(n)));
    }
    let taken = queues.take("orders", at(10), true);
    assert_eq!(taken, [id(3), id(2), id(4), id(1)]);
    assert!(queues.take("orders", at(10), true).is_empty(), "each once");
    // Someone revokes what only expired.
    queues.left("orders", &taken, at(10));
    queues.add("orders", wanted(1, Urgency::Person), at(10));
    let taken = queues.take("orders", at(60_000), true);
    assert_eq!(taken[..2], [id(1), id(3)]);
}

#[test]
fn a_target_has_so_many_calls_and_another_its_own() {
    let queues = Queues::default();
    let mut calls = Vec::new();
    for n in 0..10 {
        queues.add("hangs", expired(n), at(0));
        calls.push(queues.take("hangs", at(0), true));
    }
    let busy = calls.iter().filter(|ids| !ids.is_empty()).count();
    assert_eq!(busy, limits::TARGET_CALLS);
    assert!(queues.ready(at(0), true).is_empty());
    queues.add("well", expired(99), at(0));
    assert_eq!(queues.ready(at(0), true), ["well"]);
    queues.left("hangs", &calls[0], at(0));
    assert_eq!(queues.ready(at(0), true), ["hangs", "well"]);
}

#[test]
fn it_waits_longer_each_time_is_late_in_time_and_is_never_given_up() {
    let queues = Queues::default();
    queues.add("orders", expired(1), at(0));
    let (mut now, mut waits, mut told) = (0, Vec::new(), Vec::new());
    for _ in 0..40 {
        assert_eq!(queues.take("orders", at(now), true), [id(1)], "at {now}");
        queues.failed("orders", id(1), at(now), setback("it hangs", false));
        queues.left("orders", &[id(1)], at(now));
        let start = now;
        while queues.ready(at(now), true).is_empty() {
            now += 25;
            told.extend(
                queues
                    .late(at(now), true)
                    .into_iter()
                    .map(|late| (now, late)),
            );
        }
        waits.push(now - start);
    }
    let (at_once, late) = &told[0];
    assert!((4_000..=5_000).contains(at_once), "{at_once}");
    assert_eq!(&*late.why, "it hangs");
    // Again whenever it had been tried twice as often.
    let tries: Vec<_> = told.iter().map(|(_, late)| late.attempts).collect();
    assert_eq!(tries, [5, 10, 20, 40]);
    assert!(waits[0] <= 500 && *waits.iter().max().unwrap() <= 60_000);
    assert!(waits[30..].iter().all(|wait| *wait >= 45_000), "{waits:?}");
    // Told again when that could not be stored.
    queues.not_told(&told[3].1);
    let again = queues.late(at(now), true);
    assert_eq!((again.len(), again[0].attempts), (1, 40));
    assert_eq!(queues.late(at(now), true), []);
    let waiting = &queues.waiting(at(now))[0];
    assert_eq!((waiting.late, waiting.words["refused"]), (1, 1));
    assert!(waiting.oldest_millis > 1_500_000 && waiting.next_millis <= Some(60_000));
    queues.take("orders", at(now), true);
    queues.done("orders", id(1), at(now));
    queues.left("orders", &[id(1)], at(now));
    assert!(queues.waiting(at(now)).is_empty());
}

#[test]
fn a_call_that_has_not_come_back_is_late_too() {
    let queues = Queues::default();
    queues.add("orders", expired(1), at(0));
    queues.take("orders", at(0), true);
    let late = queues.late(at(5_000), true);
    assert_eq!((late.len(), late[0].attempts), (1, 1));
}

#[test]
fn a_target_that_works_again_is_asked_for_all() {
    let queues = Queues::default();
    for n in 1..=3 {
        queues.add("orders", expired(n), at(0));
    }
    let taken = queues.take("orders", at(0), true);
    for id in &taken {
        queues.failed("orders", *id, at(0), setback("slow", false));
    }
    queues.left("orders", &taken, at(0));
    let again = queues.take("orders", at(500), true);
    assert_eq!(again.len(), 1, "with little, until it does something");
    assert_eq!(queues.patience(&[id(2)]), limits::TARGET_ANSWER_FAILING);
    assert_eq!(queues.patience(&[id(9)]), limits::TARGET_ANSWER, "not its");
    queues.done("orders", again[0], at(500));
    queues.left("orders", &again, at(500));
    assert_eq!(queues.patience(&[id(2)]), limits::TARGET_ANSWER);
    assert_eq!(queues.take("orders", at(500), true).len(), 2);
}

/// Otherwise what is made at a target that is back would outlive its task until the next try.
#[test]
fn a_target_that_answered_somebody_is_asked_at_once() {
    let queues = Queues::default();
    for n in 0..3 {
        queues.add("orders", expired(n), at(0));
    }
    // Until it was just tried: the next try is up to a minute away.
    let mut tries = 0;
    let tried = (0..600_000).step_by(250).find(|now| {
        let taken = queues.take("orders", at(*now), true);
        for id in &taken {
            queues.failed("orders", *id, at(*now), setback("no route", true));
        }
        if !taken.is_empty() {
            queues.left("orders", &taken, at(*now));
            tries += 1;
        }
        tries == 9
    });
    let now = tried.unwrap();
    queues.add("orders", wanted(9, Urgency::End), at(now));
    assert!(queues.take("orders", at(now + 1), true).is_empty());
    queues.is_back("orders", at(now + 1));
    let first = queues.take("orders", at(now + 1), true);
    assert_eq!(first.len(), 1, "whether it works is not known yet");
    queues.done("orders", first[0], at(now + 2));
    queues.left("orders", &first, at(now + 2));
    assert_eq!(queues.take("orders", at(now + 2), true).len(), 3);
}

/// Ten minutes without a server and 3 000 that wait: it is asked as if one waited, each is told with
/// that reason, and a person's request is tried at once.
#[test]
fn a_target_that_is_away_is_asked_by_one_for_all() {
    let queues = Queues::default();
    let many = |n: u64| Wanted {
        credential: CredentialId::from_parts(n, [1; 10]),
        ..expired(0)
    };
    for n in 0..3_000 {
        queues.add("orders", many(n), at(0));
    }
    // Calls that were under way when it went are one try.
    let under_way: Vec<_> = (0..4).map(|_| queues.take("orders", at(0), true)).collect();
    assert!(
        under_way
            .iter()
            .all(|ids| ids.len() == limits::TARGET_BATCH)
    );
    for ids in &under_way {
        for id in ids {
            queues.failed("orders", *id, at(10), setback("no route", true));
        }
        queues.left("orders", ids, at(10));
    }
    let (mut calls, mut told) = (0, 0);
    for now in (10..600_000).step_by(250) {
        let taken = queues.take("orders", at(now), true);
        if !taken.is_empty() {
            calls += 1;
            assert_eq!(taken.len(), 1, "at {now}");
            assert!(queues.take("orders", at(now), true).is_empty(), "one call");
            queues.failed("orders", taken[0], at(now), setback("no route", true));
            queues.left("orders", &taken, at(now));
        }
        told += queues.late(at(now), true).len();
    }
    assert!((10..=25).contains(&calls), "{calls}");
    let tries = queues.trying(many(2_999).credential, at(600_000)).unwrap();
    assert_eq!(&*tries.why, "no route");
    assert_eq!(tries.attempts, calls + 1);
    assert!(tries.next_in > SOON, "{tries:?}");
    assert!((3_000..=12_000).contains(&told), "{told}");
    // What ends now waits with the others; a person does not.
    queues.add("orders", many(20_000), at(600_000));
    assert!(queues.take("orders", at(600_000), true).is_empty());
    queues.add("orders", wanted(9, Urgency::Person), at(600_000));
    assert_eq!(queues.take("orders", at(600_000), true), [id(9)]);
    // It is back: all are asked for at once, in whole batches.
    queues.done("orders", id(9), at(600_010));
    queues.left("orders", &[id(9)], at(600_010));
    let taken = queues.take("orders", at(600_010), true);
    assert_eq!(taken.len(), limits::TARGET_BATCH);
}

fn refused() -> Setback {
    Setback {
        is_own: true,
        ..setback("its own fault", false)
    }
}

#[test]
fn one_that_is_refused_slows_none_of_the_others() {
    let queues = Queues::default();
    for n in 1..=4 {
        queues.add("orders", expired(n), at(u64::from(n)));
    }
    let taken = queues.take("orders", at(10), true);
    assert_eq!(taken.len(), 4, "nobody knows yet");
    queues.failed("orders", id(1), at(10), refused());
    for n in 2..=4 {
        queues.done("orders", id(n), at(10));
    }
    queues.left("orders", &taken, at(10));
    // It waits longer each time, whatever becomes of the others, and is never among them.
    let (mut tries, mut pauses, mut last) = (0, Vec::new(), 10);
    for now in (11..40_000).step_by(50) {
        queues.add("orders", expired(9), at(now));
        for _ in 0..2 {
            let taken = queues.take("orders", at(now), true);
            assert!(taken.len() < 2, "{taken:?}");
            if taken == [id(1)] {
                tries += 1;
                pauses.push(now - last);
                last = now;
                queues.failed("orders", id(1), at(now), refused());
            } else if let [other] = taken[..] {
                assert_eq!(other, id(9));
                queues.done("orders", other, at(now));
            }
            queues.left("orders", &taken, at(now));
        }
        assert!(queues.trying(id(9), at(now)).is_none(), "ended at once");
    }
    assert!((6..=10).contains(&tries), "{pauses:?}");
    assert!(pauses.is_sorted(), "{pauses:?}");
}

#[test]
fn at_most_one_call_is_for_those_that_are_alone() {
    let queues = Queues::default();
    for n in 1..=3 {
        queues.add("orders", expired(n), at(0));
    }
    let taken = queues.take("orders", at(0), true);
    for id in &taken {
        queues.failed("orders", *id, at(0), refused());
    }
    queues.left("orders", &taken, at(0));
    let alone = queues.take("orders", at(60_000), true);
    assert_eq!(alone.len(), 1);
    assert!(queues.take("orders", at(60_000), true).is_empty());
    assert!(queues.ready(at(60_000), true).is_empty());
    queues.add("orders", expired(7), at(60_000));
    assert_eq!(queues.ready(at(60_000), true), ["orders"]);
    assert_eq!(queues.take("orders", at(60_000), true), [id(7)]);
}

#[test]
fn a_call_that_takes_too_long_is_made_of_fewer() {
    let queues = Queues::default();
    for n in 0..1_000_u64 {
        let credential = CredentialId::from_parts(n, [1; 10]);
        let wanted = Wanted {
            credential,
            ..expired(0)
        };
        queues.add("orders", wanted, at(0));
    }
    let mut sizes = Vec::new();
    for round in 0..9 {
        let taken = queues.take("orders", at(round), true);
        sizes.push(taken.len());
        queues.answered("orders", taken.len(), round < 3);
        queues.left("orders", &taken, at(round));
    }
    assert_eq!(sizes, [256, 64, 16, 4, 8, 16, 32, 64, 128]);
}

#[test]
fn tries_before_a_restart_count() {
    let queues = Queues::default();
    let again = Wanted {
        told: Some(40),
        is_found: true,
        ..expired(1)
    };
    queues.add("orders", again, at(0));
    assert_eq!(queues.late(at(1), true), [], "found");
    assert_eq!(queues.take("orders", at(2), true), [id(1)], "at once");
    queues.failed("orders", id(1), at(2), setback("down", true));
    let tries = queues.trying(id(1), at(2)).unwrap();
    assert_eq!((tries.attempts, &*tries.why), (41, "down"));
    assert_eq!(queues.late(at(9_000), true), [], "told before");
}

#[test]
fn what_was_only_found_waits_until_the_log_is_confirmed() {
    let queues = Queues::default();
    for n in [1, 2] {
        let found = Wanted {
            is_found: true,
            ..expired(n)
        };
        queues.add("orders", found, at(0));
    }
    assert!(queues.take("orders", at(9_000), false).is_empty());
    assert!(queues.late(at(9_000), false).is_empty(), "it may not yet");
    // Its own agent says so.
    queues.add("orders", expired(2), at(9_000));
    assert_eq!(queues.take("orders", at(9_000), false), [id(2)]);
    assert_eq!(queues.take("orders", at(9_000), true), [id(1)]);
}

#[test]
fn what_does_not_fit_asks_for_a_scan_and_people_have_places() {
    let queues = Queues::default();
    let many = |n: usize| Wanted {
        credential: CredentialId::from_parts(n as u64, [1; 10]),
        ..expired(0)
    };
    for n in 0..=limits::TARGET_QUEUE {
        queues.add("orders", many(n), at(0));
    }
    assert_eq!(queues.waiting(at(0))[0].ends, limits::TARGET_QUEUE as u64);
    queues.add("orders", wanted(9, Urgency::Person), at(0));
    assert_eq!(queues.take("orders", at(0), true)[0], id(9));
    assert!(!queues.needs_scan(), "no room yet");
    for n in 0..limits::TARGET_QUEUE {
        queues.done("orders", many(n).credential, at(0));
    }
    assert!(queues.needs_scan() && !queues.needs_scan());
}

#[tokio::test]
async fn who_waits_goes_on_when_it_is_gone() {
    let queues = Queues::default();
    queues.add("orders", expired(1), at(0));
    assert!(!queues.wait(&[id(1)], SOON).await);
    assert!(queues.wait(&[id(2)], SOON).await, "it is not here");
    let ids = [id(1)];
    let (gone, ()) = tokio::join!(queues.wait(&ids, limits::TARGET_CALL), async {
        tokio::task::yield_now().await;
        queues.done("orders", id(1), at(0));
    });
    assert!(gone);
}

#[tokio::test]
async fn a_call_that_broke_gives_back_what_it_took() {
    let queues = Queues::default();
    queues.add("orders", expired(1), at(0));
    let taken = queues.take("orders", at(0), true);
    queues.left("orders", &taken, at(0));
    assert_eq!(queues.take("orders", at(60_000), true), [id(1)]);
}
