//! The chosen provider, under one set of names.
//!
//! The two providers agree on everything this crate uses except the few functions defined
//! in each submodule. No other module may name `aws_lc_rs` or `ring`.

#[cfg(feature = "aws-lc-rs")]
mod aws_lc;
#[cfg(feature = "aws-lc-rs")]
pub(crate) use aws_lc::{
    NAME, aead, digest, ecdsa_from_pkcs8, ecdsa_generate, hmac, install_jwt, pbkdf2, rand,
    signature, tls_provider,
};

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
mod ring;
#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
pub(crate) use self::ring::{
    NAME, aead, digest, ecdsa_from_pkcs8, ecdsa_generate, hmac, install_jwt, pbkdf2, rand,
    signature, tls_provider,
};

/// HMAC-SHA256, only to show that a public key is no HMAC secret.
#[cfg(test)]
pub(crate) fn hmac_sha256_for_tests(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
        .as_ref()
        .to_vec()
}
