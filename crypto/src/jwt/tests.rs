//! Each trap of the JWT world and of jsonwebtoken 11, shut.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::jws::JwsSigner;
use crate::p256::SigningKey;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://broker.test";

static KEY: LazyLock<Arc<SigningKey>> = LazyLock::new(|| Arc::new(SigningKey::generate().unwrap()));

fn keys() -> VerifyKeys {
    let mut keys = VerifyKeys::new();
    keys.insert("k1", KEY.public_key());
    keys
}

fn expected(kind: TokenKind) -> Expected<'static> {
    Expected {
        kind,
        issuer: ISSUER,
        audience: &["orders", "orders-v2"],
        now_unix: NOW,
        leeway_seconds: 5,
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "spiffe://test/web", "aud": "orders",
        "exp": NOW + 300, "iat": NOW, "jti": "id-1",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn sign(typ: &str, claims: &str) -> String {
    let signer = JwsSigner::new(Arc::clone(&KEY), typ, "k1").unwrap();
    signer
        .sign(claims.as_bytes())
        .unwrap()
        .expose_str()
        .unwrap()
        .to_owned()
}

/// A token with any header, signed with the trusted key.
fn sign_raw(header: &str, claims: &str) -> String {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = KEY.sign_fixed(message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn identity(claims: &Value) -> Result<Verified, JwtError> {
    verify(
        &sign("JWT", &claims.to_string()),
        &keys(),
        &expected(TokenKind::Identity),
    )
}

fn refused(claims: &Value) -> JwtError {
    identity(claims).expect_err(&claims.to_string())
}

#[test]
fn a_good_token_gives_typed_claims() {
    let mut good = with("nbf", json!(NOW));
    good["scope"] = json!("read");
    let verified = identity(&good).unwrap();
    assert_eq!(verified.kid(), "k1");
    let claims = verified.into_claims();
    assert_eq!(claims.sub, "spiffe://test/web");
    assert_eq!(claims.aud, ["orders"]);
    assert_eq!(
        (claims.exp, claims.iat, claims.nbf),
        (NOW + 300, NOW, Some(NOW))
    );
    assert_eq!(claims.jti, "id-1");
    assert_eq!(claims.rest.len(), 1);
    assert_eq!(claims.rest["scope"], "read");
}

#[test]
fn required_claims_are_required() {
    for name in ["iss", "sub", "aud", "exp", "iat", "jti"] {
        assert_eq!(refused(&without(name)), JwtError::Claim(name));
        assert_eq!(refused(&with(name, Value::Null)), JwtError::Claim(name));
        assert_eq!(refused(&with(name, json!({}))), JwtError::Claim(name));
    }
    for name in ["iss", "sub", "aud", "jti"] {
        assert_eq!(refused(&with(name, json!(""))), JwtError::Claim(name));
    }
}

#[test]
fn jsonwebtoken_itself_would_accept_a_missing_audience_and_issuer() {
    // Why this module exists. When this test fails the library has changed: read its notes.
    crate::tls::install();
    let token = sign("other", r#"{"exp":99999999999,"nbf":99999999998}"#);
    let mut validation = jsonwebtoken::Validation::new(Algorithm::ES256);
    validation.set_audience(&["orders"]);
    validation.set_issuer(&[ISSUER]);
    let key = DecodingKey::from_ec_der(KEY.public_key().point());
    assert!(jsonwebtoken::decode::<Value>(&token, &key, &validation).is_ok());
    assert!(verify(&token, &keys(), &expected(TokenKind::Identity)).is_err());
}

#[test]
fn audience_must_name_us() {
    assert_eq!(refused(&with("aud", json!("billing"))), JwtError::Audience);
    assert_eq!(refused(&with("aud", json!("orders "))), JwtError::Audience);
    assert_eq!(refused(&with("aud", json!([]))), JwtError::Claim("aud"));
    assert_eq!(
        refused(&with("aud", json!(["orders", 1]))),
        JwtError::Claim("aud")
    );
    assert_eq!(
        refused(&with("aud", json!(vec!["orders"; 17]))),
        JwtError::Claim("aud")
    );
    let many = identity(&with("aud", json!(["billing", "orders-v2"]))).unwrap();
    assert_eq!(many.claims().aud, ["billing", "orders-v2"]);
}

#[test]
fn issuer_is_exact() {
    for issuer in ["https://evil.test", "https://broker.test/"] {
        assert_eq!(refused(&with("iss", json!(issuer))), JwtError::Issuer);
    }
    assert_eq!(
        refused(&with("iss", json!([ISSUER]))),
        JwtError::Claim("iss")
    );
}

#[test]
fn times_are_checked_against_the_given_now() {
    // 5 s leeway: valid until now - 4, expired at now - 5; never 60 s.
    assert!(identity(&with("exp", json!(NOW - 4))).is_ok());
    assert_eq!(refused(&with("exp", json!(NOW - 5))), JwtError::Expired);
    assert_eq!(refused(&with("exp", json!(NOW - 59))), JwtError::Expired);
    for name in ["nbf", "iat"] {
        assert!(identity(&with(name, json!(NOW + 5))).is_ok());
        assert_eq!(
            refused(&with(name, json!(NOW + 6))),
            JwtError::NotYet,
            "{name}"
        );
    }
}

#[test]
fn times_are_plain_integers() {
    let bad = [
        json!((NOW + 300).to_string()),
        json!(1e300),
        json!(-1),
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(TIME_MAX + 1),
        json!(1.5),
        json!(true),
        json!([NOW]),
    ];
    for value in bad {
        for name in ["exp", "iat", "nbf"] {
            assert_eq!(
                refused(&with(name, value.clone())),
                JwtError::Claim(name),
                "{value}"
            );
        }
    }
    let float = claims()
        .to_string()
        .replace(&(NOW + 300).to_string(), "1800000300.0");
    let token = sign("JWT", &float);
    assert_eq!(
        verify(&token, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::Claim("exp")
    );
    let huge = claims()
        .to_string()
        .replace(&(NOW + 300).to_string(), "99999999999999999999999");
    let token = sign("JWT", &huge);
    assert_eq!(
        verify(&token, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::Claim("exp")
    );
}

#[test]
fn leeway_and_audience_of_the_caller_are_bounded() {
    let token = sign("JWT", &claims().to_string());
    let mut lenient = expected(TokenKind::Identity);
    lenient.leeway_seconds = 31;
    assert_eq!(
        verify(&token, &keys(), &lenient).unwrap_err(),
        JwtError::Leeway
    );
    let mut open = expected(TokenKind::Identity);
    open.audience = &[];
    assert_eq!(
        verify(&token, &keys(), &open).unwrap_err(),
        JwtError::NoAudience
    );
}

#[test]
fn one_kind_is_never_another() {
    let kinds = [
        TokenKind::Identity,
        TokenKind::Access,
        TokenKind::StatusList,
    ];
    for made in kinds {
        for wanted in kinds {
            let result = verify(
                &sign(made.typ(), &claims().to_string()),
                &keys(),
                &expected(wanted),
            );
            match made == wanted {
                true => assert!(result.is_ok(), "{made:?}"),
                false => assert_eq!(
                    result.unwrap_err(),
                    JwtError::Type,
                    "{made:?} as {wanted:?}"
                ),
            }
        }
    }
    for typ in ["jwt", "", "application/jwt"] {
        let token = sign(typ, &claims().to_string());
        assert_eq!(
            verify(&token, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
            JwtError::Type
        );
    }
}

#[test]
fn a_status_list_needs_no_audience_or_jti_but_an_expiry() {
    let list = json!({"iss": ISSUER, "sub": "https://broker.test/status/1", "iat": NOW, "exp": NOW + 60, "ttl": 5});
    let token = sign("statuslist+jwt", &list.to_string());
    let mut wanted = expected(TokenKind::StatusList);
    wanted.audience = &[];
    let verified = verify(&token, &keys(), &wanted).unwrap();
    assert!(verified.claims().aud.is_empty());
    assert_eq!(verified.claims().rest["ttl"], 5);
    let mut endless = list;
    endless.as_object_mut().unwrap().remove("exp");
    let token = sign("statuslist+jwt", &endless.to_string());
    assert_eq!(
        verify(&token, &keys(), &wanted).unwrap_err(),
        JwtError::Claim("exp")
    );
}

#[test]
fn header_is_an_exact_list() {
    let check = |header: Value| {
        let token = sign_raw(&header.to_string(), &claims().to_string());
        verify(&token, &keys(), &expected(TokenKind::Identity)).map(|_| ())
    };
    assert_eq!(
        check(json!({"alg": "ES256", "typ": "JWT", "kid": "k1"})),
        Ok(())
    );
    for name in [
        "crit", "jku", "x5u", "x5c", "jwk", "x5t", "b64", "cty", "zip", "other",
    ] {
        let mut header = json!({"alg": "ES256", "typ": "JWT", "kid": "k1"});
        header[name] = json!([]);
        assert_eq!(check(header), Err(JwtError::HeaderParameter), "{name}");
    }
    assert_eq!(
        check(json!({"typ": "JWT", "kid": "k1"})),
        Err(JwtError::Algorithm)
    );
    assert_eq!(
        check(json!({"alg": "ES256", "kid": "k1"})),
        Err(JwtError::Type)
    );
    assert_eq!(
        check(json!({"alg": "ES256", "typ": "JWT"})),
        Err(JwtError::UnknownKey)
    );
    assert_eq!(
        check(json!({"alg": "ES256", "typ": "JWT", "kid": 1})),
        Err(JwtError::UnknownKey)
    );
    assert_eq!(
        check(json!({"alg": "ES256", "typ": "JWT", "kid": "k2"})),
        Err(JwtError::UnknownKey)
    );
}

#[test]
fn long_kid_is_not_looked_up() {
    let kid = "k".repeat(KID_MAX + 1);
    let mut keys = keys();
    keys.insert(&kid, KEY.public_key());
    let header = json!({"alg": "ES256", "typ": "JWT", "kid": kid}).to_string();
    let token = sign_raw(&header, &claims().to_string());
    assert_eq!(
        verify(&token, &keys, &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::UnknownKey
    );
}

#[test]
fn other_algorithms_are_refused() {
    for alg in [
        "none", "None", "HS256", "RS256", "ES384", "EdDSA", "es256", "",
    ] {
        let header = json!({"alg": alg, "typ": "JWT", "kid": "k1"}).to_string();
        let token = sign_raw(&header, &claims().to_string());
        assert_eq!(
            verify(&token, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
            JwtError::Algorithm,
            "{alg}"
        );
        let (message, _) = token.rsplit_once('.').unwrap();
        let unsigned = format!("{message}.");
        assert_eq!(
            verify(&unsigned, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
            JwtError::Algorithm
        );
    }
}

#[test]
fn the_public_key_is_no_hmac_secret() {
    use crate::provider::hmac_sha256_for_tests;
    for secret in [KEY.public_key().point().to_vec(), KEY.public_key().spki()] {
        for alg in ["HS256", "ES256"] {
            let header = json!({"alg": alg, "typ": "JWT", "kid": "k1"}).to_string();
            let message = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(header),
                URL_SAFE_NO_PAD.encode(claims().to_string())
            );
            let mac = hmac_sha256_for_tests(&secret, message.as_bytes());
            let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac));
            let error = verify(&token, &keys(), &expected(TokenKind::Identity)).unwrap_err();
            assert!(
                matches!(error, JwtError::Algorithm | JwtError::Signature),
                "{alg} {error}"
            );
        }
    }
}

#[test]
fn signature_is_checked() {
    let token = sign("JWT", &claims().to_string());
    let other = SigningKey::generate().unwrap();
    let mut wrong = VerifyKeys::new();
    wrong.insert("k1", other.public_key());
    assert_eq!(
        verify(&token, &wrong, &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::Signature
    );
    let mut removed = keys();
    removed.remove("k1");
    assert_eq!(
        verify(&token, &removed, &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::UnknownKey
    );

    let parts: Vec<&str> = token.split('.').collect();
    let forged = URL_SAFE_NO_PAD.encode(with("sub", json!("spiffe://test/admin")).to_string());
    let zero = URL_SAFE_NO_PAD.encode([0; 64]);
    for bad in [
        format!("{}.{forged}.{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        // CVE-2022-21449: r = s = 0.
        format!("{}.{}.{zero}", parts[0], parts[1]),
        format!("{token}="),
    ] {
        assert_eq!(
            verify(&bad, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
            JwtError::Signature,
            "{bad}"
        );
    }
}

#[test]
fn duplicate_keys_are_refused() {
    let twice = claims()
        .to_string()
        .replacen('{', r#"{"aud":"billing","#, 1);
    let token = sign("JWT", &twice);
    assert_eq!(
        verify(&token, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::Malformed
    );
    let token = sign_raw(
        r#"{"alg":"none","alg":"ES256","typ":"JWT","kid":"k1"}"#,
        &claims().to_string(),
    );
    assert_eq!(
        verify(&token, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::Malformed
    );
}

#[test]
fn shape_and_size_are_checked() {
    let token = sign("JWT", &claims().to_string());
    for bad in [
        String::new(),
        "a".into(),
        "a.b".into(),
        "..".into(),
        format!("{token}.x"),
        format!("x.{token}"),
        format!(" {token}"),
    ] {
        assert_eq!(
            verify(&bad, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
            JwtError::Malformed,
            "{bad}"
        );
    }
    let long = sign(
        "JWT",
        &with("pad", json!("x".repeat(TOKEN_MAX))).to_string(),
    );
    assert_eq!(
        verify(&long, &keys(), &expected(TokenKind::Identity)).unwrap_err(),
        JwtError::TooLong
    );
}

proptest! {
    #[test]
    fn random_text_is_refused_without_panic(token in "[A-Za-z0-9_.=-]{0,80}") {
        prop_assert!(verify(&token, &keys(), &expected(TokenKind::Access)).is_err());
    }

    #[test]
    fn any_changed_byte_is_refused(position in any::<prop::sample::Index>(), replacement in "[A-Za-z0-9_.-]") {
        let token = sign("JWT", &claims().to_string());
        let at = position.index(token.len());
        prop_assume!(token[at..=at] != replacement);
        let changed = format!("{}{replacement}{}", &token[..at], &token[at + 1..]);
        prop_assert!(verify(&changed, &keys(), &expected(TokenKind::Identity)).is_err());
    }
}
