//! What became of a call to a target that did not do what was asked.

use std::path::Path;

use ephor_proto::postgres::Address;
use rustix::io::Errno;
use tokio_postgres::error::{DbError, SqlState};

use super::access::{Access, Password};

/// See the module. Every text names the target and never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The server says no.
    #[error("target {target} refuses: {why}")]
    Refused {
        /// Name of the target.
        target: String,
        /// What the server said.
        why: String,
    },
    /// What was asked for may not be had there, and may not until somebody changes something; nothing was done.
    #[error("target {target} refuses: {why}")]
    NotAllowed {
        /// Name of the target.
        target: String,
        /// What the server said, with what mends it.
        why: String,
    },
    /// A role that is lent: another task has it, or it is just being taken back from one; nothing was done.
    #[error("target {target}: {why}")]
    Taken {
        /// Name of the target.
        target: String,
        /// Who has it.
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
    #[error("target {target} does not let the broker in: {why}; {mend}")]
    Unauthorized {
        /// Name of the target.
        target: String,
        /// What the server said.
        why: String,
        /// What to do.
        mend: String,
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
            Self::NotAllowed { .. } => "not_allowed",
            Self::Taken { .. } => "taken",
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

/// A server asks for a password.
pub(super) const NO_PASSWORD: &str = "it asks for a password, and there is none";

/// Asked for a login.
pub(super) const MAKING: &str = "making a login";

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
        let why = format!("{asked}: {}", words(error));
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
        "EPH04" => Failed::NotAllowed { target, why },
        // No such setting, a wrong value of it, or none for a login: as policy has it.
        "42704" | "22023" | "42602" | "42601" | "55P02" if asked == MAKING => Failed::NotAllowed {
            target,
            why: format!("{why}; correct `settings` of the entitlement in the policy"),
        },
        "EPH06" => Failed::Taken { target, why },
        "28P01" => Failed::Unauthorized {
            target,
            why,
            mend: "put its password into its credential file, which is read at every connect"
                .to_owned(),
        },
        // No line of pg_hba.conf, or no such role.
        "28000" => Failed::Unauthorized { target, why, mend },
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
        "EPH08" | "55P03" | "40P01" | "40001" | "57014" | "53200" => Failed::Busy { target, why },
        "XX000" if why.contains("concurrently") => Failed::Busy { target, why },
        _ => Failed::Refused { target, why },
    }
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

/// An error of the library in words: what the server said, without the library's "db error", or what
/// happened on the way there.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => text(db),
        None if asks_in_vain(error) => NO_PASSWORD.to_owned(),
        None => chain(error),
    }
}

/// Whether it failed because somebody else changed the same thing at the same time, so that it may go well
/// when tried again.
pub(super) fn is_crossed(error: &tokio_postgres::Error) -> bool {
    let codes = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_OBJECT,
        SqlState::DUPLICATE_DATABASE,
        SqlState::DUPLICATE_SCHEMA,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_FUNCTION,
        SqlState::OBJECT_IN_USE,
    ];
    error.as_db_error().is_some_and(|said| {
        // For this there is no code of its own.
        let is_tuple = said.message().starts_with("tuple concurrently ");
        codes.contains(said.code()) || *said.code() == SqlState::INTERNAL_ERROR && is_tuple
    })
}

/// Whether the server asks for a password and there is none. The library has no type for that.
fn asks_in_vain(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none() && chain(error).contains("password missing")
}

/// Whether this process itself gave up connecting there (Landlock), before it was ever tried.
fn is_given_up(host: &Address, error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error);
    let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let refused =
        cause.and_then(std::io::Error::raw_os_error) == Some(Errno::ACCESS.raw_os_error());
    match host {
        Address::Tcp { port, .. } => refused && ephor_confine::files::gave_up_connecting_to(*port),
        Address::Socket { .. } => false,
    }
}

/// An error with its causes; the library's own text names only the kind.
fn chain(error: &dyn std::error::Error) -> String {
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

/// What was tried in vain: a connection.
pub(super) struct Tried<'a> {
    /// Name of the target.
    pub(super) target: &'a str,
    /// The server.
    pub(super) host: &'a Address,
    /// As whom.
    pub(super) user: &'a str,
    /// Into which database.
    pub(super) database: &'a str,
    /// Where the password would be, if there were one.
    pub(super) absent: Option<&'a Path>,
}

impl<'a> Tried<'a> {
    /// With the broker's own login.
    pub(super) fn of(access: &'a Access, host: &'a Address, database: &'a str) -> Self {
        Self {
            target: &access.name,
            host,
            user: &access.user,
            database,
            absent: match &access.password {
                Password::Absent(file) => Some(file),
                Password::None | Password::File(_) | Password::Given(_) => None,
            },
        }
    }

    /// Without a word of the server, but that it asks for a password that there is none of.
    fn unanswered(&self, error: &tokio_postgres::Error) -> Failed {
        let target = self.target.to_owned();
        let why = format!("{self}: {}", words(error));
        if asks_in_vain(error) {
            let place = match self.absent {
                Some(file) => file.display().to_string(),
                None => format!("target-{} in target_secrets_dir", self.target),
            };
            let mend = format!("put it into the file {place}, mode 0600");
            return Failed::Unauthorized { target, why, mend };
        }
        let mend = match is_given_up(self.host, error) {
            true => format!(
                "; the broker may connect to the ports in target_ports only: add {} to it in broker.toml and start the broker again",
                self.host.port()
            ),
            false => String::new(),
        };
        Failed::Unreachable {
            target,
            why: why + &mend,
        }
    }
}

impl std::fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            host,
            user,
            database,
            ..
        } = self;
        write!(f, "connecting to {host} as {user}, database {database}")
    }
}

/// Why no connection came about.
pub(super) fn not_connected(tried: &Tried<'_>, error: &tokio_postgres::Error) -> Failed {
    let target = tried.target.to_owned();
    let Some(db) = error.as_db_error() else {
        return tried.unanswered(error);
    };
    let why = format!("{tried}: {}", text(db));
    match answer(target.clone(), "connecting", db) {
        Failed::Unauthorized { mend, .. } => Failed::Unauthorized { target, why, mend },
        Failed::Missing { mend, .. } => Failed::Missing {
            target,
            what: why,
            mend,
        },
        Failed::NotPrimary { .. } => Failed::NotPrimary { target, why },
        Failed::Refused { .. } => Failed::Refused { target, why },
        Failed::Unreachable { .. } if db.code().code() == "53300" => Failed::Unreachable {
            target,
            why: format!(
                "{why}; raise max_connections there, or lower `connections` of the target"
            ),
        },
        // Nothing was asked yet.
        Failed::Unreachable { .. }
        | Failed::Unknown { .. }
        | Failed::Busy { .. }
        | Failed::NotAllowed { .. }
        | Failed::Taken { .. }
        | Failed::Fenced { .. }
        | Failed::TooLate { .. } => Failed::Unreachable { target, why },
    }
}
