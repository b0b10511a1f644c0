//! Who a caller is, as the kernel says through a pidfd and one `/proc/PID` directory
//! (DESIGN §8).
//!
//! It never reads `cmdline` or `environ`, never follows a path that the caller can swap, never
//! touches a file on a file system that a user mounted, and never takes a pid alone for a
//! process. What it cannot read it leaves out; what it can read but not trust it refuses.

mod ancestor;
mod cgroup;
mod error;
mod evidence;
mod exe;
mod hash;
mod mounts;
mod namespaces;
mod peer;
mod process;
mod start_check;
mod status;

#[cfg(test)]
mod tests;

pub use ancestor::{ancestors, attest_ancestor, descends_from};
pub use cgroup::{Placement, UnitRun};
pub use error::AttestError;
pub use evidence::{Attested, Evidence, Fingerprint, attest, recheck};
pub use exe::{Exe, FileId};
pub use hash::HashCache;
pub use peer::{Held, Mode, Peer};
pub use process::HeldProcess;
pub use start_check::{StartCheckError, boot_id, start_check};
