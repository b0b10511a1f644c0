//! Full disk and failing flushes. A small file system of its own where this may be mounted; else
//! the store's own limit, which test builds take from a file (`EPHOR_FULL`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ephor_testkit::checker::{History, judge};
use ephor_testkit::daemon::Started;
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;

/// Room for the reserve (8 MiB) and a small store.
const SIZE: &str = "size=12m,mode=0700";

/// The broker's state directory, which can be filled.
struct Disk {
    state: PathBuf,
    is_mounted: bool,
}

impl Disk {
    fn under(dir: &Path) -> Self {
        let state = dir.join("state");
        std::fs::create_dir(&state).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "tmpfs"])
            .arg(&state)
            .output();
        let is_mounted = mounted.is_ok_and(|done| done.status.success());
        if !is_mounted {
            // The broker makes it itself, with the mode it wants.
            std::fs::remove_dir(&state).unwrap();
        }
        Self { state, is_mounted }
    }

    fn filler(&self) -> PathBuf {
        self.state.join("filler")
    }

    /// Not one more block.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        if self.is_mounted {
            while filler.write_all(&[0x55; 4096]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.state).status();
        }
    }
}

/// The disk is dropped after the installation, whose daemons are on it.
fn on_small_disk() -> (Installation, Disk) {
    let dir = tempfile::Builder::new()
        .prefix("ephor-kit")
        .tempdir()
        .unwrap();
    let disk = Disk::under(dir.path());
    let kit = Installation::create_in(dir, &super::binary()).unwrap();
    start(&kit, &disk, None);
    kit.join(&kit.path("token")).unwrap();
    kit.start_daemon(Side::Agent, &[]).unwrap();
    kit.wait_connected().unwrap();
    (kit, disk)
}

fn start(kit: &Installation, disk: &Disk, crash: Option<&str>) {
    let filler = disk.filler();
    let mut environment = vec![("EPHOR_FULL", filler.to_str().unwrap())];
    environment.extend(crash.map(|point| ("EPHOR_CRASH", point)));
    kit.start_daemon(Side::Broker, &environment).unwrap();
}

/// Nothing new; ends are refused, listed, acknowledged from the reserve, kept through a
/// `kill -9` and a start on the full disk, and in the log once there is space.
#[test]
fn a_full_disk_stops_issuing_and_no_revocation() {
    let (kit, disk) = on_small_disk();
    let mut history = History::default();
    let mut workloads: Vec<_> = (0..3).map(|_| Workload::start(&kit).unwrap()).collect();
    for workload in &mut workloads {
        workload.ask("held").unwrap().unwrap();
    }
    let (mut stays, mut second, mut first) = (
        workloads.pop().unwrap(),
        workloads.pop().unwrap(),
        workloads.pop().unwrap(),
    );
    disk.fill();
    // Whatever still fits in blocks already taken is used up.
    wait::until("issuing stops", SETTLE, || {
        stays
            .ask(&format!("a{}", wait::monotonic()))
            .unwrap()
            .is_none()
            .then_some(())
    })
    .unwrap();
    let said = std::fs::read_to_string(kit.path("workload.log")).unwrap();
    assert!(said.contains("no space left"), "{said}");
    let refused = |history: &History| {
        wait::until("it is refused on a full disk", SETTLE, || {
            let answer = kit.introspect(&history.ended.last()?.token).ok()?;
            (answer.body["active"] == false).then_some(())
        })
        .unwrap_or_else(|why| panic!("{why}; {}\n{}", kit.tail(Side::Broker), std::fs::read_to_string(kit.path("workload.log")).unwrap_or_default()));
    };
    history.end(&mut first).unwrap();
    refused(&history);
    kit.kill(Side::Broker).unwrap();
    start(&kit, &disk, None);
    refused(&history);
    kit.wait_connected().unwrap();
    history.end(&mut second).unwrap();
    refused(&history);
    disk.free();
    let held = wait::until("issuing goes on", SETTLE, || {
        stays.ask(&format!("b{}", wait::monotonic())).ok().flatten()
    });
    history
        .running
        .push(held.unwrap_or_else(|why| panic!("{why}; {}\n{}", kit.tail(Side::Broker), std::fs::read_to_string(kit.path("workload.log")).unwrap_or_default())));
    judge(&kit, &history).unwrap_or_else(|why| panic!("{why:#}; {}", kit.tail(Side::Broker)));
}

/// Killed right after the reserve was written.
#[test]
fn a_full_disk_and_a_kill() {
    let (kit, disk) = on_small_disk();
    let (mut stays, mut goes) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    goes.ask("held").unwrap().unwrap();
    kit.stop(Side::Broker).unwrap();
    start(&kit, &disk, Some("ledger.reserve_written"));
    kit.wait_connected().unwrap();
    disk.fill();
    wait::until("issuing stops", SETTLE, || {
        stays
            .ask(&format!("a{}", wait::monotonic()))
            .unwrap()
            .is_none()
            .then_some(())
    })
    .unwrap();
    let mut history = History::default();
    history.end(&mut goes).unwrap();
    wait::until("the broker died", SETTLE, || {
        (kit.killed_by(Side::Broker) == Some(9)).then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}; {}\n{}", kit.tail(Side::Broker), std::fs::read_to_string(kit.path("workload.log")).unwrap_or_default()));
    disk.free();
    start(&kit, &disk, None);
    judge(&kit, &history).unwrap_or_else(|why| panic!("{why:#}; {}", kit.tail(Side::Broker)));
}

/// What is on disk is not known after a failed flush: the broker ends itself, and what it
/// acknowledged before is there.
#[test]
fn a_failed_flush_ends_the_broker() {
    let kit = super::running();
    let (mut stays, mut goes) = (
        Workload::start(&kit).unwrap(),
        Workload::start(&kit).unwrap(),
    );
    goes.ask("held").unwrap().unwrap();
    kit.stop(Side::Broker).unwrap();
    // The flushes of a start are spared.
    kit.run_broker_under(&[
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync,fdatasync",
        "-e",
        "inject=fsync,fdatasync:error=EIO:when=30+",
    ]);
    let started = kit.try_start(Side::Broker, &[]).unwrap();
    assert_eq!(started, Started::Ready, "{}", kit.tail(Side::Broker));
    wait::until("the broker ends itself", SETTLE, || {
        let _ = stays.ask(&format!("a{}", wait::monotonic()));
        kit.has_ended(Side::Broker).then_some(())
    })
    .unwrap();
    // SIGABRT, which strace passes on.
    assert_eq!(
        kit.killed_by(Side::Broker),
        Some(6),
        "{}",
        kit.tail(Side::Broker)
    );
    assert!(
        kit.tail(Side::Broker)
            .contains("what is on disk is not known"),
        "{}",
        kit.tail(Side::Broker)
    );
    kit.run_broker_under(&[]);
    kit.start_daemon(Side::Broker, &[]).unwrap();
    let mut history = History::default();
    history.end(&mut goes).unwrap();
    history.running.extend_from_slice(stays.held());
    history
        .running
        .push(wait::until("a token", SETTLE, || stays.ask("after").ok().flatten()).unwrap());
    judge(&kit, &history).unwrap();
}
