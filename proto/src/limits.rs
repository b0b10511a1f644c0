//! Named limits of what crosses a wire, in one place so that both ends agree.
//!
//! Reaching one is a typed refusal (`too_large`, `invalid_request`), never a truncation.

/// Largest HTTP body accepted from a caller, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Largest header block of one HTTP request, in bytes.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Largest gRPC message between agent and broker, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most requests for credentials in one message.
pub const MAX_ISSUE_BATCH: usize = 16;
/// Most credentials whose hand-over is confirmed in one message.
pub const MAX_CONFIRM_BATCH: usize = 1024;
/// Largest audit leaf (canonical JSON), in bytes; a tlog entry's length prefix is 16 bits.
pub const MAX_LEAF_BYTES: usize = 60 * 1024;
/// Largest integer that canonical JSON keeps exactly (2^53 - 1).
pub const MAX_JSON_INTEGER: u64 = (1 << 53) - 1;
/// Largest signed note accepted, in bytes.
pub const MAX_NOTE_BYTES: usize = 16 * 1024;
/// Most signature lines read in one note.
pub const MAX_NOTE_SIGNATURES: usize = 16;
/// Most hashes in an inclusion proof: one for each level of a tree of 2^64 leaves.
pub const MAX_PROOF_HASHES: usize = 64;
/// Longest SPIFFE ID, in bytes (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID_LEN: usize = 2048;
/// Longest trust domain name, in bytes (SPIFFE-ID §2.1).
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;
/// Longest host name, in bytes.
pub const MAX_HOST_NAME_LEN: usize = 253;
/// Longest audience of a token, in bytes.
pub const MAX_AUDIENCE_LEN: usize = 512;
/// Longest reason given with a request, in bytes.
pub const MAX_REASON_LEN: usize = 1024;
/// Longest entitlement name, in bytes.
pub const MAX_ENTITLEMENT_LEN: usize = 64;
/// Longest `cred://` reference, in bytes: a fully escaped audience and the rest.
pub const MAX_CRED_REF_LEN: usize = 2048;
/// Longest detail text in a problem, in bytes.
pub const MAX_DETAIL_LEN: usize = 2048;
/// Most open tasks in one heartbeat.
pub const MAX_TASKS_PER_HEARTBEAT: usize = 16 * 1024;
/// Deepest parent chain that attestation walks.
pub const MAX_ANCESTORS: usize = 64;
/// Most entries of evidence in one leaf; more are summed up in the totals.
pub const MAX_EVIDENCE_PER_LEAF: usize = 100;

/// Between two heartbeats of an agent, in milliseconds.
pub const HEARTBEAT_MILLIS: u64 = 5_000;
/// An agent that was not heard for this long is silent, in milliseconds.
pub const SILENT_AFTER_MILLIS: u64 = 15_000;
/// Tasks with `on_lost = "revoke"` end after this silence unless policy says otherwise, in milliseconds.
pub const LOST_AFTER_MILLIS: u64 = 30_000;
/// A credential whose hand-over is not confirmed for this long is revoked, in milliseconds.
pub const CONFIRM_WITHIN_MILLIS: u64 = 10_000;
/// A revocation not proven for this long is overdue, in milliseconds.
pub const OVERDUE_AFTER_MILLIS: u64 = 5_000;
/// Added to a token's expiry before it counts as dead: the leeway verifiers commonly grant, in milliseconds.
pub const VERIFIER_LEEWAY_MILLIS: u64 = 60_000;
/// Listings are kept this long after expiry, in milliseconds.
pub const LISTING_KEPT_MILLIS: u64 = 24 * 3_600_000;
/// A step of wall time against boot time larger than this stops issuing, in milliseconds.
pub const CLOCK_STEP_MILLIS: u64 = 30_000;
