//! Signing of compact JWS (RFC 7515 §7.1) with ES256.
//!
//! jsonwebtoken parses the private key again at every `encode`; this signer keeps it
//! parsed and its header encoded, so a token costs one signature.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use crate::Secret;
use crate::p256::{KeyError, SigningKey};

/// base64url length of a 64-byte signature.
const SIGNATURE_TEXT_LEN: usize = 86;

/// Signs tokens of one `typ` with one key.
#[derive(Debug)]
pub struct JwsSigner {
    key: Arc<SigningKey>,
    kid: String,
    /// The encoded protected header and the dot behind it.
    prefix: String,
}

#[derive(Serialize)]
struct ProtectedHeader<'a> {
    alg: &'static str,
    typ: &'a str,
    kid: &'a str,
}

impl JwsSigner {
    /// A signer for tokens whose header is `{"alg":"ES256","typ":typ,"kid":kid}`.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when the header cannot be encoded.
    pub fn new(key: Arc<SigningKey>, typ: &str, kid: &str) -> Result<Self, KeyError> {
        let header = serde_json::to_vec(&ProtectedHeader {
            alg: "ES256",
            typ,
            kid,
        })
        .map_err(|_| KeyError::Sign)?;
        let mut prefix = URL_SAFE_NO_PAD.encode(header);
        prefix.push('.');
        Ok(Self {
            key,
            kid: kid.to_owned(),
            prefix,
        })
    }

    /// Key id in the header.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The token over `claims`, which must be a JSON object already encoded.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when the provider refuses.
    pub fn sign(&self, claims: &[u8]) -> Result<Secret, KeyError> {
        let capacity = claims
            .len()
            .saturating_mul(4)
            .div_ceil(3)
            .saturating_add(self.prefix.len())
            .saturating_add(1 + SIGNATURE_TEXT_LEN);
        // Large enough from the start: a reallocation would leave a copy behind unwiped.
        let mut token = String::with_capacity(capacity);
        token.push_str(&self.prefix);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.key.sign_fixed(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(Secret::from_string(token))
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
    use crate::p256::verify_fixed;

    #[test]
    fn token_has_header_claims_and_signature() {
        let key = Arc::new(SigningKey::generate().unwrap());
        let signer = JwsSigner::new(Arc::clone(&key), "at+jwt", "a\"b").unwrap();
        let token = signer.sign(br#"{"sub":"x"}"#).unwrap();
        let text = token.expose_str().unwrap();
        let parts: Vec<&str> = text.split('.').collect();
        assert_eq!(parts.len(), 3);
        let header: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[0]).unwrap()).unwrap();
        assert_eq!(
            header,
            serde_json::json!({"alg": "ES256", "typ": "at+jwt", "kid": "a\"b"})
        );
        assert_eq!(URL_SAFE_NO_PAD.decode(parts[1]).unwrap(), br#"{"sub":"x"}"#);
        let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        let signed = format!("{}.{}", parts[0], parts[1]);
        assert!(verify_fixed(
            key.public_key(),
            signed.as_bytes(),
            &signature
        ));
    }

    #[test]
    fn an_independent_library_accepts_the_token() {
        crate::tls::install();
        let key = Arc::new(SigningKey::generate().unwrap());
        let signer = JwsSigner::new(Arc::clone(&key), "JWT", "k").unwrap();
        let token = signer
            .sign(br#"{"sub":"x","exp":99999999999,"aud":"a"}"#)
            .unwrap();
        let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        validation.set_audience(&["a"]);
        let data = jsonwebtoken::decode::<serde_json::Value>(
            token.expose(),
            &jsonwebtoken::DecodingKey::from_ec_der(key.public_key().point()),
            &validation,
        )
        .unwrap();
        assert_eq!(data.claims["sub"], "x");
    }
}
