//! Which process the store belongs to.
//!
//! Safety is the fence: each commit checks that the stored epoch and holder are still ours, so a
//! broker that was taken over can write no more, wherever it runs. That a second one is refused
//! while the first is alive is a courtesy on the same host.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::writer::Trouble;

/// Who holds the store: boot, pid namespace, pid, start time, and a random part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    boot: String,
    namespace: String,
    pid: u32,
    start_time: u64,
    nonce: String,
}

impl Holder {
    /// This process.
    pub(super) fn this_process() -> Result<Self, ephor_crypto::random::RandomError> {
        let nonce = ephor_crypto::digest::hex(&ephor_crypto::random::bytes::<16>()?);
        let pid = std::process::id();
        Ok(Self {
            boot: boot_id(),
            namespace: pid_namespace(),
            pid,
            start_time: start_time(pid).unwrap_or(0),
            nonce,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let mut part = || parts.next();
        Some(Self {
            boot: part()?.to_owned(),
            namespace: part()?.to_owned(),
            pid: part()?.parse().ok()?,
            start_time: part()?.parse().ok()?,
            nonce: part()?.to_owned(),
        })
    }

    /// Whether that process certainly still runs on this host. What runs elsewhere cannot be
    /// seen; the fence stops it.
    pub(super) fn is_alive(text: &str) -> Option<u32> {
        let holder = Self::parse(text)?;
        let here = holder.boot == boot_id() && holder.namespace == pid_namespace();
        (here && start_time(holder.pid) == Some(holder.start_time)).then_some(holder.pid)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            boot,
            namespace,
            pid,
            start_time,
            nonce,
        } = self;
        write!(f, "{boot} {namespace} {pid} {start_time} {nonce}")
    }
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn pid_namespace() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Field 22 of `/proc/PID/stat`; the second field may hold blanks and parentheses.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// The file that was opened, by its name. Whoever removes or replaces it takes what is written from then
/// on away, and nothing would say so: SQLite goes on with the file that has no name any more.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Device and number of the file.
    file: (u64, u64),
}

impl Place {
    /// As it is now.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: file_at(path)?,
        })
    }

    /// Checks that the name still leads to it.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        match file_at(&self.path) {
            Ok(file) if file == self.file => Ok(()),
            Ok(_) | Err(_) => Err(Trouble::Damaged(format!(
                "{} was removed or replaced while it was open; stop this broker, and put the newest copy back",
                self.path.display()
            ))),
        }
    }
}

fn file_at(path: &Path) -> std::io::Result<(u64, u64)> {
    let found = std::fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Epoch and holder that every commit must find.
#[derive(Debug)]
pub(super) struct Fence {
    epoch: u32,
    holder: String,
    /// What to become with the first commit, when the disk was too full to say it at the start.
    claim: Option<(u32, String)>,
}

impl Fence {
    /// Of a store that was taken.
    pub(super) fn taken(epoch: u32, holder: String) -> Self {
        Self {
            epoch,
            holder,
            claim: None,
        }
    }

    /// Of a store that has no space to be taken: it stays that of `before`, who is dead, until
    /// the first commit. A revocation must not wait for space, and goes to the reserve.
    pub(super) fn deferred(before: (u32, String), claim: (u32, String)) -> Self {
        Self {
            epoch: before.0,
            holder: before.1,
            claim: Some(claim),
        }
    }

    /// Checks inside a transaction that the store is still ours, and takes it where that is
    /// still to be done.
    pub(super) fn check(&mut self, connection: &Connection) -> Result<(), Trouble> {
        let before = |error: rusqlite::Error| Trouble::before_commit(&error);
        if Self::is_holder(connection, self.epoch, &self.holder).map_err(before)? {
            let Some((epoch, holder)) = &self.claim else {
                return Ok(());
            };
            let sql = "UPDATE installation SET epoch = ?1, holder = ?2";
            connection
                .execute(sql, params![epoch, holder])
                .map_err(before)?;
            return Ok(());
        }
        // A claim stays open until it is found here: the commit that made it may have failed.
        if let Some((epoch, holder)) = self.claim.take() {
            let ours = Self::is_holder(connection, epoch, &holder).map_err(before)?;
            (self.epoch, self.holder) = (epoch, holder);
            if ours {
                return Ok(());
            }
        }
        Err(Trouble::Fenced)
    }

    fn is_holder(connection: &Connection, epoch: u32, holder: &str) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM installation WHERE epoch = ?1 AND holder = ?2";
        let found = connection
            .prepare_cached(sql)?
            .query_row(params![epoch, holder], |_| Ok(()))
            .optional()?;
        Ok(found.is_some())
    }

    /// Gives the store back, if it is still ours.
    pub(super) fn release(&self, connection: &Connection) {
        let sql = "UPDATE installation SET holder = '' WHERE epoch = ?1 AND holder = ?2";
        if let Err(error) = connection.execute(sql, params![self.epoch, self.holder]) {
            tracing::warn!(%error, "the store could not be given back; the next start notices by itself");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_alive_only_as_the_very_same_process() {
        let own = Holder::this_process().unwrap();
        assert!(own.start_time > 0);
        assert_eq!(Holder::is_alive(&own.to_string()), Some(std::process::id()));
        let earlier = Holder {
            start_time: own.start_time - 1,
            ..own.clone()
        };
        assert_eq!(Holder::is_alive(&earlier.to_string()), None);
        let other_boot = Holder {
            boot: "x".to_owned(),
            ..own
        };
        assert_eq!(Holder::is_alive(&other_boot.to_string()), None);
        assert_eq!(Holder::is_alive(""), None);
    }
}
