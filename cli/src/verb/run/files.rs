//! Files of a task: `$XDG_RUNTIME_DIR/ephor/TASK/NAME`, else `/dev/shm/ephor-UID/TASK/NAME`. For a
//! certificate NAME is a directory of its files, which a link swaps as a whole.
//!
//! Only ever in memory-backed places, in directories that are ours alone (0700, owner checked,
//! no symbolic link followed), written whole and renamed into place.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ephor_proto::id::TaskId;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, readlinkat, renameat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::fetch::Fetched;
use crate::exit::Failure;
use crate::login::{Beside, Form, Login};
use crate::pems::Pems;

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

    /// The path of a credential's file.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// The path of a login's certificate.
    pub fn certificate_of(&self, name: &str) -> PathBuf {
        self.path_of(&format!("{name}.crt"))
    }

    /// Puts a credential there: a token in a file, a certificate in a directory of files.
    ///
    /// # Errors
    /// When it cannot be written; what was there before stays.
    pub fn put(&self, name: &str, one: &Fetched) -> Result<PathBuf, Failure> {
        match (&one.login, &one.pems) {
            (Some(login), _) => {
                let beside = self.put_beside(name, login)?;
                let shaped = login.shaped(Form::of(name), &beside);
                self.write(name, shaped.main.expose())
            }
            (None, None) => self.write(name, one.whole.expose()),
            (None, Some(pems)) => self.write_set(name, pems),
        }
    }

    /// The files with the CAs of a login's server and with its certificate, if it needs them. A renewal
    /// writes a new certificate only: the key stays, so that whoever opens one file after the other finds
    /// two that fit.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn put_beside(&self, name: &str, login: &Login) -> Result<Beside, Failure> {
        // A dot is in no variable's name.
        let file = |end: &str, pem: &str| self.write(&format!("{name}.{end}"), pem.as_bytes());
        let ca = login.ca().map(|pem| file("ca", pem)).transpose()?;
        let pair = match login.certificate() {
            Some((certificate, key)) => {
                let key = file("key", key)?;
                Some((file("crt", certificate)?, key))
            }
            None => None,
        };
        let ca = ca.unwrap_or_default();
        Ok(Beside { ca, pair })
    }

    /// Writes files that belong together into a directory of their own and turns the link `name` to
    /// it: who opens them through the link sees all of one certificate. The set before stays for who
    /// is just reading it, and goes when the next one comes.
    fn write_set(&self, name: &str, pems: &Pems) -> Result<PathBuf, Failure> {
        let path = self.place.path().join(name);
        let failed = |why| Failure::local(format!("cannot write {}", path.display()), why);
        // A dot is in no variable's name, so these are never another one's.
        let set = format!(".{name}.{}", pems.digest());
        let link = format!(".{name}.link");
        let before = readlinkat(&self.dir, name, Vec::new()).ok();
        // What a try that failed, or one long ago, left of this very set: nobody reads it, because
        // the link leads elsewhere.
        let remove_set = || {
            let _ = std::fs::remove_dir_all(self.path_of(&set));
        };
        let written = || {
            remove_set();
            mkdirat(&self.dir, &set, Mode::RWXU)?;
            let dir = openat(&self.dir, &set, DIRECTORY, Mode::empty())?;
            for (file, bytes) in pems.files() {
                write_new(&dir, file, bytes.expose())?;
            }
            unlink_if_there(&self.dir, &link)?;
            symlinkat(&set, &self.dir, &link)?;
            renameat(&self.dir, &link, &self.dir, name)
        };
        if before
            .as_deref()
            .is_some_and(|now| now.to_bytes() == set.as_bytes())
        {
            return Ok(path);
        }
        written().map_err(|why| {
            remove_set();
            failed(why)
        })?;
        let keep = [Some(set), before.and_then(|name| name.into_string().ok())];
        self.remove_sets(name, &keep.map(Option::unwrap_or_default));
        Ok(path)
    }

    /// Removes the sets of `name` but those to `keep`.
    fn remove_sets(&self, name: &str, keep: &[String]) {
        let prefix = format!(".{name}.");
        let entries = std::fs::read_dir(self.place.path()).into_iter().flatten();
        for entry in entries.flatten() {
            let set = entry.file_name().to_string_lossy().into_owned();
            if set.starts_with(&prefix) && !keep.contains(&set) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Writes one file, whole or not at all; gives its path.
    ///
    /// # Errors
    /// When it cannot be written; what was there before stays.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.place.path().join(name);
        // A dot is in no variable's name, so this is never another one's file.
        let temporary = format!(".{name}");
        let written = write_new(&self.dir, &temporary, bytes)
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

    /// Removes one file, or one link and what it led to; that it is gone already is as good.
    pub fn remove(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, AtFlags::empty());
        for end in ["ca", "crt", "key"] {
            let _ = unlinkat(&self.dir, format!("{name}.{end}"), AtFlags::empty());
        }
        self.remove_sets(name, &[]);
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn unlink_if_there(dir: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(why) => Err(why),
    }
}

fn write_new(dir: &OwnedFd, name: &str, bytes: &[u8]) -> rustix::io::Result<()> {
    unlink_if_there(dir, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
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
    match mkdirat(CWD, &place.parent, private) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(why) => return Err(why),
    }
    let parent = openat(CWD, &place.parent, DIRECTORY, Mode::empty())?;
    let stat = fstat(&parent)?;
    // Anybody may have made it before us in a directory like /dev/shm.
    if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(Errno::PERM);
    }
    mkdirat(&parent, &place.name, private)?;
    openat(&parent, &place.name, DIRECTORY, Mode::empty())
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

    fn pems(serial: &str) -> Pems {
        Pems::of(ephor_proto::http::agent::Certificate {
            serial: serial.into(),
            chain: format!("chain {serial}\n"),
            private_key: format!("key {serial}\n"),
            bundle: "ca\n".into(),
        })
    }

    #[test]
    fn a_certificate_is_swapped_as_a_whole() {
        let top = tempfile::tempdir().unwrap();
        let dir = TaskDir::create(in_dir(top.path())).unwrap();
        let path = dir.write_set("CERT", &pems("01")).unwrap();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(
            (read("tls.crt"), read("ca.crt")),
            ("chain 01\n".into(), "ca\n".into())
        );
        assert_eq!(read("tls.pem"), "key 01\nchain 01\n");
        let mode = std::fs::metadata(path.join("tls.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::canonicalize(&path).unwrap();
        dir.write_set("CERT", &pems("02")).unwrap();
        assert_eq!(
            (read("tls.key"), read("tls.crt")),
            ("key 02\n".into(), "chain 02\n".into())
        );
        assert_eq!(
            std::fs::read_to_string(before.join("tls.key")).unwrap(),
            "key 01\n",
            "who is just reading the one before reads all of it"
        );
        dir.write_set("CERT", &pems("02")).unwrap();
        dir.write_set("CERT", &pems("03")).unwrap();
        assert!(!before.exists(), "but not for ever");
        dir.remove("CERT");
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            0
        );
    }

    #[test]
    fn a_certificate_that_could_not_be_written_leaves_no_key_and_can_be_tried_again() {
        let top = tempfile::tempdir().unwrap();
        let dir = TaskDir::create(in_dir(top.path())).unwrap();
        let path = dir.write_set("CERT", &pems("01")).unwrap();
        // A directory in the link's place, which cannot be unlinked.
        let obstacle = dir.path_of(".CERT.link");
        std::fs::create_dir(&obstacle).unwrap();
        dir.write_set("CERT", &pems("02")).unwrap_err();
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 3, "the link, what it leads to, the obstacle");
        std::fs::remove_dir(&obstacle).unwrap();
        // What a process that was killed half-way through left.
        let half = dir.path_of(&format!(".CERT.{}", pems("02").digest()));
        std::fs::create_dir(&half).unwrap();
        dir.write_set("CERT", &pems("02")).unwrap();
        assert_eq!(
            std::fs::read_to_string(path.join("tls.key")).unwrap(),
            "key 02\n"
        );
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
