//! Rate and open work per host, checked before anything expensive.
//!
//! A host that loops costs itself, not its neighbours. Times are boot time, so that
//! a step of the wall clock neither opens nor closes the gate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ephor_proto::problem::Code;
use ephor_proto::time::Boottime;

use super::Refusal;
use crate::limits;

/// A token bucket and a count of open work for each host.
#[derive(Clone, Default)]
pub struct Throttle {
    /// Guards the buckets; held for one look-up.
    hosts: Arc<Mutex<HashMap<String, Bucket>>>,
}

struct Bucket {
    /// Requests that may start now, in thousandths.
    milli_tokens: u64,
    filled_at: Boottime,
    open: u32,
}

/// A place among a host's open work; given back when dropped.
pub struct OpenWork {
    throttle: Throttle,
    host: String,
}

impl Throttle {
    /// Admits one request of `host`.
    ///
    /// # Errors
    /// `rate_limited` over the rate, `busy` with too much open work.
    pub fn admit(&self, host: &str, now: Boottime) -> Result<OpenWork, Refusal> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= limits::THROTTLED_HOSTS && !hosts.contains_key(host) {
            hosts.retain(|_, bucket| bucket.open > 0 || !bucket.is_full_at(now));
        }
        let bucket = hosts
            .entry(host.to_owned())
            .or_insert_with(|| Bucket::full(now));
        bucket.fill(now);
        if bucket.open >= limits::OPEN_WORK_PER_HOST {
            let detail = format!(
                "host `{host}` has {} requests open here; wait for answers",
                bucket.open
            );
            return Err(Refusal::new(Code::Busy, detail));
        }
        let Some(left) = bucket.milli_tokens.checked_sub(1000) else {
            let rate = limits::REQUESTS_PER_HOST_PER_SECOND;
            let detail =
                format!("host `{host}` sends more than {rate} requests a second; slow down");
            return Err(Refusal::new(Code::RateLimited, detail));
        };
        bucket.milli_tokens = left;
        bucket.open += 1;
        Ok(OpenWork {
            throttle: self.clone(),
            host: host.to_owned(),
        })
    }
}

impl Bucket {
    fn full(now: Boottime) -> Self {
        Self {
            milli_tokens: limits::REQUEST_BURST_PER_HOST * 1000,
            filled_at: now,
            open: 0,
        }
    }

    fn fill(&mut self, now: Boottime) {
        // One token a second is one thousandth a millisecond.
        let gained = now
            .millis_since(self.filled_at)
            .saturating_mul(limits::REQUESTS_PER_HOST_PER_SECOND);
        self.milli_tokens = self
            .milli_tokens
            .saturating_add(gained)
            .min(limits::REQUEST_BURST_PER_HOST * 1000);
        self.filled_at = now;
    }

    fn is_full_at(&self, now: Boottime) -> bool {
        now.millis_since(self.filled_at)
            .saturating_mul(limits::REQUESTS_PER_HOST_PER_SECOND)
            >= limits::REQUEST_BURST_PER_HOST * 1000
    }
}

impl Drop for OpenWork {
    fn drop(&mut self) {
        let mut hosts = self
            .throttle
            .hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = hosts.get_mut(&self.host) {
            bucket.open = bucket.open.saturating_sub(1);
        }
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
    use super::*;

    #[test]
    fn the_burst_is_spent_and_comes_back_with_time() {
        let throttle = Throttle::default();
        let at = Boottime::from_millis;
        for _ in 0..limits::REQUEST_BURST_PER_HOST {
            drop(throttle.admit("a", at(0)).unwrap());
        }
        assert_eq!(
            throttle.admit("a", at(0)).err().unwrap().code,
            Code::RateLimited
        );
        assert!(
            throttle.admit("b", at(0)).is_ok(),
            "a neighbour does not pay"
        );
        for _ in 0..limits::REQUESTS_PER_HOST_PER_SECOND {
            drop(throttle.admit("a", at(1000)).unwrap());
        }
        assert_eq!(
            throttle.admit("a", at(1000)).err().unwrap().code,
            Code::RateLimited
        );
    }

    #[test]
    fn open_work_is_bounded_and_given_back() {
        let throttle = Throttle::default();
        let mut now = 0;
        let mut admit = || {
            now += 1000;
            throttle.admit("a", Boottime::from_millis(now))
        };
        let mut open: Vec<_> = (0..limits::OPEN_WORK_PER_HOST)
            .map(|_| admit().unwrap())
            .collect();
        assert_eq!(admit().err().unwrap().code, Code::Busy);
        open.pop();
        assert!(admit().is_ok());
    }
}
