//! The Merkle tree over all leaves (RFC 6962 §2.1), kept so that the root of any earlier size is
//! at hand: receipts refer to the head of their own time.

use ephor_proto::log::node_hash;

/// The hashes of all complete subtrees, by height.
#[derive(Debug, Default)]
pub(super) struct History {
    /// `heights[h][n]` is over leaves `n * 2^h` to `(n + 1) * 2^h`.
    heights: Vec<Vec<[u8; 32]>>,
}

impl History {
    /// Appends a leaf's hash and gives its index.
    pub(super) fn push(&mut self, leaf: [u8; 32]) -> u64 {
        let index = self.size();
        let mut hash = leaf;
        for height in 0.. {
            if self.heights.len() == height {
                self.heights.push(Vec::new());
            }
            let Some(row) = self.heights.get_mut(height) else {
                break;
            };
            let left = row.last().copied();
            row.push(hash);
            match left {
                Some(left) if row.len() % 2 == 0 => hash = node_hash(left, hash),
                Some(_) | None => break,
            }
        }
        index
    }

    /// Number of leaves.
    pub(super) fn size(&self) -> u64 {
        self.subtrees(0).len() as u64
    }

    /// The hash of a leaf.
    pub(super) fn leaf(&self, index: u64) -> Option<[u8; 32]> {
        self.subtrees(0).get(usize::try_from(index).ok()?).copied()
    }

    /// All complete subtrees of a height.
    pub(super) fn subtrees(&self, height: usize) -> &[[u8; 32]] {
        self.heights.get(height).map_or(&[], Vec::as_slice)
    }

    /// The root over the first `size` leaves; `None` when there are fewer.
    pub(super) fn root(&self, size: u64) -> Option<[u8; 32]> {
        if size == 0 {
            return Some(ephor_crypto::digest::sha256(b""));
        }
        if size > self.size() {
            return None;
        }
        // The set bits of `size`, lowest first, are its complete subtrees from the right.
        let heights = (0..u64::BITS).filter(|height| size >> height & 1 == 1);
        let subtree = |height: u32| {
            let number = (size >> height) - 1;
            self.subtrees(height as usize)
                .get(usize::try_from(number).ok()?)
                .copied()
        };
        heights
            .map(subtree)
            .try_fold(None, |right: Option<[u8; 32]>, left| {
                let left = left?;
                Some(Some(right.map_or(left, |right| node_hash(left, right))))
            })?
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use ephor_proto::log::leaf_hash;

    /// RFC 6962 §2.1 by its definition.
    fn by_definition(leaves: &[[u8; 32]]) -> [u8; 32] {
        match leaves {
            [leaf] => *leaf,
            leaves => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node_hash(by_definition(left), by_definition(right))
            }
        }
    }

    #[test]
    fn every_root_of_every_size_is_that_of_the_definition() {
        let leaves: Vec<[u8; 32]> = (0u32..70).map(|n| leaf_hash(&n.to_be_bytes())).collect();
        let mut history = History::default();
        assert_eq!(history.root(1), None);
        for (n, leaf) in leaves.iter().enumerate() {
            assert_eq!(history.push(*leaf), n as u64);
            for size in 1..=n + 1 {
                assert_eq!(
                    history.root(size as u64).unwrap(),
                    by_definition(&leaves[..size]),
                    "{size} of {n}"
                );
            }
            assert_eq!(history.root(n as u64 + 2), None);
        }
        assert_eq!(history.leaf(69), Some(leaves[69]));
        assert_eq!(history.leaf(70), None);
    }
}
