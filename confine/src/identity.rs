//! Who the daemon is: a user of its own, and of root's rights only those it cannot do without.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{User, initgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities,
};

use crate::report::{Protection, State};
use crate::{ConfineError, Plan};

const NAME: &str = "capabilities";

/// The user to become, if there is one to become: only root can.
fn wanted(plan: &Plan<'_>) -> Result<Option<User>, ConfineError> {
    let Some(name) = plan.user else {
        return Ok(None);
    };
    let wrong = |problem: String| ConfineError::User {
        user: name.to_owned(),
        problem,
    };
    let user = User::from_name(name)
        .map_err(|error| wrong(error.to_string()))?
        .ok_or_else(|| {
            wrong(format!(
                "there is none; make it with: useradd --system {name}"
            ))
        })?;
    if user.uid.is_root() {
        return Err(wrong(
            "is root; name another, or leave `user` out".to_owned(),
        ));
    }
    let now = nix::unistd::geteuid();
    if now == user.uid {
        return Ok(None);
    }
    if now.is_root() {
        return Ok(Some(user));
    }
    Err(wrong(format!(
        "this process runs as uid {now}, which cannot become another; start it as root or as {name}"
    )))
}

/// Makes what is missing; what is there must be usable by the user already.
pub(crate) fn make_directories(plan: &Plan<'_>) -> Result<(), ConfineError> {
    let user = wanted(plan)?;
    for (path, mode) in &plan.directories {
        let wrong = |problem: String| ConfineError::Directory {
            path: path.clone(),
            problem,
        };
        match (std::fs::metadata(path), &user) {
            (Err(_), user) => make(path, *mode, user.as_ref())
                .map_err(|error| wrong(format!("cannot be made: {error}")))?,
            (Ok(there), Some(user)) if there.uid() != user.uid.as_raw() => {
                let name = &user.name;
                let shown = path.display();
                return Err(wrong(format!(
                    "belongs to uid {}, not to `{name}`; chown -R {name} {shown}",
                    there.uid()
                )));
            }
            (Ok(_), _) => {}
        }
    }
    Ok(())
}

/// Parents are for everybody to pass, and stay root's.
fn make(path: &Path, mode: u32, user: Option<&User>) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    DirBuilder::new().mode(mode).create(path)?;
    // Whatever the umask is.
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    match user {
        Some(user) => std::os::unix::fs::chown(path, Some(user.uid.into()), Some(user.gid.into())),
        None => Ok(()),
    }
}

/// Becomes the user and gives up capabilities.
pub(crate) fn become_user(plan: &Plan<'_>) -> Result<Protection, ConfineError> {
    let user = wanted(plan)?;
    if user.is_none()
        && let Some(reason) = &plan.off.capabilities
    {
        return Ok(Protection::off(NAME, reason));
    }
    // While there is CAP_SETPCAP.
    empty_bounding_set();
    if let Some(user) = &user {
        switch(user).map_err(|error| ConfineError::User {
            user: user.name.clone(),
            problem: format!("cannot become it: {error}"),
        })?;
    }
    keep_only(plan.keep).map_err(|source| ConfineError::Required {
        what: "giving up capabilities",
        source: source.into(),
    })?;
    Ok(capabilities_in_force(plan.keep))
}

fn switch(user: &User) -> std::io::Result<()> {
    set_keep_capabilities(true)?;
    let name = std::ffi::CString::new(user.name.as_str())?;
    initgroups(&name, user.gid)?;
    setresgid(user.gid, user.gid, user.gid)?;
    setresuid(user.uid, user.uid, user.uid)?;
    Ok(set_keep_capabilities(false)?)
}

/// Nothing that this process might start could gain one. Without CAP_SETPCAP there is nothing to
/// do, and `no_new_privs` says the same.
fn empty_bounding_set() {
    for (_, capability) in CapabilitySet::all().iter_names() {
        if matches!(capability_is_in_bounding_set(capability), Ok(true)) {
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
}

fn keep_only(keep: CapabilitySet) -> rustix::io::Result<()> {
    let had = capabilities(None)?;
    let kept = had.permitted & keep;
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

fn capabilities_in_force(wanted: CapabilitySet) -> Protection {
    let Ok(sets) = capabilities(None) else {
        return Protection::new(NAME, State::Missing, "cannot be read");
    };
    let names = |set: CapabilitySet| {
        let names: Vec<String> = set
            .iter_names()
            .map(|(name, _)| format!("CAP_{name}"))
            .collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let excess = (sets.effective | sets.permitted | sets.inheritable) - wanted;
    if !excess.is_empty() {
        return Protection::new(NAME, State::Missing, format!("holds {}", names(excess)));
    }
    let lacking = wanted - sets.effective;
    if lacking.is_empty() {
        return Protection::new(
            NAME,
            State::InForce,
            format!("holds {}", names(sets.effective)),
        );
    }
    let detail = format!("holds {}; lacks {}", names(sets.effective), names(lacking));
    Protection::new(NAME, State::Partly, detail)
}

pub(crate) fn user_in_force() -> Protection {
    const NAME: &str = "own_user";
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        let detail = "runs as root: set `user` to a user of its own, or start it as one";
        Protection::new(NAME, State::Missing, detail)
    } else {
        Protection::new(NAME, State::InForce, format!("uid {}", uid.as_raw()))
    }
}
