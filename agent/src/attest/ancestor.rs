//! The processes above a caller, and binding to one of them.

use ephor_proto::limits::MAX_ANCESTORS;
use ephor_proto::task_rule::{Ancestor, Bind, BindError, Caller, Process, TaskKey, task_of};

use super::error::AttestError;
use super::evidence::{Attested, attest};
use super::hash::HashCache;
use super::peer::Peer;
use super::process::HeldProcess;

/// How often a parent that ended during the look is looked for again.
const TRIES: usize = 3;

/// The parents of a process, the nearest first, down to process 1.
///
/// # Errors
/// When the process ends meanwhile or `/proc` fails.
pub fn ancestors(process: &HeldProcess) -> Result<Vec<Ancestor>, AttestError> {
    let own = process.status()?.uid.effective;
    let mut chain = Vec::new();
    let mut last = parent(process)?;
    while let Some(above) = last {
        let uid = above.status().map(|status| status.uid);
        // A parent that ends while it is read ends the chain: what is above was not proven.
        let Ok(uid) = uid else { break };
        // For a setuid program the id that differs from the caller's.
        let uid = if uid.real == own {
            uid.effective
        } else {
            uid.real
        };
        chain.push(Ancestor {
            process: above.id(),
            uid,
        });
        if chain.len() >= MAX_ANCESTORS {
            break;
        }
        last = parent(&above)?;
    }
    Ok(chain)
}

/// Whether `process` is `ancestor` or has it above itself.
///
/// # Errors
/// As [`ancestors`].
pub fn descends_from(process: &HeldProcess, ancestor: Process) -> Result<bool, AttestError> {
    Ok(process.id() == ancestor
        || ancestors(process)?
            .iter()
            .any(|above| above.process == ancestor))
}

/// The parent now, held. The link is read again after the parent is held: as long as it says
/// the same pid, that pid has not come to mean another process.
pub(super) fn parent(child: &HeldProcess) -> Result<Option<HeldProcess>, AttestError> {
    for _ in 0..TRIES {
        let pid = child.stat()?.parent;
        if pid == 0 {
            return Ok(None);
        }
        match HeldProcess::hold(pid) {
            Ok(above) if child.stat()?.parent == pid => {
                // A parent is never younger than its child.
                return Ok((above.id().start_time <= child.id().start_time).then_some(above));
            }
            Ok(_) | Err(AttestError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The ancestor that a request names, held by its own pidfd and attested in the caller's
/// place; `None` when the caller itself is meant. Blocks when `want_hash`.
///
/// # Errors
/// [`AttestError::Bind`] when the process is no ancestor, of another uid, or process 1.
pub fn attest_ancestor(
    peer: &Peer,
    bind: Bind,
    want_hash: bool,
    cache: &HashCache,
) -> Result<Option<(Peer, Attested)>, AttestError> {
    let Some(named) = named(peer, bind)? else {
        return Ok(None);
    };
    let held = HeldProcess::hold(named.pid)?;
    // Again, now that its pid cannot be used anew: it is still the same and still above.
    if held.id() != named || !descends_from(peer.process(), named)? {
        return Err(BindError::NotAncestor(named.pid).into());
    }
    let above = Peer::from_process(held, peer.held())?;
    if above.uid() != peer.uid() {
        return Err(BindError::OtherUid {
            pid: named.pid,
            uid: above.uid(),
        }
        .into());
    }
    let attested = attest(&above, want_hash, cache)?;
    Ok(Some((above, attested)))
}

fn named(peer: &Peer, bind: Bind) -> Result<Option<Process>, AttestError> {
    let chain = ancestors(peer.process())?;
    let caller = Caller {
        peer: peer.process().id(),
        uid: peer.uid(),
        ancestors: &chain,
        run: None,
        unit: None,
        bind: Some(bind),
    };
    match task_of(&caller)? {
        TaskKey::Ancestor(process) => Ok(Some(process)),
        TaskKey::Peer(_) | TaskKey::Run(_) | TaskKey::Unit(_) => Ok(None),
    }
}
