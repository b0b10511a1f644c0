//! Crash points: named places where the fault tests kill this process as `kill -9` would.
//!
//! Only with the feature `failpoints`; in a shipped binary the macro expands to nothing. The
//! environment is read once, at the first point: `EPHOR_CRASH=name`, or `name:n` for its n-th hit.

/// Every crash point, so that a test can walk them all.
pub const POINTS: &[&str] = &[
    "ledger.before_commit",
    "ledger.after_commit",
    "ledger.after_answer",
    "ledger.reserve_written",
    "ledger.wal_checkpoint",
];

/// Dies here if `EPHOR_CRASH` names this point; nothing without the feature `failpoints`.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::crash::reached($name);
    };
}

/// Counts a hit of `name` and kills this process with SIGKILL when it is the one asked for.
#[cfg(feature = "failpoints")]
pub fn reached(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static HITS: AtomicU64 = AtomicU64::new(0);

    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("EPHOR_CRASH").ok()?;
        match text.split_once(':') {
            Some((name, nth)) => Some((name.to_owned(), nth.parse().ok()?)),
            None => Some((text, 1)),
        }
    });
    if let Some((wanted, nth)) = wanted
        && wanted == name
        && HITS.fetch_add(1, Ordering::Relaxed) + 1 == *nth
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
