//! Attacks of docs/threat-model.md that need real processes; the number is the table's.
//!
//! What one crate can show alone is in that crate's tests, and the table says where.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::{Dev, assert_code, end_of, send, text, wait_for};
use super::wire::{
    Checker, Door, answer, assert_alive, bare, below, command, once, own_token, pids_of, policy, python, say, scratch,
    shared, until_line,
};

#[test]
fn attack_15_and_41_the_same_user_reads_the_environment_that_was_asked_for() {
    // The documented limit: a uid is one boundary. Who may read the child's environment or
    // memory has its token; what bounds it is the end of the task.
    let dev = shared();
    let mut checker = Checker::start(&dev);
    let mut run = command(&dev, env!("CARGO_BIN_EXE_ephor"));
    run.args(["run", "--env", "T=cred://identity/billing", "--", "sh", "-c", "echo $$; read forever"]);
    let (_run, pid) = until_line(run.stdin(Stdio::piped()).stderr(Stdio::null()));
    let environ = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let token = environ.split('\0').find_map(|pair| pair.strip_prefix("T=")).unwrap();
    checker.assert_good("billing", token);
    send(pid.parse().unwrap(), Signal::SIGKILL);
    checker.assert_refused("billing", token);
}

#[test]
fn attack_17_and_33_no_abstract_socket_and_no_tcp_port_of_the_agent() {
    let dev = shared();
    let [broker, agent] = pids_of(&dev);
    let mut paths = Vec::new();
    for pid in [broker, agent] {
        let sockets = sockets(pid);
        for line in std::fs::read_to_string("/proc/net/unix").unwrap().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if sockets.contains(fields[6]) && fields.len() > 7 {
                paths.push(fields[7].to_owned());
            }
        }
        let listening = listening(&sockets);
        if pid == agent {
            assert_eq!(listening, [""; 0], "the agent has no TCP port");
        } else {
            // `ephor dev` is for this host only: no port on 0.0.0.0.
            assert_eq!(listening.len(), 2);
            assert!(listening.iter().all(|address| address.starts_with("0100007F:")), "{listening:?}");
        }
    }
    for name in ["EPHOR_SOCKET", "EPHOR_ADMIN_SOCKET"] {
        assert!(paths.contains(&dev.variables[name]), "{name}: {paths:?}");
    }
    assert!(paths.iter().all(|path| path.starts_with('/')), "an abstract socket: {paths:?}");
}

/// Inodes of a process's sockets.
fn sockets(pid: u32) -> HashSet<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|fd| std::fs::read_link(fd.unwrap().path()));
    let names = links.filter_map(|link| Some(link.ok()?.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()));
    names.collect()
}

/// Local addresses, as the kernel writes them, of listening TCP sockets with these inodes.
fn listening(sockets: &HashSet<String>) -> Vec<String> {
    let read = |table: &str| std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
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
    let mut dev = Dev::with(&policy(), |command| below(&["sh", "-c", "umask 0; exec \"$@\"", "sh"], &command));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dev.variables["EPHOR_ADMIN_SOCKET"].as_ref()), 0o600);
    assert_eq!(mode(dev.variables["EPHOR_SOCKET"].as_ref()), 0o666, "everyone may ask; attestation decides");
    assert_eq!(mode(&dev.dir), 0o700);
    for secret in ["broker/master.key", "broker/ephor.db", "agent/identity.pem", "broker.log", "agent.log"] {
        assert_eq!(mode(&dev.dir.join(secret)) & 0o077, 0, "{secret}");
    }
    for file in super::examples::files(&dev.dir) {
        assert_eq!(mode(&file) & 0o022, 0, "{} can be written by others", file.display());
    }
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn attack_19_administration_and_callers_have_sockets_of_their_own() {
    let dev = shared();
    for verb in ["GET /v1/status", "GET /v1/hosts", "GET /v1/tasks", "GET /v1/credentials", "GET /v1/audit", "POST /v1/hosts/invite"] {
        let request = format!("{verb} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Length: 0\r\n\r\n");
        let got = once(&dev, Door::Agent, request);
        // Two paths mean something else here, to callers: another method of them is refused.
        let expected = match verb {
            "GET /v1/tasks" | "GET /v1/credentials" => (405, "method_not_allowed"),
            _ => (404, "not_found"),
        };
        got.assert_problem(expected.0, expected.1, verb);
    }
    for verb in ["GET /v1/token?audience=a", "GET /v1/whoami", "GET /v1/task", "POST /v1/task/complete"] {
        for door in [Door::Admin, Door::Https, Door::Http] {
            let request = format!("{verb} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Length: 0\r\n\r\n");
            once(&dev, door, request).assert_problem(404, "not_found", verb);
        }
    }
    for verb in ["GET /v1/hosts", "GET /v1/audit", "GET /v1/status"] {
        for door in [Door::Https, Door::Http] {
            once(&dev, door, format!("{verb} HTTP/1.1\r\nHost: x\r\n\r\n")).assert_problem(404, "not_found", verb);
        }
    }
}

#[test]
fn attack_20_and_23_idle_connections_of_one_uid_do_not_starve_another() {
    let dev = Dev::with_policy(&policy());
    let pids = pids_of(&dev);
    let before = rss_kib(pids[1]);
    let mut idle = Vec::new();
    let refused = loop {
        assert!(idle.len() < 1_000, "one uid has every connection it wants");
        let mut stream = Door::Agent.open(&dev);
        // Connections that are served say nothing; the one too many is answered at once.
        let got = if idle.len() >= 512 { answer(&mut *stream) } else { idle.push(stream); continue };
        break got;
    };
    refused.assert_problem(429, "rate_limited", "one connection too many");
    let after = rss_kib(pids[1]);
    assert!(after < before + 32 * 1024, "the agent grew from {before} to {after} KiB");
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
        let output = command(&dev, python()).args(["-c", other, &dev.variables["EPHOR_SOCKET"]]).output().unwrap();
        assert_code(&output, 0);
        assert!(text(&output.stdout).starts_with("HTTP/1.1 200"), "{}", text(&output.stdout));
    }
    drop(idle);
    wait_for("the places to be given back", || {
        let got = once(&dev, Door::Agent, Door::Agent.good(""));
        (got.status == 200).then_some(())
    });
    assert_alive(&dev, pids, "idle connections");
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
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
    let answers: Vec<serde_json::Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, again, other] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((&first["task_rule"], &first["task"]), (&"run".into(), &other["task"]));
    assert_eq!(first["id"], again["id"], "the same program is served from memory");
    assert_ne!(first["id"], other["id"], "another program got what was held for the first");
}

#[test]
fn attack_21_a_header_of_one_byte_at_a_time_is_not_waited_for() {
    let dev = shared();
    std::thread::scope(|scope| {
        for (door, within) in [(Door::Agent, 15), (Door::Admin, 20), (Door::Https, 20), (Door::Http, 20)] {
            let dev = &dev;
            scope.spawn(move || {
                let mut stream = door.open(dev);
                let start = Instant::now();
                let _ = stream.write_all(b"GET /v1/whoami HTTP/1.1\r\nX: ");
                while stream.write_all(b"y").and_then(|()| stream.flush()).is_ok() {
                    assert!(start.elapsed() < Duration::from_secs(within), "{door:?} still listens");
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
    let count = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let pids = pids_of(&dev);
    for door in Door::ALL {
        assert_eq!(once(&dev, door, door.good("")).status, 200);
    }
    let settled = |most: [usize; 2]| {
        wait_for("descriptors to be closed", || (count(pids[0]) <= most[0] && count(pids[1]) <= most[1]).then_some(()));
    };
    // Readers of the store and the like open at first use.
    let before = pids.map(|pid| count(pid) + 4);
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
        ("Host: evil.example\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n", "header_required"),
        ("Host: localhost\r\nEphor-Local: 0\r\n", "header_required"),
        ("Host: localhost\r\nEphor-Local: 1\r\nOrigin: http://evil.example\r\n", "proxied"),
        ("Host: localhost\r\nEphor-Local: 1\r\nSec-Fetch-Site: cross-site\r\n", "proxied"),
        ("Host: localhost\r\nEphor-Local: 1\r\nX-Forwarded-For: 10.0.0.1\r\n", "proxied"),
        ("Host: localhost\r\nEphor-Local: 1\r\nForwarded: for=10.0.0.1\r\n", "proxied"),
        ("Host: localhost\r\nEphor-Local: 1\r\nVia: 1.1 proxy\r\n", "proxied"),
        ("Host: localhost\r\nEphor-Local: 1\r\nCookie: a=b\r\n", "proxied"),
    ] {
        once(&dev, Door::Agent, format!("{get}{headers}\r\n")).assert_problem(403, code, headers);
    }
    let preflight = "OPTIONS /v1/token HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\nAccess-Control-Request-Headers: ephor-local\r\n\r\n";
    once(&dev, Door::Agent, preflight).assert_problem(403, "proxied", "preflight");
    for door in [Door::Https, Door::Http, Door::Admin] {
        let got = once(&dev, door, door.good("Origin: http://evil.example\r\n"));
        assert!(!got.head.to_ascii_lowercase().contains("access-control"), "{door:?}: {got:?}");
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
            format!("{line}{local}Content-Length: 0\r\nTransfer-Encoding: chunked, identity\r\n\r\n"),
            format!("{line}{local}Content-Length: +3\r\n\r\nabc"),
            format!("{line}{local}X : y\r\n\r\n"),
            format!("{line}{local}X: y\r\n folded\r\n\r\n"),
            format!("{line}{local}X: a\0b\r\n\r\n"),
            format!("{}HTTP/3.7\r\n{local}\r\n", line.split("HTTP").next().unwrap()),
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
        let both = format!("{line}{local}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        let mut stream = door.open(&dev);
        let first = say(&mut *stream, format!("{both}{good}"));
        let second = answer(&mut *stream);
        assert!(first.status >= 400 || second.status == 0, "{door:?}: {first:?} and {second:?}");
    }
    assert_alive(&dev, pids, "malformed HTTP");
}

#[test]
fn attack_38_no_compressed_body_is_unpacked() {
    let dev = shared();
    let bomb = [0x1f_u8, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xed, 0xc1, 1, 1, 0, 0, 0, 0x80, 0x90, 0xfe, 0xaf, 0xee, 8];
    for (door, path, kind) in [
        (Door::Agent, "/v1/credentials", "application/json"),
        (Door::Admin, "/v1/hosts/invite", "application/json"),
        (Door::Https, "/introspect", "application/x-www-form-urlencoded"),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Type: {kind}\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            bomb.len()
        );
        let got = once(&dev, door, [head.as_bytes(), &bomb].concat());
        assert!((400..=499).contains(&got.status) && !got.code().is_empty(), "{door:?}: {got:?}");
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
    let output = run.args(["run", "--env", "F=cred://billing-api?as=file", "--", "cat", "/dev/null"]).output().unwrap();
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
    second.args(["__agent", "run", "--config"]).arg(dev.dir.join("agent.toml"));
    second.arg("--state-dir").arg(&copy).arg("--socket").arg(&socket).arg("--ready-file").arg(&ready);
    let mut second = super::wire::Running(second.stderr(Stdio::null()).spawn().unwrap());
    wait_for("the copy to serve", || ready.exists().then_some(()));
    let seen = || text(&dev.ephor().args(["audit", "ls", "--limit", "1000", "-o", "json"]).output().unwrap().stdout);
    wait_for("a record of the second instance", || (seen().matches("operate.agent_started").count() >= 2).then_some(()));
    send(second.0.id(), Signal::SIGTERM);
    end_of(&mut second.0, "the end of the copy");
}

#[test]
fn malformed_bodies_are_refused_with_a_code_on_every_door() {
    let dev = shared();
    let pids = pids_of(&dev);
    let post = |path: &str, kind: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let deep = "[".repeat(50_000);
    for body in ["", "{", "null", "[]", "\"x\"", "{\"a\":1}", "{\"entitlement\":7}", "{\"host\":[]}", "\u{0}", &deep] {
        for (door, path) in [(Door::Agent, "/v1/credentials"), (Door::Admin, "/v1/hosts/invite")] {
            let got = once(&dev, door, post(path, "application/json", body));
            got.assert_problem(400, "invalid_request", &format!("{door:?} {:?}", &body[..body.len().min(40)]));
        }
    }
    // A little over the bound, so that all of it was read: what is left unread when a connection
    // closes may take the answer with it.
    let large = " ".repeat(66_000);
    let form = "token=".to_owned() + &"x".repeat(33_000);
    for (door, path, body) in [
        (Door::Agent, "/v1/credentials", &large),
        (Door::Admin, "/v1/hosts/invite", &large),
        (Door::Https, "/introspect", &form),
        (Door::Https, "/revoke", &form),
    ] {
        let kind = if door == Door::Https { "application/x-www-form-urlencoded" } else { "application/json" };
        once(&dev, door, post(path, kind, body)).assert_refusal(413, "too_large", path);
    }
    for (door, request) in [
        (Door::Https, "PUT /introspect"),
        (Door::Https, "GET /introspect"),
        (Door::Https, "DELETE /jwks"),
        (Door::Http, "POST /checkpoint"),
        (Door::Admin, "DELETE /v1/hosts"),
    ] {
        let got = once(&dev, door, format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"));
        got.assert_problem(405, "method_not_allowed", request);
    }
    for (door, path, status) in [
        (Door::Http, "/status/99999999999999999999", 404),
        (Door::Http, "/status/-1", 404),
        (Door::Http, "/tile/0/x999/999", 404),
        (Door::Http, "/tile/../../etc/passwd", 404),
        (Door::Http, "/tile/entries/%2e%2e/%2e%2e/x", 404),
        (Door::Admin, "/v1/tasks/%ff", 400),
        (Door::Admin, "/v1/tasks/nope", 400),
        (Door::Admin, "/v1/tasks?limit=-1", 400),
        (Door::Admin, "/v1/credentials?state=undead", 400),
        (Door::Admin, "/v1/audit?limit=18446744073709551616", 400),
    ] {
        let got = once(&dev, door, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(got.status == status || matches!(got.status, 400 | 404), "{path}: {got:?}");
        assert!(!got.code().is_empty() && got.body.contains("correlation_id"), "{path}: {got:?}");
    }
    assert_alive(&dev, pids, "malformed bodies");
}

#[test]
fn malformed_tokens_are_inactive_and_prove_no_caller() {
    let dev = shared();
    let pids = pids_of(&dev);
    let asker = own_token(&dev, &dev.variables["EPHOR_BROKER_URL"]);
    let good = own_token(&dev, "billing");
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIn0";
    let long = "a".repeat(20_000);
    let ask = |path: &str, bearer: &str, token: &str| {
        let form = format!("token={token}");
        let length = form.len();
        once(&dev, Door::Https, format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{form}"
        ))
    };
    let bad = [
        String::new(), ".".into(), "..".into(), "a.b.c".into(), "....".into(),
        format!("{none}.{claims}."), format!("{none}.{claims}.{signature}"), format!("{head}.{claims}."),
        format!("{head}.{claims}"), format!("{head}.{claims}.{signature}.{signature}"),
        format!("{head}.{claims}.{}", "A".repeat(86)), format!("{head}.e30.{signature}"), format!("{head}.!!.{signature}"), long,
    ];
    for token in &bad {
        let shown = &token[..token.len().min(60)];
        let got = ask("/introspect", &asker, token);
        assert_eq!((got.status, got.body.as_str()), (200, "{\"active\":false}"), "{shown}");
        if token.len() < 10_000 {
            ask("/introspect", token, &good).assert_problem(401, "unauthenticated", shown);
            ask("/revoke", token, &good).assert_problem(401, "unauthenticated", shown);
        }
        assert_eq!(ask("/revoke", &asker, token).status, 200, "{shown}");
    }
    let missing = "POST /introspect HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b";
    once(&dev, Door::Https, missing).assert_refusal(400, "invalid_request", "no token");
    // The good one was hurt by none of this, and a token for another audience asks about nobody.
    assert!(ask("/introspect", &asker, &good).body.contains("\"active\":true"));
    ask("/introspect", &good, &asker).assert_problem(401, "unauthenticated", "a token for billing is no caller");
    assert_alive(&dev, pids, "malformed tokens");
}

#[test]
fn lifetimes_and_names_out_of_bounds_are_refused_by_name() {
    let dev = shared();
    let get = |ttl: &str| {
        once(&dev, Door::Agent, format!("GET /v1/token?audience=billing&ttl_seconds={ttl} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\n\r\n"))
    };
    let post = |body: &str| {
        let length = body.len();
        once(&dev, Door::Agent, format!("POST /v1/credentials HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Length: {length}\r\n\r\n{body}"))
    };
    for ttl in ["-1", "-9223372036854775808", "1.5", "x", ""] {
        get(ttl).assert_problem(400, "invalid_request", ttl);
    }
    get("0").assert_problem(400, "ttl_zero", "0");
    for ttl in ["-1", "1.5", "\"9\"", "-9223372036854775808"] {
        post(&format!("{{\"entitlement\":\"billing-api\",\"ttl_seconds\":{ttl}}}")).assert_problem(400, "invalid_request", ttl);
    }
    post("{\"entitlement\":\"billing-api\",\"ttl_seconds\":0}").assert_problem(400, "ttl_zero", "0");
    for huge in ["9223372036854775808", "18446744073709551615"] {
        let got = post(&format!("{{\"entitlement\":\"billing-api\",\"ttl_seconds\":{huge}}}"));
        assert_eq!(got.status, 200, "capped, not refused: {got:?}");
        assert!(got.body.contains("\"capped_by\":\"ttl.max\""), "{huge}");
        let got = get(huge);
        assert!(got.status == 200 && got.body.contains("\"capped_by\":\"ttl.max\""), "{huge}: {got:?}");
    }
    let unknown = post("{\"entitlement\":\"nobody-has-this\"}");
    unknown.assert_problem(403, "unknown_entitlement", "unknown");
    assert!(unknown.body.contains("\"decision\":\""), "{unknown:?}");
    for body in ["{\"entitlement\":\"../../etc\"}", "{\"entitlement\":\"\"}", "{\"entitlement\":\"A B\"}"] {
        post(body).assert_problem(400, "invalid_request", body);
    }
    let bound = once(&dev, Door::Agent, "GET /v1/token?audience=a&bind=1 HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\n\r\n");
    assert!((400..=499).contains(&bound.status) && !bound.code().is_empty(), "pid 1 is no ancestor of the same uid: {bound:?}");
}

#[test]
fn rubbish_where_tls_is_spoken_ends_only_its_connection() {
    let dev = shared();
    let pids = pids_of(&dev);
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 1000], &[0x16, 3, 1, 0xff, 0xff, 1], b"\x80\x2e\x01\x03\x01"] {
        let mut stream = super::wire::tcp(&dev.variables["EPHOR_BROKER_URL"]);
        let _ = stream.write_all(rubbish);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!said.starts_with(b"HTTP"), "{said:?}");
    }
    assert_alive(&dev, pids, "rubbish before TLS");
}

#[test]
fn the_tests_that_the_threat_model_names_exist() {
    let root = super::wire::workspace();
    let model = std::fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let is_test = |name: &&str| name.matches('_').count() > 2 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let named: HashSet<&str> = model.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 40, "{named:?}");
    let folders = ["proto", "crypto", "broker", "agent", "cli", "testkit"];
    let sources = folders.iter().flat_map(|folder| super::examples::files(&root.join(folder)));
    let sources: String = sources.filter(|file| file.extension().is_some_and(|end| end == "rs")).map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let missing: Vec<_> = named.into_iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert_eq!(missing, [""; 0]);
}
