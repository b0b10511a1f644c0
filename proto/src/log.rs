//! The transparency log's formats by C2SP (tlog-tiles, tlog-checkpoint, signed-note) over RFC 6962
//! hashes.
//!
//! Formats only: the signature function is handed in, the tree's storage is the ledger's.

mod checkpoint;
mod note;
mod receipt;
mod tile;

pub use checkpoint::{BadCheckpoint, Checkpoint};
pub use note::{BadNote, Signature, SignedNote, VerifierKey};
pub use receipt::{BadReceipt, Receipt, Verified, verify_receipt};
pub use tile::{BadBundle, TILE_WIDTH, bundle_entry, bundle_path, split_bundle, tile_path};

pub use tlog_tiles::tlog::Hash;

/// Checks an Ed25519 signature: public key, message, signature.
pub type VerifyFn = fn(&[u8; 32], &[u8], &[u8]) -> bool;

/// The RFC 6962 §2.1 hash of a leaf: `SHA-256(0x00 || leaf)`.
pub fn leaf_hash(leaf: &[u8]) -> [u8; 32] {
    tlog_tiles::tlog::record_hash(leaf).0
}

/// The RFC 6962 §2.1 hash of two nodes: `SHA-256(0x01 || left || right)`.
pub fn node_hash(left: [u8; 32], right: [u8; 32]) -> [u8; 32] {
    tlog_tiles::tlog::node_hash(Hash(left), Hash(right)).0
}

#[cfg(test)]
pub(crate) mod sample;
