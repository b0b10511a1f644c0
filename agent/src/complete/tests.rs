#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::os::fd::OwnedFd;
use std::time::Duration;

use ephor_proto::task_rule::{Process as Id, Unit};

use super::*;
use crate::attest::testing::{Process, cache};
use crate::attest::{UnitRun, attest};
use crate::clock::SystemClock;
use crate::journal::Unfinished;

struct Bench {
    table: TaskTable,
    ends: mpsc::Receiver<Ended>,
    directory: tempfile::TempDir,
    tasks: Tasks,
}

impl Bench {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap()).0
    }

    fn at(directory: tempfile::TempDir) -> (Self, Vec<Unfinished>) {
        let (journal, unfinished) = Journal::open(&directory.path().join("journal")).unwrap();
        let tasks = Tasks::new();
        let (table, ends) =
            TaskTable::start(journal, tasks.clone(), SystemClock::shared()).unwrap();
        (
            Self {
                table,
                ends,
                directory,
                tasks,
            },
            unfinished,
        )
    }

    /// Stops the agent as a crash does, and starts it anew on the same state.
    async fn restart(self) -> (Self, Vec<Unfinished>) {
        let Self {
            table,
            ends,
            directory,
            tasks,
        } = self;
        assert!(tasks.finish(Duration::from_secs(10)).await);
        drop((table, ends, tasks));
        Self::at(directory)
    }

    fn resolve(&self, peer: &Peer) -> Result<TaskHandle, TaskError> {
        let attested = attest(peer, false, &cache()).unwrap();
        self.table.resolve(peer, &attested, None, None)
    }

    async fn end(&mut self) -> Ended {
        tokio::time::timeout(Duration::from_secs(10), self.ends.recv())
            .await
            .expect("no end came")
            .unwrap()
    }

    fn open(&self) -> Vec<TaskId> {
        self.table.snapshot().tasks
    }
}

/// A process in no unit, whatever runs the tests.
fn in_unit(peer: &Peer, run: Option<UnitRun>) -> Attested {
    attest(peer, false, &cache()).unwrap().with_run(run)
}

#[tokio::test]
async fn a_process_has_one_task_and_its_end_is_told_once() {
    let mut bench = Bench::new();
    let process = Process::waiting();
    let peer = process.peer();
    let attested = in_unit(&peer, None);
    let task = bench.table.resolve(&peer, &attested, None, None).unwrap();
    assert_eq!(task.rule(), "peer");
    assert_eq!(task.process(), peer.process().id());
    assert_eq!(
        bench
            .table
            .resolve(&peer, &attested, None, None)
            .unwrap()
            .id(),
        task.id()
    );
    assert_eq!(bench.open(), [task.id()]);
    task.durable().await.unwrap();
    let (rule, found) = bench.table.find(&peer, &attested, None).unwrap();
    assert_eq!((rule, found.unwrap().id()), ("peer", task.id()));

    process.kill();
    let ended = bench.end().await;
    assert_eq!(
        ended,
        Ended {
            task: task.id(),
            cause: EndCause::Exited
        }
    );
    assert!(!task.is_open());
    assert_eq!(task.ended().await, EndCause::Exited);
    assert_eq!(bench.open(), []);
    assert_eq!(bench.table.outcome(task.id()), Some(EndCause::Exited));
    assert_eq!(bench.table.end(task.id(), EndCause::Revoked), None);
    assert_eq!(bench.table.unclosed(), [ended]);
    bench.table.closed(task.id());
    assert_eq!(bench.table.unclosed(), []);
    assert!(bench.ends.try_recv().is_err());
}

#[tokio::test]
async fn an_exit_before_the_watch_is_registered_is_not_missed() {
    let mut bench = Bench::new();
    let mut process = Process::waiting();
    let peer = process.peer();
    let attested = in_unit(&peer, None);
    process.0.kill().unwrap();
    process.reap();
    // On this single-threaded runtime no watcher has run yet.
    let task = bench.table.resolve(&peer, &attested, None, None).unwrap();
    assert_eq!(bench.end().await.task, task.id());
}

#[tokio::test]
async fn a_run_holds_all_below_it_and_ends_with_its_main_process() {
    let mut bench = Bench::new();
    let (mut run, main, below) = tree("os.kill(main, 9); os.wait(); signal.pause()");
    let below = peer_of(below);
    let chain = ancestors(below.process()).unwrap();
    assert_eq!(
        (chain[0].process.pid, chain[1].process.pid),
        (main, run.pid())
    );
    let main = chain[0].process;
    let own = run.peer();
    let task = bench.table.open_run(&own, pidfd(main.pid)).unwrap();
    assert_eq!((task.rule(), task.process()), ("run", main));
    assert_eq!(bench.resolve(&below).unwrap().id(), task.id());
    // The opener is above the main process, so not inside.
    assert_ne!(bench.resolve(&own).unwrap().id(), task.id());
    run.go_on();
    let ended = bench.end().await;
    assert_eq!(ended.task, task.id());
    assert!(bench.table.open_task(task.id()).is_none());
}

#[tokio::test]
async fn a_run_ends_with_the_one_who_opened_it() {
    let mut bench = Bench::new();
    let (mut opener, child, _) = tree("os._exit(0)");
    let task = bench.table.open_run(&opener.peer(), pidfd(child)).unwrap();
    opener.go_on();
    assert_eq!(bench.end().await.task, task.id());
    assert!(peer_of(child).is_alive());
}

#[tokio::test]
async fn bind_parent_joins_the_task_of_the_caller_of_the_helper() {
    let mut bench = Bench::new();
    let (mut top, shell, helper) = tree("os.kill(main, 9); os.wait(); signal.pause()");
    let peer = peer_of(helper);
    let bind = Some(Bind::Parent);
    let (above, attested) = crate::attest::attest_ancestor(&peer, Bind::Parent, false, &cache())
        .unwrap()
        .unwrap();
    let attested = attested.with_run(None);
    let task = bench
        .table
        .resolve(&peer, &attested, bind, Some(&above))
        .unwrap();
    assert_eq!((task.rule(), task.process().pid), ("ancestor", shell));
    let wrong = bench.table.resolve(
        &peer,
        &attested,
        Some(Bind::Ancestor(helper + 1_000_000)),
        None,
    );
    assert_eq!(
        wrong.unwrap_err().code(),
        ephor_proto::problem::Code::BindRefused
    );
    top.go_on();
    assert_eq!(bench.end().await.task, task.id());
}

#[tokio::test]
async fn a_unit_ends_when_its_cgroup_is_empty() {
    let mut bench = Bench::new();
    let (group, run) = unit(&bench);
    let process = Process::waiting();
    let peer = process.peer();
    let attested = in_unit(&peer, Some(run));
    let task = bench.table.resolve(&peer, &attested, None, None).unwrap();
    assert_eq!(task.rule(), "unit");
    // One process of it less is no end.
    process.kill();
    let other = Process::waiting();
    let attested = in_unit(&other.peer(), attested.evidence().placement.run.clone());
    assert_eq!(
        bench
            .table
            .resolve(&other.peer(), &attested, None, None)
            .unwrap()
            .id(),
        task.id()
    );
    std::fs::write(group.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
    std::fs::write(group.join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
    assert_eq!(
        bench.end().await,
        Ended {
            task: task.id(),
            cause: EndCause::Exited
        }
    );
}

#[tokio::test]
async fn a_unit_that_was_empty_before_the_watch_ends_at_once() {
    let mut bench = Bench::new();
    let (group, run) = unit(&bench);
    std::fs::write(group.join("cgroup.events"), "populated 0\n").unwrap();
    let process = Process::waiting();
    let attested = in_unit(&process.peer(), Some(run));
    let task = bench
        .table
        .resolve(&process.peer(), &attested, None, None)
        .unwrap();
    assert_eq!(bench.end().await.task, task.id());
}

#[tokio::test]
async fn a_unit_whose_directory_is_another_one_is_another_run() {
    let bench = Bench::new();
    let (_group, run) = unit(&bench);
    assert!(crate::attest::is_running(
        &run.unit,
        &run.directory,
        run.inode
    ));
    assert!(!crate::attest::is_running(
        &run.unit,
        &run.directory,
        run.inode + 1
    ));
    let other = Unit {
        invocation: "0123456789abcdef0123456789abcdef".to_owned(),
        ..run.unit
    };
    assert!(!crate::attest::is_running(
        &other,
        &run.directory,
        run.inode
    ));
}

#[tokio::test]
async fn a_heartbeat_judges_only_what_was_opened_before_it() {
    let bench = Bench::new();
    let (one, two) = (Process::waiting(), Process::waiting());
    let first = bench.resolve_alone(&one.peer());
    let snapshot = bench.table.snapshot();
    let second = bench.resolve_alone(&two.peer());
    assert!(first.opened_seq() < snapshot.seq);
    assert!(second.opened_seq() >= snapshot.seq);
    assert_eq!(snapshot.tasks, [first.id()]);
    let next = bench.table.snapshot();
    assert!(second.opened_seq() < next.seq && next.tasks.len() == 2);
    assert_eq!(second.to_wire().opened_seq, second.opened_seq());
}

#[tokio::test]
async fn a_released_task_may_be_followed_by_another_a_revoked_one_not() {
    let mut bench = Bench::new();
    let process = Process::waiting();
    let peer = process.peer();
    let first = bench.resolve_alone(&peer);
    assert_eq!(
        bench.table.complete(first.id(), &peer).unwrap().cause,
        EndCause::Released
    );
    assert!(bench.table.complete(first.id(), &peer).is_err());
    // A request that held the first one sees that it is over.
    assert!(!first.is_open());
    let second = bench.resolve_alone(&peer);
    assert_ne!(second.id(), first.id());
    assert!(bench.table.end(second.id(), EndCause::Revoked).is_some());
    let refused = bench
        .table
        .resolve(&peer, &in_unit(&peer, None), None, None)
        .unwrap_err();
    assert!(
        matches!(
            refused,
            TaskError::Ended {
                cause: EndCause::Revoked,
                ..
            }
        ),
        "{refused}"
    );
    // Neither is queued: who ended them tells the broker.
    process.kill();
    tokio::task::yield_now().await;
    assert!(bench.ends.try_recv().is_err());
}

#[tokio::test]
async fn after_a_restart_what_still_runs_is_adopted_and_what_does_not_has_ended() {
    let bench = Bench::new();
    let (stays, leaves) = (Process::waiting(), Process::waiting());
    let (kept, lost) = (
        bench.resolve_alone(&stays.peer()),
        bench.resolve_alone(&leaves.peer()),
    );
    let ended = bench.resolve_alone(&Process::waiting().peer());
    for task in [&kept, &lost, &ended] {
        task.durable().await.unwrap();
    }
    let _ = bench.table.end(ended.id(), EndCause::Released);
    leaves.kill();
    let (mut bench, unfinished) = bench.restart().await;
    // Its own watcher may have been first.
    let adoption = bench.table.adopt(unfinished);
    assert_eq!(
        adoption,
        Adoption {
            adopted: 1,
            ended: 2
        }
    );
    assert_eq!(bench.open(), [kept.id()]);
    let mut told = [bench.end().await.task, bench.end().await.task];
    told.sort();
    let mut expected = [lost.id(), ended.id()];
    expected.sort();
    assert_eq!(told, expected);
    // Same task for the same process, and still watched.
    assert_eq!(bench.resolve_alone(&stays.peer()).id(), kept.id());
    stays.kill();
    assert_eq!(bench.end().await.task, kept.id());
}

/// Test 6 of the plan: the pid was used again while the agent was down.
#[tokio::test]
async fn a_reused_pid_another_program_and_another_boot_are_not_adopted() {
    let bench = Bench::new();
    let process = Process::waiting();
    let task = bench.resolve_alone(&process.peer());
    let opened = task.0.opened.clone();
    let of = |change: &dyn Fn(&mut TaskOpened)| {
        let mut opened = opened.clone();
        change(&mut opened);
        bench.table.found(&opened).is_some()
    };
    assert!(of(&|_| {}));
    assert!(!of(&|opened| opened.processes[0].process.start_time += 1));
    assert!(!of(&|opened| opened.processes[0]
        .exe
        .as_mut()
        .unwrap()
        .ino += 1));
    assert!(!of(&|opened| opened.processes[0].process.pid = u32::MAX));
    assert!(!of(&|opened| opened.boot_id.replace_range(0..1, "x")));
    assert!(!of(&|opened| opened.processes.clear()));
    let second = Id {
        pid: opened.processes[0].process.pid,
        start_time: 1,
    };
    assert!(!of(&|opened| opened.processes.push(ProcessHandle {
        process: second,
        exe: None
    })));
}

#[tokio::test]
async fn one_user_cannot_take_every_place() {
    let bench = Bench::new();
    let process = Process::waiting();
    let mut state = State::default();
    let written = crate::journal::Written::already;
    let mut opened = bench.resolve_alone(&process.peer()).0.opened.clone();
    for number in 0..crate::limits::MAX_TASKS_PER_UID as u64 {
        state.check_room(opened.uid).unwrap();
        opened.id = TaskId::from_parts(number, [1; 10]);
        opened.key = TaskKey::Run(opened.id);
        state.insert(Entry::new(opened.clone(), 0, written()));
    }
    assert!(matches!(
        state.check_room(opened.uid),
        Err(TaskError::Full(_))
    ));
    state.check_room(opened.uid + 1).unwrap();
    let _ = state.end(opened.id, EndCause::Exited);
    state.check_room(opened.uid).unwrap();
}

impl Bench {
    /// The task of the process itself, even where the tests run inside a unit.
    fn resolve_alone(&self, peer: &Peer) -> TaskHandle {
        self.table
            .resolve(peer, &in_unit(peer, None), None, None)
            .unwrap()
    }
}

/// Three generations: the returned one, the first pid below it, and the second below that. On
/// `go_on` the topmost does `then`; the others end with the test.
fn tree(then: &str) -> (Process, u32, u32) {
    let script = format!(
        "
import os, select, signal
def until_the_test_is_over():
    p = select.poll(); p.register(1, 0); p.poll(); os._exit(0)
main = os.fork()
if main == 0:
    below = os.fork()
    if below == 0:
        until_the_test_is_over()
    os.write(1, b'%d\\n%d\\n' % (os.getpid(), below))
    until_the_test_is_over()
os.read(0, 1)
{then}"
    );
    let mut top = Process::start("python3", &["-c", &script]);
    let (main, below) = (top.number(), top.number());
    (top, main, below)
}

fn peer_of(pid: u32) -> Peer {
    Process::peer_of(pid)
}

fn pidfd(pid: u32) -> OwnedFd {
    peer_of(pid).pidfd_clone().unwrap()
}

/// A directory that looks like a cgroup.
fn unit(bench: &Bench) -> (std::path::PathBuf, UnitRun) {
    use std::os::unix::fs::MetadataExt;
    let directory = bench.directory.path().join("orders.service");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
    let inode = std::fs::metadata(&directory).unwrap().ino();
    let unit = Unit {
        name: "orders.service".to_owned(),
        invocation: format!("cgroup:{inode}"),
    };
    (
        directory.clone(),
        UnitRun {
            unit,
            directory,
            inode,
            has_events: true,
        },
    )
}
