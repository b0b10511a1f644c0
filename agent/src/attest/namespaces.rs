//! Whether a caller lives in other namespaces than the agent. There a path may name another
//! file, and uid 0 may be nobody; what cannot be compared counts as foreign.

use super::error::AttestError;
use super::mounts::mounts;
use super::process::HeldProcess;

/// What differs from the agent's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Foreign {
    pub(super) user: bool,
    pub(super) mount: bool,
}

impl Foreign {
    pub(super) fn of(process: &HeldProcess) -> Result<Self, AttestError> {
        let user = match differs(process, "ns/user")? {
            Some(differs) => differs,
            // Without the right to look at the link: the id map as seen from here.
            None => {
                std::fs::read_to_string("/proc/self/uid_map").ok() != Some(process.read("uid_map")?)
            }
        };
        let mount = match differs(process, "ns/mnt")? {
            Some(differs) => differs,
            None => foreign_mounts(&process.read("mountinfo")?),
        };
        Ok(Self { user, mount })
    }
}

/// Compares a namespace link with the agent's; `None` when the caller's cannot be read.
fn differs(process: &HeldProcess, what: &'static str) -> Result<Option<bool>, AttestError> {
    let Some(theirs) = process.link(what)? else {
        return Ok(None);
    };
    let own = std::fs::read_link(format!("/proc/self/{what}"));
    Ok(Some(
        own.ok()
            .and_then(|own| own.to_str().map(|own| own != theirs))
            .unwrap_or(true),
    ))
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
