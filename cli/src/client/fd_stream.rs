//! A Unix stream whose first write carries a descriptor by `SCM_RIGHTS`.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// See the module.
pub struct FdStream {
    stream: UnixStream,
    fd: Option<OwnedFd>,
}

impl FdStream {
    /// The stream; `fd` goes with its first byte.
    pub fn new(stream: UnixStream, fd: Option<OwnedFd>) -> Self {
        Self { stream, fd }
    }

    fn send_with_fd(&self, fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
        self.stream.try_io(Interest::WRITABLE, || {
            let fds = [fd.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for one descriptor"));
            }
            Ok(sendmsg(
                &self.stream,
                &[IoSlice::new(bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?)
        })
    }
}

impl AsyncRead for FdStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.fd.is_none() {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        loop {
            if let Err(why) = ready!(self.stream.poll_write_ready(cx)) {
                return Poll::Ready(Err(why));
            }
            let sent = self
                .fd
                .as_ref()
                .map_or(Ok(0), |fd| self.send_with_fd(fd, bytes));
            match sent {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.fd = None;
                    return Poll::Ready(done);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
