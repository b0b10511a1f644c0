//! Public keys as JSON Web Keys (RFC 7517), for the JWKS that verifiers fetch.

use serde::{Deserialize, Serialize};

/// One P-256 verification key of a JWKS. Holds public values only; a private member has
/// no field to go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// Key type, always `EC`.
    pub kty: String,
    /// Curve, always `P-256`.
    pub crv: String,
    /// X coordinate, base64url of 32 bytes.
    pub x: String,
    /// Y coordinate, base64url of 32 bytes.
    pub y: String,
    /// Intended use, `sig`.
    #[serde(rename = "use")]
    pub usage: String,
    /// Algorithm, `ES256`.
    pub alg: String,
    /// Key id as it stands in token headers.
    pub kid: String,
}

impl Jwk {
    pub(crate) fn p256(x: String, y: String, kid: &str) -> Self {
        Self {
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x,
            y,
            usage: "sig".to_owned(),
            alg: "ES256".to_owned(),
            kid: kid.to_owned(),
        }
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
    use crate::p256::SigningKey;

    #[test]
    fn has_the_members_a_verifier_needs() {
        let key = SigningKey::generate().unwrap();
        let kid = key.public_key().thumbprint();
        let value = serde_json::to_value(key.public_key().jwk(&kid)).unwrap();
        assert_eq!(value["kty"], "EC");
        assert_eq!(value["crv"], "P-256");
        assert_eq!(value["use"], "sig");
        assert_eq!(value["alg"], "ES256");
        assert_eq!(value["kid"], kid.as_str());
        assert_eq!(value.as_object().unwrap().len(), 7);
        // An independent reader takes it for the same key.
        crate::tls::install();
        let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(value).unwrap();
        let decoded = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
        assert_eq!(
            decoded.try_get_as_bytes().unwrap(),
            key.public_key().point()
        );
    }
}
