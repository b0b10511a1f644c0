//! One batch inside an open transaction: preconditions, rows, leaves.
//!
//! Leaves come last, so that a batch that stops at a precondition has not touched the tree.

use ephor_proto::id::{CredentialId, EventId, RequestId, TaskId};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::batch::{Key, Reason, Require};
use super::codec::{int, is_taken, millis, write};
use super::encode::{Encoded, Leaf};
use super::owned::{self, owned_by};
use super::quarantine::{self, SetAside};
use super::retain;
use super::row::{DecisionRow, NewEpoch, PolicyRow, Row};
use super::tree::Frontier;
use crate::limits;

/// Why a batch was not applied.
#[derive(Debug)]
pub(super) enum Stop {
    /// A precondition did not hold.
    Conflict(Key),
    /// The batch cannot be stored.
    Invalid(String),
    /// The store failed.
    Store(rusqlite::Error),
    /// The tree failed.
    Tree(String),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        let constraint =
            error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation);
        if constraint {
            Self::Invalid(error.to_string())
        } else {
            Self::Store(error)
        }
    }
}

impl From<tlog_tiles::tlog::Error> for Stop {
    fn from(error: tlog_tiles::tlog::Error) -> Self {
        Self::Tree(error.to_string())
    }
}

/// What was found in a transaction and all its batches ask for: that their host is admitted, which
/// policy is in force, what retention has pruned. Nothing is known any more after a row that may change it.
#[derive(Default)]
pub(super) struct Standing {
    held: Vec<Require>,
    requests_pruned_below: Option<[u8; 16]>,
}

impl Standing {
    fn holds(&mut self, connection: &Connection, require: &Require) -> Result<(), Stop> {
        if self.held.contains(require) {
            return Ok(());
        }
        holds(connection, require)?;
        let is_of_all = matches!(
            require,
            Require::HostAdmitted(_) | Require::PolicyInForce(_)
        );
        if is_of_all && self.held.len() < limits::LEDGER_STANDING {
            self.held.push(require.clone());
        }
        Ok(())
    }

    /// Whether one of this id may have been answered and pruned: it must get no second answer.
    fn may_be_pruned(
        &mut self,
        connection: &Connection,
        id: RequestId,
    ) -> Result<bool, rusqlite::Error> {
        let below = match self.requests_pruned_below {
            Some(below) => below,
            None => retain::requests_pruned_below(connection)?,
        };
        self.requests_pruned_below = Some(below);
        Ok(id.to_bytes() < below)
    }

    fn written(&mut self, row: &Row) {
        match row {
            Row::Host(_) | Row::Policy(_) | Row::NewEpoch(_) => self.held.clear(),
            Row::Prune(_) | Row::Meta(..) => self.requests_pruned_below = None,
            _ => {}
        }
    }
}

/// Applies a batch; returns the index of its first leaf.
pub(super) fn apply(
    connection: &Connection,
    batch: &Encoded,
    frontier: &mut Frontier,
    standing: &mut Standing,
) -> Result<u64, Stop> {
    for require in &batch.require {
        standing.holds(connection, require)?;
    }
    let first = frontier.size();
    for row in &batch.rows {
        write_row(connection, row, first, standing)?;
        standing.written(row);
    }
    for leaf in &batch.leaves {
        append(connection, leaf, frontier)?;
    }
    Ok(first)
}

/// Checks a precondition against the store.
pub(super) fn holds(connection: &Connection, require: &Require) -> Result<(), Stop> {
    let (held, key) = match require {
        Require::Absent(key) => (stored_version(connection, key)?.is_none(), key.clone()),
        Require::Version(key, version) => (
            stored_version(connection, key)? == Some(*version),
            key.clone(),
        ),
        Require::TaskOpen(id) => {
            let sql = "SELECT 1 FROM task WHERE id = ?1 AND state = 'open'";
            (exists(connection, sql, id.to_bytes())?, Key::Task(*id))
        }
        Require::GrantOpen(id) => {
            let sql = "SELECT 1 FROM grants WHERE id = ?1 AND state = 'open'";
            (exists(connection, sql, id.to_bytes())?, Key::Grant(*id))
        }
        Require::HostAdmitted(name) => {
            let sql = "SELECT 1 FROM host WHERE name = ?1 AND state <> 'banned'";
            (exists(connection, sql, name)?, Key::Host(name.clone()))
        }
        Require::PolicyInForce(version) => {
            let newest: Option<(u64, String)> = connection
                .prepare_cached("SELECT number, version FROM policy ORDER BY number DESC LIMIT 1")?
                .query_row([], |row| {
                    Ok((
                        u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
                        row.get(1)?,
                    ))
                })
                .optional()?;
            match newest {
                Some((number, newest)) => (newest == *version, Key::Policy(number)),
                None => (true, Key::Policy(0)),
            }
        }
        Require::LiveCredentials { task, count } => {
            let live = live_of(connection, *task, |_| true)?;
            (live == *count, Key::Task(*task))
        }
    };
    if held {
        Ok(())
    } else {
        Err(Stop::Conflict(key))
    }
}

/// How many of a task's credentials the store has as `intended`, `live` or `replacing`, whether the
/// rest of their rows can be read or not, and that `counts` by their ids.
pub(super) fn live_of(
    connection: &Connection,
    task: TaskId,
    counts: impl Fn(&[u8]) -> bool,
) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(concat!(
        "SELECT id FROM credential WHERE state IN ('intended', 'live', 'replacing') AND ",
        owned_by!("?1")
    ))?;
    let mut rows = statement.query([task.to_bytes()])?;
    let mut live = 0;
    while let Some(row) = rows.next()? {
        let id = row.get_ref(0)?;
        live += u64::from(counts(id.as_blob().unwrap_or_default()));
    }
    Ok(live)
}

fn exists(connection: &Connection, sql: &str, key: impl rusqlite::ToSql) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.exists([key])
}

/// The version stored under a key; 1 for what has none.
pub(super) fn stored_version(connection: &Connection, key: &Key) -> rusqlite::Result<Option<u64>> {
    let one = |sql: &str, key: &dyn rusqlite::ToSql| {
        connection
            .prepare_cached(sql)?
            .query_row([key], |row| row.get::<_, i64>(0))
            .optional()
    };
    let version = match key {
        Key::Task(id) => one("SELECT version FROM task WHERE id = ?1", &id.to_bytes()),
        Key::Request(id) => one("SELECT version FROM request WHERE id = ?1", &id.to_bytes()),
        Key::Grant(id) => one("SELECT version FROM grants WHERE id = ?1", &id.to_bytes()),
        Key::Credential(id) => one(
            "SELECT version FROM credential WHERE id = ?1",
            &id.to_bytes(),
        ),
        Key::Host(name) => one("SELECT version FROM host WHERE name = ?1", name),
        Key::JoinToken(id) => one(
            "SELECT version FROM join_token WHERE id = ?1",
            &id.to_bytes(),
        ),
        Key::Decision(id) => one("SELECT 1 FROM decision WHERE id = ?1", &id.to_bytes()),
        Key::Receipt(id) => one("SELECT 1 FROM receipt WHERE task = ?1", &id.to_bytes()),
        Key::Policy(number) => one("SELECT 1 FROM policy WHERE number = ?1", &int(*number)),
        Key::Meta(name) => one("SELECT 1 FROM meta WHERE name = ?1", name),
        Key::Personal(id) => one("SELECT 1 FROM personal WHERE event = ?1", &id.to_bytes()),
        Key::Key(name, version) => connection
            .prepare_cached("SELECT 1 FROM key WHERE name = ?1 AND version = ?2")?
            .query_row(params![name, version], |row| row.get::<_, i64>(0))
            .optional(),
    }?;
    Ok(version.map(|version| u64::try_from(version).unwrap_or(0)))
}

fn write_row(
    connection: &Connection,
    row: &Row,
    first_leaf: u64,
    standing: &mut Standing,
) -> Result<(), Stop> {
    let written = match row {
        Row::Task(task) => write(connection, task, task.version)?,
        Row::Request(request) => {
            let is_unknown =
                request.version == 1 && standing.may_be_pruned(connection, request.id)?;
            !is_unknown && write(connection, request, request.version)?
        }
        Row::Decision(decision) => write::<DecisionRow>(connection, decision, 1)?,
        Row::Grant(grant) => write(connection, grant, grant.version)?,
        Row::Credential(credential) => {
            let written = write(connection, &**credential, credential.version)?;
            if written && credential.version == 1 {
                owned::is_newest(connection, credential.task)?;
            }
            written
        }
        Row::Host(host) => write(connection, host, host.version)?,
        Row::JoinToken(token) => write(connection, token, token.version)?,
        Row::Key(key) => write(connection, key, 1)?,
        Row::Receipt { task, event } => {
            let leaf = int(first_leaf + u64::from(*event));
            let sql = "INSERT INTO receipt (task, leaf) VALUES (?1, ?2)";
            match connection
                .prepare_cached(sql)?
                .execute(params![task.to_bytes(), leaf])
            {
                Ok(_) => true,
                Err(error) if is_taken(&error) => false,
                Err(error) => return Err(error.into()),
            }
        }
        Row::Policy(policy) => write::<PolicyRow>(connection, policy, 1)?,
        Row::Meta(name, value) => {
            let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)";
            connection
                .prepare_cached(sql)?
                .execute(params![name, value])?
                == 1
        }
        Row::Unlist(id) => unlist(connection, *id)?,
        Row::SetAside { task, at } => {
            quarantine::of_task(connection, *task, *at)?;
            true
        }
        Row::ErasePersonal(event) => erase(connection, *event)?,
        Row::Prune(prune) => match retain::prune(connection, prune)? {
            Some(key) => return Err(Stop::Conflict(key)),
            None => true,
        },
        Row::NewEpoch(epoch) => begin_epoch(connection, epoch)?,
    };
    if written {
        Ok(())
    } else {
        Err(Stop::Conflict(row.key()))
    }
}

/// Everything live is revoking from here on, with nobody's word for it; what was waiting is void.
fn begin_epoch(connection: &Connection, epoch: &NewEpoch) -> rusqlite::Result<bool> {
    let at = millis(epoch.at);
    let run = |sql: &str, parameters: &[&dyn rusqlite::ToSql]| {
        connection.prepare_cached(sql)?.execute(parameters)
    };
    run(
        "UPDATE credential SET state = 'revoking', cause = 'revoked', revoked_at = ?1, version = version + 1 \
         WHERE state IN ('intended', 'live', 'replacing')",
        &[&at],
    )?;
    run(
        "UPDATE grants SET state = 'closed', ended_by = 'revoked', closed_at = ?1, version = version + 1 \
         WHERE state = 'open'",
        &[&at],
    )?;
    run(
        "UPDATE request SET state = 'cancelled', version = version + 1 \
         WHERE state IN ('pending', 'approved')",
        &[],
    )?;
    run(
        "UPDATE join_token SET used_by = '(void: a new epoch began)', version = version + 1 \
         WHERE used_by IS NULL",
        &[],
    )?;
    if let Some(admit) = &epoch.admit {
        let names = serde_json::to_string(admit).unwrap_or_else(|_| "[]".to_owned());
        run(
            "UPDATE host SET state = 'banned', banned_at = ?1, version = version + 1 \
             WHERE state <> 'banned' AND name NOT IN (SELECT value FROM json_each(?2))",
            &[&at, &names],
        )?;
    }
    let begun = run(
        "UPDATE installation SET epoch = epoch + 1, holder = '', origin = ?1",
        &[&epoch.origin],
    )?;
    Ok(begun == 1)
}

/// Only the dead are forgotten: an unlisted credential would be good again.
fn unlist(connection: &Connection, id: CredentialId) -> rusqlite::Result<bool> {
    let sql = "UPDATE credential SET listed = 0, content = '', version = version + 1 \
               WHERE id = ?1 AND state = 'dead' AND listed = 1";
    Ok(connection.prepare_cached(sql)?.execute([id.to_bytes()])? == 1)
}

/// Erasing twice is erased.
fn erase(connection: &Connection, event: EventId) -> rusqlite::Result<bool> {
    let sql = "DELETE FROM personal WHERE event = ?1";
    connection
        .prepare_cached(sql)?
        .execute([event.to_bytes()])?;
    Ok(true)
}

fn append(connection: &Connection, leaf: &Leaf, frontier: &mut Frontier) -> Result<(), Stop> {
    let index = int(frontier.size());
    let event = leaf.event.to_bytes();
    frontier.append(leaf.json.as_bytes())?;
    if frontier.is_long() {
        frontier.save(connection)?;
    }
    connection
        .prepare_cached(
            "INSERT INTO leaf (idx, event, task, beside, json) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            index,
            event,
            leaf.task.map(|id| id.to_bytes()),
            leaf.beside,
            leaf.json
        ])?;
    for name in &leaf.about {
        connection
            .prepare_cached("INSERT OR IGNORE INTO about (name, leaf) VALUES (?1, ?2)")?
            .execute(params![name, index])?;
    }
    for (field, salt, value) in &leaf.personal {
        connection
            .prepare_cached(
                "INSERT INTO personal (event, field, salt, value) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![event, field, salt, value])?;
    }
    Ok(())
}

/// Sets a batch or row aside that could not be used, so that nothing is lost and nothing stops.
pub(super) fn quarantine(
    connection: &Connection,
    (kind, reason): (&str, &str),
    content: &str,
    time: i64,
    listing: Option<&SetAside>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO quarantine \
             (kind, reason, time, content, status_list, status_index, credential, credential_kind) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            kind,
            reason,
            time,
            content,
            listing.map(|listing| listing.list),
            listing.map(|listing| listing.index),
            listing.and_then(|listing| listing.id.as_ref()),
            listing.and_then(|listing| listing.kind.as_ref()),
        ])?;
    Ok(())
}

/// The reason shown to whoever submitted.
pub(super) fn refusal(stop: Stop) -> super::batch::CommitError {
    use super::batch::CommitError;
    match stop {
        Stop::Conflict(key) => CommitError::Conflict(key),
        Stop::Invalid(text) => CommitError::Refused(Reason::Invalid(text)),
        Stop::Store(error) => CommitError::Refused(Reason::Damaged(error.to_string())),
        Stop::Tree(text) => CommitError::Refused(Reason::Damaged(text)),
    }
}
