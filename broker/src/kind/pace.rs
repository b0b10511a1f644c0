//! How fast what lives at a target is renewed there. As a rule renewals come by themselves at the pace
//! at which they were made; after an outage all that were missed come at once, from every host. Those
//! are told when to come again, so that a server that is just back is not asked much faster than
//! before, and nothing is made to wait until it expires.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ephor_proto::time::Boottime;

use crate::limits;

/// Renewals by the target's name.
#[derive(Default)]
pub struct Pace {
    /// Guards the lanes; held for one look-up.
    lanes: Mutex<HashMap<String, Lane>>,
}

#[derive(Debug)]
struct Lane {
    /// Renewals a second, when nothing was missed.
    steady: f64,
    /// That may begin now.
    tokens: f64,
    /// That were told to come again and have not been let in yet, as far as that can be told; who has come
    /// again and was told once more is counted twice.
    owed: f64,
    at: Boottime,
}

impl Lane {
    fn new(now: Boottime) -> Self {
        let mut lane = Self {
            steady: 0.0,
            tokens: 0.0,
            owed: 0.0,
            at: now,
        };
        lane.tokens = lane.burst();
        lane
    }

    /// A second, at most.
    fn most(&self) -> f64 {
        (self.steady * limits::PACE_MOST).max(limits::PACE_LEAST)
    }

    /// What is left for those that were missed.
    fn spare(&self) -> f64 {
        self.most() - self.steady
    }

    fn burst(&self) -> f64 {
        (self.most() * limits::PACE_BURST_SECONDS).max(limits::PACE_BURST)
    }

    fn spend(&mut self) {
        self.tokens = (self.tokens - 1.0).max(-self.burst());
    }

    fn pass(&mut self, now: Boottime) {
        let seconds = Duration::from_millis(now.millis_since(self.at)).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + seconds * self.most()).min(self.burst());
        self.owed = (self.owed - seconds * self.spare()).max(0.0);
    }
}

impl Pace {
    /// So many come in a second there when nothing was missed.
    pub(crate) fn is_steady(&self, target: &str, per_second: f64, now: Boottime) {
        self.with(target, now, |lane| lane.steady = per_second);
    }

    /// Whether one that has this long to live, where it is held, may be renewed now; else when it
    /// should come again: sooner, the less it has left, so that those with the least ask most often.
    ///
    /// # Errors
    /// The wait, in the whole seconds that it is told as.
    pub(crate) fn admit(&self, target: &str, left: Duration, now: Boottime) -> Result<(), u32> {
        self.with(target, now, |lane| {
            if lane.tokens >= 1.0 || left <= limits::PACE_LAST {
                lane.spend();
                return Ok(());
            }
            // Its turn; past the most, somewhere before that, so that they do not come together.
            let seconds = ((lane.owed + 1.0) / lane.spare()).ceil();
            let most = (left.as_secs_f64() * limits::PACE_WAIT_PART)
                .floor()
                .max(1.0);
            lane.owed += 1.0;
            Err(Duration::from_secs_f64((seconds - 1.0) % most + 1.0)
                .as_secs()
                .try_into()
                .unwrap_or(u32::MAX))
        })
    }

    /// One that asks nobody; those that ask make room for it.
    pub(crate) fn spend(&self, target: &str, now: Boottime) {
        self.with(target, now, Lane::spend);
    }

    fn with<T>(&self, target: &str, now: Boottime, act: impl FnOnce(&mut Lane) -> T) -> T {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry(target.to_owned());
        let lane = lane.or_insert_with(|| Lane::new(now));
        lane.pass(now);
        act(lane)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at(millis: u64) -> Boottime {
        Boottime::from_millis(millis)
    }

    /// Those who ask by when they do, and when what they hold would be over, in milliseconds.
    type Asks = BTreeMap<(u64, u64), u64>;

    /// Lets all of `asks` in at a target with 100 renewals a second, where `beside` go on without asking.
    /// Gives how many began in each second; on average each is told to wait less than three times.
    fn let_in(mut asks: Asks, mut beside: impl Iterator<Item = u64>) -> BTreeMap<u64, u32> {
        let (all, mut refused) = (asks.len(), 0);
        let pace = Pace::default();
        pace.is_steady("orders", 100.0, at(0));
        let mut next_beside = beside.next();
        let mut per_second: BTreeMap<u64, u32> = BTreeMap::new();
        while let Some(((now, n), end)) = asks.pop_first() {
            while let Some(when) = next_beside.filter(|when| *when <= now) {
                pace.spend("orders", at(when));
                *per_second.entry(when / 1000).or_default() += 1;
                next_beside = beside.next();
            }
            let left = Duration::from_millis(end - now);
            match pace.admit("orders", left, at(now)) {
                Ok(()) => *per_second.entry(now / 1000).or_default() += 1,
                Err(seconds) => {
                    refused += 1;
                    let again = now + u64::from(seconds) * 1000;
                    assert!(again < end, "{n} would be over");
                    asks.insert((again, n), end);
                }
            }
        }
        assert!(refused < all * 3, "{refused} times, {all} of them");
        per_second
    }

    fn at_most(most: u32, per_second: &BTreeMap<u64, u32>) {
        let peak = per_second.values().max().copied();
        assert!(peak <= Some(most), "{per_second:?}");
    }

    /// 100 a second come; for a minute nobody could, and all of them come back within three seconds.
    #[test]
    fn what_was_missed_comes_at_less_than_twice_the_pace_and_in_time() {
        let outage = 60_000;
        let mut asks = Asks::new();
        for n in 0..6_000 {
            asks.insert((outage + n / 2, n), outage + 200_000);
        }
        for n in 6_000..60_000 {
            let asked = outage + (n - 6_000) * 10;
            asks.insert((asked, n), asked + 200_000);
        }
        let per_second = let_in(asks, std::iter::empty());
        at_most(200, &per_second);
        assert_eq!(per_second.values().sum::<u32>(), 60_000);
    }

    /// 36 000 that live 600 s were made within a minute, and ask for the first time over the 200 s that an
    /// agent spreads that over. An outage of half a minute begins with them, and the server lost some ends.
    #[test]
    fn what_was_made_at_once_comes_at_less_than_twice_the_pace_after_an_outage_as_well() {
        let (life, back) = (600_000, 275_000);
        let mut asks = Asks::new();
        for n in 0..36_000 {
            let made = n * 60_000 / 36_000;
            let first = made + 184_000 + n * 7_919 % 200_000;
            let asked = if first < back - 30_000 {
                continue;
            } else {
                first.max(back + n % 3_000)
            };
            asks.insert((asked, n), made + life);
        }
        let all = asks.len();
        let per_second = let_in(asks, (0..600).map(|n| back + 10_000 + n * 31));
        at_most(180, &per_second);
        assert_eq!(per_second.values().sum::<u32>() as usize, all + 600);
    }

    /// The same, away for longer: what is left of their lives is just enough for all of them.
    #[test]
    fn a_longer_outage_is_made_up_for_no_faster() {
        let (life, down, back) = (600_000, 225_000, 375_000);
        let mut asks = Asks::new();
        for n in 0..36_000 {
            let made = n * 60_000 / 36_000;
            let first = made + 184_000 + n * 7_919 % 200_000;
            if first >= down {
                asks.insert((first.max(back + n % 3_000), n), made + life);
            }
        }
        let all = asks.len();
        let per_second = let_in(asks, std::iter::empty());
        at_most(160, &per_second);
        assert_eq!(per_second.values().sum::<u32>() as usize, all);
    }

    #[test]
    fn nothing_waits_until_it_expires_and_few_do_not_wait() {
        let pace = Pace::default();
        pace.is_steady("orders", 1.0, at(0));
        let long = Duration::from_secs(600);
        while pace.admit("orders", long, at(0)).is_ok() {}
        let soon = Duration::from_millis(10);
        assert_eq!(pace.admit("orders", soon, at(0)), Ok(()), "it has to");
        // Waits are told in whole seconds: one would be all of it.
        let second = Duration::from_secs(1);
        assert_eq!(pace.admit("orders", second, at(0)), Ok(()));
        assert_eq!(pace.admit("other", long, at(0)), Ok(()), "for itself");
        let mut waits = 0;
        for n in 0..10_u64 {
            waits += u32::from(pace.admit("orders", long, at(1_000 + n * 100)).is_err());
        }
        assert_eq!(waits, 0, "ten a second are few");
    }
}
