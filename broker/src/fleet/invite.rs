//! Making join tokens.

use ephor_crypto::Secret;
use ephor_crypto::random::RandomError;
use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::JoinTokenId;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::HostPattern;
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;

use super::token::NewToken;
use crate::app::Broker;
use crate::issue::{defect, refused_by_store};
use crate::ledger::{Batch, CommitError, JoinTokenRow, Lane, Row};
use crate::limits;
use crate::request::Refusal;

/// A join token as it is handed to the operator, once.
pub struct Invited {
    /// The token. Secret.
    pub token: Secret,
    /// Its id, which is no secret.
    pub id: JoinTokenId,
    /// When it expires.
    pub expires_at: UnixMillis,
}

/// A new token for one host that `pattern` covers, and the batch that makes it good. `event` is
/// the `operate.invited` that goes with it.
pub(crate) fn invitation(
    id: JoinTokenId,
    pattern: &HostPattern,
    (now, ttl_seconds): (UnixMillis, u64),
    ca_sha256: &[u8; 32],
    mut event: AuditEvent,
) -> Result<(Invited, Batch), RandomError> {
    let token = NewToken::generate(id, ca_sha256)?;
    let expires_at = now.saturating_add_millis(ttl_seconds.saturating_mul(1000));
    let row = JoinTokenRow {
        id,
        version: 1,
        hash: token.hash,
        host_pattern: pattern.to_string(),
        expires_at,
        used_by: None,
    };
    event.facts.insert("join_token".to_owned(), id.to_string());
    event
        .facts
        .insert("host_pattern".to_owned(), pattern.to_string());
    event
        .facts
        .insert("expires_at".to_owned(), expires_at.to_string());
    let batch = Batch {
        name: "fleet.invite",
        lane: Lane::Normal,
        require: Vec::new(),
        rows: vec![Row::JoinToken(row)],
        events: vec![event.into()],
    };
    Ok((
        Invited {
            token: token.text,
            id,
            expires_at,
        },
        batch,
    ))
}

impl Broker {
    /// A one-time token for one host that `pattern` covers, good for `ttl_seconds` (or
    /// [`limits::JOIN_TOKEN_SECONDS`]).
    ///
    /// # Errors
    /// When pattern or time are out of range, or the store does not take it.
    pub async fn invite(
        &self,
        pattern: &str,
        ttl_seconds: Option<u64>,
    ) -> Result<Invited, Refusal> {
        let pattern: HostPattern = pattern
            .parse()
            .map_err(|error| Refusal::new(Code::InvalidRequest, format!("`host`: {error}")))?;
        let ttl = ttl_seconds.unwrap_or(limits::JOIN_TOKEN_SECONDS);
        if ttl == 0 || ttl > limits::JOIN_TOKEN_MAX_SECONDS {
            let most = limits::JOIN_TOKEN_MAX_SECONDS;
            let detail =
                format!("`ttl_seconds` = {ttl}: a join token lives from 1 to {most} seconds");
            return Err(Refusal::new(Code::InvalidRequest, detail));
        }
        let now = self.may_issue()?;
        let event = self.event(Stage::Operate, "invited", Outcome::Ok)?;
        let ca_sha256 = self.keys.load().ca().sha256();
        let (invited, batch) =
            invitation(self.new_id()?, &pattern, (now, ttl), &ca_sha256, event).map_err(defect)?;
        let ticket = self
            .ledger
            .submit(batch)
            .map_err(|full| Refusal::new(Code::Busy, full.to_string()))?;
        match ticket.await {
            Ok(_) => Ok(invited),
            Err(CommitError::Refused(reason)) => Err(refused_by_store(&reason)),
            Err(CommitError::Conflict(_) | CommitError::Unknown) => {
                let detail = "the token may not have been stored and was dropped; make another one";
                Err(Refusal::new(Code::StoreUnavailable, detail))
            }
        }
    }
}
