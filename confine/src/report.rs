//! What is in force, as the kernel says it: for the log, and for `ephor doctor` as a file.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The file of the report, in a daemon's state directory.
pub const FILE: &str = "protections.json";

/// How a protection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It holds.
    InForce,
    /// A part of it holds; the detail says which.
    Partly,
    /// The operator turned it off.
    Off,
    /// It does not hold, and somebody should know.
    Missing,
    /// It cannot be had by what this daemon does.
    NotApplicable,
}

/// One protection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Its name, for programs.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// What it does, or why it does not hold and how to get it.
    pub detail: String,
}

impl Protection {
    /// How one stands.
    #[must_use]
    pub fn new(name: &str, state: State, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state,
            detail: detail.into(),
        }
    }

    pub(crate) fn off(name: &str, reason: &str) -> Self {
        Self::new(name, State::Off, format!("turned off: {reason}"))
    }
}

/// What is in force in one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The process.
    pub pid: u32,
    /// Release of the kernel.
    pub kernel: String,
    /// Each protection, in the order in which they were set.
    pub protections: Vec<Protection>,
}

pub(crate) fn read_back(protections: Vec<Protection>) -> Report {
    let kernel = rustix::system::uname();
    Report {
        pid: std::process::id(),
        kernel: kernel.release().to_string_lossy().into_owned(),
        protections,
    }
}

impl Report {
    /// One more, which the daemon itself knows of.
    pub fn add(&mut self, protection: Protection) {
        self.protections.push(protection);
    }

    /// How the one of this name stands.
    #[must_use]
    pub fn state(&self, name: &str) -> Option<State> {
        let found = self.protections.iter().find(|one| one.name == name);
        found.map(|one| one.state)
    }

    /// Says it in one line of the log, and writes it to [`FILE`] in `directory`, whole or not
    /// at all. A file that cannot be written is no reason not to start.
    pub fn publish(&self, directory: &Path) {
        tracing::info!(protections = %self, "process confined");
        if let Err(error) = self.write(directory) {
            let path = directory.join(FILE);
            tracing::warn!(path = %path.display(), %error, "which protections are in force could not be written");
        }
    }

    fn write(&self, directory: &Path) -> std::io::Result<()> {
        let partial = directory.join(format!("{FILE}.partial"));
        // The daemon's own umask says who else may read it.
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&partial)?;
        let text = serde_json::to_string_pretty(self)?;
        writeln!(file, "{text}")?;
        std::fs::rename(&partial, directory.join(FILE))
    }
}

/// Names of what holds; of the others why not.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holds = |one: &&Protection| one.state == State::InForce;
        let names: Vec<&str> = self
            .protections
            .iter()
            .filter(holds)
            .map(|one| one.name.as_str())
            .collect();
        write!(f, "in force: {}", names.join(", "))?;
        for one in self.protections.iter().filter(|one| !holds(one)) {
            let word = match one.state {
                State::InForce => "in force",
                State::Partly => "partly",
                State::Off => "off",
                State::Missing => "missing",
                State::NotApplicable => "not applicable",
            };
            write!(f, "; {word}: {} ({})", one.name, one.detail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_back_and_says_why_not() {
        let mut report = read_back(vec![Protection::new("one", State::InForce, "a")]);
        report.add(Protection::new("two", State::Missing, "no such kernel"));
        let dir = tempfile::tempdir().unwrap();
        report.write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert_eq!(
            report.to_string(),
            "in force: one; missing: two (no such kernel)"
        );
        assert_eq!(report.state("two"), Some(State::Missing));
        assert_eq!(report.state("three"), None);
    }
}
