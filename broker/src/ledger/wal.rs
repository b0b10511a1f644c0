//! Copies the write-ahead log back into the store, on a thread and connection of its own, so
//! that no commit waits for it.
//!
//! The log is overwritten in place rather than truncated: a file that grows needs the file
//! system's journal at each flush, which is many times slower.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rusqlite::Connection;

use super::writer::die_of;
use crate::limits;

#[derive(Default)]
struct Wish {
    look: bool,
    closed: bool,
}

/// Wakes the copying thread.
#[derive(Default)]
pub(super) struct Signal {
    /// Guards the wish; held for a moment only.
    wish: Mutex<Wish>,
    wake: Condvar,
    /// Long readers: making the log start over would hold writers until they end.
    holds: AtomicUsize,
}

/// While it lives, the log is not made to start over.
pub(super) struct Held(Arc<Signal>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::AcqRel);
        self.0.look();
    }
}

impl Signal {
    /// The log has grown.
    pub(super) fn look(&self) {
        self.wish
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .look = true;
        self.wake.notify_one();
    }

    /// A snapshot is about to be read for long.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        self.holds.fetch_add(1, Ordering::AcqRel);
        Held(Arc::clone(self))
    }

    /// The store is closing.
    pub(super) fn close(&self) {
        self.wish
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.wake.notify_one();
    }

    /// Waits; false when the store is closing.
    fn wait(&self) -> bool {
        let wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wish = self
            .wake
            .wait_while(wish, |wish| !wish.look && !wish.closed)
            .unwrap_or_else(PoisonError::into_inner);
        wish.look = false;
        !wish.closed
    }
}

/// The thread.
pub(super) fn run(connection: &Connection, signal: &Arc<Signal>) {
    while signal.wait() {
        if let Err(error) = copy(connection, signal) {
            die_of(&error);
            tracing::warn!(%error, "the store's write-ahead log could not be copied back; it grows until it can");
        }
    }
}

fn copy(connection: &Connection, signal: &Signal) -> rusqlite::Result<()> {
    let (length, copied) = checkpoint(connection, "NOOP")?;
    if length - copied < limits::LEDGER_WAL_COPY_PAGES && length < limits::LEDGER_WAL_RESTART_PAGES
    {
        return Ok(());
    }
    let (length, _) = checkpoint(connection, "PASSIVE")?;
    // Writers that never pause would let it grow without end: hold them while it starts over.
    let held = signal.holds.load(Ordering::Acquire) > 0;
    if length >= limits::LEDGER_WAL_RESTART_PAGES && !held {
        checkpoint(connection, "RESTART")?;
    }
    crate::crash_point!("ledger.wal_checkpoint");
    Ok(())
}

/// Pages in the log, and of those copied back.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<(i64, i64)> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    connection.query_row(&sql, [], |row| Ok((row.get(1)?, row.get(2)?)))
}
