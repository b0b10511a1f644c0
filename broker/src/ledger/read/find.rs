//! Short ids, found by one scan over the ids of a type (about 20 ms for 100 000). An index over
//! their random bits would cost two more scattered pages in every commit of a credential, half of
//! all that is flushed, for what people do a few times a day.

use std::collections::{HashMap, HashSet};

use ephor_proto::id::{
    CredentialId, DecisionId, EntityId, GrantId, IdQuery, RequestId, TaskId, shortest_unique,
};

use super::{ReadError, Reader};
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

/// The 20 bits that the last four characters of a short form stand for.
fn low_bits(short: &str) -> u32 {
    let at = short.len().saturating_sub(4);
    let digits = short
        .get(at..)
        .unwrap_or_default()
        .chars()
        .filter_map(|c| ALPHABET.find(c));
    digits.fold(0, |value, digit| (value << 5) | digit as u32)
}

#[allow(private_bounds)]
impl Reader {
    /// The ids of one type that a typed id names; more than one when it is too short.
    ///
    /// # Errors
    /// As every read.
    pub fn find<I: ShortId + BlobId>(&self, query: &IdQuery) -> Result<Vec<I>, ReadError> {
        let candidates = match query {
            IdQuery::Full(uuid) => self.exact(uuid.as_bytes())?,
            IdQuery::Short { letter, suffix } if *letter == I::LETTER => {
                self.alike(&HashSet::from([low_bits(suffix)]))?
            }
            IdQuery::Short { .. } => Vec::new(),
        };
        Ok(candidates
            .into_iter()
            .filter(|id| query.matches(id))
            .collect())
    }

    /// The shortest form of an id that no other of its type in this store shares. For several
    /// ids, use [`Reader::shorts`].
    ///
    /// # Errors
    /// As every read.
    pub fn short<I: ShortId + BlobId>(&self, id: I) -> Result<String, ReadError> {
        Ok(self.shorts(&[id])?.pop().unwrap_or_else(|| id.to_string()))
    }

    /// The same for several ids, in their order, with one look at the store.
    ///
    /// # Errors
    /// As every read.
    pub fn shorts<I: ShortId + BlobId>(&self, ids: &[I]) -> Result<Vec<String>, ReadError> {
        let bits = |id: &I| low_bits(&id.short_with(4));
        let mut alike: HashMap<u32, Vec<I>> = HashMap::new();
        for other in self.alike::<I>(&ids.iter().map(bits).collect())? {
            alike.entry(bits(&other)).or_default().push(other);
        }
        let none = Vec::new();
        let others = |id: &I| alike.get(&bits(id)).unwrap_or(&none);
        Ok(ids
            .iter()
            .map(|id| shortest_unique(others(id), *id))
            .collect())
    }

    fn exact<I: ShortId + BlobId>(&self, id: &[u8; 16]) -> Result<Vec<I>, ReadError> {
        let sql = format!("SELECT id FROM {} WHERE id = ?1", I::TABLE);
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query([id])?;
        let found = rows.next()?.and_then(|row| Columns(row).id(0).ok());
        Ok(found.into_iter().collect())
    }

    /// The ids whose last 20 bits are among these.
    fn alike<I: ShortId + BlobId>(&self, bits: &HashSet<u32>) -> Result<Vec<I>, ReadError> {
        let sql = format!("SELECT id FROM {}", I::TABLE);
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let columns = Columns(row);
            let tail = columns.blob(0).ok().and_then(|id| id.last_chunk::<4>());
            let alike =
                tail.is_some_and(|tail| bits.contains(&(u32::from_be_bytes(*tail) & 0xf_ffff)));
            if alike && let Ok(id) = columns.id(0) {
                found.push(id);
            }
        }
        Ok(found)
    }
}
