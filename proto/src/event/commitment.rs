//! Salted commitments to what may have to be erased.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of salt: enough that a short value cannot be guessed from its hash.
pub const SALT_LEN: usize = 16;

/// SHA-256 of salt and value, base64url without padding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitment {
    /// 43 characters.
    pub sha256: String,
}

/// The value behind a commitment, for the side table. Erasing it leaves a hash that says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct PersonalValue {
    /// The salt.
    pub salt: [u8; SALT_LEN],
    /// The value.
    pub value: String,
}

impl std::fmt::Debug for PersonalValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PersonalValue(..)")
    }
}

impl PersonalValue {
    /// Whether this is the value that was committed to.
    pub fn opens(&self, commitment: &Commitment) -> bool {
        digest(self.salt, &self.value) == *commitment
    }
}

/// A field that is either plain or committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Stands in the leaf as it is.
    Plain(String),
    /// Stands in the leaf as a hash.
    Committed(Commitment),
}

impl Text {
    /// The text, where it is plain.
    pub fn plain(&self) -> Option<&str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Committed(_) => None,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

/// Commits to a value with 16 fresh random bytes.
pub fn commit(salt: [u8; SALT_LEN], value: &str) -> (Commitment, PersonalValue) {
    let kept = PersonalValue {
        salt,
        value: value.to_owned(),
    };
    (digest(salt, value), kept)
}

fn digest(salt: [u8; SALT_LEN], value: &str) -> Commitment {
    let hash = Sha256::new()
        .chain_update(salt)
        .chain_update(value)
        .finalize();
    Commitment {
        sha256: URL_SAFE_NO_PAD.encode(hash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commitment_is_sha256_of_salt_and_value() {
        // Computed with Python's hashlib over 16 zero bytes and `abc`.
        let (commitment, value) = commit([0; SALT_LEN], "abc");
        assert_eq!(
            commitment.sha256,
            "J35_9tIyuXY_Smbo0F0hDaMtrJxtvOECatTMmKy1_v4"
        );
        assert!(value.opens(&commitment));
        assert_ne!(commit([1; SALT_LEN], "abc").0, commitment);
        assert_ne!(commit([0; SALT_LEN], "abd").0, commitment);
        assert_eq!(format!("{value:?}"), "PersonalValue(..)");
    }
}
