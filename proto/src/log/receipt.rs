//! A receipt: one leaf, its place in the log, and a signed head that contains it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tlog_tiles::tlog;

use super::{BadCheckpoint, BadNote, Checkpoint, Hash, SignedNote, VerifierKey, VerifyFn};
use crate::event::AuditEvent;
use crate::limits::{MAX_JSON_INTEGER, MAX_LEAF_BYTES, MAX_PROOF_HASHES};

/// `{leaf, index, proof, checkpoint}`; the only signature is the checkpoint's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The leaf's exact text: canonical JSON of the task's `prove` event.
    pub leaf: String,
    /// Its index in the log, from 0.
    pub index: u64,
    /// The RFC 6962 audit path, each hash in base64, from the leaf up.
    pub proof: Vec<String>,
    /// The signed checkpoint, a C2SP note.
    pub checkpoint: String,
}

/// What a verified receipt shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// The event in the leaf.
    pub event: AuditEvent,
    /// The head that contains it.
    pub checkpoint: Checkpoint,
}

/// Why a receipt is refused.
#[derive(Debug, thiserror::Error)]
pub enum BadReceipt {
    /// The checkpoint is no note, or not signed by this key.
    #[error("the receipt's checkpoint is refused: {0}")]
    Note(#[from] BadNote),
    /// The signed text is no checkpoint.
    #[error("the receipt's checkpoint is malformed: {0}")]
    Checkpoint(#[from] BadCheckpoint),
    /// The checkpoint is of another log.
    #[error("the receipt's checkpoint is of log {0}, not of the key's")]
    OtherLog(String),
    /// Larger than any of ours.
    #[error("the receipt is larger than a receipt can be")]
    TooLarge,
    /// A hash of the proof is malformed.
    #[error("hash {0} of the receipt's proof is no base64 of 32 bytes")]
    Hash(usize),
    /// The leaf is not in the log at this index.
    #[error("the log does not contain the receipt's leaf at index {0}")]
    NotIncluded(u64),
    /// The leaf is proven, but is no event of this version.
    #[error("the receipt's leaf is proven but is no event of this version: {0}")]
    Leaf(serde_json::Error),
}

impl Receipt {
    /// From a leaf, its index, its audit path and the signed head.
    pub fn new(leaf: impl Into<String>, index: u64, proof: &[[u8; 32]], head: &SignedNote) -> Self {
        Self {
            leaf: leaf.into(),
            index,
            proof: proof.iter().map(|hash| STANDARD.encode(hash)).collect(),
            checkpoint: head.to_string(),
        }
    }

    fn hashes(&self) -> Result<tlog::RecordProof, BadReceipt> {
        let hash = |(n, text): (usize, &String)| {
            let bytes = STANDARD.decode(text).map_err(|_| BadReceipt::Hash(n))?;
            bytes.try_into().map(Hash).map_err(|_| BadReceipt::Hash(n))
        };
        self.proof.iter().enumerate().map(hash).collect()
    }
}

/// Checks a receipt against a key that its reader got elsewhere: signature, log, inclusion.
///
/// # Errors
/// Says which of them does not hold.
pub fn verify_receipt(
    receipt: &Receipt,
    key: &VerifierKey,
    ed25519_verify: VerifyFn,
) -> Result<Verified, BadReceipt> {
    // Sizes first: a receipt comes from anywhere.
    let large = receipt.proof.len() > MAX_PROOF_HASHES
        || receipt.leaf.len() > MAX_LEAF_BYTES
        || receipt.index > MAX_JSON_INTEGER;
    if large {
        return Err(BadReceipt::TooLarge);
    }
    let note: SignedNote = receipt.checkpoint.parse()?;
    let checkpoint: Checkpoint = note.verify(key, ed25519_verify)?.parse()?;
    if checkpoint.origin() != key.name() {
        return Err(BadReceipt::OtherLog(checkpoint.origin().to_owned()));
    }
    let leaf_hash = tlog::record_hash(receipt.leaf.as_bytes());
    let (size, root) = (checkpoint.size(), checkpoint.root_hash());
    tlog::check_record(&receipt.hashes()?, size, root, receipt.index, leaf_hash)
        .map_err(|_| BadReceipt::NotIncluded(receipt.index))?;
    let event = AuditEvent::from_leaf(receipt.leaf.as_bytes()).map_err(BadReceipt::Leaf)?;
    Ok(Verified { event, checkpoint })
}

#[cfg(test)]
mod tests;
