//! Short ids. The store keeps an index of the last three bytes of the ids that people type most;
//! the others are found by a scan.

use ephor_proto::id::{
    CredentialId, DecisionId, EntityId, GrantId, IdQuery, RequestId, TaskId, shortest_unique,
};

use super::{ReadError, Reader, capped};
use crate::ledger::codec::{BlobId, Columns};

/// An id that is found by its short form.
pub trait ShortId: EntityId + sealed::Table {}

impl<I: EntityId + sealed::Table> ShortId for I {}

mod sealed {
    /// Where ids of a type are stored.
    pub trait Table {
        /// Table name.
        const TABLE: &'static str;
    }
}

macro_rules! tables {
    ($($id:ty => $table:literal),*) => {$(
        impl sealed::Table for $id {
            const TABLE: &'static str = $table;
        }
    )*};
}
tables!(TaskId => "task", RequestId => "request", DecisionId => "decision", GrantId => "grants", CredentialId => "credential");

const ALPHABET: &str = "0123456789abcdefghjkmnpqrstvwxyz";

/// The last three bytes that end in these characters: one, or 16 when only 20 bits are known.
fn tails(suffix: &str) -> Vec<[u8; 3]> {
    let value = suffix.chars().filter_map(|c| ALPHABET.find(c)).fold(0u128, |value, digit| {
        (value << 5) | digit as u128
    });
    let low = (value & 0xff_ffff) as u32;
    let tail = |value: u32| {
        let [_, a, b, c] = value.to_be_bytes();
        [a, b, c]
    };
    if suffix.len() > 4 {
        return vec![tail(low)];
    }
    (0..16).map(|high| tail((high << 20) | (low & 0xf_ffff))).collect()
}

#[allow(private_bounds)]
impl Reader {
    /// The ids of one type that a typed id names; more than one when it is too short.
    ///
    /// # Errors
    /// As every read.
    pub fn find<I: ShortId + BlobId>(&self, query: &IdQuery) -> Result<Vec<I>, ReadError> {
        let candidates = match query {
            IdQuery::Full(uuid) => {
                self.ids::<I>(&format!("SELECT id FROM {} WHERE id = ?1", I::TABLE), uuid.as_bytes())?
            }
            IdQuery::Short { letter, suffix } if *letter == I::LETTER => self.with_tails(suffix)?,
            IdQuery::Short { .. } => Vec::new(),
        };
        Ok(candidates.into_iter().filter(|id| query.matches(id)).collect())
    }

    /// The shortest form of an id that no other of its type in this store shares.
    ///
    /// # Errors
    /// As every read.
    pub fn short<I: ShortId + BlobId>(&self, id: I) -> Result<String, ReadError> {
        let own = id.short_with(4);
        let suffix = own.rsplit('-').next().unwrap_or_default();
        let others: Vec<I> = self.with_tails(suffix)?;
        Ok(shortest_unique(&others, id))
    }

    fn with_tails<I: ShortId + BlobId>(&self, suffix: &str) -> Result<Vec<I>, ReadError> {
        let sql = format!("SELECT id FROM {} WHERE substr(id, 14, 3) = ?1", I::TABLE);
        let mut found = Vec::new();
        for tail in tails(suffix) {
            found.extend(self.ids::<I>(&sql, &tail)?);
        }
        Ok(found)
    }

    fn ids<I: BlobId>(&self, sql: &str, bytes: &[u8]) -> Result<Vec<I>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(&format!("{sql} LIMIT ?2"))?;
        let mut rows = statement.query(rusqlite::params![bytes, capped(usize::MAX)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            if let Ok(id) = Columns(row).id(0) {
                found.push(id);
            }
        }
        Ok(found)
    }
}
