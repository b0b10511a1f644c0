//! What must hold on this host before anybody can be attested, checked once at start.

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, fstatfs, openat};

use super::error::AttestError;
use super::process::HeldProcess;

/// Attestation is impossible here; the agent must not run.
#[derive(Debug, thiserror::Error)]
pub enum StartCheckError {
    /// Somebody mounted something else there.
    #[error(
        "/proc is not the kernel's proc file system: every caller would be attested by a forgery"
    )]
    NotProc,
    /// It belongs to another PID namespace.
    #[error(
        "/proc shows this agent as process {shown:?}, not {own}: it belongs to another PID namespace"
    )]
    OtherNamespace {
        /// What `/proc/self` says.
        shown: Option<String>,
        /// What the kernel says.
        own: u32,
    },
    /// `hidepid` or a missing right.
    #[error(
        "/proc hides other processes from the agent ({0}): mount it without hidepid, or with gid= of the agent's group"
    )]
    Hidden(std::io::Error),
    /// The agent cannot hold itself by a pidfd.
    #[error("the agent cannot attest itself: {0}")]
    Own(#[from] AttestError),
    /// Something else could not be read.
    #[error("reading {0}: {1}")]
    Read(&'static str, std::io::Error),
}

/// Checks `/proc`, and that this kernel has pidfds.
///
/// # Errors
/// When attestation could be fooled or is impossible here.
pub fn start_check() -> Result<(), StartCheckError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/proc", flags, Mode::empty());
    let root = root.map_err(|error| StartCheckError::Read("/proc", error.into()))?;
    let kind = fstatfs(&root).map_err(|error| StartCheckError::Read("/proc", error.into()))?;
    if kind.f_type != PROC_SUPER_MAGIC {
        return Err(StartCheckError::NotProc);
    }
    let own = std::process::id();
    let shown = std::fs::read_link("/proc/self")
        .ok()
        .and_then(|path| path.to_str().map(str::to_owned));
    if shown.as_deref() != Some(own.to_string().as_str()) {
        return Err(StartCheckError::OtherNamespace { shown, own });
    }
    HeldProcess::hold(own)?.stat()?;
    // Process 1 is never ours, unless we are it.
    std::fs::read_to_string("/proc/1/status").map_err(StartCheckError::Hidden)?;
    boot_id().map(|_| ())
}

/// The id of this boot (`/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When it cannot be read.
pub fn boot_id() -> Result<String, StartCheckError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    match std::fs::read_to_string(PATH) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(StartCheckError::Read(PATH, error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_attest() {
        start_check().unwrap();
        assert_eq!(boot_id().unwrap().len(), 36);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
