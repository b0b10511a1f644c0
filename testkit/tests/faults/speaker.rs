//! Named test 7: who asked is not who would read the answer. The broker stands still until the
//! caller has changed, so that the answer always comes after.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use ephor_testkit::checker::{self, History, judge};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;

/// Connects and asks; `s` is the connection.
const ASK: &str = r#"
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
request = b"GET /v1/token?audience=" + sys.argv[2].encode() + b" HTTP/1.1\r\nHost: localhost\r\nEphor-Local: 1\r\n\r\n"
def said():
    print("asked", flush=True)
"#;

fn caller(
    kit: &Installation,
    audience: &str,
    then: &str,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(checker::python())
        .args(["-c", &format!("{ASK}{then}")])
        .arg(kit.socket())
        .arg(audience)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "asked\n");
    (child, output)
}

/// No byte of a token came, and what was recorded for it is revoked.
fn nothing_came(
    kit: &Installation,
    child: &mut Child,
    mut output: BufReader<std::process::ChildStdout>,
    audience: &str,
) {
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
                .filter(|row| row["audience"] == audience)
                .collect();
            // It was asked for, so it was recorded; the broker only stood still.
            let ended =
                |row: &&serde_json::Value| row["state"] == "contained" || row["state"] == "dead";
            (!of_it.is_empty() && of_it.iter().all(ended)).then_some(())
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
    kit.freeze(Side::Broker).unwrap();
    let then = "s.sendall(request); said(); os.dup2(s.fileno(), 0); os.execv('/bin/cat', ['cat'])";
    let (mut child, output) = caller(&kit, "exec", then);
    wait::until("the caller is another program", SETTLE, || {
        let exe = std::fs::read_link(format!("/proc/{}/exe", child.id())).ok()?;
        exe.ends_with("cat").then_some(())
    })
    .unwrap();
    kit.go_on(Side::Broker).unwrap();
    nothing_came(&kit, &mut child, output, "exec");
}

#[test]
fn named_7_fork_then_die_between_request_and_secret() {
    let kit = super::running();
    kit.freeze(Side::Broker).unwrap();
    let then = r#"
s.sendall(request); said()
if os.fork() == 0:
    while data := s.recv(4096):
        os.write(1, data)
os._exit(0)
"#;
    let (mut child, output) = caller(&kit, "fork", then);
    child.wait().unwrap();
    kit.go_on(Side::Broker).unwrap();
    nothing_came(&kit, &mut child, output, "fork");
}

/// Another process writes on the connection: nothing is answered on it any more.
#[test]
fn named_7_a_passed_connection_between_request_and_secret() {
    let kit = super::running();
    kit.freeze(Side::Broker).unwrap();
    let then = r#"
s.sendall(request)
if os.fork() == 0:
    s.sendall(request); said()
    while data := s.recv(4096):
        os.write(1, data)
    os._exit(0)
os.wait()
"#;
    let (mut child, output) = caller(&kit, "passed", then);
    kit.go_on(Side::Broker).unwrap();
    nothing_came(&kit, &mut child, output, "passed");
}
