//! A process that an earlier agent of this host attested, found and attested again.

use ephor_proto::task_rule::Process;

use super::error::AttestError;
use super::evidence::{Attested, Fingerprint, attest};
use super::hash::HashCache;
use super::peer::Peer;
use super::process::HeldProcess;

/// The process with this pid and start time, if it still has this fingerprint.
///
/// # Errors
/// [`AttestError::Gone`] or [`AttestError::Changed`] when it is not what it was.
pub fn attest_again(
    process: Process,
    before: &Fingerprint,
    cache: &HashCache,
) -> Result<(Peer, Attested), AttestError> {
    let changed = |what| AttestError::Changed {
        pid: process.pid,
        what,
    };
    let held = HeldProcess::hold(process.pid)?;
    if held.id() != process {
        return Err(changed("start time"));
    }
    let peer = Peer::from_process(held, before.held_by())?;
    let attested = attest(&peer, false, cache)?;
    if attested.fingerprint() != before {
        return Err(changed("identity"));
    }
    Ok((peer, attested))
}
