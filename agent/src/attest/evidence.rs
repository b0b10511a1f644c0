//! What was seen of a caller, and the two moments at which it is looked at: in full when it
//! asks, and once more right before a secret is written to it.

use std::sync::Arc;

use ephor_crypto::digest::hex;
use ephor_proto::grpc::v1;
use ephor_proto::http::agent as http;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cgroup::Placement;
use super::error::AttestError;
use super::exe::Exe;
use super::hash::HashCache;
use super::namespaces::Foreign;
use super::peer::{Held, Peer};
use crate::crash_point;

/// Attested facts about one process. Never its command line or environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Real and effective uid, as this host maps it.
    pub uid: u32,
    /// Real and effective gid, as this host maps it.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    /// Pid on this host.
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// Its executable; none when the agent may not look at it.
    pub exe: Option<Exe>,
    /// SHA-256 of the executable, when asked for.
    pub exe_sha256: Option<[u8; 32]>,
    /// Unit or container.
    pub placement: Placement,
    /// It lives in another user namespace.
    pub foreign_user_namespace: bool,
    /// It lives in another mount namespace: its paths are not this host's.
    pub foreign_mount_namespace: bool,
    /// How it is held.
    pub held_by: Held,
}

/// Everything that tells one kind of caller from another: what a cached credential is kept for.
/// Two workers of one service have the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint(Arc<Traits>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Traits {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    exe: Option<Exe>,
    unit: Option<String>,
    invocation_id: Option<String>,
    container: Option<String>,
    foreign: Foreign,
    held_by: Held,
}

/// Evidence that [`attest`] made.
#[derive(Debug, Clone)]
pub struct Attested {
    evidence: Evidence,
    fingerprint: Fingerprint,
}

impl Attested {
    /// What was seen.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// What a cached credential is kept for.
    #[must_use]
    pub const fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }
}

#[cfg(test)]
impl Attested {
    /// As if the process were in this unit, or in none.
    pub(crate) fn with_run(mut self, run: Option<super::cgroup::UnitRun>) -> Self {
        self.evidence.placement = Placement {
            run,
            ..Placement::default()
        };
        self
    }
}

/// Looks at a peer in full. About 50 µs without a hash; with one it may block for seconds, so
/// it belongs on a blocking thread.
///
/// # Errors
/// When the peer has ended, is a setuid program, changes while it is looked at, or cannot be
/// read; with `want_hash` also when its executable may not be hashed.
pub fn attest(peer: &Peer, want_hash: bool, cache: &HashCache) -> Result<Attested, AttestError> {
    let process = peer.process();
    let status = peer.check_ids()?;
    if status.group_leader != peer.pid() {
        return Err(AttestError::Changed {
            pid: peer.pid(),
            what: "thread group",
        });
    }
    let exe = Exe::of(process)?;
    let placement = Placement::of(process)?;
    let foreign = Foreign::of(process)?;
    let exe_sha256 = match (&exe, want_hash) {
        (Some(exe), true) => Some(cache.digest(process, peer.uid(), exe)?),
        (None, true) => {
            let why = "the agent may not read it; run the agent with CAP_SYS_PTRACE".to_owned();
            return Err(AttestError::Hash {
                pid: peer.pid(),
                why,
            });
        }
        (Some(_) | None, false) => None,
    };
    let evidence = Evidence {
        uid: peer.uid(),
        gid: peer.gid(),
        groups: status.groups,
        pid: peer.pid(),
        start_time: process.id().start_time,
        exe,
        exe_sha256,
        placement,
        foreign_user_namespace: foreign.user,
        foreign_mount_namespace: foreign.mount,
        held_by: peer.held(),
    };
    let attested = Attested {
        fingerprint: Fingerprint::of(&evidence, foreign),
        evidence,
    };
    recheck(peer, &attested)?;
    crash_point!("attest.done");
    Ok(attested)
}

/// Whether a peer still is what was attested: alive, the same process, ids and executable.
/// To be done before every secret that is written.
///
/// # Errors
/// [`AttestError::Gone`] or [`AttestError::Changed`]: nothing may be written to it.
pub fn recheck(peer: &Peer, before: &Attested) -> Result<(), AttestError> {
    same_process(peer, before)?;
    if !peer.has_same_ids()? {
        let status = peer.check_ids()?;
        if status.groups != before.evidence.groups {
            return Err(changed(peer, "groups"));
        }
    }
    same_executable(peer, before)
}

/// As [`recheck`], for a peer that spoke just now: the kernel put pid and real ids of the sender on
/// that very message, and they were compared when it was read. What is left is the executable, and
/// the effective ids by the owner of the process's directory; a fifth of the cost of reading
/// `/proc/PID/status`. Groups alone cannot change without a privilege.
///
/// # Errors
/// As [`recheck`].
pub fn recheck_speaker(peer: &Peer, before: &Attested) -> Result<(), AttestError> {
    if !peer.process().has_same_owner() {
        return recheck(peer, before);
    }
    same_process(peer, before)?;
    same_executable(peer, before)
}

fn changed(peer: &Peer, what: &'static str) -> AttestError {
    AttestError::Changed {
        pid: peer.pid(),
        what,
    }
}

/// The held descriptors mean one process for ever, so its start time is not read again.
fn same_process(peer: &Peer, before: &Attested) -> Result<(), AttestError> {
    let (process, before) = (peer.process(), &before.evidence);
    if process.id().start_time != before.start_time || peer.pid() != before.pid {
        return Err(changed(peer, "start time"));
    }
    Ok(())
}

/// That the process lives, and runs the same file: after an exec, pid, pidfd and start time are the
/// same, only the file is another. The ctime is compared because an inode is used again once its
/// last user is gone.
fn same_executable(peer: &Peer, before: &Attested) -> Result<(), AttestError> {
    let file = Exe::file_of(peer.process())?;
    let same = match (&before.evidence.exe, &file) {
        (Some(before), Some(now)) => before.file.same_file(now) && before.file.ctime == now.ctime,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if same {
        Ok(())
    } else {
        Err(changed(peer, "executable"))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// As another agent of this host saw it, at a hand-over.
impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Traits::deserialize(deserializer).map(|traits| Self(Arc::new(traits)))
    }
}

impl Fingerprint {
    /// How who it is of was held.
    pub(super) fn held_by(&self) -> Held {
        self.0.held_by
    }

    fn of(evidence: &Evidence, foreign: Foreign) -> Self {
        Self(Arc::new(Traits {
            uid: evidence.uid,
            gid: evidence.gid,
            groups: evidence.groups.clone(),
            exe: evidence.exe.clone(),
            unit: evidence.placement.unit.clone(),
            invocation_id: evidence.placement.invocation_id.clone(),
            container: evidence.placement.container.clone(),
            foreign,
            held_by: evidence.held_by,
        }))
    }
}

impl Evidence {
    /// Login name of the uid on this host; empty when it has none. May ask the host's name
    /// service, so it is not part of attesting.
    #[must_use]
    pub fn user(&self) -> String {
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(self.uid));
        user.ok()
            .flatten()
            .map(|user| user.name)
            .unwrap_or_default()
    }

    /// As the broker takes it.
    #[must_use]
    pub fn to_wire(&self) -> v1::Evidence {
        v1::Evidence {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            pid: self.pid,
            start_time: self.start_time,
            exe: self
                .exe
                .as_ref()
                .map(|exe| exe.path.clone())
                .unwrap_or_default(),
            exe_sha256: self
                .exe_sha256
                .map(|digest| digest.to_vec())
                .unwrap_or_default(),
            unit: self.placement.unit.clone().unwrap_or_default(),
            invocation_id: self.placement.invocation_id.clone().unwrap_or_default(),
            container: self.placement.container.clone().unwrap_or_default(),
            held_by: self.held_by.as_str().to_owned(),
            exe_deleted: self.exe.as_ref().is_some_and(|exe| exe.deleted),
            foreign_user_namespace: self.foreign_user_namespace,
            foreign_mount_namespace: self.foreign_mount_namespace,
            user: self.user(),
        }
    }

    /// As the caller sees itself (`GET /v1/whoami`).
    #[must_use]
    pub fn to_http(&self) -> http::Evidence {
        http::Evidence {
            uid: self.uid,
            user: self.user(),
            gid: self.gid,
            pid: self.pid,
            exe: self
                .exe
                .as_ref()
                .map(|exe| exe.path.clone())
                .unwrap_or_default(),
            exe_sha256: self.exe_sha256.map(|digest| hex(&digest)),
            unit: self.placement.unit.clone(),
            held_by: self.held_by.as_str().to_owned(),
        }
    }
}
