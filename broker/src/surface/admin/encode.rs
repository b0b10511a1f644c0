//! Rows as the admin socket shows them.

use ephor_proto::http::admin;
use ephor_proto::log::Receipt;
use ephor_proto::state::credential::CredentialState;

use crate::app::Broker;
use crate::ledger::{CredentialRow, Overdue, ReadError, Reader, TaskRow};
use crate::prove::Proven;

pub(super) fn task(
    broker: &Broker,
    reader: &Reader,
    row: TaskRow,
) -> Result<admin::Task, ReadError> {
    let credentials = reader.credentials_of(row.id)?;
    Ok(admin::Task {
        id: row.id,
        short: reader.short(row.id)?,
        host: row.host,
        subject: row.subject.to_string(),
        rule: row.rule,
        pid: row.pid,
        state: row.state.as_str().to_owned(),
        cause: row.state.cause().map(|cause| cause.as_str().to_owned()),
        opened_at: row.opened_at,
        ended_at: row.ended_at,
        credentials: credentials
            .into_iter()
            .map(|row| credential(broker, reader, row))
            .collect::<Result<_, _>>()?,
    })
}

pub(super) fn credential(
    broker: &Broker,
    reader: &Reader,
    row: CredentialRow,
) -> Result<admin::Credential, ReadError> {
    let overdue = broker.overdue_now(&row);
    Ok(admin::Credential {
        id: row.id,
        short: reader.short(row.id)?,
        kind: row.kind.as_str().to_owned(),
        state: row.state.as_str().to_owned(),
        task: row.task,
        subject: row.subject.to_string(),
        host: row.host,
        entitlement: row.entitlement,
        owner: row.owner,
        purpose: row.purpose,
        scope: row.item,
        request: row.request,
        decision: row.decision,
        rule: row.rule,
        issued_at: row.issued_at,
        expires_at: row.expires_at,
        capped_by: row.capped_by,
        cause: row.cause.map(|cause| cause.as_str().to_owned()),
        revoked_at: row.revoked_at,
        narrowed_by: row.narrowed_by,
        overdue: overdue.as_ref().map(ToString::to_string),
        late: overdue.map(late),
    })
}

fn late(overdue: Overdue) -> admin::Late {
    admin::Late {
        target: overdue.target,
        target_owner: overdue.owner,
        reason: overdue.why,
        attempts: overdue.attempts,
        next_try: overdue.next_try,
        accepted: overdue.accepted,
    }
}

pub(super) fn ended(proven: Proven) -> admin::Ended {
    admin::Ended {
        task: proven.task,
        dead: proven.totals.dead,
        listed: proven.totals.listed,
        listed_until: proven.totals.listed_until,
        receipt: proven.receipt,
    }
}

/// One credential's end; the receipt is its task's, if that has ended.
pub(super) fn revoked(row: &CredentialRow, receipt: Option<Receipt>) -> admin::Ended {
    let is_listed = row.state == CredentialState::Contained;
    admin::Ended {
        task: row.task,
        dead: u32::from(!is_listed),
        listed: u32::from(is_listed),
        listed_until: is_listed.then_some(row.expires_at),
        receipt: receipt.and_then(|receipt| serde_json::to_value(receipt).ok()),
    }
}
