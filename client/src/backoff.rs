//! Waits that grow, with jitter so that many processes do not return in step. Pure but for the
//! random number.

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
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            attempts: 0,
        }
    }

    /// The next wait: between half and all of the current step.
    pub fn next(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.attempts.min(20));
        self.attempts = self.attempts.saturating_add(1);
        let half = step.min(self.cap) / 2;
        half + jittered(half)
    }

    /// Back to the first step, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// Something between nothing and `most`; the half when the system has no randomness, because a
/// wait must not fail.
pub fn jittered(most: Duration) -> Duration {
    let random = ephor_crypto::random::bytes().map_or(u16::MAX / 2, u16::from_ne_bytes);
    most.mul_f64(f64::from(random) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        for step in [100, 200, 400, 500, 500] {
            let wait = backoff.next().as_millis();
            assert!((step / 2..=step).contains(&wait), "{wait} of {step}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
