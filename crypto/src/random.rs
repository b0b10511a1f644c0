//! Random bytes from the operating system, by way of the provider.
//!
//! There is no seeding and no fallback: when the system has no randomness to give, the
//! caller gets an error and must refuse its work.

use std::cell::RefCell;

use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

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

/// Bytes that a thread draws at once: a draw costs as much as the hundreds of bytes it may give.
const DRAWN_AT_ONCE: usize = 512;

/// What a thread has drawn and not yet given out, from `next` on.
struct Drawn {
    bytes: Zeroizing<[u8; DRAWN_AT_ONCE]>,
    next: usize,
}

thread_local! {
    static DRAWN: RefCell<Drawn> = RefCell::new(Drawn {
        bytes: Zeroizing::new([0; DRAWN_AT_ONCE]),
        next: DRAWN_AT_ONCE,
    });
}

/// `N` random bytes, for values that are not secret (ids, serials, nonces, salts). No byte is given
/// twice, and none is kept once it was given.
///
/// # Errors
/// When the system generator fails.
pub fn bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut out = [0; N];
    let drawn =
        DRAWN.try_with(|drawn| drawn.try_borrow_mut().map(|mut drawn| drawn.give(&mut out)));
    match drawn {
        Ok(Ok(Some(given))) => given?,
        // More than is drawn at once, or the thread is ending.
        Ok(Ok(None) | Err(_)) | Err(_) => fill(&mut out)?,
    }
    Ok(out)
}

impl Drawn {
    fn give(&mut self, out: &mut [u8]) -> Option<Result<(), RandomError>> {
        if out.len() > DRAWN_AT_ONCE {
            return None;
        }
        if self.next + out.len() > DRAWN_AT_ONCE {
            self.next = DRAWN_AT_ONCE;
            if let Err(error) = fill(&mut *self.bytes) {
                return Some(Err(error));
            }
            self.next = 0;
        }
        let from = self.bytes.get_mut(self.next..self.next + out.len())?;
        out.copy_from_slice(from);
        from.zeroize();
        self.next += out.len();
        Some(Ok(()))
    }
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
    fn no_byte_is_given_twice_nor_kept() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            assert!(seen.insert(bytes::<10>().unwrap()));
            assert!(seen.insert(bytes().unwrap()));
        }
        let mut drawn = Drawn {
            bytes: Zeroizing::new([0; DRAWN_AT_ONCE]),
            next: DRAWN_AT_ONCE,
        };
        let mut out = [0; 16];
        drawn.give(&mut out).unwrap().unwrap();
        assert_ne!(out, [0; 16]);
        assert_eq!(drawn.bytes[..16], [0; 16]);
        assert_ne!(drawn.bytes[16..32], [0; 16]);
    }

    #[test]
    fn two_draws_differ() {
        assert_ne!(bytes::<32>().unwrap(), bytes::<32>().unwrap());
        assert_ne!(
            bytes::<{ DRAWN_AT_ONCE + 1 }>().unwrap(),
            bytes::<{ DRAWN_AT_ONCE + 1 }>().unwrap()
        );
        let secret = secret(48).unwrap();
        assert_eq!(secret.len(), 48);
        assert!(!secret.eq_ct(&[0; 48]));
    }
}
