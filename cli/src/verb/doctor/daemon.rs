//! What the kernel tells anyone about a running daemon (proc(5)).

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{Check, State};

/// `CAP_SYS_PTRACE` (capabilities(7)): reading `/proc/PID/exe` of other users' processes.
const SYS_PTRACE: u64 = 1 << 19;
/// `CAP_IPC_LOCK`: locking memory.
const IPC_LOCK: u64 = 1 << 14;

/// A daemon's process.
pub(super) struct Daemon {
    pid: u32,
    status: HashMap<String, String>,
    /// Owner of a file that is root's when the process may not be dumped.
    environ_owner: Option<u32>,
    core_limit: Option<String>,
}

impl Daemon {
    /// The process that serves a socket of `owner`'s whose listener `pid` made. A service manager
    /// makes it for another user: then that user's process called `name`.
    pub(super) fn find(pid: u32, name: &str, owner: u32) -> Option<Self> {
        let is_owners = |daemon: &Self| daemon.uid() == Some(owner);
        let listener = Self::of(pid).filter(|_| pid != 1).filter(is_owners);
        listener.or_else(|| named(name).filter_map(Self::of).find(is_owners))
    }

    fn of(pid: u32) -> Option<Self> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let status = std::fs::read_to_string(dir.join("status")).ok()?;
        let status = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        let limits = std::fs::read_to_string(dir.join("limits")).ok();
        let core = limits.as_deref().and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("Max core file size"))
        });
        Some(Self {
            pid,
            status,
            environ_owner: std::fs::metadata(dir.join("environ")).ok().map(|m| m.uid()),
            core_limit: core.and_then(|rest| rest.split_whitespace().next().map(str::to_owned)),
        })
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its effective uid.
    pub(super) fn uid(&self) -> Option<u32> {
        self.field("Uid")?.split_whitespace().nth(1)?.parse().ok()
    }

    /// Bytes that cannot be swapped out.
    pub(super) fn locked_kilobytes(&self) -> u64 {
        let locked = self.field("VmLck").and_then(|text| {
            let number = text.split_whitespace().next()?;
            number.parse().ok()
        });
        locked.unwrap_or(0)
    }

    fn field(&self, key: &str) -> Option<&str> {
        self.status.get(key).map(String::as_str)
    }

    fn capabilities(&self) -> Option<u64> {
        u64::from_str_radix(self.field("CapEff")?, 16).ok()
    }

    /// What holds for the process of the agent or the broker.
    pub(super) fn checks(&self, of: &'static str) -> Vec<Check> {
        let mut checks = vec![self.user(of), self.dumpable(of), self.core(of)];
        checks.push(self.rights(of));
        let seccomp = self.field("Seccomp");
        checks.push(Check::that(
            seccomp == Some("2"),
            (of, "seccomp"),
            match seccomp {
                Some("2") => "a filter is in force",
                Some(_) | None => "no filter",
            },
            (
                State::Weak,
                "start it by its unit in deploy/systemd (SystemCallFilter=)",
            ),
        ));
        let confined = self.field("NoNewPrivs") == Some("1");
        checks.push(Check::that(
            confined,
            (of, "no new rights"),
            if confined { "set" } else { "not set" },
            (
                State::Weak,
                "start it by its unit (NoNewPrivileges=) or scripts/start",
            ),
        ));
        checks
    }

    fn user(&self, of: &'static str) -> Check {
        let Some(uid) = self.uid() else {
            return Check::new(of, "user", State::Unknown, "its uid cannot be read");
        };
        let found = format!("pid {} runs as uid {uid}", self.pid);
        let advice = "give it a user of its own: scripts/install makes one";
        Check::that(uid != 0, (of, "user"), found, (State::Weak, advice))
    }

    fn dumpable(&self, of: &'static str) -> Check {
        match (self.uid(), self.environ_owner) {
            (Some(uid), Some(owner)) if uid != 0 => Check::that(
                owner == 0,
                (of, "not dumpable"),
                if owner == 0 {
                    "its user may not read its memory"
                } else {
                    "every process of its user may read its memory"
                },
                (
                    State::Wrong,
                    "it sets this at start; its log says why it could not",
                ),
            ),
            // Files of root's processes are root's either way.
            (Some(_), _) | (None, _) => Check::new(
                of,
                "not dumpable",
                State::Unknown,
                "not to be told for root's process",
            ),
        }
    }

    fn core(&self, of: &'static str) -> Check {
        let name = "no core dump";
        match self.core_limit.as_deref() {
            Some(limit) => Check::that(
                limit == "0",
                (of, name),
                format!("limit {limit}"),
                (
                    State::Wrong,
                    "set LimitCORE=0, or ulimit -c 0 before it starts",
                ),
            ),
            None => Check::new(of, name, State::Unknown, "its limits cannot be read"),
        }
    }

    fn rights(&self, of: &'static str) -> Check {
        let name = "capabilities";
        let Some(has) = self.capabilities() else {
            return Check::new(of, name, State::Unknown, "they cannot be read");
        };
        let needed = if of == "agent" { SYS_PTRACE } else { 0 };
        let more = has & !(needed | IPC_LOCK);
        if has & needed != needed {
            let advice = "rules by exe and sha256 match nobody of another user; the unit gives \
                          CAP_SYS_PTRACE (AmbientCapabilities=), as does scripts/start";
            return Check::new(of, name, State::Weak, "no CAP_SYS_PTRACE").advise(advice);
        }
        let found = match (has & SYS_PTRACE != 0, more) {
            (true, 0) => "CAP_SYS_PTRACE only, to read /proc/PID/exe".to_owned(),
            (false, 0) => "none".to_owned(),
            (_, more) => format!("{} more than it needs", more.count_ones()),
        };
        let advice = "start it by its unit, which bounds them, or by scripts/start";
        Check::that(more == 0, (of, name), found, (State::Weak, advice))
    }
}

/// The pids of processes of this name; anybody may give theirs any.
fn named(name: &str) -> impl Iterator<Item = u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(move |entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == name).then_some(pid)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn daemon(uid: u32, environ_owner: u32, capabilities: u64) -> Daemon {
        let status = [
            ("Uid", format!("{uid}\t{uid}\t{uid}\t{uid}")),
            ("CapEff", format!("{capabilities:016x}")),
            ("Seccomp", "2".to_owned()),
            ("NoNewPrivs", "1".to_owned()),
            ("VmLck", "2048 kB".to_owned()),
        ];
        Daemon {
            pid: 7,
            status: status.map(|(k, v)| (k.to_owned(), v)).into(),
            environ_owner: Some(environ_owner),
            core_limit: Some("0".to_owned()),
        }
    }

    fn states(daemon: &Daemon, of: &'static str) -> Vec<(&'static str, State)> {
        let checks = daemon.checks(of);
        checks.iter().map(|c| (c.name, c.state)).collect()
    }

    #[test]
    fn a_daemon_as_its_unit_starts_it_holds() {
        for (of, capabilities) in [("agent", SYS_PTRACE), ("broker", 0)] {
            let all = states(&daemon(900, 0, capabilities), of);
            assert!(all.iter().all(|(_, state)| *state == State::Ok), "{all:?}");
        }
        assert_eq!(daemon(900, 0, 0).locked_kilobytes(), 2048);
    }

    #[test]
    fn each_fault_is_seen() {
        let readable = states(&daemon(900, 900, SYS_PTRACE), "agent");
        assert!(readable.contains(&("not dumpable", State::Wrong)));
        let all = states(&daemon(0, 0, u64::MAX), "broker");
        assert!(
            all.contains(&("user", State::Weak)) && all.contains(&("capabilities", State::Weak))
        );
        assert!(states(&daemon(900, 0, 0), "agent").contains(&("capabilities", State::Weak)));
        let dumps = Daemon {
            core_limit: Some("unlimited".to_owned()),
            ..daemon(900, 0, 0)
        };
        assert!(states(&dumps, "broker").contains(&("no core dump", State::Wrong)));
    }

    #[test]
    fn this_process_is_found_by_its_pid_or_name_if_it_is_its_users() {
        let (pid, uid) = (std::process::id(), rustix::process::geteuid().as_raw());
        let own = Daemon::find(pid, "no-such-program", uid).unwrap();
        assert_eq!((own.pid(), own.uid()), (pid, Some(uid)));
        assert!(named("no-such-program").next().is_none());
        // Its name is that of its first thread.
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        let name = name.trim_end();
        assert!(Daemon::find(1, name, uid).is_some());
        // A socket of another user's is not served by this process, whatever it is called.
        assert!(Daemon::find(pid, name, uid + 1).is_none());
    }
}
