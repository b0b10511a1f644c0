//! Restarts of the agent: by hand-over nobody notices, after `kill -9` nobody waits long.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ephor_testkit::checker::{self, History, judge};
use ephor_testkit::daemon::Started;
use ephor_testkit::http::{self, Answer, Call};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;
use serde_json::json;

const HAND_OVERS: u32 = 5;
/// Longest wait of a request while the agent is killed and started again. Twice the promise, for a
/// machine that does other things too.
const NOT_LONG: f64 = 4.0;
/// Audiences of one task: fewer than an agent holds for it.
const MOST_NEW: u32 = 200;
const TOKEN: &str = "/v1/token?audience=kept";
const CERTIFICATE: &str = "/v1/certificate";
const LOCAL: &[(&str, &str)] = &[("Ephor-Local", "1")];

fn get(kit: &Installation, target: &str) -> anyhow::Result<Answer> {
    let call = Call {
        method: "GET",
        target,
        headers: LOCAL,
        body: b"",
    };
    http::unix(&kit.socket(), &call)
}

/// For a person who reads the test's output.
#[allow(clippy::print_stdout, reason = "numbers beside a verdict")]
fn say(text: &str) {
    println!("{text}");
}

/// One connection for many requests, as an application's client keeps it.
struct KeptAlive {
    stream: UnixStream,
    answers: u32,
}

impl KeptAlive {
    fn open(kit: &Installation) -> Self {
        let stream = UnixStream::connect(kit.socket()).unwrap();
        stream.set_read_timeout(Some(SETTLE)).unwrap();
        Self { stream, answers: 0 }
    }

    /// The body; `None` when the connection was closed by its announced end.
    fn get(&mut self, target: &str) -> Result<(Vec<u8>, bool), String> {
        let said = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nEphor-Local: 1\r\n\r\n");
        let broken = |what: &str, why: &dyn std::fmt::Display| format!("{what}: {why}");
        self.stream
            .write_all(said.as_bytes())
            .map_err(|why| broken("writing", &why))?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            let read = self.stream.read(&mut byte);
            match read.map_err(|why| broken("reading", &why))? {
                0 => return Err(broken("reading", &"closed")),
                _ => head.extend(byte),
            }
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200") {
            return Err(head);
        }
        let line = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length = line("content-length: ").unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.stream
            .read_exact(&mut body)
            .map_err(|why| broken("reading the body", &why))?;
        self.answers += 1;
        Ok((body, line("connection: ") == Some("close")))
    }
}

/// What callers in a closed loop saw.
#[derive(Default)]
struct Seen {
    done: AtomicBool,
    answers: AtomicU32,
}

impl Seen {
    fn more(&self) -> bool {
        self.answers.fetch_add(1, Ordering::Relaxed);
        !self.done.load(Ordering::Relaxed)
    }
}

/// Also when the test fails: the scope would wait for ever.
struct Ends<'s>(&'s Seen);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

#[test]
fn five_hand_overs_under_load_fail_no_request_and_change_no_answer() {
    let kit = super::running();
    let (token, certificate) = (get(&kit, TOKEN).unwrap(), get(&kit, CERTIFICATE).unwrap());
    assert_eq!(
        (token.status, certificate.status),
        (200, 200),
        "{certificate:?}"
    );
    let key = certificate.body["certificate"]["private_key"].as_str();
    assert!(key.unwrap().contains("PRIVATE KEY"), "{certificate:?}");
    let mut shell = Workload::start(&kit).unwrap();
    let held = shell.ask("shell").unwrap().unwrap();
    // Idle through all of it.
    let mut idle = KeptAlive::open(&kit);
    idle.get(TOKEN).unwrap();
    let asks_new = AtomicBool::new(true);
    let (seen, longest) = (Seen::default(), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&seen);
        scope.spawn(|| {
            while seen.more() {
                let begin = wait::monotonic();
                let answer = get(&kit, TOKEN).unwrap();
                let waited = wait::monotonic() - begin;
                assert!(waited < NOT_LONG, "a cached answer after {waited} s");
                longest.fetch_max((waited * 1000.0) as u32, Ordering::Relaxed);
                assert_eq!((answer.status, &answer.bytes), (200, &token.bytes));
            }
        });
        for (target, first) in [(TOKEN, &token), (CERTIFICATE, &certificate)] {
            let (kit, seen) = (&kit, &seen);
            scope.spawn(move || {
                let mut kept = KeptAlive::open(kit);
                while seen.more() {
                    let (body, closes) = kept.get(target).unwrap();
                    assert!(body == first.bytes, "another answer for {target}");
                    if closes {
                        kept = KeptAlive::open(kit);
                    }
                }
            });
        }
        // What is not held is asked for while there is a broker.
        let asker = scope.spawn(|| {
            for number in (0..MOST_NEW).cycle() {
                if !asks_new.load(Ordering::Relaxed) {
                    return;
                }
                let answer = get(&kit, &format!("/v1/token?audience=new-{number}")).unwrap();
                assert_eq!(answer.status, 200, "{}", answer.body);
            }
        });
        for number in 0..HAND_OVERS {
            if number == HAND_OVERS - 2 {
                asks_new.store(false, Ordering::Relaxed);
                let finished = || asker.is_finished().then_some(());
                wait::until("the last new request is answered", SETTLE, finished).unwrap();
                kit.stop(Side::Broker).unwrap();
            }
            let before = seen.answers.load(Ordering::Relaxed);
            kit.hand_over().unwrap();
            wait::until("callers go on", SETTLE, || {
                (seen.answers.load(Ordering::Relaxed) > before + 20).then_some(())
            })
            .unwrap();
        }
    });
    say(&format!(
        "longest wait for a cached answer: {} ms",
        longest.load(Ordering::Relaxed)
    ));
    // The broker is away since the last but one: all this came from memory.
    let (body, _) = idle.get(TOKEN).unwrap();
    assert_eq!((idle.answers, body == token.bytes), (2, true));
    assert_eq!(shell.ask("shell").unwrap().unwrap(), held);
    kit.start_daemon(Side::Broker, &[]).unwrap();
    kit.wait_connected().unwrap();
    // The same task at the broker, not a new one; and its end is noticed.
    let tasks = kit.admin("/v1/tasks").unwrap();
    let of_shell = tasks.as_array().unwrap().iter();
    let of_shell: Vec<_> = of_shell.filter(|task| task["pid"] == held.pid).collect();
    assert!(
        of_shell.len() == 1 && of_shell[0]["state"] == "open",
        "{tasks}"
    );
    let mut history = History::default();
    let more = wait::until("a new token", SETTLE, || shell.ask("more").ok().flatten());
    history.running.push(more.unwrap());
    judge(&kit, &history).unwrap();
    history.running.clear();
    history.end(&mut shell).unwrap();
    judge(&kit, &history).unwrap();
}

/// `kill -9` of the agent that gives and of the one that takes, at each step of it. A task that ends
/// meanwhile is completed, one that goes on keeps what it has.
#[test]
fn killed_at_every_step_no_end_is_lost() {
    for (giver_dies, point) in [
        (true, "handover.offered"),
        (false, "handover.received"),
        (true, "handover.journal_closed"),
        (true, "handover.given"),
        (false, "handover.taken"),
    ] {
        let kit = super::running();
        let (mut stays, mut goes) = (
            Workload::start(&kit).unwrap(),
            Workload::start(&kit).unwrap(),
        );
        let armed = [("EPHOR_CRASH", point)];
        let (giver, taker): (&[_], &[_]) = if giver_dies {
            (&armed, &[])
        } else {
            (&[], &armed)
        };
        if giver_dies {
            kit.stop(Side::Agent).unwrap();
            kit.start_daemon(Side::Agent, giver).unwrap();
            kit.wait_connected().unwrap();
        }
        let kept = stays.ask("kept").unwrap().unwrap();
        goes.ask("gone").unwrap().unwrap();
        let (successor, started) = kit.start_successor(taker).unwrap();
        let mut history = History::default();
        history.end(&mut goes).unwrap();
        if giver_dies {
            wait::until("the giver dies", SETTLE, || kit.killed_by(Side::Agent)).unwrap();
        } else {
            assert!(matches!(started, Started::Ended(_)), "{point}");
        }
        match point {
            // Had everything: it goes on alone.
            "handover.given" => {
                assert_eq!(started, Started::Ready, "{}", successor.tail());
                drop(kit.put_in_place(successor));
            }
            // The running one goes on as if nothing had been; a second try works.
            "handover.received" => {
                assert_eq!(stays.ask("kept").unwrap().unwrap(), kept);
                kit.hand_over().unwrap();
                assert_eq!(stays.ask("kept").unwrap().unwrap(), kept);
            }
            _ => {
                assert!(matches!(started, Started::Ended(_)), "{point}");
                kit.start_daemon(Side::Agent, &[]).unwrap();
            }
        }
        kit.wait_connected().unwrap();
        history.running.push(kept);
        let more = wait::until("more", SETTLE, || stays.ask("more").ok().flatten());
        history.running.push(more.unwrap());
        judge(&kit, &history).unwrap_or_else(|why| {
            panic!("{point}: {why:#}\n{}", kit.tail(Side::Agent));
        });
    }
}

/// Another program of the same user, and another user, who even finds the door open: neither gets a
/// byte, and the agent goes on.
#[test]
fn a_stranger_cannot_take_over() {
    let kit = super::running();
    let token = get(&kit, TOKEN).unwrap();
    let door = kit.path("agent/handover.sock");
    let mode = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode(&door), mode(&kit.path("agent"))), (0o600, 0o700));
    let script = r#"
import json, os, socket, struct, sys
if sys.argv[2] != "0":
    os.setgroups([])
    os.setresuid(*[int(sys.argv[2])] * 3)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
head = json.dumps({"handover": 2}).encode()
try:
    s.sendall(struct.pack("<II", len(head), 0) + head)
    print(len(s.recv(100)))
except OSError:
    print(0)
"#;
    let ask = |user: &str| {
        let said = Command::new(checker::python())
            .args(["-c", script])
            .arg(&door)
            .arg(user)
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&said.stdout).trim(),
            "0",
            "{said:?}"
        );
        assert_eq!(get(&kit, TOKEN).unwrap().bytes, token.bytes);
    };
    ask("0");
    assert!(
        kit.tail(Side::Agent)
            .contains("only the agent's own program may")
    );
    // Without root there is no other user to be, and no capability to be without.
    if rustix::process::geteuid().is_root() {
        let open = |path: &std::path::Path, to: u32| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(to)).unwrap();
        };
        let (dir, root) = (kit.path("agent"), kit.path(""));
        open(&root, 0o711);
        open(&dir, 0o711);
        open(&door, 0o666);
        ask("65534");
        assert!(
            kit.tail(Side::Agent)
                .contains("uid 65534 asked to take over")
        );
        open(&dir, 0o700);
        // The agent's own program, started by its user without what the service manager gives.
        kit.run_agent_under(&["setpriv", "--bounding-set", "-sys_ptrace"]);
        let (_, started) = kit.start_successor(&[]).unwrap();
        assert!(matches!(started, Started::Ended(_)), "it took over");
        let log = kit.tail(Side::Agent);
        assert!(
            log.contains("without the capabilities of this agent"),
            "{log}"
        );
        kit.run_agent_under(&[]);
    }
    let log = kit.tail(Side::Agent);
    assert!(log.contains("not handed over; this agent goes on"), "{log}");
    assert!(!kit.has_ended(Side::Agent));
    kit.hand_over().unwrap();
    assert_eq!(get(&kit, TOKEN).unwrap().bytes, token.bytes);
}

/// A caller that asks again when it is told to, or when nobody listens.
fn ask_again(kit: &Installation, target: &str) -> (f64, Answer) {
    let begin = wait::monotonic();
    let answer = wait::until("an answer", SETTLE, || {
        get(kit, target)
            .ok()
            .filter(|answer| answer.status == 200 || answer.header("retry-after").is_some())
    });
    (wait::monotonic() - begin, answer.unwrap())
}

#[test]
fn after_kill_9_a_caller_that_asks_again_is_served() {
    let kit = super::running();
    let first = get(&kit, TOKEN).unwrap();
    let mut shell = Workload::start(&kit).unwrap();
    let held = shell.ask("shell").unwrap().unwrap();
    kit.kill(Side::Agent).unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let begin = wait::monotonic();
            wait::until("served again", Duration::from_secs(20), || {
                get(&kit, TOKEN).ok().filter(|answer| answer.status == 200)
            })
            .map(|answer| (wait::monotonic() - begin, answer))
        });
        kit.start_daemon(Side::Agent, &[]).unwrap();
        let (waited, again) = asked.join().unwrap().unwrap();
        say(&format!(
            "served again after kill -9 and start: {} ms",
            (waited * 1000.0) as u32
        ));
        assert!(waited < NOT_LONG, "waited {waited} s");
        assert_eq!(again.body["task"], first.body["task"], "adopted");
    });
    // Without the broker: live tasks are adopted all the same, and what is refused can be asked again.
    kit.stop(Side::Broker).unwrap();
    kit.kill(Side::Agent).unwrap();
    kit.start_daemon(Side::Agent, &[]).unwrap();
    let (waited, refused) = ask_again(&kit, TOKEN);
    assert!(waited < NOT_LONG, "waited {waited} s");
    assert_eq!(refused.status, 503, "{refused:?}");
    let task = get(&kit, "/v1/task").unwrap();
    assert_eq!(task.body["task"], first.body["task"], "{task:?}");
    kit.start_daemon(Side::Broker, &[]).unwrap();
    kit.wait_connected().unwrap();
    let again = wait::until("the shell is served", SETTLE, || {
        shell.ask("shell").ok().flatten()
    })
    .unwrap();
    assert_eq!(again.pid, held.pid);
    let mut history = History::default();
    history.running.extend([held, again]);
    judge(&kit, &history).unwrap();
}

/// A caller is told by its agent what was revoked of its task, whichever agent that is by now; and a
/// successor that was told of another socket takes nothing over.
#[test]
fn what_was_revoked_is_remembered_and_sockets_are_not_changed_in_passing() {
    let kit = super::running();
    let json = |target: &str| -> serde_json::Value {
        serde_json::from_slice(&get(&kit, target).unwrap().bytes).unwrap()
    };
    let id = |target: &str| json(target)["id"].as_str().unwrap().to_owned();
    let (gone, kept) = (id("/v1/token?audience=gone"), id(TOKEN));
    kit.admin_post(&format!("/v1/credentials/{gone}/revoke"), &json!({}))
        .unwrap();
    let told = || {
        let told = json("/v1/task")["revoked"].clone();
        (told.as_array().is_some_and(|all| !all.is_empty())).then_some(told)
    };
    let before = wait::until("the agent hears it", SETTLE, told).unwrap();
    assert_eq!(before, json!([gone]));
    let other = ("EPHOR_AGENT_METRICS_LISTEN", "127.0.0.1:1");
    let (_, started) = kit.start_successor(&[other]).unwrap();
    assert!(matches!(started, Started::Ended(_)), "it took over");
    let log = kit.tail(Side::Agent);
    assert!(log.contains("takes a plain restart"), "{log}");
    kit.hand_over().unwrap();
    assert_eq!(told(), Some(before));
    assert_eq!(id(TOKEN), kept);
    assert_ne!(id("/v1/token?audience=gone"), gone);
}
