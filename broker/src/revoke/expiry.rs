//! Timers of credentials and tasks by the second at which they end by themselves.
//!
//! Only an index over the store: rebuilt from it at start, and asked again when a second
//! falls due, so that a renewal needs no cancel here. (A timer wheel that cancels is heavier,
//! and tokio-util's DelayQueue panics beyond about two years.)

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;

/// What to look at, and when.
pub struct Timers<T = CredentialId> {
    /// Guards the index; held for one insertion or one second's removal.
    seconds: Mutex<BTreeMap<u64, Vec<T>>>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            seconds: Mutex::default(),
        }
    }
}

impl<T> Timers<T> {
    /// Look at `id` once `at` has passed.
    pub fn set(&self, id: T, at: UnixMillis) {
        // Rounded up: a timer that fires early finds nothing to do and would have to be set again.
        let second = at.as_millis().div_ceil(1000);
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        seconds.entry(second).or_default().push(id);
    }

    /// Takes what fell due, at most `most`, the oldest first.
    pub fn due(&self, now: UnixMillis, most: usize) -> Vec<T> {
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        while let Some(mut second) = seconds.first_entry() {
            if *second.key() > now.as_unix_seconds() || due.len() >= most {
                break;
            }
            let ids = second.get_mut();
            let taken = ids.len().min(most - due.len());
            due.extend(ids.drain(..taken));
            if ids.is_empty() {
                second.remove();
            }
        }
        due
    }

    /// Timers set.
    pub fn len(&self) -> usize {
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        seconds.values().map(Vec::len).sum()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    fn id(n: u8) -> CredentialId {
        CredentialId::from_parts(1, [n; 10])
    }

    #[test]
    fn fires_when_the_whole_time_has_passed_and_once() {
        let timers = Timers::default();
        let at = UnixMillis::from_millis;
        timers.set(id(1), at(5_001));
        timers.set(id(2), at(4_000));
        timers.set(id(3), at(400 * 24 * 3_600_000 * 10));
        assert!(timers.due(at(3_999), 10).is_empty());
        assert_eq!(timers.due(at(5_999), 10), [id(2)]);
        assert_eq!(timers.due(at(6_000), 10), [id(1)]);
        assert!(timers.due(at(7_000), 10).is_empty());
        assert_eq!(timers.len(), 1, "ten years ahead is no trouble");
    }

    #[test]
    fn a_crowded_second_is_taken_in_pieces() {
        let timers = Timers::default();
        for n in 0..5 {
            timers.set(id(n), UnixMillis::from_millis(1_000));
        }
        let now = UnixMillis::from_millis(2_000);
        assert_eq!(timers.due(now, 2), [id(0), id(1)]);
        assert_eq!(timers.due(now, 2).len() + timers.due(now, 2).len(), 3);
        assert!(timers.is_empty());
    }
}
