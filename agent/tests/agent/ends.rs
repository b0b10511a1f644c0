//! Ends of tasks, by whom ever: memory first, then the broker.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Child, Command};
use std::sync::Arc;

use ephor_proto::grpc::v1;
use ephor_proto::grpc::v1::push::What;
use ephor_proto::id::TaskId;
use ephor_proto::problem::Code;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use crate::world::{LOCAL, Reply, World, reply, until};

/// A child that waits, killed when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn open_run(world: &World, child: &Child) -> (Reply, UnixStream) {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let stream = StdStream::connect(&world.socket).unwrap();
    let request = format!("POST /v1/tasks HTTP/1.1\r\n{LOCAL}Content-Length: 2\r\n\r\n{{}}");
    send_with(&stream, request.as_bytes(), pidfd.as_fd());
    stream.set_nonblocking(true).unwrap();
    let mut stream = UnixStream::from_std(stream).unwrap();
    let reply = reply(&mut stream).await;
    (reply, stream)
}

fn send_with(stream: &StdStream, bytes: &[u8], descriptor: BorrowedFd<'_>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )
    .unwrap();
    let mut stream = stream;
    stream.write_all(&bytes[sent..]).unwrap();
}

fn told(world: &World, task: TaskId) -> usize {
    world
        .broker
        .state()
        .completes
        .iter()
        .filter(|end| end.task_id == task.to_bytes())
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn releasing_the_own_task_wipes_and_gives_the_receipt() {
    let world = World::start();
    let fetched = world.get("/v1/token?audience=billing").await;
    let done = world.post("/v1/task/complete", "").await.json();
    assert_eq!(done["task"], fetched.json()["task"]);
    assert_eq!(
        (
            done["wiped"].as_u64(),
            done["listed"].as_u64(),
            done["receipt"]["leaf"].as_str()
        ),
        (Some(1), Some(1), Some("proven"))
    );
    assert_eq!(world.broker.state().completes[0].cause, "released");
    // Asked again by its id: the same receipt, told once.
    let again = world
        .post(&format!("/v1/tasks/{}/complete", fetched.task()), "{}")
        .await
        .json();
    assert_eq!(again, done);
    assert_eq!(told(&world, fetched.task()), 1);
    // The caller may begin anew.
    let anew = world.get("/v1/token?audience=billing").await;
    assert_eq!(anew.status, 200, "{}", anew.body);
    assert!(anew.token() != fetched.token() && anew.task() != fetched.task());
}

/// It comes after the record: the broker has the task.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_task_whose_target_refused_is_told_and_of_one_that_policy_refused_is_not() {
    for (code, expected) in [(Code::TargetRefused, 1), (Code::Denied, 0)] {
        let world = World::start();
        world.broker.state().refuse_issue = Some(code);
        let refused = world.get("/v1/token?audience=billing").await;
        assert_eq!(refused.status, 403, "{}", refused.body);
        let ended = world.post("/v1/task/complete", "").await;
        assert_eq!(ended.status, 200, "{}", ended.body);
        assert_eq!(world.broker.state().completes.len(), expected, "{code}");
    }
}

/// Heartbeats that say of a task that it ended, by their causes; all of those without it in the open ones.
fn ended_in_heartbeats(world: &World, task: TaskId) -> Vec<Vec<String>> {
    let id = task.to_bytes().to_vec();
    let state = world.broker.state();
    let gone = state.heartbeats.iter().skip_while(|beat| {
        // Until it was opened.
        !beat.open_tasks.contains(&id)
    });
    gone.filter(|beat| !beat.open_tasks.contains(&id))
        .map(|beat| {
            let of_it = beat.ended_tasks.iter().filter(|end| end.task_id == id);
            of_it.map(|end| end.cause.clone()).collect()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_tells_the_cause_of_an_end_that_is_not_acknowledged_yet() {
    let world = World::start();
    let task = world.get("/v1/token?audience=billing").await.task();
    let id = task.to_bytes().to_vec();
    until("the task in a heartbeat", || {
        let state = world.broker.state();
        let mut beats = state.heartbeats.iter();
        beats.any(|beat| beat.open_tasks.contains(&id))
    })
    .await;
    // A target hangs, and the broker does not answer.
    world.broker.end_gate.forget_permits(1000);
    assert!(ephor_agent::revoke::end_task(
        &world.agent,
        task,
        ephor_proto::state::task::EndCause::Released
    ));
    until("heartbeats without the task", || {
        ended_in_heartbeats(&world, task).len() >= 3
    })
    .await;
    for causes in ended_in_heartbeats(&world, task) {
        assert_eq!(causes, ["released"], "in every one, with its cause");
    }
    world.broker.end_gate.add_permits(1000);
    until("heartbeats that say nothing of it any more", || {
        let told = ended_in_heartbeats(&world, task);
        told.last().is_some_and(Vec::is_empty)
    })
    .await;
    assert_eq!(told(&world, task), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_of_a_run_is_told_at_once() {
    let world = World::start();
    let mut child = Sleeper::start();
    let (opened, _connection) = open_run(&world, &child.0).await;
    assert_eq!(opened.status, 200, "{}", opened.body);
    let task = opened.task();
    until("the task in a heartbeat", || {
        world
            .broker
            .state()
            .heartbeats
            .iter()
            .any(|beat| beat.open_tasks.contains(&task.to_bytes().to_vec()))
    })
    .await;
    child.kill();
    until("its end here", || {
        world.agent.table.open_task(task).is_none()
    })
    .await;
    // Nothing was issued for it, so the broker never heard of it, and there is no receipt.
    let done = world
        .post(&format!("/v1/tasks/{task}/complete"), "")
        .await
        .json();
    assert_eq!(
        (done["wiped"].as_u64(), done.get("receipt")),
        (Some(0), None)
    );
    assert_eq!(told(&world, task), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_is_needed_for_a_run_and_must_be_a_pidfd() {
    let world = World::start();
    let without = world.post("/v1/tasks", "{}").await;
    assert_eq!(
        (without.status, without.code().as_str()),
        (400, "invalid_request")
    );
    let stream = StdStream::connect(&world.socket).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let request = format!("POST /v1/tasks HTTP/1.1\r\n{LOCAL}Content-Length: 2\r\n\r\n{{}}");
    send_with(&stream, request.as_bytes(), file.as_fd());
    stream.set_nonblocking(true).unwrap();
    let refused = reply(&mut UnixStream::from_std(stream).unwrap()).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_takes_its_credentials_with_it() {
    let world = World::start();
    // It asks when told to: by then it is the main process of a run, wherever the host puts it.
    let script = r#"
import socket, sys
sys.stdin.readline()
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"GET /v1/token?audience=child HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nConnection: close\r\n\r\n")
answer = b""
while True:
    part = s.recv(65536)
    if not part: break
    answer += part
sys.stdout.write(answer.decode()); sys.stdout.flush()
sys.stdin.read()
"#;
    let mut child = Command::new("python3")
        .args(["-c", script])
        .arg(&world.socket)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (opened, _connection) = open_run(&world, &child).await;
    let task = opened.task();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    until("the hand-over", || world.agent.renewer.len() == 1).await;
    let issue = world.broker.state().issues[0].clone();
    assert_eq!(issue.evidence.as_ref().unwrap().pid, child.id());
    let told_task = issue.task.as_ref().unwrap();
    assert_eq!(
        (told_task.rule.as_str(), &told_task.id),
        ("run", &task.to_bytes().to_vec())
    );
    let now = ephor_proto::time::Boottime::default();
    assert_eq!(world.agent.hold.list(task, now).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end at the broker", || told(&world, task) == 1).await;
    assert!(world.agent.hold.list(task, now).is_empty());
    assert_eq!(world.broker.state().completes[0].cause, "exited");
    until("the receipt", || world.agent.receipts.is_told(task)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_wipes_everything_however_it_is_heard() {
    type Ban = fn(&World);
    let by_heartbeat: Ban = |world| world.broker.state().refuse_agent = Some(Code::AgentBanned);
    let by_hello: Ban = |world| {
        world.broker.go_away();
        world.broker.state().refuse_agent = Some(Code::AgentBanned);
        world.broker.come_back();
    };
    let by_issue: Ban = |world| world.broker.state().refuse_issue = Some(Code::AgentBanned);
    for (way, ban) in [
        ("heartbeat", by_heartbeat),
        ("hello", by_hello),
        ("issue", by_issue),
    ] {
        let world = World::start();
        let fetched = world.get("/v1/token?audience=billing").await;
        assert_eq!(fetched.status, 200, "{}", fetched.body);
        ban(&world);
        if way == "issue" {
            let refused = world.get("/v1/token?audience=other").await;
            assert_eq!(
                (refused.status, refused.code().as_str()),
                (403, "agent_banned")
            );
        }
        until(&format!("the end of its tasks, by {way}"), || {
            world.agent.table.open_tasks().is_empty()
        })
        .await;
        until(&format!("the wipe, by {way}"), || {
            world.agent.hold.tasks().is_empty()
        })
        .await;
        until(&format!("the cause, by {way}"), || {
            world.agent.receipts.cause(fetched.task()) == Some("revoked")
        })
        .await;
        // What was served from memory before is not any more.
        let after = world.get("/v1/token?audience=billing").await;
        assert_eq!(
            (after.status, after.code().as_str()),
            (409, "task_ended"),
            "{way}: {}",
            after.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_task_is_wiped_and_barred() {
    let world = World::start();
    let fetched = world.get("/v1/token?audience=billing").await;
    until("the watch stream", || world.broker.is_watched()).await;
    let task_id = fetched.task().to_bytes().to_vec();
    world
        .broker
        .push(What::TaskRevoked(v1::TaskRevoked {
            task_id,
            cause: "revoked".into(),
        }))
        .await;
    until("the wipe", || {
        world.agent.table.open_task(fetched.task()).is_none()
    })
    .await;
    let after = world.get("/v1/token?audience=billing").await;
    assert_eq!(
        (after.status, after.code().as_str()),
        (409, "task_ended"),
        "{}",
        after.body
    );
    assert_eq!(world.issues(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_credential_is_wiped_and_the_task_goes_on() {
    let world = World::start();
    let (one, other) = (
        world.get("/v1/token?audience=one").await,
        world.token("other").await,
    );
    until("the watch stream", || world.broker.is_watched()).await;
    let id: ephor_proto::id::CredentialId = one.json()["id"].as_str().unwrap().parse().unwrap();
    let revoked = v1::CredentialRevoked {
        task_id: one.task().to_bytes().to_vec(),
        credential_id: id.to_bytes().to_vec(),
    };
    world.broker.push(What::CredentialRevoked(revoked)).await;
    let now = ephor_proto::time::Boottime::default();
    until("the wipe", || {
        world.agent.hold.list(one.task(), now).len() == 1
    })
    .await;
    assert_eq!(world.token("other").await, other);
    let told = world.get("/v1/task").await.json();
    assert_eq!(
        told["revoked"],
        serde_json::json!([id.to_string()]),
        "{told}"
    );
    assert_ne!(world.token("one").await, one.token());
    // Remembered for the holder of an open task only.
    world.agent.forget(one.task());
    assert_eq!(world.agent.revoked(one.task()), []);
    world.agent.note_revoked(one.task(), id);
    assert_eq!(world.agent.revoked(one.task()), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_closed_at_the_broker_ends_here_but_not_one_it_never_had() {
    let world = World::start();
    let mut child = Sleeper::start();
    let (opened, _connection) = open_run(&world, &child.0).await;
    let fetched = world.get("/v1/token?audience=billing").await;
    let ids = [opened.task(), fetched.task()].map(|task| task.to_bytes().to_vec());
    world.broker.state().closed = ids.to_vec();
    until("the end", || {
        world.agent.table.open_task(fetched.task()).is_none()
    })
    .await;
    assert!(
        world.agent.table.open_task(opened.task()).is_some(),
        "the broker was never told of it"
    );
    child.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_the_end_is_dropped() {
    let world = World::start();
    world.broker.gate.forget_permits(1000);
    let fetch = world.get("/v1/token?audience=billing");
    let end = async {
        until("the call", || world.issues() == 1).await;
        let task =
            TaskId::from_slice(&world.broker.state().issues[0].task.as_ref().unwrap().id).unwrap();
        let agent = Arc::clone(&world.agent);
        assert!(ephor_agent::revoke::end_task(
            &agent,
            task,
            ephor_proto::state::task::EndCause::Revoked
        ));
        world.broker.gate.add_permits(1);
        task
    };
    let (refused, task) = tokio::join!(fetch, end);
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (409, "task_ended")
    );
    assert!(!refused.body.contains("token-"));
    until("the end at the broker", || told(&world, task) == 1).await;
}
