//! Who may serve the agent's socket. Where others may write to its directory, somebody can put a
//! socket of their own in the agent's place.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether the user `server` may serve the socket at `path`: root (a service manager that listens
/// for the daemon, too), ourselves (`own`), and the owner of the socket's directory, who could
/// replace the socket at any time. A link that root or we made is followed, because packages put
/// one where programs look.
///
/// # Errors
/// When the socket is gone.
pub fn may_serve(server: u32, path: &Path, own: u32) -> io::Result<bool> {
    if [0, own].contains(&server) {
        return Ok(true);
    }
    let place = followed(path, own)?;
    let directory = place.parent().unwrap_or(Path::new("/"));
    Ok(std::fs::metadata(directory)?.uid() == server)
}

/// Where a link of root's or of ours leads; any other path as it is.
fn followed(path: &Path, own: u32) -> io::Result<PathBuf> {
    let found = std::fs::symlink_metadata(path)?;
    if found.is_symlink() && [0, own].contains(&found.uid()) {
        std::fs::canonicalize(path)
    } else {
        Ok(path.to_owned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn root_ourselves_and_who_owns_the_directory_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        std::fs::write(&socket, "").unwrap();
        let owner = std::fs::metadata(dir.path()).unwrap().uid();
        let (reader, stranger) = (owner + 1_000, owner + 2_000);
        for server in [0, reader, owner] {
            assert!(may_serve(server, &socket, reader).unwrap(), "{server}");
        }
        assert!(!may_serve(stranger, &socket, reader).unwrap());
        assert!(may_serve(stranger, &dir.path().join("gone"), reader).is_err());
    }

    #[test]
    fn a_strangers_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (socket, link) = (real.join("sub/s"), real.join("link"));
        std::fs::create_dir(real.join("sub")).unwrap();
        std::fs::write(&socket, "").unwrap();
        std::os::unix::fs::symlink("sub/s", &link).unwrap();
        let owner = std::fs::metadata(&real).unwrap().uid();
        assert_eq!(followed(&link, owner).unwrap(), socket);
        let seen_by_another = followed(&link, owner.wrapping_add(1)).unwrap();
        assert_eq!(seen_by_another, if owner == 0 { socket } else { link });
    }
}
