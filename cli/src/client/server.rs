//! Who serves a socket. Where others may write to its directory, somebody can put a socket of
//! their own in the place of the agent's; what they answer must not be taken for the agent's.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::exit::Failure;

/// Takes root (a service manager that listens for the agent, too), ourselves, and the owner of
/// the socket's directory, who could replace the socket at any time. Packages put a link where
/// programs look: one that root or we made is followed, another's is not.
///
/// # Errors
/// For everybody else; nothing was sent to them.
pub fn check(stream: &UnixStream, path: &Path, what: &str) -> Result<(), Failure> {
    let unknown =
        |why: std::io::Error| Failure::unreachable(format!("{what} at {}: {why}", path.display()));
    let server = stream.peer_cred().map_err(unknown)?.uid();
    let own = rustix::process::geteuid().as_raw();
    let place = followed(path, own).map_err(unknown)?;
    let parent = place.parent().unwrap_or(Path::new("/"));
    let owner = std::fs::metadata(parent).map_err(unknown)?.uid();
    if [0, own, owner].contains(&server) {
        return Ok(());
    }
    Err(Failure::unreachable(format!(
        "{what} at {} is served by uid {server}, who is neither root, nor you, nor the owner of \
         its directory. Nothing was sent there.",
        path.display()
    )))
}

/// Where a link of root's or of ours leads; any other path as it is.
fn followed(path: &Path, own: u32) -> std::io::Result<PathBuf> {
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
    fn only_links_of_root_and_of_ours_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (socket, link) = (real.join("sub/s"), real.join("link"));
        std::fs::create_dir(real.join("sub")).unwrap();
        std::fs::write(&socket, "").unwrap();
        std::os::unix::fs::symlink("sub/s", &link).unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(followed(&link, own).unwrap(), socket);
        assert_eq!(followed(&socket, own).unwrap(), socket);
        // As a stranger would see a link of ours, unless we are root.
        let stranger = followed(&link, own.wrapping_add(1)).unwrap();
        assert_eq!(stranger, if own == 0 { socket } else { link });
    }
}
