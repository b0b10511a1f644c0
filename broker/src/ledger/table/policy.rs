//! Versions of the policy. Written once each; their chain is what an auditor follows.

use std::sync::LazyLock;

use rusqlite::{CachedStatement, params};

use crate::ledger::batch::Key;
use crate::ledger::codec::{BadColumn, Columns, Sql, Stored, int, millis};
use crate::ledger::row::{PolicyRow, Row};

// The text comes last: whoever asks for the version alone reads no further.
static POLICY: LazyLock<Sql> = LazyLock::new(|| {
    Sql::of(
        "policy",
        &[
            "number",
            "version",
            "previous",
            "applied_at",
            "applied_by",
            "directory",
            "files",
        ],
    )
});

impl Stored for PolicyRow {
    const TABLE: &'static str = "policy";

    fn sql() -> &'static Sql {
        &POLICY
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        statement.execute(params![
            int(self.number),
            self.version,
            self.previous,
            millis(self.applied_at),
            self.applied_by,
            self.directory,
            self.files,
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        Ok(Self {
            number: columns.number(0)?,
            version: columns.string(1)?,
            previous: columns.opt_string(2)?,
            applied_at: columns.time(3)?,
            applied_by: columns.string(4)?,
            directory: columns.opt_string(5)?,
            files: columns.string(6)?,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Policy(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Policy(self.number)
    }

    fn version(&self) -> u64 {
        1
    }
}
