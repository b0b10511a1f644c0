//! The only module of this crate that reads a clock.

#![allow(clippy::disallowed_methods)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ephor_proto::time::{Boottime, UnixMillis};
use rustix::time::{ClockId, clock_gettime};

/// Wall time now: what certificates and lists are read against.
pub fn wall() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    UnixMillis::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Seconds since 1970, as certificates count them.
pub fn unix_seconds() -> i64 {
    i64::try_from(wall().as_unix_seconds()).unwrap_or(i64::MAX)
}

/// `CLOCK_BOOTTIME`, which counts through a suspend and cannot be set.
pub fn boottime() -> Boottime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Boottime::from_millis(seconds.saturating_mul(1000) + nanos / 1_000_000)
}
