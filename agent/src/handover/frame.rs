//! Messages between two agents: a head in JSON, secrets behind it as they are, descriptors beside.
//!
//! Secrets are kept out of the JSON, because a parser copies what it unescapes. Every buffer is
//! bounded, made in its final size and overwritten when it is dropped.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::limits::MAX_HANDOVER_FRAME;

/// Most descriptors beside one message.
pub const MOST_DESCRIPTORS: usize = 3;

/// Length of the head and of what is behind it, 32 bits each, little endian.
const LENGTHS: usize = 8;

/// Why a message did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Broken off, or silent for too long.
    #[error("it broke off: {0}")]
    Io(#[from] io::Error),
    /// Not what was to come.
    #[error("it said what was not understood: {0}")]
    Form(&'static str),
}

/// A received message.
pub struct Message {
    head: Zeroizing<Vec<u8>>,
    /// What stood behind the head.
    pub body: Zeroizing<Vec<u8>>,
    /// What came beside it.
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The head.
    ///
    /// # Errors
    /// When it is another message.
    pub fn head<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.head).map_err(|_| FrameError::Form("another message"))
    }
}

/// Sends one message.
///
/// # Errors
/// When it is too long or the other side does not take it in time.
pub fn send(
    mut stream: &UnixStream,
    head: &impl Serialize,
    body: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let head = serde_json::to_vec(head).map_err(io::Error::from)?;
    let behind: usize = body.iter().map(|part| part.len()).sum();
    let too_long = || FrameError::Form("a message longer than the limit");
    if head.len() + behind > MAX_HANDOVER_FRAME {
        return Err(too_long());
    }
    let length = |n: usize| u32::try_from(n).map_err(|_| too_long());
    let mut frame = Zeroizing::new(Vec::with_capacity(LENGTHS + head.len() + behind));
    frame.extend(length(head.len())?.to_le_bytes());
    frame.extend(length(behind)?.to_le_bytes());
    frame.extend(&head);
    for part in body {
        frame.extend_from_slice(part);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(FrameError::Form("too many descriptors"));
    }
    // A successor that died must not end us by SIGPIPE.
    let sent = sendmsg(
        stream.as_fd(),
        &[IoSlice::new(&frame)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    let sent = sent.map_err(io::Error::from)?;
    stream.write_all(frame.get(sent..).unwrap_or_default())?;
    Ok(())
}

/// Receives one message.
///
/// # Errors
/// When it is too long, cut off or does not come in time.
pub fn receive(mut stream: &UnixStream) -> Result<Message, FrameError> {
    let mut lengths = [0_u8; LENGTHS];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut lengths)],
        &mut control,
        flags,
    );
    if received.map_err(io::Error::from)?.bytes != LENGTHS {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = part {
            descriptors.extend(sent);
        }
    }
    let number = |four: Option<&[u8; 4]>| {
        four.and_then(|four| usize::try_from(u32::from_le_bytes(*four)).ok())
            .unwrap_or(usize::MAX)
    };
    let (head, behind) = (number(lengths.first_chunk()), number(lengths.last_chunk()));
    if head.saturating_add(behind) > MAX_HANDOVER_FRAME {
        return Err(FrameError::Form("a message longer than the limit"));
    }
    let mut read = |length| {
        let mut bytes = Zeroizing::new(vec![0; length]);
        stream.read_exact(&mut bytes).map(|()| bytes)
    };
    Ok(Message {
        head: read(head)?,
        body: read(behind)?,
        descriptors,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn head_secrets_and_descriptors_arrive_and_what_is_wrong_is_refused() {
        let (one, two) = UnixStream::pair().unwrap();
        send(&one, &("head", 7), &[b"one", b"", b"two"], &[one.as_fd()]).unwrap();
        let message = receive(&two).unwrap();
        assert_eq!(
            message.head::<(String, u8)>().unwrap(),
            ("head".to_owned(), 7)
        );
        assert_eq!(*message.body, b"onetwo");
        assert_eq!(message.descriptors.len(), 1);
        assert!(message.head::<u8>().is_err());
        let long = vec![0; MAX_HANDOVER_FRAME];
        assert!(send(&one, &"head", &[&long], &[]).is_err());
        (&one).write_all(&[0xFF; LENGTHS]).unwrap();
        assert!(matches!(receive(&two), Err(FrameError::Form(_))));
        (&one).write_all(&[1, 0, 0]).unwrap();
        // What came beside the message is the other end, too.
        drop((one, message));
        assert!(matches!(receive(&two), Err(FrameError::Io(_))));
    }
}
