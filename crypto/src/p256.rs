//! P-256 ECDSA keys (FIPS 186-5, SHA-256): tokens, certificates and TLS.
//!
//! A private key is parsed once and kept parsed: parsing costs two thirds of a signature.
//! The same kept key signs JWS, X.509 (through rcgen's traits) and TLS (`tls`).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

use crate::Secret;
use crate::digest::sha256;
use crate::jwk::Jwk;
use crate::provider::rand::SystemRandom;
use crate::provider::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use crate::provider::{ecdsa_from_pkcs8, ecdsa_generate};

/// DER of `SubjectPublicKeyInfo` (RFC 5480) up to the 65-byte point: id-ecPublicKey,
/// prime256v1.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const POINT_LEN: usize = 65;

/// Why a key could not be made, read or used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The provider could not generate a key (no randomness).
    #[error("generating a key failed; check the kernel's random generator")]
    Generate,
    /// Not a PKCS#8 private key of the expected kind.
    #[error(
        "the private key is not a PKCS#8 {0} key; the file or record is damaged or of another kind"
    )]
    Private(&'static str),
    /// Not an uncompressed P-256 point or its `SubjectPublicKeyInfo`.
    #[error(
        "the public key is not an uncompressed P-256 key; send a prime256v1 SubjectPublicKeyInfo"
    )]
    Public,
    /// The provider refused to sign.
    #[error("signing failed inside the provider")]
    Sign,
}

/// A P-256 private key, kept parsed.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    pkcs8: Secret,
    public: P256Public,
}

impl SigningKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the provider has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let (pair, pkcs8) = ecdsa_generate().map_err(|_| KeyError::Generate)?;
        Self::of(pair, pkcs8)
    }

    /// Reads a PKCS#8 private key (RFC 5958, DER).
    ///
    /// # Errors
    /// [`KeyError::Private`] when it is not a P-256 key.
    pub fn from_pkcs8(pkcs8: &Secret) -> Result<Self, KeyError> {
        Self::parse(Secret::new(pkcs8.expose().to_vec()))
    }

    fn parse(pkcs8: Secret) -> Result<Self, KeyError> {
        let pair = ecdsa_from_pkcs8(pkcs8.expose()).map_err(|_| KeyError::Private("P-256"))?;
        Self::of(pair, pkcs8)
    }

    fn of(pair: EcdsaKeyPair, pkcs8: Secret) -> Result<Self, KeyError> {
        let public = P256Public::from_point(pair.public_key().as_ref())?;
        Ok(Self {
            pair,
            random: SystemRandom::new(),
            pkcs8,
            public,
        })
    }

    /// The private key in PKCS#8 DER, to be sealed and stored.
    #[must_use]
    pub fn to_pkcs8(&self) -> &Secret {
        &self.pkcs8
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> &P256Public {
        &self.public
    }

    /// Signs for JWS (RFC 7518 §3.4): `r || s`, 32 bytes each.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when the provider refuses.
    pub fn sign_fixed(&self, message: &[u8]) -> Result<[u8; 64], KeyError> {
        let signature = self
            .pair
            .sign(&self.random, message)
            .map_err(|_| KeyError::Sign)?;
        signature.as_ref().try_into().map_err(|_| KeyError::Sign)
    }

    /// Signs for X.509 and TLS (RFC 3279 §2.2.3): DER `SEQUENCE { r, s }`.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when the provider refuses.
    pub fn sign_der(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(der_signature(&self.sign_fixed(message)?))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("p256::SigningKey")
            .field(&self.public)
            .finish()
    }
}

impl rcgen::PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign_der(message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A P-256 public key. That the point lies on the curve is checked at every use by the
/// provider, not here; a certificate over a bad point is one that nobody can use.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct P256Public {
    point: [u8; POINT_LEN],
}

impl P256Public {
    /// Reads an uncompressed point (SEC 1 §2.3.3): `04 || x || y`.
    ///
    /// # Errors
    /// [`KeyError::Public`] for any other form.
    pub fn from_point(point: &[u8]) -> Result<Self, KeyError> {
        let point: [u8; POINT_LEN] = point.try_into().map_err(|_| KeyError::Public)?;
        match point.first() {
            Some(4) => Ok(Self { point }),
            Some(_) | None => Err(KeyError::Public),
        }
    }

    /// Reads a DER `SubjectPublicKeyInfo`. Only the one canonical encoding is accepted.
    ///
    /// # Errors
    /// [`KeyError::Public`] for any other algorithm, curve or encoding.
    pub fn from_spki(spki_der: &[u8]) -> Result<Self, KeyError> {
        let point = spki_der
            .strip_prefix(&SPKI_PREFIX)
            .ok_or(KeyError::Public)?;
        Self::from_point(point)
    }

    /// The uncompressed point, 65 bytes.
    #[must_use]
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// The DER `SubjectPublicKeyInfo`, 91 bytes.
    #[must_use]
    pub fn spki(&self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), &self.point].concat()
    }

    /// JWK thumbprint (RFC 7638, SHA-256, base64url), used as `kid`.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        let (x, y) = self.coordinates();
        // RFC 7638 §3.2: required members only, in lexicographic order, no white space.
        let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        URL_SAFE_NO_PAD.encode(sha256(members.as_bytes()))
    }

    /// This key as an entry of a JWKS (RFC 7517) for verifying ES256 signatures.
    #[must_use]
    pub fn jwk(&self, kid: &str) -> Jwk {
        let (x, y) = self.coordinates();
        Jwk::p256(x, y, kid)
    }

    fn coordinates(&self) -> (String, String) {
        let encoded = |range: std::ops::Range<usize>| {
            URL_SAFE_NO_PAD.encode(self.point.get(range).unwrap_or_default())
        };
        (encoded(1..33), encoded(33..POINT_LEN))
    }
}

impl fmt::Debug for P256Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "P256Public({})", self.thumbprint())
    }
}

impl rcgen::PublicKeyData for P256Public {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// Whether `signature` (`r || s`) is one of `public` over `message`.
#[must_use]
pub fn verify_fixed(public: &P256Public, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public.point())
        .verify(message, signature)
        .is_ok()
}

/// Whether `signature` (DER, as in X.509) is one of `public` over `message`.
#[must_use]
pub fn verify_der(public: &P256Public, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public.point())
        .verify(message, signature)
        .is_ok()
}

/// `r || s` as DER. At most 72 bytes, so every length is a single byte.
fn der_signature(fixed: &[u8; 64]) -> Vec<u8> {
    let (r, s) = fixed.split_at(32);
    let body = [der_integer(r), der_integer(s)].concat();
    [&[0x30, short_length(&body)], body.as_slice()].concat()
}

/// A DER INTEGER: no superfluous leading zeros, one zero in front of a high bit.
fn der_integer(big_endian: &[u8]) -> Vec<u8> {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let digits = big_endian.get(zeros..).unwrap_or_default();
    let pad: &[u8] = if digits.first().is_none_or(|byte| byte & 0x80 != 0) {
        &[0]
    } else {
        &[]
    };
    let content = [pad, digits].concat();
    [&[0x02, short_length(&content)], content.as_slice()].concat()
}

fn short_length(content: &[u8]) -> u8 {
    u8::try_from(content.len()).unwrap_or(u8::MAX)
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
    fn both_encodings_verify() {
        let key = SigningKey::generate().unwrap();
        // Enough signatures that short and high-bit integers occur.
        for i in 0..200_u32 {
            let message = i.to_be_bytes();
            assert!(verify_fixed(
                key.public_key(),
                &message,
                &key.sign_fixed(&message).unwrap()
            ));
            let der = key.sign_der(&message).unwrap();
            assert!(verify_der(key.public_key(), &message, &der));
            assert!(!verify_der(key.public_key(), b"another", &der));
        }
    }

    #[test]
    fn other_message_key_or_signature_is_refused() {
        let key = SigningKey::generate().unwrap();
        let other = SigningKey::generate().unwrap();
        let mut signature = key.sign_fixed(b"m").unwrap();
        assert!(!verify_fixed(key.public_key(), b"n", &signature));
        assert!(!verify_fixed(other.public_key(), b"m", &signature));
        assert!(!verify_fixed(key.public_key(), b"m", &signature[..63]));
        signature[5] ^= 1;
        assert!(!verify_fixed(key.public_key(), b"m", &signature));
    }

    #[test]
    fn private_key_survives_storage() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pkcs8(key.to_pkcs8()).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        assert!(verify_fixed(
            key.public_key(),
            b"m",
            &again.sign_fixed(b"m").unwrap()
        ));
        assert!(matches!(
            SigningKey::from_pkcs8(&Secret::new(vec![0x30, 0])),
            Err(KeyError::Private(_))
        ));
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.public_key().thumbprint()));
    }

    #[test]
    fn der_integers_are_minimal() {
        assert_eq!(der_integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(der_integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(der_integer(&[0, 0]), [2, 1, 0]);
    }

    #[test]
    fn public_key_forms_are_exact() {
        let public = SigningKey::generate().unwrap().public_key().clone();
        assert_eq!(P256Public::from_spki(&public.spki()).unwrap(), public);
        let mut trailing = public.spki();
        trailing.push(0);
        assert!(P256Public::from_spki(&trailing).is_err());
        assert!(P256Public::from_spki(public.point()).is_err());
        let mut compressed = public.point().to_vec();
        compressed[0] = 2;
        assert!(P256Public::from_point(&compressed).is_err());
        assert!(P256Public::from_point(&[]).is_err());
        // The same bytes as another implementation writes.
        assert_eq!(
            rcgen::PublicKeyData::subject_public_key_info(&public),
            public.spki()
        );
    }

    #[test]
    fn thumbprint_of_a_published_key() {
        // The EC key of RFC 7517 A.1; the thumbprint was computed with other tools.
        let x = URL_SAFE_NO_PAD
            .decode("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4")
            .unwrap();
        let y = URL_SAFE_NO_PAD
            .decode("4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM")
            .unwrap();
        let public = P256Public::from_point(&[&[4], x.as_slice(), &y].concat()).unwrap();
        assert_eq!(
            public.thumbprint(),
            "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"
        );
    }
}
