//! Requests and decisions.

use std::sync::LazyLock;

use ephor_proto::id::CredentialId;
use rusqlite::{CachedStatement, params};

use crate::ledger::batch::Key;
use crate::ledger::codec::{BadColumn, BlobId as _, Columns, Sql, Stored, int, millis};
use crate::ledger::row::{DecisionRow, RequestRow, Row};

static REQUEST: LazyLock<Sql> = LazyLock::new(|| {
    Sql::of(
        "request",
        &[
            "id",
            "version",
            "digest",
            "task",
            "state",
            "decision",
            "grant_id",
            "credentials",
            "requested_at",
        ],
    )
});

impl Stored for RequestRow {
    const TABLE: &'static str = "request";

    fn sql() -> &'static Sql {
        &REQUEST
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        let credentials: Vec<u8> = self
            .credentials
            .iter()
            .flat_map(|credential| credential.to_bytes())
            .collect();
        statement.execute(params![
            self.id.to_bytes(),
            int(self.version),
            self.digest,
            self.task.to_bytes(),
            self.state.as_str(),
            self.decision.map(|id| id.to_bytes()),
            self.grant.map(|id| id.to_bytes()),
            credentials,
            millis(self.requested_at),
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        let credentials = columns.blob(7)?.chunks(16).map(CredentialId::from_blob);
        Ok(Self {
            id: columns.id(0)?,
            version: columns.number(1)?,
            digest: columns.hash(2)?,
            task: columns.id(3)?,
            state: columns.word(4)?,
            decision: columns.opt_id(5)?,
            grant: columns.opt_id(6)?,
            credentials: credentials
                .collect::<Result<_, _>>()
                .map_err(|error| columns.bad(7, error))?,
            requested_at: columns.time(8)?,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Request(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Request(self.id)
    }

    fn version(&self) -> u64 {
        self.version
    }
}

static DECISION: LazyLock<Sql> = LazyLock::new(|| {
    Sql::of(
        "decision",
        &[
            "id",
            "request",
            "task",
            "allowed",
            "code",
            "subject",
            "entitlement",
            "item",
            "rule",
            "policy_version",
            "ttl_seconds",
            "capped_by",
            "decided_at",
        ],
    )
});

impl Stored for DecisionRow {
    const TABLE: &'static str = "decision";

    fn sql() -> &'static Sql {
        &DECISION
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        statement.execute(params![
            self.id.to_bytes(),
            self.request.to_bytes(),
            self.task.map(|id| id.to_bytes()),
            self.allowed,
            self.code,
            self.subject,
            self.entitlement,
            self.item,
            self.rule,
            self.policy_version,
            int(self.ttl_seconds),
            self.capped_by,
            millis(self.decided_at),
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        Ok(Self {
            id: columns.id(0)?,
            request: columns.id(1)?,
            task: columns.opt_id(2)?,
            allowed: columns.flag(3)?,
            code: columns.string(4)?,
            subject: columns.string(5)?,
            entitlement: columns.string(6)?,
            item: columns.string(7)?,
            rule: columns.string(8)?,
            policy_version: columns.string(9)?,
            ttl_seconds: columns.number(10)?,
            capped_by: columns.string(11)?,
            decided_at: columns.time(12)?,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Decision(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Decision(self.id)
    }

    fn version(&self) -> u64 {
        1
    }
}
