//! The process at the other end of a Unix socket, taken at accept.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::error::AttestError;
use super::process::HeldProcess;
use super::status::{Ids, Status};

/// How a peer is to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By the kernel's own pidfd of the connection, where there is one (Linux 6.5), else as below.
    #[default]
    Pidfd,
    /// By pid and start time only: what an older kernel gives. Weaker: a pid that was used again
    /// between connect and accept is only noticed by its uid.
    StartTime,
}

/// How a peer is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Held {
    /// By the connection's own pidfd.
    Pidfd,
    /// By a pidfd opened from its pid at accept.
    StartTime,
}

impl Held {
    /// The word in evidence.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pidfd => "pidfd",
            Self::StartTime => "start-time",
        }
    }
}

/// Who connected, held for as long as this value lives. It says nothing about who speaks:
/// that is `surface::peer`'s part.
#[derive(Debug)]
pub struct Peer {
    process: HeldProcess,
    uid: u32,
    gid: u32,
    held: Held,
}

impl Peer {
    /// The peer of a connected Unix socket.
    ///
    /// # Errors
    /// When it has ended, is not visible, or changed its ids since it connected.
    pub fn from_stream(stream: impl AsFd, mode: Mode) -> Result<Self, AttestError> {
        let stream = stream.as_fd();
        let credentials =
            getsockopt(&stream, sockopt::PeerCredentials).map_err(|error| AttestError::Proc {
                what: "SO_PEERCRED",
                pid: 0,
                source: error.into(),
            })?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            return Err(AttestError::Invisible);
        }
        let own = match mode {
            Mode::Pidfd => connection_pidfd(stream, pid)?,
            Mode::StartTime => None,
        };
        let (process, held) = match own {
            Some(pidfd) => (HeldProcess::from_pidfd(pid, pidfd)?, Held::Pidfd),
            None => (HeldProcess::hold(pid)?, Held::StartTime),
        };
        let peer = Self {
            process,
            uid: credentials.uid(),
            gid: credentials.gid(),
            held,
        };
        peer.check_ids()?;
        Ok(peer)
    }

    /// A process that was found by other means than a connection: an ancestor.
    pub(super) fn from_process(process: HeldProcess, held: Held) -> Result<Self, AttestError> {
        let status = process.status()?;
        let peer = Self {
            process,
            uid: status.uid.effective,
            gid: status.gid.effective,
            held,
        };
        peer.check_ids()?;
        Ok(peer)
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// The process.
    #[must_use]
    pub const fn process(&self) -> &HeldProcess {
        &self.process
    }

    /// Its pid on this host.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.process.id().pid
    }

    /// Its uid when it connected, as this host maps it.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// Its gid when it connected, as this host maps it.
    #[must_use]
    pub const fn gid(&self) -> u32 {
        self.gid
    }

    /// How it is held.
    #[must_use]
    pub const fn held(&self) -> Held {
        self.held
    }

    /// Its pidfd for a watcher.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pidfd_clone(&self) -> std::io::Result<OwnedFd> {
        self.process.pidfd_clone()
    }

    /// Whether it has the ids with which it connected, real and effective; false also when that
    /// cannot be told without reading its status. Groups alone cannot change without a privilege.
    pub(super) fn has_same_ids(&self) -> Result<bool, AttestError> {
        let is = |ids: Ids, then| ids.real == then && ids.effective == then;
        let ids = self.process.ids()?;
        Ok(ids.is_some_and(|(uid, gid)| is(uid, self.uid) && is(gid, self.gid)))
    }

    /// The same ids as at connect, and no setuid program: real and effective are equal.
    pub(super) fn check_ids(&self) -> Result<Status, AttestError> {
        let status = self.process.status()?;
        check_ids(self.pid(), &status, (self.uid, self.gid))?;
        Ok(status)
    }
}

/// The kernel's own pidfd of who connected; `None` before Linux 6.5, which has no such option.
/// Any other failure is not answered by the weaker way: it is how a peer that ended looks.
fn connection_pidfd(stream: BorrowedFd<'_>, pid: u32) -> Result<Option<OwnedFd>, AttestError> {
    match getsockopt(&stream, sockopt::PeerPidfd) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => Err(AttestError::Gone { pid }),
        Err(error) => Err(AttestError::Proc {
            what: "SO_PEERPIDFD",
            pid,
            source: error.into(),
        }),
    }
}

fn check_ids(pid: u32, status: &Status, (uid, gid): (u32, u32)) -> Result<(), AttestError> {
    for (what, ids, then) in [("uid", status.uid, uid), ("gid", status.gid, gid)] {
        if ids.real != ids.effective {
            return Err(AttestError::SetUid {
                pid,
                what,
                real: ids.real,
                effective: ids.effective,
            });
        }
        if ids.effective != then {
            return Err(AttestError::Changed { pid, what });
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn setuid_programs_and_changed_ids_are_refused() {
        let status = |uids: &str, gids: &str| {
            Status::parse(&format!(
                "Tgid:\t7\nUid:\t{uids}\nGid:\t{gids}\nGroups:\t\n"
            ))
            .unwrap()
        };
        let check = |uids: &str, gids: &str| check_ids(7, &status(uids, gids), (1000, 100));
        assert!(check("1000 1000 1000 1000", "100 100 100 100").is_ok());
        // The effective id is the one that connected, and still it is refused.
        let setuid = check("1001 1000 1000 1000", "100 100 100 100");
        assert!(matches!(
            setuid,
            Err(AttestError::SetUid {
                what: "uid",
                real: 1001,
                effective: 1000,
                ..
            })
        ));
        let setgid = check("1000 1000 1000 1000", "5 100 100 100");
        assert!(matches!(
            setgid,
            Err(AttestError::SetUid { what: "gid", .. })
        ));
        let dropped = check("65534 65534 65534 65534", "100 100 100 100");
        assert!(matches!(
            dropped,
            Err(AttestError::Changed { what: "uid", .. })
        ));
    }
}
