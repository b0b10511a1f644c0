//! A pidfd that a caller sent: the process that its task is to be bound to.

use std::os::fd::{AsRawFd, OwnedFd};

use super::ancestor::descends_from;
use super::error::AttestError;
use super::peer::Peer;
use super::process::HeldProcess;
use ephor_proto::task_rule::BindError;

/// The process of a descriptor that `speaker` sent: itself or a process below it, of its uid,
/// and no setuid program.
///
/// # Errors
/// [`AttestError::Descriptor`] when it is no pidfd of a process, [`AttestError::Gone`] when
/// that has ended, [`AttestError::Bind`] when it is not the speaker's to name.
pub fn named_by_descriptor(speaker: &Peer, descriptor: OwnedFd) -> Result<Peer, AttestError> {
    let pid = pid_of(&descriptor)?;
    let process = HeldProcess::from_pidfd(pid, descriptor)?;
    if process.status()?.group_leader != pid {
        return Err(AttestError::Descriptor(
            "is a pidfd of a thread; send one of a process",
        ));
    }
    let named = Peer::from_process(process, speaker.held())?;
    if named.uid() != speaker.uid() {
        return Err(BindError::OtherUid {
            pid,
            uid: named.uid(),
        }
        .into());
    }
    if !descends_from(named.process(), speaker.process().id())? {
        return Err(AttestError::Descriptor(
            "is of a process that is neither the sender nor below it",
        ));
    }
    Ok(named)
}

/// The pid that the kernel shows for one of our own descriptors.
fn pid_of(descriptor: &OwnedFd) -> Result<u32, AttestError> {
    let number = descriptor.as_raw_fd();
    let kind = std::fs::read_link(format!("/proc/self/fd/{number}")).ok();
    let kind = kind.as_deref().and_then(|kind| kind.to_str());
    if !kind
        .is_some_and(|kind| kind.starts_with("anon_inode:[pidfd]") || kind.starts_with("pidfd:"))
    {
        return Err(AttestError::Descriptor(
            "is no pidfd; send the result of pidfd_open(2)",
        ));
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
    let info = info.map_err(|source| AttestError::Proc {
        what: "fdinfo",
        pid: 0,
        source,
    })?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .map(str::trim);
    match pid.and_then(|pid| pid.parse::<i64>().ok()) {
        Some(-1) => Err(AttestError::Descriptor(
            "is a pidfd of a process that has ended",
        )),
        Some(pid) => u32::try_from(pid)
            .ok()
            .filter(|pid| *pid > 0)
            .ok_or(AttestError::Invisible),
        None => Err(AttestError::Descriptor("is a pidfd that shows no pid")),
    }
}
