//! A stand-in for signatures in tests of formats: real ones belong to the crypto crate.

#![allow(clippy::unwrap_used)]

use sha2::{Digest, Sha512};

use super::{SignedNote, VerifierKey};

/// A key whose bytes depend on its name.
pub(crate) fn key(name: &str) -> VerifierKey {
    VerifierKey::new(name, super::leaf_hash(name.as_bytes())).unwrap()
}

fn tag(key: &[u8; 32], message: &[u8]) -> [u8; 64] {
    Sha512::new()
        .chain_update(key)
        .chain_update(message)
        .finalize()
        .into()
}

/// A note with a keyed hash in place of its signature.
pub(crate) fn sign(text: &str, key: &VerifierKey) -> SignedNote {
    SignedNote::new(text, key, tag(key.public_key(), text.as_bytes()))
}

/// Checks what [`sign`] made.
pub(crate) fn verify(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    tag(key, message) == signature
}
