//! Whether a caller lives in other namespaces than the host. There a path may name another
//! file, and uid 0 may be nobody; what cannot be compared counts as foreign.
//!
//! The host's mounts are those of process 1: a service manager that protects the agent's file
//! system gives it a mount namespace of its own, and paths are not looked up there.

use serde::{Deserialize, Serialize};

use super::error::AttestError;
use super::mounts::mounts;
use super::process::HeldProcess;

/// What differs from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Foreign {
    pub(super) user: bool,
    pub(super) mount: bool,
}

impl Foreign {
    pub(super) fn of(process: &HeldProcess) -> Result<Self, AttestError> {
        let user = match differs(process, SELF, "ns/user")? {
            Some(differs) => differs,
            // Without the right to look at the link: the id map as seen from here.
            None => {
                std::fs::read_to_string("/proc/self/uid_map").ok() != Some(process.read("uid_map")?)
            }
        };
        // Process 1 first; where the agent may not look at that, its own.
        let mount = match differs(process, INIT, "ns/mnt")? {
            Some(differs) => Some(differs),
            None => differs(process, SELF, "ns/mnt")?,
        };
        let mount = match mount {
            Some(differs) => differs,
            None => foreign_mounts(&process.read("mountinfo")?),
        };
        Ok(Self { user, mount })
    }
}

const SELF: &str = "self";
const INIT: &str = "1";

/// Compares a namespace link with that of `home`; `None` when one of them cannot be read.
fn differs(
    process: &HeldProcess,
    home: &'static str,
    what: &'static str,
) -> Result<Option<bool>, AttestError> {
    let Some(theirs) = process.link(what)? else {
        return Ok(None);
    };
    let home = std::fs::read_link(format!("/proc/{home}/{what}"));
    Ok(home
        .ok()
        .and_then(|home| home.to_str().map(|home| home != theirs)))
}

/// Mount ids are unique on a host, so two tables with the same root mount are one namespace.
fn foreign_mounts(theirs: &str) -> bool {
    let root = |text: &str| {
        mounts(text)
            .find(|mount| mount.point == "/")
            .map(|mount| mount.id)
    };
    let own = std::fs::read_to_string("/proc/self/mountinfo").ok();
    let own = own.as_deref().and_then(root);
    own.is_none() || own != root(theirs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_itself_is_at_home() {
        let own = HeldProcess::hold(std::process::id()).unwrap();
        assert_eq!(
            Foreign::of(&own).unwrap(),
            Foreign {
                user: false,
                mount: false
            }
        );
    }

    #[test]
    fn another_root_mount_is_foreign_and_so_is_none() {
        let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!foreign_mounts(&own));
        assert!(foreign_mounts(""));
        assert!(foreign_mounts("999999 1 254:0 / / rw - ext4 /dev/vda rw\n"));
    }
}
