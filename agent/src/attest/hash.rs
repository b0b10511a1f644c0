//! SHA-256 of executables: read through `/proc/PID/exe`, bounded in size and time, one at a
//! time for a uid, and remembered by what a writer cannot restore.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ephor_crypto::digest::Sha256Hasher;
use ephor_proto::time::Boottime;
use rustix::fs::OFlags;

use super::error::AttestError;
use super::exe::{Exe, FileId, identify, mount_of};
use super::mounts::{mounts, untrusted};
use super::process::HeldProcess;
use crate::clock::SharedClock;
use crate::limits::{EXE_HASHES_KEPT, EXE_SETTLED_MILLIS, MAX_EXE_HASH_BYTES, MAX_EXE_HASH_TIME};

/// Digests of executables by their [`FileId`]. Shared by all connections.
pub struct HashCache {
    clock: SharedClock,
    max_bytes: u64,
    /// Guards digests and who is hashing; never held while reading a file.
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    digests: HashMap<FileId, [u8; 32]>,
    order: VecDeque<FileId>,
    hashing: HashSet<u32>,
    hits: u64,
}

impl HashCache {
    /// An empty cache that hashes executables of up to `max_bytes`.
    #[must_use]
    pub fn new(clock: SharedClock, max_bytes: u64) -> Self {
        Self {
            clock,
            max_bytes,
            state: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// With the usual bound.
    #[must_use]
    pub fn with_defaults(clock: SharedClock) -> Self {
        Self::new(clock, MAX_EXE_HASH_BYTES)
    }

    /// How often a digest was answered without reading a file.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.lock().hits
    }

    /// SHA-256 of the executable that `process` runs, which must be `exe`. Blocks.
    pub(super) fn digest(
        &self,
        process: &HeldProcess,
        uid: u32,
        exe: &Exe,
    ) -> Result<[u8; 32], AttestError> {
        let refuse = |why: String| AttestError::Hash {
            pid: process.id().pid,
            why,
        };
        let deadline = self.clock.boottime().saturating_add(MAX_EXE_HASH_TIME);
        if let Some(digest) = self
            .cached_or_turn(uid, &exe.file, deadline)
            .map_err(refuse)?
        {
            return Ok(digest);
        }
        let result = self.read(process, exe, deadline);
        let settled = self.settled(&exe.file);
        let mut state = self.lock();
        state.hashing.remove(&uid);
        if let (Ok(digest), true) = (&result, settled) {
            state.keep(exe.file, *digest);
        }
        drop(state);
        self.freed.notify_all();
        result
    }

    /// The cached digest, or `None` when it is this uid's turn to hash.
    fn cached_or_turn(
        &self,
        uid: u32,
        file: &FileId,
        deadline: Boottime,
    ) -> Result<Option<[u8; 32]>, String> {
        let mut state = self.lock();
        loop {
            if let Some(digest) = state.digests.get(file).copied() {
                state.hits += 1;
                return Ok(Some(digest));
            }
            if state.hashing.insert(uid) {
                return Ok(None);
            }
            let left = deadline.millis_since(self.clock.boottime());
            if left == 0 {
                return Err(
                    "another executable of this uid is still being hashed; try again".to_owned(),
                );
            }
            let wait = self.freed.wait_timeout(state, Duration::from_millis(left));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn read(
        &self,
        process: &HeldProcess,
        exe: &Exe,
        deadline: Boottime,
    ) -> Result<[u8; 32], AttestError> {
        let refuse = |why: String| AttestError::Hash {
            pid: process.id().pid,
            why,
        };
        self.may_read(process, exe)?;
        let file = process
            .open_link("exe", OFlags::RDONLY | OFlags::NONBLOCK)?
            .ok_or_else(|| refuse("the agent may not read it".to_owned()))?;
        let same = |file: &std::fs::File| match identify(file) {
            Ok((id, stat)) if id == exe.file && mount_of(&stat) == exe.mount => Ok(()),
            Ok(_) => Err(AttestError::Changed {
                pid: process.id().pid,
                what: "executable",
            }),
            Err(error) => Err(process.failed("exe", error)),
        };
        let mut file = std::fs::File::from(file);
        same(&file)?;
        let digest = self.stream(&mut file, deadline).map_err(refuse)?;
        // Nobody wrote to it meanwhile, and the process still runs it.
        same(&file)?;
        process.check_alive()?;
        Ok(digest)
    }

    /// Refuses a file that must not even be opened.
    fn may_read(&self, process: &HeldProcess, exe: &Exe) -> Result<(), AttestError> {
        let refuse = |why: String| {
            Err(AttestError::Hash {
                pid: process.id().pid,
                why,
            })
        };
        if exe.file.size > self.max_bytes {
            return refuse(format!(
                "it has {} bytes, more than max_exe_hash_bytes = {}",
                exe.file.size, self.max_bytes
            ));
        }
        let table = process.read("mountinfo")?;
        trusted_mount(&table, exe.mount).or_else(refuse)
    }

    fn stream(&self, file: &mut std::fs::File, deadline: Boottime) -> Result<[u8; 32], String> {
        let (mut hasher, mut total, mut buffer) = (Sha256Hasher::new(), 0_u64, vec![0; 128 * 1024]);
        loop {
            let read = file
                .read(&mut buffer)
                .map_err(|error| format!("reading it failed: {error}"))?;
            let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else {
                return Ok(hasher.finish());
            };
            total = total.saturating_add(piece.len() as u64);
            if total > self.max_bytes {
                return Err(format!(
                    "it grew past max_exe_hash_bytes = {}",
                    self.max_bytes
                ));
            }
            if self.clock.boottime() > deadline {
                return Err(format!(
                    "it took longer than {MAX_EXE_HASH_TIME:?}; try again"
                ));
            }
            hasher.update(piece);
        }
    }

    /// Whether a later change would surely show in the timestamps.
    fn settled(&self, file: &FileId) -> bool {
        let changed = u64::try_from(file.ctime.0)
            .unwrap_or(0)
            .saturating_mul(1000)
            + u64::from(file.ctime.1 / 1_000_000);
        self.clock.wall().as_millis() >= changed.saturating_add(EXE_SETTLED_MILLIS)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trusted_mount(table: &str, id: Option<u64>) -> Result<(), String> {
    match id
        .and_then(|id| mounts(table).find(|mount| mount.id == id))
        .map(|mount| mount.kind)
    {
        Some(kind) if untrusted(kind) => Err(format!(
            "it is on a file system of kind {kind}, which a user or a far machine controls"
        )),
        Some(_) => Ok(()),
        None => Err("its mount is not in the process's mount table".to_owned()),
    }
}

impl State {
    fn keep(&mut self, file: FileId, digest: [u8; 32]) {
        if self.digests.insert(file, digest).is_none() {
            self.order.push_back(file);
        }
        if self.order.len() > EXE_HASHES_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_a_user_or_of_nobody_is_not_opened() {
        let table =
            "27 1 254:0 / / rw - ext4 /dev/vda rw\n90 27 0:50 / /home/a/mnt rw - fuse.x x rw\n";
        assert!(trusted_mount(table, Some(27)).is_ok());
        assert!(
            trusted_mount(table, Some(90))
                .unwrap_err()
                .contains("fuse.x")
        );
        assert!(trusted_mount(table, Some(91)).is_err());
        assert!(trusted_mount(table, None).is_err());
    }

    #[test]
    fn digests_kept_are_bounded() {
        let mut state = State::default();
        let file = |ino| FileId {
            dev: 1,
            ino,
            ctime: (0, 0),
            mtime: (0, 0),
            size: 0,
        };
        let kept = EXE_HASHES_KEPT as u64;
        (0..=kept).for_each(|ino| state.keep(file(ino), [0; 32]));
        assert_eq!(
            (state.digests.len(), state.order.len()),
            (EXE_HASHES_KEPT, EXE_HASHES_KEPT)
        );
        assert!(!state.digests.contains_key(&file(0)) && state.digests.contains_key(&file(kept)));
    }
}
