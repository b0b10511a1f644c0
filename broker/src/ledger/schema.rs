//! Tables and their numbered migrations. Migrations are only ever added.
//!
//! Every index by task costs an issue a page of its own, written and flushed: the tasks of a busy
//! host lie far apart in it. So there is none of what an issue writes. The credentials of a task are found
//! from the newest to the oldest (`newest`, `credential.older`), a grant and the events of an issue through
//! the credential that they led to (`credential.grant_id`, `credential.leaf`), and only what led to none
//! is indexed by itself (`grants.alone`, `leaf.beside`).
//!
//! An auditor reads this file with `sqlite3`: words are stored as words, times as Unix
//! milliseconds, ids as 16-byte blobs (`hex(id)`). The same tables serve another engine.

use rusqlite::Connection;

/// Marks a SQLite file as ours (`EPHR`).
pub(super) const APPLICATION_ID: i64 = 0x4550_4852;

/// Each brings `PRAGMA user_version` from its position to the next.
const MIGRATIONS: &[&str] = &[FIRST];

/// The version this build writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Runs the migrations that `from` lacks, each in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection, from: i64) -> rusqlite::Result<()> {
    let done = usize::try_from(from).unwrap_or(0);
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", step as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

const FIRST: &str = "
CREATE TABLE installation (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    origin TEXT NOT NULL,
    trust_domain TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    holder TEXT NOT NULL,
    clock_high_water INTEGER NOT NULL,
    reserve_seq INTEGER NOT NULL
) STRICT;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE task (
    id BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    host TEXT NOT NULL,
    subject TEXT NOT NULL,
    rule TEXT NOT NULL,
    pid INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    instance BLOB NOT NULL,
    opened_seq INTEGER NOT NULL,
    state TEXT NOT NULL,
    cause TEXT,
    contained INTEGER NOT NULL,
    opened_at INTEGER NOT NULL,
    ended_at INTEGER,
    closed_at INTEGER,
    deadline INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX task_unclosed ON task (host) WHERE state <> 'closed';
CREATE TABLE request (
    id BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    digest BLOB NOT NULL,
    task BLOB NOT NULL,
    state TEXT NOT NULL,
    decision BLOB,
    grant_id BLOB,
    credentials BLOB NOT NULL,
    requested_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE decision (
    id BLOB PRIMARY KEY,
    request BLOB NOT NULL,
    task BLOB,
    allowed INTEGER NOT NULL,
    code TEXT NOT NULL,
    subject TEXT NOT NULL,
    entitlement TEXT NOT NULL,
    item TEXT NOT NULL,
    rule TEXT NOT NULL,
    policy_version TEXT NOT NULL,
    ttl_seconds INTEGER NOT NULL,
    capped_by TEXT NOT NULL,
    decided_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE grants (
    id BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    task BLOB NOT NULL,
    decision BLOB NOT NULL,
    entitlement TEXT NOT NULL,
    item TEXT NOT NULL,
    state TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    ended_by TEXT,
    closed_at INTEGER,
    alone INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_alone ON grants (task) WHERE alone = 1;
CREATE TABLE credential (
    number INTEGER PRIMARY KEY,
    older INTEGER,
    id BLOB NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    kind TEXT NOT NULL,
    task BLOB NOT NULL,
    host TEXT NOT NULL,
    subject TEXT NOT NULL,
    entitlement TEXT NOT NULL,
    item TEXT NOT NULL,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    request BLOB NOT NULL,
    decision BLOB NOT NULL,
    rule TEXT NOT NULL,
    grant_id BLOB NOT NULL,
    state TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    capped_by TEXT NOT NULL,
    status_list INTEGER NOT NULL,
    status_index INTEGER NOT NULL,
    content TEXT NOT NULL,
    cause TEXT,
    revoked_at INTEGER,
    evidence TEXT,
    overdue TEXT,
    narrowed_by TEXT,
    listed INTEGER NOT NULL DEFAULT 1,
    leaf INTEGER NOT NULL
) STRICT;
CREATE TABLE newest (task BLOB PRIMARY KEY, number INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX credential_listed ON credential (state, expires_at) WHERE listed = 1;
CREATE TABLE host (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    joined_at INTEGER NOT NULL,
    last_heard INTEGER,
    boot_id TEXT NOT NULL,
    instance BLOB,
    spki_sha256 BLOB NOT NULL,
    certificate_expires_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    previous_spki_sha256 BLOB,
    banned_at INTEGER,
    epoch INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE join_token (
    id BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    host_pattern TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_by TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE key (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    public BLOB NOT NULL,
    chain BLOB NOT NULL,
    state TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE policy (
    number INTEGER PRIMARY KEY,
    version TEXT NOT NULL,
    previous TEXT,
    applied_at INTEGER NOT NULL,
    applied_by TEXT NOT NULL,
    directory TEXT,
    files TEXT NOT NULL
) STRICT;
CREATE TABLE receipt (task BLOB PRIMARY KEY, leaf INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE leaf (
    idx INTEGER PRIMARY KEY,
    event BLOB NOT NULL,
    task BLOB,
    beside INTEGER NOT NULL,
    json TEXT NOT NULL
) STRICT;
CREATE INDEX leaf_task ON leaf (task) WHERE beside = 0 AND task IS NOT NULL;
CREATE TABLE about (
    name TEXT NOT NULL,
    leaf INTEGER NOT NULL,
    PRIMARY KEY (name, leaf)
) STRICT, WITHOUT ROWID;
CREATE TABLE hash (size INTEGER PRIMARY KEY, hashes BLOB NOT NULL) STRICT;
CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, root BLOB NOT NULL, time INTEGER NOT NULL) STRICT;
CREATE TABLE personal (
    event BLOB NOT NULL,
    field TEXT NOT NULL,
    salt BLOB NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (event, field)
) STRICT, WITHOUT ROWID;
CREATE TABLE quarantine (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    time INTEGER NOT NULL,
    content TEXT NOT NULL,
    credential BLOB,
    credential_kind TEXT,
    status_list INTEGER,
    status_index INTEGER
) STRICT;
";
