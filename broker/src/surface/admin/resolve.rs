//! Ids as people type them: whole, short, or a name: a host's, or a login's at its target.

use ephor_proto::id::{CredentialId, DecisionId, GrantId, IdQuery, RequestId, TaskId};
use ephor_proto::problem::Code;

use super::read;
use crate::ledger::Reader;
use crate::request::Refusal;

/// What an id names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    Task(TaskId),
    Request(RequestId),
    Decision(DecisionId),
    Grant(GrantId),
    Credential(CredentialId),
    /// A host; only by its name.
    Host(String),
    /// A whole id of something without a table of its own, such as an event.
    Other(String),
}

impl Named {
    /// As the log's index of names has it.
    pub(super) fn full(&self) -> String {
        match self {
            Self::Task(id) => id.to_string(),
            Self::Request(id) => id.to_string(),
            Self::Decision(id) => id.to_string(),
            Self::Grant(id) => id.to_string(),
            Self::Credential(id) => id.to_string(),
            Self::Host(name) | Self::Other(name) => name.clone(),
        }
    }
}

/// Whatever it names; one thing.
pub(super) fn any(reader: &Reader, text: &str) -> Result<Named, Refusal> {
    let Ok(typed) = text.parse::<IdQuery>() else {
        if let Some(host) = read(reader.host(text))? {
            return Ok(Named::Host(host.name));
        }
        // A login, by what it is called at its target.
        let found = read(reader.logins_named(text))?;
        return only(
            reader,
            found.into_iter().map(Named::Credential).collect(),
            text,
        );
    };
    let asked = as_stored(typed);
    let mut found: Vec<Named> = Vec::new();
    found.extend(read(reader.find(&asked))?.into_iter().map(Named::Task));
    found.extend(read(reader.find(&asked))?.into_iter().map(Named::Request));
    found.extend(read(reader.find(&asked))?.into_iter().map(Named::Decision));
    found.extend(read(reader.find(&asked))?.into_iter().map(Named::Grant));
    found.extend(
        read(reader.find(&asked))?
            .into_iter()
            .map(Named::Credential),
    );
    if let (true, IdQuery::Full(uuid)) = (found.is_empty(), &asked) {
        return Ok(Named::Other(uuid.to_string()));
    }
    only(reader, found, text)
}

/// The task that an id belongs to: its own, or that of a credential, request, decision or receipt.
pub(super) fn task(reader: &Reader, text: &str) -> Result<TaskId, Refusal> {
    let of = match any(reader, text)? {
        Named::Task(id) => Some(id),
        Named::Request(id) => read(reader.request(id))?.map(|row| row.task),
        Named::Decision(id) => read(reader.decision(id))?.and_then(|row| row.task),
        Named::Grant(id) => read(reader.grant(id))?.map(|row| row.task),
        Named::Credential(id) => read(reader.credential(id))?.map(|row| row.task),
        // The receipt of a task whose rows were pruned is still there.
        Named::Other(uuid) => match uuid.parse::<TaskId>() {
            Ok(id) => read(reader.receipt_leaf(id))?.map(|_| id),
            Err(_) => None,
        },
        Named::Host(_) => None,
    };
    of.ok_or_else(|| absent(reader, text))
}

/// A credential by its id, which is also a token's `jti`, or a login's name.
pub(super) fn credential(reader: &Reader, text: &str) -> Result<CredentialId, Refusal> {
    match any(reader, text)? {
        Named::Credential(id) => Ok(id),
        Named::Task(_)
        | Named::Request(_)
        | Named::Decision(_)
        | Named::Grant(_)
        | Named::Host(_)
        | Named::Other(_) => Err(absent(reader, text)),
    }
}

/// A receipt has the bits of its task.
fn as_stored(typed: IdQuery) -> IdQuery {
    match typed {
        IdQuery::Short {
            letter: 'r',
            suffix,
        } => IdQuery::Short {
            letter: 't',
            suffix,
        },
        IdQuery::Short { .. } | IdQuery::Full(_) => typed,
    }
}

fn only(reader: &Reader, mut found: Vec<Named>, text: &str) -> Result<Named, Refusal> {
    let first = found.pop().ok_or_else(|| absent(reader, text))?;
    if found.is_empty() {
        return Ok(first);
    }
    let all: Vec<String> = std::iter::once(&first)
        .chain(&found)
        .take(8)
        .map(Named::full)
        .collect();
    let detail = format!(
        "`{text}` names {} things; type more of it: {}",
        found.len() + 1,
        all.join(", ")
    );
    Err(Refusal::new(Code::Conflict, detail))
}

/// Nothing has this name; it may have had it.
fn absent(reader: &Reader, text: &str) -> Refusal {
    let shown: String = text.chars().take(64).collect();
    let mut detail = format!("nothing here is named `{shown}`");
    let is_id = text.parse::<IdQuery>().is_ok();
    if let (true, Ok(Some((before, at)))) = (is_id, reader.pruned().map(|pruned| pruned.detail)) {
        detail.push_str(&format!(
            "; the detail of what was over before {before} was pruned by retention, last on {at}, and is found \
             in the log by its whole id: ephor audit show ID"
        ));
    }
    Refusal::new(Code::NotFound, detail)
}
