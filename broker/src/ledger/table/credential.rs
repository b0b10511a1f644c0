//! Credentials. `listed` is not a field of the row: only forgetting a listing clears it. Nor is
//! `leaf`, the first leaf of the batch that recorded it, nor `number` and `older`, by which those of a
//! task are found: only the writer knows them.

use std::sync::LazyLock;

use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::EndCause;
use rusqlite::{CachedStatement, params};

use crate::kind::effect::Content;
use crate::ledger::batch::Key;
use crate::ledger::codec::{BadColumn, Columns, Sql, Stored, int, millis, opt_millis};
use crate::ledger::overdue::Overdue;
use crate::ledger::row::{CredentialRow, Row};

static CREDENTIAL: LazyLock<Sql> = LazyLock::new(|| {
    let mut sql = Sql::of(
        "credential",
        &[
            "id",
            "version",
            "kind",
            "task",
            "host",
            "subject",
            "entitlement",
            "item",
            "owner",
            "purpose",
            "request",
            "decision",
            "rule",
            "grant_id",
            "state",
            "issued_at",
            "expires_at",
            "capped_by",
            "status_list",
            "status_index",
            "content",
            "cause",
            "revoked_at",
            "evidence",
            "overdue",
            "narrowed_by",
        ],
    );
    // Rows are written before the leaves of their batch: the next leaf is the first of them.
    let next_leaf = "VALUES ((SELECT coalesce(max(idx) + 1, 0) FROM leaf), \
                     (SELECT number FROM newest WHERE task = ?4), ";
    sql.insert = sql
        .insert
        .replace("(id, ", "(leaf, older, id, ")
        .replace("VALUES (", next_leaf);
    sql
});

impl Stored for CredentialRow {
    const TABLE: &'static str = "credential";

    fn sql() -> &'static Sql {
        &CREDENTIAL
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        statement.execute(params![
            self.id.to_bytes(),
            int(self.version),
            self.kind.as_str(),
            self.task.to_bytes(),
            self.host,
            self.subject.as_str(),
            self.entitlement,
            self.item,
            self.owner,
            self.purpose,
            self.request.to_bytes(),
            self.decision.to_bytes(),
            self.rule,
            self.grant.to_bytes(),
            self.state.as_str(),
            millis(self.issued_at),
            millis(self.expires_at),
            self.capped_by,
            self.status_list,
            self.status_index,
            self.content,
            self.cause.map(EndCause::as_str),
            opt_millis(self.revoked_at),
            self.evidence,
            overdue(self)?,
            self.narrowed_by,
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        let row = Self {
            id: columns.id(0)?,
            version: columns.number(1)?,
            kind: columns.word(2)?,
            task: columns.id(3)?,
            host: columns.string(4)?,
            subject: columns.word(5)?,
            entitlement: columns.string(6)?,
            item: columns.string(7)?,
            owner: columns.string(8)?,
            purpose: columns.string(9)?,
            request: columns.id(10)?,
            decision: columns.id(11)?,
            rule: columns.string(12)?,
            grant: columns.id(13)?,
            state: columns.word(14)?,
            issued_at: columns.time(15)?,
            expires_at: columns.time(16)?,
            capped_by: columns.string(17)?,
            status_list: columns.number(18)?,
            status_index: columns.number(19)?,
            content: columns.string(20)?,
            cause: columns.opt_word(21)?,
            revoked_at: columns.opt_time(22)?,
            evidence: columns.opt_string(23)?,
            overdue: columns.opt_string(24)?.as_deref().map(Overdue::of_json),
            narrowed_by: columns.opt_string(25)?,
        };
        // What it is called at its target is in there: without, it could never be ended. Of a dead one
        // it is forgotten.
        if !row.kind.is_signed() && row.state != CredentialState::Dead {
            Content::parse(&row.content).map_err(|error| columns.bad(20, error))?;
        }
        Ok(row)
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Credential(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Credential(self.id)
    }

    fn version(&self) -> u64 {
        self.version
    }
}

fn overdue(row: &CredentialRow) -> rusqlite::Result<Option<String>> {
    let json = row.overdue.as_ref().map(Overdue::to_json).transpose();
    json.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
