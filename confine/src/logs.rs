//! What a daemon's log never says, however it is set.

/// Libraries that see bytes off the wire, secrets among them. What they say below `info` is not
/// ours to vouch for, so no setting turns it on. Directives of `EPHOR_LOG`, added after the user's.
pub const QUIET: [&str; 6] = [
    "h2=info",
    "hyper=info",
    "hyper_util=info",
    "rustls=info",
    "tonic=info",
    "tower=info",
];
