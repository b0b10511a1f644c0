//! Authenticated encryption of stored secrets.
//!
//! A sealed value opens only under the record name and version it was sealed for, so a
//! value moved to another row, or an older version put back, is refused.
//!
//! Layout: format byte, 12-byte random nonce, AES-256-GCM ciphertext and tag. Nonces are
//! random, so one key must not seal more than 2^32 values (NIST SP 800-38D §8.3).

use thiserror::Error;

use crate::Secret;
use crate::provider::aead::{
    AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey,
};
use crate::random::{self, RandomError};

/// AES-256-GCM, random nonce. Another algorithm gets another byte.
const FORMAT: u8 = 1;
/// Length of a sealing key in bytes.
pub const KEY_LEN: usize = 32;
const HEADER_LEN: usize = 1 + NONCE_LEN;

/// Why a value was not sealed or opened. Says nothing about the content.
#[derive(Debug, Error)]
pub enum SealError {
    /// The key is not [`KEY_LEN`] bytes long.
    #[error("a sealing key must have 32 bytes, this one has {0}")]
    KeyLength(usize),
    /// The value starts with a format byte this version does not know, or is too short.
    #[error(
        "sealed value has an unknown format; it was written by another version or is not a sealed value"
    )]
    Format,
    /// Wrong key, wrong record name or version, or a changed byte.
    #[error("sealed value refused: wrong key, moved to another record, or changed")]
    Refused,
    /// The provider refused to encrypt (plaintext too long).
    #[error("sealing failed: value too long")]
    TooLong,
    /// No randomness for the nonce.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// A 256-bit key that seals and opens stored secrets.
pub struct SealingKey(LessSafeKey);

impl SealingKey {
    /// A key from exactly [`KEY_LEN`] secret bytes.
    ///
    /// # Errors
    /// [`SealError::KeyLength`] for any other length.
    pub fn new(key: &Secret) -> Result<Self, SealError> {
        UnboundKey::new(&AES_256_GCM, key.expose())
            .map(|unbound| Self(LessSafeKey::new(unbound)))
            .map_err(|_| SealError::KeyLength(key.len()))
    }

    /// Seals `plaintext` for the record `record_name` (table, row and column) at `version`.
    ///
    /// # Errors
    /// When the system has no randomness or the plaintext exceeds the algorithm's limit.
    pub fn seal(
        &self,
        record_name: &str,
        version: u32,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = random::bytes()?;
        // Room for the tag from the start: growing could leave a copy of the plaintext behind.
        let mut body = Vec::with_capacity(plaintext.len().saturating_add(MAX_TAG_LEN));
        body.extend_from_slice(plaintext);
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                associated_data(FORMAT, record_name, version),
                &mut body,
            )
            .map_err(|_| SealError::TooLong)?;
        let mut out = Vec::with_capacity(HEADER_LEN.saturating_add(body.len()));
        out.push(FORMAT);
        out.extend_from_slice(&nonce);
        out.append(&mut body);
        Ok(out)
    }

    /// Opens what [`SealingKey::seal`] made for the same record name and version.
    ///
    /// # Errors
    /// [`SealError::Format`] or [`SealError::Refused`]; no partial plaintext is given out.
    pub fn open(
        &self,
        record_name: &str,
        version: u32,
        sealed: &[u8],
    ) -> Result<Secret, SealError> {
        let (&format, rest) = sealed.split_first().ok_or(SealError::Format)?;
        if format != FORMAT {
            return Err(SealError::Format);
        }
        let (nonce, body) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SealError::Format)?;
        let mut buffer = zeroize::Zeroizing::new(body.to_vec());
        let len = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                associated_data(format, record_name, version),
                &mut buffer,
            )
            .map_err(|_| SealError::Refused)?
            .len();
        buffer.truncate(len);
        Ok(Secret::new(std::mem::take(&mut *buffer)))
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

/// Format, name, version: the only field of variable length stands between two of fixed
/// length, so no two records share associated data.
fn associated_data(format: u8, record_name: &str, version: u32) -> Aad<Vec<u8>> {
    let mut data = Vec::with_capacity(record_name.len().saturating_add(5));
    data.push(format);
    data.extend_from_slice(record_name.as_bytes());
    data.extend_from_slice(&version.to_be_bytes());
    Aad::from(data)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealingKey {
        SealingKey::new(&Secret::new(vec![byte; KEY_LEN])).unwrap()
    }

    #[test]
    fn opens_what_it_sealed() {
        let sealed = key(1).seal("keys/signing/a", 3, b"plain").unwrap();
        assert!(!sealed.windows(5).any(|w| w == b"plain"));
        let opened = key(1).open("keys/signing/a", 3, &sealed).unwrap();
        assert_eq!(opened.expose(), b"plain");
        let empty = key(1).seal("e", 0, b"").unwrap();
        assert!(key(1).open("e", 0, &empty).unwrap().is_empty());
    }

    #[test]
    fn every_seal_has_a_new_nonce() {
        let key = key(1);
        assert_ne!(
            key.seal("r", 1, b"x").unwrap(),
            key.seal("r", 1, b"x").unwrap()
        );
    }

    #[test]
    fn wrong_name_version_or_key_is_refused() {
        let sealed = key(1).seal("row/1", 7, b"plain").unwrap();
        for (k, name, version) in [
            (1, "row/2", 7),
            (1, "row/1", 8),
            (2, "row/1", 7),
            (1, "row/1\0", 7),
        ] {
            assert!(
                matches!(key(k).open(name, version, &sealed), Err(SealError::Refused)),
                "{k} {name} {version}"
            );
        }
    }

    #[test]
    fn any_changed_or_missing_byte_is_refused() {
        let sealed = key(1).seal("row/1", 7, b"plain").unwrap();
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(key(1).open("row/1", 7, &changed).is_err(), "byte {i}");
            assert!(key(1).open("row/1", 7, &sealed[..i]).is_err(), "cut {i}");
        }
    }

    #[test]
    fn key_length_is_exact() {
        for len in [0, 16, 31, 33] {
            let short = Secret::new(vec![0; len]);
            assert!(matches!(SealingKey::new(&short), Err(SealError::KeyLength(l)) if l == len));
        }
    }
}
