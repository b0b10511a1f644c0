//! The policy over the admin socket: apply one, show versions.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use ephor_proto::http::admin::{ApplyPolicy, PolicyApplied, PolicyShown, PolicyVersion};
use ephor_proto::problem::Code;

use super::{Answer, Shared, body, read, refuse};
use crate::app::Broker;
use crate::ledger::PolicyEntry;
use crate::limits;
use crate::request::Refusal;
use crate::surface::listener::Connection;

/// What stands for the newest version.
const CURRENT: &str = "current";

pub(super) async fn apply(
    State(broker): Shared,
    Extension(connection): Extension<Connection>,
    asked: Result<Json<ApplyPolicy>, JsonRejection>,
) -> Answer<PolicyApplied> {
    let outcome = match body(asked) {
        Ok(ApplyPolicy { files, dry_run }) => {
            broker.apply_policy(files, who(&connection), dry_run).await
        }
        Err(refusal) => Err(refusal),
    };
    refuse(&broker, outcome)
}

/// Who is at the other end, by the kernel's word.
pub(super) fn who(connection: &Connection) -> String {
    match connection {
        Connection::Admin { uid, pid: _ } => format!("uid {uid}"),
        Connection::Https { .. } | Connection::Http { .. } => "unknown".to_owned(),
    }
}

pub(super) async fn versions(State(broker): Shared) -> Answer<Vec<PolicyVersion>> {
    let rows = read(broker.ledger.reader().policies(limits::ADMIN_ROWS));
    let entries = |rows: Vec<PolicyEntry>| {
        let newest = rows.first().map(|row| row.number);
        rows.into_iter().map(|row| entry(row, newest)).collect()
    };
    refuse(&broker, rows.map(entries))
}

pub(super) async fn show(
    State(broker): Shared,
    Path(version): Path<String>,
) -> Answer<PolicyShown> {
    refuse(&broker, show_within(&broker, &version))
}

fn show_within(broker: &Broker, version: &str) -> Result<PolicyShown, Refusal> {
    let reader = broker.ledger.reader();
    let newest = read(reader.policy_version())?.map(|(number, _)| number);
    let wanted = match version {
        CURRENT => newest,
        hash => read(reader.policy_number(hash))?,
    };
    let row = match wanted {
        Some(number) => read(reader.policy(number))?,
        None => None,
    };
    let unknown = || {
        let detail = format!("policy {version} was never in force here (ephor policy history)");
        Refusal::new(Code::NotFound, detail)
    };
    let row = row.ok_or_else(unknown)?;
    let files = serde_json::from_str(&row.files).map_err(crate::issue::defect)?;
    let about = PolicyEntry {
        number: row.number,
        version: row.version,
        previous: row.previous,
        applied_at: row.applied_at,
        applied_by: row.applied_by,
    };
    let version = entry(about, newest);
    let trouble = broker.inforce.trouble().filter(|_| version.in_force);
    Ok(PolicyShown {
        version,
        trouble,
        files,
    })
}

fn entry(row: PolicyEntry, newest: Option<u64>) -> PolicyVersion {
    PolicyVersion {
        in_force: Some(row.number) == newest,
        number: row.number,
        version: row.version,
        previous: row.previous,
        applied_at: row.applied_at,
        applied_by: row.applied_by,
    }
}
