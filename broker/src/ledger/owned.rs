//! The credentials of a task, without an index by task.
//!
//! An index by task costs each issue a page of its own, written and flushed: the tasks that are busy at
//! one time lie far apart in it. So each credential names the one of the same task before it
//! (`credential.older`), and `newest` names the last, of which a page holds those of a hundred tasks.
//! Both are written in the transaction that records the credential; it must never be taken out of its table
//! without being taken out of there.

use ephor_proto::id::TaskId;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params};

/// A condition on `credential`: those of the tasks that an SQL expression or query gives.
macro_rules! owned_by {
    ($tasks:literal) => {
        concat!(
            "number IN (WITH RECURSIVE own (number) AS (SELECT number FROM newest WHERE task IN (",
            $tasks,
            ") UNION ALL SELECT older FROM own CROSS JOIN credential USING (number) WHERE older IS NOT NULL) \
             SELECT number FROM own)"
        )
    };
}
pub(super) use owned_by;

/// The credential that was recorded last on this connection is the newest of its task.
pub(super) fn is_newest(connection: &Connection, task: TaskId) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO newest (task, number) VALUES (?1, last_insert_rowid())";
    let mut statement = connection.prepare_cached(sql)?;
    statement.execute([task.to_bytes()]).map(drop)
}

/// Takes the one with this id and version out, so that those before it are still found. Looks through the
/// table: for what hardly ever happens.
pub(super) fn take_out(connection: &Connection, key: &(Value, Value)) -> rusqlite::Result<()> {
    let sql = "SELECT number, older FROM credential WHERE id IS ?1 AND version IS ?2";
    let found = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (number, older): (i64, Option<i64>) =
        connection.query_row(sql, params![key.0, key.1], found)?;
    let sql = "UPDATE credential SET older = ?2 WHERE older = ?1";
    connection.execute(sql, params![number, older])?;
    match older {
        Some(older) => connection.execute(
            "UPDATE newest SET number = ?2 WHERE number = ?1",
            [number, older],
        ),
        None => connection.execute("DELETE FROM newest WHERE number = ?1", [number]),
    }
    .map(drop)
}
