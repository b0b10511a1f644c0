//! Rows that cannot be read are set aside at start, and a task's when it ends: one bad row must not
//! keep a broker from revoking all the others.
//!
//! A credential that is set aside stays listed as revoked, as far as its place in a list can
//! still be read: forgetting it would make it good again.

use ephor_proto::id::TaskId;
use ephor_proto::time::UnixMillis;
use rusqlite::types::Value;
use rusqlite::{Connection, Params, TransactionBehavior, params};

use super::apply;
use super::codec::{BadColumn, Columns, Stored, millis};
use super::owned::{self, owned_by};
use super::row::{CredentialRow, GrantRow, HostRow, JoinTokenRow, KeyRow, TaskRow};

/// A row or batch that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Table it was in, or `reserve`.
    pub kind: String,
    /// What could not be read.
    pub reason: String,
    /// When it was set aside.
    pub time: UnixMillis,
    /// All of it, as JSON with blobs in hex.
    pub content: String,
}

impl Quarantined {
    /// A credential that is still in its table.
    pub(super) fn of(columns: &Columns<'_>, error: &BadColumn, now: UnixMillis) -> Self {
        Self {
            kind: CredentialRow::TABLE.to_owned(),
            reason: error.to_string(),
            time: now,
            content: columns.dump(),
        }
    }

    /// An id in one of its columns, where that one can still be read.
    #[must_use]
    pub fn id(&self, column: &str) -> Option<[u8; 16]> {
        let content: serde_json::Value = serde_json::from_str(&self.content).ok()?;
        let hex = content.get(column)?.as_str()?;
        let bits = u128::from_str_radix(hex, 16).ok()?;
        (hex.len() == 32).then(|| bits.to_be_bytes())
    }
}

/// How many rows and batches were ever set aside.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<usize> {
    connection.query_row("SELECT count(*) FROM quarantine", [], |row| {
        row.get::<_, i64>(0)
            .map(|count| usize::try_from(count).unwrap_or(0))
    })
}

/// Of tasks that are not closed; each is `alone` or found through a credential.
const OPEN_GRANTS: &str = concat!(
    "WHERE state = 'open' AND id IN (SELECT grant_id FROM credential WHERE ",
    owned_by!("SELECT id FROM task WHERE state <> 'closed'"),
    " UNION SELECT grants.id FROM task CROSS JOIN grants ON grants.task = task.id \
    WHERE task.state <> 'closed' AND grants.alone = 1)"
);

/// The receipt of a task tells of a credential that was set aside by its events, so they must be found.
const INDEX_WHAT_NO_CREDENTIAL_LEADS_TO: &str = "UPDATE leaf SET beside = 0 \
    WHERE beside = 1 AND idx NOT IN (\
    SELECT led.idx FROM credential AS c CROSS JOIN request ON request.id = c.request \
    CROSS JOIN leaf AS led ON led.idx BETWEEN c.leaf AND c.leaf + 1 + length(request.credentials) / 16 \
    WHERE led.task = c.task)";
/// And its grant, which ends with the task.
const INDEX_GRANTS_THAT_NO_CREDENTIAL_LEADS_TO: &str = "UPDATE grants SET alone = 1 \
    WHERE state = 'open' AND alone = 0 AND id NOT IN (SELECT grant_id FROM credential)";

/// The same two for one task. They look through both tables: a row that cannot be read may not say
/// truly where it led.
const INDEX_LEAVES_OF_TASK: &str = concat!(
    "UPDATE leaf SET beside = 0 \
    WHERE beside = 1 AND task = ?1 AND idx NOT IN (\
    SELECT led.idx FROM credential AS c CROSS JOIN request ON request.id = c.request \
    CROSS JOIN leaf AS led ON led.idx BETWEEN c.leaf AND c.leaf + 1 + length(request.credentials) / 16 \
    WHERE led.task = ?1 AND c.",
    owned_by!("?1"),
    ")"
);
const INDEX_GRANTS_OF_TASK: &str = concat!(
    "UPDATE grants SET alone = 1 \
    WHERE task = ?1 AND state = 'open' AND alone = 0 AND id NOT IN (SELECT grant_id FROM credential WHERE ",
    owned_by!("?1"),
    ")"
);

struct Bad {
    /// Key and second column, as stored.
    key: (Value, Value),
    reason: String,
    content: String,
    listing: Option<SetAside>,
}

impl Bad {
    fn of<T: Stored>(columns: &Columns<'_>, names: &[String]) -> rusqlite::Result<Option<Self>> {
        let Err(error) = T::read(columns) else {
            return Ok(None);
        };
        Ok(Some(Self {
            key: (columns.0.get(0)?, columns.0.get(1)?),
            reason: error.to_string(),
            content: columns.dump(),
            listing: listing(columns.0, names),
        }))
    }
}

/// What must stay listed of a credential whose row was set aside, as far as it can be read.
pub(super) struct SetAside {
    pub(super) list: u32,
    pub(super) index: u32,
    pub(super) id: Option<Vec<u8>>,
    pub(super) kind: Option<String>,
}

/// Sets aside what the broker would need and cannot read; returns how many rows.
pub(super) fn sweep(connection: &mut Connection, now: UnixMillis) -> rusqlite::Result<usize> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut aside = 0;
    aside += table::<TaskRow>(&transaction, "WHERE state <> 'closed'", now)?;
    aside += table::<GrantRow>(&transaction, OPEN_GRANTS, now)?;
    let credentials = table::<CredentialRow>(&transaction, "WHERE listed = 1", now)?;
    if credentials > 0 {
        transaction.execute(INDEX_WHAT_NO_CREDENTIAL_LEADS_TO, [])?;
        transaction.execute(INDEX_GRANTS_THAT_NO_CREDENTIAL_LEADS_TO, [])?;
    }
    aside += credentials;
    aside += table::<HostRow>(&transaction, "", now)?;
    aside += table::<JoinTokenRow>(&transaction, "", now)?;
    aside += table::<KeyRow>(&transaction, "", now)?;
    transaction.commit()?;
    Ok(aside)
}

/// Sets the credentials of a task aside that cannot be read, inside the writer's transaction.
pub(super) fn of_task(
    connection: &Connection,
    task: TaskId,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    let id = task.to_bytes();
    if aside::<CredentialRow>(connection, concat!("WHERE ", owned_by!("?1")), [id], now)? > 0 {
        connection.execute(INDEX_LEAVES_OF_TASK, [id])?;
        connection.execute(INDEX_GRANTS_OF_TASK, [id])?;
    }
    Ok(())
}

fn table<T: Stored>(
    connection: &Connection,
    condition: &str,
    now: UnixMillis,
) -> rusqlite::Result<usize> {
    aside::<T>(connection, condition, [], now)
}

fn aside<T: Stored>(
    connection: &Connection,
    condition: &str,
    parameters: impl Params,
    now: UnixMillis,
) -> rusqlite::Result<usize> {
    let mut bad = Vec::new();
    let mut statement = connection.prepare(&format!("{} {condition}", T::sql().select))?;
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut rows = statement.query(parameters)?;
    while let Some(row) = rows.next()? {
        bad.extend(Bad::of::<T>(&Columns(row), &names)?);
    }
    let name = |at: usize| names.get(at).map_or("rowid", String::as_str);
    let delete = format!(
        "DELETE FROM {} WHERE {} IS ?1 AND {} IS ?2",
        T::TABLE,
        name(0),
        name(1)
    );
    for row in &bad {
        let what = (T::TABLE, row.reason.as_str());
        apply::quarantine(
            connection,
            what,
            &row.content,
            millis(now),
            row.listing.as_ref(),
        )?;
        if T::TABLE == CredentialRow::TABLE {
            owned::take_out(connection, &row.key)?;
        }
        connection.execute(&delete, params![row.key.0, row.key.1])?;
    }
    Ok(bad.len())
}

fn listing(row: &rusqlite::Row<'_>, names: &[String]) -> Option<SetAside> {
    names
        .iter()
        .any(|name| name == "status_index")
        .then_some(())?;
    Some(SetAside {
        list: row.get("status_list").ok()?,
        index: row.get("status_index").ok()?,
        id: row.get("id").ok(),
        kind: row.get("kind").ok(),
    })
}
