//! Equal refusals within a window are one audit event with a count, so that a looping caller
//! cannot fill the disk.
//!
//! The first of a kind is written at once; the rest of its window is summed up and
//! written when the window ends.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ephor_proto::event::AuditEvent;
use ephor_proto::problem::Code;
use ephor_proto::time::Boottime;

use crate::limits;

/// What makes two refusals equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RefusalKey {
    /// Where it came from.
    pub host: String,
    /// Subject, or `uid N` where none was found.
    pub who: String,
    /// Entitlement and item asked for.
    pub what: String,
    /// Why it was refused.
    pub code: Code,
}

struct Window<T> {
    since: Boottime,
    more: u64,
    first: T,
}

/// Whether a refusal is to be written now.
#[derive(Debug, PartialEq, Eq)]
pub enum Counted<T> {
    /// It opened its window: write it.
    First,
    /// It was counted with this one.
    Again(T),
}

/// What a window summed up after its first refusal.
#[derive(Debug, PartialEq, Eq)]
pub struct Summed<T> {
    /// Which refusals.
    pub key: RefusalKey,
    /// How many after the first.
    pub count: u64,
    /// The one that was written.
    pub first: T,
}

/// Open windows of refusals.
pub struct Refusals<T = AuditEvent> {
    /// Guards the windows; held for one look-up or one sweep.
    windows: Mutex<HashMap<RefusalKey, Window<T>>>,
}

impl<T> Default for Refusals<T> {
    fn default() -> Self {
        Self {
            windows: Mutex::new(HashMap::new()),
        }
    }
}

impl<T: Clone> Refusals<T> {
    /// Counts a refusal. With too many windows open, further ones share one window per host and code.
    pub fn count(&self, mut key: RefusalKey, about: T, now: Boottime) -> Counted<T> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= limits::REFUSAL_WINDOWS && !windows.contains_key(&key) {
            MANY.clone_into(&mut key.who);
            MANY.clone_into(&mut key.what);
        }
        if let Some(window) = windows.get_mut(&key) {
            window.more += 1;
            return Counted::Again(window.first.clone());
        }
        windows.insert(
            key,
            Window {
                since: now,
                more: 0,
                first: about,
            },
        );
        Counted::First
    }

    /// Windows that ended, with what they summed up; those with one refusal only end silently.
    pub fn ended(&self, now: Boottime) -> Vec<Summed<T>> {
        self.take(|window| now.millis_since(window.since) >= limits::REFUSAL_WINDOW_MILLIS)
    }

    /// All windows, at a clean stop.
    pub fn drain(&self) -> Vec<Summed<T>> {
        self.take(|_| true)
    }

    fn take(&self, is_over: impl Fn(&Window<T>) -> bool) -> Vec<Summed<T>> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let over = windows.extract_if(|_, window| is_over(window));
        over.filter(|(_, window)| window.more > 0)
            .map(|(key, window)| Summed {
                key,
                count: window.more,
                first: window.first,
            })
            .collect()
    }
}

/// Stands for subjects and entitlements that did not fit.
const MANY: &str = "(many)";

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    fn key(who: &str) -> RefusalKey {
        RefusalKey {
            host: "h".into(),
            who: who.into(),
            what: "e".into(),
            code: Code::Denied,
        }
    }

    #[test]
    fn the_first_is_written_and_the_rest_are_summed_up() {
        let refusals = Refusals::default();
        let at = Boottime::from_millis;
        assert_eq!(refusals.count(key("a"), 1, at(0)), Counted::First);
        assert_eq!(refusals.count(key("b"), 2, at(0)), Counted::First);
        for n in 3..=5 {
            assert_eq!(refusals.count(key("a"), n, at(10)), Counted::Again(1));
        }
        assert!(refusals.ended(at(59_999)).is_empty());
        assert_eq!(
            refusals.ended(at(60_000)),
            [Summed {
                key: key("a"),
                count: 3,
                first: 1
            }]
        );
        assert_eq!(
            refusals.count(key("a"), 6, at(60_001)),
            Counted::First,
            "a new window"
        );
    }

    #[test]
    fn a_flood_of_different_refusals_is_bounded() {
        let refusals = Refusals::default();
        let mut written = 0;
        for n in 0..limits::REFUSAL_WINDOWS * 2 {
            let counted = refusals.count(key(&n.to_string()), (), Boottime::from_millis(1));
            written += usize::from(counted == Counted::First);
        }
        assert_eq!(written, limits::REFUSAL_WINDOWS + 1);
        let summed = refusals.drain();
        assert_eq!(
            summed.iter().map(|s| s.count).sum::<u64>() as usize,
            limits::REFUSAL_WINDOWS - 1
        );
    }
}
