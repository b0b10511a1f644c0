//! Which credentials an id leads to, and which other ids tell more of them.

use std::collections::BTreeSet;

use ephor_proto::http::admin::Record;
use ephor_proto::id::{CredentialId, IdQuery};
use ephor_proto::postgres::short_login;
use serde_json::Value;

use super::events::text;

/// More than so many credentials are left to the list of events.
const STORIES_MAX: usize = 10;

/// Whole ids of the credentials that the typed id leads to, oldest first: the credential itself, or
/// those of a task, request or decision. None for what is about many, such as a host.
pub(super) fn credentials(records: &[Record], typed: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for record in records {
        let evidence = record.event.get("evidence").and_then(Value::as_array);
        let proven = evidence
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.get("credential")?.as_str());
        for id in [text(record, "/credential/id")].into_iter().chain(proven) {
            if !id.is_empty() && !found.iter().any(|known| known == id) {
                found.push(id.to_owned());
            }
        }
    }
    let itself = typed.parse::<IdQuery>().ok().and_then(|query| {
        let fits = |id: &&String| {
            id.parse::<CredentialId>()
                .is_ok_and(|id| query.matches(&id))
        };
        found.iter().find(fits).cloned()
    });
    // A login by its name.
    let itself = itself.or_else(|| {
        let named = |record: &&Record| {
            let name = text(record, "/credential/scope");
            typed.starts_with("eph_") && (name.starts_with(typed) || short_login(name) == typed)
        };
        let found = records.iter().find(named)?;
        Some(text(found, "/credential/id").to_owned())
    });
    match itself {
        Some(credential) => vec![credential],
        None if found.len() > STORIES_MAX => Vec::new(),
        None => found,
    }
}

/// Ids of the tasks and decisions of these credentials, for the events that do not name a credential.
pub(super) fn around(records: &[Record], credentials: &[String]) -> BTreeSet<String> {
    let theirs = records.iter().filter(|record| {
        credentials
            .iter()
            .any(|id| id == text(record, "/credential/id"))
    });
    theirs
        .flat_map(|record| [text(record, "/task"), text(record, "/decision")])
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .collect()
}
