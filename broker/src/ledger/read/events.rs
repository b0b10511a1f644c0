//! Events by index, by task and by any id that they are about.

use std::collections::BTreeSet;

use ephor_proto::event::{AuditEvent, PersonalValue};
use ephor_proto::id::{CredentialId, EventId, TaskId};
use rusqlite::{OptionalExtension as _, Params, params};

use super::{ReadError, Reader, capped};
use crate::ledger::codec::{Columns, int};
use crate::ledger::owned::owned_by;

/// The indices of the leaves of a set of tasks, each once: what is indexed by
/// task, and what stands beside a credential, which is the task's opening, the decision, and one leaf
/// for each credential of its request.
macro_rules! of_tasks {
    ($before:literal, $tasks:literal, $after:literal) => {
        concat!(
            $before,
            "SELECT idx FROM leaf WHERE beside = 0 AND task IN (",
            $tasks,
            ") UNION SELECT leaf.idx FROM credential AS c CROSS JOIN request ON request.id = c.request \
             CROSS JOIN leaf ON leaf.idx BETWEEN c.leaf AND c.leaf + 1 + length(request.credentials) / 16 \
             WHERE leaf.task = c.task AND c.",
            owned_by!($tasks),
            $after
        )
    };
}

/// An event as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Leaf index.
    pub index: u64,
    /// The leaf: canonical JSON, byte for byte.
    pub json: String,
}

impl StoredEvent {
    /// The event.
    ///
    /// # Errors
    /// When it was written by a version that this one cannot read.
    pub fn event(&self) -> Result<AuditEvent, serde_json::Error> {
        AuditEvent::from_leaf(self.json.as_bytes())
    }
}

/// Reads fail with [`ReadError`] when the store cannot be read.
#[allow(clippy::missing_errors_doc)]
impl Reader {
    /// The event at a leaf index.
    pub fn event(&self, index: u64) -> Result<Option<StoredEvent>, ReadError> {
        let found = self.stored("SELECT idx, json FROM leaf WHERE idx = ?1", [int(index)])?;
        Ok(found.into_iter().next())
    }

    /// Events from a leaf index on, at most `limit`.
    pub fn events(&self, from: u64, limit: usize) -> Result<Vec<StoredEvent>, ReadError> {
        let sql = "SELECT idx, json FROM leaf WHERE idx >= ?1 ORDER BY idx LIMIT ?2";
        self.stored(sql, params![int(from), capped(limit)])
    }

    /// The events of a task, in order.
    pub fn events_of_task(
        &self,
        task: TaskId,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, ReadError> {
        let sql = of_tasks!(
            "SELECT idx, json FROM leaf WHERE idx IN (",
            "?1",
            ") ORDER BY idx LIMIT ?2"
        );
        self.stored(sql, params![task.to_bytes(), capped(limit)])
    }

    /// The newest events about an id (of a task, request, decision, grant, credential, event,
    /// join token) written in full, or about a host by its name; in order, at most `limit`. May look
    /// through the whole log: not for a thread that others wait for.
    pub fn events_about(&self, name: &str, limit: usize) -> Result<Vec<StoredEvent>, ReadError> {
        let mut found = BTreeSet::new();
        self.collect(
            &mut found,
            "SELECT leaf FROM about WHERE name = ?1 ORDER BY leaf DESC LIMIT ?2",
            params![name, capped(limit)],
        )?;
        match uuid_bytes(name) {
            Some(id) => self.about_id(&mut found, name, id, limit)?,
            None => {
                let sql = of_tasks!(
                    "",
                    "SELECT id FROM task WHERE host = ?1",
                    " ORDER BY idx DESC LIMIT ?2"
                );
                self.collect(&mut found, sql, params![name, capped(limit)])?;
            }
        }
        let newest = found.len().saturating_sub(limit);
        let mut events = Vec::new();
        for index in found.into_iter().skip(newest) {
            events.extend(self.event(index)?);
        }
        Ok(events)
    }

    fn about_id(
        &self,
        found: &mut BTreeSet<u64>,
        name: &str,
        id: [u8; 16],
        limit: usize,
    ) -> Result<(), ReadError> {
        // Every id leads to a task, whose events are indexed.
        let task = self.first_blob(
            "SELECT id FROM task WHERE id = ?1 UNION ALL SELECT task FROM credential WHERE id = ?1 \
             UNION ALL SELECT task FROM request WHERE id = ?1 \
             UNION ALL SELECT task FROM decision WHERE id = ?1 AND task IS NOT NULL \
             UNION ALL SELECT task FROM grants WHERE id = ?1",
            id,
        )?;
        if let Some(task) = task {
            let is_task = task.as_slice() == id;
            let request = CredentialId::from_bytes(id)
                .ok()
                .map(|id| self.credential(id))
                .transpose()?;
            let request = request.flatten().map(|credential| credential.request);
            let sql = of_tasks!(
                "SELECT idx, json FROM leaf WHERE idx IN (",
                "?1",
                ") ORDER BY idx LIMIT ?2"
            );
            for stored in self.stored(sql, params![task, capped(usize::MAX)])? {
                let event = stored.event().ok();
                // Events of the whole task name no request.
                let whole = event
                    .as_ref()
                    .is_none_or(|event| event.request.is_none() && event.credential.is_none());
                let asked = request.is_some()
                    && event.as_ref().is_some_and(|event| event.request == request);
                if is_task || whole || asked || stored.json.contains(name) {
                    found.insert(stored.index);
                }
            }
        }
        if found.is_empty() {
            // An event's own id, which people rarely look for: a scan.
            let sql = "SELECT idx FROM leaf WHERE event = ?1 LIMIT ?2";
            self.collect(found, sql, params![id, capped(limit)])?;
        }
        if found.is_empty() && self.may_lead_nowhere()? {
            // Only the text tells of it now: all of it is looked through.
            let sql = "SELECT idx FROM leaf WHERE instr(json, ?1) > 0 ORDER BY idx DESC LIMIT ?2";
            self.collect(found, sql, params![name, capped(limit)])?;
        }
        Ok(())
    }

    /// Whether rows that led from an id to its events may be gone: by retention, or set aside.
    fn may_lead_nowhere(&self) -> Result<bool, ReadError> {
        Ok(self.pruned()?.detail.is_some() || self.quarantined_count()? > 0)
    }

    /// The personal values of an event that are still kept, by field.
    pub fn personal(&self, index: u64) -> Result<Vec<(String, PersonalValue)>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(
            "SELECT field, salt, value FROM personal WHERE event = (SELECT event FROM leaf WHERE idx = ?1)",
        )?;
        let rows = statement.query_map([int(index)], |row| {
            Ok((
                row.get(0)?,
                PersonalValue {
                    salt: row.get(1)?,
                    value: row.get(2)?,
                },
            ))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The id of the event at a leaf index, for erasing what is personal in it.
    pub fn event_id(&self, index: u64) -> Result<Option<EventId>, ReadError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT event FROM leaf WHERE idx = ?1")?;
        let mut rows = statement.query([int(index)])?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        Columns(row)
            .id(0)
            .map(Some)
            .map_err(|error| ReadError::Unreadable {
                table: "leaf",
                reason: error.to_string(),
            })
    }

    fn stored(&self, sql: &str, parameters: impl Params) -> Result<Vec<StoredEvent>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let rows = statement.query_map(parameters, |row| {
            let index = u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
            Ok(StoredEvent {
                index,
                json: row.get(1)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn collect(
        &self,
        found: &mut BTreeSet<u64>,
        sql: &str,
        parameters: impl Params,
    ) -> Result<(), ReadError> {
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let rows = statement.query_map(parameters, |row| row.get::<_, i64>(0))?;
        for index in rows {
            found.insert(u64::try_from(index?).unwrap_or(0));
        }
        Ok(())
    }

    fn first_blob(&self, sql: &str, id: [u8; 16]) -> Result<Option<Vec<u8>>, ReadError> {
        let mut statement = self.connection()?.prepare_cached(sql)?;
        Ok(statement.query_row([id], |row| row.get(0)).optional()?)
    }
}

fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    match text.parse::<ephor_proto::id::IdQuery>() {
        Ok(ephor_proto::id::IdQuery::Full(uuid)) => Some(uuid.into_bytes()),
        Ok(ephor_proto::id::IdQuery::Short { .. }) | Err(_) => None,
    }
}
