//! Every bound of the agent, by name. What crosses a wire is bounded in `ephor_proto::limits`.
//!
//! Reaching a bound is a typed refusal, never a truncation and never a wait without end.

use std::time::Duration;

/// Credentials asked for again at once when the broker began a new epoch.
pub const AGAIN_AT_ONCE: usize = 64;
/// Most tasks open or waiting for their end to be told; one heartbeat carries them all.
pub const MAX_TASKS: usize = ephor_proto::limits::MAX_TASKS_PER_HEARTBEAT;
/// Most tasks opened by one uid, so that one user cannot take every place.
pub const MAX_TASKS_PER_UID: usize = MAX_TASKS / 4;
/// Ended tasks remembered to refuse what races their end.
pub const ENDED_TASKS_KEPT: usize = MAX_TASKS;
/// Revoked credentials remembered for an open task, for its holder to be told.
pub const REVOKED_KEPT: usize = 64;
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

/// How long a hand-over waits for requests that are being answered; those that wait for the broker
/// for longer are answered by the agent that hands over.
pub const HANDOVER_PAUSE: Duration = Duration::from_millis(500);
/// Longest silence of the other agent at a hand-over.
pub const HANDOVER_SILENCE: Duration = Duration::from_secs(5);
/// How long the whole offer may take, while callers wait.
pub const HANDOVER_OFFER: Duration = Duration::from_secs(10);
/// How long a successor that said that it is ready waits to be told to begin: the agent before it
/// writes its journal to a disk that may be slow. Its death ends the wait at once.
pub const HANDOVER_CLOSE: Duration = Duration::from_secs(60);
/// Largest message of a hand-over, in bytes: one answer with its certificates and keys.
pub const MAX_HANDOVER_FRAME: usize = 1024 * 1024;

/// Port of a broker whose URL names none.
pub const BROKER_PORT: u16 = 8443;
/// How long making a connection to the broker may take, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections served at once on the metrics listener.
pub const METRICS_CONNECTIONS: usize = 16;
/// How long one of them may last.
pub const METRICS_CONNECTION: Duration = Duration::from_secs(120);
/// Most threads that serve the socket, and most that talk to the broker.
pub const THREADS: usize = 4;
/// Messages with requests for credentials that may be on their way to the broker at once.
pub const BATCHES_AT_ONCE: usize = 4;
/// A message without an answer for this long is slow: the target of a login in it may hang.
pub const BATCH_IS_SLOW: Duration = Duration::from_millis(100);
/// Slow messages beside those.
pub const BATCHES_ASIDE: usize = 32;
/// How long one call to the broker may take.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long joining may take once connected.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// First wait before connecting to the broker again.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(100);
/// Longest such wait.
pub const RECONNECT_CAP: Duration = Duration::from_secs(3);
/// How long a call waits for the attempt to connect that it has made now.
pub const AWAY_WAIT: Duration = Duration::from_millis(500);
/// How long a call that was refused for a certificate that has been renewed waits for the
/// connection with the new one.
pub const RENEWED_WAIT: Duration = Duration::from_secs(1);
/// The wait after a refusal that only people can mend: a ban, or versions too far apart.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Between two HTTP/2 pings to the broker.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a ping may stay unanswered before the connection counts as lost.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Task ends being told to the broker at the same time, while it is not known that they are slow.
pub const ENDS_IN_FLIGHT: usize = 64;
/// An end that is not proven within this is slow: its target may hang.
pub const END_IS_SLOW: Duration = Duration::from_millis(300);
/// Slow ends whose first answer is waited for; a part of the streams of a connection.
pub const ENDS_SLOW: usize = 256;
/// Ends that the broker is at already, and that are asked after at the same time.
pub const ENDS_AGAIN: usize = 16;
/// Ends that are told, or wait until they are asked after.
pub const ENDS_TOLD: usize = MAX_TASKS;
/// CAs of one fleet that are trusted at once.
pub const CAS: usize = 16;
/// First wait after the agent's certificate could not be renewed.
pub const RENEW_IDENTITY_FIRST: Duration = Duration::from_secs(1);
/// Longest such wait.
pub const RENEW_IDENTITY_CAP: Duration = Duration::from_secs(300);
/// Longest sleep before looking again whether the certificate is due.
pub const RENEW_IDENTITY_STEP: Duration = Duration::from_secs(60);

/// Most answers held for one task.
pub const CREDENTIALS_PER_TASK: usize = 256;
/// Names of entitlements remembered as giving a certificate.
pub const CERTIFICATE_ENTITLEMENTS: usize = 4_096;
/// Keys kept for requests that a caller named and that have no answer yet.
pub const UNANSWERED_KEYS: usize = 256;
/// Most answers held in all.
pub const CREDENTIALS: usize = 65_536;
/// Ended tasks whose late answers are still told apart.
pub const TOMBSTONES: usize = ENDED_TASKS_KEPT;
/// Receipts of ended tasks kept for who asks.
pub const RECEIPTS: usize = 4096;
/// Most renewals begun at once; the rest follow a moment later.
pub const RENEWALS_PER_TURN: usize = 64;
/// That moment.
pub const RENEWAL_TURN: Duration = Duration::from_millis(20);
/// Longest sleep before looking again whether a renewal is due.
pub const RENEWAL_LOOK: Duration = Duration::from_secs(1);

/// Most connections to the socket, root's reserve aside.
pub const CONNECTIONS: usize = 4096;
/// Most connections of one uid.
pub const CONNECTIONS_PER_UID: usize = 512;
/// The pause after accepting failed.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How soon after connecting the first whole request must be there.
pub const FIRST_REQUEST: Duration = Duration::from_secs(5);
/// A connection without a request for this long is closed.
pub const IDLE: Duration = Duration::from_secs(60);
/// How long reading one request's body may take.
pub const BODY_READ: Duration = Duration::from_secs(5);
/// Most header lines of one request.
pub const HEADER_LINES: usize = 64;
/// Requests of one uid that wait for the broker at the same time.
pub const WAITING_PER_UID: usize = 256;
/// How long who ends a task waits for its receipt.
pub const RECEIPT_WAIT: Duration = Duration::from_secs(10);
/// How long a caller waits for the broker's answer: two calls, journal and hash included.
pub const FLIGHT_WAIT: Duration = Duration::from_secs(15);
/// Most hand-overs that wait to be confirmed.
pub const CONFIRMATIONS: usize = CREDENTIALS;
/// Between tries to confirm hand-overs; the broker waits 10 s for them.
pub const CONFIRM_AGAIN: Duration = Duration::from_millis(200);
