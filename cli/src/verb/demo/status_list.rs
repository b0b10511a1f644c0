//! A verifier that does not ask about tokens but fetches the status list, verifies it, and
//! looks at one bit (IETF Token Status List).

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_crypto::jwt::{Expected, TokenKind, VerifyKeys, verify};
use ephor_crypto::p256::P256Public;
use flate2::read::ZlibDecoder;
use serde_json::Value;

use super::web;
use crate::clock;
use crate::exit::Failure;

/// Largest list once unpacked: 2^23 tokens.
const LIST_MAX: u64 = 1 << 20;

/// Where a token's bit is, from the token itself.
pub struct Place {
    uri: String,
    index: usize,
}

/// Fetches status lists of one issuer.
pub struct Verifier {
    keys: VerifyKeys,
    issuer: String,
}

impl Verifier {
    /// With the issuer's keys as fetched.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn new(issuer: &str, jwks: &Value) -> Result<Self, Failure> {
        let mut keys = VerifyKeys::new();
        let list = jwks
            .get("keys")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for key in &list {
            let (kid, public) = public_key(key)
                .ok_or_else(|| Failure::local("the broker's keys", "one is no P-256 key"))?;
            keys.insert(&kid, &public);
        }
        Ok(Self {
            keys,
            issuer: issuer.to_owned(),
        })
    }

    /// Verifies a token without asking anybody, as its receiver does; gives its place.
    ///
    /// # Errors
    /// When the token does not hold.
    pub fn place(&self, token: &str, audience: &str) -> Result<Place, Failure> {
        let claims = self.verified(token, TokenKind::Access, &[audience])?;
        let status = claims
            .rest
            .get("status")
            .and_then(|status| status.get("status_list"));
        let uri = status
            .and_then(|list| list.get("uri"))
            .and_then(Value::as_str);
        let index = status
            .and_then(|list| list.get("idx"))
            .and_then(Value::as_u64);
        match (uri, index.and_then(|index| usize::try_from(index).ok())) {
            (Some(uri), Some(index)) => Ok(Place {
                uri: uri.to_owned(),
                index,
            }),
            (_, _) => Err(Failure::local(
                "the token",
                "names no place in a status list",
            )),
        }
    }

    /// Whether a freshly fetched list revokes the token at `place`.
    ///
    /// # Errors
    /// When the list cannot be fetched or does not verify.
    pub async fn is_listed(&self, place: &Place) -> Result<bool, Failure> {
        let failed = |why: &str| Failure::local(&place.uri, why);
        let answer = web::call(
            None,
            &web::Get {
                url: place.uri.clone(),
                bearer: None,
            },
        )
        .await?;
        let text = std::str::from_utf8(&answer.body).map_err(|_| failed("is no status list"))?;
        let claims = self.verified(text, TokenKind::StatusList, &[])?;
        if claims.sub != place.uri {
            return Err(failed("gave another list"));
        }
        let packed = claims
            .rest
            .get("status_list")
            .and_then(|list| list.get("lst"))
            .and_then(Value::as_str);
        let packed = packed.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let bits = packed
            .and_then(|packed| unpacked(&packed))
            .ok_or_else(|| failed("holds no bits"))?;
        let byte = bits
            .get(place.index / 8)
            .ok_or_else(|| failed("is too short"))?;
        Ok(byte >> (place.index % 8) & 1 == 1)
    }

    fn verified(
        &self,
        text: &str,
        kind: TokenKind,
        audience: &[&str],
    ) -> Result<ephor_crypto::jwt::Claims, Failure> {
        let now_unix = i64::try_from(clock::wall().as_unix_seconds()).unwrap_or(i64::MAX);
        let expected = Expected {
            kind,
            issuer: &self.issuer,
            audience,
            now_unix,
            leeway_seconds: 5,
        };
        let verified = verify(text, &self.keys, &expected);
        verified
            .map(|verified| verified.into_claims())
            .map_err(|why| Failure::local("a token of the broker", why))
    }
}

fn public_key(jwk: &Value) -> Option<(String, P256Public)> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let mut point = vec![4];
    for name in ["x", "y"] {
        point.extend(URL_SAFE_NO_PAD.decode(text(name)?).ok()?);
    }
    Some((
        text("kid")?.to_owned(),
        P256Public::from_point(&point).ok()?,
    ))
}

fn unpacked(packed: &[u8]) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    ZlibDecoder::new(packed)
        .take(LIST_MAX)
        .read_to_end(&mut bits)
        .ok()?;
    Some(bits)
}
