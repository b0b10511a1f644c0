//! Random bytes from the operating system, by way of the provider.
//!
//! There is no seeding and no fallback: when the system has no randomness to give, the
//! caller gets an error and must refuse its work.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::Secret;
use crate::provider::rand::{SecureRandom, SystemRandom};

/// The system random generator gave nothing.
#[derive(Debug, Error)]
#[error(
    "reading the system random generator failed; refuse the operation and check the kernel's getrandom"
)]
pub struct RandomError;

/// Fills `buffer` with random bytes.
///
/// # Errors
/// When the system generator fails; `buffer` must then not be used.
pub fn fill(buffer: &mut [u8]) -> Result<(), RandomError> {
    SystemRandom::new().fill(buffer).map_err(|_| RandomError)
}

/// `N` random bytes, for values that are not secret (serials, nonces, salts).
///
/// # Errors
/// When the system generator fails.
pub fn bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut out = [0; N];
    fill(&mut out)?;
    Ok(out)
}

/// A random secret of `len` bytes.
///
/// # Errors
/// When the system generator fails.
pub fn secret(len: usize) -> Result<Secret, RandomError> {
    let mut out = Zeroizing::new(vec![0; len]);
    fill(&mut out)?;
    Ok(Secret::new(std::mem::take(&mut *out)))
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
    fn two_draws_differ() {
        assert_ne!(bytes::<32>().unwrap(), bytes::<32>().unwrap());
        let secret = secret(48).unwrap();
        assert_eq!(secret.len(), 48);
        assert!(!secret.eq_ct(&[0; 48]));
    }
}
