//! Going back in time: a store that was restored from an older copy is noticed, serves nothing that
//! it cannot vouch for, and begins a new epoch when its operator says so (promise P6).
//!
//! What was revoked after the copy was made is not revoked in it. So it must never issue, renew,
//! sweep, publish a list or call a token active before it is known to be the newest there is; and
//! nobody but an operator ends that state.

mod backup;
mod behind;
mod epoch;
mod restore;
mod seen;

use std::path::PathBuf;

pub(crate) use backup::Backups;
pub use backup::Manifest;
pub use behind::Behind;
pub(crate) use behind::Standing;
pub(crate) use epoch::{Readmission, former_origins, places};
pub use restore::{RestoreError, RestoreOptions, Restored, restore};

/// Files that a running broker comes back to.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The master key.
    pub master_key: PathBuf,
    /// Where backups are made.
    pub backups: PathBuf,
}
