//! Named test 7: who asked is not who would read the answer. The broker stands still until the
//! caller has changed, so that the answer always comes after.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use ephor_testkit::checker::{self, History, judge};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;

/// Connects and asks; `s` is the connection.
const ASK: &str = r#"
import os, signal, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
request = b"GET /v1/token?audience=" + sys.argv[2].encode() + b" HTTP/1.1\r\nHost: localhost\r\nEphor-Local: 1\r\n\r\n"
def change():
    "After the agent has taken the request."
    print("asked", flush=True)
    sys.stdin.readline()
"#;

struct Caller {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// Audiences here are this long, so that a request for one stands out on the wire.
const LONG: usize = ephor_proto::limits::MAX_AUDIENCE_LEN;

/// An audience as long as one may be.
fn long(name: &str) -> String {
    format!("{name:-<LONG$}")
}

/// Asks while the broker stands still, changes once the agent has sent its request on, and
/// lets the broker go on when `changed`.
fn ask(
    kit: &Installation,
    audience: &str,
    then: &str,
    changed: impl Fn(&mut Child) -> bool,
) -> Caller {
    kit.freeze(Side::Broker).unwrap();
    let before = kit.unread_by_broker().unwrap();
    let mut child = Command::new(checker::python())
        .args(["-c", &format!("{ASK}{then}")])
        .arg(kit.socket())
        .arg(audience)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "asked\n");
    // A heartbeat of one task and a ping, of which no second is sent before an answer, are less
    // than 300 bytes together: only a request for this audience is so long.
    wait::until("the agent has sent its request", SETTLE, || {
        let unread = kit.unread_by_broker().unwrap();
        (unread >= before + LONG as u64).then_some(())
    })
    .unwrap();
    writeln!(child.stdin.take().unwrap()).unwrap();
    wait::until("the caller has changed", SETTLE, || {
        changed(&mut child).then_some(())
    })
    .unwrap();
    kit.go_on(Side::Broker).unwrap();
    Caller { child, output }
}

/// Whether the end of the caller's task is told while the broker stands still: it may then
/// overtake the request, which finds a closed task and gets nothing recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    EndsMeanwhile,
    GoesOn,
}

/// What was recorded for this audience.
fn issued(kit: &Installation, audience: &str) -> Option<Vec<serde_json::Value>> {
    let rows = kit.admin("/v1/credentials").ok()?;
    let of_it = rows.as_array()?.iter();
    Some(
        of_it
            .filter(|row| row["scope"] == audience)
            .cloned()
            .collect(),
    )
}

/// The request has come out, and nothing of it is live.
fn is_over(kit: &Installation, audience: &str) -> Option<()> {
    // The only task that this broker ever heard of.
    let tasks = kit.admin("/v1/tasks").ok()?;
    let mut tasks = tasks.as_array()?.iter().peekable();
    let closed = tasks.peek().is_some() && tasks.all(|task| task["state"] == "closed");
    let ended = |row: &serde_json::Value| row["state"] == "contained" || row["state"] == "dead";
    (closed && issued(kit, audience)?.iter().all(ended)).then_some(())
}

/// No byte of a token came, and what was recorded for it is revoked.
fn nothing_came(kit: &Installation, caller: Caller, audience: &str, task: Task) {
    let Caller {
        mut child,
        mut output,
    } = caller;
    let mut came = Vec::new();
    output.read_to_end(&mut came).unwrap();
    let came = String::from_utf8_lossy(&came);
    assert!(
        !came.contains("eyJ") && !came.contains("\"token\""),
        "{audience}: a secret left: {came}"
    );
    assert!(!came.contains("200 OK"), "{audience}: {came}");
    let state = || {
        let issued = kit.admin("/v1/credentials").unwrap();
        format!("{issued}\n{}", kit.tail(Side::Agent))
    };
    if task == Task::GoesOn {
        // It was on its way before the caller changed.
        wait::until("the request is recorded", SETTLE, || {
            issued(kit, audience).filter(|rows| !rows.is_empty())
        })
        .unwrap_or_else(|why| panic!("{audience}: {why}; {}", state()));
    }
    let _ = child.kill();
    let _ = child.wait();
    wait::until("what was issued is revoked", SETTLE, || {
        is_over(kit, audience)
    })
    .unwrap_or_else(|why| panic!("{audience}: {why}; {}", state()));
    let history = History {
        gone: vec![child.id()],
        ..History::default()
    };
    judge(kit, &history).unwrap_or_else(|why| panic!("{audience}: {why:#}"));
}

#[test]
fn named_7_exec_between_request_and_secret() {
    let kit = super::running();
    let then =
        "s.sendall(request); change(); os.dup2(s.fileno(), 0); os.execv('/bin/cat', ['cat'])";
    let audience = long("exec");
    let caller = ask(&kit, &audience, then, |child| {
        std::fs::read_link(format!("/proc/{}/exe", child.id()))
            .is_ok_and(|exe| exe.ends_with("cat"))
    });
    nothing_came(&kit, caller, &audience, Task::GoesOn);
}

#[test]
fn named_7_fork_then_die_between_request_and_secret() {
    let kit = super::running();
    let then = r#"
s.sendall(request); change()
if os.fork() == 0:
    while data := s.recv(4096):
        os.write(1, data)
os._exit(0)
"#;
    let audience = long("fork");
    let caller = ask(&kit, &audience, then, |child| {
        child.try_wait().unwrap().is_some()
    });
    nothing_came(&kit, caller, &audience, Task::EndsMeanwhile);
}

/// Another process writes on the connection: nothing is answered on it any more.
#[test]
fn named_7_a_passed_connection_between_request_and_secret() {
    let kit = super::running();
    let mark = kit.path("passed");
    let then = format!(
        r#"
s.sendall(request); change()
if os.fork() == 0:
    s.sendall(request)
    open("{}", "w")
    while data := s.recv(4096):
        os.write(1, data)
    os._exit(0)
os.close(1)
signal.pause()
"#,
        mark.display()
    );
    let audience = long("passed");
    let caller = ask(&kit, &audience, &then, |_| mark.exists());
    nothing_came(&kit, caller, &audience, Task::GoesOn);
}
