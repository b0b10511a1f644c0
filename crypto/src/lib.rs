//! The only crate of Ephor that names a crypto provider.
//!
//! Everything that signs, verifies, hashes, seals or speaks TLS comes through here, so
//! that exactly one provider enters a binary and every rule about keys and tokens
//! has one place. The provider is `aws-lc-rs` by default, `ring` with
//! `--no-default-features --features ring`; the ring build makes no post-quantum claim.
//!
//! This crate never reads a clock, a file or the network, and never logs.

#[cfg(all(feature = "aws-lc-rs", feature = "ring"))]
compile_error!("ephor-crypto: choose one provider, `aws-lc-rs` or `ring`; both are enabled");
#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("ephor-crypto: enable one provider feature, `aws-lc-rs` (default) or `ring`");

mod provider;

pub mod secret;
pub mod random;
pub mod digest;

pub mod ed25519;
pub mod p256;

pub mod seal;
pub mod scram;

pub mod jwk;
pub mod jws;
pub mod jwt;
mod strict_json;

pub mod tls;
pub mod x509;

pub use secret::Secret;
