//! aws-lc-rs, the default provider.

pub(crate) use aws_lc_rs::{aead, digest, hmac, pbkdf2, rand, signature};

use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use crate::Secret;

/// What [`crate::tls::name`] says.
pub(crate) const NAME: &str = "aws-lc-rs";

/// Parses a P-256 private key whose signatures are `r || s`.
pub(crate) fn ecdsa_from_pkcs8(pkcs8: &[u8]) -> Result<EcdsaKeyPair, KeyRejected> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
}

/// A new P-256 private key, and the same in PKCS#8 DER. It is not parsed again: that, with its check
/// of the point, costs as much as making it.
pub(crate) fn ecdsa_generate() -> Result<(EcdsaKeyPair, Secret), Unspecified> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let pkcs8 = pair.to_pkcs8v1()?;
    Ok((pair, Secret::new(pkcs8.as_ref().to_vec())))
}

/// The rustls provider. `prefer-post-quantum` puts X25519MLKEM768 first; a test in
/// `tls` holds it to that.
pub(crate) fn tls_provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// Makes jsonwebtoken use this provider, so that it never guesses from its features.
pub(crate) fn install_jwt() {
    // An error means that one is installed already, and only this crate installs one.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}
