//! How long to wait before the next attempt: doubling, capped, with jitter so that a fleet
//! does not return in step. Pure.

use std::time::Duration;

/// A growing wait.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    /// Waits of about `first`, then twice that, up to `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            attempts: 0,
        }
    }

    /// The next wait: between half and all of the current step. `jitter` is any random number.
    pub fn next(&mut self, jitter: u16) -> Duration {
        let step = self
            .first
            .saturating_mul(1 << self.attempts.min(20))
            .min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        let half = step / 2;
        half + half.mul_f64(f64::from(jitter) / f64::from(u16::MAX))
    }

    /// Back to the first step, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A random number for [`Backoff::next`]; the middle when the system has no randomness,
/// because a wait must not fail.
#[must_use]
pub fn jitter() -> u16 {
    ephor_crypto::random::bytes().map_or(u16::MAX / 2, u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let full: Vec<_> = (0..8).map(|_| backoff.next(u16::MAX).as_millis()).collect();
        assert_eq!(full, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.next(0).as_millis(), 2500);
        for _ in 0..100 {
            assert!(backoff.next(jitter()) <= Duration::from_secs(5));
        }
        backoff.reset();
        assert_eq!(backoff.next(0).as_millis(), 50);
    }
}
