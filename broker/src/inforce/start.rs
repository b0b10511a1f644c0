//! Which policy a start begins with.
//!
//! The directory is the source: what changed there since the last look is applied, and audited, by
//! `start`. A directory that is broken, or that held the same when something else was applied over the
//! admin socket, leaves the last applied version in force, and the broker says so.

use std::path::Path;

use ephor_proto::http::admin::PolicyFile;

use super::Checked;
use crate::app::Broker;
use crate::ledger::{Ledger, PolicyRow, ReadError};
use crate::policy::{LoadErrors, Snapshot};

/// What a start found.
pub(crate) struct AtStart {
    /// In force from the first moment: the last applied one, or the directory's on a new store.
    pub(crate) snapshot: Snapshot,
    /// To be applied before anything is served.
    then: Option<Checked>,
    trouble: Option<String>,
}

/// Why a start has no policy.
#[derive(Debug, thiserror::Error)]
pub enum NoPolicy {
    /// The directory is broken, and nothing was ever applied.
    #[error("{0}")]
    Broken(#[from] LoadErrors),
    /// The store cannot be read.
    #[error("{0}")]
    Read(#[from] ReadError),
}

/// Looks at the directory and at the store.
pub(crate) fn at_start(directory: &Path, ledger: &Ledger) -> Result<AtStart, NoPolicy> {
    let last = ledger.reader().policy_in_force()?;
    let last = last.and_then(|row| Some((stored(&row)?, row)));
    let found = Checked::read(directory);
    let Some((in_force, row)) = last else {
        let Checked { snapshot, files } = found?;
        let then = Some(Checked::of(files)?);
        return Ok(AtStart {
            snapshot,
            then,
            trouble: None,
        });
    };
    let stays = format!("Policy {} stays in force.", in_force.short_version());
    let directory = directory.display();
    let (then, trouble) = match found {
        Ok(found) if found.snapshot.version() == in_force.version() => (None, None),
        Ok(found) if row.directory.as_deref() == Some(found.snapshot.version()) => {
            let version = found.snapshot.short_version().to_owned();
            let trouble = format!(
                "{directory} holds policy {version}, as it did when {} applied another. {stays}",
                row.applied_by
            );
            (None, Some(trouble))
        }
        Ok(found) => (Some(found), None),
        Err(errors) => (
            None,
            Some(format!("{directory} was not applied: {errors} {stays}")),
        ),
    };
    Ok(AtStart {
        snapshot: in_force,
        then,
        trouble,
    })
}

/// The policy of a stored version. One that this version of the broker refuses is none.
fn stored(row: &PolicyRow) -> Option<Snapshot> {
    let files: Result<Vec<PolicyFile>, _> = serde_json::from_str(&row.files);
    let compiled = files
        .map_err(|error| error.to_string())
        .and_then(|files| Snapshot::from_files(files).map_err(|errors| errors.to_string()));
    compiled
        .inspect_err(|error| {
            tracing::error!(
                policy = row.version,
                error,
                "the last applied policy cannot be used"
            );
        })
        .ok()
        .filter(|snapshot| snapshot.version() == row.version)
}

impl Broker {
    /// Applies what the start found in the directory, before anything is served. A store that cannot
    /// take it is no reason not to start: revocations must go on.
    pub(crate) async fn begin_policy(&self, then: Option<Checked>, trouble: Option<String>) {
        let mut trouble = trouble;
        if let Some(checked) = then {
            let outcome = self.replace(checked, "start").await;
            trouble = outcome.err().map(|refusal| {
                let directory = self.inforce.directory.display();
                format!("{directory} was not applied: {}", refusal.detail)
            });
        }
        if let Some(trouble) = &trouble {
            tracing::error!(trouble, "the policy in force is not that of the directory");
        }
        self.inforce.set_trouble(trouble);
    }
}

impl AtStart {
    /// What is left to do once there is a broker.
    pub(crate) fn split(self) -> (Snapshot, Option<Checked>, Option<String>) {
        (self.snapshot, self.then, self.trouble)
    }
}
