//! The Merkle tree (RFC 6962): its right edge in memory for appending, all of it in the store.
//!
//! `hash` keeps, for each leaf, the stored hashes that became complete with it; nothing there is
//! ever changed.

use rusqlite::Connection;
use tlog_tiles::tlog::{self, Hash, HashReader};

/// Size and root of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Leaves.
    pub size: u64,
    /// RFC 6962 tree hash of them.
    pub root: [u8; 32],
}

/// The roots of the full subtrees along the right edge: all that appending needs.
pub(super) struct Frontier {
    size: u64,
    /// Stored index and hash, from left to right.
    peaks: Vec<(u64, Hash)>,
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
        }
    }

    /// Appends a leaf and returns the hashes to store with it, one after the other.
    pub(super) fn append(&mut self, leaf: &[u8]) -> Result<Vec<u8>, tlog::Error> {
        self.append_record(tlog::record_hash(leaf))
    }

    /// Appends a leaf of which only the hash is known.
    pub(super) fn append_record(&mut self, record: Hash) -> Result<Vec<u8>, tlog::Error> {
        let hashes = tlog::stored_hashes_for_record_hash(self.size, record, self)?;
        let first = tlog::stored_hash_index(0, self.size);
        // Each hash after the first joined the rightmost peak.
        self.peaks
            .truncate((self.peaks.len() + 1).saturating_sub(hashes.len()));
        if let Some(last) = hashes.last() {
            self.peaks.push((first + hashes.len() as u64 - 1, *last));
        }
        self.size += 1;
        Ok(hashes.iter().flat_map(|hash| hash.0).collect())
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
        .prepare_cached("SELECT coalesce(max(leaf) + 1, 0) FROM hash")?
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
        let mut statement = self
            .0
            .prepare_cached("SELECT substr(hashes, ?2, 32) FROM hash WHERE leaf = ?1")
            .map_err(failed)?;
        let mut read = |index: &u64| {
            let (level, n) = tlog::split_stored_hash_index(*index);
            // It was stored with the last leaf below it.
            let leaf = ((n + 1) << level) - 1;
            statement
                .query_row((leaf as i64, i64::from(level) * 32 + 1), |row| {
                    row.get::<_, [u8; 32]>(0)
                })
                .map(Hash)
                .map_err(failed)
        };
        indexes.iter().map(&mut read).collect()
    }
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
}
