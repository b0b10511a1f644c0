//! Why a caller gets no task.

use ephor_proto::id::TaskId;
use ephor_proto::problem::Code;
use ephor_proto::state::task::EndCause;

use crate::attest::{AttestError, StartCheckError};
use crate::journal::JournalError;

/// A refusal by the task table.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The caller, or the process that it names, could not be attested.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// It belongs to a task that is over.
    #[error("task {task} has ended ({}); start the process again", cause.as_str())]
    Ended {
        /// Which.
        task: TaskId,
        /// Why.
        cause: EndCause,
    },
    /// There is no such open task of the caller's uid.
    #[error("no open task {task} of this user; `ephor task ls` lists them")]
    NotFound {
        /// Which.
        task: TaskId,
    },
    /// Too many tasks.
    #[error("{0}; let tasks end first")]
    Full(&'static str),
    /// The ancestor was not attested before the task was asked for.
    #[error("the process that bind names was not attested")]
    NoAncestor,
    /// It could not be made durable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It could not be watched.
    #[error("watching the task's end: {0}; see RLIMIT_NOFILE of the agent")]
    Watch(std::io::Error),
    /// The system has no randomness.
    #[error("reading the system random generator failed")]
    Random,
    /// The host's boot id could not be read.
    #[error(transparent)]
    Boot(#[from] StartCheckError),
}

impl TaskError {
    /// The code of the refusal that the caller gets.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Attest(error) => error.code(),
            Self::Ended { .. } => Code::TaskEnded,
            Self::NotFound { .. } => Code::NotFound,
            Self::NoAncestor => Code::AttestationFailed,
            Self::Full(_) | Self::Journal(_) | Self::Watch(_) | Self::Random | Self::Boot(_) => {
                Code::Busy
            }
        }
    }
}
