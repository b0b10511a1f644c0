//! What the agent does to itself before it holds a secret: not dumpable, no core, private
//! files. Never optional; only locking memory is best effort, because a container often
//! forbids it.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};

/// What could be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardened {
    /// Memory is locked: no secret reaches swap.
    pub memory_locked: bool,
    /// Descriptors this process may hold; every open task and connection takes one or two.
    pub descriptors: Option<u64>,
}

/// A protection that must hold and could not be set.
#[derive(Debug, thiserror::Error)]
#[error("hardening the agent process: {what}: {source}; it holds no secret without that")]
pub struct HardenError {
    what: &'static str,
    source: rustix::io::Errno,
}

/// Hardens this process. Call it first, before any thread is started.
///
/// # Errors
/// When the process cannot be made undumpable or core dumps cannot be turned off.
pub fn harden() -> Result<Hardened, HardenError> {
    let failed = |what| move |source| HardenError { what, source };
    // Also refuses ptrace and /proc/PID/mem to processes of the same uid.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("PR_SET_DUMPABLE"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(failed("RLIMIT_CORE"))?;
    umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    Ok(Hardened {
        memory_locked: lock_memory(),
        descriptors: raise_descriptors(),
    })
}

/// Only with an unlimited `RLIMIT_MEMLOCK`: with a finite one a later allocation would fail.
fn lock_memory() -> bool {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let may = getrlimit(Resource::Memlock).current.is_none()
        || setrlimit(Resource::Memlock, unlimited).is_ok();
    may && mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).is_ok()
}

fn raise_descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_process_leaves_no_dump_and_private_files() {
        harden().unwrap();
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            DumpableBehavior::NotDumpable
        );
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(
            status.lines().any(|line| line == "Umask:\t0077"),
            "{status}"
        );
    }
}
