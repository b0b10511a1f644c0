//! What the host itself gives.

use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::daemon::Daemon;
use super::{Check, State};

/// `statfs` magic numbers (statfs(2)).
const TMPFS: i64 = 0x0102_1994;
const CGROUP2: i64 = 0x6367_7270;

/// All of them. Whether swap matters depends on the agent's memory.
pub(super) fn checks(agent: Option<&Daemon>) -> Vec<Check> {
    vec![
        peer_pidfd(),
        cgroup(),
        landlock(),
        swap(agent),
        tmpfs(),
        clock(),
        abstract_sockets(),
    ]
}

fn peer_pidfd() -> Check {
    let pair = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let has = pair.is_ok_and(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd).is_ok());
    let found = if has {
        "the kernel gives the caller of a socket as a pidfd"
    } else {
        "callers are held by pid and start time, and evidence says so"
    };
    let advice = "Linux 6.5 or later has SO_PEERPIDFD";
    Check::that(has, ("host", "peer pidfd"), found, (State::Weak, advice))
}

fn cgroup() -> Check {
    let has = file_system(Path::new("/sys/fs/cgroup")) == Some(CGROUP2);
    let found = if has {
        "cgroup v2: units are attested, and a unit's end is seen"
    } else {
        "no cgroup v2 at /sys/fs/cgroup: no rule by `systemd` matches"
    };
    let advice = "boot with systemd.unified_cgroup_hierarchy=1, or mount it into the container";
    Check::that(has, ("host", "cgroup v2"), found, (State::Weak, advice))
}

fn landlock() -> Check {
    let of = ("host", "landlock");
    match std::fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(list) => {
            let has = list.trim().split(',').any(|lsm| lsm == "landlock");
            let found = if has {
                "the kernel offers it"
            } else {
                "the kernel does not offer it"
            };
            let advice = "boot with lsm=landlock,... (Linux 5.13 or later)";
            Check::that(has, of, found, (State::Weak, advice))
        }
        Err(_) => Check::new(
            of.0,
            of.1,
            State::Unknown,
            "/sys/kernel/security cannot be read",
        ),
    }
}

fn swap(agent: Option<&Daemon>) -> Check {
    let name = "swap";
    let Ok(swaps) = std::fs::read_to_string("/proc/swaps") else {
        return Check::new("host", name, State::Unknown, "/proc/swaps cannot be read");
    };
    let areas = swaps
        .lines()
        .skip(1)
        .filter(|line| !line.is_empty())
        .count();
    let locked = agent.map_or(0, Daemon::locked_kilobytes);
    let advice =
        "let the agent lock its memory (LimitMEMLOCK=infinity), or encrypt or turn off swap";
    match (areas, locked) {
        (0, _) => Check::new("host", name, State::Ok, "off"),
        (_, 1..) => Check::new(
            "host",
            name,
            State::Ok,
            format!("on, but the agent's memory is locked ({locked} kB)"),
        ),
        (_, 0) => {
            Check::new("host", name, State::Wrong, "on, and secrets may reach it").advise(advice)
        }
    }
}

/// Where `?as=file` writes.
fn tmpfs() -> Check {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(std::path::PathBuf::from);
    let dir = runtime
        .filter(|dir| dir.is_dir())
        .unwrap_or_else(|| "/dev/shm".into());
    let found = dir.display().to_string();
    let advice = "files of credentials reach a disk there; set XDG_RUNTIME_DIR to a tmpfs";
    let has = file_system(&dir) == Some(TMPFS);
    Check::that(has, ("host", "tmpfs"), found, (State::Wrong, advice))
}

/// Whether the kernel's clock is kept by someone. Only asked of what is installed.
fn clock() -> Check {
    let name = "clock";
    let asked = std::process::Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stderr(std::process::Stdio::null())
        .output();
    match asked {
        Ok(output) if output.status.success() => {
            let has = output.stdout.starts_with(b"yes");
            let found = if has {
                "synchronised"
            } else {
                "not synchronised"
            };
            let advice = "install chrony or systemd-timesyncd: lifetimes are compared across hosts";
            Check::that(has, ("host", name), found, (State::Wrong, advice))
        }
        Ok(_) | Err(_) => Check::new("host", name, State::Unknown, "timedatectl does not answer")
            .advise("check that chrony or another daemon keeps the clock"),
    }
}

/// One of ours would have no owner and no mode (unix(7)); neither daemon makes any.
fn abstract_sockets() -> Check {
    let name = "named sockets";
    let Ok(sockets) = std::fs::read_to_string("/proc/net/unix") else {
        return Check::new(
            "host",
            name,
            State::Unknown,
            "/proc/net/unix cannot be read",
        );
    };
    let found = sockets.lines().find(|line| {
        let path = line.split_whitespace().nth(7);
        path.is_some_and(|path| path.starts_with('@') && path.contains("ephor"))
    });
    match found {
        None => Check::new("host", name, State::Ok, "no abstract socket of that name"),
        Some(_) => Check::new(
            "host",
            name,
            State::Wrong,
            "an abstract socket calls itself ephor",
        )
        .advise("none is ours: find who listens there with ss -xlp"),
    }
}

/// The magic number of the file system at a path.
fn file_system(path: &Path) -> Option<i64> {
    rustix::fs::statfs(path).ok().map(|stat| stat.f_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_something() {
        for check in checks(None) {
            assert!(!check.found.is_empty(), "{check:?}");
            assert!(
                check.state == State::Ok || check.state == State::Unknown || check.advice.is_some(),
                "{check:?}"
            );
        }
        assert_eq!(file_system(Path::new("/nonexistent")), None);
    }
}
