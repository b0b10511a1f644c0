//! Where a credential was used, as far as introspection could see it.
//!
//! Counted in memory and written into the credential's end event: a write per call would
//! let a verifier's traffic set the store's load. A restart loses the counts since the start of
//! the credential; the end event then says less, never more.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;

use crate::limits;

/// Introspections of one credential that found it active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Who asked last.
    pub by: String,
    /// The first time.
    pub first: UnixMillis,
    /// The last time.
    pub last: UnixMillis,
    /// How many.
    pub count: u64,
}

/// Uses of credentials that have not ended.
#[derive(Default)]
pub struct Uses {
    /// Guards the counts; held for one look-up.
    seen: Mutex<HashMap<CredentialId, Use>>,
}

impl Uses {
    /// Counts one use, seen by `by`. Beyond the limit new credentials are not counted.
    pub fn record(&self, id: CredentialId, by: &str, now: UnixMillis) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= limits::USES_KEPT && !seen.contains_key(&id) {
            return;
        }
        let entry = seen.entry(id).or_insert_with(|| Use {
            by: String::new(),
            first: now,
            last: now,
            count: 0,
        });
        entry.count += 1;
        entry.last = now;
        if entry.by != by {
            by.clone_into(&mut entry.by);
        }
    }

    /// What is known of it; stays known until [`Uses::forget`].
    pub fn of(&self, id: CredentialId) -> Option<Use> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// Its end was recorded.
    pub fn forget(&self, id: CredentialId) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }
}

/// Uses of logins that have not ended, as their targets told when they were asked.
#[derive(Default)]
pub struct UsedLogins {
    /// Guards the uses by name at the target; held for one look-up.
    seen: Mutex<HashMap<String, Use>>,
}

impl UsedLogins {
    /// A session of `name` from there, which began and was last busy at these times. Beyond the limit
    /// new ones are not counted.
    pub fn saw(&self, name: &str, from: &str, (first, last): (UnixMillis, UnixMillis)) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= limits::USES_KEPT && !seen.contains_key(name) {
            return;
        }
        let used = seen.entry(name.to_owned()).or_insert_with(|| Use {
            by: String::new(),
            first,
            last,
            count: 0,
        });
        used.count += 1;
        used.first = used.first.min(first);
        used.last = used.last.max(last);
        if used.by != from {
            from.clone_into(&mut used.by);
        }
    }

    /// What is known of it; stays known until [`UsedLogins::forget`].
    pub fn of(&self, name: &str) -> Option<Use> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(name).cloned()
    }

    /// Its end was recorded.
    pub fn forget(&self, name: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remove(name);
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
    fn uses_are_summed_up_and_forgotten() {
        let uses = Uses::default();
        let id = CredentialId::from_parts(1, [1; 10]);
        uses.record(id, "a", UnixMillis::from_millis(5));
        uses.record(id, "b", UnixMillis::from_millis(9));
        let expected = Use {
            by: "b".into(),
            first: UnixMillis::from_millis(5),
            last: UnixMillis::from_millis(9),
            count: 2,
        };
        assert_eq!(uses.of(id), Some(expected));
        uses.forget(id);
        assert_eq!(uses.of(id), None);
    }
}
