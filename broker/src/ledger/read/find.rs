//! Short ids, found by one scan over the ids of a type (about 20 ms for 100 000). An index over
//! their random bits would cost two more scattered pages in every commit of a credential, half of
//! all that is flushed, for what people do a few times a day.

use ephor_proto::id::{
    CredentialId, DecisionId, EntityId, GrantId, IdQuery, RequestId, TaskId, shortest_unique,
};

use super::{ReadError, Reader};
use ephor_proto::kind::Kind;
use ephor_proto::postgres::short_login;
use ephor_proto::state::credential::CredentialState;

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

/// Fewest characters of a login's name that are looked for.
const MIN_LOGIN_TYPED: usize = 4;

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

/// The same bits of a stored id.
fn tail(id: &[u8]) -> u32 {
    id.last_chunk::<4>()
        .map_or(0, |tail| u32::from_be_bytes(*tail) & 0xf_ffff)
}

/// The ids with these bits, of some that are sorted by them.
fn with_bits<I: BlobId>(sorted: &[[u8; 16]], bits: u32) -> Vec<I> {
    let first = sorted.partition_point(|id| tail(id) < bits);
    let alike = sorted.iter().skip(first).take_while(|id| tail(*id) == bits);
    alike.filter_map(|id| I::from_blob(id).ok()).collect()
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
                let bits = low_bits(suffix);
                self.alike(|other| other == bits)?
            }
            IdQuery::Short { .. } => Vec::new(),
        };
        Ok(candidates
            .into_iter()
            .filter(|id| query.matches(id))
            .collect())
    }

    /// The shortest form of an id that no other of its type in this store shares. The first of a
    /// reader costs a scan, the second a scan and a sort, all later ones next to nothing.
    ///
    /// # Errors
    /// As every read.
    pub fn short<I: ShortId + BlobId>(&self, id: I) -> Result<String, ReadError> {
        let bits = tail(&id.to_bytes());
        let mut tails = self.tails.borrow_mut();
        let others: Vec<I> = match tails.get(I::TABLE) {
            None => {
                tails.insert(I::TABLE, Vec::new());
                self.alike(|other| other == bits)?
            }
            Some(known) if known.is_empty() => {
                let all: Vec<I> = self.alike(|_| true)?;
                let mut all: Vec<[u8; 16]> = all.into_iter().map(EntityId::to_bytes).collect();
                all.sort_unstable_by_key(|id| tail(id));
                let found = with_bits(&all, bits);
                tails.insert(I::TABLE, all);
                found
            }
            Some(known) => with_bits(known, bits),
        };
        Ok(shortest_unique(&others, id))
    }

    /// The logins that a typed name means: the whole role, as people read it
    /// ([`short_login`]), or its beginning or end; more than one when it is too short.
    ///
    /// # Errors
    /// As every read.
    pub fn logins_named(&self, typed: &str) -> Result<Vec<CredentialId>, ReadError> {
        if typed.len() < MIN_LOGIN_TYPED {
            return Ok(Vec::new());
        }
        // What is lent has its name every time, and at every target: the last one of each is meant, and those
        // that are dead only where nothing else is.
        let sql = "SELECT id, state, max(issued_at + CASE state WHEN 'dead' THEN 0 ELSE 100000000000000 END) AS last FROM credential WHERE kind = 'secret' AND item = ?1
            GROUP BY CASE WHEN json_valid(content) THEN json_extract(content, '$.target') END ORDER BY last DESC";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query([typed])?;
        let (mut lent, mut last) = (Vec::new(), None);
        while let Some(row) = rows.next()? {
            let columns = Columns(row);
            let Ok(id) = columns.id(0) else { continue };
            last.get_or_insert(id);
            let state = columns.word::<CredentialState>(1);
            if state.is_ok_and(|state| state != CredentialState::Dead) {
                lent.push(id);
            }
        }
        if last.is_some() {
            lent.extend(last.filter(|_| lent.is_empty()));
            return Ok(lent);
        }
        let sql = "SELECT id, item FROM credential WHERE kind = ?1";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query([Kind::Postgres.as_str()])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let columns = Columns(row);
            let (Ok(id), Ok(name)) = (columns.id(0), columns.string(1)) else {
                continue;
            };
            if name == typed {
                return Ok(vec![id]);
            }
            if name.starts_with(typed) || name.ends_with(typed) || short_login(&name) == typed {
                found.push(id);
            }
        }
        Ok(found)
    }

    fn exact<I: ShortId + BlobId>(&self, id: &[u8; 16]) -> Result<Vec<I>, ReadError> {
        let sql = format!("SELECT id FROM {} WHERE id = ?1", I::TABLE);
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query([id])?;
        let found = rows.next()?.and_then(|row| Columns(row).id(0).ok());
        Ok(found.into_iter().collect())
    }

    /// The ids whose last 20 bits are wanted.
    fn alike<I: ShortId + BlobId>(
        &self,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Vec<I>, ReadError> {
        let sql = format!("SELECT id FROM {}", I::TABLE);
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let columns = Columns(row);
            let alike = columns.blob(0).is_ok_and(|id| wanted(tail(id)));
            if alike && let Ok(id) = columns.id(0) {
                found.push(id);
            }
        }
        Ok(found)
    }
}
