//! P7: no secret in a log line, event, error, core dump, in `/proc` of our processes, or on disk
//! in clear. One whole flow with every log at TRACE; then each secret that went through is
//! looked for everywhere, and, to show that looking finds it, where it belongs.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::examples::files;
use super::support::{Dev, assert_code, end_of, is_running, send, text, wait_for};
use super::wire::{Checker, Running, below, command, own_token, pids_of, policy, scratch};

/// Free text of a request: kept erasable, never in a leaf and never in a log.
const REASON: &str = "marker-reason-7c1f";

/// What must not be found, with the name to report.
#[derive(Default)]
struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    fn add(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        assert!(
            bytes.len() >= 16,
            "{name} is too short to be looked for: {bytes:?}"
        );
        self.0.push((name.to_owned(), bytes));
    }

    /// A token by its signature: header and claims alone open nothing.
    fn token(&mut self, name: &str, token: &str) {
        let signature = token
            .trim_end()
            .rsplit_once('.')
            .unwrap_or_else(|| panic!("{name} is no token: {token:?}"))
            .1;
        self.add(name, signature);
        self.add(
            &format!("{name}, raw signature"),
            URL_SAFE_NO_PAD.decode(signature).unwrap(),
        );
    }

    /// A key in the forms in which bytes get into text.
    fn key(&mut self, name: &str, key: &[u8]) {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let numbers: Vec<String> = key.iter().map(u8::to_string).collect();
        self.add(&format!("{name}, raw"), key);
        self.add(&format!("{name}, hex"), hex.to_uppercase());
        self.add(&format!("{name}, HEX"), hex);
        self.add(
            &format!("{name}, base64"),
            STANDARD.encode(key).trim_end_matches('='),
        );
        self.add(&format!("{name}, base64url"), URL_SAFE_NO_PAD.encode(key));
        self.add(&format!("{name}, Debug of bytes"), numbers.join(", "));
    }

    fn found_in(&self, bytes: &[u8]) -> Vec<&str> {
        let found = self.0.iter().filter(|(_, needle)| contains(bytes, needle));
        found.map(|(name, _)| name.as_str()).collect()
    }

    #[track_caller]
    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        assert_eq!(self.found_in(bytes), [""; 0], "found in {place}");
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        if haystack[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[test]
fn attack_39_42_43_47_and_50_no_secret_is_anywhere_but_where_it_belongs() {
    let cwd = scratch();
    let with_cores = core_limit();
    let mut dev = Dev::with(&policy(), |mut command| {
        command.env("EPHOR_LOG", "trace").current_dir(cwd.path());
        below(
            &[
                "sh",
                "-c",
                "ulimit -c \"$(ulimit -H -c)\"; exec \"$@\"",
                "sh",
            ],
            &command,
        )
    });
    drop(with_cores);
    let mut needles = Needles::default();

    use_tokens(&dev, &mut needles);
    run_with_secrets(&dev, &mut needles);
    let join_log = join_another(&dev, &mut needles);
    needles.key("agent key", &scalar(&dev.dir.join("agent/identity.pem")));
    needles.key(
        "master key",
        &std::fs::read(dev.dir.join("broker/master.key")).unwrap(),
    );
    needles.add("reason", REASON);

    needles.assert_absent("the log of a join", join_log.as_bytes());
    what_commands_print(&dev, &needles);
    for pid in pids_of(&dev) {
        in_proc(pid, &needles);
    }
    needles.assert_absent(
        "cmdline of dev",
        &std::fs::read(format!("/proc/{}/cmdline", dev.process.id())).unwrap(),
    );
    leaves_no_core(&mut dev, cwd.path());
    at_rest(&dev, &needles);
}

/// Tokens by the helper, over HTTP/1 and HTTP/2, in good and in bad requests.
fn use_tokens(dev: &Dev, needles: &mut Needles) {
    let mut checker = Checker::start(dev);
    let token = own_token(dev, "billing");
    needles.token("token", &token);
    checker.assert_good("billing", &token);
    let output = dev
        .ephor()
        .args(["token", "billing-api", "--reason", REASON])
        .output()
        .unwrap();
    assert_code(&output, 0);
    needles.token("token with a reason", &text(&output.stdout));
    let asker = own_token(dev, &dev.variables["EPHOR_BROKER_URL"]);
    needles.token("token of a caller", &asker);
    for (version, path, bearer, form) in [
        (
            "--http2",
            "/introspect",
            asker.as_str(),
            format!("token={token}"),
        ),
        ("--http1.1", "/introspect", &token, format!("token={token}")),
        (
            "--http2",
            "/introspect",
            &format!("{asker}x"),
            format!("token={token}x"),
        ),
        ("--http1.1", "/introspect", &asker, format!("{token}=token")),
        ("--http2", "/jwks", &token, String::new()),
        (
            "--http1.1",
            &format!("/introspect?token={token}"),
            &asker,
            "x=y".to_owned(),
        ),
        ("--http2", "/revoke", &token, format!("token={token}")),
    ] {
        let url = format!("{}{path}", dev.variables["EPHOR_BROKER_URL"]);
        let mut curl = command(dev, "curl");
        curl.args([
            "--silent",
            "--show-error",
            version,
            "--cacert",
            &dev.variables["EPHOR_CA_FILE"],
        ]);
        curl.args([
            "-H",
            &format!("Authorization: Bearer {bearer}"),
            "--data",
            &form,
            &url,
        ]);
        assert_code(&curl.output().unwrap(), 0);
    }
    assert!(checker.ask("introspect", "billing", &token).is_err());
    // A certificate's key, which the agent made.
    let request = "GET /v1/certificate HTTP/1.1\r\nEphor-Local: 1\r\nHost: x\r\n\r\n";
    let answer = super::wire::once(dev, super::wire::Door::Agent, request);
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let key = answer["certificate"]["private_key"].as_str().unwrap();
    needles.key("key of a certificate", &scalar_of(key));
    // To the agent, in the places where a confused caller might put it.
    for request in [
        format!("GET /v1/token?audience={token} HTTP/1.1\r\nEphor-Local: 1\r\nHost: x\r\n\r\n"),
        format!("GET /v1/{token} HTTP/1.1\r\nEphor-Local: 1\r\nHost: x\r\n\r\n"),
        format!("GET /v1/ready HTTP/1.1\r\nAuthorization: Bearer {token}\r\nHost: x\r\n\r\n"),
        format!("{token}\r\n\r\n"),
    ] {
        super::wire::once(dev, super::wire::Door::Agent, request);
    }
}

/// `ephor run` with each way to deliver, looked at while it runs and after it was killed.
fn run_with_secrets(dev: &Dev, needles: &mut Needles) {
    let runtime = scratch();
    std::fs::set_permissions(runtime.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let kept = scratch();
    let script = "printf '%s\\n' \"$E\" >\"$0/e\"; cat \"$F\" >\"$0/f\"; cat \"$D\" >\"$0/d\"; echo $$; read forever";
    let mut run = command(dev, env!("CARGO_BIN_EXE_ephor"));
    run.args(["run", "--reason", REASON])
        .args([
            "--env",
            "E=cred://identity/by-env",
            "--env",
            "F=cred://billing-api?as=file",
            "--env",
            "D=cred://both/two?as=fd",
        ])
        .args(["--", "sh", "-euc", script])
        .arg(kept.path())
        .env("XDG_RUNTIME_DIR", runtime.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut run = Running(run.spawn().unwrap());
    let mut pid = String::new();
    BufReader::new(run.0.stdout.as_mut().unwrap())
        .read_line(&mut pid)
        .unwrap();
    let child: u32 = pid.trim().parse().unwrap_or_else(|_| {
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(run.0.stderr.as_mut().unwrap(), &mut said);
        panic!("the command did not start: {said}");
    });
    let mut ours = Needles::default();
    for way in ["e", "f", "d"] {
        ours.token(
            &format!("token as {way}"),
            &std::fs::read_to_string(kept.path().join(way)).unwrap(),
        );
    }
    // The control: where the user asked for it, it is found, and only that one.
    let environ = std::fs::read(format!("/proc/{child}/environ")).unwrap();
    assert_eq!(ours.found_in(&environ), ["token as e"]);
    let on_disk: Vec<PathBuf> = files(runtime.path());
    assert_eq!(on_disk.len(), 1, "{on_disk:?}");
    assert_eq!(
        ours.found_in(&std::fs::read(&on_disk[0]).unwrap()),
        ["token as f"]
    );
    for pid in std::iter::once(run.0.id()).chain(children(run.0.id())) {
        let of_command = pid == child;
        ours.assert_absent(
            "cmdline",
            &std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
        );
        if !of_command {
            ours.assert_absent(
                "environ",
                &std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(),
            );
        }
    }
    run.kill();
    wait_for("its files to be removed", || {
        files(runtime.path()).is_empty().then_some(())
    });
    for file in shared_memory() {
        ours.assert_absent(
            &file.display().to_string(),
            &std::fs::read(&file).unwrap_or_default(),
        );
    }
    send_if_running(child);
    needles.0.append(&mut ours.0);
}

fn send_if_running(pid: u32) {
    if is_running(pid) {
        send(pid, Signal::SIGKILL);
    }
}

/// Joins a second host by a token that is known here; gives what that printed.
fn join_another(dev: &Dev, needles: &mut Needles) -> String {
    let dir = scratch();
    let file = dir.path().join("token");
    let invited = dev
        .ephor()
        .args(["host", "invite", "second", "--token-file"])
        .arg(&file)
        .output()
        .unwrap();
    assert_code(&invited, 0);
    let token = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert!(token.starts_with("ej1."), "{token}");
    needles.add("join token", token.split('.').nth(2).unwrap());
    let mut log = text(&invited.stdout) + &text(&invited.stderr);
    // Once for its purpose, once again in vain, once broken.
    for (name, token, code) in [
        ("a", token.clone(), 0),
        ("b", token.clone(), 77),
        ("c", format!("{token}x"), 77),
    ] {
        std::fs::write(&file, &token).unwrap();
        let mut join = dev.ephor();
        join.args([
            "__agent",
            "join",
            "--broker",
            &dev.variables["EPHOR_BROKER_URL"],
            "--host",
            "second",
            "--token-file",
        ]);
        let join = join
            .arg(&file)
            .arg("--state-dir")
            .arg(dir.path().join(name))
            .env("EPHOR_LOG", "trace")
            .output()
            .unwrap();
        log += &(text(&join.stdout) + &text(&join.stderr));
        let ended = join.status.code();
        assert!(
            ended == Some(code) || code != 0 && ended.is_some_and(|code| code != 0),
            "{name}: {ended:?}: {log}"
        );
    }
    let key = scalar(&dir.path().join("a/identity.pem"));
    needles.key("second agent's key", &key);
    for file in files(&dir.path().join("a"))
        .iter()
        .filter(|file| !file.ends_with("identity.pem"))
    {
        needles.assert_absent(&file.display().to_string(), &std::fs::read(file).unwrap());
    }
    log
}

fn what_commands_print(dev: &Dev, needles: &Needles) {
    let dir = scratch();
    let export = dir.path().join("export");
    let export_to = export.to_str().unwrap();
    for args in [
        &["audit", "export", "--to", export_to][..],
        &["audit", "ls", "--limit", "1000", "-o", "json"],
        &["credential", "ls", "--all", "-o", "json"],
        &["task", "ls", "--all", "-o", "json"],
        &["host", "ls", "-o", "json"],
        &["whoami", "-o", "json"],
    ] {
        let output = dev.ephor().args(args).output().unwrap();
        assert_code(&output, 0);
        let printed = [output.stdout, output.stderr].concat();
        let shows_reasons = args.starts_with(&["audit", "ls"]);
        let found: Vec<_> = needles
            .found_in(&printed)
            .into_iter()
            .filter(|name| !(shows_reasons && *name == "reason"))
            .collect();
        assert_eq!(found, [""; 0], "printed by {args:?}");
    }
    let exported = files(&export);
    assert!(exported.len() > 3, "{exported:?}");
    for file in exported {
        needles.assert_absent(&file.display().to_string(), &std::fs::read(&file).unwrap());
    }
}

/// What any process of the same user may read of ours, and that no other file is a way to it.
fn in_proc(pid: u32, needles: &Needles) {
    if !rustix::process::geteuid().is_root() {
        // Not dumpable: closed even to our own user (root may always look).
        assert!(
            std::fs::read(format!("/proc/{pid}/environ")).is_err(),
            "{pid} is dumpable"
        );
    }
    for file in ["environ", "cmdline"] {
        // Unreadable is as good as empty, and is what a user other than root meets.
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        needles.assert_absent(&format!("/proc/{pid}/{file}"), &bytes);
    }
}

/// Both daemons refuse to leave one, whatever the limit they were started with.
fn leaves_no_core(dev: &mut Dev, cwd: &Path) {
    let control = scratch();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let limit = core_limit();
    if limit.is_raised() && !pattern.starts_with(['|', '/']) {
        let _ = Command::new("sh")
            .args(["-c", "ulimit -c unlimited; kill -SEGV $$"])
            .current_dir(control.path())
            .status();
        assert_eq!(
            files(control.path()).len(),
            1,
            "a core is found where there is one"
        );
    }
    drop(limit);
    let [broker, agent] = pids_of(dev);
    for pid in [broker, agent] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        let core: Vec<&str> = core.split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{pid}");
    }
    send(agent, Signal::SIGSEGV);
    send(broker, Signal::SIGABRT);
    let ended = end_of(&mut dev.process, "the end of ephor dev without its daemons");
    assert_ne!(ended.code(), Some(0));
    for pid in [broker, agent] {
        wait_for("the end of a daemon", || (!is_running(pid)).then_some(()));
    }
    let left = files(cwd);
    assert!(
        left.is_empty(),
        "a core, or something else, was left: {left:?}"
    );
}

/// Every file of the installation but the two that hold keys in clear, and what dev said.
fn at_rest(dev: &Dev, needles: &Needles) {
    let (mut seen, mut kept) = (Vec::new(), Vec::new());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&dev.dir), mode(&dev.dir.join("broker"))),
        (0o700, 0o700)
    );
    for file in files(dev.dir.parent().unwrap()) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&file).unwrap();
        match name.as_str() {
            "identity.pem" | "master.key" => {
                assert_eq!(mode(&file), 0o600, "{}", file.display());
                kept.extend(needles.found_in(&bytes).into_iter().map(str::to_owned));
            }
            // The erasable side table of the store is where free text belongs.
            name if name.starts_with("ephor.db") => {
                let found: Vec<_> = needles
                    .found_in(&bytes)
                    .into_iter()
                    .filter(|name| *name != "reason")
                    .collect();
                assert_eq!(found, [""; 0], "found in {}", file.display());
            }
            _ => needles.assert_absent(&file.display().to_string(), &bytes),
        }
        seen.push(name);
    }
    for expected in [
        "broker.log",
        "agent.log",
        "ephor.db",
        "ephor.db-wal",
        "identity.pem",
        "master.key",
        "stderr",
    ] {
        assert!(
            seen.iter().any(|name| name == expected),
            "{expected} was not there to be looked at: {seen:?}"
        );
    }
    // The control: the keys are found where they belong, and the logs were not at their default.
    // Neither daemon's own code has TRACE, and both cap libraries that see wire bytes.
    assert!(
        kept.iter().any(|name| name == "master key, raw"),
        "{kept:?}"
    );
    assert!(
        dev.log("agent").contains("DEBUG ephor_agent"),
        "{}",
        dev.log("agent")
    );
    assert!(
        dev.log("broker").contains("DEBUG ephor_broker"),
        "{}",
        dev.log("broker")
    );
}

/// The private scalar of a P-256 key in PKCS #8: after the tag of its 32-byte octet string.
fn scalar(pem: &Path) -> Vec<u8> {
    scalar_of(&std::fs::read_to_string(pem).unwrap())
}

fn scalar_of(pem: &str) -> Vec<u8> {
    let key = pem
        .split("PRIVATE KEY-----")
        .nth(1)
        .unwrap()
        .split("-----END")
        .next()
        .unwrap();
    let der = STANDARD
        .decode(key.split_whitespace().collect::<String>())
        .unwrap();
    let at = der.windows(2).position(|tag| tag == [0x04, 0x20]).unwrap() + 2;
    der[at..at + 32].to_vec()
}

fn children(of: u32) -> Vec<u32> {
    let list =
        std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn shared_memory() -> Vec<PathBuf> {
    let ours = PathBuf::from(format!(
        "/dev/shm/ephor-{}",
        rustix::process::geteuid().as_raw()
    ));
    if ours.is_dir() {
        files(&ours)
    } else {
        Vec::new()
    }
}

/// Cores as large as this process may allow, for what it starts meanwhile.
struct CoreLimit(Rlimit, bool);

fn core_limit() -> CoreLimit {
    let before = getrlimit(Resource::Core);
    let raised = setrlimit(
        Resource::Core,
        Rlimit {
            current: None,
            maximum: None,
        },
    )
    .is_ok();
    CoreLimit(before, raised)
}

impl CoreLimit {
    fn is_raised(&self) -> bool {
        self.1
    }
}

impl Drop for CoreLimit {
    fn drop(&mut self) {
        if self.1 {
            setrlimit(Resource::Core, self.0).unwrap();
        }
    }
}
