//! What a confined process can still do, tried by one: each test starts this binary again, as a
//! child that confines itself and says what it met.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ephor_confine::{CapabilitySet, Files, Off, Plan, Report, State, confine};
use nix::errno::Errno;

const CHILD: &str = "EPHOR_CONFINE_CHILD";

/// Runs `child` in a process of its own, with what `parent` prepared as its argument.
fn in_a_child(test: &str, argument: &str, child: fn(&str)) {
    if let Ok(argument) = std::env::var(CHILD) {
        return child(&argument);
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, argument)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn plan(off: &Off, files: Files) -> Plan<'_> {
    Plan {
        off,
        user: None,
        directories: Vec::new(),
        keep: CapabilitySet::empty(),
        files,
    }
}

fn status(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} in {status}"))
        .trim()
        .to_owned()
}

/// The kernel under test has it, or the report says that it has not.
fn has_landlock(report: &Report) -> bool {
    match report.state("landlock").unwrap() {
        State::InForce | State::Partly => true,
        State::Missing => false,
        state @ (State::Off | State::NotApplicable) => panic!("{state:?}"),
    }
}

#[test]
fn only_its_own_files_and_ports_are_left() {
    let dir = tempfile::tempdir().unwrap();
    in_a_child(
        "only_its_own_files_and_ports_are_left",
        dir.path().to_str().unwrap(),
        |dir| {
            let dir = Path::new(dir);
            let [read, write, other] = ["read", "write", "other"].map(|name| dir.join(name));
            for directory in [&read, &write, &other] {
                std::fs::create_dir(directory).unwrap();
                std::fs::write(directory.join("file"), "there").unwrap();
            }
            let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
            let target = TcpListener::bind("127.0.0.1:0").unwrap();
            let reached = target.local_addr().unwrap().port();
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let off = Off::default();
            let report = confine(plan(
                &off,
                Files::Only {
                    read: vec![
                        read.clone(),
                        "/proc/self".into(),
                        "/proc/thread-self".into(),
                        "/no/such".into(),
                    ],
                    write: vec![write.clone()],
                    listen: vec![port],
                    connect: vec![reached],
                },
            ))
            .unwrap();
            println!("{report}");
            if !has_landlock(&report) {
                return;
            }
            let denied = |result: std::io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
            };
            std::fs::read(read.join("file")).unwrap();
            std::fs::write(write.join("new"), "new").unwrap();
            std::fs::rename(write.join("new"), write.join("file")).unwrap();
            denied(std::fs::write(read.join("file"), "changed"));
            denied(std::fs::read(other.join("file")).map(drop));
            denied(std::fs::read("/etc/passwd").map(drop));
            denied(std::fs::write(dir.join("new"), ""));
            denied(std::fs::remove_file(other.join("file")));
            if report.state("landlock") == Some(State::InForce) {
                TcpListener::bind(("127.0.0.1", port)).unwrap();
                denied(TcpListener::bind("127.0.0.1:0").map(drop));
                denied(TcpStream::connect(elsewhere.local_addr().unwrap()).map(drop));
                TcpStream::connect(target.local_addr().unwrap()).unwrap();
            }
            let elsewhere = elsewhere.local_addr().unwrap().port();
            assert!(ephor_confine::files::gave_up_connecting_to(elsewhere));
            assert!(!ephor_confine::files::gave_up_connecting_to(reached));
        },
    );
}

#[test]
fn calls_that_neither_daemon_makes_are_refused() {
    in_a_child("calls_that_neither_daemon_makes_are_refused", "", |_| {
        // With root's rights, where there are any: it is the filter that says no.
        let off = Off {
            capabilities: Some("the filter alone is looked at".to_owned()),
            ..Off::default()
        };
        let report = confine(plan(&off, Files::NotApplicable("not looked at"))).unwrap();
        println!("{report}");
        assert_eq!(report.state("seccomp"), Some(State::InForce));
        assert_eq!(report.state("capabilities"), Some(State::Off));
        assert_eq!(status("Seccomp:"), "2");
        assert_eq!(status("NoNewPrivs:"), "1");
        let started = Command::new("/bin/true").status();
        assert_eq!(
            started.unwrap_err().raw_os_error(),
            Some(Errno::EPERM as i32)
        );
        assert_eq!(nix::sys::ptrace::traceme(), Err(Errno::EPERM));
        let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
        assert_eq!(unshared, Err(Errno::EPERM));
        assert_eq!(nix::mount::umount("/no/such"), Err(Errno::EPERM));
        let mut byte = [0_u8];
        let local = &mut [std::io::IoSliceMut::new(&mut byte)];
        let remote = nix::sys::uio::RemoteIoVec { base: 0, len: 1 };
        let read = nix::sys::uio::process_vm_readv(nix::unistd::getppid(), local, &[remote]);
        assert_eq!(read, Err(Errno::EPERM));
        // And those that it does make go on.
        std::thread::spawn(|| std::fs::read("/proc/self/stat").unwrap())
            .join()
            .unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap();
    });
}

#[test]
fn of_roots_rights_only_the_named_are_kept() {
    in_a_child("of_roots_rights_only_the_named_are_kept", "", |_| {
        let had = rustix::thread::capabilities(None).unwrap().effective;
        let off = Off::default();
        let keep = CapabilitySet::SYS_PTRACE;
        let report = confine(Plan {
            keep,
            ..plan(&off, Files::NotApplicable("not looked at"))
        })
        .unwrap();
        println!("{report}");
        let sets = rustix::thread::capabilities(None).unwrap();
        assert_eq!((sets.effective, sets.permitted), (had & keep, had & keep));
        assert!(sets.inheritable.is_empty());
        if is_root() {
            assert_eq!(report.state("capabilities"), Some(State::InForce));
            assert_eq!(report.state("own_user"), Some(State::Missing));
            assert_eq!(status("CapBnd:").trim_start_matches('0'), "");
        }
    });
}

/// What the agent becomes: a user of its own that may look at everybody's programs, and write
/// only what is its own.
#[test]
fn a_user_of_its_own_sees_programs_and_writes_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    in_a_child(
        "a_user_of_its_own_sees_programs_and_writes_only_its_own",
        dir.path().to_str().unwrap(),
        |dir| {
            let made = PathBuf::from(dir).join("deep/state");
            let off = Off::default();
            let asked = |made: &Path| Plan {
                user: Some("daemon"),
                directories: vec![(made.to_owned(), 0o700)],
                keep: CapabilitySet::SYS_PTRACE,
                ..plan(&off, Files::NotApplicable("not looked at"))
            };
            if !is_root() {
                let error = confine(asked(&made)).unwrap_err().to_string();
                assert!(error.contains("start it as root or as daemon"), "{error}");
                return;
            }
            // A directory of somebody else's is not taken over.
            let error = confine(asked(Path::new(dir))).unwrap_err().to_string();
            assert!(error.contains("chown -R daemon"), "{error}");
            let report = confine(asked(&made)).unwrap();
            println!("{report}");
            for name in [
                "own_user",
                "capabilities",
                "not_dumpable",
                "no_new_privs",
                "seccomp",
            ] {
                assert_eq!(report.state(name), Some(State::InForce), "{name}");
            }
            let uid = nix::unistd::geteuid().as_raw();
            assert_ne!(uid, 0);
            let there = std::fs::metadata(&made).unwrap();
            assert_eq!((there.uid(), there.mode() & 0o777), (uid, 0o700));
            std::fs::write(made.join("own"), "").unwrap();
            let denied = std::fs::write(PathBuf::from(dir).join("new"), "").unwrap_err();
            assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
            // A process of root: without CAP_SYS_PTRACE this link is closed.
            let parent = format!("/proc/{}/exe", nix::unistd::getppid());
            std::fs::read_link(&parent).unwrap();
            let none = rustix::thread::CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            let denied = std::fs::read_link(&parent).unwrap_err();
            assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
        },
    );
}

/// Why the agent has no Landlock. Should a kernel ever answer otherwise, it can have it.
#[test]
fn a_landlock_domain_may_not_look_at_processes_outside_it() {
    in_a_child(
        "a_landlock_domain_may_not_look_at_processes_outside_it",
        "",
        |_| {
            let parent = format!("/proc/{}", nix::unistd::getppid());
            let off = Off {
                capabilities: Some("shown with every right that there is".to_owned()),
                ..Off::default()
            };
            let link = |name: &str| std::fs::read_link(format!("{parent}/{name}"));
            link("exe").unwrap();
            link("ns/mnt").unwrap();
            let report = confine(plan(
                &off,
                Files::Only {
                    read: vec!["/".into()],
                    write: Vec::new(),
                    listen: Vec::new(),
                    connect: Vec::new(),
                },
            ))
            .unwrap();
            if !has_landlock(&report) {
                return;
            }
            std::fs::read_to_string(format!("{parent}/stat")).unwrap();
            for name in ["exe", "ns/mnt"] {
                let error = link(name).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
            }
        },
    );
}
