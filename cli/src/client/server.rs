//! Who serves a socket. Where others may write to its directory, somebody can put a socket of
//! their own in the place of the agent's; what they answer must not be taken for the agent's.

use std::path::Path;

use tokio::net::UnixStream;

use crate::exit::Failure;

/// Takes root (a service manager that listens for the agent, too), ourselves, and the owner of
/// the socket's directory, who could replace the socket at any time.
///
/// # Errors
/// For everybody else; nothing was sent to them.
pub fn check(stream: &UnixStream, path: &Path, what: &str) -> Result<(), Failure> {
    let unknown =
        |why: std::io::Error| Failure::unreachable(format!("{what} at {}: {why}", path.display()));
    let server = stream.peer_cred().map_err(unknown)?.uid();
    let parent = path.parent().unwrap_or(Path::new("/"));
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(parent).map_err(unknown)?);
    let own = rustix::process::geteuid().as_raw();
    if [0, own, owner].contains(&server) {
        return Ok(());
    }
    Err(Failure::unreachable(format!(
        "{what} at {} is served by uid {server}, who is neither root, nor you, nor the owner of \
         its directory. Nothing was sent there.",
        path.display()
    )))
}
