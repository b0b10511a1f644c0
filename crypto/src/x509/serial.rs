//! Serial numbers of certificates.

use std::fmt;

use super::X509Error;
use crate::digest::hex;

/// Longest serial in bytes (RFC 5280 §4.1.2.2).
const MAX: usize = 20;

/// A positive serial number of at most 20 bytes, big-endian, without leading zeros.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// From big-endian bytes; leading zeros count for nothing.
    ///
    /// # Errors
    /// [`X509Error::Serial`] when it is zero or too long.
    pub fn new(bytes: &[u8]) -> Result<Self, X509Error> {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        match bytes.split_at_checked(zeros) {
            Some((_, digits)) if (1..=MAX).contains(&digits.len()) => Ok(Self(digits.into())),
            Some(_) | None => Err(X509Error::Serial),
        }
    }

    /// Big-endian, without leading zeros.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    /// Lower-case hex, as `openssl x509 -serial` shows it in upper case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn zeros_in_front_count_for_nothing() {
        let one = Serial::new(&[0, 0, 1, 0]).unwrap();
        assert_eq!(one, Serial::new(&[1, 0]).unwrap());
        assert_eq!(one.to_string(), "0100");
        assert!(Serial::new(&[0xff; 20]).is_ok());
        for bad in [&[][..], &[0, 0], &[1; 21]] {
            assert!(Serial::new(bad).is_err(), "{bad:?}");
        }
    }
}
