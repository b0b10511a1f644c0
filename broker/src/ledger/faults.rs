//! Faults that tests inject; only in tests and with the feature `failpoints`.
//!
//! `EPHOR_UNKNOWN=lost[:n]` rolls the n-th commit back, `EPHOR_UNKNOWN=committed[:n]` commits it;
//! both answer that its fate is not known. `EPHOR_FULL=FILE`: as long as there is such a file,
//! the store may not grow.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;

/// Counts down to a fault; 0 is off.
#[derive(Debug)]
pub(crate) struct Faults {
    lose: AtomicI64,
    doubt: AtomicI64,
    max_pages: AtomicI64,
    full_while: Option<PathBuf>,
}

/// SQLite's own limit.
const UNLIMITED: i64 = 0xffff_fffe;

impl Faults {
    /// What the environment asks for.
    pub(super) fn from_environment() -> Self {
        let text = std::env::var("EPHOR_UNKNOWN").unwrap_or_default();
        let (mode, nth) = text.split_once(':').unwrap_or((&text, "1"));
        let nth = nth.parse().unwrap_or(1);
        let when = |name| AtomicI64::new(if mode == name { nth } else { 0 });
        Self {
            lose: when("lost"),
            doubt: when("committed"),
            max_pages: AtomicI64::new(0),
            full_while: std::env::var_os("EPHOR_FULL").map(PathBuf::from),
        }
    }

    /// Whether this commit is to be rolled back and called unknown.
    pub(super) fn lose_commit(&self) -> bool {
        hit(&self.lose)
    }

    /// Whether this commit is to be called unknown.
    pub(super) fn doubt_commit(&self) -> bool {
        hit(&self.doubt)
    }

    /// Applies the page limit that a test set.
    pub(super) fn limit_pages(&self, connection: &Connection) -> rusqlite::Result<()> {
        let pages = match &self.full_while {
            Some(file) if file.exists() => 1,
            Some(_) => UNLIMITED,
            None => self.max_pages.load(Ordering::SeqCst),
        };
        if pages == 0 {
            return Ok(());
        }
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
    }
}

#[cfg(test)]
impl Faults {
    /// The next commit is rolled back and called unknown.
    pub(crate) fn lose_next(&self) {
        self.lose.store(1, Ordering::SeqCst);
    }

    /// The next commit stands and is called unknown.
    pub(crate) fn doubt_next(&self) {
        self.doubt.store(1, Ordering::SeqCst);
    }

    /// The store may have no more pages than this; SQLite clamps it to those it has.
    pub(crate) fn set_max_pages(&self, pages: i64) {
        self.max_pages.store(pages, Ordering::SeqCst);
    }
}

fn hit(counter: &AtomicI64) -> bool {
    counter.load(Ordering::SeqCst) > 0 && counter.fetch_sub(1, Ordering::SeqCst) == 1
}
