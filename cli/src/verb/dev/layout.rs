//! Where everything of one installation lies, below one directory that is ours alone.

mod stale;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ephor_broker::policy::Snapshot;
use ephor_proto::postgres::Address;
use rustix::fs::FlockOperation;

use crate::exit::{self, Failure};

/// `sun_path` without its final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// The file whose lock says that somebody uses the directory.
const LOCK: &str = "lock";

/// Where the policy comes from.
pub enum PolicyFrom {
    /// A directory of the user's.
    Directory(PathBuf),
    /// One file of this name and text, in a directory of ours.
    File(&'static str, String),
}

/// The directory, locked for this process.
pub struct Layout {
    dir: PathBuf,
    policy: PathBuf,
    /// Where the servers are that policy names; none when it cannot be read, which is the broker's to tell.
    targets: Vec<Address>,
    /// Held open: another `ephor dev` in the same directory is refused.
    _lock: OwnedFd,
    /// Removes the directory at the end when it was made by us without a name.
    temporary: Option<tempfile::TempDir>,
}

/// A directory with the only record of a login that may be at its server outlives us: see [`remove_stale`].
impl Drop for Layout {
    fn drop(&mut self) {
        if stale::has_login(&self.dir)
            && let Some(temporary) = self.temporary.take()
        {
            let _ = temporary.keep();
        }
    }
}

impl Layout {
    /// In `dir`, which is made if it is missing, or else in a temporary directory whose name
    /// begins with `prefix`.
    ///
    /// # Errors
    /// When the directory cannot be ours alone, or its name is too long for a socket.
    pub fn make(dir: Option<&Path>, prefix: &str) -> Result<Self, Failure> {
        let (dir, temporary, lock) = match dir {
            Some(dir) => {
                let dir =
                    std::path::absolute(dir).map_err(|why| Failure::local(dir.display(), why))?;
                check_name(&dir)?;
                private(&dir)?;
                let lock = lock(&dir)?;
                // One that a killed start left, and that is chosen now, is nobody's to remove.
                let _ = std::fs::remove_file(dir.join(stale::TEMPORARY));
                (dir, None, lock)
            }
            None => {
                remove_stale();
                let (made, lock) = temporary(prefix)?;
                (made.path().to_owned(), Some(made), lock)
            }
        };
        let policy = dir.join("policy");
        Ok(Self {
            dir,
            policy,
            targets: Vec::new(),
            _lock: lock,
            temporary,
        })
    }

    /// Takes the policy from there, and the places of the servers that it names.
    ///
    /// # Errors
    /// When the directory does not exist, or the file cannot be written.
    pub fn with_policy(mut self, from: PolicyFrom) -> Result<Self, Failure> {
        match from {
            PolicyFrom::Directory(given) => {
                let absolute = std::fs::canonicalize(&given);
                self.policy = absolute.map_err(|why| {
                    Failure::config(format!("--policy {}: {why}", given.display()))
                })?;
            }
            PolicyFrom::File(name, text) => {
                let failed =
                    |why| Failure::local(format!("cannot write {}", self.policy.display()), why);
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.policy)
                    .map_err(failed)?;
                write_private(&self.policy.join(name), &text).map_err(failed)?;
            }
        }
        if let Ok(policy) = Snapshot::load(&self.policy) {
            let servers = policy.targets().map(|target| &target.postgres);
            let hosts = servers.flat_map(|one| std::iter::once(&one.address).chain(&one.standbys));
            self.targets = hosts.cloned().collect();
        }
        Ok(self)
    }

    /// Whether there is a server to make logins at.
    pub fn has_target(&self) -> bool {
        !self.targets.is_empty()
    }

    /// TCP ports of the servers that policy names.
    pub fn target_ports(&self) -> BTreeSet<u16> {
        let port = |address: &Address| match address {
            Address::Tcp { port, .. } => Some(*port),
            Address::Socket { .. } => None,
        };
        self.targets.iter().filter_map(port).collect()
    }

    /// Where the passwords of the broker's own logins at them are: files `target-NAME`.
    pub fn target_secrets(&self) -> PathBuf {
        self.dir.join("targets")
    }

    /// The same, made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_target_secrets(&self) -> Result<PathBuf, Failure> {
        let dir = self.target_secrets();
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir);
        made.map_err(|why| Failure::local(format!("cannot make {}", dir.display()), why))?;
        Ok(dir)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Directory of policy files.
    pub fn policy(&self) -> &Path {
        &self.policy
    }

    /// Shell-sourceable variables; there only while both serve.
    pub fn env_file(&self) -> PathBuf {
        self.dir.join("env")
    }

    /// The broker's store.
    pub fn broker_state(&self) -> PathBuf {
        self.dir.join("broker")
    }

    /// The CA's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("broker/ca.pem")
    }

    /// The agent's identity and journal.
    pub fn agent_state(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// Says that the agent has joined.
    pub fn joined(&self) -> PathBuf {
        self.dir.join("agent.joined")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    /// The broker's admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        admin_socket(&self.dir)
    }

    /// Settings, log or ready file of a daemon: `broker.toml`, `agent.log`.
    pub fn file(&self, what: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{what}.{extension}"))
    }

    /// Writes a file of ours (0600), whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path, text: &str) -> Result<(), Failure> {
        write_private(path, text)
            .map_err(|why| Failure::local(format!("cannot write {}", path.display()), why))
    }
}

/// Removes temporary directories that nobody uses and that name no login.
pub fn remove_stale() {
    stale::remove(&std::env::temp_dir());
}

/// Whether a start removes this directory at its end.
pub fn is_temporary(dir: &Path) -> bool {
    stale::is_temporary(dir)
}

/// Directories of killed starts whose login may still be at its server, locked.
pub fn stale_with_login() -> Vec<(PathBuf, std::fs::File)> {
    stale::with_login(&std::env::temp_dir())
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}

fn admin_socket(dir: &Path) -> PathBuf {
    dir.join("broker-admin.sock")
}

fn check_name(dir: &Path) -> Result<(), Failure> {
    if dir
        .to_str()
        .is_none_or(|text| text.contains(char::is_control))
    {
        return Err(Failure::usage(format!(
            "{}: the directory's name must be plain UTF-8.",
            dir.display()
        )));
    }
    for socket in [socket(dir), admin_socket(dir)] {
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(Failure::usage(format!(
                "{} has {length} bytes, a socket's path at most {SOCKET_PATH_MAX}.\n\
                 Choose a shorter --dir; nothing was made.",
                socket.display()
            )));
        }
    }
    Ok(())
}

/// Makes the directory, or checks that nobody else can reach into the one that is there.
fn private(dir: &Path) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::local(dir.display(), why);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|why| {
            let dir = dir.display();
            Failure::usage(format!(
                "{dir} cannot be made: {why}; choose another --dir."
            ))
        })?;
    let known = std::fs::metadata(dir).map_err(|why| failed(&why))?;
    if known.uid() != rustix::process::geteuid().as_raw() {
        return Err(Failure::usage(format!(
            "{} is not yours; choose another --dir.",
            dir.display()
        )));
    }
    if known.mode() & 0o077 == 0 {
        return Ok(());
    }
    let empty = std::fs::read_dir(dir)
        .map_err(|why| failed(&why))?
        .next()
        .is_none();
    if !empty {
        let dir = dir.display();
        return Err(Failure::usage(format!(
            "others may reach into {dir}; first: chmod 700 {dir}"
        )));
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .map_err(|why| failed(&why))
}

/// A new directory that no other start takes for a stale one.
fn temporary(prefix: &str) -> Result<(tempfile::TempDir, OwnedFd), Failure> {
    loop {
        let made = tempfile::Builder::new()
            .prefix(prefix)
            .rand_bytes(stale::RANDOM)
            .tempdir();
        let made = made.map_err(|why| Failure::local("cannot make a temporary directory", why))?;
        check_name(made.path())?;
        private(made.path())?;
        let word = made.path().join(stale::TEMPORARY);
        write_private(&word, "").map_err(|why| Failure::local(word.display(), why))?;
        // Another start may have looked between its making and its locking.
        match lock(made.path()) {
            Ok(lock) if stale::is_lock_of(made.path(), &lock) => return Ok((made, lock)),
            Err(failure) if made.path().is_dir() && failure.code != exit::USAGE => {
                return Err(failure);
            }
            Ok(_) | Err(_) => {}
        }
    }
}

fn lock(dir: &Path) -> Result<OwnedFd, Failure> {
    let path = dir.join(LOCK);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    let file = OwnedFd::from(file.map_err(|why| Failure::local(path.display(), why))?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::usage(format!(
            "{} is in use by another `ephor dev`.",
            dir.display()
        ))),
        Err(why) => Err(Failure::local(path.display(), why)),
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|why| why.error)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn make(dir: &Path) -> Result<Layout, Failure> {
        Layout::make(Some(dir), "x")?.with_policy(PolicyFrom::File("dev.toml", "# policy\n".into()))
    }

    fn refusal(dir: &Path) -> String {
        match make(dir) {
            Ok(_) => panic!("{} was taken", dir.display()),
            Err(failure) => failure.message,
        }
    }

    #[test]
    fn made_privately_and_for_one_at_a_time() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("a/b");
        let layout = make(&dir).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert_eq!(
            std::fs::metadata(dir.join("policy/dev.toml"))
                .unwrap()
                .mode()
                & 0o777,
            0o600
        );
        assert!(refusal(&dir).contains("in use"));
        drop(layout);
        assert!(make(&dir).is_ok(), "and again afterwards");
        assert!(dir.exists());
    }

    #[test]
    fn a_temporary_one_goes() {
        let layout = Layout::make(None, "ephor-test.").unwrap();
        let dir = layout.dir().to_owned();
        assert!(dir.is_dir());
        drop(layout);
        assert!(!dir.exists());
    }

    #[test]
    fn a_name_too_long_for_a_socket_makes_nothing() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("d".repeat(100));
        assert!(refusal(&dir).contains("at most 107"));
        assert!(!dir.exists());
    }

    #[test]
    fn others_may_not_reach_in() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("open");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        drop(make(&dir).unwrap());
        assert_eq!(
            std::fs::metadata(&dir).unwrap().mode() & 0o777,
            0o700,
            "an empty one is closed"
        );
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refusal(&dir).contains("chmod 700"));
    }
}
