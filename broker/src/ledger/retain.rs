//! What the store may forget by retention: the rows of what is over, and the text of old leaves.
//!
//! It must never forget what still counts: a credential that is listed, a task that is not closed, a
//! request that a kept credential came from, the hash of a leaf. The rows to go are found by a
//! reader and checked again in the transaction that deletes them; how far back requests may be
//! missing is stored with the first of them, so that an old request id is never taken for a new one.

use ephor_proto::id::{DecisionId, EventId, RequestId, TaskId};
use ephor_proto::log::TILE_WIDTH;
use ephor_proto::time::UnixMillis;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::batch::Key;
use super::codec::{Columns, Stored as _, int, millis};
use super::owned::owned_by;
use super::read::{ReadError, Reader};
use super::row::RequestRow;

/// Up to which time detail was pruned, as Unix milliseconds.
pub(super) const DETAIL_BEFORE: &str = "retention.detail_before";
/// When that was done.
const DETAIL_AT: &str = "retention.detail_at";
/// How many leaves from the first on have no text any more.
const LOG_BELOW: &str = "retention.log_below";
/// When the last of them lost it.
const LOG_AT: &str = "retention.log_at";

/// Rows of one pruning commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prune {
    /// Everything below is older than this.
    pub before: UnixMillis,
    /// When it is done.
    pub at: UnixMillis,
    /// Closed tasks, to go with their credentials and grants.
    pub tasks: Vec<TaskId>,
    /// Requests that no kept credential came from.
    pub requests: Vec<RequestId>,
    /// Decisions of requests that are not there.
    pub decisions: Vec<DecisionId>,
    /// Events whose personal values go.
    pub texts: Vec<EventId>,
    /// All leaves below this lose their text; a multiple of 256, so that bundles go whole.
    pub leaves_below: Option<u64>,
}

/// What could go now, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prunable {
    /// The rows.
    pub prune: Prune,
    /// Credentials of the tasks.
    pub credentials: u64,
    /// Leaves whose text goes.
    pub leaves: u64,
    /// How far requests were looked through; `None` when all were.
    pub cursor: Option<RequestId>,
}

impl Prunable {
    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let prune = &self.prune;
        prune.tasks.is_empty()
            && prune.requests.is_empty()
            && prune.decisions.is_empty()
            && prune.texts.is_empty()
            && prune.leaves_below.is_none()
    }
}

/// What retention has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Detail older than this is gone, and when it went.
    pub detail: Option<(UnixMillis, UnixMillis)>,
    /// The first so many leaves have no text.
    pub leaves: u64,
    /// When the last of them lost it.
    pub leaves_at: Option<UnixMillis>,
}

impl Pruned {
    /// As the admin socket tells it.
    #[must_use]
    pub fn told(self) -> Option<ephor_proto::http::admin::Pruned> {
        self.detail
            .map(|(before, at)| ephor_proto::http::admin::Pruned {
                before,
                at,
                entries: self.leaves,
            })
    }
}

/// The first 16 bytes that an id of this time can have: ids begin with 48 bits of milliseconds.
fn floor(time: UnixMillis) -> [u8; 16] {
    let mut id = [0; 16];
    let millis = time.as_millis().min((1 << 48) - 1) << 16;
    for (to, from) in id.iter_mut().zip(millis.to_be_bytes()) {
        *to = from;
    }
    id
}

/// How many leaves from the first on retention took the text of, as it says.
pub(super) fn pruned_below(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT value FROM meta WHERE name = ?1";
    let said: Option<String> = connection
        .query_row(sql, [LOG_BELOW], |row| row.get(0))
        .optional()?;
    Ok(said.and_then(|said| said.parse().ok()).unwrap_or(0))
}

/// Reads fail with [`ReadError`] when the store cannot be read.
#[allow(clippy::missing_errors_doc)]
impl Reader {
    /// What retention has done so far.
    pub fn pruned(&self) -> Result<Pruned, ReadError> {
        let number = |name| -> Result<Option<u64>, ReadError> {
            Ok(self.meta(name)?.and_then(|value| value.parse().ok()))
        };
        let time = |name| Ok::<_, ReadError>(number(name)?.map(UnixMillis::from_millis));
        Ok(Pruned {
            detail: time(DETAIL_BEFORE)?.zip(time(DETAIL_AT)?),
            leaves: number(LOG_BELOW)?.unwrap_or(0),
            leaves_at: time(LOG_AT)?,
        })
    }

    /// Whether a request of this id may have been pruned: it is older than what is kept.
    pub fn may_be_pruned(&self, id: RequestId) -> Result<bool, ReadError> {
        let before = self.meta(DETAIL_BEFORE)?;
        let below = before.and_then(|before| below(&before));
        Ok(below.is_some_and(|below| id.to_bytes() < below))
    }

    /// Detail older than `before` that may go, at most `limit` of each sort. Requests are looked
    /// through from `after` on.
    pub fn prunable(
        &self,
        before: UnixMillis,
        after: Option<RequestId>,
        limit: usize,
    ) -> Result<Prunable, ReadError> {
        let (mut credentials, limited) = (0, int(limit as u64));
        let (old, oldest) = (millis(before), floor(before));
        let connection = self.connection()?;
        // By id and so by age, without an index of its own: closed ones were opened before.
        let mut statement = connection.prepare_cached(concat!(
            "SELECT id, (SELECT count(*) FROM credential WHERE ",
            owned_by!("task.id"),
            ") FROM task WHERE id < ?1 AND state = 'closed' AND closed_at < ?2 AND NOT EXISTS \
                 (SELECT 1 FROM credential WHERE listed = 1 AND ",
            owned_by!("task.id"),
            ") ORDER BY id LIMIT ?3"
        ))?;
        let mut rows = statement.query(params![oldest, old, limited])?;
        let mut tasks = Vec::new();
        while let Some(row) = rows.next()? {
            if let Ok(task) = Columns(row).id(0) {
                tasks.push(task);
                credentials += u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
            }
        }
        let (requests, cursor) = self.prunable_requests(before, after, limit, &tasks)?;
        let mut decisions: Vec<DecisionId> = self.ids(
            "SELECT id FROM decision WHERE id < ?1 AND decided_at < ?2 AND NOT EXISTS \
             (SELECT 1 FROM request WHERE id = decision.request) ORDER BY id LIMIT ?3",
            params![oldest, old, limited],
        )?;
        for request in &requests {
            if let Some(id) = request.decision
                && self.decision(id)?.is_some()
            {
                decisions.push(id);
            }
        }
        let texts = self.ids(
            "SELECT DISTINCT event FROM personal WHERE event < ?1 ORDER BY event LIMIT ?2",
            params![oldest, limited],
        )?;
        let prune = Prune {
            before,
            tasks,
            requests: requests.into_iter().map(|request| request.id).collect(),
            decisions,
            texts,
            ..Prune::default()
        };
        Ok(Prunable {
            prune,
            credentials,
            leaves: 0,
            cursor,
        })
    }

    /// Requests that are over, and that none of the credentials they led to will name any more once
    /// `tasks` are gone.
    fn prunable_requests(
        &self,
        before: UnixMillis,
        after: Option<RequestId>,
        limit: usize,
        tasks: &[TaskId],
    ) -> Result<(Vec<RequestRow>, Option<RequestId>), ReadError> {
        let sql = format!(
            "{} WHERE id > ?1 AND id < ?2 AND requested_at < ?3 \
             AND state NOT IN ('pending', 'approved') ORDER BY id LIMIT ?4",
            RequestRow::sql().select
        );
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let from = after.map_or([0; 16], |id| id.to_bytes());
        let mut rows = statement.query(params![
            from,
            floor(before),
            millis(before),
            int(limit as u64)
        ])?;
        let (mut found, mut last, mut seen) = (Vec::new(), None, 0);
        while let Some(row) = rows.next()? {
            seen += 1;
            let Ok(request) = RequestRow::read(&Columns(row)) else {
                continue;
            };
            last = Some(request.id);
            let mut is_named = false;
            for id in &request.credentials {
                is_named |= self.credential(*id)?.is_some_and(|credential| {
                    let names = credential.request == request.id
                        || Some(credential.decision) == request.decision;
                    names && tasks.binary_search(&credential.task).is_err()
                });
            }
            if !is_named {
                found.push(request);
            }
        }
        // Less than a page: that was the last one.
        Ok((found, last.filter(|_| seen == limit)))
    }

    /// Leaves older than `before` that still have their text: whole bundles, at most `limit` leaves,
    /// rounded down to them.
    pub fn prunable_leaves(
        &self,
        before: UnixMillis,
        limit: u64,
    ) -> Result<Option<(u64, u64)>, ReadError> {
        let from = self.pruned()?.leaves;
        // The checkpoint of a leaf is stored with it.
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT size, time FROM checkpoint WHERE size > ?1 ORDER BY size")?;
        let mut rows = statement.query([int(from)])?;
        let mut below = from;
        while let Some(row) = rows.next()? {
            let size = u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
            if row.get::<_, i64>(1)? >= millis(before) || below - from >= limit {
                break;
            }
            below = size;
        }
        // The last leaf of all always stays: its place shows that none is missing.
        let below = below.min(self.head()?.size.saturating_sub(1));
        let below = below - below % u64::from(TILE_WIDTH);
        Ok((below > from).then(|| (below, below - from)))
    }

    fn ids<I: super::codec::BlobId>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<I>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        let mut ids = Vec::new();
        while let Some(row) = rows.next()? {
            ids.extend(Columns(row).id(0));
        }
        Ok(ids)
    }
}

/// A new request with an id below this must be refused: one of the same id may have been pruned.
pub(super) fn requests_pruned_below(connection: &Connection) -> rusqlite::Result<[u8; 16]> {
    let before: Option<String> = connection
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([DETAIL_BEFORE], |row| row.get(0))
        .optional()?;
    Ok(before.and_then(|before| below(&before)).unwrap_or_default())
}

fn below(before: &str) -> Option<[u8; 16]> {
    let before = before.parse().map(UnixMillis::from_millis);
    before.ok().map(floor)
}

/// Deletes. Gives what was not as the reader found it; the transaction is then undone.
pub(super) fn prune(connection: &Connection, prune: &Prune) -> rusqlite::Result<Option<Key>> {
    for task in &prune.tasks {
        if !forget_task(connection, *task, prune.before)? {
            return Ok(Some(Key::Task(*task)));
        }
    }
    for request in &prune.requests {
        let sql = "DELETE FROM request WHERE id = ?1";
        if !run(connection, sql, request.to_bytes())? {
            return Ok(Some(Key::Request(*request)));
        }
    }
    for decision in &prune.decisions {
        let sql = "DELETE FROM decision WHERE id = ?1";
        if !run(connection, sql, decision.to_bytes())? {
            return Ok(Some(Key::Decision(*decision)));
        }
    }
    for event in &prune.texts {
        run(
            connection,
            "DELETE FROM personal WHERE event = ?1",
            event.to_bytes(),
        )?;
    }
    if let Some(below) = prune.leaves_below {
        forget_leaves(connection, below, prune.at)?;
    }
    // It never goes back: what is gone is gone, also after longer retention was set.
    connection
        .prepare_cached(
            "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE \
             SET value = excluded.value WHERE CAST(value AS INTEGER) < CAST(excluded.value AS INTEGER)",
        )?
        .execute(params![DETAIL_BEFORE, prune.before.as_millis().to_string()])?;
    set(connection, DETAIL_AT, prune.at.as_millis())?;
    Ok(None)
}

fn forget_task(
    connection: &Connection,
    task: TaskId,
    before: UnixMillis,
) -> rusqlite::Result<bool> {
    let id = task.to_bytes();
    let over = connection
        .prepare_cached(
            concat!(
                "SELECT 1 FROM task WHERE id = ?1 AND state = 'closed' AND closed_at < ?2 AND NOT EXISTS \
                 (SELECT 1 FROM credential WHERE (listed = 1 OR state <> 'dead') AND ",
                owned_by!("?1"),
                ")"
            ),
        )?
        .exists(params![id, millis(before)])?;
    if !over {
        return Ok(false);
    }
    // What was found through a credential is found by its task from here on.
    run(
        connection,
        concat!(
            "UPDATE leaf SET beside = 0 WHERE beside = 1 AND idx IN (SELECT leaf.idx FROM credential AS c \
             CROSS JOIN request ON request.id = c.request \
             CROSS JOIN leaf ON leaf.idx BETWEEN c.leaf AND c.leaf + 1 + length(request.credentials) / 16 \
             WHERE leaf.task = c.task AND c.",
            owned_by!("?1"),
            ")"
        ),
        id,
    )?;
    for sql in [
        concat!(
            "DELETE FROM grants WHERE id IN (SELECT grant_id FROM credential WHERE ",
            owned_by!("?1"),
            ")"
        ),
        "DELETE FROM grants WHERE task = ?1 AND alone = 1",
        concat!("DELETE FROM credential WHERE ", owned_by!("?1")),
        "DELETE FROM newest WHERE task = ?1",
        "DELETE FROM task WHERE id = ?1",
    ] {
        run(connection, sql, id)?;
    }
    Ok(true)
}

/// The leaves of a task that is kept keep their text, too: its receipt is made from them.
fn forget_leaves(connection: &Connection, below: u64, at: UnixMillis) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM receipt WHERE leaf < ?1 AND task IN (SELECT task FROM leaf WHERE idx < ?1 \
         AND NOT EXISTS (SELECT 1 FROM task WHERE id = leaf.task))",
        "DELETE FROM leaf WHERE idx < ?1 AND NOT EXISTS (SELECT 1 FROM task WHERE id = leaf.task)",
        "DELETE FROM about WHERE leaf < ?1 AND NOT EXISTS (SELECT 1 FROM leaf WHERE idx = about.leaf)",
        "DELETE FROM checkpoint WHERE size < ?1",
    ] {
        connection.prepare_cached(sql)?.execute([int(below)])?;
    }
    set(connection, LOG_BELOW, below)?;
    set(connection, LOG_AT, at.as_millis())
}

fn run(connection: &Connection, sql: &str, id: [u8; 16]) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached(sql)?.execute([id])? > 0)
}

fn set(connection: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value.to_string()])
        .map(drop)
}
