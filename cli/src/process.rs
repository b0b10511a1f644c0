//! Starting processes and waiting for them by descriptor.
//!
//! `posix_spawn`, because a child must start with the signal mask from before ours was
//! changed, with no moment in between where a signal could hit the wrong one. Secrets in an
//! environment are wiped here once the kernel has its copy.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::io::unix::AsyncFd;
use zeroize::{Zeroize, Zeroizing};

/// This binary, for processes that are it again.
pub const SELF: &str = "/proc/self/exe";

/// An environment under construction.
pub struct Environment(Vec<(OsString, Zeroizing<Vec<u8>>)>);

impl Environment {
    /// A copy of ours.
    pub fn inherited() -> Self {
        Self(
            std::env::vars_os()
                .map(|(name, value)| (name, Zeroizing::new(value.into_vec())))
                .collect(),
        )
    }

    /// Nothing.
    pub fn empty() -> Self {
        Self(Vec::new())
    }

    /// Sets or replaces a variable.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.into(), Zeroizing::new(value.to_vec())));
    }

    /// What a variable is set to.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    /// Removes a variable.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// Removes variables whose name begins with `prefix`.
    pub fn remove_prefix(&mut self, prefix: &str) {
        self.0
            .retain(|(name, _)| !name.as_bytes().starts_with(prefix.as_bytes()));
    }

    fn to_c(&self) -> Result<Vec<CString>, Errno> {
        let pair = |(name, value): &(OsString, Zeroizing<Vec<u8>>)| {
            let mut text = Vec::with_capacity(name.len() + value.len() + 2);
            text.extend_from_slice(name.as_bytes());
            text.push(b'=');
            text.extend_from_slice(value);
            c_string(text)
        };
        self.0.iter().map(pair).collect()
    }
}

fn c_string(bytes: Vec<u8>) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|why| {
        why.into_vec().zeroize();
        Errno::EINVAL
    })
}

/// Standard descriptors of a new process.
pub struct Stdio<'a> {
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
}

/// What to start.
pub struct Command<'a> {
    /// Looked up in `PATH` when it has no slash.
    pub program: &'a OsStr,
    /// Its arguments, `argv[0]` included.
    pub argv: &'a [OsString],
    /// Its whole environment.
    pub environment: &'a Environment,
    /// Its signal mask.
    pub mask: SigSet,
    /// Its standard descriptors; absent: ours.
    pub stdio: Option<Stdio<'a>>,
    /// Whether it gets a process group of its own, out of reach of the terminal's ^C.
    pub own_group: bool,
}

impl Command<'_> {
    /// Starts it.
    ///
    /// # Errors
    /// What `execve` said, such as `ENOENT`.
    pub fn spawn(&self) -> Result<Child, Errno> {
        let program = c_string(self.program.as_bytes().to_vec())?;
        let argv = self
            .argv
            .iter()
            .map(|arg| c_string(arg.as_bytes().to_vec()));
        let argv = argv.collect::<Result<Vec<_>, _>>()?;
        let environment = self.environment.to_c()?;
        let started = posix_spawnp(
            &program,
            &self.actions()?,
            &self.attributes()?,
            &argv,
            &environment,
        );
        for pair in environment {
            pair.into_bytes_with_nul().zeroize();
        }
        Child::new(started?)
    }

    fn attributes(&self) -> Result<PosixSpawnAttr, Errno> {
        let mut attributes = PosixSpawnAttr::init()?;
        let mut flags =
            PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
        attributes.set_sigmask(&self.mask)?;
        // Rust programs ignore SIGPIPE; others expect its default.
        let mut default = SigSet::empty();
        default.add(Signal::SIGPIPE);
        attributes.set_sigdefault(&default)?;
        if self.own_group {
            flags |= PosixSpawnFlags::POSIX_SPAWN_SETPGROUP;
            attributes.set_pgroup(nix::unistd::Pid::from_raw(0))?;
        }
        attributes.set_flags(flags)?;
        Ok(attributes)
    }

    fn actions(&self) -> Result<PosixSpawnFileActions, Errno> {
        let mut actions = PosixSpawnFileActions::init()?;
        if let Some(stdio) = &self.stdio {
            for (fd, number) in [(stdio.stdin, 0), (stdio.stdout, 1), (stdio.stderr, 2)] {
                actions.add_dup2(fd.as_raw_fd(), number)?;
            }
        }
        Ok(actions)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Code(u8),
    /// By a signal.
    Signal(u8),
    /// Somebody else took its status.
    Unknown,
}

impl Exit {
    /// From the two halves of a wait status.
    pub fn from_status(code: Option<i32>, signal: Option<i32>) -> Self {
        let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number).ok());
        match (byte(code), byte(signal)) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }

    /// As shells have it: its own code, or 128 + signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
            Self::Unknown => 1,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown end"),
        }
    }
}

/// A child of this process, held by its descriptor.
#[derive(Debug)]
pub struct Child {
    pid: rustix::process::Pid,
    fd: AsyncFd<OwnedFd>,
}

impl Child {
    fn new(pid: nix::unistd::Pid) -> Result<Self, Errno> {
        let errno = |why: rustix::io::Errno| Errno::from_raw(why.raw_os_error());
        let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(errno)?;
        let fd = readable(fd).map_err(|_| Errno::EMFILE)?;
        Ok(Self { pid, fd })
    }

    /// Its process id; not reused while it was not waited for.
    pub fn pid(&self) -> rustix::process::Pid {
        self.pid
    }

    /// Sends a signal; that it has ended is not an error.
    pub fn signal(&self, signal: Signal) {
        if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
            let _ = rustix::process::pidfd_send_signal(self.fd.get_ref(), signal);
        }
    }

    /// Whether it has not ended yet. Its status is not taken.
    pub fn is_running(&self) -> bool {
        let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(self.fd.get_ref()));
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(id, look), Ok(None))
    }

    /// Kills its process group, which must be one of its own, and takes its status.
    pub fn kill_group_and_reap(&self) {
        // Its pid is its own until its status was taken.
        if self.is_running() {
            let _ = rustix::process::kill_process_group(self.pid, rustix::process::Signal::KILL);
            let _ = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED);
        }
    }

    /// Kills it and takes its status, so that nothing of it is left.
    pub fn kill_and_reap(&self) {
        self.signal(Signal::SIGKILL);
        let _ = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED);
    }

    /// Waits until it has ended, without taking its status.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub async fn gone(&self) -> io::Result<()> {
        self.fd
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
    }

    /// Waits until it has ended, and takes its status.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub async fn wait(&self) -> io::Result<Exit> {
        self.gone().await?;
        let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(self.fd.get_ref()));
        match waitid(id, WaitIdOptions::EXITED) {
            Ok(Some(status)) => Ok(Exit::from_status(
                status.exit_status(),
                status.terminating_signal(),
            )),
            Ok(None) | Err(_) => Ok(Exit::Unknown),
        }
    }
}

/// Lets this process be told to end (SIGTERM) when its parent does, however that ends.
///
/// # Errors
/// When the parent is another one than `parent` by now, so has ended, or the kernel refuses.
pub fn end_with(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    match now.and_then(|pid| u32::try_from(pid).ok()) == Some(parent) {
        true => Ok(()),
        false => Err(io::Error::other("who started it is gone")),
    }
}

/// A descriptor of ours to be polled for reading.
///
/// # Errors
/// When the runtime cannot watch it.
#[expect(
    deprecated,
    reason = "its replacement is unsafe; what is handed over is owned, so it stays open and the same"
)]
pub fn readable<T: AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}
