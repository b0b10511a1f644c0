//! What is wrong with a policy, and where.
//!
//! Written for the person who edits the file: every error of every file at once, each with
//! its place, the value, the nearest right one, and what to write instead.

use std::fmt;
use std::sync::Arc;

/// A place in a policy file; lines and columns (in characters) count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// File name inside the policy directory.
    pub file: Arc<str>,
    /// Line; 0 when the whole file is meant.
    pub line: usize,
    /// Column; 0 when the whole file is meant.
    pub column: usize,
}

impl Place {
    /// The whole of a file, or of the directory itself.
    pub(super) fn whole(file: &str) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
        }
    }

    /// As decisions name a rule: `orders.toml:12`.
    pub fn rule(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// One error: `invalid: WHAT. FILE:LINE:COLUMN. HINT`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// Where.
    pub place: Place,
    /// What is wrong, beginning with the value; no full stop.
    pub what: String,
    /// What to do, whole sentences; may be empty.
    pub hint: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid: {}. {}.", self.what, self.place)?;
        if self.hint.is_empty() {
            return Ok(());
        }
        write!(f, " {}", self.hint)
    }
}

/// Everything that is wrong with a policy, by file and place; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadErrors(Vec<LoadError>);

impl LoadErrors {
    pub(super) fn new(mut errors: Vec<LoadError>) -> Self {
        errors.sort_by(|a, b| a.place.cmp(&b.place));
        Self(errors)
    }

    /// The errors in order.
    pub fn iter(&self) -> impl Iterator<Item = &LoadError> {
        self.0.iter()
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for LoadErrors {
    /// One error a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadErrors {}

/// Something legal that its author should look at: `warning: WHAT. FILE:LINE:COLUMN. HINT`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(pub(super) LoadError);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "warning: {}. {}. {}",
            self.0.what, self.0.place, self.0.hint
        )
    }
}
