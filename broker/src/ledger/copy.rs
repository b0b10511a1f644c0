//! Copies of a store: made beside a running broker, and checked before one takes a store's place.
//!
//! A copy is one read snapshot, written out by SQLite itself (`VACUUM INTO`) on a connection of its
//! own: writers go on. Checking believes nothing that can be computed: every hash of the tree is
//! made again from the leaves.

use std::fs::File;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use tlog_tiles::tlog;

use super::codec::{Columns, Stored as _, int};
use super::holder::Holder;
use super::open::{check_pages, check_tree, connect, describe, hold, recognise, refused};
use super::retain::pruned_below;
use super::row::KeyRow;
use super::tree::{Frontier, Head, stored_in};
use super::{Installation, Ledger, OpenError};
use crate::files;

/// What a copy holds, every part of it checked.
#[derive(Debug)]
pub struct Inspected {
    /// Whose store it is.
    pub installation: Installation,
    /// Its log, computed from its leaves.
    pub head: Head,
    /// Its sealed keys.
    pub keys: Vec<KeyRow>,
    /// Leaves whose text was pruned before: only their hashes are left.
    pub pruned: u64,
}

impl Ledger {
    /// Writes a copy of the store to `path`, which must not exist; durable when this returns. Blocks
    /// for as long as that takes, and delays no commit.
    ///
    /// # Errors
    /// When the copy cannot be written; what is at `path` is then no backup.
    pub fn copy_to(&self, path: &Path) -> Result<(), OpenError> {
        let io = |error| OpenError::Io {
            path: path.to_owned(),
            error,
        };
        // SQLite writes into an empty file as it finds it, so its mode is ours.
        let made = files::create(path, files::PRIVATE);
        made.map_err(io)?;
        let text = path
            .to_str()
            .ok_or_else(|| io(std::io::Error::other("the path of a backup must be UTF-8")))?;
        let _held = self.inner.shared.wal.hold();
        let source = connect(&self.inner.path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        source
            .and_then(|source| source.execute("VACUUM INTO ?1", [text]))
            .map_err(|error| refused(path, error))?;
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(io)
    }
}

/// Checks a copy from end to end; changes nothing.
///
/// # Errors
/// What is wrong with it.
pub fn inspect(path: &Path) -> Result<Inspected, OpenError> {
    let sqlite = |error| refused(path, error);
    if !path.is_file() {
        return Err(OpenError::Missing(path.to_owned()));
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
    recognise(path, &connection)?;
    check_pages(path, &connection)?;
    let (_, head) = check_tree(path, &connection)?;
    let kept_from = pruned_below(&connection).map_err(sqlite)?;
    let (computed, pruned) = recompute(path, &connection, kept_from)?;
    if computed != head {
        return Err(damaged(path, "its leaves do not give the root of its log"));
    }
    let (installation, _, _) = describe(&connection).map_err(sqlite)?;
    let keys = keys(&connection).map_err(sqlite)?;
    Ok(Inspected {
        installation,
        head,
        keys,
        pruned,
    })
}

/// The tree, made again from the leaves; a leaf whose text retention pruned, below `kept_from`, stands
/// as its hash.
fn recompute(
    path: &Path,
    connection: &Connection,
    kept_from: u64,
) -> Result<(Head, u64), OpenError> {
    let sqlite = |error| refused(path, error);
    let wrong = |error: tlog::Error| damaged(path, &error.to_string());
    let mut text = connection
        .prepare("SELECT json FROM leaf WHERE idx = ?1")
        .map_err(sqlite)?;
    let mut statement = connection
        .prepare("SELECT size, hashes FROM hash ORDER BY size")
        .map_err(sqlite)?;
    let mut rows = statement.query([]).map_err(sqlite)?;
    let (mut frontier, mut pruned) = (Frontier::empty(), 0);
    while let Some(row) = rows.next().map_err(sqlite)? {
        let size: i64 = row.get(0).map_err(sqlite)?;
        let size = u64::try_from(size).unwrap_or(0);
        let stored: Vec<u8> = row.get(1).map_err(sqlite)?;
        for index in frontier.size()..size {
            let json: Option<String> = text
                .query_row([int(index)], |row| row.get(0))
                .optional()
                .map_err(sqlite)?;
            let known = stored_in(&stored, size, tlog::stored_hash_index(0, index));
            let record = match json {
                Some(json) => tlog::record_hash(json.as_bytes()),
                None if index >= kept_from => {
                    return Err(damaged(
                        path,
                        &format!("event {index} is missing, and retention did not prune it"),
                    ));
                }
                None => {
                    pruned += 1;
                    known.ok_or_else(|| damaged(path, "a leaf has no hash"))?
                }
            };
            if known != Some(record) {
                return Err(damaged(
                    path,
                    &format!("event {index} is not the one that was recorded"),
                ));
            }
            frontier.append_record(record).map_err(wrong)?;
        }
        if frontier.take_unsaved() != stored {
            return Err(damaged(
                path,
                &format!("the hashes up to event {size} are not those of the events"),
            ));
        }
    }
    Ok((frontier.head().map_err(wrong)?, pruned))
}

fn keys(connection: &Connection) -> rusqlite::Result<Vec<KeyRow>> {
    let mut statement = connection.prepare(&KeyRow::sql().select)?;
    let mut rows = statement.query([])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        // One that cannot be read is missed by whoever opens the keys.
        keys.extend(KeyRow::read(&Columns(row)));
    }
    Ok(keys)
}

/// The living process that has a store open on this host. `None` also when the file cannot be
/// read: then nobody can use it either.
#[must_use]
pub fn holder_of(path: &Path) -> Option<u32> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    let sql = "SELECT holder FROM installation";
    let holder: String = connection.query_row(sql, [], |row| row.get(0)).ok()?;
    Holder::is_alive(&holder)
}

/// Makes this process the holder of a store, which is left as it is otherwise: as long as it lives,
/// no broker of this host opens it.
///
/// # Errors
/// [`OpenError::Held`] when a living broker has it; else the file is no store that one could open.
pub fn keep_out(path: &Path) -> Result<(), OpenError> {
    let sqlite = |error| refused(path, error);
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    recognise(path, &connection)?;
    // What lies in its write-ahead log stays there.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(sqlite)?;
    hold(path, &mut connection, false)?;
    connection.close().map_err(|(_, error)| sqlite(error))
}

/// Sets a setting of a store that no broker has open, and takes the name of its last holder out.
///
/// # Errors
/// When it cannot be written.
pub fn mark(path: &Path, name: &str, value: &str) -> Result<(), OpenError> {
    let write = || -> rusqlite::Result<()> {
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.execute(
            "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)",
            params![name, value],
        )?;
        connection.execute("UPDATE installation SET holder = ''", [])?;
        connection.close().map_err(|(_, error)| error)
    };
    write().map_err(|error| refused(path, error))
}

fn damaged(path: &Path, reason: &str) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
