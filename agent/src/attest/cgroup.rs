//! Which systemd unit or container a process is in, from its cgroup path.
//!
//! A path is believed only where every directory down to the unit's is root's alone: below a
//! delegated one, its owner makes directories of any name.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ephor_proto::limits::MAX_ANCESTORS;
use ephor_proto::task_rule::Unit;
use rustix::fs::{CWD, Mode, OFlags, fstat, getxattr, openat};

use super::ancestor::parent;
use super::error::AttestError;
use super::mounts::mounts;
use super::process::HeldProcess;

/// Where a process is. All empty on a host without systemd or containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// systemd unit.
    pub unit: Option<String>,
    /// The unit's `InvocationID`, 32 hexadecimal digits, where systemd says it.
    pub invocation_id: Option<String>,
    /// Container id, 64 hexadecimal digits.
    pub container: Option<String>,
    /// The unit or container as a task of its own; none for a login session.
    pub run: Option<UnitRun>,
}

/// One run of a unit or container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitRun {
    /// Its name and what tells one run from the next.
    pub unit: Unit,
    /// Its cgroup directory.
    pub directory: PathBuf,
    /// Inode of that directory; another one is another run.
    pub inode: u64,
    /// Whether the kernel tells when it is empty (`cgroup.events` of cgroup v2).
    pub has_events: bool,
}

/// Where one hierarchy is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// The line of `/proc/PID/cgroup` that belongs to it: its controllers.
    controllers: &'static str,
    point: PathBuf,
}

impl Placement {
    /// Where `process` is.
    pub(super) fn of(process: &HeldProcess) -> Result<Self, AttestError> {
        let hierarchies = hierarchies();
        if hierarchies.is_empty() {
            return Ok(Self::default());
        }
        let text = process.read("cgroup")?;
        Ok(hierarchies
            .iter()
            .find_map(|hierarchy| place(hierarchy, &text))
            .unwrap_or_default())
    }
}

/// cgroup v2 first, then systemd's own hierarchy of the hybrid layout.
fn hierarchies() -> &'static [Hierarchy] {
    static FOUND: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let find = |controllers, kind: &str, option: &str| {
            let whole = |m: &super::mounts::Mount<'_>| {
                m.kind == kind
                    && m.root == "/"
                    && (option.is_empty() || m.options.split(',').any(|o| o == option))
            };
            mounts(&table).find(whole).map(|mount| Hierarchy {
                controllers,
                point: PathBuf::from(mount.point),
            })
        };
        [
            find("", "cgroup2", ""),
            find("name=systemd", "cgroup", "name=systemd"),
        ]
        .into_iter()
        .flatten()
        .collect()
    })
}

/// Whether this run of a unit or container still has a process: its directory is the same, it
/// is the same invocation, and the kernel calls it populated. Without `cgroup.events` only the
/// first two can be told.
#[must_use]
pub fn is_running(unit: &Unit, directory: &Path, inode: u64) -> bool {
    let same = std::fs::metadata(directory).is_ok_and(|meta| meta.ino() == inode);
    let by_inode = unit.invocation.starts_with("cgroup:");
    let same_run = || {
        by_inode || invocation(directory, &unit.name).as_deref() == Some(unit.invocation.as_str())
    };
    let populated = || match std::fs::read_to_string(directory.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "populated 1"),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound && directory.exists(),
    };
    same && same_run() && populated()
}

/// The topmost process above `process` in the same run: what a service manager started.
///
/// # Errors
/// When the process ends meanwhile or `/proc` fails.
pub fn leader(process: &HeldProcess, run: &UnitRun) -> Result<HeldProcess, AttestError> {
    let mut top = HeldProcess::hold(process.id().pid)?;
    if top.id() != process.id() {
        return Err(AttestError::Gone {
            pid: process.id().pid,
        });
    }
    for _ in 0..MAX_ANCESTORS {
        let Some(above) = parent(&top)? else { break };
        let inside = Placement::of(&above)
            .is_ok_and(|place| place.run.as_ref().is_some_and(|r| r.inode == run.inode));
        if !inside {
            break;
        }
        top = above;
    }
    Ok(top)
}

fn place(hierarchy: &Hierarchy, text: &str) -> Option<Placement> {
    let path = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let _ = fields.next()?;
        (fields.next()? == hierarchy.controllers)
            .then(|| fields.next())
            .flatten()
    })?;
    let components: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (depth, found) = classify(&components)?;
    let components = components.get(..depth)?;
    let inode = owned_by_root(&hierarchy.point, components)?;
    let directory = components
        .iter()
        .fold(hierarchy.point.clone(), |path, part| path.join(part));
    let unit = match &found {
        Found::Unit(name) => Some(name.clone()),
        Found::Container(_) => None,
    };
    let invocation_id = unit
        .as_deref()
        .and_then(|unit| invocation(&directory, unit));
    let invocation = invocation_id
        .clone()
        .unwrap_or_else(|| format!("cgroup:{inode}"));
    let run = found.is_task().then(|| UnitRun {
        unit: Unit {
            name: found.name().to_owned(),
            invocation,
        },
        has_events: directory.join("cgroup.events").exists(),
        directory,
        inode,
    });
    let container = match found {
        Found::Container(id) => Some(id),
        Found::Unit(_) => None,
    };
    Some(Placement {
        unit,
        invocation_id,
        container,
        run,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Unit(String),
    Container(String),
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Self::Unit(name) | Self::Container(name) => name,
        }
    }

    /// A login session, a user's manager and process 1 are no tasks: they outlive what runs there.
    fn is_task(&self) -> bool {
        match self {
            Self::Unit(name) => {
                !(name.starts_with("session-") || name.starts_with("user@") || name == "init.scope")
            }
            Self::Container(_) => true,
        }
    }
}

/// The first unit or container on the way down, and how many components lead to it. Only the
/// layouts of systemd, Docker, containerd, CRI-O and Podman, to the letter.
fn classify(components: &[&str]) -> Option<(usize, Found)> {
    let mut above: &[&str] = &[];
    for (index, component) in components.iter().enumerate() {
        let depth = index + 1;
        // systemd puts one underscore before a name that would clash with a kernel file.
        let name = component.strip_prefix('_').unwrap_or(component);
        if let Some(id) = scope_of_container(name).or_else(|| container_below(above, name)) {
            return Some((depth, Found::Container(id.to_owned())));
        }
        if is_unit(name) {
            return Some((depth, Found::Unit(name.to_owned())));
        }
        if !(name.ends_with(".slice") || leads_to_container(above, name)) {
            return None;
        }
        above = components.get(..depth)?;
    }
    None
}

fn is_unit(name: &str) -> bool {
    let stem = name
        .strip_suffix(".service")
        .or_else(|| name.strip_suffix(".scope"));
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\-@".contains(&byte);
    stem.is_some_and(|stem| !stem.is_empty() && stem.bytes().all(legal)) && name.len() < 256
}

fn scope_of_container(name: &str) -> Option<&str> {
    let (runtime, id) = name.strip_suffix(".scope")?.rsplit_once('-')?;
    (["docker", "cri-containerd", "crio", "libpod"].contains(&runtime) && is_container_id(id))
        .then_some(id)
}

fn container_below<'a>(above: &[&str], name: &'a str) -> Option<&'a str> {
    match above {
        ["docker"] => Some(name),
        ["libpod_parent"] => name.strip_prefix("libpod-"),
        ["kubepods", pod] | ["kubepods", _, pod] if pod.starts_with("pod") => Some(name),
        _ => None,
    }
    .filter(|id| is_container_id(id))
}

fn leads_to_container(above: &[&str], name: &str) -> bool {
    match above {
        [] => ["docker", "libpod_parent", "kubepods"].contains(&name),
        ["kubepods"] => {
            ["besteffort", "burstable", "guaranteed"].contains(&name) || name.starts_with("pod")
        }
        ["kubepods", class] => !class.starts_with("pod") && name.starts_with("pod"),
        _ => false,
    }
}

fn is_container_id(id: &str) -> bool {
    id.len() == 64
        && id
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The inode of the last directory, if root alone owns it and every one above it.
fn owned_by_root(point: &Path, components: &[&str]) -> Option<u64> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory: OwnedFd = openat(CWD, point, flags, Mode::empty()).ok()?;
    let mut inode = root_owned_inode(&directory)?;
    for component in components {
        // Such a path would lead out of what was checked.
        if *component == "." || *component == ".." {
            return None;
        }
        directory = openat(&directory, *component, flags, Mode::empty()).ok()?;
        inode = root_owned_inode(&directory)?;
    }
    Some(inode)
}

fn root_owned_inode(directory: &OwnedFd) -> Option<u64> {
    let stat = fstat(directory).ok()?;
    (stat.st_uid == 0 && stat.st_mode & 0o022 == 0).then_some(stat.st_ino)
}

/// systemd's id of this run: an attribute of the directory, else a link under `/run/systemd`.
fn invocation(directory: &Path, unit: &str) -> Option<String> {
    let attribute = ["trusted.invocation_id", "user.invocation_id"]
        .into_iter()
        .find_map(|name| {
            let mut value = [0_u8; 64];
            let length = getxattr(directory, name, &mut value[..]).ok()?;
            value
                .get(..length)
                .and_then(|value| std::str::from_utf8(value).ok())
                .map(str::to_owned)
        });
    let link = || {
        let link = std::fs::read_link(format!("/run/systemd/units/invocation:{unit}")).ok()?;
        link.to_str().map(str::to_owned)
    };
    let is_id = |id: &String| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    attribute.filter(is_id).or_else(|| link().filter(is_id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found(path: &str) -> Option<(usize, Found)> {
        let components: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        classify(&components)
    }

    #[test]
    fn the_first_unit_on_the_way_down_counts() {
        let unit = |depth, name: &str| Some((depth, Found::Unit(name.to_owned())));
        assert_eq!(
            found("/system.slice/orders-web.service"),
            unit(2, "orders-web.service")
        );
        assert_eq!(
            found("/system.slice/system-x.slice/x@1.service/sub/y.service"),
            unit(3, "x@1.service")
        );
        assert_eq!(found("/system.slice/_cpu.service"), unit(2, "cpu.service"));
        let manager = "/user.slice/user-1000.slice/user@1000.service/app.slice/orders-web.service";
        assert_eq!(found(manager), unit(3, "user@1000.service"));
        for none in [
            "/",
            "",
            "/a/orders.service",
            "/system.slice/a b.service",
            "/system.slice/.service",
            "/../x.service",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn containers_are_known_by_exact_layouts() {
        let id = "0123456789abcdef".repeat(4);
        let pod = "kubepods-burstable-pod1.slice";
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/docker/{id}"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/kubepods-burstable.slice/{pod}/cri-containerd-{id}.scope"),
            format!("/kubepods/burstable/pod12-ab/{id}"),
            format!("/kubepods/pod12-ab/{id}/x"),
            format!("/libpod_parent/libpod-{id}"),
        ] {
            assert_eq!(
                found(&path).unwrap().1,
                Found::Container(id.clone()),
                "{path}"
            );
        }
        for path in [
            format!("/mine/docker/{id}"),
            format!("/{id}"),
            format!("/docker/a/{id}"),
            format!("/docker/{}", id.to_uppercase()),
        ] {
            assert_eq!(found(&path), None, "{path}");
        }
    }

    #[test]
    fn a_login_session_is_no_task() {
        let task = |name: &str| Found::Unit(name.to_owned()).is_task();
        assert!(task("orders-web.service") && task("run-r1.scope"));
        assert!(!task("session-3.scope") && !task("user@1000.service") && !task("init.scope"));
    }

    #[test]
    fn a_directory_that_is_not_roots_alone_proves_nothing() {
        assert!(owned_by_root(Path::new("/"), &["usr", "lib"]).is_some());
        assert_eq!(owned_by_root(Path::new("/"), &["usr", ".."]), None);
        assert_eq!(owned_by_root(Path::new("/"), &["tmp"]), None);
        let mine = tempfile::tempdir().unwrap();
        std::fs::create_dir(mine.path().join("x.service")).unwrap();
        // Root makes it somebody's; anybody else owns it already.
        let _ = std::os::unix::fs::chown(mine.path(), Some(65_534), None);
        assert_eq!(owned_by_root(mine.path(), &["x.service"]), None);
    }

    #[test]
    fn a_line_of_another_hierarchy_is_not_read() {
        let here = Hierarchy {
            controllers: "",
            point: PathBuf::from("/"),
        };
        assert_eq!(
            place(&here, "9:name=systemd:/system.slice/x.service\n0::/\n"),
            None
        );
        assert_eq!(
            place(&here, "0::/system.slice/nowhere-to-be-found.service\n"),
            None
        );
    }
}
