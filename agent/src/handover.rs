//! A restart without a gap: the running agent gives its sockets, its memory and its open
//! connections to a successor that somebody else started (the agent itself may start no program).
//!
//! The successor connects to `handover.sock` in the state directory. Until it said that it is
//! ready, nothing is given away for good: whatever fails before, the running agent goes on as if
//! nothing had happened. From then on the running agent never serves or writes again. Ends of
//! tasks are never handed over: the journal has them, and the successor looks at every task itself,
//! as after a crash. Secrets go over this one socket only, and to nobody who could not read this
//! agent's memory anyway; see [`check`].

pub mod check;
pub mod frame;
mod giver;
mod held;
mod install;
mod taker;

use std::path::{Path, PathBuf};

use ephor_proto::id::{CredentialId, TaskId};
use serde::{Deserialize, Serialize};

pub use check::Stranger;
pub use frame::FrameError;
pub use giver::{Given, Giver};
pub use held::Told;
pub use install::install;
pub use taker::{Taken, Taking, ask};

/// Version of what is said here. Another one is refused: the old agent goes on, and a plain restart
/// does instead.
const VERSION: u32 = 2;

/// The socket of a state directory.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("handover.sock")
}

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other side broke off or said something else.
    #[error("the other agent: {0}")]
    Frame(#[from] FrameError),
    /// Who asked may not have it.
    #[error("{0}")]
    Stranger(#[from] Stranger),
    /// It speaks another version.
    #[error(
        "the other agent speaks version {0} of the hand-over, this one {VERSION}: stop it, then start this one"
    )]
    Version(u32),
    /// The system said no.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// The successor took longer than callers may wait.
    #[error("the successor did not take it within {} s", crate::limits::HANDOVER_OFFER.as_secs())]
    Slow,
    /// The journal's queue was full.
    #[error("the journal is too busy to be closed; try again")]
    Journal,
}

/// What a successor says first.
#[derive(Serialize, Deserialize)]
struct Ask {
    handover: u32,
}

/// What follows: the lock of the state directory, the socket of the callers, perhaps that of the
/// metrics, and so many held answers.
#[derive(Serialize, Deserialize)]
struct Offer {
    handover: u32,
    own_socket: bool,
    has_metrics: bool,
    held: usize,
}

/// The successor has understood all of it and could start.
#[derive(Serialize, Deserialize)]
struct Ready {}

/// The point of no return; so many [`Revoked`] and then so many [`Connection`]s follow.
#[derive(Serialize, Deserialize)]
struct Yours {
    /// New epochs of the broker that the callers' tasks went through.
    epochs: u32,
    revoked: usize,
    connections: usize,
}

/// What the broker revoked, one by one, of one open task; some of it perhaps after it was told.
#[derive(Serialize, Deserialize)]
struct Revoked {
    task: TaskId,
    credentials: Vec<CredentialId>,
}

/// What an agent remembers of the one before, beside the journal.
#[derive(Default)]
pub struct Memory {
    /// What is held; nothing of it was revoked.
    pub held: Vec<Told>,
    /// What the broker revoked, one by one, of open tasks.
    pub revoked: Vec<(TaskId, Vec<CredentialId>)>,
    /// New epochs of the broker that the callers' tasks went through.
    pub epochs: u32,
}

/// One idle connection, with what was read ahead from it.
#[derive(Serialize, Deserialize)]
struct Connection {}
