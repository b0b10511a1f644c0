//! What the broker gives up before it holds a secret (`ephor_confine` does it): every capability,
//! every file that is not its own, every connection of its own making but those to targets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ephor_confine::{CapabilitySet, ConfineError, Files, Plan, Report};
use rustix::fs::Mode;

use crate::config::Config;
use crate::keys::master::Provider;

/// Ports below this are root's to listen on.
const FIRST_FREE_PORT: u16 = 1024;
/// What the runtime and the libraries read: how many processors there are, and processes: whether the
/// one that holds the store still runs, and on which boot.
const SYSTEM: [&str; 3] = ["/proc", "/sys/fs/cgroup", "/dev/urandom"];
/// What turns the name of a target into an address, and what its certificate is verified by when policy
/// names no CA.
const OF_TARGETS: [&str; 8] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/ssl/certs",
    "/usr/share/ca-certificates",
];

/// What the process is about to do.
#[derive(Debug, Clone, Copy)]
pub enum For<'a> {
    /// Make an installation: it writes where it is told to.
    Init,
    /// Serve.
    Run {
        /// Where it says that it is ready.
        ready: Option<&'a Path>,
    },
}

/// Confines this process. Call it first, before any thread is started.
///
/// # Errors
/// When a protection that must hold does not, or the user cannot be used.
pub fn harden(config: &Config, purpose: For<'_>) -> Result<Report, ConfineError> {
    // Whatever we were started with: the CA's certificate and the ready file are for others to
    // read, nothing is for others to write.
    let umask = rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::process::umask(umask | Mode::WGRP | Mode::WOTH);
    let (directories, files) = match purpose {
        For::Init => (
            vec![(config.state_dir.clone(), 0o700)],
            Files::NotApplicable("init writes where it is told to"),
        ),
        For::Run { ready } => {
            let made = vec![(directory_of(&config.admin_socket)?, 0o755)];
            (made, files(config, ready)?)
        }
    };
    ephor_confine::confine(Plan {
        off: &config.hardening_off,
        user: config.user.as_deref(),
        directories,
        keep: capabilities(config),
        files,
    })
}

/// A new file, socket or policy may come anywhere in the directories of the old ones.
fn files(config: &Config, ready: Option<&Path>) -> Result<Files, ConfineError> {
    let mut read: Vec<PathBuf> = (SYSTEM.iter().chain(&OF_TARGETS))
        .map(PathBuf::from)
        .collect();
    // The directory above, so that a new policy can take the place of the old as a whole; where
    // a link leads, too.
    read.extend(around(&config.policy_dir));
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let master_key = Provider::of(config, credentials.as_deref());
    read.push(master_key.path().to_owned());
    // As a whole: a password for a new target comes while we run. Where the directory is ours, we may
    // write there, too: that is how our own passwords are rotated.
    let mut write = vec![config.state_dir.clone()];
    match &config.target_secrets_dir {
        Some(directory) => write.push(directory.clone()),
        None => read.extend(credentials),
    }
    write.push(directory_of(&config.admin_socket)?);
    if let Some(ready) = ready {
        write.push(directory_of(ready)?);
    }
    Ok(Files::Only {
        read,
        write,
        listen: listeners(config).map(|address| address.port()).collect(),
        connect: config.target_ports.clone(),
    })
}

/// Where a file that the broker makes lies: it may write everything there.
fn directory_of(path: &Path) -> Result<PathBuf, ConfineError> {
    let refused = |problem: &str| ConfineError::Directory {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    let directory = match path.parent() {
        Some(here) if here.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(refused("it names no file")),
    };
    let real = directory.canonicalize();
    if real.is_ok_and(|real| real.parent().is_none()) {
        return Err(refused(
            "it would lie in /, and the broker may write everything in the directory of a socket or ready \
             file; name a directory of its own, such as /run/ephor",
        ));
    }
    Ok(directory.to_owned())
}

fn around(path: &Path) -> Vec<PathBuf> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    [path, &real]
        .into_iter()
        // Not everything there is, for the sake of a directory in the root.
        .map(|path| {
            path.parent()
                .filter(|parent| parent.parent().is_some())
                .unwrap_or(path)
        })
        .map(Path::to_owned)
        .collect()
}

fn listeners(config: &Config) -> impl Iterator<Item = SocketAddr> {
    [config.https_listen, config.http_listen]
        .into_iter()
        .chain(config.metrics_listen)
}

fn capabilities(config: &Config) -> CapabilitySet {
    let is_low = |address: &SocketAddr| (1..FIRST_FREE_PORT).contains(&address.port());
    if listeners(config).any(|address| is_low(&address)) {
        CapabilitySet::NET_BIND_SERVICE
    } else {
        CapabilitySet::empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_lies_in_a_directory_of_its_own() {
        let of = |path: &str| directory_of(Path::new(path));
        assert_eq!(
            of("/run/ephor/admin.sock").unwrap(),
            Path::new("/run/ephor")
        );
        assert_eq!(of("admin.sock").unwrap(), Path::new("."));
        assert_eq!(of("run/ready").unwrap(), Path::new("run"));
        for root in ["/admin.sock", "//ready", "/proc/../ready"] {
            let refused = of(root).unwrap_err().to_string();
            assert!(refused.contains("in /"), "{refused}");
        }
        assert!(of("/").is_err());
    }
}
