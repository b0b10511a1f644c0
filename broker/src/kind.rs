//! One module per credential kind: all that a kind knows. TTL, approval and audit are outside
//! and cannot be skipped from here.

pub mod jwt;

use crate::issue::{Planned, Sealed};

/// A kind whose credential is only a signature.
pub trait Signed {
    /// What leaves the process, once a permit opened it.
    type Out;
    /// Why it could not be signed.
    type Error;

    /// Signs the stored content of one planned credential. May run while the intent is being
    /// committed; the result is sealed until a permit opens it.
    ///
    /// # Errors
    /// When the provider refuses to sign.
    fn sign(&self, planned: &Planned<'_>) -> Result<Sealed<Self::Out>, Self::Error>;
}
