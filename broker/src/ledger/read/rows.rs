//! Typed reads of each table.

use ephor_proto::id::{CredentialId, DecisionId, GrantId, JoinTokenId, RequestId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::TaskState;
use ephor_proto::time::UnixMillis;
use rusqlite::{OptionalExtension as _, params};

use super::{ReadError, Reader, capped};
use crate::ledger::apply::live_of;
use crate::ledger::batch::Key;
use crate::ledger::codec::{Columns, Stored as _, int, millis};
use crate::ledger::owned::owned_by;
use crate::ledger::quarantine::Quarantined;
use crate::ledger::row::{
    CredentialRow, DecisionRow, GrantRow, HostRow, JoinTokenRow, KeyRow, RequestRow, TaskRow,
    set_aside_key,
};
use crate::limits;

/// The credentials of a task, in the order in which they were made.
const OF_TASK: &str = concat!("WHERE ", owned_by!("?1"), " ORDER BY id");

/// Which tasks to list, oldest first. Empty: all.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// `open`, `completing` or `closed`.
    pub state: Option<&'static str>,
    /// On this host.
    pub host: Option<String>,
    /// At most this many; 0: the named limit.
    pub limit: usize,
}

/// Which credentials to list. Empty: all.
#[derive(Debug, Clone, Default)]
pub struct CredentialFilter {
    /// In this state.
    pub state: Option<CredentialState>,
    /// Only those whose revocation is late, or only the others.
    pub overdue: Option<bool>,
    /// At most this many; 0: the named limit.
    pub limit: usize,
}

/// When a credential ends by itself, for rebuilding timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The credential.
    pub id: CredentialId,
    /// Its state; never dead.
    pub state: CredentialState,
    /// Its kind.
    pub kind: Kind,
    /// When.
    pub at: UnixMillis,
}

impl Expiry {
    /// When to look at it; see [`crate::issue::over_at`].
    pub(crate) fn over_at(&self) -> UnixMillis {
        if self.kind.is_signed() {
            crate::issue::dead_at(self.at)
        } else {
            self.at
        }
    }
}

/// What a task holds.
#[derive(Debug)]
pub struct HeldByTask {
    /// The credentials that can be read.
    pub rows: Vec<CredentialRow>,
    /// How many are `intended`, `live` or `replacing`, whether they can be read or not.
    pub live: u64,
    /// Those that cannot be read, as they would be set aside.
    pub unreadable: Vec<Quarantined>,
    /// Setting them aside lies in the reserve already.
    pub waits_for_space: bool,
}

/// A place in a list that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Whose; `None` when its row cannot be read any more and does not say it.
    pub id: Option<CredentialId>,
    /// Of what kind; `None` as above.
    pub kind: Option<Kind>,
    /// The list.
    pub list: u32,
    /// The place: the bit of a token, the newest certificate of a certificate's credential.
    pub index: u32,
    /// What was signed, if it is known.
    pub content: String,
    /// When it was revoked, if it was and that is known.
    pub revoked_at: Option<UnixMillis>,
    /// Whether its bit is set. True also for rows that cannot be read any more.
    pub revoked: bool,
}

/// A task's state in words.
fn state_word(state: TaskState) -> &'static str {
    match state {
        TaskState::Open => "open",
        TaskState::Completing(_) => "completing",
        TaskState::Closed { .. } => "closed",
    }
}

fn limit(asked: usize) -> usize {
    if asked == 0 {
        limits::LEDGER_LIST_MAX
    } else {
        asked
    }
}

/// Reads fail with [`ReadError`] when the store cannot be read; a row that is not there is `None`.
#[allow(clippy::missing_errors_doc)]
impl Reader {
    /// A task.
    pub fn task(&self, id: TaskId) -> Result<Option<TaskRow>, ReadError> {
        self.row(&Key::Task(id), &id.to_bytes())
    }

    /// Tasks by state and host, by the time of their opening.
    pub fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskRow>, ReadError> {
        let keep = |task: &TaskRow| {
            filter
                .state
                .is_none_or(|state| state == state_word(task.state))
                && filter.host.as_ref().is_none_or(|host| *host == task.host)
        };
        // `state <> 'closed'` lets SQLite use the index of unclosed tasks.
        let unclosed = match filter.state {
            Some("open" | "completing") => "AND state <> 'closed'",
            Some(_) | None => "",
        };
        let condition = format!(
            "WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR host = ?2) {unclosed} ORDER BY id LIMIT ?3"
        );
        self.list(
            &condition,
            params![filter.state, filter.host, capped(limit(filter.limit))],
            keep,
        )
    }

    /// The tasks of a host that are not closed: `open` or `completing`.
    pub fn unclosed_tasks_of(&self, host: &str) -> Result<Vec<TaskRow>, ReadError> {
        let keep =
            |task: &TaskRow| task.host == host && !matches!(task.state, TaskState::Closed { .. });
        self.list("WHERE host = ?1 AND state <> 'closed'", [host], keep)
    }

    /// The tasks of a host that are `open`.
    pub fn open_tasks_of(&self, host: &str) -> Result<Vec<TaskRow>, ReadError> {
        let mut tasks = self.unclosed_tasks_of(host)?;
        tasks.retain(|task| task.state == TaskState::Open);
        Ok(tasks)
    }

    /// All tasks that are `open` or `completing`: what a starting broker must look after.
    pub fn unclosed_tasks(&self) -> Result<Vec<TaskRow>, ReadError> {
        let keep = |task: &TaskRow| !matches!(task.state, TaskState::Closed { .. });
        self.list("WHERE state <> 'closed' ORDER BY id", [], keep)
    }

    /// A credential.
    pub fn credential(&self, id: CredentialId) -> Result<Option<CredentialRow>, ReadError> {
        self.row(&Key::Credential(id), &id.to_bytes())
    }

    /// All credentials of a task.
    pub fn credentials_of(&self, task: TaskId) -> Result<Vec<CredentialRow>, ReadError> {
        let keep = |credential: &CredentialRow| credential.task == task;
        self.list(OF_TASK, [task.to_bytes()], keep)
    }

    /// The same, with what cannot be read among them: `now` is when that is set aside.
    pub fn held_by(&self, task: TaskId, now: UnixMillis) -> Result<HeldByTask, ReadError> {
        let mut unreadable = Vec::new();
        let keep = |credential: &CredentialRow| credential.task == task;
        let rows = self.list_and_tell(OF_TASK, [task.to_bytes()], keep, |columns, error| {
            unreadable.push(Quarantined::of(columns, error, now))
        })?;
        let out = |id: &[u8]| self.overlay.is_still_out(id);
        Ok(HeldByTask {
            rows,
            live: live_of(self.connection()?, task, out)?,
            unreadable,
            waits_for_space: self.overlay.row(&set_aside_key(task)).is_some(),
        })
    }

    /// Which of these credentials had a row once that could not be read.
    pub fn set_aside_among(
        &self,
        ids: impl Iterator<Item = CredentialId>,
    ) -> Result<Vec<CredentialId>, ReadError> {
        // Nearly always: nothing was ever set aside.
        if self.quarantined_count()? == 0 {
            return Ok(Vec::new());
        }
        let mut statement = self.connection()?.prepare_cached(
            "SELECT 1 FROM quarantine WHERE kind = 'credential' AND credential = ?1",
        )?;
        let mut found = Vec::new();
        for id in ids {
            if statement.exists([id.to_bytes()])? {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// Credentials by state. Dead ones only while they are listed, unless no state is given.
    pub fn credentials(&self, filter: &CredentialFilter) -> Result<Vec<CredentialRow>, ReadError> {
        let late = |credential: &CredentialRow| credential.overdue.is_some();
        let keep = |credential: &CredentialRow| {
            filter.state.is_none_or(|state| state == credential.state)
                && filter
                    .overdue
                    .is_none_or(|overdue| overdue == late(credential))
        };
        let mut found = match (filter.state, filter.overdue) {
            (Some(state), _) => self.listed(state, limit(filter.limit), keep),
            // What is late is being revoked.
            (None, Some(true)) => self.listed(CredentialState::Revoking, limit(filter.limit), keep),
            (None, Some(false) | None) => {
                self.list("ORDER BY id LIMIT ?1", [capped(limit(filter.limit))], keep)
            }
        }?;
        found.retain(keep);
        Ok(found)
    }

    fn listed(
        &self,
        state: CredentialState,
        limit: usize,
        keep: impl Fn(&CredentialRow) -> bool,
    ) -> Result<Vec<CredentialRow>, ReadError> {
        let condition = "WHERE listed = 1 AND state = ?1 ORDER BY expires_at LIMIT ?2";
        self.list(condition, params![state.as_str(), capped(limit)], keep)
    }

    /// Credentials in a state that expire before a time, soonest first.
    pub fn expiring_before(
        &self,
        state: CredentialState,
        before: UnixMillis,
        limit: usize,
    ) -> Result<Vec<CredentialRow>, ReadError> {
        let keep = |credential: &CredentialRow| {
            credential.state == state && credential.expires_at < before
        };
        let condition =
            "WHERE listed = 1 AND state = ?1 AND expires_at < ?2 ORDER BY expires_at LIMIT ?3";
        self.list(
            condition,
            params![state.as_str(), millis(before), capped(limit)],
            keep,
        )
    }

    /// Credentials that are intended, live or replacing.
    pub fn live_count(&self) -> Result<u64, ReadError> {
        let sql = "SELECT count(*) FROM credential WHERE listed = 1 \
                   AND state IN ('intended', 'live', 'replacing')";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let count: i64 = statement.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Calls `each` for every credential that is not dead: from the index, without the rows.
    pub fn expiries(&self, mut each: impl FnMut(Expiry)) -> Result<(), ReadError> {
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached(
            "SELECT id, state, expires_at, kind FROM credential WHERE listed = 1 AND state = ?1",
        )?;
        let waiting = |id| {
            self.overlay
                .row(&Key::Credential(id))
                .and_then(CredentialRow::of)
        };
        for state in CredentialState::ALL
            .into_iter()
            .filter(|state| *state != CredentialState::Dead)
        {
            let mut rows = statement.query([state.as_str()])?;
            while let Some(row) = rows.next()? {
                let columns = Columns(row);
                let (Ok(id), Ok(at), Ok(kind)) = (columns.id(0), columns.time(2), columns.word(3))
                else {
                    continue;
                };
                if waiting(id).is_none() {
                    each(Expiry {
                        id,
                        state,
                        kind,
                        at,
                    });
                }
            }
        }
        for row in self.overlay.rows().filter_map(CredentialRow::of) {
            if row.state != CredentialState::Dead {
                each(Expiry {
                    id: row.id,
                    state: row.state,
                    kind: row.kind,
                    at: row.expires_at,
                });
            }
        }
        Ok(())
    }

    /// Calls `each` for every place in a status list that is in use; one may come twice, and is
    /// revoked if either says so.
    pub fn listings(&self, mut each: impl FnMut(Listing)) -> Result<(), ReadError> {
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached(
            "SELECT status_list, status_index, state, id, kind, revoked_at, \
             CASE kind WHEN 'x509' THEN content ELSE '' END FROM credential WHERE listed = 1 \
             UNION ALL SELECT status_list, status_index, '', credential, credential_kind, NULL, '' \
             FROM quarantine WHERE status_index IS NOT NULL",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let columns = Columns(row);
            let (Ok(list), Ok(index)) = (columns.number(0), columns.number(1)) else {
                continue;
            };
            let revoked = !columns.word(2).is_ok_and(CredentialState::is_out);
            each(Listing {
                id: columns.id(3).ok(),
                kind: columns.word(4).ok(),
                list,
                index,
                content: columns.string(6).unwrap_or_default(),
                revoked_at: columns.opt_time(5).ok().flatten(),
                revoked,
            });
        }
        for row in self.overlay.rows().filter_map(CredentialRow::of) {
            each(Listing {
                id: Some(row.id),
                kind: Some(row.kind),
                list: row.status_list,
                index: row.status_index,
                content: row.content.clone(),
                revoked_at: row.revoked_at,
                revoked: !row.state.is_out(),
            });
        }
        Ok(())
    }

    /// Dead credentials that expired before a time and are still listed.
    pub(in crate::ledger) fn forgettable(
        &self,
        before: UnixMillis,
        limit: usize,
    ) -> Result<Vec<CredentialId>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(
            "SELECT id FROM credential WHERE listed = 1 AND state = 'dead' AND expires_at < ?1 LIMIT ?2",
        )?;
        let mut rows = statement.query(params![millis(before), int(limit as u64)])?;
        let mut ids = Vec::new();
        while let Some(row) = rows.next()? {
            if let Ok(id) = Columns(row).id(0) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// A request.
    pub fn request(&self, id: RequestId) -> Result<Option<RequestRow>, ReadError> {
        self.row(&Key::Request(id), &id.to_bytes())
    }

    /// A decision.
    pub fn decision(&self, id: DecisionId) -> Result<Option<DecisionRow>, ReadError> {
        self.row(&Key::Decision(id), &id.to_bytes())
    }

    /// A grant.
    pub fn grant(&self, id: GrantId) -> Result<Option<GrantRow>, ReadError> {
        self.row(&Key::Grant(id), &id.to_bytes())
    }

    /// The open grants of a task.
    pub fn open_grants_of(&self, task: TaskId) -> Result<Vec<GrantRow>, ReadError> {
        use ephor_proto::state::grant::GrantState;
        let keep =
            |grant: &GrantRow| grant.task == task && matches!(grant.state, GrantState::Open { .. });
        self.list(
            concat!(
                "WHERE state = 'open' AND id IN (SELECT grant_id FROM credential WHERE ",
                owned_by!("?1"),
                " UNION SELECT id FROM grants WHERE task = ?1 AND alone = 1)"
            ),
            [task.to_bytes()],
            keep,
        )
    }

    /// A host.
    pub fn host(&self, name: &str) -> Result<Option<HostRow>, ReadError> {
        self.row(&Key::Host(name.to_owned()), &name)
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> Result<Vec<HostRow>, ReadError> {
        self.list("ORDER BY name", [], |_: &HostRow| true)
    }

    /// The join token with this hash.
    pub fn join_token(&self, hash: &[u8; 32]) -> Result<Option<JoinTokenRow>, ReadError> {
        let keep = |token: &JoinTokenRow| token.hash == *hash;
        Ok(self
            .list("WHERE hash = ?1", [hash], keep)?
            .into_iter()
            .next())
    }

    /// All join tokens.
    pub fn join_tokens(&self) -> Result<Vec<JoinTokenRow>, ReadError> {
        self.list("ORDER BY id", [], |_: &JoinTokenRow| true)
    }

    /// The join token of this id.
    pub fn join_token_by_id(&self, id: JoinTokenId) -> Result<Option<JoinTokenRow>, ReadError> {
        self.row(&Key::JoinToken(id), &id.to_bytes())
    }

    /// All versions of a named key, oldest first.
    pub fn keys(&self, name: &str) -> Result<Vec<KeyRow>, ReadError> {
        self.list(
            "WHERE name = ?1 ORDER BY version",
            [name],
            |key: &KeyRow| key.name == name,
        )
    }

    /// The leaf of a task's receipt. `None` also while it waits in the reserve.
    pub fn receipt_leaf(&self, task: TaskId) -> Result<Option<u64>, ReadError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT leaf FROM receipt WHERE task = ?1")?;
        let leaf = statement
            .query_row([task.to_bytes()], |row| row.get::<_, i64>(0))
            .optional()?;
        Ok(leaf.and_then(|leaf| u64::try_from(leaf).ok()))
    }

    /// The tasks that have a receipt, oldest first, after one; at most `limit`.
    pub fn receipts(&self, after: Option<TaskId>, limit: usize) -> Result<Vec<TaskId>, ReadError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT task FROM receipt WHERE task > ?1 ORDER BY task LIMIT ?2")?;
        let after = after.map_or([0; 16], TaskId::to_bytes);
        let mut rows = statement.query(params![after, capped(limit)])?;
        let mut tasks = Vec::new();
        while let Some(row) = rows.next()? {
            if let Ok(task) = Columns(row).id(0) {
                tasks.push(task);
            }
        }
        Ok(tasks)
    }

    /// How many rows and batches were ever set aside because they could not be used.
    pub fn quarantined_count(&self) -> Result<u64, ReadError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT count(*) FROM quarantine")?;
        Ok(statement
            .query_row([], |row| row.get::<_, i64>(0))
            .map(|n| u64::try_from(n).unwrap_or(0))?)
    }

    /// What was set aside, newest first.
    pub fn quarantined(&self, limit: usize) -> Result<Vec<Quarantined>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(
            "SELECT kind, reason, time, content FROM quarantine ORDER BY number DESC LIMIT ?1",
        )?;
        let rows = statement.query_map([capped(limit)], |row| {
            let time = UnixMillis::from_millis(u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0));
            Ok(Quarantined {
                kind: row.get(0)?,
                reason: row.get(1)?,
                time,
                content: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
