//! Named test 7: who asked is not who would read the answer. The broker stands still until the
//! caller has changed, so that the answer always comes after.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use ephor_testkit::checker::{self, History, judge};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;

/// Connects and asks; `s` is the connection.
const ASK: &str = r#"
import os, socket, sys, time
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

/// Asks while the broker stands still, changes once the agent has opened its task, and
/// lets the broker go on when `changed`.
fn ask(
    kit: &Installation,
    audience: &str,
    then: &str,
    changed: impl Fn(&mut Child) -> bool,
) -> Caller {
    kit.freeze(Side::Broker).unwrap();
    let journal = || std::fs::metadata(kit.path("agent/journal")).unwrap().len();
    let before = journal();
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
    wait::until("the agent has taken the request", SETTLE, || {
        (journal() > before).then_some(())
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

/// No byte of a token came, and what was recorded for it is revoked.
fn nothing_came(kit: &Installation, caller: Caller, audience: &str) {
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
    let _ = child.kill();
    let _ = child.wait();
    wait::until(
        &format!("what was issued for {audience} is revoked"),
        SETTLE,
        || {
            let issued = kit.admin("/v1/credentials").ok()?;
            let of_it: Vec<_> = issued
                .as_array()?
                .iter()
                .filter(|row| row["scope"] == audience)
                .collect();
            // The broker only stood still, so it was recorded, unless the agent had not sent it yet
            // when the caller ended: then it never does.
            let ended =
                |row: &&serde_json::Value| row["state"] == "contained" || row["state"] == "dead";
            let is_recorded = !of_it.is_empty() || audience == "fork";
            (is_recorded && of_it.iter().all(ended)).then_some(())
        },
    )
    .unwrap_or_else(|why| {
        panic!(
            "{why}; {}\n{}",
            kit.admin("/v1/credentials").unwrap(),
            kit.tail(Side::Agent)
        )
    });
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
    let caller = ask(&kit, "exec", then, |child| {
        std::fs::read_link(format!("/proc/{}/exe", child.id()))
            .is_ok_and(|exe| exe.ends_with("cat"))
    });
    nothing_came(&kit, caller, "exec");
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
    let caller = ask(&kit, "fork", then, |child| {
        child.try_wait().unwrap().is_some()
    });
    nothing_came(&kit, caller, "fork");
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
os.wait()
"#,
        mark.display()
    );
    let caller = ask(&kit, "passed", &then, |_| mark.exists());
    nothing_came(&kit, caller, "passed");
}
