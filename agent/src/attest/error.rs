//! Why a caller could not be attested, grouped by what the caller can do about it.

use ephor_proto::problem::Code;
use ephor_proto::task_rule::BindError;

/// A refusal of attestation. Holds nothing secret.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It ended; nothing may be delivered to whoever holds its descriptor now.
    #[error("process {pid} has ended; a request is only answered to a living process")]
    Gone {
        /// Its pid.
        pid: u32,
    },
    /// It lives in a PID namespace that this one cannot see.
    #[error(
        "the caller's process is not visible from the agent's PID namespace; run the agent in the host's"
    )]
    Invisible,
    /// A setuid or setgid program speaks for somebody else.
    #[error(
        "process {pid} has real {what} {real} and effective {what} {effective}; setuid callers are refused"
    )]
    SetUid {
        /// Its pid.
        pid: u32,
        /// `uid` or `gid`.
        what: &'static str,
        /// Real id.
        real: u32,
        /// Effective id.
        effective: u32,
    },
    /// It is no longer what was attested; attest it anew.
    #[error("process {pid} changed its {what} after it was attested; ask again")]
    Changed {
        /// Its pid.
        pid: u32,
        /// What differs.
        what: &'static str,
    },
    /// `bind` names a process that may not be bound to.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The descriptor that was sent is no pidfd of a process that the speaker may name.
    #[error("the descriptor sent for the task {0}")]
    Descriptor(&'static str),
    /// The executable may not be hashed.
    #[error("hashing the executable of process {pid}: {why}")]
    Hash {
        /// Its pid.
        pid: u32,
        /// Why not, and what to do.
        why: String,
    },
    /// The kernel did not answer as it should.
    #[error("reading {what} of process {pid}: {source}")]
    Proc {
        /// Which file or call.
        what: &'static str,
        /// Its pid.
        pid: u32,
        /// The error.
        source: std::io::Error,
    },
}

impl AttestError {
    /// The code of the refusal that the caller gets.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Gone { .. } | Self::Changed { .. } => Code::CallerGone,
            Self::Bind(_) => Code::BindRefused,
            Self::Descriptor(_) => Code::InvalidRequest,
            Self::Invisible | Self::SetUid { .. } | Self::Hash { .. } | Self::Proc { .. } => {
                Code::AttestationFailed
            }
        }
    }
}
