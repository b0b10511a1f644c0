//! The process itself: no core dump, no debugger of the same user, memory out of swap, as many
//! descriptors as it may have.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior,
    setrlimit,
};

use crate::ConfineError;
use crate::report::{Protection, State};
use crate::settings::Off;

/// What only root may raise comes while we may be root.
pub(crate) fn limits(off: &Off) -> Protection {
    raise_descriptors();
    lock_memory(off)
}

/// No core, and no ptrace or `/proc/PID/mem` for processes of the same uid.
pub(crate) fn no_dumps() -> Result<(), ConfineError> {
    let failed = |what| {
        move |source: rustix::io::Errno| ConfineError::Required {
            what,
            source: source.into(),
        }
    };
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("PR_SET_DUMPABLE"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(failed("RLIMIT_CORE"))
}

/// Only with an unlimited `RLIMIT_MEMLOCK`: with a finite one a later allocation would fail.
fn lock_memory(off: &Off) -> Protection {
    const NAME: &str = "memory_locked";
    if let Some(reason) = &off.memory_lock {
        return Protection::off(NAME, reason);
    }
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let limit = getrlimit(Resource::Memlock).current;
    if limit.is_some() && setrlimit(Resource::Memlock, unlimited).is_err() {
        let detail = format!(
            "RLIMIT_MEMLOCK is {} KiB: set LimitMEMLOCK=infinity, or keep swap off or encrypted",
            limit.unwrap_or(0) / 1024
        );
        return Protection::new(NAME, State::Missing, detail);
    }
    // On fault: what is never touched takes no memory.
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => Protection::new(NAME, State::InForce, "no page of this process goes to swap"),
        Err(error) => Protection::new(NAME, State::Missing, format!("mlockall: {error}")),
    }
}

/// Every open task and connection takes one or two.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of descriptors stays as it was");
    }
}

pub(crate) fn dumps_in_force() -> Protection {
    let state = match dumpable_behavior() {
        Ok(DumpableBehavior::NotDumpable) => State::InForce,
        Ok(_) | Err(_) => State::Missing,
    };
    Protection::new("not_dumpable", state, "closed to debuggers of its own user")
}

pub(crate) fn core_in_force() -> Protection {
    let core = getrlimit(Resource::Core);
    let state = if (core.current, core.maximum) == (Some(0), Some(0)) {
        State::InForce
    } else {
        State::Missing
    };
    Protection::new("no_core", state, "a crash leaves no core")
}

pub(crate) fn no_new_privs_in_force() -> Protection {
    let state = match rustix::thread::no_new_privs() {
        Ok(true) => State::InForce,
        Ok(false) | Err(_) => State::Missing,
    };
    Protection::new(
        "no_new_privs",
        state,
        "no program it could start gains a right",
    )
}
