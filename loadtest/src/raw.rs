//! A client that costs next to nothing, so that the cores are left to the server under test:
//! requests are bytes made beforehand, and of an answer only status and length are read.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};

/// Room for an answer; a larger one is an error.
const ROOM: usize = 64 * 1024;

/// One keep-alive HTTP/1.1 connection over a Unix socket, with at most one request on its way.
pub struct Raw {
    stream: UnixStream,
    buffer: Vec<u8>,
    filled: usize,
    /// Length of the answer that is arriving, once its head is there.
    whole: Option<usize>,
}

impl Raw {
    /// Connects.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; ROOM],
            filled: 0,
            whole: None,
        })
    }

    /// Sends a request; it is far smaller than the socket's buffer.
    pub fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        (self.filled, self.whole) = (0, None);
        Ok(self.stream.write_all(request)?)
    }

    /// Reads once; whether the answer is there as a whole. Anything but 200 is an error that quotes it.
    pub fn receive(&mut self) -> anyhow::Result<bool> {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        match self.stream.read(room) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(read) => self.filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let arrived = self.buffer.get(..self.filled).unwrap_or_default();
        if self.whole.is_none() {
            self.whole = length(arrived)?;
        }
        Ok(self.whole.is_some_and(|whole| self.filled >= whole))
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Bytes of head and body together, once the head is there.
fn length(arrived: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(head) = arrived.windows(4).position(|end| end == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(arrived);
    if !arrived.starts_with(b"HTTP/1.1 200 ") {
        bail!("{text}");
    }
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse::<usize>().ok())
        .context("an answer without content-length")?;
    Ok(Some(head + 4 + body))
}
