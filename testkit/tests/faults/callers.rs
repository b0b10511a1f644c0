//! Attacks of docs/threat-model.md, section A, by real processes on a real socket: other users,
//! used pids, passed connections, other namespaces. Each that is about who holds a connection runs
//! in both ways in which an agent can hold a caller: by the kernel's pidfd, and by pid and start
//! time as on a kernel before 6.5.
//!
//! Most need to become somebody else, which only root can. `scripts/test` says so when it is not.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ephor_testkit::checker;
use ephor_testkit::daemon::Started;
use ephor_testkit::installation::{Installation, Side};

/// How an agent holds its callers.
const MODES: [&str; 2] = ["auto", "off"];
/// Everybody's idea of nobody: a user that is neither root nor ours.
const NOBODY: u32 = 65_534;

/// What the attackers share. `ask` gives a status, `closed`, or `silent` when no answer comes.
const PRELUDE: &str = r#"
import ctypes, os, socket, sys
SOCKET = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
def request(path):
    return b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nEphor-Local: 1\r\n\r\n"
READY, TOKEN = request(b"/v1/ready"), request(b"/v1/token?audience=wanted")
def connection():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(15)
    return s
def ask(s, what=TOKEN):
    try:
        s.sendall(what)
        got = b""
        while b"\r\n\r\n" not in got:
            more = s.recv(65536)
            if not more:
                return "closed"
            got += more
        head, body = got.split(b"\r\n\r\n", 1)
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += s.recv(65536)
    except socket.timeout:
        return "silent"
    except OSError:
        return "closed"
    assert (b'"token"' in body) == head.startswith(b"HTTP/1.1 200") or what is READY, got
    return head.split()[1].decode()
def served():
    "A connection that the agent has taken and attested."
    s = connection()
    s.connect(SOCKET)
    assert ask(s, READY) == "200"
    return s
def fresh(what=TOKEN):
    s = connection()
    s.connect(SOCKET)
    return ask(s, what)
def become(uid):
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
def say(*words):
    print(*words, flush=True)
"#;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An installation for attackers of any user, with these `runs` of its one workload.
fn installation(mode: &str, runs: impl Fn(&Installation) -> String) -> Installation {
    let kit = prepared(runs);
    kit.start_daemon(Side::Broker, &[]).unwrap();
    kit.join(&kit.path("token")).unwrap();
    kit.start_daemon(Side::Agent, &[("EPHOR_AGENT_PEER_PIDFD", mode)])
        .unwrap();
    kit.wait_connected().unwrap();
    kit
}

fn prepared(runs: impl Fn(&Installation) -> String) -> Installation {
    let kit = Installation::create(&super::binary()).unwrap();
    let policy = kit.path("policy/kit.toml");
    let text = std::fs::read_to_string(&policy).unwrap();
    let (before, _) = text.split_once("runs = ").unwrap();
    let runs = runs(&kit);
    std::fs::write(&policy, format!("{before}runs = [{{ {runs} }}]\n")).unwrap();
    open(&kit.path(""), 0o755);
    kit
}

/// All its files; gives the uid.
fn give_to_nobody(kit: &Installation) -> String {
    let nobody = NOBODY.to_string();
    let mut chown = Command::new("chown");
    chown.args(["-R", &nobody]).arg(kit.path(""));
    assert!(chown.status().unwrap().success());
    nobody
}

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Whoever runs the tests.
fn us(_kit: &Installation) -> String {
    format!("uid = {}", rustix::process::getuid().as_raw())
}

/// The program `trusted`, run by whoever runs the tests.
fn trusted(kit: &Installation) -> String {
    let path = program(kit, "trusted");
    format!("{}, exe = \"{}\"", us(kit), path.display())
}

/// A program that runs scripts and is no known interpreter by its name.
fn program(kit: &Installation, name: &str) -> PathBuf {
    let path = kit.path(name);
    std::fs::copy(from_python("os.path.realpath(sys.executable)"), &path).unwrap();
    open(&path, 0o755);
    path
}

fn python() -> PathBuf {
    checker::python().into()
}

fn from_python(expression: &str) -> String {
    let script = format!("import os, sys; print({expression})");
    let output = Command::new(python()).args(["-c", &script]).output();
    said(&output.unwrap())
}

/// Runs an attacker to its end; gives what it said.
fn attack(kit: &Installation, under: &[&str], program: &Path, script: &str) -> String {
    let output = attacker(kit, under, program, script).output().unwrap();
    said(&output)
}

fn attacker(kit: &Installation, under: &[&str], program: &Path, script: &str) -> Command {
    let mut words = under.iter().map(PathBuf::from).chain([program.to_owned()]);
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .args(["-c", &format!("{PRELUDE}{script}")])
        .arg(kit.socket())
        // A copy of the program does not find its library by itself.
        .env("PYTHONHOME", from_python("sys.base_prefix"))
        .stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Makes a process with a pid that another one had: `clone3` with `set_tid`, which takes the same
/// right as setting the next pid does.
const REUSE: &str = r#"
class Arguments(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
        "set_tid", "set_tid_size", "cgroup")]
def fork_as(pid):
    wanted = (ctypes.c_int * 1)(pid)
    arguments = Arguments(exit_signal=17, set_tid=ctypes.addressof(wanted), set_tid_size=1)
    got = libc.syscall(435, ctypes.byref(arguments), ctypes.sizeof(arguments))
    assert got >= 0, os.strerror(ctypes.get_errno())
    assert got or os.getpid() == pid
    return got
def used(s, uid, before, then=None):
    "The answer to a process that has the pid of who connected, and the connection."
    first = os.fork()
    if first == 0:
        s.connect(SOCKET)
        if before: before()
        os._exit(0)
    os.waitpid(first, 0)
    out, into = os.pipe()
    second = fork_as(first)
    if second == 0:
        if then: then()
        if uid is not None: become(uid)
        os.write(into, ask(s).encode())
        os._exit(0)
    os.waitpid(second, 0)
    return os.read(out, 64).decode()
"#;

#[test]
fn attack_01_a_used_pid_gets_nothing_on_the_connection_of_who_had_it() {
    if !is_root() {
        return;
    }
    for mode in MODES {
        let kit = installation(mode, us);
        // The agent has taken the connection before its process ended.
        let script = format!(
            r#"{REUSE}
for uid in (None, {NOBODY}):
    s = connection()
    say(used(s, uid, lambda: ask(s, READY)))
say(fresh())
"#
        );
        let got = attack(&kit, &[], &python(), &script);
        let got: Vec<&str> = got.lines().collect();
        // The same uid is noticed by the end of the first, another one by what it wrote.
        assert_eq!(got, ["403", "closed", "200"], "{mode}");
        // The agent stands still until the pid is another's: it never saw the first.
        kit.freeze(Side::Agent).unwrap();
        let agent = kit.pid(Side::Agent).unwrap();
        let script = format!(
            r#"{REUSE}
import signal
say(used(connection(), {uid}, None, lambda: os.kill({agent}, signal.SIGCONT)))
"#,
            // The same uid is who it says it is: the older way attests the second process.
            uid = if mode == "auto" {
                "None".to_owned()
            } else {
                NOBODY.to_string()
            },
        );
        assert_eq!(attack(&kit, &[], &python(), &script), "closed", "{mode}");
    }
}

#[test]
fn attack_02_a_child_with_the_connection_of_a_dead_parent_gets_nothing() {
    for mode in MODES {
        let kit = installation(mode, us);
        let script = r#"
out, into = os.pipe()
if os.fork() == 0:
    s = served()
    ended, tell = os.pipe()
    if os.fork() == 0:
        os.close(tell)
        os.read(ended, 1)
        os.write(into, ask(s).encode())
    os._exit(0)
os.close(into)
say(os.read(out, 64).decode())
say(fresh())
"#;
        let got = attack(&kit, &[], &python(), script);
        assert_eq!(got, "closed\n200", "{mode}");
    }
}

#[test]
fn attack_03_a_connection_passed_to_another_user_is_refused_for_both() {
    if !is_root() {
        return;
    }
    for mode in MODES {
        let kit = installation(mode, us);
        let script = format!(
            r#"
s = served()
near, far = socket.socketpair()
if os.fork() == 0:
    _, passed, _, _ = socket.recv_fds(far, 1, 1)
    become({NOBODY})
    taken = socket.socket(fileno=passed[0])
    taken.settimeout(15)
    far.sendall(ask(taken).encode())
    os._exit(0)
socket.send_fds(near, [b"x"], [s.fileno()])
say(near.recv(64).decode())
say(ask(s))
say(fresh())
"#
        );
        let got = attack(&kit, &[], &python(), &script);
        assert_eq!(got, "closed\nclosed\n200", "{mode}");
    }
}

#[test]
fn attack_04_another_program_on_the_connection_of_the_trusted_one_gets_nothing() {
    for mode in MODES {
        let kit = installation(mode, trusted);
        let other = program(&kit, "other");
        // Taken and attested as the trusted program, then another one has pid, start time and
        // connection.
        let script = format!(
            r#"
if len(sys.argv) > 2:
    say(ask(socket.socket(fileno=int(sys.argv[2]))))
    say(fresh())
else:
    say(fresh())
    s = served()
    s.set_inheritable(True)
    with open("/proc/self/cmdline") as f:
        script = f.read().split("\0")[2]
    os.execv("{other}", ["{other}", "-c", script, SOCKET, str(s.fileno())])
"#,
            other = other.display()
        );
        let got = attack(&kit, &[], &kit.path("trusted"), &script);
        let got: Vec<&str> = got.lines().collect();
        assert_eq!((got[0], got[2]), ("200", "403"), "{mode}: {got:?}");
        assert!(["closed", "403"].contains(&got[1]), "{mode}: {got:?}");
    }
}

#[test]
fn attack_06_a_setuid_program_speaks_for_nobody() {
    if !is_root() {
        return;
    }
    for mode in MODES {
        let kit = installation(mode, us);
        // Effective root, real nobody: what a setuid-root program is that nobody started.
        let script = format!("say(fresh())\nos.setresuid({NOBODY}, 0, 0)\nsay(fresh())");
        let got = attack(&kit, &[], &python(), &script);
        let got: Vec<&str> = got.lines().collect();
        assert_eq!(got[0], "200", "{mode}");
        assert!(["closed", "403"].contains(&got[1]), "{mode}: {got:?}");
    }
}

#[test]
fn attack_07_a_program_replaced_on_disk_is_what_runs_and_not_what_lies_there() {
    for mode in MODES {
        let digest = std::cell::RefCell::new(String::new());
        let kit = installation(mode, |kit| {
            let runs = trusted(kit);
            let sum = Command::new("sha256sum").arg(kit.path("trusted")).output();
            let sum = said(&sum.unwrap());
            digest.replace(sum[..64].to_owned());
            format!("{runs}, sha256 = \"{}\"", digest.borrow())
        });
        let trusted = kit.path("trusted");
        // The one with the right digest is put back over the path of the one that runs.
        std::fs::copy(&trusted, kit.path("kept")).unwrap();
        let script = format!(
            "say(fresh())\nos.rename({:?}, {:?})\nsay(fresh())",
            kit.path("kept"),
            trusted
        );
        let good = attack(&kit, &[], &trusted, &script);
        assert_eq!(good, "200\n403", "{mode}: a deleted program is no program");
        let mut changed = std::fs::read(&trusted).unwrap();
        changed.extend(b"changed");
        std::fs::remove_file(&trusted).unwrap();
        std::fs::write(&trusted, changed).unwrap();
        open(&trusted, 0o755);
        let got = attack(&kit, &[], &trusted, "say(fresh())");
        assert_eq!(got, "403", "{mode}: another content at the path");
    }
}

#[test]
fn attack_08_the_same_path_in_another_mount_namespace_is_another_program() {
    if !is_root() {
        return;
    }
    for mode in MODES {
        let kit = installation(mode, trusted);
        let (trusted, other) = (kit.path("trusted"), program(&kit, "other"));
        assert_eq!(attack(&kit, &[], &trusted, "say(fresh())"), "200", "{mode}");
        let mount = format!(
            "mount --bind {} {} && exec \"$@\"",
            other.display(),
            trusted.display()
        );
        let under = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
        let script = "say(os.readlink('/proc/self/exe'))\nsay(fresh())";
        let got = attack(&kit, &under, &trusted, script);
        assert_eq!(got, format!("{}\n403", trusted.display()), "{mode}");
        // In a root of its own, with the right path below it.
        let root = kit.path("root");
        let below = root.join(trusted.strip_prefix("/").unwrap());
        std::fs::create_dir_all(below.parent().unwrap()).unwrap();
        std::fs::copy(&other, &below).unwrap();
        let script = format!("os.chroot({root:?})\nsay(fresh())");
        let socket = format!("SOCKET = {:?}\n", kit.socket());
        // The socket is reached before the root changes.
        let script = format!("{socket}s = served()\n{script}").replace("fresh()", "ask(s)");
        let got = attack(&kit, &[], &below, &script);
        assert!(["closed", "403"].contains(&got.as_str()), "{mode}: {got}");
    }
}

#[test]
fn attack_09_root_of_a_user_namespace_is_not_root() {
    if !is_root() {
        return;
    }
    for mode in MODES {
        let kit = installation(mode, us);
        let script = format!(
            r#"
become({NOBODY})
DUMPABLE, NEWUSER = 4, 0x10000000
assert libc.prctl(DUMPABLE, 1, 0, 0, 0) == 0 and libc.unshare(NEWUSER) == 0
with open("/proc/self/uid_map", "w") as f:
    f.write("0 {NOBODY} 1")
os.setresuid(0, 0, 0)
say(os.getuid(), os.geteuid())
say(fresh())
"#
        );
        let got = attack(&kit, &[], &python(), &script);
        assert_eq!(got, "0 0\n403", "{mode}");
    }
}

/// Starts the agent below another program; it must not come up.
fn refused_start(kit: &Installation, under: &[&str], why: &str) {
    kit.run_agent_under(under);
    let started = kit.try_start(Side::Agent, &[]).unwrap();
    let Started::Ended(status) = started else {
        panic!("{under:?}: the agent serves");
    };
    assert_eq!(
        status.code(),
        Some(78),
        "{under:?}: {}",
        kit.tail(Side::Agent)
    );
    let log = kit.tail(Side::Agent);
    assert!(log.contains(why), "{under:?}: {log}");
}

#[test]
fn attack_10_an_agent_in_a_pid_namespace_of_its_own_attests_nobody() {
    if !is_root() {
        return;
    }
    let kit = prepared(us);
    kit.start_daemon(Side::Broker, &[]).unwrap();
    kit.join(&kit.path("token")).unwrap();
    // With the /proc of the host it sees that this is not its own.
    let under = ["unshare", "--pid", "--fork", "--kill-child"];
    refused_start(&kit, &under, "belongs to another PID namespace");
    // With a /proc of its own it runs, and its callers outside are visible to nobody.
    let under = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    kit.run_agent_under(&under);
    kit.start_daemon(Side::Agent, &[]).unwrap();
    let got = attack(&kit, &[], &python(), "say(fresh())\nsay(fresh(READY))");
    for answer in got.lines() {
        assert!(["closed", "403"].contains(&answer), "{got}");
    }
}

#[test]
fn attack_11_a_hidden_or_forged_proc_stops_the_agent() {
    if !is_root() {
        return;
    }
    let kit = prepared(us);
    kit.start_daemon(Side::Broker, &[]).unwrap();
    kit.join(&kit.path("token")).unwrap();
    let mounted = |kind: &str| format!("mount -t {kind} /proc && exec \"$@\"");
    let forged = mounted("tmpfs none");
    let under = ["unshare", "--mount", "sh", "-c", &forged, "sh"];
    refused_start(&kit, &under, "is not the kernel's proc file system");
    // Whoever may look at every process sees through hidepid; without that right nobody does.
    let hidden = mounted("proc -o hidepid=2 proc");
    let nobody = give_to_nobody(&kit);
    let under = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        &hidden,
        "sh",
        "setpriv",
        "--reuid",
        &nobody,
        "--regid",
        &nobody,
        "--clear-groups",
    ];
    refused_start(&kit, &under, "hides other processes from the agent");
}

/// Both daemons as a user of their own, as the samples have it: nobody of that user looks into
/// them, and what they keep is enough to attest root's programs.
#[test]
fn attack_14_the_daemons_own_user_cannot_look_into_them() {
    if !is_root() {
        return;
    }
    let kit = prepared(trusted);
    let nobody = give_to_nobody(&kit);
    kit.start_daemon(Side::Broker, &[("EPHOR_BROKER_USER", "nobody")])
        .unwrap();
    kit.join_with(&kit.path("token"), &[("EPHOR_AGENT_USER", "nobody")])
        .unwrap();
    kit.start_daemon(Side::Agent, &[("EPHOR_AGENT_USER", "nobody")])
        .unwrap();
    kit.wait_connected().unwrap();
    let got = attack(&kit, &[], &kit.path("trusted"), "say(fresh())");
    assert_eq!(got, "200", "{}", kit.tail(Side::Agent));
    let other = program(&kit, "other");
    assert_eq!(attack(&kit, &[], &other, "say(fresh())"), "403");
    for side in [Side::Broker, Side::Agent] {
        let pid = kit.pid(side).unwrap();
        let script = format!(
            r#"
become({NOBODY})
def refused(act):
    try:
        act()
    except PermissionError:
        return True
for name in ("mem", "environ", "maps", "auxv"):
    assert refused(lambda: open("/proc/{pid}/" + name, "rb").read(1)), name
for name in ("exe", "cwd", "root", "ns/mnt"):
    assert refused(lambda: os.readlink("/proc/{pid}/" + name)), name
assert refused(lambda: os.listdir("/proc/{pid}/fd"))
# As on itself, so that the calls are made rightly.
byte = ctypes.create_string_buffer(b"x")
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
into, at = ctypes.create_string_buffer(1), Part(ctypes.addressof(byte), 1)
def peek(pid):
    to = Part(ctypes.addressof(into), 1)
    return libc.process_vm_readv(pid, ctypes.byref(to), 1, ctypes.byref(at), 1, 0)
assert peek(os.getpid()) == 1
assert peek({pid}) == -1 and ctypes.get_errno() == 1, ctypes.get_errno()
ATTACH = 16
assert libc.ptrace(ATTACH, {pid}, None, None) == -1 and ctypes.get_errno() == 1
say([line.split()[1] for line in open("/proc/{pid}/status") if line.startswith("Uid:")][0])
"#
        );
        assert_eq!(attack(&kit, &[], &python(), &script), nobody, "{side:?}");
        let directory = if side == Side::Broker {
            "state"
        } else {
            "agent"
        };
        let report = std::fs::read_to_string(kit.path(directory).join("protections.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let state = |name: &str| {
            let all = report["protections"].as_array().unwrap().iter();
            let mut found = all.filter(|one| one["name"] == name);
            found.next().unwrap()["state"].as_str().unwrap().to_owned()
        };
        for name in [
            "own_user",
            "capabilities",
            "not_dumpable",
            "no_core",
            "no_new_privs",
        ] {
            assert_eq!(state(name), "in_force", "{side:?}: {name}");
        }
        for (field, protection, wanted) in [
            ("Seccomp:", "seccomp", "2"),
            ("NoNewPrivs:", "no_new_privs", "1"),
            ("CapBnd:", "capabilities", "0000000000000000"),
        ] {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            assert_eq!(state(protection), "in_force", "{side:?}");
            assert_eq!(line.unwrap().trim(), wanted, "{side:?}: {field}");
        }
    }
}
