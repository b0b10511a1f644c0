//! Who a caller is, as the kernel says through a pidfd and one `/proc/PID` directory.
//!
//! It never reads `cmdline` or `environ`, never follows a path that the caller can swap, never
//! touches a file on a file system that a user mounted, and never takes a pid alone for a
//! process. What it cannot read it leaves out; what it can read but not trust it refuses.

mod again;
mod ancestor;
mod cgroup;
mod descriptor;
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
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use again::attest_again;
pub use ancestor::{ancestors, attest_ancestor, descends_from};
pub use cgroup::{Placement, UnitRun, is_running, leader};
pub use descriptor::named_by_descriptor;
pub use error::AttestError;
pub use evidence::{Attested, Evidence, Fingerprint, attest, recheck, recheck_speaker};
pub use exe::{Exe, FileId};
pub use hash::HashCache;
pub use peer::{Held, Mode, Peer};
pub use process::HeldProcess;
pub(crate) use process::has_ended;
pub use start_check::{StartCheckError, boot_id, start_check};
