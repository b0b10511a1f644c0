//! Ed25519 (RFC 8032): the key that signs the audit log's checkpoints.

use std::fmt;

use crate::Secret;
use crate::p256::KeyError;
use crate::provider::rand::SystemRandom;
use crate::provider::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// The log's private key, kept parsed.
pub struct LogKey {
    pair: Ed25519KeyPair,
    pkcs8: Secret,
    public: [u8; 32],
}

impl LogKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the provider has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Generate)?;
        Self::parse(Secret::new(document.as_ref().to_vec()))
    }

    /// Reads a PKCS#8 version 2 private key (RFC 5958, DER), the form [`LogKey::to_pkcs8`] has.
    ///
    /// # Errors
    /// [`KeyError::Private`] when it is not an Ed25519 key.
    pub fn from_pkcs8(pkcs8: &Secret) -> Result<Self, KeyError> {
        Self::parse(Secret::new(pkcs8.expose().to_vec()))
    }

    fn parse(pkcs8: Secret) -> Result<Self, KeyError> {
        let pair =
            Ed25519KeyPair::from_pkcs8(pkcs8.expose()).map_err(|_| KeyError::Private("Ed25519"))?;
        let public = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| KeyError::Private("Ed25519"))?;
        Ok(Self {
            pair,
            pkcs8,
            public,
        })
    }

    /// The private key in PKCS#8 DER, to be sealed and stored.
    #[must_use]
    pub fn to_pkcs8(&self) -> &Secret {
        &self.pkcs8
    }

    /// The public key, 32 bytes.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Signs `message`. Deterministic: the same message gives the same signature.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(message);
        let mut out = [0; 64];
        // An Ed25519 signature has 64 bytes; `copy_from_slice` would panic otherwise.
        for (to, from) in out.iter_mut().zip(signature.as_ref()) {
            *to = *from;
        }
        out
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({})", crate::digest::hex(&self.public))
    }
}

/// Whether `signature` is one of `public` over `message`.
#[must_use]
pub fn verify(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(message, signature)
        .is_ok()
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

    #[test]
    fn signs_and_refuses_changes() {
        let key = LogKey::generate().unwrap();
        let signature = key.sign(b"checkpoint");
        assert!(verify(&key.public(), b"checkpoint", &signature));
        assert!(!verify(&key.public(), b"checkpoinu", &signature));
        assert!(!verify(
            &LogKey::generate().unwrap().public(),
            b"checkpoint",
            &signature
        ));
        assert!(!verify(&key.public(), b"checkpoint", &signature[1..]));
        assert!(!verify(&[], b"checkpoint", &signature));
    }

    #[test]
    fn private_key_survives_storage() {
        let key = LogKey::generate().unwrap();
        let again = LogKey::from_pkcs8(key.to_pkcs8()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.sign(b"m"), key.sign(b"m"));
        assert!(LogKey::from_pkcs8(&Secret::new(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn known_answer() {
        // RFC 8032 §7.1, test 2.
        let public = [
            0x3d, 0x40, 0x17, 0xc3, 0xe8, 0x43, 0x89, 0x5a, 0x92, 0xb7, 0x0a, 0xa7, 0x4d, 0x1b,
            0x7e, 0xbc, 0x9c, 0x98, 0x2c, 0xcf, 0x2e, 0xc4, 0x96, 0x8c, 0xc0, 0xcd, 0x55, 0xf1,
            0x2a, 0xf4, 0x66, 0x0c,
        ];
        let signature = [
            0x92, 0xa0, 0x09, 0xa9, 0xf0, 0xd4, 0xca, 0xb8, 0x72, 0x0e, 0x82, 0x0b, 0x5f, 0x64,
            0x25, 0x40, 0xa2, 0xb2, 0x7b, 0x54, 0x16, 0x50, 0x3f, 0x8f, 0xb3, 0x76, 0x22, 0x23,
            0xeb, 0xdb, 0x69, 0xda, 0x08, 0x5a, 0xc1, 0xe4, 0x3e, 0x15, 0x99, 0x6e, 0x45, 0x8f,
            0x36, 0x13, 0xd0, 0xf1, 0x1d, 0x8c, 0x38, 0x7b, 0x2e, 0xae, 0xb4, 0x30, 0x2a, 0xee,
            0xb0, 0x0d, 0x29, 0x16, 0x12, 0xbb, 0x0c, 0x00,
        ];
        assert!(verify(&public, &[0x72], &signature));
        assert!(!verify(&public, &[0x73], &signature));
    }
}
