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
    /// What was applied last cannot be used, and the directory holds what is older.
    #[error(
        "invalid: policy {version}, which {by} applied last, cannot be used: {error}. {directory} holds the older one that it \
         took the place of. Change the files there to what shall be in force"
    )]
    Stored {
        /// The version applied last.
        version: String,
        /// Who applied it.
        by: String,
        /// What is wrong with it.
        error: String,
        /// Where the older one is.
        directory: String,
    },
}

/// Looks at the directory and at the store.
pub(crate) fn at_start(directory: &Path, ledger: &Ledger) -> Result<AtStart, NoPolicy> {
    let found = Checked::read(directory);
    let Some(row) = ledger.reader().policy_in_force()? else {
        return taken(found?, None);
    };
    let in_force = match stored(&row) {
        Ok(in_force) => in_force,
        Err(error) => return instead(&row, error, found?, directory),
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

/// The directory's, in force from the first moment.
fn taken(found: Checked, trouble: Option<String>) -> Result<AtStart, NoPolicy> {
    let Checked { snapshot, files } = found;
    let then = Some(Checked::of(files)?);
    Ok(AtStart {
        snapshot,
        then,
        trouble,
    })
}

/// The directory's in the place of a version that cannot be used, unless that would undo what was
/// applied.
fn instead(
    row: &PolicyRow,
    error: String,
    found: Checked,
    directory: &Path,
) -> Result<AtStart, NoPolicy> {
    tracing::error!(
        policy = row.version,
        error,
        "the last applied policy cannot be used"
    );
    let version = row.version.get(..4).unwrap_or(&row.version).to_owned();
    let (by, directory) = (row.applied_by.clone(), directory.display().to_string());
    let offered = found.snapshot.version();
    if offered == row.version {
        return taken(found, None);
    }
    if row.directory.as_deref() == Some(offered) {
        return Err(NoPolicy::Stored {
            version,
            by,
            error,
            directory,
        });
    }
    let trouble = format!(
        "policy {version}, which {by} applied last, cannot be used: {error}. What {directory} holds is in its place"
    );
    taken(found, Some(trouble))
}

/// The policy of a stored version, or why this version of the broker refuses it.
fn stored(row: &PolicyRow) -> Result<Snapshot, String> {
    let files: Vec<PolicyFile> =
        serde_json::from_str(&row.files).map_err(|error| error.to_string())?;
    let snapshot = Snapshot::from_files(files).map_err(|errors| errors.to_string())?;
    if snapshot.version() == row.version {
        Ok(snapshot)
    } else {
        Err("its text is that of another version".to_owned())
    }
}

impl Broker {
    /// Applies what the start found in the directory, before anything is served. A store that cannot
    /// take it is no reason not to start: revocations must go on.
    pub(crate) async fn begin_policy(&self, then: Option<Checked>, trouble: Option<String>) {
        let mut trouble = trouble;
        if let Some(checked) = then {
            let outcome = self.replace(checked, "start").await;
            if let Err(refusal) = outcome {
                let directory = self.inforce.directory.display();
                trouble = Some(format!("{directory} was not applied: {}", refusal.detail));
            }
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
