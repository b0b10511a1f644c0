//! The only place of the agent that reads a clock; everything else takes one.
//!
//! Boot time is `CLOCK_BOOTTIME`, which counts through a suspend, unlike `Instant`.

use std::sync::Arc;

use ephor_proto::time::{Boottime, Clock, UnixMillis};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// A clock as every part of the agent holds it.
pub type SharedClock = Arc<dyn Clock + Send + Sync>;

/// The clocks of this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Shared, for those who keep one.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> UnixMillis {
        UnixMillis::from_millis(millis(clock_gettime(ClockId::Realtime)))
    }

    fn boottime(&self) -> Boottime {
        Boottime::from_millis(millis(clock_gettime(ClockId::Boottime)))
    }
}

/// Measures what a stage costs, on a clock that nobody can set.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Timespec);

impl Stopwatch {
    /// From now.
    #[must_use]
    pub fn start() -> Self {
        Self(clock_gettime(ClockId::Monotonic))
    }

    /// Microseconds since the start.
    #[must_use]
    pub fn micros(self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = now.tv_sec.saturating_sub(self.0.tv_sec);
        let nanos = seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(now.tv_nsec - self.0.tv_nsec);
        u64::try_from(nanos / 1000).unwrap_or(0)
    }
}

/// Whole milliseconds; a clock before 1970 reads as 0.
fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1000)
        .saturating_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_are_those_of_the_host() {
        let (clock, before) = (SystemClock, std::time::UNIX_EPOCH.elapsed());
        let wall = clock.wall().as_millis();
        let after = std::time::UNIX_EPOCH.elapsed();
        let range = before.map_or(0, |d| d.as_millis())..=after.map_or(0, |d| d.as_millis());
        assert!(range.contains(&u128::from(wall)), "{wall} not in {range:?}");
        let (one, two) = (clock.boottime(), clock.boottime());
        assert!(one.as_millis() > 0 && two >= one);
    }
}
