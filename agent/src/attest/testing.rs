//! Real processes for tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ephor_proto::time::{Boottime, Clock, UnixMillis};
use rustix::net::sockopt::set_socket_passcred;

use super::{HashCache, Held, HeldProcess, Peer};
use crate::clock::{SharedClock, SystemClock};

/// A child that is killed and reaped with its test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Starts a program; its standard input and output are pipes.
    pub(crate) fn start(program: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let mut command = Command::new(program.as_ref());
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // A program that was just written may still be open in a child that another test forks.
        until("the program can be started", || match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
            Err(error) => panic!("{}: {error}", program.as_ref().display()),
        })
    }

    /// A shell that waits for its input to end.
    pub(crate) fn waiting() -> Self {
        Self::start("/bin/sh", &["-c", "read line; :"])
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn peer(&self) -> Peer {
        Self::peer_of(self.pid())
    }

    pub(crate) fn peer_of(pid: u32) -> Peer {
        Peer::from_process(HeldProcess::hold(pid).unwrap(), Held::Pidfd).unwrap()
    }

    /// Lets it go on: it waits for this byte.
    pub(crate) fn go_on(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Reads the next number that it prints.
    pub(crate) fn number(&mut self) -> u32 {
        let (mut text, mut byte) = (String::new(), [0]);
        let output = self.0.stdout.as_mut().unwrap();
        while output.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            text.push(char::from(byte[0]));
        }
        text.parse()
            .unwrap_or_else(|_| panic!("{text:?} is no number"))
    }

    /// Waits for its end and reaps it.
    pub(crate) fn reap(&mut self) {
        self.0.wait().unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.reap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A listener as the agent has it.
pub(crate) struct Door {
    directory: tempfile::TempDir,
    listener: UnixListener,
}

impl Door {
    pub(crate) fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        set_socket_passcred(&listener, true).unwrap();
        Self {
            directory,
            listener,
        }
    }

    pub(crate) fn path(&self) -> String {
        self.directory.path().join("s").to_str().unwrap().to_owned()
    }

    pub(crate) fn accept(&self) -> UnixStream {
        self.listener.accept().unwrap().0
    }

    /// Starts Python with `s` connected to this door, and accepts it.
    pub(crate) fn python(&self, script: &str) -> (Process, UnixStream) {
        let process = self.python_unaccepted(script);
        (process, self.accept())
    }

    pub(crate) fn python_unaccepted(&self, script: &str) -> Process {
        Process::start(
            "python3",
            &["-c", &format!("{PRELUDE}{script}"), &self.path()],
        )
    }

    /// This process on both ends.
    pub(crate) fn own(&self) -> (UnixStream, UnixStream) {
        let client = UnixStream::connect(self.path()).unwrap();
        (client, self.accept())
    }
}

/// `s`: connected. `wait()`: for the test to say go on.
const PRELUDE: &str = "
import array, os, socket, sys
def wait(): os.read(0, 1)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
";

/// Waits for a condition, with a deadline for the case that it never holds.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2_000 {
        if let Some(found) = condition() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never happened: {what}");
}

/// A clock whose wall time stands still.
pub(crate) struct Frozen(pub(crate) UnixMillis);

impl Clock for Frozen {
    fn wall(&self) -> UnixMillis {
        self.0
    }

    fn boottime(&self) -> Boottime {
        SystemClock.boottime()
    }
}

/// A cache to which every file is long settled.
pub(crate) fn cache() -> HashCache {
    let clock: SharedClock = Arc::new(Frozen(SystemClock.wall().saturating_add_millis(60_000)));
    HashCache::with_defaults(clock)
}
