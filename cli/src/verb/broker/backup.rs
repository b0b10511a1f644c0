//! `ephor broker backup`

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ephor_proto::http::admin::{Backup, BackupStage, BackupState};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};

use crate::client::Peer;
use crate::exit::{Failure, Outcome};
use crate::show;
use crate::words::shell_quoted;

/// Between two looks at a backup that is being made.
const LOOK: Duration = Duration::from_millis(200);

/// Has the broker copy its store, and puts the copy where it was asked for.
pub async fn backup(broker: &Peer, to: &Path, with_master_key: bool) -> Outcome {
    let to = std::path::absolute(to).map_err(|why| Failure::usage(format!("--to: {why}")))?;
    if to.exists() {
        let why = format!(
            "--to: {} is there already; name a new directory",
            to.display()
        );
        return Err(Failure::usage(why));
    }
    let ask = Backup {
        to: to.display().to_string(),
        with_master_key,
    };
    let begun: BackupState = broker.post("/v1/backup", &ask).await?;
    let mut state = begun.clone();
    while state.state == BackupStage::Running {
        tokio::time::sleep(LOOK).await;
        state = broker.read("/v1/backup").await?;
        if state.at != begun.at {
            let why = "another one was begun before this one was fetched; run the command again";
            return Err(Failure::local("no backup was made", why));
        }
    }
    if let Some(why) = &state.error {
        return Err(Failure::local("no backup was made", why));
    }
    let made = PathBuf::from(&state.at);
    // The broker may write below its own directory only; we may write where we were told to.
    fetch(&made, broker.user()?, &to).map_err(|why| {
        let what = format!(
            "the backup that the broker made in {} could not be moved to {}",
            made.display(),
            to.display()
        );
        Failure::local(what, why)
    })?;
    let place = shell_quoted(&to.display().to_string());
    let key = match &state.master_key {
        Some(file) => format!(
            "Without the master key it opens nothing; keep {file} elsewhere, not beside it."
        ),
        None => "The master key is in it: whoever has this directory is the broker.".to_owned(),
    };
    show::to_stdout(&format!(
        "{} events, {} bytes, in {}.\n{key}\nTo put it back, with no broker running:  ephor-broker restore --from {place}\n",
        state.log_size,
        state.bytes,
        to.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Copies what the broker made, file by file under a passing name, makes it durable, and removes the
/// first. We may be root, and the broker names the place: only a directory and files of its own user
/// are read or removed, each through the descriptor that was looked at.
fn fetch(from: &Path, user: u32, to: &Path) -> io::Result<()> {
    let made = Made::open(from, user)?;
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    DirBuilder::new().mode(0o700).create(&partial)?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    let moved = made
        .copy_into(&partial)
        .and_then(|()| File::open(&partial)?.sync_all())
        .and_then(|()| std::fs::rename(&partial, to))
        .and_then(|()| File::open(parent)?.sync_all());
    if moved.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
        return moved;
    }
    made.remove()
}

/// The directory that the broker made.
struct Made {
    path: PathBuf,
    directory: OwnedFd,
    user: u32,
    /// Those of [`FILES`] that are in it.
    files: Vec<&'static str>,
}

/// All that a backup may hold.
const FILES: [&str; 4] = ["ephor.db", "manifest.json", "manifest.seal", "master.key"];

impl Made {
    fn open(path: &Path, user: u32) -> io::Result<Self> {
        let directory = open_directory(path)?;
        let strange = |what: &str| io::Error::other(format!("{} {what}", path.display()));
        if fs::fstat(&directory)?.st_uid != user {
            return Err(strange("is not the broker's own"));
        }
        // The broker removes what nobody has locked.
        fs::flock(&directory, FlockOperation::NonBlockingLockShared)
            .map_err(|_| strange("is being removed by the broker; run the command again"))?;
        let mut files = Vec::new();
        for entry in fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let known = FILES.into_iter().find(|file| file.as_bytes() == name);
            files.push(known.ok_or_else(|| strange("holds what is of no backup"))?);
        }
        if !files.contains(&"ephor.db") {
            return Err(strange("holds no backup any more; run the command again"));
        }
        Ok(Self {
            path: path.to_owned(),
            directory,
            user,
            files,
        })
    }

    fn copy_into(&self, target: &Path) -> io::Result<()> {
        for name in &self.files {
            let mut source = self.file(name)?;
            let mut target = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(target.join(name))?;
            io::copy(&mut source, &mut target)?;
            target.sync_all()?;
        }
        Ok(())
    }

    fn file(&self, name: &str) -> io::Result<File> {
        // Not blocking: opening a FIFO would wait for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(&self.directory, name, flags, Mode::empty())?;
        let found = fs::fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile
            || found.st_uid != self.user
        {
            let what = format!(
                "{name} in {} is no file of the broker's own",
                self.path.display()
            );
            return Err(io::Error::other(what));
        }
        Ok(file.into())
    }

    fn remove(self) -> io::Result<()> {
        for name in &self.files {
            fs::unlinkat(&self.directory, *name, AtFlags::empty())?;
        }
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(io::Error::other(format!(
                "{} has no name",
                self.path.display()
            )));
        };
        // Only an empty directory goes, whatever has this name by now.
        fs::unlinkat(open_directory(parent)?, name, AtFlags::REMOVEDIR)?;
        Ok(())
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_backup_is_moved_whole_and_only_its_owner_reads_it() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("ephor.db"), "copy").unwrap();
        fetch(&from, own(), &to).unwrap();
        assert_eq!(std::fs::read(to.join("ephor.db")).unwrap(), b"copy");
        assert_eq!(
            to.join("ephor.db").metadata().unwrap().mode() & 0o777,
            0o600
        );
        assert_eq!(to.metadata().unwrap().mode() & 0o777, 0o700);
        assert!(!from.exists());
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("ephor.db"), "another").unwrap();
        std::fs::create_dir(to.join("x")).unwrap();
        assert!(
            fetch(&from, own(), &to).is_err(),
            "never over what is there"
        );
        assert!(from.exists());
    }

    /// The broker's lock, and a directory that it emptied before we had ours.
    #[test]
    fn what_the_broker_removes_is_not_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        let refused = |words: &str| {
            let refused = fetch(&from, own(), &to).unwrap_err().to_string();
            assert!(refused.contains(words) && !to.exists(), "{refused}");
        };
        refused("holds no backup any more");
        std::fs::write(from.join("ephor.db"), "copy").unwrap();
        let broker = File::open(&from).unwrap();
        fs::flock(&broker, FlockOperation::NonBlockingLockExclusive).unwrap();
        refused("is being removed");
        drop(broker);
        let ours = Made::open(&from, own()).unwrap();
        let broker = File::open(&from).unwrap();
        assert!(fs::flock(&broker, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(ours);
    }

    /// What a broker that was broken into could name, with the words of the refusal.
    #[test]
    fn whatever_the_broker_names_nothing_but_its_own_is_read_or_removed() {
        type Bait = (fn(&Path), u32, &'static str);
        let baits: [Bait; 5] = [
            (
                |from| {
                    std::fs::create_dir(from).unwrap();
                    std::fs::write(from.join("ephor.db"), "of another user").unwrap();
                },
                own().wrapping_add(1),
                "is not the broker's own",
            ),
            (
                |from| {
                    let real = from.with_extension("real");
                    std::fs::create_dir(&real).unwrap();
                    std::fs::write(real.join("ephor.db"), "behind a link").unwrap();
                    std::os::unix::fs::symlink(&real, from).unwrap();
                },
                own(),
                "",
            ),
            (
                |from| {
                    std::fs::create_dir(from).unwrap();
                    std::fs::write(from.with_extension("secret"), "linked").unwrap();
                    let link = from.join("ephor.db");
                    std::os::unix::fs::symlink(from.with_extension("secret"), link).unwrap();
                },
                own(),
                "",
            ),
            (
                |from| {
                    std::fs::create_dir(from).unwrap();
                    let fifo = from.join("ephor.db");
                    let (kind, mode) = (FileType::Fifo, Mode::from_raw_mode(0o600));
                    fs::mknodat(fs::CWD, &fifo, kind, mode, 0).unwrap();
                },
                own(),
                "is no file of the broker's own",
            ),
            (
                |from| {
                    std::fs::create_dir(from).unwrap();
                    std::fs::write(from.join("precious"), "of no backup").unwrap();
                },
                own(),
                "holds what is of no backup",
            ),
        ];
        for (lay, user, words) in baits {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            lay(&from);
            let count = || walk(dir.path());
            let before = count();
            let refused = fetch(&from, user, &to).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
            assert_eq!(count(), before, "{refused}");
        }
    }

    /// Everything below a directory.
    fn walk(dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                found.append(&mut walk(&entry.path()));
            }
            found.push(entry.path());
        }
        found.sort();
        found
    }
}
