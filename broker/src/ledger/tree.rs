//! The Merkle tree (RFC 6962): its right edge in memory for appending, all of it in the store.
//!
//! `hash` keeps the stored hashes in the order in which they became complete, those of a commit in one
//! row, or in some if there are many; nothing there is ever changed.

use rusqlite::{Connection, params};
use tlog_tiles::tlog::{self, Hash, HashReader};

use super::codec::int;
use crate::limits;

/// Size and root of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Leaves.
    pub size: u64,
    /// RFC 6962 tree hash of them.
    pub root: [u8; 32],
}

/// The roots of the full subtrees along the right edge: all that appending needs.
#[derive(Clone)]
pub(super) struct Frontier {
    size: u64,
    /// Stored index and hash, from left to right.
    peaks: Vec<(u64, Hash)>,
    /// What became complete and is not in the store yet.
    unsaved: Vec<u8>,
}

impl Frontier {
    /// Reads the right edge of the stored tree.
    pub(super) fn load(connection: &Connection) -> Result<Self, tlog::Error> {
        let size = stored_size(connection).map_err(failed)?;
        if size == 0 {
            return Ok(Self::empty());
        }
        let indexes = tlog::sub_tree_index(0, size, Vec::new());
        let hashes = StoredHashes(connection).read_hashes(&indexes)?;
        Ok(Self {
            size,
            peaks: indexes.into_iter().zip(hashes).collect(),
            unsaved: Vec::new(),
        })
    }

    /// Leaves appended so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The edge of an empty tree.
    pub(super) fn empty() -> Self {
        Self {
            size: 0,
            peaks: Vec::new(),
            unsaved: Vec::new(),
        }
    }

    /// Appends a leaf.
    pub(super) fn append(&mut self, leaf: &[u8]) -> Result<(), tlog::Error> {
        self.append_record(tlog::record_hash(leaf))
    }

    /// Appends a leaf of which only the hash is known.
    pub(super) fn append_record(&mut self, record: Hash) -> Result<(), tlog::Error> {
        let hashes = tlog::stored_hashes_for_record_hash(self.size, record, self)?;
        let first = tlog::stored_hash_index(0, self.size);
        // Each hash after the first joined the rightmost peak.
        self.peaks
            .truncate((self.peaks.len() + 1).saturating_sub(hashes.len()));
        if let Some(last) = hashes.last() {
            self.peaks.push((first + hashes.len() as u64 - 1, *last));
        }
        self.size += 1;
        self.unsaved.extend(hashes.iter().flat_map(|hash| hash.0));
        Ok(())
    }

    /// What became complete since this was last asked.
    pub(super) fn take_unsaved(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unsaved)
    }

    /// Whether so much became complete that it should be saved before the commit.
    pub(super) fn is_long(&self) -> bool {
        self.unsaved.len() >= limits::LEDGER_HASHES_BYTES
    }

    /// Saves what became complete.
    pub(super) fn save(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        connection
            .prepare_cached("INSERT INTO hash (size, hashes) VALUES (?1, ?2)")?
            .execute(params![int(self.size), self.unsaved])?;
        self.unsaved.clear();
        Ok(())
    }

    /// Size and root now.
    pub(super) fn head(&self) -> Result<Head, tlog::Error> {
        Ok(Head {
            size: self.size,
            root: tlog::tree_hash(self.size, self)?.0,
        })
    }
}

impl HashReader for Frontier {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog::Error> {
        let find = |index| {
            self.peaks
                .iter()
                .find(|(at, _)| *at == index)
                .map(|(_, hash)| *hash)
        };
        indexes
            .iter()
            .map(|index| find(*index).ok_or(tlog::Error::IndexesNotInTree))
            .collect()
    }
}

fn stored_size(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT coalesce(max(size), 0) FROM hash")?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(|size| u64::try_from(size).unwrap_or(0))
}

fn failed(error: rusqlite::Error) -> tlog::Error {
    tlog::Error::InvalidInput(error.to_string())
}

/// The stored hashes, for proofs and tiles.
pub(super) struct StoredHashes<'c>(pub(super) &'c Connection);

impl HashReader for StoredHashes<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog::Error> {
        let sql = "SELECT size, hashes FROM hash WHERE size > ?1 ORDER BY size LIMIT 1";
        let mut statement = self.0.prepare_cached(sql).map_err(failed)?;
        let mut read = |index: &u64| {
            let (level, n) = tlog::split_stored_hash_index(*index);
            // It was stored with the last leaf below it.
            let leaf = ((n + 1) << level) - 1;
            let hash = statement.query_row([int(leaf)], |row| {
                let size = u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
                let hashes = row.get_ref(1)?.as_blob()?;
                Ok(stored_in(hashes, size, *index))
            });
            hash.map_err(failed)?.ok_or(tlog::Error::IndexesNotInTree)
        };
        indexes.iter().map(&mut read).collect()
    }
}

/// The hash of an index in the row that was saved when the tree had `size` leaves.
pub(super) fn stored_in(hashes: &[u8], size: u64, index: u64) -> Option<Hash> {
    let behind = tlog::stored_hash_count(size).checked_sub(index)?;
    let behind = usize::try_from(behind).ok()?.checked_mul(32)?;
    let at = hashes.len().checked_sub(behind)?;
    hashes
        .get(at..)?
        .first_chunk::<32>()
        .map(|hash| Hash(*hash))
}

/// RFC 6962 §2.1, word for word; slow on purpose.
#[cfg(test)]
pub(super) fn naive_root(leaves: &[Vec<u8>]) -> Hash {
    match leaves {
        [] => tlog::EMPTY_HASH,
        [leaf] => tlog::record_hash(leaf),
        _ => {
            let half = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(half);
            tlog::node_hash(naive_root(left), naive_root(right))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_gives_the_root_of_rfc_6962_at_every_size() {
        let mut frontier = Frontier::empty();
        let mut leaves = Vec::new();
        for n in 0..130u32 {
            assert_eq!(frontier.head().unwrap().root, naive_root(&leaves).0, "{n}");
            leaves.push(n.to_be_bytes().to_vec());
            frontier.append(&n.to_be_bytes()).unwrap();
        }
        assert_eq!(frontier.size(), 130);
        assert!(frontier.peaks.len() <= 8);
    }

    #[test]
    fn what_is_saved_in_rows_of_any_length_is_found_again() {
        let mut store = Connection::open_in_memory().unwrap();
        super::super::schema::migrate(&mut store, 0).unwrap();
        let (mut frontier, mut leaves) = (Frontier::empty(), Vec::new());
        for (commit, events) in [1, 2, 3, 700, 1, 64, 5].into_iter().enumerate() {
            for _ in 0..events {
                leaves.push(leaves.len().to_be_bytes().to_vec());
                frontier.append(leaves.last().unwrap()).unwrap();
                if frontier.is_long() {
                    frontier.save(&store).unwrap();
                }
            }
            frontier.save(&store).unwrap();
            frontier.save(&store).unwrap();
            let size = frontier.size();
            let root = naive_root(&leaves).0;
            assert_eq!(Frontier::load(&store).unwrap().size(), size, "{commit}");
            let loaded = Frontier::load(&store).unwrap().head().unwrap();
            assert_eq!((loaded.root, loaded.size), (root, leaves.len() as u64));
            let all: Vec<u64> = (0..tlog::stored_hash_count(size)).collect();
            for (index, hash) in all
                .iter()
                .zip(StoredHashes(&store).read_hashes(&all).unwrap())
            {
                let (level, n) = tlog::split_stored_hash_index(*index);
                let below = n << level..(n + 1) << level;
                let below = &leaves[below.start as usize..below.end as usize];
                assert_eq!(hash, naive_root(below), "{index}");
            }
            assert!(
                StoredHashes(&store)
                    .read_hashes(&[all.len() as u64])
                    .is_err()
            );
        }
        let rows = |least: i64| -> i64 {
            let sql = "SELECT count(*) FROM hash WHERE length(hashes) >= ?1";
            store.query_row(sql, [least], |row| row.get(0)).unwrap()
        };
        assert_eq!((rows(0), rows(limits::LEDGER_HASHES_BYTES as i64)), (9, 2));
    }
}
