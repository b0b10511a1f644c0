//! Reads of credentials with an effect outside: what a target must know, has to end or may hold.

use std::time::Duration;

use ephor_proto::id::CredentialId;
use ephor_proto::kind::Kind;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::UnixMillis;

use super::{ReadError, Reader};
use crate::kind::effect::Content;
use crate::ledger::batch::Key;
use crate::ledger::codec::{Columns, int, millis};
use crate::ledger::row::CredentialRow;
use crate::limits;

/// A usable credential with an effect outside: as much as a comparison needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveEffect {
    /// The credential.
    pub id: CredentialId,
    /// Its target.
    pub target: String,
    /// What it is called there.
    pub name: String,
    /// When it was (last) issued.
    pub issued_at: UnixMillis,
    /// When it expires, unless it is renewed.
    pub expires_at: UnixMillis,
}

impl LiveEffect {
    /// How often it is renewed, as long as its task lives.
    #[must_use]
    pub fn renewals_per_second(&self) -> f64 {
        let life = Duration::from_millis(self.expires_at.millis_since(self.issued_at));
        1.0 / (life.as_secs_f64() * limits::RENEWED_AFTER).max(1.0)
    }
}

/// Reads fail with [`ReadError`] when the store cannot be read.
#[allow(clippy::missing_errors_doc)]
impl Reader {
    /// Credentials of which it is not known whether they were made.
    pub fn intended(&self) -> Result<Vec<CredentialId>, ReadError> {
        let condition = "WHERE listed = 1 AND state = 'intended'";
        let keep = |row: &CredentialRow| row.state == CredentialState::Intended;
        let rows = self.list(condition, [], keep)?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }

    /// Credentials with an effect outside that are being revoked, at most so many of each target: one
    /// that is away for long must not hide those of the others.
    pub fn revoking_at_targets(&self, limit: usize) -> Result<Vec<CredentialRow>, ReadError> {
        let condition = "WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER \
                         (PARTITION BY json_extract(content, '$.target')) AS place FROM credential \
                         WHERE listed = 1 AND state = 'revoking' AND kind IN ('postgres', 'sudo', 'secret', 'exec')) \
                         WHERE place <= ?1)";
        let keep =
            |row: &CredentialRow| row.state == CredentialState::Revoking && !row.kind.is_signed();
        self.list(condition, [int(limit as u64)], keep)
    }

    /// Credentials with an effect outside that ended since then and are dead.
    pub fn gone_since(&self, since: UnixMillis) -> Result<Vec<CredentialId>, ReadError> {
        let condition = "WHERE listed = 1 AND state = 'dead' AND kind IN ('postgres', 'sudo', 'secret', 'exec') \
                         AND (revoked_at >= ?1 OR json_extract(content, '$.gone.at') >= ?2)";
        let keep = |row: &CredentialRow| {
            let gone = Content::of(row).and_then(|content| content.gone);
            let is_since = row.revoked_at.is_some_and(|at| at >= since)
                || gone.is_some_and(|gone| gone.at >= since);
            row.state == CredentialState::Dead && !row.kind.is_signed() && is_since
        };
        // As a text, which this is in JSON: any text is more than any number.
        let params = (millis(since), since.to_string());
        let rows = self.list(condition, params, keep)?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }

    /// The newest credential of this item: of a login, its name at the target.
    pub fn credential_of_item(&self, item: &str) -> Result<Option<CredentialRow>, ReadError> {
        let keep = |row: &CredentialRow| row.item == item;
        let condition = "WHERE item = ?1 ORDER BY id DESC LIMIT 1";
        Ok(self.list(condition, [item], keep)?.into_iter().next())
    }

    /// Calls `each` for every usable credential with an effect outside, without its whole row.
    pub fn live_effects(&self, mut each: impl FnMut(LiveEffect)) -> Result<(), ReadError> {
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached(
            "SELECT id, item, issued_at, json_extract(content, '$.target'), expires_at FROM credential \
             WHERE listed = 1 AND state = ?1 AND kind IN ('postgres', 'sudo', 'secret', 'exec')",
        )?;
        for state in [CredentialState::Live, CredentialState::Replacing] {
            let mut rows = statement.query([state.as_str()])?;
            while let Some(row) = rows.next()? {
                let columns = Columns(row);
                let (Ok(id), Ok(name), Ok(issued_at), Ok(target), Ok(expires_at)) = (
                    columns.id(0),
                    columns.string(1),
                    columns.time(2),
                    columns.string(3),
                    columns.time(4),
                ) else {
                    continue;
                };
                // What lies in the reserve is newer; of credentials it only holds ends.
                if self.overlay.row(&Key::Credential(id)).is_none() {
                    each(LiveEffect {
                        id,
                        target,
                        name,
                        issued_at,
                        expires_at,
                    });
                }
            }
        }
        Ok(())
    }

    /// Who has a role that is lent to one at a time, or had it and is not shown to be done with it.
    pub fn checked_out(
        &self,
        target: &str,
        role: &str,
    ) -> Result<Option<CredentialRow>, ReadError> {
        let condition = "WHERE listed = 1 AND state IN ('intended', 'live', 'replacing', 'revoking') \
                         AND kind = 'secret' AND item = ?1 AND json_extract(content, '$.target') = ?2";
        let keep = |row: &CredentialRow| {
            let is_there = Content::of(row).is_some_and(|content| content.target == target);
            row.kind == Kind::Secret
                && row.state != CredentialState::Dead
                && row.item == role
                && is_there
        };
        Ok(self.list(condition, [role, target], keep)?.pop())
    }

    /// Live credentials with an effect outside whose hand-over was not confirmed.
    pub fn unconfirmed(&self) -> Result<Vec<CredentialId>, ReadError> {
        let condition = "WHERE listed = 1 AND state = 'live' AND kind IN ('postgres', 'sudo', 'secret', 'exec') \
                         AND NOT json_extract(content, '$.confirmed')";
        let keep = |row: &CredentialRow| {
            row.state == CredentialState::Live
                && Content::of(row).is_some_and(|content| !content.confirmed)
        };
        let rows = self.list(condition, [], keep)?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }
}
