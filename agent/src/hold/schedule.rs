//! When each held credential is renewed. Pure: states in, next wake-up out, time handed in.
//!
//! A credential is renewed shortly before the moment its callers were told to fetch again
//! (two thirds of its life), earlier by a random part so that many of them do not come at once: by
//! a large one the first time, since what came together would stay together, by a small one later.
//! Failures back off per credential; nothing is tried past its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ephor_proto::time::Boottime;

use super::Lifetime;
use crate::uplink::backoff::Backoff;

/// Names a credential here.
pub type Ticket = u64;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask for a newer one, and report with [`Schedule::renewed`] or [`Schedule::failed`].
    Renew(Ticket),
    /// Its life is over: forget it.
    Drop(Ticket),
}

#[derive(Debug)]
struct Item {
    end: Boottime,
    wake: Boottime,
    renewing: bool,
    given_up: bool,
    backoff: Backoff,
}

/// First wait after a failed renewal.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest wait between two tries.
const RETRY_CAP: Duration = Duration::from_secs(30);
/// Of what is left, so much may be waited because the broker wishes it. It asks for less than this.
const WISH_PART: f64 = 0.875;
/// The share of the time to the refresh that jitter may take off a first renewal, in percent. With
/// half of it, thousands that came at once ask at less than twice the rate at which they go on.
const FIRST_SPREAD_PERCENT: u64 = 50;
/// The same for later renewals.
const SPREAD_PERCENT: u64 = 10;
/// The share that is always taken off, in percent: the newer one must be there in time.
const LEAD_PERCENT: u64 = 4;

/// All credentials that are kept fresh.
#[derive(Debug, Default)]
pub struct Schedule {
    items: BTreeMap<Ticket, Item>,
    wakes: BTreeSet<(Boottime, Ticket)>,
}

impl Schedule {
    /// Begins to keep a credential fresh. `jitter` is any random number.
    pub fn add(&mut self, ticket: Ticket, life: Lifetime, jitter: u16) {
        self.plan(ticket, life, renew_at(life, FIRST_SPREAD_PERCENT, jitter));
    }

    fn plan(&mut self, ticket: Ticket, life: Lifetime, wake: Boottime) {
        self.remove(ticket);
        let backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        self.items.insert(
            ticket,
            Item {
                end: life.end,
                wake,
                renewing: false,
                given_up: false,
                backoff,
            },
        );
        self.wakes.insert((wake, ticket));
    }

    /// Stops: the task ended, or the credential was wiped.
    pub fn remove(&mut self, ticket: Ticket) {
        if let Some(item) = self.items.remove(&ticket) {
            self.wakes.remove(&(item.wake, ticket));
        }
    }

    /// When something is due next.
    #[must_use]
    pub fn next_wake(&self) -> Option<Boottime> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// What is due at `now`, at most `most` of it.
    pub fn due(&mut self, now: Boottime, most: usize) -> Vec<Action> {
        let mut actions = Vec::new();
        while actions.len() < most {
            let Some((at, ticket)) = self.wakes.first().copied().filter(|(at, _)| *at <= now)
            else {
                break;
            };
            self.wakes.remove(&(at, ticket));
            let Some(item) = self.items.get_mut(&ticket) else {
                continue;
            };
            if now >= item.end {
                self.items.remove(&ticket);
                actions.push(Action::Drop(ticket));
                continue;
            }
            // Until the outcome is reported, the only thing left to wait for is the end.
            item.wake = item.end;
            self.wakes.insert((item.end, ticket));
            if !item.renewing && !item.given_up {
                item.renewing = true;
                actions.push(Action::Renew(ticket));
            }
        }
        actions
    }

    /// A newer one is here.
    pub fn renewed(&mut self, ticket: Ticket, life: Lifetime, jitter: u16) {
        if self.items.contains_key(&ticket) {
            self.plan(ticket, life, renew_at(life, SPREAD_PERCENT, jitter));
        }
    }

    /// It failed. `retry_after` is the broker's wish; `None` for `again` means that
    /// asking again changes nothing: what is held is then served until its end.
    pub fn failed(&mut self, ticket: Ticket, now: Boottime, again: Option<Duration>, jitter: u16) {
        let Some(item) = self.items.get_mut(&ticket) else {
            return;
        };
        item.renewing = false;
        self.wakes.remove(&(item.wake, ticket));
        match again {
            Some(wish) => {
                // One that has little left tries more than once in it, whatever the wish: the broker
                // may take it for one that lives longer.
                let left = Duration::from_millis(item.end.millis_since(now));
                let wish = wish.min(left.mul_f64(WISH_PART));
                let wait = item
                    .backoff
                    .next(jitter)
                    .min(left / 2)
                    .max(RETRY_FIRST)
                    .max(wish);
                item.wake = now.saturating_add(wait).min(item.end);
            }
            None => {
                item.given_up = true;
                item.wake = item.end;
            }
        }
        self.wakes.insert((item.wake, ticket));
    }

    /// How many are kept fresh.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// Before the refresh, by 4 percent of the time from asking to it and a random part of
/// `spread_percent` of that time.
fn renew_at(life: Lifetime, spread_percent: u64, jitter: u16) -> Boottime {
    let span = life.refresh.millis_since(life.asked);
    let spread = span * spread_percent / 100 * u64::from(jitter) / u64::from(u16::MAX);
    let early = span * LEAD_PERCENT / 100 + spread;
    Boottime::from_millis(life.refresh.as_millis().saturating_sub(early))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Drop, Renew};

    fn at(millis: u64) -> Boottime {
        Boottime::from_millis(millis)
    }

    /// Asked at `from`, refreshed after 200 s, over after 300 s.
    fn life(from: u64) -> Lifetime {
        Lifetime {
            asked: at(from),
            refresh: at(from + 200_000),
            end: at(from + 300_000),
        }
    }

    #[test]
    fn renewal_comes_before_the_refresh_and_is_spread() {
        assert_eq!(renew_at(life(0), SPREAD_PERCENT, 0), at(192_000));
        assert_eq!(renew_at(life(0), SPREAD_PERCENT, u16::MAX), at(172_000));
        assert_eq!(
            renew_at(life(0), FIRST_SPREAD_PERCENT, u16::MAX),
            at(92_000)
        );
        let short = Lifetime {
            asked: at(0),
            refresh: at(2_000),
            end: at(3_000),
        };
        assert!(
            renew_at(short, SPREAD_PERCENT, u16::MAX) > at(1_500)
                && renew_at(short, SPREAD_PERCENT, 0) < at(2_000)
        );
        let instant = Lifetime {
            asked: at(5),
            refresh: at(5),
            end: at(5),
        };
        assert_eq!(renew_at(instant, SPREAD_PERCENT, u16::MAX), at(5));
    }

    #[test]
    fn a_life_of_renewals() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next_wake(), None);
        schedule.add(1, life(0), 0);
        assert_eq!(schedule.next_wake(), Some(at(192_000)));
        assert_eq!(schedule.due(at(191_999), 9), []);
        assert_eq!(schedule.due(at(192_000), 9), [Renew(1)]);
        assert_eq!(
            schedule.next_wake(),
            Some(at(300_000)),
            "on its way: only the end is left"
        );
        assert_eq!(schedule.due(at(250_000), 9), []);
        schedule.renewed(1, life(192_100), 0);
        assert_eq!(schedule.due(at(300_000), 9), []);
        assert_eq!(schedule.due(at(384_100), 9), [Renew(1)]);
        assert_eq!(
            schedule.due(at(492_100), 9),
            [Drop(1)],
            "never answered: over at its end"
        );
        assert!(schedule.is_empty() && schedule.next_wake().is_none());
        schedule.renewed(1, life(500_000), 0);
        assert!(schedule.is_empty(), "a late answer brings nothing back");
    }

    #[test]
    fn failures_back_off_and_never_pass_the_end() {
        let mut schedule = Schedule::default();
        schedule.add(1, life(0), 0);
        let mut now = at(192_000);
        let mut waits = Vec::new();
        loop {
            match schedule.due(now, 9).as_slice() {
                [Renew(1)] => schedule.failed(1, now, Some(Duration::ZERO), u16::MAX),
                [Drop(1)] => break,
                other => panic!("{other:?} at {now:?}"),
            }
            let next = schedule.next_wake().unwrap();
            waits.push(next.millis_since(now));
            now = next;
        }
        assert_eq!(now, at(300_000));
        assert_eq!(waits[..8], [250, 500, 1000, 2000, 4000, 8000, 16000, 30000]);
    }

    /// The broker was away for most of what a short life leaves.
    #[test]
    fn one_with_little_left_does_not_wait_until_it_is_over() {
        let mut schedule = Schedule::default();
        let short = Lifetime {
            asked: at(0),
            refresh: at(40_000),
            end: at(60_000),
        };
        schedule.add(1, short, 0);
        let mut now = schedule.next_wake().unwrap();
        while now < at(56_000) {
            assert_eq!(schedule.due(now, 9), [Renew(1)]);
            schedule.failed(1, now, Some(Duration::ZERO), u16::MAX);
            now = schedule.next_wake().unwrap();
        }
        assert!(
            now < at(59_000),
            "it is tried again before its end: {now:?}"
        );
        assert_eq!(schedule.due(now, 9), [Renew(1)]);
    }

    #[test]
    fn the_brokers_wish_is_kept_and_a_refusal_is_final() {
        let mut schedule = Schedule::default();
        schedule.add(1, life(0), 0);
        schedule.add(2, life(0), 0);
        assert_eq!(schedule.due(at(192_000), 9), [Renew(1), Renew(2)]);
        schedule.failed(1, at(192_000), Some(Duration::from_secs(20)), 0);
        schedule.failed(2, at(192_000), None, 0);
        assert_eq!(schedule.next_wake(), Some(at(212_000)));
        assert_eq!(schedule.due(at(212_000), 9), [Renew(1)]);
        schedule.remove(1);
        assert_eq!(schedule.next_wake(), Some(at(300_000)));
        assert_eq!(schedule.due(at(300_000), 9), [Drop(2)]);
    }

    /// As of one whose later end was stored and never came here.
    #[test]
    fn a_wish_beyond_its_end_is_not_waited_for() {
        let mut schedule = Schedule::default();
        schedule.add(1, life(0), 0);
        let mut now = at(192_000);
        let mut tries = 0;
        while now < at(298_000) {
            assert_eq!(schedule.due(now, 9), [Renew(1)], "at {now:?}");
            schedule.failed(1, now, Some(Duration::from_secs(200)), 0);
            now = schedule.next_wake().unwrap();
            tries += 1;
        }
        assert!(tries >= 2 && now < at(300_000), "{tries} until {now:?}");
    }

    #[test]
    fn many_at_once_are_taken_in_portions() {
        let mut schedule = Schedule::default();
        for ticket in 0..10 {
            schedule.add(ticket, life(0), 0);
        }
        assert_eq!(schedule.due(at(200_000), 4).len(), 4);
        assert_eq!(schedule.due(at(200_000), 100).len(), 6);
        assert_eq!(schedule.len(), 10);
    }

    /// What a restart of a host or the return of the broker makes.
    #[test]
    fn ten_thousand_that_came_at_once_do_not_come_back_at_once() {
        let mut schedule = Schedule::default();
        let mut jitter = 12_345_u16;
        let mut next_jitter = || {
            jitter = jitter.wrapping_mul(25_173).wrapping_add(13_849);
            jitter
        };
        for ticket in 0..10_000 {
            schedule.add(ticket, life(0), next_jitter());
        }
        let mut per_second = Vec::new();
        for second in 1..=4_000_u64 {
            let now = at(second * 1000);
            let due = schedule.due(now, usize::MAX);
            for action in &due {
                match action {
                    Renew(ticket) => {
                        schedule.renewed(*ticket, life(second * 1000), next_jitter());
                    }
                    Drop(ticket) => panic!("{ticket} was not renewed in time"),
                }
            }
            per_second.push(due.len());
        }
        let steady: usize = per_second.iter().rev().take(2_000).sum::<usize>() / 2_000;
        // Over ten seconds, so that what is measured is the plan and not its dice.
        let peak = per_second
            .windows(10)
            .map(|ten| ten.iter().sum::<usize>() / 10)
            .max();
        assert!(steady > 50, "{steady}");
        assert!(peak.unwrap() <= 2 * steady, "{peak:?} against {steady}");
    }

    #[test]
    fn after_a_long_sleep_what_is_over_is_dropped_not_renewed() {
        let mut schedule = Schedule::default();
        schedule.add(1, life(0), 0);
        assert_eq!(schedule.due(at(10_000_000), 9), [Drop(1)]);
    }
}
