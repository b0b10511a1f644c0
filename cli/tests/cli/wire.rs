//! What the tests of examples, secrets and attacks share: one installation, raw bytes on every
//! listener, and programs in Python.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ephor_crypto::tls::{Peer, PinnedCa, TrustStore, client_config};
use ephor_crypto::x509::CaCertificate;

use super::support::{self, Dev, ephor};

/// How long after its task's end a token may still be taken (issue: "waits up to 5 s").
pub const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for bytes.
const READ_MAX: Duration = Duration::from_secs(20);

/// The policy of the tests, with the right to ask about tokens for `billing`.
pub fn policy() -> String {
    support::policy("5m")
        + "\n[entitlement.ask-billing]\nowner = \"team:billing\"\npurpose = \"Check its callers\"\n\
           who = [\"dev/me\"]\ngives = [{ introspect = { audience = \"billing\" } }]\n"
}

/// One installation for all tests that run at the same time.
pub fn shared() -> Arc<Dev> {
    static DEV: Mutex<Weak<Dev>> = Mutex::new(Weak::new());
    let mut known = DEV.lock().unwrap_or_else(PoisonError::into_inner);
    known.upgrade().unwrap_or_else(|| {
        let dev = Arc::new(Dev::with_policy(&policy()));
        *known = Arc::downgrade(&dev);
        dev
    })
}

/// The Python of the tests; without one nothing here can be shown, so it is no reason to pass.
pub fn python() -> PathBuf {
    let default = || workspace().join("target/venv/bin/python3");
    let python = std::env::var_os("EPHOR_TEST_PYTHON").map_or_else(default, PathBuf::from);
    let probe = Command::new(&python)
        .args(["-c", "import cryptography, jwt, psycopg, psycopg_pool"])
        .output();
    assert!(
        probe.is_ok_and(|probe| probe.status.success()),
        "{} is no Python with PyJWT, cryptography and psycopg: run scripts/test, or set EPHOR_TEST_PYTHON to one \
         with what examples/requirements.txt names",
        python.display()
    );
    python
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

pub fn example(path: &str) -> PathBuf {
    workspace().join("examples").join(path)
}

/// A command that knows the installation and where `ephor` is.
pub fn command(dev: &Dev, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .envs(&dev.variables)
        .env("EPHOR", env!("CARGO_BIN_EXE_ephor"))
        .env("no_proxy", "*")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null());
    command
}

/// A process that is killed when the test is done with it.
pub struct Running(pub Child);

impl Running {
    /// As `kill -9` does; it is gone when this returns.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts it and waits for the first line that it prints.
pub fn until_line(command: &mut Command) -> (Running, String) {
    let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(
        line.ends_with('\n'),
        "{command:?} ended before it printed a line: {line:?}"
    );
    (child, line.trim_end().to_owned())
}

/// A shell that runs `script`, prints a line and then does nothing until it is killed.
pub fn shell(dev: &Dev, script: &str) -> (Running, String) {
    let script = format!("{script}\necho \"$$\"\nread forever");
    until_line(
        command(dev, "sh")
            .args(["-euc", &script])
            .stdin(Stdio::piped()),
    )
}

/// `ephor token --audience A` for the test's own process, until it ends.
pub fn own_token(dev: &Dev, audience: &str) -> String {
    let output = dev
        .ephor()
        .args(["token", "--audience", audience])
        .output()
        .unwrap();
    support::assert_code(&output, 0);
    support::text(&output.stdout).trim_end().to_owned()
}

/// Waits until `refused` says so, for no longer than `within`; gives the reason.
#[track_caller]
pub fn refused_within(
    within: Duration,
    what: &str,
    mut refused: impl FnMut() -> Result<String, String>,
) -> String {
    let start = Instant::now();
    loop {
        let asked = start.elapsed();
        match refused() {
            Err(why) => return why,
            Ok(said) => assert!(
                asked < within,
                "{what}: still taken {asked:?} after the end: {said}"
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `checker.py`: a JWT library that is not ours.
pub struct Checker {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _process: Running,
}

impl Checker {
    pub fn start(dev: &Dev) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/checker.py");
        let mut process = command(dev, python());
        process
            .arg(script)
            .arg(example("token-service"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Running(process.spawn().unwrap());
        let stdin = process.0.stdin.take().unwrap();
        let stdout = BufReader::new(process.0.stdout.take().unwrap());
        Self {
            stdin,
            stdout,
            _process: process,
        }
    }

    /// `way` is `jwt`, `introspect` or `status`. The error is why it was refused.
    pub fn ask(&mut self, way: &str, audience: &str, token: &str) -> Result<String, String> {
        writeln!(self.stdin, "{way} {audience} {token}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        match line.trim_end().split_once(' ') {
            Some(("good", who)) => Ok(who.to_owned()),
            Some(("refused", why)) => Err(why.to_owned()),
            _ => panic!("checker.py broke at {way} {audience}: {line:?}"),
        }
    }

    /// Good in each of the three ways.
    #[track_caller]
    pub fn assert_good(&mut self, audience: &str, token: &str) {
        for way in ["jwt", "introspect", "status"] {
            assert_eq!(
                self.ask(way, audience, token).as_deref(),
                Ok("spiffe://test.ephor/dev/me"),
                "{way}"
            );
        }
    }

    /// Refused by the broker and on the list, in time; the signature is as good as before.
    #[track_caller]
    pub fn assert_refused(&mut self, audience: &str, token: &str) {
        let start = Instant::now();
        for way in ["introspect", "status"] {
            let left = REFUSED_WITHIN.saturating_sub(start.elapsed());
            refused_within(left, way, || self.ask(way, audience, token));
        }
        let why = self.ask("introspect", audience, token).unwrap_err();
        assert!(why.contains("active=false"), "{why}");
        let why = self.ask("status", audience, token).unwrap_err();
        assert!(why.starts_with("listed"), "{why}");
        self.ask("jwt", audience, token).unwrap();
    }
}

/// The four places where bytes come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Agent,
    Admin,
    Https,
    Http,
}

impl Door {
    pub const ALL: [Self; 4] = [Self::Agent, Self::Admin, Self::Https, Self::Http];

    pub fn open(self, dev: &Dev) -> Box<dyn Stream> {
        match self {
            Self::Agent => unix(&dev.variables["EPHOR_SOCKET"]),
            Self::Admin => unix(&dev.variables["EPHOR_ADMIN_SOCKET"]),
            Self::Https => Box::new(tls(dev)),
            Self::Http => Box::new(tcp(&dev.variables["EPHOR_LISTS_URL"])),
        }
    }

    /// A request that is answered with 200, with this beside it.
    pub fn good(self, headers: &str) -> String {
        let path = match self {
            Self::Agent => "/v1/ready",
            Self::Admin => "/v1/status",
            Self::Https => "/jwks",
            Self::Http => "/checkpoint",
        };
        let local = if self == Self::Agent {
            "Ephor-Local: 1\r\n"
        } else {
            ""
        };
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{local}{headers}\r\n")
    }
}

pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn unix(path: &str) -> Box<dyn Stream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(READ_MAX)).unwrap();
    Box::new(stream)
}

/// A plain connection to the host and port of a URL.
pub fn tcp(url: &str) -> TcpStream {
    let stream =
        TcpStream::connect(url.split_once("://").unwrap().1.trim_end_matches('/')).unwrap();
    stream.set_read_timeout(Some(READ_MAX)).unwrap();
    stream
}

fn tls(dev: &Dev) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let ca = std::fs::read_to_string(&dev.variables["EPHOR_CA_FILE"]).unwrap();
    let trust = Arc::new(TrustStore::new(vec![CaCertificate::from_pem(&ca).unwrap()]));
    let peer = Peer::host("127.0.0.1").unwrap();
    let name = peer.server_name();
    let config = client_config(Arc::new(PinnedCa::new(trust, peer)), None, &[b"http/1.1"]).unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    rustls::StreamOwned::new(connection, tcp(&dev.variables["EPHOR_BROKER_URL"]))
}

/// What came back. Status 0: the connection was closed without an answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }

    /// A refusal with this status and code, an id to ask about, and nothing for a browser.
    #[track_caller]
    pub fn assert_problem(&self, status: u16, code: &str, what: &str) {
        self.assert_refusal(status, code, what);
        let head = self.head.to_ascii_lowercase();
        assert!(
            head.contains("application/problem+json"),
            "{what}: {self:?}"
        );
    }

    /// The same in the form of OAuth (RFC 6749 §5.2) or of RFC 9457.
    #[track_caller]
    pub fn assert_refusal(&self, status: u16, code: &str, what: &str) {
        assert_eq!(
            (self.status, self.code().as_str()),
            (status, code),
            "{what}: {self:?}"
        );
        let head = self.head.to_ascii_lowercase();
        assert!(
            self.body.contains("\"correlation_id\":\""),
            "{what}: {self:?}"
        );
        assert!(!head.contains("access-control"), "{what}: {self:?}");
    }
}

/// Sends bytes and reads one answer.
pub fn say(stream: &mut dyn Stream, request: impl AsRef<[u8]>) -> Answer {
    let _ = stream.write_all(request.as_ref());
    let _ = stream.flush();
    answer(stream)
}

/// Reads one answer.
pub fn answer(stream: &mut dyn Stream) -> Answer {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(whole) = parsed(&bytes) {
            return whole;
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => {
                return Answer {
                    status: 0,
                    head: String::from_utf8_lossy(&bytes).into(),
                    body: String::new(),
                };
            }
            Ok(read) => bytes.extend_from_slice(&part[..read]),
        }
    }
}

fn parsed(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    let status = head.split(' ').nth(1)?.parse().ok()?;
    (body.len() >= length).then(|| Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// One request on a connection of its own.
pub fn once(dev: &Dev, door: Door, request: impl AsRef<[u8]>) -> Answer {
    say(&mut *door.open(dev), request)
}

/// Each daemon still answers, and is the same process as before.
#[track_caller]
pub fn assert_alive(dev: &Dev, pids: [u32; 2], after: &str) {
    for door in Door::ALL {
        let answer = once(dev, door, door.good(""));
        assert_eq!(answer.status, 200, "{door:?} after {after}: {answer:?}");
    }
    assert_eq!(
        pids,
        pids_of(dev),
        "a daemon is another process after {after}"
    );
    assert!(pids.into_iter().all(support::is_running), "after {after}");
}

/// Broker and agent.
pub fn pids_of(dev: &Dev) -> [u32; 2] {
    [dev.pid_of("broker"), dev.pid_of("agent")]
}

/// The same command below another program, such as a shell that sets a limit first.
pub fn below(wrapper: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(wrapper[0]);
    outer
        .args(&wrapper[1..])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        outer.current_dir(dir);
    }
    outer
}

/// A file that only its maker reads, in a directory that goes with it.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("es.").tempdir().unwrap()
}

/// `ephor` without an installation.
pub fn bare() -> Command {
    ephor()
}
