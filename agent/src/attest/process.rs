//! One process, held so that its pid cannot come to mean another: by a pidfd and by its
//! `/proc/PID` directory, opened once.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ephor_proto::task_rule::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, openat, readlinkat, statx};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::AttestError;
use super::status::{Stat, Status};
use crate::limits::MAX_PROC_FILE_BYTES;

/// What a file of `/proc` usually has at most, in bytes.
const PROC_FILE_ROOM: usize = 4096;

/// A process that cannot be mistaken for another.
#[derive(Debug)]
pub struct HeldProcess {
    id: Process,
    pidfd: OwnedFd,
    dir: OwnedFd,
    /// Owner of the directory when it was opened; `None` if it could not be told.
    owner: Option<(u32, u32)>,
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
        self.parsed("stat", Stat::parse)
    }

    /// `/proc/PID/status`.
    pub(super) fn status(&self) -> Result<Status, AttestError> {
        self.parsed("status", Status::parse)
    }

    fn parsed<T>(
        &self,
        what: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, AttestError> {
        let text = self.read(what)?;
        parse(&text).ok_or_else(|| self.invalid(what, "not in the form that the kernel documents"))
    }

    /// A whole file of the directory, believed only if the process is alive after the read.
    pub(super) fn read(&self, what: &'static str) -> Result<String, AttestError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, what, flags, Mode::empty())
            .map_err(|error| self.failed(what, error))?;
        // Room for the usual file: growing from nothing costs three times the reads, on every fetch.
        let mut text = String::with_capacity(PROC_FILE_ROOM);
        let limit = MAX_PROC_FILE_BYTES as u64;
        let read = std::fs::File::from(file)
            .take(limit)
            .read_to_string(&mut text);
        self.check_alive()?;
        let read = read.map_err(|source| AttestError::Proc {
            what,
            pid: self.id.pid,
            source,
        })?;
        if read as u64 >= limit {
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
