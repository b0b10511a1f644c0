//! Who may take over: an agent of the same user, with at least the capabilities of this one.
//!
//! What it gets is what it could read from this agent's memory: the agent cannot be traced by
//! others of its user (it is not dumpable), only by who has CAP_SYS_PTRACE, which the service
//! manager gives and a process of that user cannot take. Where this agent runs without that
//! capability, every program of its user can start an agent and take over with it.

use std::os::unix::net::UnixStream;

use crate::attest::{self, AttestError, HashCache, Mode, Peer};

/// Who asked is not the one to have it.
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    /// Another user.
    #[error("uid {0} asked to take over; only the agent's own user may")]
    User(u32),
    /// Another program.
    #[error("{0} asked to take over; only the agent's own program may")]
    Program(String),
    /// Less privileged than this agent.
    #[error(
        "process {0} asked to take over, without the capabilities of this agent; start it as a service, as this one was"
    )]
    Capabilities(u32),
    /// It could not be looked at.
    #[error("who asked to take over could not be looked at: {0}")]
    Unknown(#[from] AttestError),
}

/// Whether the process at the other end may have what this agent holds.
///
/// # Errors
/// [`Stranger`].
pub fn may_take_over(stream: &UnixStream, mode: Mode, hashes: &HashCache) -> Result<(), Stranger> {
    let peer = Peer::from_stream(stream, mode)?;
    if peer.uid() != rustix::process::geteuid().as_raw() {
        return Err(Stranger::User(peer.uid()));
    }
    let attested = attest::attest(&peer, false, hashes)?;
    // None where this agent may not look: what a hardened agent without CAP_SYS_PTRACE is to another.
    if let Some(exe) = &attested.evidence().exe {
        let own = std::env::current_exe().unwrap_or_default();
        let own = own.to_string_lossy();
        let own = own.strip_suffix(" (deleted)").unwrap_or(&own);
        if exe.path != own {
            return Err(Stranger::Program(exe.path.clone()));
        }
    }
    let (ours, theirs) = (capabilities("self"), capabilities(&peer.pid().to_string()));
    let has_all = matches!((ours, theirs), (Some(ours), Some(theirs)) if ours & !theirs == 0);
    // Alive after the read: the pid was its own.
    if !has_all || !peer.is_alive() {
        return Err(Stranger::Capabilities(peer.pid()));
    }
    Ok(())
}

/// `CapEff` of proc_pid_status(5).
fn capabilities(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn this_program_may() {
        let hashes = HashCache::with_defaults(SystemClock::shared());
        let (one, _two) = UnixStream::pair().unwrap();
        may_take_over(&one, Mode::Pidfd, &hashes).unwrap();
        assert!(capabilities("self").is_some() && capabilities("0").is_none());
    }
}
