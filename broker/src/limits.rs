//! Every bound of the broker, by name. Reaching one is a typed refusal or a closed
//! connection, and is counted; nothing here grows without a limit.
//!
//! What both ends of a wire must agree on stands in [`ephor_proto::limits`].

use std::time::Duration;

/// Connections served at once on the HTTPS listener; more are closed at accept.
pub const HTTPS_CONNECTIONS: usize = 4096;
/// Connections served at once on the plain listener.
pub const HTTP_CONNECTIONS: usize = 1024;
/// Connections served at once on the metrics listener.
pub const METRICS_CONNECTIONS: usize = 16;
/// The store is counted for metrics at most this often.
pub const COUNTS_EVERY: Duration = Duration::from_secs(10);
/// Connections served at once on the admin socket.
pub const ADMIN_CONNECTIONS: usize = 64;
/// From accept to the end of the TLS handshake and the first whole request header.
/// hyper-util's protocol sniff has no timeout of its own.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// For the header of each later HTTP/1 request, idle time included.
pub const HEADER_READ: Duration = Duration::from_secs(30);
/// For one request, until its answer's header leaves.
pub const REQUEST: Duration = Duration::from_secs(30);
/// Concurrent HTTP/2 streams of one connection.
pub const HTTP2_STREAMS: u32 = 1024;
/// Streams reset by the peer and not yet forgotten (CVE-2023-44487, rapid reset).
pub const HTTP2_PENDING_RESETS: usize = 64;
/// Streams we had to reset because of the peer's errors, before the connection ends.
pub const HTTP2_LOCAL_RESETS: usize = 256;
/// Between two HTTP/2 pings on an idle connection.
pub const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(10);
/// A ping not answered for this long ends the connection.
pub const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Age at which a connection that is not an agent's is asked to end; the client connects
/// again. Bounds whoever keeps a place by reading slowly.
pub const CONNECTION_AGE: Duration = Duration::from_secs(600);
/// The same for agents, which follow a renewed certificate with a new connection anyway.
pub const AGENT_CONNECTION_AGE: Duration = Duration::from_secs(24 * 3600);
/// Pause after `accept` failed (out of descriptors), so that it does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections waiting in the kernel to be accepted.
pub const BACKLOG: i32 = 1024;

/// For open connections to finish at shutdown.
pub const DRAIN: Duration = Duration::from_secs(3);
/// For background tasks to finish at shutdown, after the connections.
pub const SHUTDOWN_TASKS: Duration = Duration::from_secs(5);

/// Hosts known to one broker.
pub const HOSTS: usize = 100_000;
/// Messages waiting for one agent's watch stream; a stream that falls further behind is
/// closed, and the agent learns the rest from its next heartbeat.
pub const PUSHES_PER_HOST: usize = 256;
/// Earlier starts of an agent that are remembered, to notice one that speaks again.
pub const SUPERSEDED_STARTS: usize = 16;
/// How often silence is judged.
pub const SILENCE_TICK: Duration = Duration::from_secs(1);
/// A gap between two silence ticks longer than this means that the broker itself stood
/// still (suspend, stopped process), so that nobody could be heard.
pub const STALL_MILLIS: u64 = 4_000;
/// Tasks of a banned host are swept for this long after the ban: requests in flight when
/// it fell may still commit.
pub const BAN_SWEEP_MILLIS: u64 = 60_000;
/// After a start the broker ends nothing by itself for this long, unless an agent has shown before
/// that the log is the one it knows: two heartbeats.
pub const CONFIRM_LOG_MILLIS: u64 = 2 * ephor_proto::limits::HEARTBEAT_MILLIS;
/// Attempts at an update of a host's row that loses to another writer.
pub const CONFLICT_RETRIES: usize = 8;

/// Life of an agent's certificate, in seconds.
pub const AGENT_CERTIFICATE_SECONDS: u64 = 24 * 3600;
/// Life of the broker's own server certificate, in seconds.
pub const SERVER_CERTIFICATE_SECONDS: u64 = 24 * 3600;
/// Life of the first CA, in seconds.
pub const CA_SECONDS: u64 = 365 * 24 * 3600;
/// How long a new CA issues before the next one follows, in seconds.
pub const CA_ISSUING_SECONDS: u64 = 240 * 24 * 3600;
/// How long a CA is trusted before it issues, in seconds.
pub const CA_LEAD_SECONDS: u64 = 24 * 3600;
/// Life of a CA for databases, in seconds. Long, because people copy it to servers by hand.
pub const DATABASE_CA_SECONDS: u64 = 5 * 365 * 24 * 3600;
/// How long a CA for databases issues before the next one follows, in seconds.
pub const DATABASE_CA_ISSUING_SECONDS: u64 = 3 * 365 * 24 * 3600;
/// How long a CA for databases is published before it issues, in seconds.
pub const DATABASE_CA_LEAD_SECONDS: u64 = 30 * 24 * 3600;
/// How long a token key is used, in seconds.
pub const TOKEN_KEY_SECONDS: u64 = 30 * 24 * 3600;
/// How long a token or log key is published before it is used, in seconds.
pub const KEY_LEAD_SECONDS: u64 = 15 * 60;
/// Shortest lead that may be set, in seconds: copies of the key set then last a second.
pub const KEY_LEAD_LEAST_SECONDS: u64 = 3;
/// Longest time that a copy of the published keys may be used, in seconds.
pub const KEYS_REFRESH_SECONDS: u64 = 300;
/// Longest time that a copy of the discovery document may be used, in seconds.
pub const DISCOVERY_SECONDS: u64 = 300;
/// How long a log key signs beside its successor, in seconds.
pub const LOG_OVERLAP_SECONDS: u64 = 30 * 24 * 3600;
/// Work that began under a key has ended this long after the key was retired, in milliseconds.
pub const KEY_SETTLE_MILLIS: u64 = 60_000;
/// A key is trusted this much longer than the last thing it signed lives, in milliseconds: a status
/// list's life, and a verifier's leeway.
pub const KEY_LEEWAY_MILLIS: u64 = 120_000;
/// How often the schedule of keys is looked at.
pub const KEY_TICK: Duration = Duration::from_secs(1);
/// The pause after a step of a rotation failed.
pub const KEY_RETRY: Duration = Duration::from_secs(10);
/// Versions of one key that are trusted at once; a rotation by hand beyond that waits.
pub const KEY_VERSIONS: usize = 8;
/// Longest chain of certificates that is imported, and its longest text in bytes.
pub const CHAIN_CERTIFICATES: usize = 6;
/// See [`CHAIN_CERTIFICATES`].
pub const CHAIN_BYTES: usize = 32 * 1024;
/// Agents follow a new CA with new certificates within this time at most, in milliseconds.
pub const RENEW_UNDER_NEW_CA_MILLIS: u64 = 3_600_000;
/// Retired log keys that still sign beside the active one: all there may be; a note holds 16
/// signatures.
pub const LOG_KEYS_BESIDE: usize = KEY_VERSIONS - 1;
/// The certificate of a login starts this long before now, in seconds: a database server's clock is nobody's
/// of the fleet, and there was no such role before.
pub const LOGIN_CERTIFICATE_BACKDATE_SECONDS: u64 = 3600;
/// Certificates start this long before now, for clocks that differ, in seconds.
pub const CERTIFICATE_BACKDATE_SECONDS: u64 = 60;

/// Life of a join token when its invite names none, in seconds.
pub const JOIN_TOKEN_SECONDS: u64 = 15 * 60;
/// Longest life of a join token, in seconds.
pub const JOIN_TOKEN_MAX_SECONDS: u64 = 7 * 24 * 3600;
/// Life of the token that `init` makes, in seconds.
pub const FIRST_JOIN_TOKEN_SECONDS: u64 = 3600;
/// Longest join token text, in bytes; the true length is 127.
pub const JOIN_TOKEN_TEXT: usize = 256;
/// Longest certificate signing request, in bytes.
pub const CSR: usize = 4096;
/// Longest boot id text, in bytes.
pub const BOOT_ID: usize = 64;

/// Largest manifest of a backup, in bytes.
pub const BACKUP_MANIFEST: u64 = 64 * 1024;
/// A finished backup stays this long for the command that asked for it to begin to fetch it; the next one
/// waits as long.
pub const BACKUP_FETCHED_WITHIN: Duration = Duration::from_secs(30);
/// Largest configuration file, in bytes.
pub const CONFIG_FILE: u64 = 64 * 1024;
/// Longest path of a Unix socket, in bytes (`sun_path` less its final zero).
pub const SOCKET_PATH: usize = 107;

/// Requests of one host admitted in a second, on average.
pub const REQUESTS_PER_HOST_PER_SECOND: u64 = 20_000;
/// Requests of one host admitted at once after a pause.
pub const REQUEST_BURST_PER_HOST: u64 = 20_000;
/// Requests of one host in work at once.
pub const OPEN_WORK_PER_HOST: u32 = 2_048;
/// Hosts whose rate is remembered before idle ones are forgotten.
pub const THROTTLED_HOSTS: usize = 100_000;
/// Kinds of refusals summed up at once; further ones share a window per host and code.
pub const REFUSAL_WINDOWS: usize = 10_000;
/// Equal refusals within this time are one event with a count, in milliseconds.
pub const REFUSAL_WINDOW_MILLIS: u64 = 60_000;
/// How often ended windows of refusals are written.
pub const REFUSAL_TICK: Duration = Duration::from_secs(5);
/// Tries at a change that keeps losing to other writers.
pub const CONFLICT_TRIES: usize = 8;

/// Largest policy sent over the admin socket, in bytes: all of its text as JSON.
pub const POLICY_BODY: usize = 40 * 1024 * 1024;
/// Grants that a newer policy narrows side by side; people's revocations come in between.
pub const NARROWED_AT_ONCE: usize = 512;
/// How long an answer to an apply waits for what is revoked; the rest goes on without it.
pub const POLICY_ANSWER: Duration = Duration::from_secs(10);
/// How long a request waits for the policy that is durable already to be in force here.
pub const POLICY_SWAP_WAIT: Duration = Duration::from_secs(2);
/// Longest text of a refused policy's errors in the audit log, in bytes.
pub const POLICY_ERROR_BYTES: usize = 1024;

/// Workloads' certificates start this long before now, for clocks that differ, in seconds.
pub const SVID_BACKDATE_SECONDS: u64 = 30;
/// Certificates of one credential that may be good at the same time: with each renewal one more,
/// until the oldest expire.
pub const CERTIFICATES_PER_CREDENTIAL: usize = 8;
/// Credentials that share a revocation list. Twice as many certificates, after a renewal.
pub const CREDENTIALS_PER_CRL: usize = 5_000;
/// Most revocation lists of one CA. Part of what is stored: the number of a list is that of its CA
/// times this, and more.
pub const CRLS_PER_CA: u32 = 4_096;
/// Verifiers stop to believe a revocation list this long after it was made, in seconds. Longer
/// than any outage of a night; a certificate's own life is what bounds a verifier that never asks.
pub const CRL_LIFE_SECONDS: u64 = 24 * 3600;
/// How long a verifier may go on with its copy of a revocation list, in seconds.
pub const CRL_TTL_SECONDS: u64 = 5;
/// An unchanged revocation list is made again when it is this old, in milliseconds.
pub const CRL_REMAKE_MILLIS: u64 = 60_000;
/// The pause after a revocation list was made before the same one is made again: all that were
/// revoked meanwhile share it.
pub const CRL_PAUSE: Duration = Duration::from_millis(50);
/// The lists of everything are made again when they are this old, in milliseconds: 100 000 entries
/// take 50 ms and 5 MB.
pub const CRL_WHOLE_PAUSE_MILLIS: u64 = 2_000;
/// How often a verifier should fetch the trust bundle again, in seconds.
pub const BUNDLE_REFRESH_SECONDS: u64 = 60;
/// Most status lists of 2^17 bits.
pub const STATUS_LISTS_MAX: u32 = 1_024;
/// Status lists of earlier epochs that are kept as they were signed; about 17 KiB each.
pub const FORMER_LISTS_KEPT: usize = 64;
/// Guesses at a free index before a list counts as full; it is at most half full.
pub const STATUS_INDEX_TRIES: usize = 64;
/// Life of a signed status list, in seconds.
pub const STATUS_LIST_LIFE_SECONDS: u64 = 60;
/// How long a verifier may go on with its copy of a status list, in seconds.
pub const STATUS_LIST_TTL_SECONDS: u64 = 5;
/// An unchanged list is signed again when its token is this old, in milliseconds.
pub const STATUS_LIST_RESIGN_MILLIS: u64 = 30_000;
/// Credentials whose uses are counted in memory.
pub const USES_KEPT: usize = 200_000;

/// Ends waiting to be driven on; what does not fit is found again in the store.
pub const PENDING_ENDS: usize = 50_000;
/// How often waiting ends are looked at.
pub const SWEEP_TICK: Duration = Duration::from_millis(250);
/// The sweep leaves an end alone for this long while its caller is at it.
pub const SWEEP_GRACE: Duration = Duration::from_secs(2);
/// Half the first pause after a failed try.
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
pub const RETRY_MOST: Duration = Duration::from_secs(30);
/// Ends that wait at one target; what does not fit is found again in the store.
pub const TARGET_QUEUE: usize = 60_000;
/// Places beyond that for what people revoke.
pub const TARGET_QUEUE_PEOPLE: usize = 1_000;
/// Ends at one target that a scan of the store finds: one more than fit, so that the rest is known to be
/// there; those are found when they have become fewer.
pub const TARGET_SCAN: usize = TARGET_QUEUE + 1;
/// Calls under way at one target.
pub const TARGET_CALLS: usize = 4;
/// Ends that one call takes.
pub const TARGET_BATCH: usize = 256;
/// How long one call at a target may take; it is made again then.
pub const TARGET_CALL: Duration = Duration::from_secs(30);
/// The longest pause between two tries at a target.
pub const TARGET_RETRY_MOST: Duration = Duration::from_secs(60);
/// A late end is told so much before it must be, for the tick and the commit, in milliseconds.
pub const OVERDUE_AHEAD_MILLIS: u64 = 750;
/// Late ends that are told side by side; people's revocations come in between.
pub const LATE_AT_ONCE: usize = 1_024;
/// How long an end waits for its targets before it answers that it goes on without the caller.
pub const TARGET_ANSWER: Duration = Duration::from_secs(5);
/// The same while the target fails.
pub const TARGET_ANSWER_FAILING: Duration = Duration::from_millis(250);
/// After this long, in milliseconds, a task's end that waits for a target proves by itself what is only
/// listed.
pub const LIST_ALONE_MILLIS: u64 = 1_000;
/// From the intent of something with an effect outside to its making at the latest, in milliseconds,
/// by the target's clock.
pub const MINT_WITHIN_MILLIS: u64 = 10_000;
/// How long a mint or an extension waits for its target.
pub const MINT_CALL: Duration = Duration::from_secs(10);
/// Between two comparisons of a target with the store.
pub const RECONCILE_EVERY: Duration = Duration::from_secs(300);
/// Calls without an answer after which a comparison ends; another is made later.
pub const COMPARE_UNANSWERED: u32 = 3;
/// What was issued this long ago is at its target, or never will be, in milliseconds.
pub const SURELY_MADE_MILLIS: u64 = 30_000;
/// Ends of a login that differ by no more than this are the same, in milliseconds.
pub const DRIFT_MILLIS: u64 = 2_000;
/// From the proof that something is gone to the later look, in milliseconds: longer than a server lets
/// a connection start (PostgreSQL's `authentication_timeout`).
pub const LOOK_AGAIN_MILLIS: u64 = 65_000;
/// Between two logins that would end too soon at their target and get back the end that they were given.
pub const LENGTHEN_PAUSE: Duration = Duration::from_millis(31);
/// So long that goes on before the next comparison may begin.
pub const LENGTHEN_FOR: Duration = Duration::from_secs(120);
/// What was proven this long before a start is looked at again after it, in milliseconds.
pub const LOOK_AGAIN_BEFORE_MILLIS: u64 = 600_000;
/// What was missed of renewals, and ends that are given back, may make calls so many times as fast as they
/// come otherwise. What was made at once asks nearly twice as fast the first time, and a broker that has just
/// started asks for more than that.
pub const PACE_MOST: f64 = 1.5;
/// So many renewals a second at one target are few.
pub const PACE_LEAST: f64 = 32.0;
/// So many seconds' worth of renewals may begin together.
pub const PACE_BURST_SECONDS: f64 = 0.05;
/// So many always may.
pub const PACE_BURST: f64 = 8.0;
/// One is not told to wait for more than this part of what it has to live; so it may ask again.
pub const PACE_WAIT_PART: f64 = 0.5;
/// What has no longer to live does not wait.
pub const PACE_LAST: Duration = Duration::from_secs(15);
/// The part of its life after which something at a target is renewed, about: two thirds, and a little
/// before.
pub const RENEWED_AFTER: f64 = 0.6;
/// A later look at a target where one is under way waits so much longer, in milliseconds.
pub const LOOK_AGAIN_BUSY_MILLIS: u64 = 2_000;
/// Later looks in one tick.
pub const LOOKS_AT_ONCE: usize = 64;
/// Between two looks at who uses what was made at targets.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(30);
/// Hand-overs awaited at once; beyond it, nothing more with an effect outside is made.
pub const HANDOVERS: usize = 100_000;
/// Ends driven side by side.
pub const ENDS_AT_ONCE: usize = 128;
/// How often expiries are looked at.
pub const EXPIRY_TICK: Duration = Duration::from_secs(1);
/// Expiries recorded side by side.
pub const EXPIRIES_AT_ONCE: usize = 256;
/// Pause before an expiry that could not be recorded is tried again, in milliseconds.
pub const EXPIRE_AGAIN_MILLIS: u64 = 2_000;
/// How often old listings are pruned.
pub const PRUNE_TICK: Duration = Duration::from_secs(60);
/// Largest form of introspection and revocation, in bytes.
pub const FORM_BODY: usize = 32 * 1024;
/// Largest body of an admin call, in bytes.
pub const ADMIN_BODY: usize = 64 * 1024;
/// Rows in one answer of the admin socket, unless fewer were asked for.
pub const ADMIN_ROWS: usize = 10_000;

/// Batches that may wait in the ledger's ordinary lane.
pub const LEDGER_NORMAL_PLACES: usize = 4096;
/// Batches that may wait in the ledger's lane for revocation; never taken by others.
pub const LEDGER_REVOKE_PLACES: usize = 4096;
/// Batches that one commit takes at most.
pub const LEDGER_GROUP_MAX: usize = 1024;
/// Longest time that a commit waits for batches that are announced, while nothing is revoked.
pub const LEDGER_GATHER: Duration = Duration::from_millis(2);
/// So many waiting batches wait for no others.
pub const LEDGER_GATHER_ENOUGH: usize = 48;
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
/// Rows set aside at a start that are told one by one in the audit log.
pub const QUARANTINED_TOLD: usize = 100;
/// Size of the reserve file for revocations that the store has no space for, in bytes.
pub const LEDGER_RESERVE_BYTES: u64 = 8 * 1024 * 1024;
/// Between two attempts to move the reserve into the store.
pub const LEDGER_RESERVE_RETRY: Duration = Duration::from_secs(1);
/// Preconditions of many batches that are remembered in one transaction: few hosts ask in one.
pub const LEDGER_STANDING: usize = 16;
/// A page of a new store, in bytes. Each that a group of batches touches is written twice; of larger ones
/// there are fewer, of smaller ones less is written that did not change.
pub const LEDGER_PAGE_BYTES: u32 = 8_192;
/// Hashes of the log's tree in a row, in bytes: about those of 256 events, and a few more.
pub const LEDGER_HASHES_BYTES: usize = 16 * 1024;
/// Rows and leaves written between two looks at the length of the write-ahead log.
pub const LEDGER_WRITES_PER_WAL_LOOK: u64 = 2_000;
/// Pages not yet copied back from the write-ahead log before a copy starts.
pub const LEDGER_WAL_COPY_PAGES: i64 = 500;
/// Pages in the write-ahead log before it is made to start over, which briefly holds writers.
pub const LEDGER_WAL_RESTART_PAGES: i64 = 8_192;
/// Largest store whose every page is checked at start, in bytes; a larger one only in its
/// head and its live rows.
pub const LEDGER_CHECK_BYTES: u64 = 1024 * 1024 * 1024;
/// How long detail is kept unless set otherwise, in seconds.
pub const RETENTION_DETAIL_SECONDS: u64 = 90 * 24 * 3600;
/// The least time that detail and the log's text are kept, in seconds: a listing is kept until a day
/// after expiry, and what was pruned must not come back by a retry or a restart.
pub const RETENTION_LEAST_SECONDS: u64 = 2 * 24 * 3600;
/// Retention goes forward in steps of this, so that little is pruned often, and told often, nowhere.
pub const RETENTION_STEP_MILLIS: u64 = 3_600_000;
/// Tasks, requests, decisions or texts that one pruning commit deletes, of each.
pub const RETENTION_CHUNK: usize = 128;
/// Leaves whose text one pruning commit deletes, to the next bundle of 256.
pub const RETENTION_LEAVES: u64 = 2_048;
/// Pruning commits in one tick; the rest waits for the next.
pub const RETENTION_COMMITS: usize = 1_000;
/// The pause between two of them: others come first.
pub const RETENTION_PAUSE: Duration = Duration::from_millis(20);
/// Dead credentials whose listings one pruning commit forgets.
pub const LEDGER_PRUNE_CHUNK: usize = 500;

/// Attempts at a step of an installation that somebody else's crosses, and the pause between them.
pub const PG_INSTALL_ATTEMPTS: usize = 40;
/// See [`PG_INSTALL_ATTEMPTS`].
pub const PG_INSTALL_PAUSE: Duration = Duration::from_millis(100);
/// From the first packet to a connection at a target that can be used.
pub const PG_CONNECT: Duration = Duration::from_secs(5);
/// A target's server ends a statement of ours after this.
pub const PG_STATEMENT: Duration = Duration::from_secs(8);
/// How long we wait for an answer of a target.
pub const PG_ANSWER: Duration = Duration::from_secs(10);
/// How long a call waits for one of a target's connections.
pub const PG_PLACE_WAIT: Duration = Duration::from_secs(5);
/// Idle time before a connection to a target is probed.
pub const PG_KEEPALIVE: Duration = Duration::from_secs(15);
/// How long making or extending a login waits for a lock.
pub const PG_MINT_LOCK: Duration = Duration::from_secs(2);
/// How long revoking waits for a lock before it ends whoever holds it.
pub const PG_REVOKE_LOCK: Duration = Duration::from_millis(200);
/// How long dropping what a login owns waits for a lock: longer than `deadlock_timeout`, after which an
/// autovacuum gives way.
pub const PG_MEMBER_LOCK: Duration = Duration::from_secs(3);
/// About how many locks one transaction takes that drops some of what a login owns.
pub const PG_PIECE_LOCKS: i32 = 500;
/// How long a revocation drops piece by piece; the next try goes on from there.
pub const PG_PIECES: Duration = Duration::from_secs(6);
/// How long logins of a batch are ended one by one; the rest is tried again.
pub const PG_ONE_BY_ONE: Duration = Duration::from_secs(15);
/// Connections of a target that only revoking takes.
pub const PG_REVOKE_PLACES: usize = 4;
/// Connections into each further database of a target, and to each standby.
pub const PG_MEMBER_PLACES: usize = 4;
/// Connections of a target that look who is in the way.
pub const PG_WATCH_PLACES: usize = 2;
/// Whoever is in the way of a revocation for this long is ended, if the right is there.
pub const PG_UNBLOCK_AFTER: Duration = Duration::from_millis(50);
/// Between two looks at who is in the way.
pub const PG_UNBLOCK_PAUSE: Duration = Duration::from_millis(25);
/// Tries at a fence within one revocation.
pub const PG_FENCE_TRIES: usize = 4;
/// Between the first two looks at sessions that were told to end; most are gone by then. Then longer.
pub const PG_LOOK_PAUSE_FIRST: Duration = Duration::from_millis(1);
/// Between two looks at sessions that were told to end, at the most.
pub const PG_LOOK_PAUSE: Duration = Duration::from_millis(3);
/// How long sessions that were told to end may take; then the revocation is tried again later.
pub const PG_SESSIONS_END: Duration = Duration::from_secs(5);
/// How long a standby may take to replay a fence before it counts as behind.
pub const PG_STANDBY_REPLAY: Duration = Duration::from_secs(2);
/// Calls of a connection after which the server makes its plans anew for the first time; then after each
/// doubling, so that a start of many connections is no herd of these.
pub const PG_PLANS_FIRST: u32 = 32;
/// From so many calls on, each time after so many.
pub const PG_PLANS_KEPT: u32 = 512;
/// Logins that are revoked with the same statements.
pub const PG_BATCH: usize = 128;
/// Rows of the fence are kept this long after a login died, in seconds.
pub const PG_FENCE_KEEP_SECONDS: i64 = 7 * 24 * 3600;
/// Largest file of CAs for a target, in bytes.
pub const PG_CA_FILE: u64 = 1024 * 1024;
/// Largest file with a target's password, in bytes.
pub const PG_PASSWORD_FILE: usize = 1024;
/// How long a request that is made again waits until what it was lent before is back.
pub const LENT_WAIT: Duration = Duration::from_secs(5);
/// Seconds after which to ask again for a role that is lent, at least: as long as taking it back takes.
pub const LENT_AGAIN_LEAST: u32 = 2;
/// The same at most: a task may end long before what it was lent does.
pub const LENT_AGAIN_MOST: u32 = 30;
/// Between two tries at lending a role that is not at rest yet.
pub const PG_LENT_PAUSE: Duration = Duration::from_millis(50);
/// Tries at lending a role: about as long as [`LENT_WAIT`].
pub const PG_LENT_TRIES: usize = 100;
