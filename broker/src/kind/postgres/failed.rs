//! What became of a call to a target that did not do what was asked.

use tokio_postgres::error::{DbError, SqlState};

/// See the module. Every text names the target and never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The server says no, and will again until somebody changes something there.
    #[error("target {target} refuses: {why}")]
    Refused {
        /// Name of the target.
        target: String,
        /// What the server said.
        why: String,
    },
    /// The credential was revoked, or another epoch has begun: nothing was done, nor ever will be.
    #[error("target {target}: fenced: {why}")]
    Fenced {
        /// Name of the target.
        target: String,
        /// What is fenced.
        why: String,
    },
    /// The deadline of the intent was over by the target's clock; nothing was made.
    #[error("target {target}: too late: {why}")]
    TooLate {
        /// Name of the target.
        target: String,
        /// Deadline and time.
        why: String,
    },
    /// Nobody answered there; nothing was done.
    #[error("target {target} cannot be reached: {why}")]
    Unreachable {
        /// Name of the target.
        target: String,
        /// What was tried, on which host.
        why: String,
    },
    /// It does not take our own login.
    #[error(
        "target {target} does not let the broker in: {why}; put the password into its credential file, it is read at every connect"
    )]
    Unauthorized {
        /// Name of the target.
        target: String,
        /// What the server said.
        why: String,
    },
    /// It is in recovery, or follows another server.
    #[error("target {target}: no host of it takes writes: {why}")]
    NotPrimary {
        /// Name of the target.
        target: String,
        /// Which host.
        why: String,
    },
    /// Something is not there that `ephor target init` makes, or a right.
    #[error("target {target}: missing: {what}; {mend}")]
    Missing {
        /// Name of the target.
        target: String,
        /// What.
        what: String,
        /// What to do.
        mend: String,
    },
    /// Others are in the way just now; nothing was done.
    #[error("target {target} is busy: {why}")]
    Busy {
        /// Name of the target.
        target: String,
        /// Who or what.
        why: String,
    },
    /// It was sent and not answered: it may have been done, or may be done still.
    #[error("target {target} did not answer: {why}")]
    Unknown {
        /// Name of the target.
        target: String,
        /// What was asked.
        why: String,
    },
}

impl Failed {
    /// Whether what was asked may have been done all the same.
    #[must_use]
    pub const fn may_be_done(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// The word of it, for metrics and events.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Fenced { .. } => "fenced",
            Self::TooLate { .. } => "too_late",
            Self::Unreachable { .. } => "unreachable",
            Self::Unauthorized { .. } => "unauthorized",
            Self::NotPrimary { .. } => "not_primary",
            Self::Missing { .. } => "missing",
            Self::Busy { .. } => "busy",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// An error of the library: what the server said, or that it said nothing.
pub(super) enum Said {
    /// The epoch is not the one at the target, which is earlier or does not know us.
    OtherEpoch,
    /// The server ended the connection: told to, or stopped.
    Ended(Failed),
    /// Something else.
    Failed(Failed),
}

/// What a failed call means. `asked` says what it was, in words.
pub(super) fn said(target: &str, asked: &str, error: &tokio_postgres::Error) -> Said {
    let target = target.to_owned();
    let Some(db) = error.as_db_error() else {
        let why = format!("{asked}: {}", chain(error));
        return Said::Failed(Failed::Unknown { target, why });
    };
    if db.code().code() == "EPH02" {
        return Said::OtherEpoch;
    }
    let failed = answer(target, asked, db);
    match db.code().code() {
        "57P01" | "57P02" | "57P05" | "25P03" => Said::Ended(failed),
        _ => Said::Failed(failed),
    }
}

fn answer(target: String, asked: &str, db: &DbError) -> Failed {
    let why = text(db);
    let mend = "run `ephor target check` to see how to mend it".to_owned();
    match db.code().code() {
        "EPH01" => Failed::Fenced { target, why },
        "EPH03" => Failed::TooLate { target, why },
        code if lets_nobody_in(code) => Failed::Unauthorized { target, why },
        // Told to end, by an administrator or a stop of the server, while it worked.
        "57P01" | "57P02" | "57P05" | "25P03" => Failed::Unknown {
            target,
            why: format!("{asked}: {why}"),
        },
        "57P03" | "53300" => Failed::Unreachable { target, why },
        "25006" => Failed::NotPrimary { target, why },
        "42501" | "3D000" | "3F000" | "42883" | "42P01" => Failed::Missing {
            target,
            what: why,
            mend,
        },
        // Waited too long for a lock, a deadlock, two at the same row (XX000 says "tuple
        // concurrently updated"), a statement that took too long; all locks of the server are taken.
        "55P03" | "40P01" | "40001" | "57014" | "53200" => Failed::Busy { target, why },
        "XX000" if why.contains("concurrently") => Failed::Busy { target, why },
        _ => Failed::Refused { target, why },
    }
}

fn lets_nobody_in(code: &str) -> bool {
    [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
    ]
    .iter()
    .any(|state| state.code() == code)
}

/// Message, detail and hint. They may quote names and never a password: none is ever sent.
fn text(db: &DbError) -> String {
    let mut text = db.message().to_owned();
    for more in [db.detail(), db.hint()].into_iter().flatten() {
        text.push_str(": ");
        text.push_str(more.trim());
    }
    text.replace('\n', "; ")
}

/// An error with its causes; the library's own text names only the kind.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Why no connection came about.
pub(super) fn not_connected(target: &str, host: &str, error: &tokio_postgres::Error) -> Failed {
    let target = target.to_owned();
    match error.as_db_error() {
        Some(db) => match answer(target.clone(), "connecting", db) {
            // Nothing was asked yet.
            Failed::Unknown { why, .. } | Failed::Busy { why, .. } => Failed::Unreachable {
                target,
                why: format!("{host}: {why}"),
            },
            other => other,
        },
        None => Failed::Unreachable {
            target,
            why: format!("{host}: {}", chain(error)),
        },
    }
}
