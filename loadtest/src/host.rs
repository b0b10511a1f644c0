//! CPU, memory and run queue of this machine and of processes under test, from `/proc`.

use std::io::Write;
use std::time::Duration;

/// Progress and errors, on standard error: standard output is the JSON report.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// CPU time a process has used, all threads, user and system.
pub fn cpu(pid: u32) -> Duration {
    let ticks = rustix::param::clock_ticks_per_second();
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return Duration::ZERO;
    };
    // The command name may hold spaces; fields are counted after its closing parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let used: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(used * 1000 / ticks.max(1))
}

/// Resident memory of a process, bytes.
pub fn resident(pid: u32) -> u64 {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return 0;
    };
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// One-minute load average and runnable/total tasks, as the kernel prints them.
pub fn run_queue() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut fields = load.split_whitespace();
    let average = fields.next().unwrap_or("?").to_owned();
    let runnable = fields.nth(2).unwrap_or("?");
    format!("{average} {runnable}")
}

/// A line on standard output.
pub fn print(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
