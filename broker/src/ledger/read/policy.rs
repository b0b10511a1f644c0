//! Reads for the policy's chain, and the scan that a newer version needs.

use ephor_proto::id::{CredentialId, GrantId, TaskId};
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::UnixMillis;
use rusqlite::{OptionalExtension as _, params};

use super::{ReadError, Reader, capped};
use crate::ledger::batch::Key;
use crate::ledger::codec::{BadColumn, Columns, Stored as _, int};
use crate::ledger::row::PolicyRow;

/// A version of the policy without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyEntry {
    /// Place in the chain, counted from 1.
    pub number: u64,
    /// Hash over its files.
    pub version: String,
    /// The version before it.
    pub previous: Option<String>,
    /// When it was applied.
    pub applied_at: UnixMillis,
    /// Who applied it.
    pub applied_by: String,
}

/// Reads fail with [`ReadError`] when the store cannot be read; a row that is not there is `None`.
#[allow(clippy::missing_errors_doc)]
impl Reader {
    /// The newest version: the one in force.
    pub fn policy_in_force(&self) -> Result<Option<PolicyRow>, ReadError> {
        let sql = format!("{} ORDER BY number DESC LIMIT 1", PolicyRow::sql().select);
        self.first(&sql, [])
    }

    /// Number and version of the newest one, without its text.
    pub fn policy_version(&self) -> Result<Option<(u64, String)>, ReadError> {
        let newest = self.policies(1)?.into_iter().next();
        Ok(newest.map(|entry| (entry.number, entry.version)))
    }

    /// The one at a place in the chain.
    pub fn policy(&self, number: u64) -> Result<Option<PolicyRow>, ReadError> {
        self.row(&Key::Policy(number), &int(number))
    }

    /// The chain without the texts, newest first; at most `limit`.
    pub fn policies(&self, limit: usize) -> Result<Vec<PolicyEntry>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(
            "SELECT number, version, previous, applied_at, applied_by FROM policy \
             ORDER BY number DESC LIMIT ?1",
        )?;
        let mut rows = statement.query(params![capped(limit)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let columns = Columns(row);
            let entry = || {
                Ok(PolicyEntry {
                    number: columns.number(0)?,
                    version: columns.string(1)?,
                    previous: columns.opt_string(2)?,
                    applied_at: columns.time(3)?,
                    applied_by: columns.string(4)?,
                })
            };
            found.push(entry().map_err(|error| super::unreadable::<PolicyRow>(&error))?);
        }
        Ok(found)
    }

    /// The place of a version, by the beginning of its hash: the newest such one.
    pub fn policy_number(&self, prefix: &str) -> Result<Option<u64>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(
            "SELECT number FROM policy WHERE substr(version, 1, length(?1)) = ?1 \
             ORDER BY number DESC LIMIT 1",
        )?;
        let number = statement
            .query_row([prefix], |row| row.get::<_, i64>(0))
            .optional()?;
        Ok(number.and_then(|number| u64::try_from(number).ok()))
    }

    /// Calls `each` for every credential that somebody takes or may take: `intended`, `live` or
    /// `replacing`. One row at a time and no more of it than that: there may be very many.
    pub fn live_credentials(
        &self,
        mut each: impl FnMut(LiveCredential<'_>),
    ) -> Result<(), ReadError> {
        let mut statement = self.connection()?.prepare_cached(
            "SELECT id, task, grant_id, host, subject, entitlement, item, issued_at, expires_at \
             FROM credential WHERE listed = 1 AND state = ?1",
        )?;
        for state in CredentialState::ALL
            .into_iter()
            .filter(|state| state.is_out())
        {
            let mut rows = statement.query([state.as_str()])?;
            while let Some(row) = rows.next()? {
                let Ok(row) = LiveCredential::read(&Columns(row)) else {
                    // Set aside at the next start, as every row that cannot be read.
                    continue;
                };
                // What lies in the reserve is newer; of credentials it only holds ends.
                let waiting = self.overlay.row(&Key::Credential(row.id));
                if waiting.is_none() {
                    each(row);
                }
            }
        }
        Ok(())
    }
}

/// What is out, for whom: as much of a row as tells whether policy may say something about it.
#[derive(Debug, Clone, Copy)]
pub struct LiveCredential<'a> {
    /// Its id.
    pub id: CredentialId,
    /// Its task.
    pub task: TaskId,
    /// The grant it draws on.
    pub grant: GrantId,
    /// Host that holds it.
    pub host: &'a str,
    /// Holder.
    pub subject: &'a str,
    /// Entitlement that gave it.
    pub entitlement: &'a str,
    /// Item of it.
    pub item: &'a str,
    /// When it was (last) issued.
    pub issued_at: UnixMillis,
    /// When it expires by itself.
    pub expires_at: UnixMillis,
}

impl<'a> LiveCredential<'a> {
    fn read(columns: &Columns<'a>) -> Result<Self, BadColumn> {
        Ok(Self {
            id: columns.id(0)?,
            task: columns.id(1)?,
            grant: columns.id(2)?,
            host: columns.str(3)?,
            subject: columns.str(4)?,
            entitlement: columns.str(5)?,
            item: columns.str(6)?,
            issued_at: columns.time(7)?,
            expires_at: columns.time(8)?,
        })
    }
}
