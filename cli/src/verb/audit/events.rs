//! Audit events as lines.

use ephor_proto::http::admin::Record;
use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;
use serde_json::Value;

use crate::clock;
use crate::show::{Column, brief, credential_line, path_of};

/// A text field, by its path; empty when there is none.
pub(super) fn text<'a>(record: &'a Record, pointer: &str) -> &'a str {
    record
        .event
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// As [`text`], for a time.
pub(super) fn time(record: &Record, pointer: &str) -> Option<UnixMillis> {
    text(record, pointer).parse().ok()
}

/// A value that the leaf may only commit to: as it is kept, else as it stands in the leaf.
pub(super) fn told(record: &Record, field: &str) -> Option<String> {
    let kept = record
        .personal
        .get(field)
        .and_then(Value::as_str)
        .map(str::to_owned);
    kept.or_else(|| match record.event.get(field) {
        Some(Value::String(plain)) => Some(plain.clone()),
        Some(Value::Object(_)) => Some("(erased; the log keeps its hash)".to_owned()),
        Some(_) | None => None,
    })
}

/// `k-7q2m` of a whole id.
pub(super) fn short_credential(id: &str) -> String {
    id.parse::<CredentialId>()
        .map_or_else(|_| id.to_owned(), |id| id.short_with(4))
}

/// Whom and what it is about, in words.
fn about(record: &Record) -> String {
    let mut parts = Vec::new();
    let credential = text(record, "/credential/id");
    if !credential.is_empty() {
        parts.push(credential_line(
            text(record, "/credential/kind"),
            &short_credential(credential),
            text(record, "/credential/scope"),
        ));
    } else if !text(record, "/entitlement").is_empty() {
        parts.push(text(record, "/entitlement").to_owned());
    }
    let subject = told(record, "subject").unwrap_or_default();
    if !subject.is_empty() {
        parts.push(path_of(&subject).to_owned());
    }
    let agent = text(record, "/agent");
    if !agent.is_empty() {
        parts.push(format!(
            "on {}",
            path_of(agent).trim_start_matches("agent/")
        ));
    }
    parts.extend(
        ["/cause", "/code"]
            .map(|field| text(record, field).to_owned())
            .into_iter()
            .filter(|t| !t.is_empty()),
    );
    if let Some(count) = record.event.get("count").and_then(Value::as_u64) {
        parts.push(format!("{count} times"));
    }
    parts.join(", ")
}

/// The columns that people see.
pub(super) fn short() -> [Column<Record>; 5] {
    let now = clock::wall();
    [
        Column::new("LEAF", |record: &Record| record.index.to_string()),
        Column::new("TIME", move |record: &Record| {
            time(record, "/time")
                .map(|at| brief(at, now))
                .unwrap_or_default()
        }),
        Column::new("EVENT", |record: &Record| text(record, "/type").to_owned()),
        Column::new("OUTCOME", |record: &Record| {
            text(record, "/outcome").to_owned()
        }),
        Column::elastic("ABOUT", about),
    ]
}

/// A column of one field of the event.
fn field(title: &'static str, pointer: &'static str) -> Column<Record> {
    Column::new(title, move |record: &Record| {
        match record.event.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    })
}

/// All that has a place in a spreadsheet.
pub(super) fn whole() -> [Column<Record>; 23] {
    [
        Column::new("leaf", |record: &Record| record.index.to_string()),
        field("id", "/id"),
        field("time", "/time"),
        field("type", "/type"),
        field("outcome", "/outcome"),
        field("count", "/count"),
        Column::new("subject", |record: &Record| {
            told(record, "subject").unwrap_or_default()
        }),
        field("agent", "/agent"),
        field("task", "/task"),
        field("request", "/request"),
        field("decision", "/decision"),
        field("entitlement", "/entitlement"),
        Column::new("owner", |record: &Record| {
            told(record, "owner").unwrap_or_default()
        }),
        field("purpose", "/purpose"),
        Column::new("reason", |record: &Record| {
            told(record, "reason").unwrap_or_default()
        }),
        field("credential", "/credential/id"),
        field("kind", "/credential/kind"),
        field("scope", "/credential/scope"),
        field("expires_at", "/credential/expires_at"),
        field("state", "/credential/state"),
        field("cause", "/cause"),
        field("code", "/code"),
        field("policy_version", "/policy_version"),
    ]
}
