//! Who serves a socket. Where others may write to its directory, somebody can put a socket of
//! their own in the place of the agent's; what they answer must not be taken for the agent's.

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
