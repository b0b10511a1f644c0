//! The successor's side: everything is received, read and found good before it says that it is
//! ready, and nothing is served, written or told to the broker before it is told to begin.

use std::collections::HashSet;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ephor_crypto::tls::TrustStore;
use ephor_proto::id::CredentialId;

use super::frame::{FrameError, receive, send};
use super::giver::patient;
use super::held;
use super::{Ask, Connection, HandoverError, Memory, Offer, Ready, Revoked, VERSION, Yours, path};
use crate::crash_point;
use crate::limits;
use crate::surface::pause::Parked;

/// What is offered, and not ours yet.
pub struct Taking {
    stream: UnixStream,
    taken: Taken,
}

/// What is ours.
pub struct Taken {
    /// The lock of the state directory.
    pub lock: File,
    /// The socket of the callers.
    pub callers: std::os::unix::net::UnixListener,
    /// That of the metrics.
    pub metrics: Option<std::net::TcpListener>,
    /// See `Giver`.
    pub own_socket: bool,
    /// What it remembers.
    pub memory: Memory,
    /// Idle connections.
    pub connections: Vec<Parked>,
}

/// Asks the agent of this state directory for everything; none when none runs that could give it.
/// `trust` is what this agent trusts, to go with certificates.
///
/// # Errors
/// When there is one and it does not give.
pub fn ask(state_dir: &Path, trust: &Arc<TrustStore>) -> Result<Option<Taking>, HandoverError> {
    let Ok(stream) = UnixStream::connect(path(state_dir)) else {
        return Ok(None);
    };
    patient(&stream)?;
    let ask = Ask { handover: VERSION };
    send(&stream, &ask, &[], &[])?;
    let message = receive(&stream)?;
    let offer: Offer = message.head()?;
    if offer.handover != VERSION {
        return Err(HandoverError::Version(offer.handover));
    }
    let mut descriptors = message.descriptors.into_iter();
    let mut next = || -> Result<OwnedFd, FrameError> {
        descriptors
            .next()
            .ok_or(FrameError::Form("an offer without its sockets"))
    };
    let (lock, callers) = (File::from(next()?), next()?.into());
    let metrics = offer.has_metrics.then(|| next().map(Into::into));
    let metrics = metrics.transpose()?;
    if offer.held > limits::CREDENTIALS {
        return Err(FrameError::Form("more than an agent holds").into());
    }
    let mut all = Vec::with_capacity(offer.held);
    for _ in 0..offer.held {
        all.push(held::told(&receive(&stream)?, trust)?);
    }
    crash_point!("handover.received");
    let taken = Taken {
        lock,
        callers,
        metrics,
        own_socket: offer.own_socket,
        memory: Memory {
            held: all,
            ..Memory::default()
        },
        connections: Vec::new(),
    };
    Ok(Some(Taking { stream, taken }))
}

impl Taking {
    /// Where the socket of the callers is.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        let address = self.taken.callers.local_addr().ok()?;
        address.as_pathname().map(Path::to_path_buf)
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.taken.metrics.as_ref()?.local_addr().ok()
    }

    /// Says that this agent can begin, and waits until it must.
    ///
    /// # Errors
    /// When the other agent did not let go: it goes on, or died, and this one must not begin.
    pub fn begin(self) -> Result<Taken, HandoverError> {
        let Self { stream, mut taken } = self;
        send(&stream, &Ready {}, &[], &[])?;
        let wait = |long| {
            let set = stream.set_read_timeout(Some(long));
            set.map_err(|error| HandoverError::Io("waiting to begin", error))
        };
        wait(limits::HANDOVER_CLOSE)?;
        let yours: Yours = receive(&stream)?.head()?;
        wait(limits::HANDOVER_SILENCE)?;
        // It let go of everything: from here on nothing keeps this agent from beginning.
        taken.memory.epochs = yours.epochs;
        if let Err(error) = taken.rest(&stream, &yours) {
            tracing::warn!(%error, "not everything was handed over");
        }
        taken.memory.drop_revoked();
        crash_point!("handover.taken");
        Ok(taken)
    }
}

impl Taken {
    fn rest(&mut self, stream: &UnixStream, yours: &Yours) -> Result<(), FrameError> {
        for _ in 0..yours.revoked {
            let of: Revoked = receive(stream)?.head()?;
            self.memory.revoked.push((of.task, of.credentials));
        }
        for _ in 0..yours.connections {
            self.connections.push(connection(stream)?);
        }
        Ok(())
    }
}

impl Memory {
    /// What was revoked after it was told, or while it was.
    fn drop_revoked(&mut self) {
        let revoked: HashSet<CredentialId> = (self.revoked.iter())
            .flat_map(|(_, ids)| ids)
            .copied()
            .collect();
        self.held.retain(|told| {
            let mut ids = told.held.credentials.iter().map(|one| one.id);
            !ids.any(|id| revoked.contains(&id))
        });
    }
}

fn connection(stream: &UnixStream) -> Result<Parked, FrameError> {
    let mut message = receive(stream)?;
    let Connection {} = message.head()?;
    let one = message.descriptors.pop();
    let one = one.ok_or(FrameError::Form("a connection without its socket"))?;
    Ok(Parked {
        stream: one.into(),
        ahead: bytes::Bytes::copy_from_slice(&message.body),
    })
}
