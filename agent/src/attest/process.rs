//! One process, held so that its pid cannot come to mean another: by a pidfd and by its
//! `/proc/PID` directory, opened once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use ephor_proto::task_rule::Process;
use pidfd_util::{PidFd, PidFdExt};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, openat, readlinkat, statx};
use rustix::io::{Errno, pread};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::AttestError;
use super::status::{Ids, Stat, Status};
use crate::limits::MAX_PROC_FILE_BYTES;

/// What a file of `/proc` usually has at most, in bytes.
const PROC_FILE_ROOM: usize = 4096;

/// A process that cannot be mistaken for another.
pub struct HeldProcess {
    id: Process,
    pidfd: OwnedFd,
    dir: OwnedFd,
    /// Owner of the directory when it was opened; `None` if it could not be told.
    owner: Option<(u32, u32)>,
    /// The pidfd once more, to ask who the process is; made at the first question.
    asked: OnceLock<Mutex<PidFd>>,
}

impl std::fmt::Debug for HeldProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HeldProcess").field(&self.id).finish()
    }
}

impl HeldProcess {
    /// Holds the process that has this pid now. Who it is must be checked by the caller.
    ///
    /// # Errors
    /// When there is no such process or it is not visible.
    pub fn hold(pid: u32) -> Result<Self, AttestError> {
        let raw = i32::try_from(pid)
            .ok()
            .filter(|raw| *raw > 0)
            .and_then(Pid::from_raw);
        let raw = raw.ok_or(AttestError::Invisible)?;
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Self::from_pidfd(pid, pidfd),
            Err(Errno::SRCH) => Err(AttestError::Gone { pid }),
            Err(source) => Err(AttestError::Proc {
                what: "pidfd_open",
                pid,
                source: source.into(),
            }),
        }
    }

    /// Holds the process of a pidfd whose pid is known.
    ///
    /// # Errors
    /// When it has ended or its directory cannot be read.
    pub fn from_pidfd(pid: u32, pidfd: OwnedFd) -> Result<Self, AttestError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())
            .map_err(|error| proc_error("/proc/PID", pid, error))?;
        let mut held = Self {
            id: Process { pid, start_time: 0 },
            pidfd,
            owner: owner_of(&dir),
            dir,
            asked: OnceLock::new(),
        };
        // Alive after the open: a living process keeps its pid, so the directory is its own.
        held.id.start_time = held.stat()?.start_time;
        Ok(held)
    }

    /// Pid and start time.
    #[must_use]
    pub const fn id(&self) -> Process {
        self.id
    }

    /// The pidfd; readable once the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Another descriptor of the same process, for a watcher.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pidfd_clone(&self) -> std::io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Whether it still runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !has_ended(self.pidfd.as_fd())
    }

    pub(super) fn check_alive(&self) -> Result<(), AttestError> {
        if self.is_alive() {
            Ok(())
        } else {
            Err(AttestError::Gone { pid: self.id.pid })
        }
    }

    /// Whether the directory's owner is who it was at first: the effective ids of a process that
    /// may be dumped, root of any other.
    pub(super) fn has_same_owner(&self) -> bool {
        self.owner.is_some() && owner_of(&self.dir) == self.owner
    }

    /// `/proc/PID/stat`.
    pub(super) fn stat(&self) -> Result<Stat, AttestError> {
        const FILE: &str = "stat";
        let text = self.bytes(FILE, &self.open(FILE)?)?;
        self.parsed(FILE, Stat::parse(&String::from_utf8_lossy(&text)))
    }

    /// `/proc/PID/status`.
    pub(super) fn status(&self) -> Result<Status, AttestError> {
        const FILE: &str = "status";
        let text = self.bytes(FILE, &self.open(FILE)?)?;
        self.parsed(FILE, Status::parse(&String::from_utf8_lossy(&text)))
    }

    /// Who it is now, uid and gid, told by the pidfd: a tenth of the cost of `status`. `None` where
    /// the kernel does not tell (`PIDFD_GET_INFO`, Linux 6.13).
    ///
    /// # Errors
    /// When it is gone, or no descriptor is left.
    pub(super) fn ids(&self) -> Result<Option<(Ids, Ids)>, AttestError> {
        let asked = match self.asked.get() {
            Some(asked) => asked,
            None => {
                let copy = self.pidfd_clone().map_err(|source| AttestError::Proc {
                    what: "dup",
                    pid: self.id.pid,
                    source,
                })?;
                self.asked.get_or_init(|| Mutex::new(PidFd::from(copy)))
            }
        };
        // Guards nothing that a panic could leave half done.
        let answer = asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_creds();
        let gone = Errno::SRCH.raw_os_error();
        match answer {
            Ok(now) => Ok(Some((
                Ids {
                    real: now.ruid,
                    effective: now.euid,
                },
                Ids {
                    real: now.rgid,
                    effective: now.egid,
                },
            ))),
            Err(error) if error.raw_os_error() == Some(gone) => {
                Err(AttestError::Gone { pid: self.id.pid })
            }
            // Kernels of before refuse in several ways.
            Err(_) => Ok(None),
        }
    }

    /// What was read of a file with the process's own name for itself in it, in whatever encoding.
    fn parsed<T>(&self, what: &'static str, parsed: Option<T>) -> Result<T, AttestError> {
        parsed.ok_or_else(|| self.invalid(what, "not in the form that the kernel documents"))
    }

    /// A whole file of the directory, believed only if the process is alive after the read.
    pub(super) fn read(&self, what: &'static str) -> Result<String, AttestError> {
        let text = self.bytes(what, &self.open(what)?)?;
        String::from_utf8(text).map_err(|_| self.invalid(what, "not UTF-8"))
    }

    fn open(&self, what: &'static str) -> Result<OwnedFd, AttestError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.dir, what, flags, Mode::empty()).map_err(|error| self.failed(what, error))
    }

    fn bytes(&self, what: &'static str, file: &OwnedFd) -> Result<Vec<u8>, AttestError> {
        let mut text = Vec::with_capacity(PROC_FILE_ROOM);
        let read = read_from_start(file, &mut text);
        self.check_alive()?;
        read.map_err(|error| self.failed(what, error))?;
        if text.len() >= MAX_PROC_FILE_BYTES {
            return Err(self.invalid(what, "longer than the agent reads"));
        }
        Ok(text)
    }

    /// Target of a link of the directory; `None` when the agent may not read it or it is not UTF-8.
    pub(super) fn link(&self, what: &'static str) -> Result<Option<String>, AttestError> {
        let target = readlinkat(&self.dir, what, Vec::new());
        self.check_alive()?;
        match target {
            Ok(target) => Ok(target.into_string().ok()),
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed(what, error)),
        }
    }

    /// Opens a magic link such as `exe`; `None` when the agent may not.
    pub(super) fn open_link(
        &self,
        what: &'static str,
        flags: OFlags,
    ) -> Result<Option<OwnedFd>, AttestError> {
        let file = openat(&self.dir, what, flags | OFlags::CLOEXEC, Mode::empty());
        self.check_alive()?;
        match file {
            Ok(file) => Ok(Some(file)),
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed(what, error)),
        }
    }

    /// The executable, from what the kernel has cached: neither opened nor asked of a file system
    /// in user space. `None` when the agent may not look. The link leads somewhere only while the
    /// process has its memory, so an answer is also proof of life.
    pub(super) fn executable(&self) -> Result<Option<Statx>, AttestError> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let error = match statx(&self.dir, "exe", flags, super::exe::WANTED) {
            Ok(stat) => return Ok(Some(stat)),
            Err(error) => error,
        };
        self.check_alive()?;
        match error {
            // Not when the link can be followed, and only its file system keeps silent.
            Errno::ACCESS | Errno::PERM | Errno::NOENT
                if self.open_link("exe", OFlags::PATH)?.is_none() =>
            {
                Ok(None)
            }
            error => Err(self.failed("exe", error)),
        }
    }

    pub(super) fn failed(&self, what: &'static str, error: Errno) -> AttestError {
        proc_error(what, self.id.pid, error)
    }

    fn invalid(&self, what: &'static str, why: &str) -> AttestError {
        AttestError::Proc {
            what,
            pid: self.id.pid,
            source: std::io::Error::other(why.to_owned()),
        }
    }
}

/// Whether the process of this pidfd has ended. A poll that fails counts as an end: nothing is
/// delivered on a doubt.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut fds, Some(&now)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// Appends the file to `text`, up to its limit. At its start the kernel writes such a file anew.
fn read_from_start(file: &OwnedFd, text: &mut Vec<u8>) -> Result<(), Errno> {
    while text.len() < MAX_PROC_FILE_BYTES {
        text.reserve(1);
        let at = text.len() as u64;
        match pread(file, spare_capacity(text), at) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn proc_error(what: &'static str, pid: u32, error: Errno) -> AttestError {
    match error {
        Errno::NOENT | Errno::SRCH => AttestError::Gone { pid },
        source => AttestError::Proc {
            what,
            pid,
            source: source.into(),
        },
    }
}

fn owner_of(dir: &OwnedFd) -> Option<(u32, u32)> {
    let stat = rustix::fs::fstat(dir).ok()?;
    Some((stat.st_uid, stat.st_gid))
}
