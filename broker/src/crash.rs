//! Crash points for the fault tests: places where a test build kills itself, as `kill -9`
//! would. Only with the feature `failpoints`, which is never on in a shipped binary;
//! without it [`crash_point!`](crate::crash_point) is nothing but a check of the name.
//!
//! `EPHOR_CRASH=NAME` dies at the first pass of that point, `NAME:N` at the N-th.

/// Every crash point of the broker, in the order of work.
pub const POINTS: &[&str] = &[
    "join.after_commit",
    "issue.before_commit",
    "issue.after_commit",
    "issue.before_answer",
    "renew.before_commit",
    "renew.after_commit",
    "complete.before_commit",
    "complete.after_commit",
    "revoke.before_listing",
    "revoke.after_listing",
    "prove.before_receipt",
    "prove.after_receipt",
    "ledger.before_commit",
    "ledger.after_commit",
    "ledger.after_answer",
    "ledger.reserve_written",
    "ledger.wal_checkpoint",
];

/// Whether `name` is a crash point. Evaluated while compiling.
#[must_use]
#[allow(clippy::indexing_slicing)] // const: iterators are not const yet; bounded by the lengths
pub const fn is_point(name: &str) -> bool {
    let name = name.as_bytes();
    let mut i = 0;
    while i < POINTS.len() {
        let point = POINTS[i].as_bytes();
        let mut same = point.len() == name.len();
        let mut j = 0;
        while same && j < name.len() {
            same = point[j] == name[j];
            j += 1;
        }
        if same {
            return true;
        }
        i += 1;
    }
    false
}

/// Dies here when `EPHOR_CRASH` names this point. The name must be one of `crash::POINTS`.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{
        const { assert!($crate::crash::is_point($name), "name it in crash::POINTS") };
        #[cfg(feature = "failpoints")]
        $crate::crash::hit($name);
    }};
}
pub use crash_point;

#[cfg(feature = "failpoints")]
pub use armed::hit;

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        name: String,
        passes_left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn parse(text: &str) -> Armed {
        let (name, nth) = match text.rsplit_once(':') {
            Some((name, nth)) => (name, nth.parse().unwrap_or(1)),
            None => (text, 1),
        };
        if !super::is_point(name) {
            tracing::error!(name, "EPHOR_CRASH names no crash point of the broker");
        }
        Armed {
            name: name.to_owned(),
            passes_left: AtomicU64::new(nth),
        }
    }

    /// Counts a pass of the point and dies at the one asked for.
    pub fn hit(name: &'static str) {
        let armed =
            ARMED.get_or_init(|| std::env::var("EPHOR_CRASH").ok().map(|text| parse(&text)));
        let Some(armed) = armed else { return };
        if armed.name == name && armed.passes_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            die();
        }
    }

    /// SIGKILL: no destructor, no flush, no unwinding.
    fn die() {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_and_unique() {
        crate::crash_point!("issue.after_commit");
        assert!(is_point("issue.after_commit"));
        assert!(
            !is_point("issue.after_commi") && !is_point("issue.after_commitx") && !is_point("")
        );
        let unique: std::collections::BTreeSet<_> = POINTS.iter().collect();
        assert_eq!(unique.len(), POINTS.len());
    }
}
