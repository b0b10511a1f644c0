//! What the agent gives up before it holds a secret (`ephor_confine` does it), and what it cannot:
//! it looks at other users' processes, so it keeps one capability and stays out of Landlock.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ephor_confine::{CapabilitySet, ConfineError, Files, Plan, Protection, Report, State};
use rustix::fs::Mode;

use crate::attest;
use crate::config::{Config, PeerPidfd};

/// Why there is no Landlock here; a test of this crate looks whether that is still so.
const NO_LANDLOCK: &str = "a process in a Landlock domain may not look at processes outside it, \
                           which attesting does; run the agent as a user of its own";

/// Confines this process. Call it first, before any thread is started; `made` are directories to
/// make, for the user to become, with their modes.
///
/// # Errors
/// When a protection that must hold does not, or the user cannot be used.
pub fn harden(config: &Config, made: Vec<(PathBuf, u32)>) -> Result<Report, ConfineError> {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let mut report = ephor_confine::confine(Plan {
        off: &config.hardening_off,
        user: config.user.as_deref(),
        directories: made,
        // To read /proc/PID/exe and ns of other users' processes; never to trace: that call is
        // refused to the agent itself.
        keep: CapabilitySet::SYS_PTRACE,
        files: Files::NotApplicable(NO_LANDLOCK),
    })?;
    report.add(peer_pidfd(config.peer_pidfd));
    Ok(report)
}

fn peer_pidfd(setting: PeerPidfd) -> Protection {
    const NAME: &str = "peer_pidfd";
    match setting {
        PeerPidfd::Off => Protection::new(
            NAME,
            State::Off,
            "turned off: callers are held by pid and start time",
        ),
        PeerPidfd::Auto if has_peer_pidfd() => Protection::new(
            NAME,
            State::InForce,
            "callers are held by the kernel's pidfd",
        ),
        PeerPidfd::Auto => Protection::new(
            NAME,
            State::Missing,
            "this kernel has none (Linux 6.5 has): callers are held by pid and start time",
        ),
    }
}

/// Tried with a connection to ourselves.
fn has_peer_pidfd() -> bool {
    let Ok((near, _far)) = UnixStream::pair() else {
        return false;
    };
    attest::Peer::from_stream(&near, attest::Mode::Pidfd)
        .is_ok_and(|peer| peer.held() == attest::Held::Pidfd)
}
