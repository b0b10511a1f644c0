//! The log as outsiders see it: signed checkpoints, proofs, tiles and receipts.
//!
//! A checkpoint is signed on demand and only from what a reader finds committed; Ed25519 is
//! deterministic (RFC 8032 §5.1.6), so signing one twice gives the same note.

use std::sync::Arc;

use ephor_crypto::ed25519::LogKey;
use ephor_proto::id::TaskId;
use ephor_proto::log::{
    Checkpoint, Receipt, SignedNote, TILE_WIDTH, VerifierKey, bundle_entry, bundle_path, tile_path,
};
use ephor_proto::time::UnixMillis;
use tlog_tiles::tlog::{self, HashReader as _};

use super::read::{ReadError, Reader};
use super::tree::{Head, StoredHashes};

/// The log's name and the keys it signs with.
pub struct Signer {
    /// Origin line, which is also the keys' name.
    pub origin: String,
    /// The key.
    pub key: Arc<LogKey>,
    /// Keys that sign beside it: who knows only the one before it, or only the one after it, can
    /// verify all the same.
    pub beside: Vec<Arc<LogKey>>,
}

impl Signer {
    /// The verifier key to hand to outsiders.
    ///
    /// # Errors
    /// When the origin cannot be a key's name.
    pub fn verifier_key(&self) -> Result<VerifierKey, ReadError> {
        self.verifier_key_of(&self.key)
    }

    fn verifier_key_of(&self, key: &LogKey) -> Result<VerifierKey, ReadError> {
        VerifierKey::new(&self.origin, key.public()).map_err(|error| tree(&error))
    }

    fn sign(&self, head: Head) -> Result<SignedNote, ReadError> {
        let checkpoint = Checkpoint::new(&self.origin, head.size, head.root);
        let text = checkpoint.map_err(|error| tree(&error))?.to_string();
        crate::crash_point!("prove.before_signature");
        let signature = self.key.sign(text.as_bytes());
        crate::crash_point!("prove.after_signature");
        let mut note = SignedNote::new(text, &self.verifier_key()?, signature);
        for key in &self.beside {
            let signature = key.sign(note.text.as_bytes());
            note.add(&self.verifier_key_of(key)?, signature);
        }
        Ok(note)
    }
}

/// The signed checkpoint of a snapshot.
///
/// # Errors
/// When the store cannot be read or the origin cannot be signed for.
pub fn signed_checkpoint(reader: &Reader, signer: &Signer) -> Result<SignedNote, ReadError> {
    signer.sign(reader.head()?)
}

/// The signed checkpoint of a head that was committed.
///
/// # Errors
/// When the origin cannot be signed for.
pub fn signed_checkpoint_of(head: Head, signer: &Signer) -> Result<SignedNote, ReadError> {
    signer.sign(head)
}

/// The receipt of a task: its leaf, and a proof that the signed head contains it. `None` when it
/// has none yet, or none in the tree yet.
///
/// # Errors
/// As every read.
pub fn receipt(
    reader: &Reader,
    signer: &Signer,
    task: TaskId,
) -> Result<Option<Receipt>, ReadError> {
    let Some(index) = reader.receipt_leaf(task)? else {
        return Ok(None);
    };
    let Some(leaf) = reader.event(index)? else {
        return Ok(None);
    };
    let head = reader.head()?;
    let proof = inclusion(reader, index, head.size)?;
    Ok(Some(Receipt::new(
        leaf.json,
        index,
        &proof,
        &signer.sign(head)?,
    )))
}

/// The inclusion proof of a leaf in the tree of the first `size` leaves (RFC 6962 §2.1.1).
///
/// # Errors
/// When there is no such leaf or tree.
pub fn inclusion(reader: &Reader, index: u64, size: u64) -> Result<Vec<[u8; 32]>, ReadError> {
    within(reader, size)?;
    let proof = tlog::prove_record(size, index, &StoredHashes(reader.connection()?));
    proof.map(bytes).map_err(|error| tree(&error))
}

/// The proof that the tree of `old` leaves is a prefix of that of `size` (RFC 6962 §2.1.2).
///
/// # Errors
/// When there are no such trees.
pub fn consistency(reader: &Reader, old: u64, size: u64) -> Result<Vec<[u8; 32]>, ReadError> {
    within(reader, size)?;
    let proof = tlog::prove_tree(size, old, &StoredHashes(reader.connection()?));
    proof.map(bytes).map_err(|error| tree(&error))
}

/// The root of the first `size` leaves; `None` when there are fewer. An agent's checkpoint that
/// differs from it shows that this store went back in time.
///
/// # Errors
/// As every read.
pub fn root_at(reader: &Reader, size: u64) -> Result<Option<[u8; 32]>, ReadError> {
    if size > reader.head()?.size {
        return Ok(None);
    }
    let root = tlog::tree_hash(size, &StoredHashes(reader.connection()?));
    root.map(|root| Some(root.0)).map_err(|error| tree(&error))
}

/// What there is at a path of c2sp.org/tlog-tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The bytes.
    Bytes(Vec<u8>),
    /// Entries that lost their text at this time; their hashes are in `tile/0`.
    Pruned(Option<UnixMillis>),
}

/// The bytes at a path of c2sp.org/tlog-tiles (`tile/0/x001/234`, `tile/entries/000.p/7`), or
/// `None` when there is no such tile yet or the path is not in its one form.
///
/// # Errors
/// As every read.
pub fn tile(reader: &Reader, path: &str) -> Result<Option<Found>, ReadError> {
    let Some(wanted) = Tile::parse(path) else {
        return Ok(None);
    };
    let size = reader.head()?.size;
    let Some(range) = wanted
        .range()
        .filter(|range| wanted.is_complete(range, size))
    else {
        return Ok(None);
    };
    crate::crash_point!("prove.tile");
    match wanted.level {
        Some(level) => {
            let indexes: Vec<u64> = range
                .map(|n| tlog::stored_hash_index(8 * level, n))
                .collect();
            let hashes = StoredHashes(reader.connection()?).read_hashes(&indexes);
            let hashes = hashes.map_err(|error| tree(&error))?;
            let bytes = hashes.into_iter().flat_map(|hash| hash.0).collect();
            Ok(Some(Found::Bytes(bytes)))
        }
        None => {
            let pruned = reader.pruned()?;
            if range.start < pruned.leaves {
                return Ok(Some(Found::Pruned(pruned.leaves_at)));
            }
            bundle(reader, &range).map(|bytes| Some(Found::Bytes(bytes)))
        }
    }
}

fn bundle(reader: &Reader, range: &std::ops::Range<u64>) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let events = reader.events(range.start, usize::from(TILE_WIDTH))?;
    for event in events.iter().take_while(|event| event.index < range.end) {
        if !bundle_entry(&mut bytes, event.json.as_bytes()) {
            return Err(ReadError::Tree(format!(
                "leaf {} is too long for a bundle",
                event.index
            )));
        }
    }
    Ok(bytes)
}

struct Tile {
    /// `None` for an entry bundle.
    level: Option<u8>,
    index: u64,
    width: u16,
}

impl Tile {
    /// Reads a path, and accepts only the one form that writing gives.
    fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("tile/")?;
        let (level, rest) = rest.split_once('/')?;
        let level = if level == "entries" {
            None
        } else {
            Some(level.parse().ok()?)
        };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse().ok()?),
            None => (rest, TILE_WIDTH),
        };
        // At most 7 groups of 3 digits fit 64 bits.
        let mut index: u64 = 0;
        for group in number.split('/') {
            let digits = group.strip_prefix('x').unwrap_or(group);
            index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        }
        let tile = Self {
            level,
            index,
            width,
        };
        (tile.path() == path && level.is_none_or(|level| level < 8)).then_some(tile)
    }

    fn path(&self) -> String {
        match self.level {
            Some(level) => tile_path(level, self.index, self.width),
            None => bundle_path(self.index, self.width),
        }
    }

    fn range(&self) -> Option<std::ops::Range<u64>> {
        let first = self.index.checked_mul(u64::from(TILE_WIDTH))?;
        Some(first..first.checked_add(u64::from(self.width))?)
    }

    /// Whether all of it is in the tree of `size` leaves.
    fn is_complete(&self, range: &std::ops::Range<u64>, size: u64) -> bool {
        let nodes = size >> (8 * u32::from(self.level.unwrap_or(0)));
        range.end <= nodes
    }
}

fn within(reader: &Reader, size: u64) -> Result<(), ReadError> {
    let known = reader.head()?.size;
    if size <= known {
        return Ok(());
    }
    Err(ReadError::Tree(format!(
        "the log has {known} leaves, not {size}"
    )))
}

fn bytes(hashes: Vec<tlog::Hash>) -> Vec<[u8; 32]> {
    hashes.into_iter().map(|hash| hash.0).collect()
}

fn tree(error: &dyn std::fmt::Display) -> ReadError {
    ReadError::Tree(error.to_string())
}
