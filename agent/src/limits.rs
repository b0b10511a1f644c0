//! Every bound of the agent, by name. What crosses a wire is bounded in `ephor_proto::limits`.
//!
//! Reaching a bound is a typed refusal, never a truncation and never a wait without end.

use std::time::Duration;

/// Most tasks open or waiting for their end to be told; one heartbeat carries them all.
pub const MAX_TASKS: usize = ephor_proto::limits::MAX_TASKS_PER_HEARTBEAT;
/// Most tasks opened by one uid, so that one user cannot take every place.
pub const MAX_TASKS_PER_UID: usize = MAX_TASKS / 4;
/// Ended tasks remembered to refuse what races their end.
pub const ENDED_TASKS_KEPT: usize = MAX_TASKS;
/// Task ends waiting for the one who tells the broker.
pub const ENDS_QUEUED: usize = 1024;

/// Journal records waiting for the disk.
pub const JOURNAL_QUEUED: usize = 4096;
/// Most records made durable by one fsync.
pub const JOURNAL_GROUP: usize = 512;
/// Largest journal record, in bytes; a longer frame on disk is damage.
pub const MAX_JOURNAL_RECORD_BYTES: usize = 16 * 1024;
/// The journal is compacted when it is larger than this, in bytes, and mostly dead.
pub const JOURNAL_COMPACT_BYTES: u64 = 4 * 1024 * 1024;

/// Largest executable that is hashed unless configured otherwise, in bytes.
pub const MAX_EXE_HASH_BYTES: u64 = 512 * 1024 * 1024;
/// Longest time one executable is hashed for, waiting for another hash included.
pub const MAX_EXE_HASH_TIME: Duration = Duration::from_secs(5);
/// Digests of executables kept.
pub const EXE_HASHES_KEPT: usize = 4096;
/// A file that changed this recently is not cached: a second change in the same clock tick
/// would leave the same timestamp.
pub const EXE_SETTLED_MILLIS: u64 = 2_000;
/// Largest file read from `/proc`, in bytes.
pub const MAX_PROC_FILE_BYTES: usize = 1024 * 1024;
/// Most supplementary groups (Linux's own `NGROUPS_MAX`).
pub const MAX_GROUPS: usize = 65_536;

/// How long a stop waits for the agent's own tasks.
pub const STOP_WITHIN: Duration = Duration::from_secs(5);
