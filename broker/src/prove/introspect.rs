//! Asking about a token (RFC 7662), and handing one in (RFC 7009).
//!
//! Who asks is proven by a token of its own for our issuer, or by the token itself. A token that is
//! unknown, ended, or not the caller's to ask about gives one and the same answer.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_crypto::jwt::{Claims, Expected, JwtError, TOKEN_MAX, verify};
use ephor_proto::id::CredentialId;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::time::UnixMillis;

use crate::app::Broker;
use crate::issue::store_unavailable;
use crate::kind::jwt;
use crate::ledger::CredentialRow;
use crate::request::Refusal;
use crate::revoke::RevokedCredential;

/// What is told about an active token.
#[derive(Debug, Clone)]
pub struct Active {
    /// Its stored row.
    pub row: CredentialRow,
    /// The claims of the copy that was presented; an older copy of a renewed token has an earlier end.
    pub claims: Claims,
}

/// Who is asking.
enum Caller {
    /// The token asks about itself.
    Itself(Box<Known>),
    /// A service with a live token for our issuer.
    Service(SpiffeId),
}

/// A token that we signed, whatever became of it.
struct Known {
    row: CredentialRow,
    /// `None` when its time is over.
    claims: Option<Claims>,
}

impl Broker {
    /// What introspection answers. `None` is `{"active": false}`, for whatever reason.
    ///
    /// # Errors
    /// `unauthenticated` when the caller is not proven; the store cannot be read.
    pub fn introspect(&self, bearer: Option<&str>, token: &str) -> Result<Option<Active>, Refusal> {
        let now = self.clock.wall();
        let (known, by) = match self.caller(bearer, token, now)? {
            Caller::Itself(known) => (Some(*known), None),
            Caller::Service(subject) => (self.visible_to(&subject, token, now)?, Some(subject)),
        };
        let Some(Known {
            row,
            claims: Some(claims),
        }) = known
        else {
            return Ok(None);
        };
        if !row.state.is_usable() || now >= row.expires_at {
            return Ok(None);
        }
        // Revoked after the copy that this store was restored from? Nobody here can tell.
        self.vouch()?;
        if let Some(by) = by {
            self.uses.record(row.id, by.as_str(), now);
        }
        Ok(Some(Active { row, claims }))
    }

    /// Revokes the token that was handed in. `None`: unknown, or not the caller's to end.
    ///
    /// # Errors
    /// `unauthenticated` when the caller is not proven; `overdue` while its end is not proven.
    pub async fn revoke_token(
        &self,
        bearer: Option<&str>,
        token: &str,
    ) -> Result<Option<RevokedCredential>, Refusal> {
        self.vouch()?;
        let now = self.clock.wall();
        let (known, reason) = match self.caller(bearer, token, now)? {
            Caller::Itself(known) => (Some(*known), "handed in by its holder".to_owned()),
            Caller::Service(subject) => (
                self.visible_to(&subject, token, now)?,
                format!("handed in by {subject}"),
            ),
        };
        match known {
            Some(known) => self.revoke(known.row.id, &reason).await.map(Some),
            None => Ok(None),
        }
    }

    fn caller(
        &self,
        bearer: Option<&str>,
        token: &str,
        now: UnixMillis,
    ) -> Result<Caller, Refusal> {
        let unproven = || {
            let detail = "show who you are: `Authorization: Bearer` with a live token whose audience is this \
                          issuer, or with the token itself";
            Refusal::new(Code::Unauthenticated, detail)
        };
        let bearer = bearer.ok_or_else(unproven)?;
        let known = self.known(bearer, now)?.ok_or_else(unproven)?;
        if bearer == token {
            return Ok(Caller::Itself(Box::new(known)));
        }
        self.vouch()?;
        let is_for_us = known.row.item == self.installation.issuer;
        let is_live =
            known.claims.is_some() && known.row.state.is_usable() && now < known.row.expires_at;
        if !(is_for_us && is_live) {
            return Err(unproven());
        }
        Ok(Caller::Service(known.row.subject))
    }

    /// The token, if this service may ask about tokens of its audience.
    fn visible_to(
        &self,
        subject: &SpiffeId,
        token: &str,
        now: UnixMillis,
    ) -> Result<Option<Known>, Refusal> {
        let known = self.known(token, now)?;
        Ok(known.filter(|known| self.policy.load().introspects(subject, &known.row.item)))
    }

    /// Whether we signed this, by signature and record. The id in it is only a hint where to look:
    /// everything is then verified against the record.
    fn known(&self, token: &str, now: UnixMillis) -> Result<Option<Known>, Refusal> {
        let Some(id) = hinted_id(token) else {
            return Ok(None);
        };
        let Some(row) = self
            .ledger
            .reader()
            .credential(id)
            .map_err(store_unavailable)?
        else {
            return Ok(None);
        };
        let expected = Expected {
            kind: jwt::token_kind(&row.entitlement),
            issuer: &self.installation.issuer,
            audience: &[&row.item],
            now_unix: i64::try_from(now.as_unix_seconds()).unwrap_or(i64::MAX),
            leeway_seconds: 0,
        };
        match verify(token, self.keys.load().verify_keys(), &expected) {
            Ok(verified) => {
                let claims = verified.into_claims();
                let is_it = claims.sub == row.subject.as_str() && claims.jti == row.id.to_string();
                Ok(is_it.then_some(Known {
                    row,
                    claims: Some(claims),
                }))
            }
            // The signature was good; it is ours, and over.
            Err(JwtError::Expired) => Ok(Some(Known { row, claims: None })),
            Err(error) => {
                tracing::debug!(%error, "a token was not accepted");
                Ok(None)
            }
        }
    }
}

/// The id that stands in a token nobody has verified yet.
fn hinted_id(token: &str) -> Option<CredentialId> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    claims.get("jti")?.as_str()?.parse().ok()
}
