//! Temporary directories that a `demo` or `dev` left because it was killed.
//!
//! Only what is certainly one of ours is ever removed: a directory of this user's that nobody
//! else can reach into, with a name of our form, our word in it that it is temporary, and a lock
//! file whose lock is free. Who uses one holds that lock for as long as it lives (flock(2)); a
//! directory that somebody chose by `--dir` has no such word, whatever its name.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock, fstat};

use super::LOCK;
use crate::verb::dev::pg::LOGIN_FILE;

/// How the names begin.
const PREFIXES: [&str; 2] = [DEV, "ephor-demo."];
/// Those of `dev`; the servers that a `demo` makes logins at are its own.
const DEV: &str = "ephor-dev.";
/// The file that says so.
pub const TEMPORARY: &str = "temporary";
/// How many random letters and digits follow.
pub const RANDOM: usize = 6;

/// Removes what is stale in `top`. What cannot be removed stays: it is in nobody's way. So does the only
/// record of a login at somebody's server.
pub fn remove(top: &Path) {
    for dir in ours(top) {
        // Held until all is gone. Symbolic links inside are removed, not followed.
        if let Some(_lock) = unused(&dir)
            && !has_login(&dir)
        {
            let _ = std::fs::remove_dir_all(&dir);
        }
    }
}

/// Those with such a record, and their locks.
pub fn with_login(top: &Path) -> Vec<(PathBuf, File)> {
    let dirs = ours(top).into_iter().filter(|dir| has_login(dir));
    dirs.filter_map(|dir| unused(&dir).map(|lock| (dir, lock)))
        .collect()
}

/// Whether it has the record of a login that may be at its server.
pub fn has_login(dir: &Path) -> bool {
    let is_dev = dir.file_name().and_then(|name| name.to_str());
    is_dev.is_some_and(|name| name.starts_with(DEV)) && dir.join(LOGIN_FILE).exists()
}

fn ours(top: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(top).into_iter().flatten().flatten();
    let form = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_our_form));
    form.map(|entry| entry.path())
        .filter(|dir| is_ours_alone(dir) && is_temporary(dir))
        .collect()
}

/// The lock of a directory that nobody uses.
fn unused(dir: &Path) -> Option<File> {
    // Without a lock file it may be a new one whose owner comes to that next.
    let lock = open(dir).ok()?;
    let is_free = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
    (is_free && is_lock_of(dir, &lock)).then_some(lock)
}

fn open(dir: &Path) -> std::io::Result<File> {
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    OpenOptions::new()
        .append(true)
        .custom_flags(nofollow)
        .open(dir.join(LOCK))
}

/// Whether `lock` is still the lock file of `dir`: both may have been removed meanwhile.
pub fn is_lock_of(dir: &Path, lock: &impl AsFd) -> bool {
    let there = std::fs::symlink_metadata(dir.join(LOCK));
    let same = |there: std::fs::Metadata| {
        fstat(lock).is_ok_and(|held| (held.st_dev, held.st_ino) == (there.dev(), there.ino()))
    };
    there.is_ok_and(same)
}

fn is_our_form(name: &str) -> bool {
    let random = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    random.is_some_and(|random| {
        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Whether our word in it says so.
pub fn is_temporary(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir.join(TEMPORARY)).is_ok_and(|known| known.is_file())
}

fn is_ours_alone(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir).is_ok_and(|known| {
        known.is_dir()
            && known.uid() == rustix::process::geteuid().as_raw()
            && known.mode() & 0o077 == 0
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::{DirBuilderExt, symlink};

    fn dir(top: &Path, name: &str, mode: u32, has_lock: bool) -> PathBuf {
        let dir = top.join(name);
        std::fs::DirBuilder::new().mode(mode).create(&dir).unwrap();
        if has_lock {
            std::fs::write(dir.join(LOCK), "").unwrap();
        }
        std::fs::write(dir.join(TEMPORARY), "").unwrap();
        dir
    }

    #[test]
    fn only_what_is_certainly_ours_and_unused_goes() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        let victim = dir(top, "victim", 0o700, true);
        let goes = ["ephor-dev.aB3xY9", "ephor-demo.000000"].map(|name| {
            let stale = dir(top, name, 0o700, true);
            symlink(&victim, stale.join("link")).unwrap();
            stale
        });
        let stays = [
            dir(top, "ephor-dev.toolong", 0o700, true),
            dir(top, "ephor-dev.a-b-c-", 0o700, true),
            dir(top, "ephor-dev.", 0o700, true),
            dir(top, "other-dev.aB3xY9", 0o700, true),
            dir(top, "ephor-dev.open00", 0o755, true),
            dir(top, "ephor-dev.nolock", 0o700, false),
            dir(top, "ephor-dev.chosen", 0o700, true),
            victim.clone(),
        ];
        std::fs::remove_file(top.join("ephor-dev.chosen").join(TEMPORARY)).unwrap();
        let linked = dir(top, "ephor-dev.linked", 0o700, false);
        symlink(victim.join(LOCK), linked.join(LOCK)).unwrap();
        symlink(&victim, top.join("ephor-dev.aslink")).unwrap();
        let used = dir(top, "ephor-demo.inuse0", 0o700, true);
        let lock = open(&used).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        remove(top);
        assert!(goes.iter().all(|dir| !dir.exists()));
        for dir in stays.iter().chain([&linked, &used, &victim.join(LOCK)]) {
            assert!(dir.exists(), "{}", dir.display());
        }
        assert!(top.join("ephor-dev.aslink").is_symlink());
        drop(lock);
        remove(top);
        assert!(!used.exists(), "and once its owner is gone");
    }

    #[test]
    fn the_record_of_a_login_stays_until_it_was_used() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        let kept = dir(top, "ephor-dev.aB3xY9", 0o700, true);
        let demo = dir(top, "ephor-demo.aB3xY9", 0o700, true);
        let used = dir(top, "ephor-dev.inuse0", 0o700, true);
        for dir in [&kept, &demo, &used] {
            std::fs::write(dir.join(LOGIN_FILE), "ephor_broker_01234567").unwrap();
        }
        let lock = open(&used).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        remove(top);
        assert!(kept.exists() && used.exists() && !demo.exists());
        let found = with_login(top).into_iter().map(|(dir, _lock)| dir);
        assert_eq!(found.collect::<Vec<PathBuf>>(), std::slice::from_ref(&kept));
        std::fs::remove_file(kept.join(LOGIN_FILE)).unwrap();
        remove(top);
        assert!(!kept.exists());
    }

    #[test]
    fn a_removed_lock_is_noticed() {
        let top = tempfile::tempdir().unwrap();
        let own = dir(top.path(), "own", 0o700, true);
        let lock = open(&own).unwrap();
        assert!(is_lock_of(&own, &lock));
        std::fs::remove_file(own.join(LOCK)).unwrap();
        assert!(!is_lock_of(&own, &lock));
        std::fs::write(own.join(LOCK), "").unwrap();
        assert!(!is_lock_of(&own, &lock), "a new one is another one");
    }
}
