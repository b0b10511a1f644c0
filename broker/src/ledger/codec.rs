//! Rows to columns and back. Nothing here panics on a stored value: what cannot be read is
//! named by column and reason, so that it can be set aside.

use ephor_proto::id::{
    CredentialId, DecisionId, EventId, GrantId, InstanceId, JoinTokenId, RequestId, TaskId,
};
use ephor_proto::time::UnixMillis;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{CachedStatement, Connection};

use super::batch::Key;
use super::row::Row;

/// A column that does not hold what this version expects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {reason}")]
pub(super) struct BadColumn {
    column: String,
    reason: String,
}

/// The statements of one table; `?1…` are its columns in order.
pub(super) struct Sql {
    /// Adds a row, fails when its key is taken.
    pub(super) insert: String,
    /// Replaces the row of the previous version, or changes nothing.
    pub(super) update: String,
    /// `SELECT columns FROM table`, to be followed by a condition.
    pub(super) select: String,
    /// The row of a key.
    pub(super) by_key: String,
}

impl Sql {
    /// The key is the first column, the version the second.
    pub(super) fn of(table: &str, columns: &[&str]) -> Self {
        let list = columns.join(", ");
        let places: Vec<String> = (1..=columns.len()).map(|n| format!("?{n}")).collect();
        let sets: Vec<String> = columns
            .iter()
            .zip(&places)
            .skip(1)
            .map(|(column, place)| format!("{column} = {place}"))
            .collect();
        let key = columns.first().copied().unwrap_or("id");
        Self {
            insert: format!(
                "INSERT INTO {table} ({list}) VALUES ({})",
                places.join(", ")
            ),
            update: format!(
                "UPDATE {table} SET {} WHERE {key} = ?1 AND version = ?2 - 1",
                sets.join(", ")
            ),
            select: format!("SELECT {list} FROM {table}"),
            by_key: format!("SELECT {list} FROM {table} WHERE {key} = ?1"),
        }
    }
}

/// A row type with a table of its own.
pub(super) trait Stored: Sized + Clone {
    /// Table name, for messages and the quarantine.
    const TABLE: &'static str;

    /// Its statements.
    fn sql() -> &'static Sql;

    /// Binds all columns in order and runs the statement.
    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize>;

    /// Reads all columns in order.
    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn>;

    /// This type of row, if it is one.
    fn of(row: &Row) -> Option<&Self>;

    /// What it is stored under.
    fn key(&self) -> Key;

    /// Its version; 1 for what has none.
    fn version(&self) -> u64;
}

/// Writes a versioned row: an insert for version 1, else a replacement of the version before.
/// False when the stored version is another.
pub(super) fn write<T: Stored>(
    connection: &Connection,
    row: &T,
    version: u64,
) -> rusqlite::Result<bool> {
    let sql = T::sql();
    if version > 1 {
        return row
            .bind(&mut connection.prepare_cached(&sql.update)?)
            .map(|n| n == 1);
    }
    match row.bind(&mut connection.prepare_cached(&sql.insert)?) {
        Ok(_) => Ok(true),
        Err(error) if is_taken(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an insert failed because its key is taken.
pub(super) fn is_taken(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
    error.sqlite_error().is_some_and(|error| {
        [SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE].contains(&error.extended_code)
    })
}

/// A number as SQLite stores it; beyond 2^63 it saturates.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A time as SQLite stores it.
pub(super) fn millis(time: UnixMillis) -> i64 {
    int(time.as_millis())
}

/// A time that may be absent.
pub(super) fn opt_millis(time: Option<UnixMillis>) -> Option<i64> {
    time.map(millis)
}

/// An id that is stored as its 16 bytes.
pub(super) trait BlobId: Sized {
    /// From stored bytes.
    fn from_blob(bytes: &[u8]) -> Result<Self, ephor_proto::id::BadId>;
}

macro_rules! blob_ids {
    ($($id:ty),*) => {$(
        impl BlobId for $id {
            fn from_blob(bytes: &[u8]) -> Result<Self, ephor_proto::id::BadId> {
                Self::from_slice(bytes)
            }
        }
    )*};
}
blob_ids!(
    TaskId,
    RequestId,
    DecisionId,
    GrantId,
    CredentialId,
    EventId,
    JoinTokenId,
    InstanceId
);

/// Typed reading of one result row.
pub(super) struct Columns<'row>(pub(super) &'row rusqlite::Row<'row>);

impl<'row> Columns<'row> {
    /// What is wrong with a column.
    pub(super) fn bad(&self, at: usize, reason: impl std::fmt::Display) -> BadColumn {
        let name = self.0.as_ref().column_name(at).map(str::to_owned);
        BadColumn {
            column: name.unwrap_or_else(|_| at.to_string()),
            reason: reason.to_string(),
        }
    }

    fn raw(&self, at: usize) -> Result<ValueRef<'row>, BadColumn> {
        self.0.get_ref(at).map_err(|error| self.bad(at, error))
    }

    fn is_null(&self, at: usize) -> Result<bool, BadColumn> {
        Ok(matches!(self.raw(at)?, ValueRef::Null))
    }

    /// Text.
    pub(super) fn str(&self, at: usize) -> Result<&'row str, BadColumn> {
        self.raw(at)?.as_str().map_err(|error| self.bad(at, error))
    }

    /// Text of its own.
    pub(super) fn string(&self, at: usize) -> Result<String, BadColumn> {
        self.str(at).map(str::to_owned)
    }

    /// Text that may be absent.
    pub(super) fn opt_string(&self, at: usize) -> Result<Option<String>, BadColumn> {
        self.optional(at, |columns| columns.string(at))
    }

    /// Bytes.
    pub(super) fn blob(&self, at: usize) -> Result<&'row [u8], BadColumn> {
        self.raw(at)?.as_blob().map_err(|error| self.bad(at, error))
    }

    /// Exactly 32 bytes.
    pub(super) fn hash(&self, at: usize) -> Result<[u8; 32], BadColumn> {
        let blob = self.blob(at)?;
        blob.try_into()
            .map_err(|_| self.bad(at, format!("{} bytes, not 32", blob.len())))
    }

    /// The same, or absent.
    pub(super) fn opt_hash(&self, at: usize) -> Result<Option<[u8; 32]>, BadColumn> {
        self.optional(at, |columns| columns.hash(at))
    }

    /// A number that is not negative and fits.
    pub(super) fn number<N: TryFrom<i64>>(&self, at: usize) -> Result<N, BadColumn> {
        let value = self
            .raw(at)?
            .as_i64()
            .map_err(|error| self.bad(at, error))?;
        N::try_from(value).map_err(|_| self.bad(at, format!("{value} is out of range")))
    }

    /// A flag.
    pub(super) fn flag(&self, at: usize) -> Result<bool, BadColumn> {
        self.number::<u8>(at).map(|value| value != 0)
    }

    /// A time.
    pub(super) fn time(&self, at: usize) -> Result<UnixMillis, BadColumn> {
        self.number::<u64>(at).map(UnixMillis::from_millis)
    }

    /// A time that may be absent.
    pub(super) fn opt_time(&self, at: usize) -> Result<Option<UnixMillis>, BadColumn> {
        self.optional(at, |columns| columns.time(at))
    }

    /// An id.
    pub(super) fn id<I: BlobId>(&self, at: usize) -> Result<I, BadColumn> {
        I::from_blob(self.blob(at)?).map_err(|error| self.bad(at, error))
    }

    /// An id that may be absent.
    pub(super) fn opt_id<I: BlobId>(&self, at: usize) -> Result<Option<I>, BadColumn> {
        self.optional(at, |columns| columns.id(at))
    }

    /// A word of a closed set.
    pub(super) fn word<T>(&self, at: usize) -> Result<T, BadColumn>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.str(at)?.parse().map_err(|error| self.bad(at, error))
    }

    /// A word of a closed set that may be absent.
    pub(super) fn opt_word<T>(&self, at: usize) -> Result<Option<T>, BadColumn>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.optional(at, |columns| columns.word(at))
    }

    /// A state whose word this version does not know.
    pub(super) fn unknown(&self, at: usize, word: &str) -> BadColumn {
        self.bad(at, format!("`{word}` is no state of this version"))
    }

    fn optional<T>(
        &self,
        at: usize,
        read: impl FnOnce(&Self) -> Result<T, BadColumn>,
    ) -> Result<Option<T>, BadColumn> {
        if self.is_null(at)? {
            Ok(None)
        } else {
            read(self).map(Some)
        }
    }

    /// The whole row as JSON, whatever it holds; blobs in hex.
    pub(super) fn dump(&self) -> String {
        let statement = self.0.as_ref();
        let fields = (0..statement.column_count()).map(|at| {
            let name = statement.column_name(at).unwrap_or("?").to_owned();
            let value = match self.0.get_ref(at).map(Value::try_from) {
                Ok(Ok(Value::Integer(number))) => serde_json::Value::from(number),
                Ok(Ok(Value::Real(number))) => serde_json::Value::from(number.to_string()),
                Ok(Ok(Value::Text(text))) => serde_json::Value::from(text),
                Ok(Ok(Value::Blob(bytes))) => {
                    serde_json::Value::from(ephor_crypto::digest::hex(&bytes))
                }
                Ok(Ok(Value::Null) | Err(_)) | Err(_) => serde_json::Value::Null,
            };
            (name, value)
        });
        serde_json::Value::Object(fields.collect()).to_string()
    }
}
