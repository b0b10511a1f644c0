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
/// Somebody has to approve first, or another task to end.
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
    /// What became of what was asked for, when that is to be said.
    issued: Option<String>,
    /// Whom or what to ask about.
    ask: Option<String>,
    /// The stable code of a refusal.
    problem: Option<Code>,
}

/// What every verb gives.
pub type Outcome = Result<ExitCode, Failure>;

impl Failure {
    /// A failure with this exit code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            issued: None,
            problem: None,
            ask: None,
        }
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

    /// Somebody answers there, and refuses.
    pub fn denied(message: impl fmt::Display) -> Self {
        Self::new(DENIED, format!("denied: {message}"))
    }

    /// Nobody answers there.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(UNREACHABLE, format!("unreachable: {message}"))
    }

    /// What agent or broker refused.
    pub fn refused(problem: &Problem) -> Self {
        let word = problem.code.first_word();
        let said = matches!(word, FirstWord::Invalid)
            || ["issued", "handed out"]
                .iter()
                .any(|done| problem.detail.contains(&format!("othing was {done}")));
        let issued = (!said).then(|| "Nothing was issued.".to_owned());
        let ask = match problem.decision {
            Some(decision) => Some(format!("Decision {}.", decision.short())),
            // A slip of the caller's is nothing to ask about.
            None if matches!(word, FirstWord::Invalid) => None,
            // Whole, because it is looked for in a log.
            None => Some(format!("In the logs as {}.", problem.correlation_id)),
        };
        Self {
            code: code_of(problem.code, word),
            message: problem.to_string(),
            issued,
            ask,
            problem: Some(problem.code),
        }
    }

    /// Whether it is a refusal with this code.
    pub fn is(&self, code: Code) -> bool {
        self.problem == Some(code)
    }

    /// The same failure after something had been issued: says what became of that.
    #[must_use]
    pub fn although_issued(mut self, fate: String) -> Self {
        self.issued = Some(fate);
        self
    }

    /// The same failure, in which context it arose before its message.
    #[must_use]
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        self.message = match self.message.split_once(": ") {
            // The first word of a refusal stays the state.
            Some((word, rest)) => format!("{word}: {what}: {rest}"),
            None => format!("{what}: {}", self.message),
        };
        self
    }
}

fn code_of(code: Code, word: FirstWord) -> u8 {
    if code == Code::TaskEnded {
        return REVOKED;
    }
    if code == Code::PolicyInvalid {
        return CONFIG;
    }
    match word {
        FirstWord::Denied => DENIED,
        FirstWord::Pending => PENDING,
        FirstWord::Unreachable => UNREACHABLE,
        FirstWord::Overdue => STILL_REVOKING,
        FirstWord::Invalid => USAGE,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match (&self.issued, &self.ask) {
            (Some(issued), Some(ask)) => write!(f, "\n{issued}  {ask}"),
            (Some(last), None) | (None, Some(last)) => write!(f, "\n{last}"),
            (None, None) => Ok(()),
        }
    }
}

/// Says why, in the form `ephor: first line` with further lines indented below it.
pub fn report(failure: &Failure) -> ExitCode {
    let mut out = String::new();
    for (number, line) in failure.to_string().lines().enumerate() {
        out.push_str(if number == 0 { "ephor: " } else { "       " });
        out.push_str(line);
        out.push('\n');
    }
    crate::show::to_stderr(&out);
    ExitCode::from(failure.code)
}
