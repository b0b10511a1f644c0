#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use ephor_crypto::digest::sha256;
use ephor_proto::task_rule::{Bind, BindError, Process as Id};
use ephor_proto::time::UnixMillis;

use super::testing::{Door, Frozen, Process, cache, until};
use super::*;
use crate::clock::SystemClock;

fn canonical(path: impl AsRef<Path>) -> String {
    std::fs::canonicalize(path)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

/// Both ways to learn the ids, of a process that gives up half of root and then all of it.
#[test]
fn the_pidfd_says_what_the_status_file_says_also_after_a_change() {
    const LESS: &str = "import os, sys\n\
        for ids in (65534, 0, 0), (65534, 65534, 65534):\n\
        \x20sys.stdin.readline(); os.setresgid(*ids); os.setresuid(*ids); print('less', flush=True)\n\
        sys.stdin.readline()";
    let mut child = Process::start("python3", &["-c", LESS]);
    let held = HeldProcess::hold(child.0.id()).unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut release = release.split(['.', '-']);
    let mut number = || release.next().unwrap().parse::<u32>().unwrap();
    let tells = (number(), number()) >= (6, 13);
    let same = || {
        let status = held.status().unwrap();
        let ids = held.ids().unwrap();
        assert_eq!(ids.is_some(), tells);
        assert!(
            ids.is_none_or(|ids| ids == (status.uid, status.gid)),
            "{ids:?} {status:?}"
        );
        (status.uid.real, status.uid.effective)
    };
    let own = nix::unistd::getuid().as_raw();
    assert_eq!(same(), (own, own));
    if own == 0 {
        for expected in [(65534, 0), (65534, 65534)] {
            child.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            let mut said = [0; 5];
            child
                .0
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut said)
                .unwrap();
            assert_eq!(same(), expected);
        }
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert!(matches!(
        held.ids(),
        Err(AttestError::Gone { .. }) | Ok(None)
    ));
}

#[test]
fn the_caller_is_who_the_kernel_says() {
    let door = Door::open();
    let (_client, stream) = door.own();
    let peer = Peer::from_stream(&stream, Mode::Pidfd).unwrap();
    let attested = attest(&peer, true, &cache()).unwrap();
    let evidence = attested.evidence();
    let exe = evidence.exe.as_ref().unwrap();
    assert_eq!(evidence.pid, std::process::id());
    assert_eq!(evidence.uid, nix::unistd::getuid().as_raw());
    assert_eq!(evidence.gid, nix::unistd::getgid().as_raw());
    assert_eq!(exe.path, canonical(std::env::current_exe().unwrap()));
    assert!(!exe.deleted);
    assert_eq!(exe.file.ino, std::fs::metadata(&exe.path).unwrap().ino());
    assert_eq!(
        evidence.exe_sha256,
        Some(sha256(&std::fs::read(&exe.path).unwrap()))
    );
    assert!(!evidence.foreign_user_namespace && !evidence.foreign_mount_namespace);
    let wire = evidence.to_wire();
    assert_eq!(
        (wire.pid, wire.exe.as_str(), wire.exe_sha256.len()),
        (evidence.pid, exe.path.as_str(), 32)
    );
    let mut groups: Vec<u32> = nix::unistd::getgroups()
        .unwrap()
        .into_iter()
        .map(|gid| gid.as_raw())
        .collect();
    groups.sort_unstable();
    assert_eq!(evidence.groups, groups);
    recheck(&peer, &attested).unwrap();
}

#[test]
fn the_older_way_gives_the_same_answers_and_says_so() {
    let door = Door::open();
    let (_process, stream) = door.python("wait()");
    let seen = |mode| {
        let peer = Peer::from_stream(&stream, mode).unwrap();
        attest(&peer, true, &cache()).unwrap().evidence().clone()
    };
    let (new, old) = (seen(Mode::Pidfd), seen(Mode::StartTime));
    assert_eq!(
        (new.held_by.as_str(), old.held_by.as_str()),
        ("pidfd", "start-time")
    );
    assert_eq!(
        Evidence {
            held_by: Held::Pidfd,
            ..old
        },
        new
    );
}

#[test]
fn two_workers_of_one_program_have_one_fingerprint_and_another_program_has_not() {
    let (one, two) = (Process::waiting(), Process::waiting());
    let other = Process::start("sleep", &["600"]);
    let of = |process: &Process| {
        attest(&process.peer(), false, &cache())
            .unwrap()
            .fingerprint()
            .clone()
    };
    until("the children have executed", || {
        (of(&one) == of(&two)).then_some(())
    });
    until("the other has executed", || {
        (of(&one) != of(&other)).then_some(())
    });
}

#[test]
fn an_exec_after_connect_is_noticed_though_pid_and_start_time_stay() {
    for mode in [Mode::Pidfd, Mode::StartTime] {
        let door = Door::open();
        let (mut process, mut stream) = door.python("wait(); os.execvp('sleep', ['sleep', '600'])");
        let peer = Peer::from_stream(&stream, mode).unwrap();
        let attested = attest(&peer, false, &cache()).unwrap();
        recheck(&peer, &attested).unwrap();
        process.go_on();
        // The socket is closed by the exec.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert!(peer.is_alive());
        let changed = recheck(&peer, &attested).unwrap_err();
        assert!(
            matches!(
                changed,
                AttestError::Changed {
                    what: "executable",
                    ..
                }
            ),
            "{changed}"
        );
        let after = attest(&peer, false, &cache()).unwrap();
        assert_ne!(after.fingerprint(), attested.fingerprint());
        assert_eq!(after.evidence().start_time, attested.evidence().start_time);
    }
}

#[test]
fn attack_13_a_peer_that_ended_is_refused_before_and_after_it_was_attested() {
    for mode in [Mode::Pidfd, Mode::StartTime] {
        let door = Door::open();
        let (mut process, stream) = door.python("wait()");
        let peer = Peer::from_stream(&stream, mode).unwrap();
        let attested = attest(&peer, false, &cache()).unwrap();
        process.go_on();
        // Not reaped: a zombie keeps its pid and its /proc directory, and is dead all the same.
        until("it ended", || (!peer.is_alive()).then_some(()));
        for gone in [
            recheck(&peer, &attested).unwrap_err(),
            attest(&peer, false, &cache()).unwrap_err(),
        ] {
            assert!(matches!(gone, AttestError::Gone { .. }), "{gone}");
        }
        assert!(matches!(
            Peer::from_stream(&stream, mode),
            Err(AttestError::Gone { .. })
        ));
        process.reap();
        assert!(matches!(
            Peer::from_stream(&stream, mode),
            Err(AttestError::Gone { .. })
        ));
        assert!(matches!(
            recheck(&peer, &attested),
            Err(AttestError::Gone { .. })
        ));
    }
}

#[test]
fn a_child_with_the_inherited_connection_of_a_dead_parent_is_refused() {
    let door = Door::open();
    let script = "
if os.fork() == 0:
    s.send(b'mine now')
    wait()
else:
    os._exit(0)";
    let mut process = door.python_unaccepted(script);
    process.reap();
    let stream = door.accept();
    let refused = Peer::from_stream(&stream, Mode::Pidfd);
    assert!(
        matches!(refused, Err(AttestError::Gone { .. })),
        "{refused:?}"
    );
}

#[test]
fn bind_parent_is_the_process_that_called_the_helper() {
    let door = Door::open();
    let script = "import socket, sys, os; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); os.read(0, 1)";
    let shell = Process::start(
        "/bin/sh",
        &[
            "-c",
            "python3 -c \"$1\" \"$2\"; :",
            "sh",
            script,
            &door.path(),
        ],
    );
    let stream = door.accept();
    let helper = Peer::from_stream(&stream, Mode::Pidfd).unwrap();
    let (above, attested) = attest_ancestor(&helper, Bind::Parent, true, &cache())
        .unwrap()
        .unwrap();
    assert_eq!(above.pid(), shell.pid());
    assert_eq!(
        attested.evidence().exe.as_ref().unwrap().path,
        canonical("/bin/sh")
    );
    assert!(attested.evidence().exe_sha256.is_some());
    // Named by its pid, and one further up: this test.
    let own = std::process::id();
    for pid in [shell.pid(), own] {
        let (above, _) = attest_ancestor(&helper, Bind::Ancestor(pid), false, &cache())
            .unwrap()
            .unwrap();
        assert_eq!(above.pid(), pid);
    }
    assert!(
        attest_ancestor(&helper, Bind::Ancestor(helper.pid()), false, &cache())
            .unwrap()
            .is_none()
    );
    let chain = ancestors(helper.process()).unwrap();
    let pids: Vec<u32> = chain
        .iter()
        .map(|above| above.process.pid)
        .take(2)
        .collect();
    assert_eq!(pids, [shell.pid(), own]);
}

#[test]
fn attack_25_a_process_that_is_no_ancestor_cannot_be_bound_to() {
    let (one, sibling) = (Process::waiting(), Process::waiting());
    let child_of_none =
        attest_ancestor(&one.peer(), Bind::Ancestor(sibling.pid()), false, &cache());
    let Err(AttestError::Bind(BindError::NotAncestor(pid))) = child_of_none else {
        panic!("{child_of_none:?}")
    };
    assert_eq!(pid, sibling.pid());
    // A child is below, not above.
    let own = HeldProcess::hold(std::process::id()).unwrap();
    let own = super::peer::Peer::from_process(own, Held::Pidfd).unwrap();
    let below = attest_ancestor(&own, Bind::Ancestor(one.pid()), false, &cache());
    assert!(
        matches!(below, Err(AttestError::Bind(BindError::NotAncestor(_)))),
        "{below:?}"
    );
    let first = attest_ancestor(&one.peer(), Bind::Ancestor(1), false, &cache());
    assert!(matches!(first, Err(AttestError::Bind(_))), "{first:?}");
}

#[test]
fn an_ancestor_with_another_start_time_is_another_process() {
    let one = Process::waiting();
    let peer = one.peer();
    let own = HeldProcess::hold(std::process::id()).unwrap().id();
    assert!(descends_from(peer.process(), own).unwrap());
    let forged = Id {
        start_time: own.start_time + 1,
        ..own
    };
    assert!(!descends_from(peer.process(), forged).unwrap());
}

#[test]
fn a_swapped_program_with_size_and_mtime_restored_is_hashed_anew() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    std::fs::copy("/bin/sh", &program).unwrap();
    let before = std::fs::metadata(&program).unwrap();
    let cache = cache();
    let run = || {
        let process = Process::start(&program, &["-c", "read line; :"]);
        let attested = until("it executed", || {
            let attested = attest(&process.peer(), true, &cache).unwrap();
            (attested.evidence().exe.as_ref()?.path == canonical(&program)).then_some(attested)
        });
        process.kill();
        attested.evidence().exe_sha256.unwrap()
    };
    let first = run();
    let hits = cache.hits();
    assert_eq!(run(), first);
    assert!(cache.hits() > hits, "an unchanged program is hashed once");

    // The last bytes are section names: it runs all the same.
    let mut content = std::fs::read(&program).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&program, &content).unwrap();
    let file = std::fs::File::options().write(true).open(&program).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    drop(file);
    let after = std::fs::metadata(&program).unwrap();
    assert_eq!(
        (
            after.dev(),
            after.ino(),
            after.size(),
            after.mtime(),
            after.mtime_nsec()
        ),
        (
            before.dev(),
            before.ino(),
            before.size(),
            before.mtime(),
            before.mtime_nsec()
        )
    );
    let second = run();
    assert_ne!(second, first);
    assert_eq!(second, sha256(&content));
}

#[test]
fn a_program_that_changed_just_now_is_not_cached() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    std::fs::copy("/bin/sh", &program).unwrap();
    let process = Process::start(&program, &["-c", "read line; :"]);
    let executed = || {
        HeldProcess::hold(process.pid())
            .is_ok_and(|held| held.link("exe").unwrap() == Some(canonical(&program)))
    };
    until("it executed", || executed().then_some(()));
    let changed = u64::try_from(std::fs::metadata(&program).unwrap().ctime()).unwrap() * 1000;
    for (age_millis, hits) in [(0, 0), (1_000, 0), (10_000, 1)] {
        let now = UnixMillis::from_millis(changed + age_millis);
        let cache = HashCache::with_defaults(Arc::new(Frozen(now)));
        for _ in 0..2 {
            attest(&process.peer(), true, &cache).unwrap();
        }
        assert_eq!(cache.hits(), hits, "{age_millis} ms after the change");
    }
}

#[test]
fn a_program_over_the_bound_is_not_read() {
    let process = Process::waiting();
    let cache = HashCache::new(SystemClock::shared(), 1000);
    let refused = attest(&process.peer(), true, &cache).unwrap_err();
    assert!(
        matches!(&refused, AttestError::Hash { why, .. } if why.contains("max_exe_hash_bytes")),
        "{refused}"
    );
    attest(&process.peer(), false, &cache).unwrap();
}

#[test]
fn a_deleted_program_is_marked() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    std::fs::copy("/bin/sh", &program).unwrap();
    let process = Process::start(&program, &["-c", "read line; :"]);
    let path = canonical(&program);
    let exe = || {
        attest(&process.peer(), false, &cache())
            .unwrap()
            .evidence()
            .exe
            .clone()
            .unwrap()
    };
    until("it executed", || {
        (exe().path == path && !exe().deleted).then_some(())
    });
    std::fs::remove_file(&program).unwrap();
    assert_eq!((exe().path, exe().deleted), (path, true));
}
