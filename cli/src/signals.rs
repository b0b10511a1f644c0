//! Signals as a stream that says who sent them.
//!
//! A terminal sends its signals to the whole foreground group, so a child has them already;
//! only `signalfd` tells those (sent by the kernel) from what somebody sent to us alone.
//! While this lives the signals are blocked here; children are started with the mask from
//! before (see [`crate::process`]).

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::SignalKind;

use crate::exit::Failure;
use crate::process::readable;

/// What is passed on to a child.
const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// `si_code` of what the kernel itself sends, as a terminal's ^C (signal(7), `SI_KERNEL`).
const SI_KERNEL: i32 = 0x80;

/// One signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caught {
    /// Which.
    pub signal: Signal,
    /// The kernel sent it to the whole process group: a child has it already.
    pub to_group: bool,
}

impl Caught {
    /// Whether it asks us to end.
    pub fn ends_us(self) -> bool {
        matches!(
            self.signal,
            Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM
        )
    }
}

/// The stream.
pub struct Signals {
    fd: AsyncFd<SignalFd>,
    before: SigSet,
    /// A handler for SIGCHLD: where it is ignored, as some parents leave it, the kernel
    /// reaps children by itself and no exit status is ever seen.
    _child: tokio::signal::unix::Signal,
}

impl Signals {
    /// Blocks the forwarded signals and SIGCHLD in this thread, and reads them from now on.
    ///
    /// # Errors
    /// When the kernel refuses a signal descriptor.
    pub fn take() -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::local("cannot watch signals", why);
        let child = tokio::signal::unix::signal(SignalKind::child()).map_err(|why| failed(&why))?;
        let before = SigSet::thread_get_mask().map_err(|why| failed(&why))?;
        let mut watched = SigSet::empty();
        for signal in FORWARDED {
            watched.add(signal);
        }
        watched.add(Signal::SIGCHLD);
        watched.thread_block().map_err(|why| failed(&why))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&watched, flags).map_err(|why| failed(&why))?;
        let fd = readable(fd).map_err(|why| failed(&why))?;
        Ok(Self {
            fd,
            before,
            _child: child,
        })
    }

    /// The mask from before: what a child is started with.
    pub fn mask_before(&self) -> SigSet {
        self.before
    }

    /// The next signal.
    ///
    /// # Errors
    /// When the descriptor fails, which the kernel does not do while it is open.
    pub async fn next(&self) -> io::Result<Caught> {
        loop {
            let mut ready = self.fd.readable().await?;
            match self.fd.get_ref().read_signal()? {
                None => ready.clear_ready(),
                Some(info) => {
                    let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                    if let Ok(signal) = Signal::try_from(number) {
                        return Ok(Caught {
                            signal,
                            to_group: info.ssi_code == SI_KERNEL,
                        });
                    }
                }
            }
        }
    }

    /// The next signal that asks us to end; the others are dropped.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_ending(&self) -> io::Result<Caught> {
        loop {
            let caught = self.next().await?;
            if caught.ends_us() {
                return Ok(caught);
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Nothing to do about a refusal, and the kernel gives none for a mask it gave us.
        let _ = self.before.thread_set_mask();
    }
}
