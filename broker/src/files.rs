//! Files and directories of ours: with their mode from the first moment, never over what is there
//! unless that is asked for, and whole and durable, name and all, when a call returns.
//!
//! It never follows what others could have laid in the way: a new file is new or refused.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Result, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Mode of a file that only we read.
pub const PRIVATE: u32 = 0o600;
/// Mode of a file that others may read.
pub const PUBLIC: u32 = 0o644;
/// Mode of a directory that only we enter.
const PRIVATE_DIRECTORY: u32 = 0o700;

/// Makes a directory that only we enter, and those above it, where there is none.
///
/// # Errors
/// As the file system says.
pub fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY)
        .create(path)
}

/// Makes a directory that only we enter, and that was not there.
///
/// # Errors
/// Also when it was.
pub fn make_new_directory(path: &Path) -> Result<()> {
    DirBuilder::new().mode(PRIVATE_DIRECTORY).create(path)
}

/// Makes a file that was not there, to be written. Its name is durable after [`sync`] only.
///
/// # Errors
/// Also when it was there.
pub fn create(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}

/// Writes a file that was not there.
///
/// # Errors
/// Also when it was there. What was written so far stays.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    write(path, content, mode)?;
    sync(parent(path))
}

/// Writes a file in the place of what is there, whole or not at all.
///
/// # Errors
/// As the file system says; what was there stays.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let partial = beside(path, ".partial");
    // Of one that was killed.
    let _ = std::fs::remove_file(&partial);
    write(&partial, content, mode)?;
    std::fs::rename(&partial, path)?;
    sync(parent(path))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// As the file system says.
pub fn sync(directory: &Path) -> Result<()> {
    File::open(directory)?.sync_all()
}

/// The directory that a name is in.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    let parent = path.parent();
    parent
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The name with something behind it.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut file = create(path, mode)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_private_is_so_at_once_and_never_over_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, file) = (dir.path().join("a/b"), dir.path().join("a/b/key"));
        make_directory(&inner).unwrap();
        make_directory(&inner).unwrap();
        assert_eq!((mode(&inner), mode(&dir.path().join("a"))), (0o700, 0o700));
        let there = make_new_directory(&inner).unwrap_err();
        assert_eq!(there.kind(), ErrorKind::AlreadyExists);
        write_new(&file, b"1", PRIVATE).unwrap();
        assert_eq!(mode(&file), 0o600);
        let there = write_new(&file, b"2", PRIVATE).unwrap_err();
        assert_eq!(there.kind(), ErrorKind::AlreadyExists);
        // Not even through a link that leads nowhere yet.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("target"), &link).unwrap();
        assert!(write_new(&link, b"2", PRIVATE).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"1");
    }

    #[test]
    fn what_is_replaced_is_whole_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(beside(&file, ".partial"), "of one that was killed").unwrap();
        for content in ["first", "second"] {
            replace(&file, content.as_bytes(), PUBLIC).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
        }
        assert_eq!(mode(&file), 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(parent(Path::new("name")), Path::new("."));
    }
}
