//! Both daemons under a service manager that speaks systemd's protocols, and their metrics listener.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;

use super::support::{DEADLINE, assert_code, end_of, ephor, policy, send, text, wait_for};

/// A directory with settings for both daemons, and a manager's socket to be told on.
struct Host {
    dir: tempfile::TempDir,
    /// What the manager was told so far, by a thread that always listens, as systemd does.
    told: Arc<Mutex<Vec<String>>>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("es.").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("policy")).unwrap();
        std::fs::write(dir.path().join("policy/test.toml"), policy("5m")).unwrap();
        let told = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let keep = Arc::clone(&heard);
        // Ends with the process: nothing waits for it.
        std::thread::spawn(move || {
            let mut message = [0; 512];
            while let Ok(length) = told.recv(&mut message) {
                let lines = text(&message[..length])
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>();
                keep.lock().unwrap().extend(lines);
            }
        });
        let host = Self { dir, told: heard };
        let broker = format!(
            "state_dir = {:?}\npolicy_dir = {:?}\nadmin_socket = {:?}\nmetrics_listen = \"127.0.0.1:1\"\n\
             https_listen = \"127.0.0.1:1\"\nhttp_listen = \"127.0.0.1:1\"\n",
            host.at("state"),
            host.at("policy"),
            host.at("admin.sock")
        );
        std::fs::write(host.at("broker.toml"), broker).unwrap();
        let agent = format!(
            "state_dir = {:?}\nsocket = {:?}\n",
            host.at("agent"),
            host.at("agent.sock")
        );
        std::fs::write(host.at("agent.toml"), agent).unwrap();
        let config = host.at("broker.toml");
        let init = ephor()
            .args(["__broker", "init", "--token-file"])
            .arg(host.at("token"))
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        assert_code(&init, 0);
        host
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The daemon, started with these sockets open.
    fn start(&self, sockets: &[String], daemon: &str, settings: &str) -> Child {
        Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/manager.py"))
            .args(sockets)
            .args(["--", env!("CARGO_BIN_EXE_ephor"), daemon, "run", "--config"])
            .arg(self.at(settings))
            .env("NOTIFY_SOCKET", self.at("notify"))
            .env("WATCHDOG_USEC", "100000")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(self.at(&format!("{daemon}.log"))).unwrap())
            .spawn()
            .unwrap()
    }

    /// Waits until the manager is told this, since the last that was waited for.
    fn is_told(&self, what: &str) {
        wait_for(what, || {
            let mut told = self.told.lock().unwrap();
            let place = told.iter().position(|line| line == what)?;
            told.drain(..=place);
            Some(())
        });
    }

    fn start_broker(&self) -> (Child, [u16; 3]) {
        let sockets = [
            format!("https=tcp:{}", self.at("https").display()),
            format!("http=tcp:{}", self.at("http").display()),
            format!("admin=unix:{}", self.at("admin.sock").display()),
            format!("metrics=tcp:{}", self.at("metrics").display()),
        ];
        let broker = self.start(&sockets, "__broker", "broker.toml");
        self.is_told("READY=1");
        let port = |name: &str| {
            std::fs::read_to_string(self.at(name))
                .unwrap()
                .parse()
                .unwrap()
        };
        (broker, ["https", "http", "metrics"].map(port))
    }
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn stop(daemon: &mut Child) {
    send(daemon.id(), Signal::SIGTERM);
    assert_eq!(end_of(daemon, "the end of a daemon").code(), Some(0));
}

/// The daemon ends with the test, whatever happens in it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn both_daemons_take_their_sockets_from_a_service_manager_and_tell_it_how_they_are() {
    let host = Host::new();
    let (broker, [https, http, metrics]) = host.start_broker();
    let mut broker = Running(broker);
    host.is_told("WATCHDOG=1");
    assert!(get(http, "/checkpoint").starts_with("HTTP/1.1 200"));
    assert!(get(metrics, "/readyz").contains("\"ready\":true"));
    let admin = host.at("admin.sock");
    let listed = ephor()
        .args(["task", "ls"])
        .env("EPHOR_ADMIN_SOCKET", &admin)
        .output()
        .unwrap();
    assert_code(&listed, 0);

    let joined = ephor()
        .args(["__agent", "join", "--host", "host-1", "--broker"])
        .arg(format!("https://127.0.0.1:{https}"))
        .arg("--token-file")
        .arg(host.at("token"))
        .arg("--config")
        .arg(host.at("agent.toml"))
        .output()
        .unwrap();
    assert_code(&joined, 0);
    let socket = host.at("agent.sock");
    let sockets = [
        format!("agent=unix:{}", socket.display()),
        format!("metrics=tcp:{}", host.at("agent-metrics").display()),
    ];
    let mut agent = Running(host.start(&sockets, "__agent", "agent.toml"));
    // As soon as the manager listens, whether or not the agent serves yet: nobody is turned away.
    let answer = early(&socket);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    host.is_told("READY=1");

    let agent_port = std::fs::read_to_string(host.at("agent-metrics"))
        .unwrap()
        .parse()
        .unwrap();
    wait_for("the agent to reach the broker", || {
        get(agent_port, "/readyz")
            .contains("\"broker\":\"up\"")
            .then_some(())
    });
    let token = |audience: &str| {
        let token = ephor()
            .args(["token", "--audience", audience])
            .env("EPHOR_SOCKET", &socket)
            .output()
            .unwrap();
        assert_code(&token, 0);
    };
    token("billing");
    token("billing");
    let port = agent_port;
    for (port, lines) in [
        (
            port,
            &[
                "ephor_link{state=\"up\"} 1",
                "ephor_served_total 1",
                "ephor_tasks 1",
            ][..],
        ),
        (
            metrics,
            &[
                "ephor_stage_total{stage=\"issue\",outcome=\"ok\"} 1",
                "ephor_agents{state=\"active\"} 1",
                "ephor_ready 1",
            ],
        ),
    ] {
        let page = get(port, "/metrics");
        for line in lines {
            assert!(
                page.lines().any(|found| found == *line),
                "{line} in\n{page}"
            );
        }
        // Attack 51: who asked, where and for what is nobody's label.
        for word in ["dev/me", "spiffe:", "host-1", "billing", "task=", "eyJ"] {
            assert!(!page.contains(word), "{word} in\n{page}");
        }
    }

    stop(&mut broker.0);
    host.is_told("STOPPING=1");
    wait_for("the agent to miss the broker", || {
        get(port, "/readyz")
            .contains("\"serving\":\"what is in memory\"")
            .then_some(())
    });
    assert!(get(port, "/readyz").starts_with("HTTP/1.1 200"));
    stop(&mut agent.0);
    for path in [&admin, &socket] {
        assert!(path.exists(), "{} is the manager's", path.display());
    }
}

/// A request made the moment the socket is there.
fn early(socket: &Path) -> String {
    let mut stream = wait_for("the manager's socket", || UnixStream::connect(socket).ok());
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
        .write_all(b"GET /v1/ready HTTP/1.1\r\nHost: localhost\r\nEphor-Local: 1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_socket_that_nobody_would_answer_on_is_refused() {
    let host = Host::new();
    let sockets = [format!("htps=tcp:{}", host.at("port").display())];
    let mut settings = std::fs::read_to_string(host.at("broker.toml")).unwrap();
    settings = settings.replace("127.0.0.1:1\"", "127.0.0.1:0\"");
    std::fs::write(host.at("broker.toml"), settings).unwrap();
    let mut broker = Running(host.start(&sockets, "__broker", "broker.toml"));
    assert_eq!(end_of(&mut broker.0, "the refusal").code(), Some(78));
    let log = std::fs::read_to_string(host.at("__broker.log")).unwrap();
    assert!(log.contains("a socket named `htps` was passed"), "{log}");
}
