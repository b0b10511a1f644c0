//! An `ephor dev` of one's own for each test, and waiting with a deadline.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The binary under test, in a clean environment.
pub fn ephor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ephor"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EPHOR_") {
            command.env_remove(name);
        }
    }
    // No ephor.env of anybody's, and files go where a test can look.
    command
        .current_dir("/")
        .env_remove("XDG_RUNTIME_DIR")
        .stdin(Stdio::null());
    command
}

/// Waits until `condition` gives a value.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The end of a child, or a panic at the deadline.
pub fn end_of(child: &mut Child, what: &str) -> std::process::ExitStatus {
    wait_for(what, || child.try_wait().unwrap())
}

pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Whether a process is there and not a zombie.
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !stat
        .rsplit_once(')')
        .unwrap()
        .1
        .trim_start()
        .starts_with(['Z', 'X'])
}

/// The processes that a process has started.
pub fn children(of: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    pids.filter(|pid| parent(pid) == Some(of)).collect()
}

/// Its arguments, with blanks between.
pub fn command_line(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asserts the exit code and shows everything when it is another one.
#[track_caller]
pub fn assert_code(output: &Output, code: i32) {
    let shown = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout and stderr: {shown:#?}"
    );
}

/// A policy whose workload is whoever runs the tests.
pub fn policy(ttl: &str) -> String {
    let uid = rustix::process::getuid().as_raw();
    format!(
        "trust_domain = \"test.ephor\"\n\n[ttl]\ndefault = \"{ttl}\"\nmax = \"1h\"\nservice = \"none\"\n\n\
         [workload.\"dev/me\"]\nowner = \"team:dev\"\nruns = [{{ uid = {uid} }}]\n\n\
         [entitlement.billing-api]\nowner = \"team:billing\"\npurpose = \"Charge\"\nwho = [\"dev/me\"]\n\
         gives = [{{ jwt = {{ audience = \"billing\" }} }}]\n\n\
         [entitlement.both]\nowner = \"team:billing\"\npurpose = \"Two\"\nwho = [\"dev/me\"]\n\
         gives = [{{ jwt = {{ audience = \"one\" }} }}, {{ jwt = {{ audience = \"two\" }} }}]\n"
    )
}

/// A running `ephor dev --dir`; stopped cleanly at the end.
pub struct Dev {
    pub process: Child,
    pub dir: PathBuf,
    pub variables: HashMap<String, String>,
    _top: TempDir,
}

impl Dev {
    pub fn start() -> Self {
        Self::with_policy(&policy("5m"))
    }

    pub fn with_policy(policy: &str) -> Self {
        Self::with(policy, |command| command)
    }

    /// As `with_policy`, with a last change to how it is started.
    pub fn with(policy: &str, change: impl FnOnce(Command) -> Command) -> Self {
        let top = tempfile::Builder::new().prefix("et.").tempdir().unwrap();
        let given = top.path().join("policy");
        std::fs::create_dir(&given).unwrap();
        std::fs::write(given.join("test.toml"), policy).unwrap();
        let dir = top.path().join("d");
        let mut command = ephor();
        command.args([
            OsStr::new("dev"),
            OsStr::new("--dir"),
            dir.as_os_str(),
            OsStr::new("--policy"),
            given.as_os_str(),
        ]);
        let mut process = change(command)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(top.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let said = std::fs::read_to_string(top.path().join("stderr")).unwrap();
        assert_eq!(line, "ready\n", "{said}");
        let variables = variables(&dir.join("env"));
        Self {
            process,
            dir,
            variables,
            _top: top,
        }
    }

    /// `ephor` with this installation in its environment.
    pub fn ephor(&self) -> Command {
        let mut command = ephor();
        command.envs(&self.variables);
        command
    }

    /// A shell whose `$0` is `ephor`, with this installation in its environment.
    pub fn ephor_sh(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_ephor")])
            .envs(&self.variables)
            .stdin(Stdio::null());
        command
    }

    /// `ephor run ARGS` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.ephor().arg("run").args(args).output().unwrap()
    }

    pub fn pid_of(&self, daemon: &str) -> u32 {
        pid_of(&self.dir, daemon)
    }

    pub fn log(&self, daemon: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{daemon}.log"))).unwrap()
    }

    /// Stops it by SIGTERM; gives its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        send(self.process.id(), Signal::SIGTERM);
        end_of(&mut self.process, "the end of ephor dev").code()
    }
}

/// The process id in a daemon's ready file.
pub fn pid_of(dir: &Path, daemon: &str) -> u32 {
    let ready = std::fs::read(dir.join(format!("{daemon}.ready"))).unwrap();
    let ready: serde_json::Value = serde_json::from_slice(&ready).unwrap();
    u32::try_from(ready["pid"].as_u64().unwrap()).unwrap()
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            send(self.process.id(), Signal::SIGTERM);
            let start = Instant::now();
            while self.process.try_wait().unwrap().is_none() && start.elapsed() < DEADLINE {
                std::thread::sleep(LOOK_EVERY);
            }
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// What a shell has after sourcing the file.
pub fn variables(file: &Path) -> HashMap<String, String> {
    let script = ". \"$1\" && env -0";
    let output = Command::new("sh")
        .env_clear()
        .args(["-c", script, "sh"])
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let pairs = text(&output.stdout);
    let pairs = pairs.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| name.starts_with("EPHOR_"))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

/// Whether this looks like a signed token.
pub fn is_token(text: &str) -> bool {
    let parts: Vec<&str> = text.trim_end().split('.').collect();
    parts.len() == 3 && parts.iter().all(|part| part.len() > 20)
}
