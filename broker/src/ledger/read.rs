//! Reading: snapshots from a small pool of read-only connections.
//!
//! A reader must be short: while it lives, the write-ahead log cannot start over. It is not
//! `Send`, so that the compiler refuses to hold one across an `.await`.

mod counts;
mod effects;
mod events;
mod find;
mod policy;
mod rows;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Params};

pub use counts::Counts;
pub use effects::LiveEffect;
pub use events::StoredEvent;
pub use find::ShortId;
pub use policy::{LiveCredential, PolicyEntry};
pub use rows::{CredentialFilter, Expiry, HeldByTask, Listing, TaskFilter};

use super::batch::Key;
use super::codec::{BadColumn, Columns, Stored, int};
use super::overlay::Overlay;
use super::row::Row;
use super::tree::Head;
use super::wal::Held;
use crate::limits;

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// All read connections were in use for too long.
    #[error("the store's read connections are all in use; try again")]
    Busy,
    /// SQLite refuses.
    #[error("the store could not be read: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row that this version cannot read. It is set aside at the next start, and a credential when
    /// its task ends.
    #[error("a row of table {table} cannot be read: {reason}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The tree does not have what was asked for.
    #[error("the log's tree could not be read: {0}")]
    Tree(String),
}

/// Read-only connections, made as they are needed.
pub(super) struct Pool {
    path: PathBuf,
    /// Guards the idle connections and their number; held for a moment only.
    state: Mutex<PoolState>,
    returned: Condvar,
}

#[derive(Default)]
struct PoolState {
    idle: Vec<Connection>,
    open: usize,
    closed: bool,
}

impl Pool {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Result<Connection, ReadError> {
        let full =
            |state: &mut PoolState| state.idle.is_empty() && state.open >= limits::LEDGER_READERS;
        let (mut state, _) = self
            .returned
            .wait_timeout_while(self.state(), limits::LEDGER_READ_WAIT, full)
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = state.idle.pop() {
            return Ok(connection);
        }
        if state.open >= limits::LEDGER_READERS {
            return Err(ReadError::Busy);
        }
        state.open += 1;
        drop(state);
        self.connect().inspect_err(|_| {
            self.state().open -= 1;
            self.returned.notify_one();
        })
    }

    fn connect(&self) -> Result<Connection, ReadError> {
        let connection = super::open::connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.pragma_update(None, "cache_size", -limits::LEDGER_READ_CACHE_KIB)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let ended = connection.is_autocommit() || end(&connection).is_ok();
        let mut state = self.state();
        if ended && !state.closed {
            state.idle.push(connection);
        } else {
            state.open -= 1;
        }
        drop(state);
        self.returned.notify_one();
    }

    /// Closes what is idle, and the others as they come back.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.open -= state.idle.len();
        state.idle.clear();
    }
}

fn end(connection: &Connection) -> rusqlite::Result<()> {
    connection.prepare_cached("COMMIT")?.execute([]).map(drop)
}

/// A snapshot of committed state.
pub struct Reader {
    pool: Arc<Pool>,
    overlay: Arc<Overlay>,
    connection: OnceCell<Lease>,
    /// Ids by table, sorted by their last 20 bits; empty when only one was asked for so far.
    tails: RefCell<HashMap<&'static str, Vec<[u8; 16]>>>,
    not_send: PhantomData<*const ()>,
}

/// A [`Reader`] for what may take long.
pub struct LongReader {
    // Given back before the write-ahead log is let go.
    pub(super) reader: Reader,
    pub(super) _held: Held,
}

impl std::ops::Deref for LongReader {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

struct Lease {
    pool: Arc<Pool>,
    /// Empty only while it is dropped.
    connection: Option<Connection>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.give_back(connection);
        }
    }
}

impl Reader {
    /// The overlay must have been taken before the snapshot: what leaves it is in the store then.
    pub(super) fn new(pool: Arc<Pool>, overlay: Arc<Overlay>) -> Self {
        Self {
            pool,
            overlay,
            connection: OnceCell::new(),
            tails: RefCell::default(),
            not_send: PhantomData,
        }
    }

    /// The connection, inside a read transaction.
    pub(super) fn connection(&self) -> Result<&Connection, ReadError> {
        let lease = match self.connection.get() {
            Some(lease) => lease,
            None => {
                let connection = self.pool.take()?;
                let lease = Lease {
                    pool: self.pool.clone(),
                    connection: Some(connection),
                };
                let lease = self.connection.get_or_init(|| lease);
                if let Some(connection) = &lease.connection {
                    connection.prepare_cached("BEGIN DEFERRED")?.execute([])?;
                }
                lease
            }
        };
        lease.connection.as_ref().ok_or(ReadError::Busy)
    }

    /// The row of a key.
    fn row<T: Stored>(
        &self,
        key: &Key,
        parameter: &dyn rusqlite::ToSql,
    ) -> Result<Option<T>, ReadError> {
        let stored = self.first::<T>(&T::sql().by_key, [parameter])?;
        let waiting = self.overlay.row(key).and_then(T::of);
        Ok(match (stored, waiting) {
            (Some(stored), Some(waiting)) if waiting.version() > stored.version() => {
                Some(waiting.clone())
            }
            (None, Some(waiting)) => Some(waiting.clone()),
            (stored, _) => stored,
        })
    }

    /// The first row of a statement that selects the columns of `T`.
    fn first<T: Stored>(&self, sql: &str, parameters: impl Params) -> Result<Option<T>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        T::read(&Columns(row))
            .map(Some)
            .map_err(|error| unreadable::<T>(&error))
    }

    /// The rows that a condition selects, with those in the reserve that `keep` selects. One that
    /// cannot be read is left out and logged: the others must still be revoked.
    fn list<T: Stored>(
        &self,
        condition: &str,
        parameters: impl Params,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, ReadError> {
        self.list_and_tell(condition, parameters, keep, |_, error| {
            tracing::error!(error = %unreadable::<T>(error), "a row was left out; it is set aside at the next start");
        })
    }

    /// The same; `bad` is told of each that cannot be read.
    fn list_and_tell<T: Stored>(
        &self,
        condition: &str,
        parameters: impl Params,
        keep: impl Fn(&T) -> bool,
        mut bad: impl FnMut(&Columns<'_>, &BadColumn),
    ) -> Result<Vec<T>, ReadError> {
        let sql = format!("{} {condition}", T::sql().select);
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query(parameters)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let columns = Columns(row);
            match T::read(&columns) {
                Ok(row) => found.push(row),
                Err(error) => bad(&columns, &error),
            }
        }
        Ok(self.merged(found, keep))
    }

    fn merged<T: Stored>(&self, mut found: Vec<T>, keep: impl Fn(&T) -> bool) -> Vec<T> {
        if self.overlay.is_empty() {
            return found;
        }
        let newer = |row: &T| {
            let waiting = self.overlay.row(&row.key()).and_then(T::of);
            waiting.is_some_and(|waiting| waiting.version() > row.version())
        };
        found.retain(|row| !newer(row));
        let waiting = self
            .overlay
            .rows()
            .filter_map(|row: &Row| T::of(row))
            .filter(|row| keep(row));
        for row in waiting {
            if !found.iter().any(|other| other.key() == row.key()) {
                found.push(row.clone());
            }
        }
        found
    }

    /// Size and root of the log in this snapshot.
    ///
    /// # Errors
    /// As every read.
    pub fn head(&self) -> Result<Head, ReadError> {
        Ok(head(self.connection()?)?)
    }

    /// A setting.
    ///
    /// # Errors
    /// As every read.
    pub fn meta(&self, name: &str) -> Result<Option<String>, ReadError> {
        if let Some(Row::Meta(_, value)) = self.overlay.row(&Key::Meta(name.to_owned())) {
            return Ok(Some(value.clone()));
        }
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
        Ok(statement.query_row([name], |row| row.get(0)).optional()?)
    }
}

/// The last checkpoint; of an empty log, that of no leaves (RFC 6962 §2.1).
pub(super) fn head(connection: &Connection) -> rusqlite::Result<Head> {
    let found = connection
        .prepare_cached("SELECT size, root FROM checkpoint ORDER BY size DESC LIMIT 1")?
        .query_row([], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?))
        })
        .optional()?;
    let empty = Head {
        size: 0,
        root: tlog_tiles::tlog::EMPTY_HASH.0,
    };
    Ok(found.map_or(empty, |(size, root)| Head {
        size: u64::try_from(size).unwrap_or(0),
        root,
    }))
}

fn unreadable<T: Stored>(error: &BadColumn) -> ReadError {
    ReadError::Unreadable {
        table: T::TABLE,
        reason: error.to_string(),
    }
}

/// A limit as SQLite takes it, never above the named one.
fn capped(limit: usize) -> i64 {
    int(limit.min(limits::LEDGER_LIST_MAX) as u64)
}
