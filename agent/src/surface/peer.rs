//! A connection of the Unix socket that knows who speaks on it, message by message.
//!
//! `SO_PEERCRED` says who connected. A connected descriptor can be handed to somebody else, so
//! every message carries its sender's credentials (`SO_PASSCRED`, set by the kernel) and must
//! come from the process that connected. What a willing proxy passes on cannot be noticed: that
//! is a stated limit. A connection that was once refused stays so, in both directions.

#[cfg(test)]
mod tests;

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::io::ioctl_fionread;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, UCred, recvmsg,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};

use crate::attest::{AttestError, Mode, Peer};

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpeakerError {
    /// Another process than the one that connected wrote to it.
    #[error(
        "speaker_changed: process {connected} connected but process {speaking} spoke; open a connection of your own"
    )]
    Changed {
        /// Who connected.
        connected: u32,
        /// Who spoke; 0 when it is not visible from here.
        speaking: u32,
    },
    /// A message came without credentials.
    #[error("speaker_changed: a message came without its sender's credentials")]
    Unknown,
    /// More than one descriptor was sent.
    #[error(
        "too_many_descriptors: a connection may send one descriptor, a pidfd for POST /v1/tasks"
    )]
    TooManyDescriptors,
}

impl SpeakerError {
    /// The word for logs and audit.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Changed { .. } | Self::Unknown => "speaker_changed",
            Self::TooManyDescriptors => "too_many_descriptors",
        }
    }
}

/// Makes every connection of a listener carry credentials from its first byte on. Call it
/// right after binding; what connects before would be refused.
///
/// # Errors
/// When the socket option cannot be set.
pub fn prepare_listener(listener: &UnixListener) -> io::Result<()> {
    Ok(set_socket_passcred(listener.as_fd(), true)?)
}

/// An accepted connection. Reading gives only what the connected process wrote itself.
#[derive(Debug)]
pub struct PeerStream {
    stream: UnixStream,
    speaker: Speaker,
    /// Read before this was made, by who checked its sender.
    ahead: Bytes,
}

/// What request handlers know of the connection they serve. Clones share it.
#[derive(Debug, Clone)]
pub struct Speaker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    peer: Peer,
    refused: OnceLock<SpeakerError>,
    /// Guards the one descriptor that was sent and not yet taken.
    descriptor: Mutex<Option<OwnedFd>>,
    /// The connection goes on elsewhere: its end here is not its end.
    goes_on: AtomicBool,
}

impl Speaker {
    /// Who connected, and the only one who spoke.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Why the connection was refused, if it was. Look before a secret is written.
    #[must_use]
    pub fn refused(&self) -> Option<SpeakerError> {
        self.0.refused.get().copied()
    }

    /// Takes the descriptor that was sent beside the request.
    #[must_use]
    pub fn take_descriptor(&self) -> Option<OwnedFd> {
        self.0
            .descriptor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// The connection is given on: what ends here does not shut it down.
    pub fn goes_on(&self) {
        self.0.goes_on.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        self.refused().map_or(Ok(()), |error| Err(denied(error)))
    }

    fn refuse(&self, error: SpeakerError) -> io::Error {
        let error = *self.0.refused.get_or_init(|| error);
        tracing::warn!(
            pid = self.peer().pid(),
            uid = self.peer().uid(),
            code = error.code(),
            "connection refused"
        );
        denied(error)
    }

    /// Checks the sender and keeps a descriptor of one message.
    fn accept(
        &self,
        message: &mut RecvAncillaryBuffer<'_>,
        truncated: bool,
    ) -> Result<(), SpeakerError> {
        let (mut sender, mut sent) = (None, Vec::new());
        for part in message.drain() {
            match part {
                RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials),
                RecvAncillaryMessage::ScmRights(descriptors) => sent.extend(descriptors),
                // Foreign enum, open-ended: nothing else was asked for.
                _ => {}
            }
        }
        self.check_sender(sender)?;
        if truncated || sent.len() > 1 {
            return Err(SpeakerError::TooManyDescriptors);
        }
        let Some(descriptor) = sent.pop() else {
            return Ok(());
        };
        let mut slot = self
            .0
            .descriptor
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err(SpeakerError::TooManyDescriptors);
        }
        *slot = Some(descriptor);
        Ok(())
    }

    fn check_sender(&self, sender: Option<UCred>) -> Result<(), SpeakerError> {
        let (peer, sender) = (self.peer(), sender.ok_or(SpeakerError::Unknown)?);
        // A sender in a PID namespace that is not visible from here reads as pid 0.
        let speaking = u32::try_from(sender.pid.as_raw_nonzero().get()).unwrap_or(0);
        let same = speaking == peer.pid()
            && sender.uid.as_raw() == peer.uid()
            && sender.gid.as_raw() == peer.gid();
        if same {
            Ok(())
        } else {
            Err(SpeakerError::Changed {
                connected: peer.pid(),
                speaking,
            })
        }
    }
}

impl PeerStream {
    /// Takes an accepted connection and holds its peer.
    ///
    /// # Errors
    /// When the peer has ended or cannot be held.
    pub fn new(stream: UnixStream, ahead: Bytes, mode: Mode) -> Result<Self, AttestError> {
        // Linux hands the option down from the listener; this is for a listener that was not prepared.
        set_socket_passcred(stream.as_fd(), true).map_err(|error| AttestError::Proc {
            what: "SO_PASSCRED",
            pid: 0,
            source: error.into(),
        })?;
        let peer = Peer::from_stream(&stream, mode)?;
        let shared = Shared {
            peer,
            refused: OnceLock::new(),
            descriptor: Mutex::new(None),
            goes_on: AtomicBool::new(false),
        };
        Ok(Self {
            stream,
            speaker: Speaker(Arc::new(shared)),
            ahead,
        })
    }

    /// Gives the connection back.
    ///
    /// # Errors
    /// When the runtime does not let go of it.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixStream> {
        self.stream.into_std()
    }

    /// For request handlers.
    #[must_use]
    pub fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = recvmsg(
            self.socket(),
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            flags,
        )?;
        // The end of the stream has no sender.
        if message.bytes > 0 {
            let truncated = message.flags.contains(ReturnFlags::CTRUNC);
            self.speaker
                .accept(&mut control, truncated)
                .map_err(|error| self.speaker.refuse(error))?;
        }
        Ok(message.bytes)
    }

    /// Waits for the kernel's word before it reads again, if nothing is left to read. That less came than
    /// there was room for does not say so: a read ends where another's message begins.
    fn rest(&self) {
        let nothing_left = || match ioctl_fionread(self.socket()) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(_) | Err(_) => Ok(()),
        };
        let _ = self.stream.try_io(Interest::READABLE, nothing_left);
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.speaker.check()?;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.ahead.is_empty() {
            let part = this
                .ahead
                .split_to(this.ahead.len().min(buffer.remaining()));
            buffer.put_slice(&part);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(this.stream.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match this
                .stream
                .try_io(Interest::READABLE, || this.receive(room))
            {
                Ok(read) => {
                    let had_room = read < room.len();
                    buffer.advance(read);
                    if had_room {
                        this.rest();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.speaker.check()?;
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, data));
        crate::crash_point!("deliver.written");
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.speaker.check()?;
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, data));
        crate::crash_point!("deliver.written");
        Poll::Ready(written)
    }

    /// So that hyper hands on a secret's own buffer instead of copying it into one that is not wiped.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.speaker.0.goes_on.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

fn denied(error: SpeakerError) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error)
}
