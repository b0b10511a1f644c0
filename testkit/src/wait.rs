//! Waiting for a condition, never for a duration.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// Seconds on `CLOCK_MONOTONIC`.
#[must_use]
pub fn monotonic() -> f64 {
    let at = clock_gettime(ClockId::Monotonic);
    at.tv_sec as f64 + at.tv_nsec as f64 / 1e9
}

/// Looks until `condition` gives a value.
///
/// # Errors
/// When it gave none within `deadline`; the error says what was waited for.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let end = monotonic() + deadline.as_secs_f64();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        anyhow::ensure!(monotonic() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(STEP);
    }
}
