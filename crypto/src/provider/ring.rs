//! ring, the alternative provider: no post-quantum key exchange, and our own
//! implementation of jsonwebtoken's provider interface, which has none for ring.

pub(crate) use ::ring::{aead, digest, hmac, pbkdf2, rand, signature};

use ::ring::error::{KeyRejected, Unspecified};
use ::ring::rand::SystemRandom;
use ::ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::ThumbprintHash;
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};

use crate::Secret;

/// What [`crate::tls::name`] says.
pub(crate) const NAME: &str = "ring";

/// Parses a P-256 private key whose signatures are `r || s`.
pub(crate) fn ecdsa_from_pkcs8(pkcs8: &[u8]) -> Result<EcdsaKeyPair, KeyRejected> {
    EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        pkcs8,
        &SystemRandom::new(),
    )
}

/// A new P-256 private key, and the same in PKCS#8 DER.
pub(crate) fn ecdsa_generate() -> Result<(EcdsaKeyPair, Secret), Unspecified> {
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())?;
    let pkcs8 = Secret::new(document.as_ref().to_vec());
    let pair = ecdsa_from_pkcs8(pkcs8.expose()).map_err(|_| Unspecified)?;
    Ok((pair, pkcs8))
}

/// The rustls provider.
pub(crate) fn tls_provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// Makes jsonwebtoken use ring. Without this its first use panics, because none of its
/// own providers is compiled in.
pub(crate) fn install_jwt() {
    // An error means that one is installed already, and only this crate installs one.
    let _ = JWT_PROVIDER.install_default();
}

/// ES256, EdDSA and RS256 verify; ES256 signs. Everything else is refused, never a panic.
static JWT_PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(ErrorKind::InvalidKeyFormat.into()),
        rsa_pub_components_from_public_key: |_| Err(ErrorKind::InvalidKeyFormat.into()),
        ec_pub_components_from_private_key: |_, _| Err(ErrorKind::InvalidKeyFormat.into()),
        ed_pub_components_from_private_key: |_, _| Err(ErrorKind::InvalidKeyFormat.into()),
        compute_digest,
    },
};

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    if *algorithm != Algorithm::ES256 || key.family() != AlgorithmFamily::Ec {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let pair = ecdsa_from_pkcs8(key.as_bytes()).map_err(|_| ErrorKind::InvalidEcdsaKey)?;
    Ok(Box::new(Es256Signer(pair)))
}

struct Es256Signer(EcdsaKeyPair);

impl Signer<Vec<u8>> for Es256Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| SignatureError::new())
    }
}

impl JwtSigner for Es256Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let (family, scheme): (_, &'static dyn VerificationAlgorithm) = match algorithm {
        Algorithm::ES256 => (AlgorithmFamily::Ec, &ECDSA_P256_SHA256_FIXED),
        Algorithm::EdDSA => (AlgorithmFamily::Ed, &ED25519),
        Algorithm::RS256 => (AlgorithmFamily::Rsa, &RSA_PKCS1_2048_8192_SHA256),
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    // Without this an RSA or EC public key could serve as an HMAC secret and the like.
    if key.family() != family {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        scheme,
        key: key.clone(),
    }))
}

struct RingVerifier {
    algorithm: Algorithm,
    scheme: &'static dyn VerificationAlgorithm,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        match self.key.kind() {
            DecodingKeyKind::SecretOrDer(key) => {
                UnparsedPublicKey::new(self.scheme, key).verify(message, signature)
            }
            DecodingKeyKind::RsaModulusExponent { n, e } => RsaPublicKeyComponents { n, e }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
        }
        .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn compute_digest(data: &[u8], hash: ThumbprintHash) -> Result<Vec<u8>, Error> {
    let algorithm = match hash {
        ThumbprintHash::SHA256 => &digest::SHA256,
        ThumbprintHash::SHA384 => &digest::SHA384,
        ThumbprintHash::SHA512 => &digest::SHA512,
        // The enum is non-exhaustive; what jsonwebtoken adds later is refused.
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    Ok(digest::digest(algorithm, data).as_ref().to_vec())
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
    use ::ring::signature::{Ed25519KeyPair, KeyPair};
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    #[test]
    fn signs_and_verifies_es256() {
        install_jwt();
        let key = crate::p256::SigningKey::generate().unwrap();
        let encoding = EncodingKey::from_ec_der(key.to_pkcs8().expose());
        let signature = jsonwebtoken::crypto::sign(b"m", &encoding, Algorithm::ES256).unwrap();
        let decoding = DecodingKey::from_ec_der(key.public_key().point());
        let verify = |message: &[u8]| {
            jsonwebtoken::crypto::verify(&signature, message, &decoding, Algorithm::ES256).unwrap()
        };
        assert!(verify(b"m"));
        assert!(!verify(b"n"));
    }

    #[test]
    fn verifies_eddsa() {
        install_jwt();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(b"m"));
        let key = DecodingKey::from_ed_der(pair.public_key().as_ref());
        assert!(jsonwebtoken::crypto::verify(&signature, b"m", &key, Algorithm::EdDSA).unwrap());
        assert!(!jsonwebtoken::crypto::verify(&signature, b"n", &key, Algorithm::EdDSA).unwrap());
    }

    #[test]
    fn a_key_of_another_family_is_refused() {
        install_jwt();
        let key = DecodingKey::from_ed_der(&[0; 32]);
        assert!(jsonwebtoken::crypto::verify("AA", b"m", &key, Algorithm::ES256).is_err());
        let rsa = DecodingKey::from_rsa_components("AQAB", "AQAB").unwrap();
        assert!(jsonwebtoken::crypto::verify("AA", b"m", &rsa, Algorithm::EdDSA).is_err());
        assert!(!jsonwebtoken::crypto::verify("AA", b"m", &rsa, Algorithm::RS256).unwrap());
        let secret = DecodingKey::from_secret(b"s");
        assert!(jsonwebtoken::crypto::verify("AA", b"m", &secret, Algorithm::HS256).is_err());
    }
}
