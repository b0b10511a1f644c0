//! Programs in tasks, and what a thief does with what it copied from one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{
    CertificateSlot, Peer, PinnedCa, TrustStore, certified_key, client_config,
};
use ephor_crypto::x509::{CaCertificate, Leaf};
use ephor_testkit::installation::Installation;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;

/// Longest wait for anything that should have happened long before.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Who every process of these tests is to the policy.
pub const SELF: &str = "spiffe://kit.test/kit/app";

/// A broker and an agent that run and are connected.
pub fn running() -> Installation {
    let named = std::env::var_os("EPHOR_CRASH_BINARY").map(PathBuf::from);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let binary = named.unwrap_or_else(|| root.join("target/crash/ephor"));
    assert!(
        binary.is_file(),
        "{} is missing: run scripts/test, which builds it",
        binary.display()
    );
    let kit = Installation::create(&binary).unwrap();
    kit.start().unwrap();
    kit.wait_connected().unwrap();
    kit
}

/// One of `client/examples`, which cargo builds with the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.is_file(), "{}: cargo build --examples", path.display());
    path
}

/// A program of its own task, under `ephor run`.
pub struct Program {
    run: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    /// Starts `ephor run -- PROGRAM WORDS`.
    pub fn start(kit: &Installation, ttl: u64, program: &PathBuf, words: &[&str]) -> Self {
        let mut run = kit.ephor();
        run.args(["run", "--"]).arg(program).args(words);
        run.env("TTL_SECONDS", ttl.to_string());
        Self::spawn(kit, run)
    }

    /// A shell of its own task that says what its certificate is, key and all, and then waits.
    pub fn victim(kit: &Installation, ttl: u64) -> Self {
        let script = format!(
            "curl -sS -H 'Ephor-Local: 1' --unix-socket \"$EPHOR_SOCKET\" \
             'http://localhost/v1/certificate?entitlement=identity&ttl_seconds={ttl}'; echo; read -r _"
        );
        let mut run = kit.ephor();
        run.args(["run", "--", "sh", "-c", &script]);
        Self::spawn(kit, run)
    }

    fn spawn(kit: &Installation, mut command: Command) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(kit.path("programs.log"))
            .unwrap();
        let mut run = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let lines = BufReader::new(run.stdout.take().unwrap());
        Self { run, lines }
    }

    /// Its next line; empty at its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// All it says until its end, and whether that was a good one.
    pub fn rest(mut self) -> (Vec<String>, bool) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let lines = rest.lines().map(str::to_owned).collect();
        (lines, self.run.wait().unwrap().success())
    }

    /// `kill -9` of the task's process: `ephor run` and the program under it.
    pub fn kill(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.run.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        self.run.kill().unwrap();
        for pid in children.split_whitespace() {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        self.run.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.run.try_wait().unwrap().is_none() {
            self.kill();
        }
    }
}

/// The example service, and where it listens.
pub fn service(kit: &Installation, ttl: u64) -> (Program, SocketAddr) {
    let mut service = Program::start(kit, ttl, &example("service"), &["127.0.0.1:0", SELF]);
    let said = service.line();
    let log = || std::fs::read_to_string(kit.path("programs.log")).unwrap();
    let (who, address) = said
        .split_once(" listens on ")
        .unwrap_or_else(|| panic!("{said:?}: {}", log()));
    assert_eq!(who, SELF);
    (service, address.parse().unwrap())
}

/// A copy of a task's certificate and key, outside the task.
pub struct Thief {
    pub leaf: Leaf,
    config: Arc<rustls::ClientConfig>,
}

/// A connection as a thief has it: TLS by nobody's library but rustls.
pub type Stolen = StreamOwned<ClientConnection, TcpStream>;

impl Thief {
    /// From an answer of the agent that its holder did not keep to itself.
    pub fn copy(answer: &str) -> Self {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let text = |name: &str| answer["certificate"][name].as_str().unwrap().to_owned();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(text("chain").as_bytes())
            .map(Result::unwrap)
            .collect();
        let key = PrivatePkcs8KeyDer::from_pem_slice(text("private_key").as_bytes()).unwrap();
        let key = SigningKey::from_pkcs8(&Secret::new(key.secret_pkcs8_der().to_vec())).unwrap();
        let ders: Vec<&[u8]> = chain.iter().map(|der| &**der).collect();
        let slot = CertificateSlot::new(certified_key(&ders, Arc::new(key)));
        let cas = CaCertificate::all_from_pem(&text("bundle")).unwrap();
        let servers = PinnedCa::new(Arc::new(TrustStore::new(cas)), Peer::spiffe_id(SELF));
        let config = client_config(Arc::new(servers), Some(Arc::new(slot)), &[]).unwrap();
        Self {
            leaf: Leaf::parse(&chain[0]).unwrap(),
            config: Arc::new(config),
        }
    }

    /// A handshake and one request; the error is what the server had against it.
    pub fn call(&self, service: SocketAddr) -> std::io::Result<(Stolen, String)> {
        let tcp = TcpStream::connect(service)?;
        tcp.set_read_timeout(Some(DEADLINE))?;
        let name = Peer::spiffe_id(SELF).server_name();
        let client = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let mut stolen = StreamOwned::new(client, tcp);
        let answer = ask(&mut stolen)?;
        Ok((stolen, answer))
    }
}

/// One request on a connection that stands.
pub fn ask(stolen: &mut Stolen) -> std::io::Result<String> {
    stolen.write_all(b"GET / HTTP/1.1\r\nhost: service\r\n\r\n")?;
    let mut answer = String::new();
    // A greeting and its line end are the last of it.
    let mut byte = [0];
    while !(answer.contains("\r\n\r\nhello ") && answer.ends_with('\n')) {
        stolen.read_exact(&mut byte)?;
        answer.push(char::from(byte[0]));
    }
    Ok(answer.rsplit_once("\r\n").unwrap().1.trim_end().to_owned())
}

/// The alert in an error of rustls.
pub fn alert(error: &std::io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
