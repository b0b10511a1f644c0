//! Bytes that must not leak.
//!
//! `Secret` is what every private key, token and password travels in. It must never gain
//! `Clone`, `Serialize`, `Display` or `Deref`: each of them is a silent way to a copy that
//! nobody wipes or to a log line.

use std::fmt;
use std::str::Utf8Error;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Owned secret bytes, wiped on drop and readable only through [`Secret::expose`].
///
/// ```compile_fail
/// let secret = ephor_crypto::Secret::new(vec![1]);
/// let copy = secret.clone();
/// ```
///
/// ```compile_fail
/// let secret = ephor_crypto::Secret::new(vec![1]);
/// let text = format!("{secret}");
/// ```
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of `bytes` without copying them.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Takes ownership of `text` without copying it.
    #[must_use]
    pub fn from_string(text: String) -> Self {
        Self::new(text.into_bytes())
    }

    /// The bytes. The caller must not store or log them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text.
    ///
    /// # Errors
    /// When they are not UTF-8. The error names an offset, never the content.
    pub fn expose_str(&self) -> Result<&str, Utf8Error> {
        std::str::from_utf8(&self.0)
    }

    /// Compares in time that depends on the lengths only, not on the content.
    #[must_use]
    pub fn eq_ct(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
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
    fn attack_44_debug_shows_nothing() {
        let secret = Secret::from_string("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_eq!(format!("{secret:#?}"), "Secret(..)");
    }

    #[test]
    fn compares_content_and_length() {
        let secret = Secret::new(vec![1, 2, 3]);
        assert!(secret.eq_ct(&[1, 2, 3]));
        assert!(!secret.eq_ct(&[1, 2, 4]));
        assert!(!secret.eq_ct(&[1, 2]));
        assert!(!secret.eq_ct(&[1, 2, 3, 0]));
        assert_eq!(secret.len(), 3);
        assert!(!secret.is_empty());
    }

    #[test]
    fn text_must_be_utf8() {
        assert_eq!(
            Secret::from_string("é".to_owned()).expose_str().unwrap(),
            "é"
        );
        assert!(Secret::new(vec![0xff]).expose_str().is_err());
    }
}
