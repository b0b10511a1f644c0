//! What can go wrong, by whose doing.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ephor_crypto::tls::TlsError;
use ephor_crypto::x509::X509Error;
use ephor_proto::problem::{Code, Problem};
use ephor_proto::spiffe::BadSpiffeId;
use thiserror::Error as ThisError;

/// Why a call did not give what was asked for.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The agent refused; [`Error::code`] is the stable word to act on.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The agent cannot be reached.
    #[error("unreachable: the agent at {path}: {source}; is it running?")]
    Agent {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else listens where the agent should.
    #[error(
        "denied: {path} is served by uid {uid}, who is neither root, nor this user, nor the owner of its directory; nothing was sent"
    )]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Who serves it.
        uid: u32,
    },
    /// The agent did not answer in time.
    #[error("unreachable: the agent at {path} did not answer within {} s", after.as_secs())]
    Late {
        /// Its socket.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// An answer is not what this version of the interface says.
    #[error("invalid: {what} answered something else: {why}")]
    Answer {
        /// Who answered.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate, key or bundle from the agent cannot be used.
    #[error("invalid: what the agent gave cannot be used: {0}")]
    Certificate(#[from] X509Error),
    /// No TLS configuration could be made.
    #[error("invalid: {0}")]
    Tls(#[from] TlsError),
    /// A peer was named by something that is no SPIFFE ID.
    #[error("invalid: {0}")]
    SpiffeId(#[from] BadSpiffeId),
    /// A connection could not be taken, made or kept.
    #[error("unreachable: {0}")]
    Io(#[from] io::Error),
    /// The handshake showed that the peer, or we, may not take part.
    #[error("denied: the TLS handshake failed: {0}")]
    Handshake(io::Error),
    /// A certificate stopped holding while the handshake went on.
    #[error("denied: {0}")]
    Closed(crate::Closed),
}

impl Error {
    /// The agent's refusal code, if it is a refusal.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.problem().map(|problem| problem.code)
    }

    /// After how long trying again may help, if the agent said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.problem()?.retry_after?;
        Some(Duration::from_secs(u64::from(seconds)))
    }

    /// The agent's whole refusal (RFC 9457).
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Agent { .. }
            | Self::Stranger { .. }
            | Self::Late { .. }
            | Self::Answer { .. }
            | Self::Certificate(_)
            | Self::Tls(_)
            | Self::SpiffeId(_)
            | Self::Io(_)
            | Self::Handshake(_)
            | Self::Closed(_) => None,
        }
    }
}
