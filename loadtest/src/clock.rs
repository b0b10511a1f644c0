//! The only place that reads a clock.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let at = clock_gettime(ClockId::Monotonic);
        Self(
            u64::try_from(at.tv_sec).unwrap_or(0) * 1_000_000_000
                + u64::try_from(at.tv_nsec).unwrap_or(0),
        )
    }

    /// Later by this much.
    pub fn after(self, by: Duration) -> Self {
        Self(self.0 + u64::try_from(by.as_nanos()).unwrap_or(u64::MAX / 2))
    }

    /// Time since then; zero if it is still to come.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// Time between two moments; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time until then; zero if it has passed.
    pub fn remaining(self) -> Duration {
        self.since(Self::now())
    }
}
