//! Who serves a socket. Where others may write to its directory, somebody can put a socket of
//! their own in the place of the agent's; what they answer must not be taken for the agent's.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::net::UnixStream;

use crate::exit::Failure;

/// Takes whom [`ephor_client::may_serve`] does.
///
/// # Errors
/// For everybody else; nothing was sent to them.
pub fn check(stream: &UnixStream, path: &Path, what: &str) -> Result<(), Failure> {
    let unknown =
        |why: std::io::Error| Failure::unreachable(format!("{what} at {}: {why}", path.display()));
    let server = stream.peer_cred().map_err(unknown)?.uid();
    let own = rustix::process::geteuid().as_raw();
    if ephor_client::may_serve(server, path, own).map_err(unknown)? {
        return Ok(());
    }
    Err(Failure::unreachable(format!(
        "{what} at {} is served by uid {server}, who is neither root, nor you, nor the owner of \
         its directory. Nothing was sent there.",
        path.display()
    )))
}

/// Whose process serves the socket. A service manager may listen for it, but makes the socket's file
/// that of the service, as a service does that listens itself. A link is followed once, and only one
/// of root's or ours: whoever serves can make others.
pub fn user(path: &Path) -> std::io::Result<u32> {
    let found = std::fs::symlink_metadata(path)?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_symlink() || ![0, own].contains(&found.uid()) {
        return Ok(found.uid());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let place = parent.join(std::fs::read_link(path)?);
    Ok(std::fs::symlink_metadata(place)?.uid())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whose_socket_it_is_no_link_of_who_serves_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (link, inner) = (dir.path().join("link"), dir.path().join("inner"));
        std::os::unix::fs::symlink("inner", &link).unwrap();
        // What it leads to is not there: whoever follows it fails.
        std::os::unix::fs::symlink("nowhere", &inner).unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!((user(&link).unwrap(), user(&inner).is_err()), (own, true));
        if own == 0 {
            std::os::unix::fs::lchown(&inner, Some(12_345), None).unwrap();
            assert_eq!(user(&link).unwrap(), 12_345);
            // Not even where it is asked for directly.
            assert_eq!(user(&inner).unwrap(), 12_345);
        }
    }
}
