//! Exit codes (sysexits where they fit) and how a failure is said: the first word is the
//! state, then whether anything was issued, the id to ask about, and the next command.

use std::fmt;
use std::process::ExitCode;

use ephor_proto::problem::{Code, FirstWord, Problem};

/// A check did not hold.
pub const CHECK_FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// Agent or broker cannot be reached.
pub const UNREACHABLE: u8 = 69;
/// Somebody has to approve first.
pub const PENDING: u8 = 75;
/// Refused.
pub const DENIED: u8 = 77;
/// Policy or configuration is wrong.
pub const CONFIG: u8 = 78;
/// Revoked while running.
pub const REVOKED: u8 = 79;
/// Ended, but something is still being revoked or overdue.
pub const STILL_REVOKING: u8 = 80;

/// Why a verb stopped: what to say, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// One or more lines, without the leading `ephor: `.
    pub message: String,
}

/// What every verb gives.
pub type Outcome = Result<ExitCode, Failure>;

impl Failure {
    /// A failure with this exit code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The command line or its input is wrong.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(USAGE, format!("invalid: {message}"))
    }

    /// Policy or configuration is wrong.
    pub fn config(message: impl fmt::Display) -> Self {
        Self::new(CONFIG, format!("invalid: {message}"))
    }

    /// Something local failed: a file, a process.
    pub fn local(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(CHECK_FAILED, format!("invalid: {what}: {why}"))
    }

    /// Nobody answers there.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(UNREACHABLE, format!("unreachable: {message}"))
    }

    /// What agent or broker refused.
    pub fn refused(problem: &Problem) -> Self {
        let mut message = problem.to_string();
        let word = problem.code.first_word();
        if !matches!(word, FirstWord::Invalid) {
            message.push_str("\nNothing was issued.");
        }
        match problem.decision {
            Some(decision) => message.push_str(&format!("  Decision {}.", decision.short())),
            None => message.push_str(&format!("  Ask about {}.", problem.correlation_id.short())),
        }
        Self::new(code_of(problem.code, word), message)
    }
}

fn code_of(code: Code, word: FirstWord) -> u8 {
    if code == Code::TaskEnded {
        return REVOKED;
    }
    match word {
        FirstWord::Denied => DENIED,
        FirstWord::Pending => PENDING,
        FirstWord::Unreachable => UNREACHABLE,
        FirstWord::Overdue => STILL_REVOKING,
        FirstWord::Invalid => USAGE,
    }
}

/// Says why, in the form `ephor: first line` with further lines indented below it.
pub fn report(failure: &Failure) -> ExitCode {
    let mut out = String::new();
    for (number, line) in failure.message.lines().enumerate() {
        out.push_str(if number == 0 { "ephor: " } else { "       " });
        out.push_str(line);
        out.push('\n');
    }
    crate::show::to_stderr(&out);
    ExitCode::from(failure.code)
}
