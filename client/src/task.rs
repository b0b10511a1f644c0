//! A task that ends with its guard.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use ephor_proto::http::agent::{Completed, LOCAL_HEADER};

use crate::agent::{Agent, COMPLETE};
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

    /// Without a runtime, which may be gone by now.
    fn complete_now(&self) -> Result<(), Error> {
        let away = |error| self.agent.away(error);
        let mut stream = UnixStream::connect(self.agent.path()).map_err(away)?;
        self.agent.check_server(&stream)?;
        let patience = Some(limits::DROP_WAIT);
        stream.set_write_timeout(patience).map_err(away)?;
        stream.set_read_timeout(patience).map_err(away)?;
        let request = format!(
            "POST {COMPLETE} HTTP/1.1\r\nhost: localhost\r\n{LOCAL_HEADER}: 1\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).map_err(away)?;
        // The first byte of the answer says that the end is on its way and cannot be lost.
        stream.read_exact(&mut [0]).map_err(away)
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(error) = self.complete_now()
        {
            tracing::warn!(%error, "the task was not completed; it ends with its process");
        }
    }
}
