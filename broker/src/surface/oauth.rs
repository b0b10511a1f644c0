//! The OAuth face: discovery (OIDC, RFC 8414), keys (RFC 7517), introspection (RFC 7662) and
//! revocation (RFC 7009).

use std::sync::Arc;

use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use ephor_proto::problem::Code;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::{ProblemResponse, correlation};
use crate::app::Broker;
use crate::limits;
use crate::prove::Active;
use crate::request::Refusal;
use crate::revoke::RevokedCredential;

/// The routes of the HTTPS listener.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/.well-known/oauth-authorization-server", get(discovery))
        .route("/jwks", get(jwks))
        .route("/introspect", post(introspect))
        .route("/revoke", post(revoke))
        .layer(DefaultBodyLimit::max(limits::FORM_BODY))
        .with_state(broker)
}

/// RFC 7662 §2.1 and RFC 7009 §2.1. Holds a secret: no `Debug`.
#[derive(Deserialize)]
struct TokenForm {
    token: String,
    /// Only a hint, and there is one kind of token here.
    #[serde(default, rename = "token_type_hint")]
    _hint: Option<String>,
}

async fn discovery(State(broker): State<Arc<Broker>>) -> Response {
    let issuer = &broker.installation.issuer;
    let base = issuer.trim_end_matches('/');
    let document = json!({
        "issuer": issuer,
        "jwks_uri": format!("{base}/jwks"),
        "introspection_endpoint": format!("{base}/introspect"),
        "revocation_endpoint": format!("{base}/revoke"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "jti", "client_id", "status"],
    });
    public(document)
}

async fn jwks(State(broker): State<Arc<Broker>>) -> Response {
    // An old copy may hold keys that were distrusted since.
    if let Err(refusal) = broker.vouch() {
        return refused(&broker, refusal);
    }
    let keys = broker.keys.load();
    let set: Vec<_> = keys
        .token_keys()
        .iter()
        .map(|(kid, key)| key.jwk(kid))
        .collect();
    // No longer than a key is published ahead of its use.
    cached(
        json!({ "keys": set }),
        broker.schedule.refresh_hint_seconds(),
    )
}

async fn introspect(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Response {
    let token = match form {
        Ok(Form(form)) => form.token,
        Err(rejection) => return malformed(&broker, &rejection),
    };
    match broker.introspect(bearer(&headers), &token) {
        Ok(Some(active)) => private(StatusCode::OK, active_body(&active)),
        Ok(None) => private(StatusCode::OK, json!({"active": false})),
        Err(refusal) => refused(&broker, refusal),
    }
}

async fn revoke(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Response {
    let token = match form {
        Ok(Form(form)) => form.token,
        Err(rejection) => return malformed(&broker, &rejection),
    };
    match broker.revoke_token(bearer(&headers), &token).await {
        Ok(Some(revoked)) => private(StatusCode::OK, revoked_body(&broker, &revoked)),
        // RFC 7009 §2.2: an unknown token is as revoked as can be.
        Ok(None) => private(StatusCode::OK, json!({})),
        Err(refusal) => refused(&broker, refusal),
    }
}

fn active_body(active: &Active) -> Value {
    let Active { row, claims } = active;
    json!({
        "active": true,
        "client_id": claims.sub,
        "sub": claims.sub,
        "aud": row.item,
        "iss": claims.iss,
        "exp": claims.exp,
        "iat": claims.iat,
        "jti": claims.jti,
        "token_type": "Bearer",
        "entitlement": row.entitlement,
        "owner": row.owner,
        "purpose": row.purpose,
        "task_id": row.task,
    })
}

fn revoked_body(broker: &Broker, revoked: &RevokedCredential) -> Value {
    let row = &revoked.row;
    json!({
        "credential": row.id,
        "state": row.state,
        "revoked_at": row.revoked_at,
        "listed_until": row.expires_at,
        "status_list": {"uri": broker.lists.uri(row.status_list), "idx": row.status_index},
        "evidence": row.evidence,
    })
}

/// RFC 6750 §2.1; the scheme is case-insensitive (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn public(document: Value) -> Response {
    cached(document, limits::DISCOVERY_SECONDS)
}

fn cached(document: Value, seconds: u64) -> Response {
    let cache = [(header::CACHE_CONTROL, format!("public, max-age={seconds}"))];
    (cache, Json(document)).into_response()
}

fn private(status: StatusCode, body: Value) -> Response {
    let cache = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (status, cache, Json(body)).into_response()
}

/// RFC 6749 §5.2, with our code and correlation id beside it.
fn malformed(broker: &Broker, rejection: &FormRejection) -> Response {
    let (status, code) = match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => (StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge),
        _ => (StatusCode::BAD_REQUEST, Code::InvalidRequest),
    };
    let body = json!({
        "error": "invalid_request",
        "error_description": "send a form (application/x-www-form-urlencoded) with the field `token`",
        "code": code,
        "correlation_id": correlation(broker.clock.as_ref()),
    });
    private(status, body)
}

fn refused(broker: &Broker, refusal: Refusal) -> Response {
    let is_unauthenticated = refusal.code == Code::Unauthenticated;
    let mut response = ProblemResponse::of(refusal, broker.clock.as_ref()).into_response();
    if is_unauthenticated {
        let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_is_found_whatever_the_case_of_its_scheme() {
        let with = |value: &'static str| {
            HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
        };
        assert_eq!(bearer(&with("Bearer abc")), Some("abc"));
        assert_eq!(bearer(&with("bearer  abc ")), Some("abc"));
        assert_eq!(bearer(&with("Basic abc")), None);
        assert_eq!(bearer(&with("abc")), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
