//! Tasks and grants: their states carry data, which has columns of its own.

use std::sync::LazyLock;

use ephor_proto::state::grant::GrantState;
use ephor_proto::state::task::{EndCause, TaskState};
use rusqlite::{CachedStatement, params};

use crate::ledger::batch::Key;
use crate::ledger::codec::{BadColumn, Columns, Sql, Stored, int, millis, opt_millis};
use crate::ledger::row::{GrantRow, Row, TaskRow};

static TASK: LazyLock<Sql> = LazyLock::new(|| {
    Sql::of(
        "task",
        &[
            "id",
            "version",
            "host",
            "subject",
            "rule",
            "pid",
            "start_time",
            "boot_id",
            "instance",
            "opened_seq",
            "state",
            "cause",
            "contained",
            "opened_at",
            "ended_at",
            "closed_at",
            "deadline",
        ],
    )
});

fn task_state(columns: &Columns<'_>, at: usize) -> Result<TaskState, BadColumn> {
    match columns.str(at)? {
        "open" => Ok(TaskState::Open),
        "completing" => Ok(TaskState::Completing(columns.word(at + 1)?)),
        "closed" => {
            let (cause, contained) = (columns.word(at + 1)?, columns.flag(at + 2)?);
            Ok(TaskState::Closed { cause, contained })
        }
        other => Err(columns.unknown(at, other)),
    }
}

fn task_columns(state: TaskState) -> (&'static str, Option<EndCause>, bool) {
    match state {
        TaskState::Open => ("open", None, false),
        TaskState::Completing(cause) => ("completing", Some(cause), false),
        TaskState::Closed { cause, contained } => ("closed", Some(cause), contained),
    }
}

impl Stored for TaskRow {
    const TABLE: &'static str = "task";

    fn sql() -> &'static Sql {
        &TASK
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        let (state, cause, contained) = task_columns(self.state);
        statement.execute(params![
            self.id.to_bytes(),
            int(self.version),
            self.host,
            self.subject.as_str(),
            self.rule,
            self.pid,
            int(self.start_time),
            self.boot_id,
            self.instance.to_bytes(),
            int(self.opened_seq),
            state,
            cause.map(EndCause::as_str),
            contained,
            millis(self.opened_at),
            opt_millis(self.ended_at),
            opt_millis(self.closed_at),
            opt_millis(self.deadline),
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        Ok(Self {
            id: columns.id(0)?,
            version: columns.number(1)?,
            host: columns.string(2)?,
            subject: columns.word(3)?,
            rule: columns.string(4)?,
            pid: columns.number(5)?,
            start_time: columns.number(6)?,
            boot_id: columns.string(7)?,
            instance: columns.id(8)?,
            opened_seq: columns.number(9)?,
            state: task_state(columns, 10)?,
            opened_at: columns.time(13)?,
            ended_at: columns.opt_time(14)?,
            closed_at: columns.opt_time(15)?,
            deadline: columns.opt_time(16)?,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Task(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Task(self.id)
    }

    fn version(&self) -> u64 {
        self.version
    }
}

static GRANT: LazyLock<Sql> = LazyLock::new(|| {
    Sql::of(
        "grants",
        &[
            "id",
            "version",
            "task",
            "decision",
            "entitlement",
            "item",
            "state",
            "opened_at",
            "until",
            "ended_by",
            "closed_at",
            "alone",
        ],
    )
});

impl Stored for GrantRow {
    const TABLE: &'static str = "grants";

    fn sql() -> &'static Sql {
        &GRANT
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        let (state, until, ended_by) = match self.state {
            GrantState::Open { until } => ("open", until, None),
            GrantState::Closed(end) => ("closed", self.until, Some(end.as_str())),
        };
        statement.execute(params![
            self.id.to_bytes(),
            int(self.version),
            self.task.to_bytes(),
            self.decision.to_bytes(),
            self.entitlement,
            self.item,
            state,
            millis(self.opened_at),
            millis(until),
            ended_by,
            opt_millis(self.closed_at),
            self.alone,
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        let until = columns.time(8)?;
        Ok(Self {
            id: columns.id(0)?,
            version: columns.number(1)?,
            task: columns.id(2)?,
            decision: columns.id(3)?,
            entitlement: columns.string(4)?,
            item: columns.string(5)?,
            state: match columns.str(6)? {
                "open" => GrantState::Open { until },
                "closed" => GrantState::Closed(columns.word(9)?),
                other => return Err(columns.unknown(6, other)),
            },
            opened_at: columns.time(7)?,
            until,
            closed_at: columns.opt_time(10)?,
            alone: columns.number::<u8>(11)? != 0,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Grant(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Grant(self.id)
    }

    fn version(&self) -> u64 {
        self.version
    }
}
