//! Public keys as JSON Web Keys (RFC 7517), for the JWKS that verifiers fetch.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::x509::X509Error;

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
    /// Intended use: `sig`, or `jwt-svid` in a SPIFFE bundle.
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

    /// The same as an entry of a SPIFFE trust bundle (SPIFFE Trust Domain and Bundle §4.2).
    #[must_use]
    pub fn into_token_entry(self) -> Self {
        Self {
            usage: "jwt-svid".to_owned(),
            ..self
        }
    }
}

/// A root as an entry of a SPIFFE trust bundle (SPIFFE Trust Domain and Bundle §4.2): the key's
/// own members, and the certificate in `x5c`.
///
/// # Errors
/// When it is no certificate with an RSA or elliptic-curve key.
pub fn root_entry(der: &[u8]) -> Result<Value, X509Error> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|_| X509Error::Malformed)?;
    let key = parsed.public_key().parsed();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut entry = match key.map_err(|_| X509Error::Malformed)? {
        PublicKey::EC(point) => {
            let coordinates = point.data().get(1..).unwrap_or_default();
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            let curve = match x.len() {
                32 => "P-256",
                48 => "P-384",
                66 => "P-521",
                _ => return Err(X509Error::Ca("its curve is none of P-256, P-384 and P-521")),
            };
            json!({"kty": "EC", "crv": curve, "x": number(x), "y": number(y)})
        }
        PublicKey::RSA(rsa) => {
            let unpadded = |bytes: &[u8]| {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                number(bytes.get(zeros..).unwrap_or_default())
            };
            json!({"kty": "RSA", "n": unpadded(rsa.modulus), "e": unpadded(rsa.exponent)})
        }
        _ => {
            return Err(X509Error::Ca(
                "its key is neither RSA nor on an elliptic curve",
            ));
        }
    };
    if let Some(members) = entry.as_object_mut() {
        members.insert("use".to_owned(), "x509-svid".into());
        members.insert("x5c".to_owned(), json!([STANDARD.encode(der)]));
    }
    Ok(entry)
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
