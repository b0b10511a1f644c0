//! Landlock: the files and TCP ports that a daemon has business with, and no others.
//!
//! A process in a Landlock domain cannot look at processes outside it: `/proc/PID/exe`, `ns` and
//! the like are closed to it whatever capability it has (`security/landlock/task.c`). So it is not
//! for a daemon that attests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

use crate::ConfineError;
use crate::report::{Protection, State};
use crate::settings::Off;

const NAME: &str = "landlock";
/// The newest rules that this was tried with; an older kernel gets those it has.
const FILE_RULES: ABI = ABI::V5;
const PORT_RULES: ABI = ABI::V4;

/// What a daemon may open.
#[derive(Debug)]
pub enum Files {
    /// Landlock cannot be used, and why.
    NotApplicable(&'static str),
    /// These, and whatever is open already.
    Only {
        /// Read only: files, or directories with all below.
        read: Vec<PathBuf>,
        /// Read and changed: directories with all below.
        write: Vec<PathBuf>,
        /// TCP ports to listen on; 0 stands for any free one.
        listen: Vec<u16>,
        /// TCP ports to connect to, on any host. No connection is made to another.
        connect: Vec<u16>,
    },
}

/// The ports that are left to this process, once it has given up the others for good.
static CONNECT: OnceLock<Vec<u16>> = OnceLock::new();

/// Whether this process gave up connections to that TCP port: the kernel refuses them with `EACCES`.
#[must_use]
pub fn gave_up_connecting_to(port: u16) -> bool {
    CONNECT.get().is_some_and(|left| !left.contains(&port))
}

pub(crate) fn restrict(files: Files, off: &Off) -> Result<Protection, ConfineError> {
    let (read, write, ports) = match files {
        Files::NotApplicable(why) => return Ok(Protection::new(NAME, State::NotApplicable, why)),
        Files::Only {
            read,
            write,
            listen,
            connect,
        } => (read, write, (listen, connect)),
    };
    if let Some(reason) = &off.landlock {
        return Ok(Protection::off(NAME, reason));
    }
    let restricted = apply(&read, &write, &ports).map_err(|error| ConfineError::Refused {
        what: NAME,
        problem: error.to_string(),
    })?;
    let _ = CONNECT.set(ports.1);
    Ok(told(&restricted))
}

fn apply(
    read: &[PathBuf],
    write: &[PathBuf],
    (listen, connect): &(Vec<u16>, Vec<u16>),
) -> Result<RestrictionStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(FILE_RULES))?
        .handle_access(AccessNet::from_all(PORT_RULES))?
        .scope(Scope::Signal)?
        .create()?;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    for path in read {
        ruleset = allow(ruleset, path, reading)?;
    }
    let changing = AccessFs::from_all(FILE_RULES) & !(AccessFs::Execute | AccessFs::IoctlDev);
    for path in write {
        ruleset = allow(ruleset, path, changing)?;
    }
    for port in listen {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    for port in connect {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    ruleset.restrict_self()
}

/// What is not there cannot be opened later either; whoever needs it says so then.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(open) = PathFd::new(path) else {
        tracing::debug!(path = %path.display(), "not there, so not allowed");
        return Ok(ruleset);
    };
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(FILE_RULES)
    };
    ruleset.add_rule(PathBeneath::new(open, access))
}

fn told(status: &RestrictionStatus) -> Protection {
    let abi = match status.landlock {
        LandlockStatus::NotEnabled => {
            let detail = "the kernel was started without it: add landlock to its lsm= parameter";
            return Protection::new(NAME, State::Missing, detail);
        }
        LandlockStatus::NotImplemented => {
            let detail = "this kernel has none (Linux 5.13 has)";
            return Protection::new(NAME, State::Missing, detail);
        }
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced => {
            let detail = format!("version {abi}: its own files and ports, no signal to others");
            Protection::new(NAME, State::InForce, detail)
        }
        RulesetStatus::PartiallyEnforced => {
            let ports = if abi >= PORT_RULES as i32 {
                "files and ports"
            } else {
                "files only, ports from Linux 6.7"
            };
            Protection::new(NAME, State::Partly, format!("version {abi}: {ports}"))
        }
        RulesetStatus::NotEnforced => {
            Protection::new(NAME, State::Missing, "refused by the kernel")
        }
    }
}
