//! The executable of a process, told apart by what the kernel holds open, never by its path.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::error::AttestError;
use super::process::HeldProcess;

/// What tells one content of a file from another without reading it. The ctime cannot be set
/// by its owner, unlike the mtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Device, major number above minor.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Change time: seconds and nanoseconds.
    pub ctime: (i64, u32),
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes.
    pub size: u64,
}

impl FileId {
    fn from_statx(stat: &Statx) -> Self {
        Self {
            dev: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            ino: stat.stx_ino,
            ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            size: stat.stx_size,
        }
    }

    /// Whether both are the same file, whatever happened to its content.
    #[must_use]
    pub const fn same_file(&self, other: &Self) -> bool {
        self.dev == other.dev && self.ino == other.ino
    }
}

/// The executable that a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exe {
    /// Target of `/proc/PID/exe` without the kernel's mark of deletion; empty when not UTF-8.
    pub path: String,
    /// It is no longer at that path.
    pub deleted: bool,
    /// Which file.
    pub file: FileId,
    /// Id of its mount, where the kernel says it (Linux 5.8).
    pub(super) mount: Option<u64>,
}

/// What the kernel appends to the path of a file that was unlinked.
const DELETED: &str = " (deleted)";

impl Exe {
    /// The executable of a process; `None` when the agent may not look at it.
    pub(super) fn of(process: &HeldProcess) -> Result<Option<Self>, AttestError> {
        let Some((before, _)) = Self::identify(process)? else {
            return Ok(None);
        };
        let path = process.link("exe")?.unwrap_or_default();
        // Path and file belong together only if nothing was executed between the two reads.
        match Self::identify(process)? {
            Some((file, stat)) if file.same_file(&before) => {
                let marked = path.strip_suffix(DELETED);
                Ok(Some(Self {
                    deleted: marked.is_some() || stat.stx_nlink == 0,
                    path: marked.unwrap_or(&path).to_owned(),
                    file,
                    mount: mount_of(&stat),
                }))
            }
            Some(_) | None => Err(AttestError::Changed {
                pid: process.id().pid,
                what: "executable",
            }),
        }
    }

    /// The file that a process runs now, without its path.
    pub(crate) fn file_of(process: &HeldProcess) -> Result<Option<FileId>, AttestError> {
        Ok(Self::identify(process)?.map(|(file, _)| file))
    }

    fn identify(process: &HeldProcess) -> Result<Option<(FileId, Statx)>, AttestError> {
        let stat = process.executable()?;
        Ok(stat.map(|stat| (FileId::from_statx(&stat), stat)))
    }
}

/// What tells one file from another.
pub(super) const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

/// Identity of an open file, from what the kernel has cached: nobody is asked.
pub(super) fn identify(file: impl AsFd) -> rustix::io::Result<(FileId, Statx)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(file, "", flags, WANTED)?;
    Ok((FileId::from_statx(&stat), stat))
}

pub(super) fn mount_of(stat: &Statx) -> Option<u64> {
    (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
}
