//! Named limits of what this crate reads, keeps and waits for.

use std::time::Duration;

/// Longest a call of the agent may take; the agent answers within its own deadline.
pub const CALL: Duration = Duration::from_secs(20);
/// Longest a [`TaskGuard`](crate::TaskGuard) that is dropped waits for the agent.
pub const DROP_WAIT: Duration = Duration::from_secs(2);
/// Largest answer of the agent, in bytes.
pub const ANSWER_BYTES: usize = 1 << 20;
/// Connections to the agent that are kept for the next call.
pub const IDLE_CONNECTIONS: usize = 4;

/// First wait after a renewal failed; it doubles, up to a quarter of what is left of the
/// certificate in use, and is this again once nothing is.
pub const RENEW_RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest wait between two tries to renew.
pub const RENEW_RETRY_MAX: Duration = Duration::from_secs(15);
/// A renewal waits by the wall clock, and looks at it at least this often: a host that was
/// suspended, or whose clock was set, must not wait for the rest of yesterday's timer.
pub const RENEW_LOOK: Duration = Duration::from_secs(5);
/// Between two looks at the trust bundle. The agent answers from memory.
pub const BUNDLE_EVERY: Duration = Duration::from_secs(5);

/// Between two looks at the index of revocation lists, unless the user says otherwise.
pub const POLL_EVERY: Duration = Duration::from_millis(250);
/// Longest wait between two looks while the broker cannot be reached, and before a list that could
/// not be taken is fetched again.
pub const POLL_RETRY_MAX: Duration = Duration::from_secs(1);
/// Longest one fetch of an index or a list may take.
pub const FETCH: Duration = Duration::from_secs(5);
/// Longest the start of an identity waits for the first look at the lists.
pub const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Largest index of revocation lists, in bytes.
pub const INDEX_BYTES: usize = 4 << 20;
/// Largest revocation list, in bytes: some ten times what a broker makes.
pub const LIST_BYTES: usize = 8 << 20;
/// Most revocation lists kept.
pub const LISTS: usize = 8_192;
/// Most intermediate CAs kept that were seen in verified chains.
pub const ISSUERS: usize = 64;

/// Longest a TLS handshake may take, and a connection to be made.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
