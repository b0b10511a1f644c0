//! `ephor policy check`: loads a directory and says what it holds, without a broker.

use std::fmt;
use std::path::Path;

use super::error::{LoadErrors, Warning};
use super::snapshot::Snapshot;

/// What a good policy holds.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Version, in full.
    pub version: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Workloads.
    pub workloads: usize,
    /// Entitlements, without the built-in `identity`.
    pub entitlements: usize,
    /// Targets.
    pub targets: usize,
    /// Things to look at.
    pub warnings: Vec<Warning>,
}

/// Loads and checks the policy in `dir`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(dir: &Path) -> Result<Summary, LoadErrors> {
    Snapshot::load(dir).map(|snapshot| Summary::of(&snapshot))
}

impl Summary {
    /// The summary of a snapshot.
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            version: snapshot.version().to_owned(),
            trust_domain: snapshot.trust_domain().to_string(),
            workloads: snapshot.workloads().len(),
            entitlements: snapshot.entitlements().len(),
            targets: snapshot.targets().count(),
            warnings: snapshot.warnings().to_vec(),
        }
    }
}

impl fmt::Display for Summary {
    /// One line, and one for each warning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.version.get(..4).unwrap_or(&self.version);
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        write!(
            f,
            "ok: policy {short} for {}: {} workload{}, {} entitlement{}",
            self.trust_domain,
            self.workloads,
            plural(self.workloads),
            self.entitlements,
            plural(self.entitlements),
        )?;
        if self.targets > 0 {
            write!(f, ", {} target{}", self.targets, plural(self.targets))?;
        }
        self.warnings
            .iter()
            .try_for_each(|warning| write!(f, "\n{warning}"))
    }
}
