//! Kind `jwt`: what stands in a token, and its signature.
//!
//! The claims are fixed as text at the intent and stored; signing only ever signs that text, so a
//! retry hands out the same token contents and the log's record of it stays true.

use std::sync::Arc;

use ephor_crypto::Secret;
use ephor_crypto::jws::JwsSigner;
use ephor_crypto::jwt::TokenKind;
use ephor_crypto::p256::KeyError;
use ephor_proto::cred::IDENTITY;
use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;
use serde_json::{Map, Value, json};

use super::Signed;
use crate::issue::{Planned, Sealed};

/// What a token says.
#[derive(Debug)]
pub struct Body<'a> {
    /// Issuer URL.
    pub issuer: &'a str,
    /// The holder's SPIFFE ID.
    pub subject: &'a str,
    /// The one service it is for.
    pub audience: &'a str,
    /// Credential id.
    pub id: CredentialId,
    /// Start, whole seconds.
    pub issued_at: UnixMillis,
    /// End, whole seconds.
    pub expires_at: UnixMillis,
    /// URL of its status list.
    pub status_uri: String,
    /// Its index there.
    pub status_index: u32,
    /// `Identity` or `Access`.
    pub kind: TokenKind,
    /// Extra claims of policy, which may not name registered ones.
    pub claims: &'a Map<String, Value>,
}

impl Body<'_> {
    /// The claims set as it is stored and signed (RFC 7519 §4, RFC 9068 §2.2, status list §6).
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut all = Map::new();
        all.insert("iss".into(), self.issuer.into());
        all.insert("sub".into(), self.subject.into());
        all.insert("aud".into(), self.audience.into());
        all.insert("exp".into(), self.expires_at.as_unix_seconds().into());
        all.insert("iat".into(), self.issued_at.as_unix_seconds().into());
        all.insert("jti".into(), self.id.to_string().into());
        match self.kind {
            TokenKind::Access => {
                all.insert("client_id".into(), self.subject.into());
            }
            TokenKind::Identity | TokenKind::StatusList => {}
        }
        let status = json!({"status_list": {"idx": self.status_index, "uri": self.status_uri}});
        all.insert("status".into(), status);
        for (name, value) in self.claims {
            // Policy was refused at load if it names one of ours; this keeps ours all the same.
            all.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Value::Object(all).to_string()
    }
}

/// The extra claims in a stored content: what policy gave beyond the registered ones.
#[must_use]
pub fn extra_claims(content: &str) -> Map<String, Value> {
    const OURS: [&str; 8] = [
        "iss",
        "sub",
        "aud",
        "exp",
        "iat",
        "jti",
        "client_id",
        "status",
    ];
    let Ok(Value::Object(mut all)) = serde_json::from_str(content) else {
        return Map::new();
    };
    all.retain(|name, _| !OURS.contains(&name.as_str()));
    all
}

/// Which kind of token an entitlement gives.
#[must_use]
pub fn token_kind(entitlement: &str) -> TokenKind {
    if entitlement == IDENTITY {
        TokenKind::Identity
    } else {
        TokenKind::Access
    }
}

/// Signs tokens of one `typ`.
pub struct Signer {
    signer: Arc<JwsSigner>,
}

impl Signer {
    /// With the token key's signer of that `typ`.
    #[must_use]
    pub fn new(signer: Arc<JwsSigner>) -> Self {
        Self { signer }
    }
}

impl Signed for Signer {
    type Out = Secret;
    type Error = KeyError;

    fn sign(&self, planned: &Planned<'_>) -> Result<Sealed<Secret>, KeyError> {
        let token = self.signer.sign(planned.content().as_bytes())?;
        Ok(Sealed::new(planned.id(), token))
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

    fn body<'a>(kind: TokenKind, claims: &'a Map<String, Value>) -> Body<'a> {
        Body {
            issuer: "https://issuer.test",
            subject: "spiffe://prod.example/orders/web",
            audience: "billing",
            id: CredentialId::from_parts(1, [3; 10]),
            issued_at: UnixMillis::from_unix_seconds(1_800_000_000),
            expires_at: UnixMillis::from_unix_seconds(1_800_000_300),
            status_uri: "http://lists.test/status/0".to_owned(),
            status_index: 77,
            kind,
            claims,
        }
    }

    #[test]
    fn an_access_token_names_its_client_and_carries_policy_claims() {
        let claims = json!({"plan": "gold", "sub": "spiffe://prod.example/root"});
        let claims = claims.as_object().unwrap();
        let text = body(TokenKind::Access, claims).to_json();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["aud"], "billing");
        assert_eq!(
            value["sub"], "spiffe://prod.example/orders/web",
            "policy cannot overwrite"
        );
        assert_eq!(value["client_id"], value["sub"]);
        assert_eq!(value["plan"], "gold");
        assert_eq!(value["exp"], 1_800_000_300_u64);
        assert_eq!(value["status"]["status_list"]["idx"], 77);
        assert_eq!(
            extra_claims(&text),
            *json!({"plan": "gold"}).as_object().unwrap()
        );
    }

    #[test]
    fn an_identity_token_has_no_client_id() {
        let text = body(TokenKind::Identity, &Map::new()).to_json();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value.get("client_id").is_none());
        assert_eq!(token_kind("identity"), TokenKind::Identity);
        assert_eq!(token_kind("billing-api"), TokenKind::Access);
    }
}
