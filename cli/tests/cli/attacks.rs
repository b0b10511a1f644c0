//! Attacks of docs/threat-model.md that need real processes; the number is the table's.
//!
//! What one crate can show alone is in that crate's tests, and the table says where.

use std::collections::HashSet;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::{Dev, assert_code, end_of, send, text, wait_for};
use super::wire::{
    Checker, Door, answer, assert_alive, bare, below, command, once, pids_of, policy, python, say,
    scratch, shared, until_line,
};

#[test]
fn attack_15_and_41_the_same_user_reads_the_environment_that_was_asked_for() {
    // The documented limit: a uid is one boundary. Who may read the child's environment or
    // memory has its token; what bounds it is the end of the task.
    let dev = shared();
    let mut checker = Checker::start(&dev);
    let mut run = command(&dev, env!("CARGO_BIN_EXE_ephor"));
    run.args([
        "run",
        "--env",
        "T=cred://identity/billing",
        "--",
        "sh",
        "-c",
        "echo $$; read forever",
    ]);
    let (_run, pid) = until_line(run.stdin(Stdio::piped()).stderr(Stdio::null()));
    let environ = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let token = environ
        .split('\0')
        .find_map(|pair| pair.strip_prefix("T="))
        .unwrap();
    checker.assert_good("billing", token);
    send(pid.parse().unwrap(), Signal::SIGKILL);
    checker.assert_refused("billing", token);
}

#[test]
fn attack_16_a_socket_that_somebody_else_serves_is_sent_nothing() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        // Only root can be somebody else. That the agent's directory is its own is tested there.
        return;
    }
    let dir = scratch();
    let open = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let path = dir.path().join("agent.sock");
    let forged = "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
                  s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666); s.listen()\n\
                  print('listens', flush=True)\nc, _ = s.accept(); print('got', c.recv(9999), flush=True)";
    let mut forger = std::process::Command::new(python());
    forger.args(["-c", forged]).arg(&path);
    let (mut forger, _) = until_line(&mut forger);
    let output = bare()
        .args(["token", "--audience", "billing"])
        .env("EPHOR_SOCKET", &path)
        .output()
        .unwrap();
    assert_code(&output, 69);
    let said = text(&output.stderr);
    assert!(said.contains("is served by uid 65534"), "{said}");
    let mut got = String::new();
    std::io::Read::read_to_string(forger.0.stdout.as_mut().unwrap(), &mut got).unwrap();
    assert_eq!(got.trim(), "got b''");
}

#[test]
fn attack_17_and_33_no_abstract_socket_and_no_tcp_port_of_the_agent() {
    let dev = shared();
    let names = std::fs::read_to_string("/proc/net/unix").unwrap();
    let names: Vec<(&str, &str)> = names
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(6);
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    for name in ["EPHOR_SOCKET", "EPHOR_ADMIN_SOCKET"] {
        assert!(
            names.iter().any(|(_, path)| *path == dev.variables[name]),
            "{name}: {names:?}"
        );
    }
    let ephor = |path: &&(&str, &str)| path.1.starts_with('@') && path.1.contains("ephor");
    assert_eq!(names.iter().find(ephor), None, "an abstract socket");
    let [broker, agent] = pids_of(&dev);
    for pid in [broker, agent] {
        let Some(sockets) = sockets(pid) else {
            continue;
        };
        let abstract_one = names
            .iter()
            .find(|(inode, path)| path.starts_with('@') && sockets.contains(*inode));
        assert_eq!(abstract_one, None, "an abstract socket of {pid}");
        let listening = listening(&sockets);
        if pid == agent {
            assert_eq!(listening, [""; 0], "the agent has no TCP port");
        } else {
            // `ephor dev` is for this host only: no port on 0.0.0.0.
            assert_eq!(listening.len(), 2);
            assert!(
                listening
                    .iter()
                    .all(|address| address.starts_with("0100007F:")),
                "{listening:?}"
            );
        }
    }
}

/// Inodes of a process's sockets; only root may look at those of a process that is not dumpable.
fn sockets(pid: u32) -> Option<HashSet<String>> {
    let listed = std::fs::read_dir(format!("/proc/{pid}/fd"));
    assert_eq!(
        listed.is_ok(),
        rustix::process::geteuid().is_root(),
        "{pid} is dumpable, or root may not look"
    );
    let links = listed
        .ok()?
        .map(|fd| std::fs::read_link(fd.unwrap().path()));
    let names = links.filter_map(|link| {
        Some(
            link.ok()?
                .to_str()?
                .strip_prefix("socket:[")?
                .trim_end_matches(']')
                .to_owned(),
        )
    });
    Some(names.collect())
}

/// Local addresses, as the kernel writes them, of listening TCP sockets with these inodes.
fn listening(sockets: &HashSet<String>) -> Vec<String> {
    let read =
        |table: &str| std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let mut found = Vec::new();
    for line in (read("tcp") + &read("tcp6")).lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.len() > 9 && fields[3] == "0A" && sockets.contains(fields[9]) {
            found.push(fields[1].to_owned());
        }
    }
    found
}

#[test]
fn attack_18_an_open_umask_opens_no_socket_and_no_file() {
    use std::os::unix::fs::PermissionsExt;
    let mut dev = Dev::with(&policy(), |command| {
        below(&["sh", "-c", "umask 0; exec \"$@\"", "sh"], &command)
    });
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dev.variables["EPHOR_ADMIN_SOCKET"].as_ref()), 0o600);
    assert_eq!(
        mode(dev.variables["EPHOR_SOCKET"].as_ref()),
        0o666,
        "everyone may ask; attestation decides"
    );
    assert_eq!(mode(&dev.dir), 0o700);
    for secret in [
        "broker/master.key",
        "broker/ephor.db",
        "agent/identity.pem",
        "broker.log",
        "agent.log",
    ] {
        assert_eq!(mode(&dev.dir.join(secret)) & 0o077, 0, "{secret}");
    }
    let mut seen = 0;
    for file in super::examples::files(&dev.dir) {
        // One that was to be renamed may be gone by now; its own mode is looked at under its name.
        let Ok(metadata) = std::fs::metadata(&file) else {
            continue;
        };
        let mode = metadata.permissions().mode();
        assert_eq!(
            mode & 0o022,
            0,
            "{} can be written by others",
            file.display()
        );
        seen += 1;
    }
    assert!(seen > 8, "only {seen} files were there");
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn attack_19_administration_and_callers_have_sockets_of_their_own() {
    let dev = shared();
    for verb in [
        "GET /v1/status",
        "GET /v1/hosts",
        "GET /v1/tasks",
        "GET /v1/credentials",
        "GET /v1/audit",
        "POST /v1/hosts/invite",
    ] {
        let request =
            format!("{verb} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Length: 0\r\n\r\n");
        let got = once(&dev, Door::Agent, request);
        // Two paths mean something else here, to callers: another method of them is refused.
        let expected = match verb {
            "GET /v1/tasks" | "GET /v1/credentials" => (405, "method_not_allowed"),
            _ => (404, "not_found"),
        };
        got.assert_problem(expected.0, expected.1, verb);
    }
    for verb in [
        "GET /v1/token?audience=a",
        "GET /v1/whoami",
        "GET /v1/task",
        "POST /v1/task/complete",
    ] {
        for door in [Door::Admin, Door::Https, Door::Http] {
            let request = format!(
                "{verb} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Length: 0\r\n\r\n"
            );
            once(&dev, door, request).assert_problem(404, "not_found", verb);
        }
    }
    for verb in ["GET /v1/hosts", "GET /v1/audit", "GET /v1/status"] {
        for door in [Door::Https, Door::Http] {
            once(&dev, door, format!("{verb} HTTP/1.1\r\nHost: x\r\n\r\n")).assert_problem(
                404,
                "not_found",
                verb,
            );
        }
    }
}

#[test]
fn attack_20_and_23_idle_connections_of_one_uid_do_not_starve_another() {
    let dev = Dev::with_policy(&policy());
    let pids = pids_of(&dev);
    let before = rss_kib(pids[1]);
    let mut idle = Vec::new();
    let refused = wait_for("a refusal of one connection too many", || {
        while idle.len() < 512 {
            idle.push(Door::Agent.open(&dev));
        }
        // Connections that are served say nothing; the one too many is answered at once. On a
        // machine so slow that the first were closed as idle meanwhile, all are opened again.
        let got = answer(&mut *Door::Agent.open(&dev));
        if got.status == 0 {
            idle.clear();
        }
        (got.status != 0).then_some(got)
    });
    refused.assert_problem(429, "rate_limited", "one connection too many");
    let after = rss_kib(pids[1]);
    assert!(
        after < before + 32 * 1024,
        "the agent grew from {before} to {after} KiB"
    );
    for door in [Door::Admin, Door::Https, Door::Http] {
        assert_eq!(once(&dev, door, door.good("")).status, 200, "{door:?}");
    }
    if rustix::process::geteuid().is_root() {
        // Only root can be somebody else; the share of each uid is tested in agent's `quota`.
        let other = "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
                     s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1])\n\
                     s.sendall(b'GET /v1/ready HTTP/1.1\\r\\nHost: x\\r\\nEphor-Local: 1\\r\\nConnection: close\\r\\n\\r\\n')\n\
                     print(s.recv(9999).decode())";
        // The directory of a test is its maker's alone; a real socket's is not.
        for path in [dev.dir.parent().unwrap(), &dev.dir] {
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, open).unwrap();
        }
        let output = command(&dev, python())
            .args(["-c", other, &dev.variables["EPHOR_SOCKET"]])
            .output()
            .unwrap();
        assert_code(&output, 0);
        assert!(
            text(&output.stdout).starts_with("HTTP/1.1 200"),
            "{}",
            text(&output.stdout)
        );
    }
    drop(idle);
    wait_for("the places to be given back", || {
        let got = once(&dev, Door::Agent, Door::Agent.good(""));
        (got.status == 200).then_some(())
    });
    assert_alive(&dev, pids, "idle connections");
}

/// As many as the corpus asks for, each held open whether it was refused or not.
#[test]
fn attack_20_ten_thousand_connections_of_one_uid_delay_no_other() {
    const PROCESSES: usize = 20;
    const EACH: usize = 500;
    if !rustix::process::geteuid().is_root() {
        // Only root can be somebody else; of one's own uid the test above has it.
        return;
    }
    let dev = Dev::with_policy(&policy());
    for path in [dev.dir.parent().unwrap(), &dev.dir] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, open).unwrap();
    }
    let [_, agent] = pids_of(&dev);
    assert_eq!(
        once(&dev, Door::Agent, Door::Agent.good("")).status,
        200,
        "before"
    );
    let (rss, open) = (rss_kib(agent), descriptors(agent));
    let script = format!(
        "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
         held = []\nfor _ in range({EACH}):\n  s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)\n\
         print('held', flush=True); sys.stdin.readline()"
    );
    let crowd: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let mut one = command(&dev, python());
            one.args(["-c", &script, &dev.variables["EPHOR_SOCKET"]]);
            until_line(one.stdin(Stdio::piped()))
        })
        .collect();
    assert_eq!(crowd.len() * EACH, 10_000);
    for _ in 0..20 {
        let asked = Instant::now();
        let got = once(&dev, Door::Agent, Door::Agent.good(""));
        assert_eq!(got.status, 200, "{got:?}");
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(2), "another uid waited {took:?}");
    }
    // A connection that has a place takes a socket, a pidfd and a directory of /proc.
    let places = descriptors(agent) - open;
    assert!((512..=512 * 3 + 64).contains(&places), "{places}");
    let grown = rss_kib(agent).saturating_sub(rss);
    assert!(grown < 32 * 1024, "the agent grew by {grown} KiB");
    drop(crowd);
    wait_for("the places to be given back", || {
        (descriptors(agent) <= open + 16).then_some(())
    });
}

/// Root sees them of a process that is not dumpable, too.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn attack_24_programs_of_one_user_and_task_share_nothing_that_is_held() {
    let dev = shared();
    let fetch = "import http.client, socket, os\nc = http.client.HTTPConnection('localhost')\n\
                 c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(os.environ['EPHOR_SOCKET'])\n\
                 c.request('GET', '/v1/token?audience=billing', headers={'Ephor-Local': '1'})\nprint(c.getresponse().read().decode())";
    let curl = "curl --silent --show-error --fail --unix-socket \"$EPHOR_SOCKET\" -H 'Ephor-Local: 1' \
                'http://localhost/v1/token?audience=billing'; echo";
    let script = format!("{curl}; {curl}; \"$1\" -c \"$2\"");
    let output = command(&dev, env!("CARGO_BIN_EXE_ephor"))
        .args(["run", "--", "sh", "-euc", &script, "sh"])
        .arg(python())
        .arg(fetch)
        .output()
        .unwrap();
    assert_code(&output, 0);
    let answers: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [first, again, other] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(
        (&first["task_rule"], &first["task"]),
        (&"run".into(), &other["task"])
    );
    assert_eq!(
        first["id"], again["id"],
        "the same program is served from memory"
    );
    assert_ne!(
        first["id"], other["id"],
        "another program got what was held for the first"
    );
}

#[test]
fn attack_21_a_header_of_one_byte_at_a_time_is_not_waited_for() {
    let dev = shared();
    std::thread::scope(|scope| {
        for (door, within) in [
            (Door::Agent, 15),
            (Door::Admin, 20),
            (Door::Https, 20),
            (Door::Http, 20),
        ] {
            let dev = &dev;
            scope.spawn(move || {
                let mut stream = door.open(dev);
                let start = Instant::now();
                let _ = stream.write_all(b"GET /v1/whoami HTTP/1.1\r\nX: ");
                while stream.write_all(b"y").and_then(|()| stream.flush()).is_ok() {
                    assert!(
                        start.elapsed() < Duration::from_secs(within),
                        "{door:?} still listens"
                    );
                    std::thread::sleep(Duration::from_millis(100));
                }
                assert_eq!(once(dev, door, door.good("")).status, 200, "{door:?}");
            });
        }
    });
}

#[test]
fn attack_22_connections_that_come_and_go_leave_no_descriptor() {
    let dev = Dev::with_policy(&policy());
    // Who is not root sees of a process that is not dumpable only the size of its table, which
    // grows by powers of two.
    let table = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status
            .lines()
            .find_map(|line| line.strip_prefix("FDSize:"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let count = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).map_or_else(|_| table(pid), Iterator::count)
    };
    let pids = pids_of(&dev);
    for door in Door::ALL {
        assert_eq!(once(&dev, door, door.good("")).status, 200);
    }
    let settled = |most: [usize; 2]| {
        wait_for("descriptors to be closed", || {
            (count(pids[0]) <= most[0] && count(pids[1]) <= most[1]).then_some(())
        });
    };
    // Readers of the store and the like open at first use.
    let before = pids.map(|pid| count(pid) * 2 + 4);
    for _ in 0..20_000 {
        drop(Door::Agent.open(&dev));
    }
    settled(before);
    for round in 0..1_000 {
        for door in [Door::Agent, Door::Admin, Door::Http] {
            let mut stream = door.open(&dev);
            match round % 4 {
                0 => drop(stream),
                1 => drop(stream.write_all(b"GET /v1/ready HT")),
                2 => drop(stream.write_all(door.good("").as_bytes())),
                _ => assert!(say(&mut *stream, door.good("")).status > 0),
            }
        }
    }
    settled(before);
    assert_alive(&dev, pids, "a storm of connections");
}

#[test]
fn attack_27_to_31_a_browser_a_proxy_and_a_forged_url_get_nothing() {
    let dev = shared();
    let get = "GET /v1/token?audience=billing HTTP/1.1\r\n";
    for (headers, code) in [
        ("Host: localhost\r\n", "header_required"),
        (
            "Host: evil.example\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n",
            "header_required",
        ),
        ("Host: localhost\r\nEphor-Local: 0\r\n", "header_required"),
        (
            "Host: localhost\r\nEphor-Local: 1\r\nOrigin: http://evil.example\r\n",
            "proxied",
        ),
        (
            "Host: localhost\r\nEphor-Local: 1\r\nSec-Fetch-Site: cross-site\r\n",
            "proxied",
        ),
        (
            "Host: localhost\r\nEphor-Local: 1\r\nX-Forwarded-For: 10.0.0.1\r\n",
            "proxied",
        ),
        (
            "Host: localhost\r\nEphor-Local: 1\r\nForwarded: for=10.0.0.1\r\n",
            "proxied",
        ),
        (
            "Host: localhost\r\nEphor-Local: 1\r\nVia: 1.1 proxy\r\n",
            "proxied",
        ),
        (
            "Host: localhost\r\nEphor-Local: 1\r\nCookie: a=b\r\n",
            "proxied",
        ),
    ] {
        once(&dev, Door::Agent, format!("{get}{headers}\r\n")).assert_problem(403, code, headers);
    }
    let preflight = "OPTIONS /v1/token HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\nAccess-Control-Request-Headers: ephor-local\r\n\r\n";
    once(&dev, Door::Agent, preflight).assert_problem(403, "proxied", "preflight");
    for door in [Door::Https, Door::Http, Door::Admin] {
        let got = once(&dev, door, door.good("Origin: http://evil.example\r\n"));
        assert!(
            !got.head.to_ascii_lowercase().contains("access-control"),
            "{door:?}: {got:?}"
        );
    }
}

#[test]
fn attack_34_one_request_cannot_hide_another() {
    let dev = shared();
    let pids = pids_of(&dev);
    for door in Door::ALL {
        let good = door.good("");
        let line = good.lines().next().unwrap().to_owned() + "\r\n";
        let local = "Host: localhost\r\nEphor-Local: 1\r\n";
        for bad in [
            format!("{line}{local}Content-Length: 6\r\nContent-Length: 5\r\n\r\n"),
            format!(
                "{line}{local}Content-Length: 0\r\nTransfer-Encoding: chunked, identity\r\n\r\n"
            ),
            format!("{line}{local}Content-Length: +3\r\n\r\nabc"),
            format!("{line}{local}X : y\r\n\r\n"),
            format!("{line}{local}X: y\r\n folded\r\n\r\n"),
            format!("{line}{local}X: a\0b\r\n\r\n"),
            format!(
                "{}HTTP/3.7\r\n{local}\r\n",
                line.split("HTTP").next().unwrap()
            ),
            format!("{line}{local}{}\r\n", "X: y\r\n".repeat(500)),
            format!("{line}{local}X: {}\r\n\r\n", "y".repeat(1 << 20)),
            "\u{16}\u{3}\u{1}\0\u{5}hello".to_owned() + &"\0".repeat(64) + "\r\n\r\n",
        ] {
            let mut stream = door.open(&dev);
            let shown = format!("{door:?}: {:?}", &bad[..bad.len().min(150)]);
            let first = say(&mut *stream, format!("{bad}{good}"));
            assert!(matches!(first.status, 0 | 400..=499), "{shown}: {first:?}");
            let second = answer(&mut *stream);
            assert_eq!(second.status, 0, "{shown}: a second answer: {second:?}");
        }
        // Both lengths: refused, or read as chunked and the connection ended (RFC 9112 §6.1).
        let both = format!(
            "{line}{local}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        );
        let mut stream = door.open(&dev);
        let first = say(&mut *stream, format!("{both}{good}"));
        let second = answer(&mut *stream);
        assert!(
            first.status >= 400 || second.status == 0,
            "{door:?}: {first:?} and {second:?}"
        );
    }
    assert_alive(&dev, pids, "malformed HTTP");
}

#[test]
fn attack_38_no_compressed_body_is_unpacked() {
    let dev = shared();
    let bomb = [
        0x1f_u8, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xed, 0xc1, 1, 1, 0, 0, 0, 0x80, 0x90, 0xfe, 0xaf,
        0xee, 8,
    ];
    for (door, path, kind) in [
        (Door::Agent, "/v1/credentials", "application/json"),
        (Door::Admin, "/v1/hosts/invite", "application/json"),
        (
            Door::Https,
            "/introspect",
            "application/x-www-form-urlencoded",
        ),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Type: {kind}\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            bomb.len()
        );
        let got = once(&dev, door, [head.as_bytes(), &bomb].concat());
        assert!(
            (400..=499).contains(&got.status) && !got.code().is_empty(),
            "{door:?}: {got:?}"
        );
    }
}

#[test]
fn attack_40_memory_is_locked_or_said_not_to_be() {
    let dev = shared();
    for (daemon, pid) in ["broker", "agent"].into_iter().zip(pids_of(&dev)) {
        let report = std::fs::read(dev.dir.join(daemon).join("protections.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["pid"], pid, "{daemon}");
        let all = report["protections"].as_array().unwrap();
        let lock = all.iter().find(|one| one["name"] == "memory_locked");
        let lock = lock.unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let is_locked = !locked.unwrap().trim().starts_with("0 ");
        let detail = lock["detail"].as_str().unwrap();
        match lock["state"].as_str().unwrap() {
            "in_force" => assert!(is_locked, "{status}"),
            "missing" => {
                assert!(!is_locked, "{status}");
                assert!(detail.contains("LimitMEMLOCK=infinity"), "{detail}");
            }
            other => panic!("{daemon}: {other}: {detail}"),
        }
    }
}

#[test]
fn attack_46_a_file_of_a_task_follows_no_link() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dev = shared();
    let (runtime, victim) = (scratch(), scratch());
    std::fs::set_permissions(runtime.path(), PermissionsExt::from_mode(0o700)).unwrap();
    symlink(victim.path(), runtime.path().join("ephor")).unwrap();
    let mut run = dev.ephor();
    run.env("XDG_RUNTIME_DIR", runtime.path());
    let output = run
        .args([
            "run",
            "--env",
            "F=cred://billing-api?as=file",
            "--",
            "cat",
            "/dev/null",
        ])
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let written = super::examples::files(victim.path());
    assert!(written.is_empty(), "{written:?}");
}

#[test]
fn attack_48_a_copied_agent_is_on_the_record() {
    // The state directory is the host's identity: whoever copies it can speak as the host, until
    // two are seen: every start of an agent is an event, and the last to say hello is the host.
    let dev = Dev::with_policy(&policy());
    let dir = scratch();
    let copy = dir.path().join("agent");
    std::fs::create_dir(&copy).unwrap();
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for file in super::examples::files(&dev.dir.join("agent")) {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let (socket, ready) = (dir.path().join("s"), dir.path().join("ready"));
    let mut second = bare();
    second
        .args(["__agent", "run", "--config"])
        .arg(dev.dir.join("agent.toml"));
    second
        .arg("--state-dir")
        .arg(&copy)
        .arg("--socket")
        .arg(&socket)
        .arg("--ready-file")
        .arg(&ready);
    let mut second = super::wire::Running(second.stderr(Stdio::null()).spawn().unwrap());
    wait_for("the copy to serve", || ready.exists().then_some(()));
    // The first is refused from then on; they do not take turns, an event each.
    wait_for("the first to be refused", || {
        let refused = "a later start of the agent of";
        dev.log("agent").contains(refused).then_some(())
    });
    let events = dev
        .ephor()
        .args(["audit", "ls", "--limit", "1000", "-o", "json"])
        .output()
        .unwrap();
    let events = text(&events.stdout);
    assert_eq!(
        events.matches("operate.agent_started").count(),
        2,
        "{events}"
    );
    send(second.0.id(), Signal::SIGTERM);
    end_of(&mut second.0, "the end of the copy");
}
