//! A task that ends with its guard.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ephor_proto::http::agent::{Completed, LOCAL_HEADER};
use ephor_proto::time::Boottime;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::agent::{Agent, COMPLETE};
use crate::clock;
use crate::error::Error;
use crate::limits;

/// Completes the caller's task when it is dropped, on every way out of the code that holds it:
/// what the task was given is revoked then, not when it would have expired.
///
/// Dropping waits for the agent, up to [`limits::DROP_WAIT`], because a process that exits at
/// once must have been heard. Where that is unwelcome, end with [`TaskGuard::complete`], which
/// also gives the receipt. A process that is killed needs no guard: the agent notices.
#[derive(Debug)]
#[must_use = "the task is completed as soon as this is dropped"]
pub struct TaskGuard {
    agent: Agent,
    is_done: bool,
}

impl TaskGuard {
    pub(crate) fn new(agent: Agent) -> Self {
        Self {
            agent,
            is_done: false,
        }
    }

    /// Ends the task now.
    ///
    /// # Errors
    /// When there is no task, or the agent refuses or cannot be reached; it is tried once more
    /// as the guard goes.
    pub async fn complete(mut self) -> Result<Completed, Error> {
        let completed = self.agent.complete().await?;
        self.is_done = true;
        Ok(completed)
    }

    /// Lets the task go on after the guard; it then ends with its process.
    pub fn disarm(mut self) {
        self.is_done = true;
    }

    /// Without a runtime, which may be gone by now. All of it within `patience`.
    fn complete_now(&self, patience: Duration) -> Result<(), Error> {
        let away = |source: io::Error| match source.kind() {
            // What a socket's time limits give, whichever of its calls they end.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Late {
                path: self.agent.path().to_owned(),
                after: patience,
            },
            _ => self.agent.away(source),
        };
        let deadline = clock::boottime().saturating_add(patience);
        let mut stream = connected(self.agent.path(), deadline).map_err(away)?;
        self.agent.check_server(&stream)?;
        let head = ask(&mut stream, deadline).map_err(away)?;
        // A success says that the end is journalled and cannot be lost.
        if head.starts_with(b"HTTP/1.1 2") {
            return Ok(());
        }
        Err(Error::Answer {
            what: "the agent",
            why: String::from_utf8_lossy(&head).into_owned(),
        })
    }
}

fn connected(path: &Path, deadline: Boottime) -> io::Result<UnixStream> {
    let socket = UnixStream::from(unconnected()?);
    // Before connecting: it waits for as long as the agent's queue is full.
    bound(&socket, Timeout::Send, deadline)?;
    let address = SocketAddrUnix::new(path)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

fn unconnected() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Sends the request; gives how the answer begins, up to its status.
fn ask(stream: &mut UnixStream, deadline: Boottime) -> io::Result<[u8; 12]> {
    let request = format!(
        "POST {COMPLETE} HTTP/1.1\r\nhost: localhost\r\n{LOCAL_HEADER}: 1\r\ncontent-length: 0\r\n\r\n"
    );
    bound(stream, Timeout::Send, deadline)?;
    stream.write_all(request.as_bytes())?;
    bound(stream, Timeout::Recv, deadline)?;
    let mut head = *b"HTTP/1.1 200";
    stream.read_exact(&mut head)?;
    Ok(head)
}

/// Gives what is left until `deadline` to each call that goes this way.
fn bound(socket: &UnixStream, way: Timeout, deadline: Boottime) -> io::Result<()> {
    let left = Duration::from_millis(deadline.millis_since(clock::boottime()));
    // A limit of no length would be none at all.
    let left = left.max(Duration::from_millis(1));
    Ok(sockopt::set_socket_timeout(socket, way, Some(left))?)
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(error) = self.complete_now(limits::DROP_WAIT)
        {
            // It may have heard all the same: it waits longer for the receipt than we do here.
            tracing::warn!(%error, "the agent did not confirm the end of the task, which ends with its process at the latest");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const BRIEF: Duration = Duration::from_millis(200);

    /// What a guard says of an agent that answers `answer` to the whole request.
    fn answered(answer: &'static [u8]) -> Result<(), Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    read.extend(byte);
                }
                stream.write_all(answer).unwrap();
                // Open until the other side is done with it.
                let _ = stream.read(&mut [0]);
            });
            let guard = Agent::at(&path).task_guard();
            let said = guard.complete_now(BRIEF);
            guard.disarm();
            said
        })
    }

    #[test]
    fn only_a_success_is_one() {
        answered(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        for refusal in [
            &b"HTTP/1.1 503 Service Unavailable\r\n"[..],
            b"HTTP/1.1 429 Too Many",
        ] {
            let error = answered(refusal).unwrap_err();
            assert!(matches!(error, Error::Answer { .. }), "{error}");
        }
        let silent = answered(b"H").unwrap_err();
        assert!(matches!(silent, Error::Late { .. }), "{silent}");
    }

    #[test]
    fn a_queue_that_is_full_holds_up_nobody_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = SocketAddrUnix::new(&path).unwrap();
        let mut waiting = Vec::new();
        loop {
            let socket = unconnected().unwrap();
            rustix::io::ioctl_fionbio(&socket, true).unwrap();
            match rustix::net::connect(&socket, &address) {
                Ok(()) => waiting.push(socket),
                Err(why) => break assert_eq!(why, rustix::io::Errno::AGAIN),
            }
        }
        let guard = Agent::at(&path).task_guard();
        let error = guard.complete_now(BRIEF).unwrap_err();
        assert!(matches!(error, Error::Late { .. }), "{error}");
        guard.disarm();
    }
}
