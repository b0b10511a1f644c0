//! A batch made ready for the writer on the thread of who submits it: events become leaves here,
//! so that the one writer has little left to do.

use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::{EventId, TaskId};
use serde::{Deserialize, Serialize};

use super::batch::{Batch, Lane, NewEvent, Reason, Require};
use super::row::Row;

/// An event as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Leaf {
    /// Its id.
    pub(super) event: EventId,
    /// Its task: the way to find it.
    pub(super) task: Option<TaskId>,
    /// It stands beside a credential that its batch records, which leads to it.
    pub(super) beside: bool,
    /// Names by which it is found when its task does not lead there.
    pub(super) about: Vec<String>,
    /// Canonical JSON: the leaf itself.
    pub(super) json: String,
    /// Field, salt, value.
    pub(super) personal: Vec<(String, Vec<u8>, String)>,
}

/// A batch, ready to be written; also the content of a frame of the reserve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Encoded {
    pub(super) name: String,
    pub(super) lane: Lane,
    pub(super) require: Vec<Require>,
    pub(super) rows: Vec<Row>,
    pub(super) leaves: Vec<Leaf>,
}

impl Encoded {
    /// Encodes the events and checks what needs no store.
    pub(super) fn of(batch: Batch) -> Result<Self, Reason> {
        let mut leaves = batch
            .events
            .into_iter()
            .map(Leaf::of)
            .collect::<Result<Vec<_>, _>>()?;
        set_beside(&mut leaves, &batch.rows);
        let count = leaves.len();
        for row in &batch.rows {
            if let Row::Receipt { task, event } = row
                && *event as usize >= count
            {
                let text = format!("the receipt of task {task} names event {event} of {count}");
                return Err(Reason::Invalid(text));
            }
        }
        Ok(Self {
            name: batch.name.to_owned(),
            lane: batch.lane,
            require: batch.require,
            rows: batch.rows,
            leaves,
        })
    }

    /// Whether the store is nobody's after it: see [`Row::NewEpoch`].
    pub(super) fn begins_epoch(&self) -> bool {
        self.rows.iter().any(|row| matches!(row, Row::NewEpoch(_)))
    }
}

/// The leaves that are found through a credential: the task's opening, the decision, and one for
/// each credential that is recorded with them.
fn set_beside(leaves: &mut [Leaf], rows: &[Row]) {
    // Rows that are made anew from the log have no request of theirs in the batch.
    if !rows
        .iter()
        .any(|row| matches!(row, Row::Request(request) if request.version == 1))
    {
        return;
    }
    let recorded = |row: &Row| match row {
        Row::Credential(row) if row.version == 1 => Some(row.task),
        _ => None,
    };
    let mut tasks = rows.iter().filter_map(recorded);
    let Some(task) = tasks.next() else {
        return;
    };
    let credentials = 1 + tasks.count();
    for leaf in leaves.iter_mut().take(2 + credentials) {
        leaf.beside = leaf.task == Some(task);
    }
}

impl Leaf {
    fn of(new: NewEvent) -> Result<Self, Reason> {
        let invalid = |error: &dyn std::fmt::Display| Reason::Invalid(error.to_string());
        let bytes = new.event.leaf_bytes().map_err(|error| invalid(&error))?;
        let json = String::from_utf8(bytes).map_err(|error| invalid(&error))?;
        let personal = new
            .personal
            .into_iter()
            .map(|(field, kept)| (field, kept.salt.to_vec(), kept.value))
            .collect();
        Ok(Self {
            event: new.event.id,
            task: new.event.task,
            beside: false,
            about: names(&new.event),
            json,
            personal,
        })
    }
}

/// What an event is found by beside its task. An event of a task that ran is found through that
/// task's row; a refusal may name a task that was never opened.
fn names(event: &AuditEvent) -> Vec<String> {
    if event.task.is_some() && event.outcome == Outcome::Ok {
        return Vec::new();
    }
    let host = event
        .agent
        .as_deref()
        .and_then(|agent| agent.rsplit('/').next());
    let ids = [
        event.request.map(|id| id.to_string()),
        event.decision.map(|id| id.to_string()),
        event.credential.as_ref().map(|part| part.id.to_string()),
        host.map(str::to_owned),
    ];
    let facts = event
        .facts
        .iter()
        .filter(|(name, value)| *name == "host" || is_uuid(value));
    let mut names: Vec<String> = ids
        .into_iter()
        .flatten()
        .chain(facts.map(|(_, value)| value.clone()))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}
