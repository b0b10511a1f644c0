//! How many of what there are now, for metrics. By index, but work all the same: not for a hot path.

use ephor_proto::kind::Kind;
use ephor_proto::state::credential::CredentialState;

use super::{ReadError, Reader};

/// Numbers of rows. What waits in the reserve is not in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Credentials that are not dead, by kind and state.
    pub credentials: Vec<(Kind, CredentialState, u64)>,
    /// Credentials whose revocation is late.
    pub overdue: u64,
    /// Tasks that are open.
    pub tasks_open: u64,
    /// Tasks that ended and are not proven yet.
    pub tasks_completing: u64,
}

impl Reader {
    /// Counts what is not over.
    ///
    /// # Errors
    /// As every read.
    pub fn counts(&self) -> Result<Counts, ReadError> {
        let connection = self.connection()?;
        let mut counts = Counts::default();
        let mut statement = connection.prepare_cached(
            "SELECT kind, state, count(*), count(overdue) FROM credential \
             WHERE listed = 1 AND state IN ('intended', 'live', 'replacing', 'revoking', 'contained') \
             GROUP BY kind, state",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, state): (String, String) = (row.get(0)?, row.get(1)?);
            counts.overdue += number(row.get(3)?);
            // A word of another version has no metric; its row is set aside at the next start.
            if let (Ok(kind), Ok(state)) = (kind.parse(), state.parse()) {
                counts.credentials.push((kind, state, number(row.get(2)?)));
            }
        }
        let mut statement = connection.prepare_cached(
            "SELECT count(*), count(*) FILTER (WHERE state = 'open') FROM task WHERE state <> 'closed'",
        )?;
        let (all, open) = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        counts.tasks_open = number(open);
        counts.tasks_completing = number(all).saturating_sub(counts.tasks_open);
        Ok(counts)
    }
}

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
