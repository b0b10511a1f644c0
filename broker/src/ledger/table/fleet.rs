//! Hosts, join tokens and keys.

use std::sync::LazyLock;

use rusqlite::{CachedStatement, params};

use crate::ledger::batch::Key;
use crate::ledger::codec::{BadColumn, Columns, Sql, Stored, int, millis, opt_millis};
use crate::ledger::row::{HostRow, JoinTokenRow, KeyRow, Row};

static HOST: LazyLock<Sql> = LazyLock::new(|| {
    Sql::of(
        "host",
        &[
            "name",
            "version",
            "state",
            "joined_at",
            "last_heard",
            "boot_id",
            "instance",
            "spki_sha256",
            "certificate_expires_at",
            "generation",
            "previous_spki_sha256",
            "banned_at",
            "epoch",
        ],
    )
});

impl Stored for HostRow {
    const TABLE: &'static str = "host";

    fn sql() -> &'static Sql {
        &HOST
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        statement.execute(params![
            self.name,
            int(self.version),
            self.state.as_str(),
            millis(self.joined_at),
            opt_millis(self.last_heard),
            self.boot_id,
            self.instance.map(|id| id.to_bytes()),
            self.spki_sha256,
            millis(self.certificate_expires_at),
            int(self.generation),
            self.previous_spki_sha256,
            opt_millis(self.banned_at),
            self.epoch,
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        Ok(Self {
            name: columns.string(0)?,
            version: columns.number(1)?,
            state: columns.word(2)?,
            joined_at: columns.time(3)?,
            last_heard: columns.opt_time(4)?,
            boot_id: columns.string(5)?,
            instance: columns.opt_id(6)?,
            spki_sha256: columns.hash(7)?,
            certificate_expires_at: columns.time(8)?,
            generation: columns.number(9)?,
            previous_spki_sha256: columns.opt_hash(10)?,
            banned_at: columns.opt_time(11)?,
            epoch: columns.number(12)?,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Host(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Host(self.name.clone())
    }

    fn version(&self) -> u64 {
        self.version
    }
}

static JOIN_TOKEN: LazyLock<Sql> = LazyLock::new(|| {
    Sql::of(
        "join_token",
        &[
            "id",
            "version",
            "hash",
            "host_pattern",
            "expires_at",
            "used_by",
        ],
    )
});

impl Stored for JoinTokenRow {
    const TABLE: &'static str = "join_token";

    fn sql() -> &'static Sql {
        &JOIN_TOKEN
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        statement.execute(params![
            self.id.to_bytes(),
            int(self.version),
            self.hash,
            self.host_pattern,
            millis(self.expires_at),
            self.used_by,
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        Ok(Self {
            id: columns.id(0)?,
            version: columns.number(1)?,
            hash: columns.hash(2)?,
            host_pattern: columns.string(3)?,
            expires_at: columns.time(4)?,
            used_by: columns.opt_string(5)?,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::JoinToken(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::JoinToken(self.id)
    }

    fn version(&self) -> u64 {
        self.version
    }
}

// Keys are replaced as they are: their version is part of their name.
static KEY: LazyLock<Sql> = LazyLock::new(|| {
    let mut sql = Sql::of(
        "key",
        &[
            "name",
            "version",
            "sealed",
            "public",
            "chain",
            "state",
            "created_at",
            "since",
            "until",
        ],
    );
    sql.insert = sql.insert.replace("INSERT", "INSERT OR REPLACE");
    sql
});

impl Stored for KeyRow {
    const TABLE: &'static str = "key";

    fn sql() -> &'static Sql {
        &KEY
    }

    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        statement.execute(params![
            self.name,
            self.version,
            self.sealed,
            self.public,
            self.chain,
            self.state.as_str(),
            millis(self.created_at),
            millis(self.since),
            opt_millis(self.until),
        ])
    }

    fn read(columns: &Columns<'_>) -> Result<Self, BadColumn> {
        Ok(Self {
            name: columns.string(0)?,
            version: columns.number(1)?,
            sealed: columns.blob(2)?.to_vec(),
            public: columns.blob(3)?.to_vec(),
            chain: columns.blob(4)?.to_vec(),
            state: columns.word(5)?,
            created_at: columns.time(6)?,
            since: columns.time(7)?,
            until: columns.opt_time(8)?,
        })
    }

    fn of(row: &Row) -> Option<&Self> {
        if let Row::Key(row) = row {
            Some(row)
        } else {
            None
        }
    }

    fn key(&self) -> Key {
        Key::Key(self.name.clone(), self.version)
    }

    fn version(&self) -> u64 {
        1
    }
}
