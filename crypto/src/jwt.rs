//! Verifying the tokens that Ephor issues.
//!
//! One row of `TokenKind::rule` per kind of token says all that is required of it. The
//! signature is checked by jsonwebtoken; every other rule is ours, because jsonwebtoken 11
//! accepts a missing `aud` or `iss`, a future `nbf`, any `typ`, sixty seconds of leeway
//! and `exp` as a float, and reads the system clock itself. The tests below hold each of
//! these shut. Keys are found by `kid` in a set the caller trusts, never in the token.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::p256::P256Public;
use crate::strict_json;

/// Longest `kid` that is looked up, in bytes.
pub const KID_MAX: usize = 128;
/// Longest identity or access token, in bytes.
pub const TOKEN_MAX: usize = 16 * 1024;
/// Longest status list token, in bytes.
pub const STATUS_LIST_MAX: usize = 1024 * 1024;
/// Largest leeway a caller may ask for, in seconds.
pub const LEEWAY_MAX_SECONDS: u32 = 30;
/// Most audiences in one token.
const AUDIENCES_MAX: usize = 16;
/// 9999-12-31T23:59:59Z: nothing later is a date.
const TIME_MAX: i64 = 253_402_300_799;

/// What a token is for. A token of one kind is never accepted as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A subject's identity (SPIFFE JWT-SVID), `typ` `JWT`.
    Identity,
    /// A right that an entitlement gave (RFC 9068), `typ` `at+jwt`.
    Access,
    /// A token status list, `typ` `statuslist+jwt`. Has no audience.
    StatusList,
}

struct Rule {
    typ: &'static str,
    token_max: usize,
    audience: bool,
    jti: bool,
}

impl TokenKind {
    /// The `typ` header of this kind, compared exactly.
    #[must_use]
    pub fn typ(self) -> &'static str {
        self.rule().typ
    }

    /// `exp`, `iat`, `iss` and `sub` are required of every kind.
    fn rule(self) -> Rule {
        match self {
            Self::Identity => Rule {
                typ: "JWT",
                token_max: TOKEN_MAX,
                audience: true,
                jti: true,
            },
            Self::Access => Rule {
                typ: "at+jwt",
                token_max: TOKEN_MAX,
                audience: true,
                jti: true,
            },
            Self::StatusList => Rule {
                typ: "statuslist+jwt",
                token_max: STATUS_LIST_MAX,
                audience: false,
                jti: false,
            },
        }
    }
}

/// Why a token was refused. Says which rule, never what the token contained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JwtError {
    /// Longer than this kind may be.
    #[error("token refused: too long")]
    TooLong,
    /// Not three base64url parts of which the first two are JSON objects without duplicate keys.
    #[error(
        "token refused: malformed (three base64url parts, JSON objects without duplicate keys)"
    )]
    Malformed,
    /// `alg` is not ES256.
    #[error("token refused: `alg` must be ES256")]
    Algorithm,
    /// `typ` is not the one of the expected kind.
    #[error("token refused: wrong `typ` for its use")]
    Type,
    /// A header parameter besides `alg`, `typ` and `kid`: `crit`, `jku`, `x5u`, `x5c`, `jwk`…
    #[error("token refused: header has a parameter besides `alg`, `typ` and `kid`")]
    HeaderParameter,
    /// No key of that `kid` is trusted.
    #[error("token refused: no trusted key has its `kid`; refresh the JWKS if the issuer rotated")]
    UnknownKey,
    /// The signature is not one of that key.
    #[error("token refused: signature does not verify")]
    Signature,
    /// A required claim is missing or has the wrong type or range.
    #[error("token refused: claim `{0}` is missing or malformed")]
    Claim(&'static str),
    /// Issued by someone else.
    #[error("token refused: `iss` is not the expected issuer")]
    Issuer,
    /// Meant for someone else.
    #[error("token refused: `aud` does not name this service")]
    Audience,
    /// `exp` plus leeway has passed.
    #[error("token refused: expired")]
    Expired,
    /// `nbf` or `iat` lies in the future by more than the leeway.
    #[error("token refused: not valid yet; compare the clocks of issuer and verifier")]
    NotYet,
    /// The caller asked for more leeway than [`LEEWAY_MAX_SECONDS`].
    #[error("verifier misconfigured: leeway over 30 seconds")]
    Leeway,
    /// The caller expects an audience-bound token but named no audience.
    #[error("verifier misconfigured: no audience given")]
    NoAudience,
}

/// Trusted ES256 keys by `kid`.
#[derive(Clone, Debug, Default)]
pub struct VerifyKeys(HashMap<String, DecodingKey>);

impl VerifyKeys {
    /// No keys: every token is refused.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts `public` for tokens whose header has `kid`.
    pub fn insert(&mut self, kid: &str, public: &P256Public) {
        // jsonwebtoken settles on a provider at first use and panics without one.
        crate::tls::install();
        self.0
            .insert(kid.to_owned(), DecodingKey::from_ec_der(public.point()));
    }

    /// Stops trusting the key `kid`.
    pub fn remove(&mut self, kid: &str) {
        self.0.remove(kid);
    }
}

/// What the verifier demands beyond the rules of the kind.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Which kind of token this place accepts.
    pub kind: TokenKind,
    /// The only accepted issuer, compared exactly.
    pub issuer: &'a str,
    /// Names of this service; the token must name at least one. Ignored for status lists.
    pub audience: &'a [&'a str],
    /// Wall time in seconds since 1970.
    pub now_unix: i64,
    /// Tolerated clock difference in seconds, at most [`LEEWAY_MAX_SECONDS`].
    pub leeway_seconds: u32,
}

/// The claims of a verified token (RFC 7519 §4.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// Subject.
    pub sub: String,
    /// Audiences; empty only for status lists.
    pub aud: Vec<String>,
    /// Expiry, seconds since 1970.
    pub exp: i64,
    /// Time of issue, seconds since 1970.
    pub iat: i64,
    /// Start of validity, seconds since 1970.
    pub nbf: Option<i64>,
    /// Token id; empty only for status lists that have none.
    pub jti: String,
    /// All other claims.
    pub rest: Map<String, Value>,
}

/// Proof that a token passed [`verify`]; nothing else makes one.
///
/// ```compile_fail
/// fn forge(claims: ephor_crypto::jwt::Claims) -> ephor_crypto::jwt::Verified {
///     ephor_crypto::jwt::Verified { claims, kid: String::new() }
/// }
/// ```
#[derive(Debug)]
pub struct Verified {
    claims: Claims,
    kid: String,
}

impl Verified {
    /// The verified claims.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The verified claims, by value.
    #[must_use]
    pub fn into_claims(self) -> Claims {
        self.claims
    }

    /// Id of the key that signed.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }
}

/// Verifies `token` against `keys` and `expected`.
///
/// # Errors
/// The first rule that the token, or the caller, broke. Claims are parsed only after the
/// signature was found good.
pub fn verify(
    token: &str,
    keys: &VerifyKeys,
    expected: &Expected<'_>,
) -> Result<Verified, JwtError> {
    let rule = expected.kind.rule();
    check_expectation(&rule, expected)?;
    if token.len() > rule.token_max {
        return Err(JwtError::TooLong);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(JwtError::Malformed)?;
    if payload.contains('.') {
        return Err(JwtError::Malformed);
    }
    let kid = check_header(&decode_object(header)?, rule.typ)?;
    let key = keys.0.get(&kid).ok_or(JwtError::UnknownKey)?;
    match jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, Algorithm::ES256) {
        Ok(true) => {}
        Ok(false) | Err(_) => return Err(JwtError::Signature),
    }
    let claims = typed_claims(decode_object(payload)?, &rule)?;
    check_claims(&claims, &rule, expected)?;
    Ok(Verified { claims, kid })
}

fn check_expectation(rule: &Rule, expected: &Expected<'_>) -> Result<(), JwtError> {
    if expected.leeway_seconds > LEEWAY_MAX_SECONDS {
        return Err(JwtError::Leeway);
    }
    if rule.audience && expected.audience.is_empty() {
        return Err(JwtError::NoAudience);
    }
    Ok(())
}

fn decode_object(part: &str) -> Result<Map<String, Value>, JwtError> {
    let json = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| JwtError::Malformed)?;
    strict_json::object(&json).map_err(|_| JwtError::Malformed)
}

/// The `kid` of an acceptable header. A list of what is allowed: a parameter nobody here
/// understands must not be skipped (RFC 7515 §4.1.11), and one that brings its own key
/// (`jku`, `jwk`, `x5u`, `x5c`) must never be obeyed (RFC 8725 §3.10).
fn check_header(header: &Map<String, Value>, typ: &str) -> Result<String, JwtError> {
    if header
        .keys()
        .any(|name| !matches!(name.as_str(), "alg" | "typ" | "kid"))
    {
        return Err(JwtError::HeaderParameter);
    }
    if header.get("alg").and_then(Value::as_str) != Some("ES256") {
        return Err(JwtError::Algorithm);
    }
    if header.get("typ").and_then(Value::as_str) != Some(typ) {
        return Err(JwtError::Type);
    }
    match header.get("kid").and_then(Value::as_str) {
        Some(kid) if kid.len() <= KID_MAX => Ok(kid.to_owned()),
        Some(_) | None => Err(JwtError::UnknownKey),
    }
}

fn typed_claims(mut claims: Map<String, Value>, rule: &Rule) -> Result<Claims, JwtError> {
    Ok(Claims {
        iss: text(claims.remove("iss"), "iss")?,
        sub: text(claims.remove("sub"), "sub")?,
        aud: match claims.remove("aud") {
            None if !rule.audience => Vec::new(),
            value => audiences(value)?,
        },
        exp: time(claims.remove("exp"), "exp")?,
        iat: time(claims.remove("iat"), "iat")?,
        nbf: match claims.remove("nbf") {
            None => None,
            value => Some(time(value, "nbf")?),
        },
        jti: match claims.remove("jti") {
            None if !rule.jti => String::new(),
            value => text(value, "jti")?,
        },
        rest: claims,
    })
}

fn text(value: Option<Value>, name: &'static str) -> Result<String, JwtError> {
    match value {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(_) | None => Err(JwtError::Claim(name)),
    }
}

/// One string or an array of them (RFC 7519 §4.1.3).
fn audiences(value: Option<Value>) -> Result<Vec<String>, JwtError> {
    match value {
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= AUDIENCES_MAX => items
            .into_iter()
            .map(|item| text(Some(item), "aud"))
            .collect(),
        single => Ok(vec![text(single, "aud")?]),
    }
}

/// A NumericDate that is an integer: no float, no string, no sign, no overflow.
fn time(value: Option<Value>, name: &'static str) -> Result<i64, JwtError> {
    value
        .as_ref()
        .and_then(Value::as_i64)
        .filter(|seconds| (0..=TIME_MAX).contains(seconds))
        .ok_or(JwtError::Claim(name))
}

fn check_claims(claims: &Claims, rule: &Rule, expected: &Expected<'_>) -> Result<(), JwtError> {
    if claims.iss != expected.issuer {
        return Err(JwtError::Issuer);
    }
    if rule.audience
        && !claims
            .aud
            .iter()
            .any(|aud| expected.audience.contains(&aud.as_str()))
    {
        return Err(JwtError::Audience);
    }
    let leeway = i64::from(expected.leeway_seconds);
    // RFC 7519 §4.1.4: on or after `exp` the token is no longer accepted.
    if claims.exp <= expected.now_unix.saturating_sub(leeway) {
        return Err(JwtError::Expired);
    }
    let latest_start = expected.now_unix.saturating_add(leeway);
    if claims.iat > latest_start || claims.nbf.is_some_and(|nbf| nbf > latest_start) {
        return Err(JwtError::NotYet);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
