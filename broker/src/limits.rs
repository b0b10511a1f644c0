//! Every bound of the broker, by name. Reaching one is a typed refusal or a closed
//! connection, and is counted; nothing here grows without a limit.

use std::time::Duration;

/// Batches that may wait in the ledger's ordinary lane.
pub const LEDGER_NORMAL_PLACES: usize = 4096;
/// Batches that may wait in the ledger's lane for revocation; never taken by others.
pub const LEDGER_REVOKE_PLACES: usize = 4096;
/// Batches that one commit takes at most.
pub const LEDGER_GROUP_MAX: usize = 1024;
/// How long a write waits for another process that holds SQLite's write lock.
pub const LEDGER_BUSY: Duration = Duration::from_secs(5);
/// Read connections open at once.
pub const LEDGER_READERS: usize = 4;
/// How long a read waits for one of them.
pub const LEDGER_READ_WAIT: Duration = Duration::from_secs(5);
/// Page cache of the writing connection, in KiB.
pub const LEDGER_WRITE_CACHE_KIB: i64 = 8 * 1024;
/// Page cache of each reading connection, in KiB.
pub const LEDGER_READ_CACHE_KIB: i64 = 1024;
/// Prepared statements kept by each connection.
pub const LEDGER_STATEMENTS: usize = 96;
/// Rows that one listing returns at most.
pub const LEDGER_LIST_MAX: usize = 10_000;
/// Size of the reserve file for revocations that the store has no space for, in bytes.
pub const LEDGER_RESERVE_BYTES: u64 = 8 * 1024 * 1024;
/// Between two attempts to move the reserve into the store.
pub const LEDGER_RESERVE_RETRY: Duration = Duration::from_secs(1);
/// Rows and leaves written between two looks at the length of the write-ahead log.
pub const LEDGER_WRITES_PER_WAL_LOOK: u64 = 2_000;
/// Pages not yet copied back from the write-ahead log before a copy starts.
pub const LEDGER_WAL_COPY_PAGES: i64 = 1_000;
/// Pages in the write-ahead log before it is made to start over, which briefly holds writers.
pub const LEDGER_WAL_RESTART_PAGES: i64 = 16_384;
/// Largest store whose every page is checked at start, in bytes; a larger one only in its
/// head and its live rows.
pub const LEDGER_CHECK_BYTES: u64 = 1024 * 1024 * 1024;
/// Dead credentials whose listings one pruning commit forgets.
pub const LEDGER_PRUNE_CHUNK: usize = 500;
