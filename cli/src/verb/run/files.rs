//! Files of a task: `$XDG_RUNTIME_DIR/ephor/TASK/NAME`, else `/dev/shm/ephor-UID/TASK/NAME`.
//!
//! Only ever in memory-backed places, in directories that are ours alone (0700, owner checked,
//! no symbolic link followed), written whole and renamed into place.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ephor_proto::id::TaskId;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::exit::Failure;

/// How often a parent directory is made again when another run's end removed it meanwhile.
const ATTEMPTS: usize = 8;

/// Where a task's files go; nothing is there yet.
#[derive(Debug, Clone)]
pub struct Place {
    parent: PathBuf,
    name: String,
}

impl Place {
    /// The task's own directory.
    pub fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }
}

/// The place for a task's files.
///
/// # Errors
/// When there is no memory-backed directory for this user.
pub fn place(task: TaskId) -> Result<Place, Failure> {
    let uid = geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && ours(dir));
    let parent = runtime.map_or_else(
        || PathBuf::from(format!("/dev/shm/ephor-{uid}")),
        |dir| dir.join("ephor"),
    );
    Ok(Place {
        parent,
        name: task.to_string(),
    })
}

fn ours(dir: &Path) -> bool {
    let stat = rustix::fs::lstat(dir);
    stat.is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && stat.st_uid == geteuid().as_raw()
    })
}

/// A task's directory.
#[derive(Debug)]
pub struct TaskDir {
    place: Place,
    dir: OwnedFd,
}

impl TaskDir {
    /// Makes it, and its parent where that is missing.
    ///
    /// # Errors
    /// When the parent is not ours alone, or the directory cannot be made.
    pub fn create(place: Place) -> Result<Self, Failure> {
        let mut last = Errno::NOENT;
        for _ in 0..ATTEMPTS {
            match attempt(&place) {
                Ok(dir) => return Ok(Self { place, dir }),
                Err(Errno::NOENT) => last = Errno::NOENT,
                Err(why) => {
                    last = why;
                    break;
                }
            }
        }
        let why = match last {
            Errno::PERM => "the directory above must be yours, with mode 0700".to_owned(),
            other => other.to_string(),
        };
        Err(Failure::local(
            format!("cannot make {}", place.path().display()),
            why,
        ))
    }

    /// Writes one file, whole or not at all; gives its path.
    ///
    /// # Errors
    /// When it cannot be written; what was there before stays.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.place.path().join(name);
        // A dot is in no variable's name, so this is never another one's file.
        let temporary = format!(".{name}");
        let written = self
            .write_new(&temporary, bytes)
            .and_then(|()| renameat(&self.dir, &temporary, &self.dir, name));
        match written {
            Ok(()) => Ok(path),
            Err(why) => {
                let _ = unlinkat(&self.dir, &temporary, AtFlags::empty());
                Err(Failure::local(
                    format!("cannot write {}", path.display()),
                    why,
                ))
            }
        }
    }

    /// Removes one file; that it is gone already is as good.
    pub fn remove(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, AtFlags::empty());
    }

    fn write_new(&self, name: &str, bytes: &[u8]) -> rustix::io::Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(why) => return Err(why),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Drop for TaskDir {
    /// Removes it and all in it; the parent too when no other task has files there.
    fn drop(&mut self) {
        remove(&self.place.path());
    }
}

/// Removes a task's directory, and its parent if that is empty then.
pub fn remove(dir: &Path) {
    // Follows no symbolic links; that it is gone already is as good.
    let _ = std::fs::remove_dir_all(dir);
    if let Some(parent) = dir.parent() {
        let _ = std::fs::remove_dir(parent);
    }
}

fn attempt(place: &Place) -> rustix::io::Result<OwnedFd> {
    let private = Mode::RWXU;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match mkdirat(CWD, &place.parent, private) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(why) => return Err(why),
    }
    let parent = openat(CWD, &place.parent, directory, Mode::empty())?;
    let stat = fstat(&parent)?;
    // Anybody may have made it before us in a directory like /dev/shm.
    if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(Errno::PERM);
    }
    mkdirat(&parent, &place.name, private)?;
    openat(&parent, &place.name, directory, Mode::empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn in_dir(dir: &Path) -> Place {
        Place {
            parent: dir.join("ephor"),
            name: "task".into(),
        }
    }

    #[test]
    fn written_privately_replaced_and_removed() {
        let top = tempfile::tempdir().unwrap();
        let dir = TaskDir::create(in_dir(top.path())).unwrap();
        let path = dir.write("TOKEN", b"one").unwrap();
        let before = std::fs::metadata(&path).unwrap();
        assert_eq!(before.permissions().mode() & 0o777, 0o600);
        assert_eq!(
            std::fs::metadata(path.parent().unwrap())
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o700
        );
        let held = std::fs::File::open(&path).unwrap();
        dir.write("TOKEN", b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        // Replaced, not overwritten: a reader of the old one keeps the whole old one.
        assert_ne!(
            std::fs::metadata(&path).unwrap().ino(),
            held.metadata().unwrap().ino()
        );
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
        dir.remove("TOKEN");
        dir.remove("TOKEN");
        assert!(!path.exists());
        drop(dir);
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let victim = top.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let dir = TaskDir::create(in_dir(top.path())).unwrap();
        symlink(&victim, in_dir(top.path()).path().join(".TOKEN")).unwrap();
        symlink(&victim, in_dir(top.path()).path().join("TOKEN")).unwrap();
        dir.write("TOKEN", b"secret").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    }

    #[test]
    fn another_ones_directory_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let place = in_dir(top.path());
        std::fs::create_dir(&place.parent).unwrap();
        std::fs::set_permissions(&place.parent, std::fs::Permissions::from_mode(0o755)).unwrap();
        let failure = TaskDir::create(place.clone()).unwrap_err();
        assert!(failure.message.contains("0700"), "{}", failure.message);
        std::fs::remove_dir(&place.parent).unwrap();
        symlink("/tmp", &place.parent).unwrap();
        assert!(TaskDir::create(place.clone()).is_err());
        std::fs::remove_file(&place.parent).unwrap();
        std::fs::create_dir_all(place.path()).unwrap();
        std::fs::set_permissions(&place.parent, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(
            TaskDir::create(place).is_err(),
            "a task's directory that exists is somebody else's"
        );
    }
}
