//! What a daemon of Ephor gives up before it holds a secret, so that a fault in it reaches less:
//! core dumps, other users' memory, rights of root, system calls it never makes, files it has no
//! business with. And the rest of what both daemons share of being a process: the service manager
//! above them, and what their logs never say.
//!
//! What is given up is given up once, in one order, before the first thread is started, and is read
//! back from the kernel afterwards: a report never says more than what is in force. Nothing here
//! knows what the daemon is for.

pub mod settings; //  what is turned off, and why
pub mod process; //   core dumps, memory, descriptors
pub mod identity; //  which user, which capabilities
pub mod files; //     Landlock: which files and ports
pub mod calls; //     seccomp: which system calls
pub mod report; //    what is in force
pub mod supervise; // sockets from the service manager, and telling it how we are
pub mod logs; //      what no setting of a log turns on

use std::path::PathBuf;

pub use files::Files;
pub use report::{Protection, Report, State};
pub use rustix::thread::CapabilitySet;
pub use settings::Off;

/// What a daemon asks for.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What the operator turned off.
    pub off: &'a Off,
    /// The user to become when started as root; `None` stays who it is.
    pub user: Option<&'a str>,
    /// Directories that are made, for that user, when they are missing: path and mode.
    pub directories: Vec<(PathBuf, u32)>,
    /// The capabilities that are kept when there are any.
    pub keep: CapabilitySet,
    /// Files and ports, or why not.
    pub files: Files,
}

/// A protection that must hold and could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel refused something that no configuration may do without.
    #[error("{what}: {source}; the process holds no secret without that")]
    Required {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The user cannot be used.
    #[error("user `{user}`: {problem}")]
    User {
        /// Its name.
        user: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A directory cannot be made or belongs to somebody else.
    #[error("{}: {problem}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The restriction itself is refused. Not for a kernel that lacks it: that is reported.
    #[error("{what}: {problem}; turn it off in [hardening_off] with the reason, or mend it")]
    Refused {
        /// Which protection.
        what: &'static str,
        /// Why.
        problem: String,
    },
}

/// Does all of it. Call it once, on the only thread there is.
///
/// # Errors
/// When what must hold does not; nothing may be served then.
pub fn confine(plan: Plan<'_>) -> Result<Report, ConfineError> {
    let memory = process::limits(plan.off);
    identity::make_directories(&plan)?;
    let capabilities = identity::become_user(&plan)?;
    // After the user: changing it resets the mark.
    process::no_dumps()?;
    rustix::thread::set_no_new_privs(true).map_err(|source| ConfineError::Required {
        what: "PR_SET_NO_NEW_PRIVS",
        source: source.into(),
    })?;
    let files = files::restrict(plan.files, plan.off)?;
    let calls = calls::restrict(plan.off)?;
    Ok(report::read_back(vec![
        process::dumps_in_force(),
        process::core_in_force(),
        memory,
        identity::user_in_force(),
        capabilities,
        process::no_new_privs_in_force(),
        files,
        calls,
    ]))
}
