//! Joining and running as real processes, over TLS on loopback.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{self, CertificateSlot, ClientCerts, TrustStore, certified_key};
use ephor_crypto::x509::{Ca, Leaf, ServerNames};
use ephor_proto::grpc::v1;
use ephor_proto::grpc::v1::enrolment_server::EnrolmentServer;
use ephor_proto::grpc::v1::uplink_server::UplinkServer;
use ephor_proto::id::JoinTokenId;
use ephor_proto::time::Clock;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use crate::broker::Broker;
use crate::world::{LOCAL, say, until};

fn unix_now() -> i64 {
    i64::try_from(ephor_agent::clock::SystemClock.wall().as_unix_seconds()).unwrap()
}

/// For `host-1`, from now on for so many seconds.
pub fn agent_certificate(ca: &Ca, spki: &[u8], seconds: i64) -> Vec<u8> {
    let now = unix_now();
    ca.issue_agent(
        "spiffe://td.test/agent/host-1",
        spki,
        [5; 16],
        now,
        now + seconds,
    )
    .unwrap()
}

struct Served {
    broker: Broker,
    address: SocketAddr,
    ca: Arc<Ca>,
    dir: tempfile::TempDir,
}

impl Served {
    async fn start() -> Self {
        Self::start_as("spiffe://td.test/broker").await
    }

    /// A broker on loopback whose certificate says `spiffe_id`.
    async fn start_as(spiffe_id: &str) -> Self {
        tls::install();
        let now = unix_now();
        let ca = Arc::new(Ca::create("test", "td.test", now - 60, now + 1_000_000).unwrap());
        let key = SigningKey::generate().unwrap();
        let names = ServerNames {
            spiffe_id,
            dns: &[],
            ips: &[],
        };
        let leaf = ca
            .issue_server(
                &names,
                &key.public_key().spki(),
                [6; 16],
                now - 60,
                now + 86_400,
            )
            .unwrap();
        let certificate = certified_key(&[&leaf, ca.certificate().der()], Arc::new(key));
        let trust = Arc::new(TrustStore::new(vec![ca.certificate().clone()]));
        let clients = Arc::new(ClientCerts::optional(trust, Arc::new(|_: &Leaf| true)));
        let config = tls::server_config(
            Arc::new(CertificateSlot::new(certificate)),
            clients,
            &[b"h2"],
        )
        .unwrap();
        let mut broker = Broker::new();
        broker.ca = Some(Arc::clone(&ca));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        serve(
            listener,
            tokio_rustls::TlsAcceptor::from(Arc::new(config)),
            broker.clone(),
        );
        Self {
            broker,
            address,
            ca,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn token(&self, ca_sha256: [u8; 32]) -> PathBuf {
        let [secret, hash] = [[7; 32], ca_sha256].map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        let path = self.dir.path().join("token");
        std::fs::write(
            &path,
            format!(
                "ej1.{}.{secret}.{hash}\n",
                JoinTokenId::from_parts(1, [1; 10])
            ),
        )
        .unwrap();
        path
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    async fn join(&self, ca_sha256: [u8; 32], host: &str) -> Output {
        let token = self.token(ca_sha256);
        let mut command = agent(&self.state_dir(), self.dir.path());
        command.arg("join").args([
            "--broker",
            &format!("https://{}", self.address),
            "--host",
            host,
        ]);
        command.arg("--token-file").arg(token);
        tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap()
    }
}

fn serve(listener: TcpListener, acceptor: tokio_rustls::TlsAcceptor, broker: Broker) {
    let routes = tonic::service::Routes::new(EnrolmentServer::new(broker.clone()))
        .add_service(UplinkServer::new(broker));
    #[allow(clippy::disallowed_methods, reason = "the other side, not the agent")]
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, routes) = (acceptor.clone(), routes.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = connection
                    .serve_connection(TokioIo::new(tls), TowerToHyperService::new(routes))
                    .await;
            });
        }
    });
}

/// The binary with settings that touch nothing of this host.
fn agent(state_dir: &Path, dir: &Path) -> Command {
    let config = dir.join("agent.toml");
    let socket = dir.join("run/agent.sock");
    std::fs::write(
        &config,
        format!("state_dir = {state_dir:?}\nsocket = {socket:?}\n"),
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ephor-agent"));
    command
        .env_clear()
        .env("EPHOR_LOG", "info")
        .stdin(Stdio::null());
    command.env("EPHOR_AGENT_STATE_DIR", state_dir);
    command.env("EPHOR_AGENT_SOCKET", socket);
    command
}

/// Ends with the test, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn run(served: &Served) -> Running {
    let ready = served.dir.path().join("ready.json");
    let child = agent(&served.state_dir(), served.dir.path())
        .arg("run")
        .arg("--ready-file")
        .arg(&ready)
        .spawn()
        .unwrap();
    let running = Running(child);
    until("the ready file", || ready.exists()).await;
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    assert_eq!(json["pid"], running.0.id());
    assert_eq!(
        json["socket"],
        served.dir.path().join("run/agent.sock").to_str().unwrap()
    );
    running
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_runs_serves_and_stops_cleanly() {
    let served = Served::start().await;
    let joined = served.join(served.ca.sha256(), "host-1").await;
    assert_eq!(joined.status.code(), Some(0), "{}", text(&joined));
    assert!(
        text(&joined).contains("spiffe://td.test/agent/host-1"),
        "{}",
        text(&joined)
    );
    let identity = std::fs::metadata(served.state_dir().join("identity.pem")).unwrap();
    assert_eq!(identity.mode() & 0o7777, 0o600);
    assert_eq!(
        std::fs::metadata(served.state_dir()).unwrap().mode() & 0o7777,
        0o700
    );
    let again = served.join(served.ca.sha256(), "host-1").await;
    assert_eq!(again.status.code(), Some(78), "{}", text(&again));
    assert_eq!(
        served.broker.state().joins.len(),
        1,
        "the second one sent nothing"
    );

    let mut running = run(&served).await;
    let socket = served.dir.path().join("run/agent.sock");
    let got = say(
        &socket,
        &format!("GET /v1/token?audience=billing HTTP/1.1\r\n{LOCAL}\r\n"),
    )
    .await;
    assert_eq!(got.status, 200, "{}", got.body);
    assert_eq!(got.json()["subject"], "spiffe://td.test/tests");
    let pid = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = tokio::task::spawn_blocking(move || running.0.wait().unwrap())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!socket.exists(), "the socket is gone with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_another_fleet_is_never_sent() {
    let served = Served::start().await;
    let refused = served.join([9; 32], "host-1").await;
    assert_eq!(refused.status.code(), Some(69), "{}", text(&refused));
    assert!(text(&refused).contains("join token"), "{}", text(&refused));
    assert!(served.broker.state().joins.is_empty());
    assert!(!served.state_dir().join("identity.pem").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_of_the_fleet_is_not_the_broker() {
    let served = Served::start_as("spiffe://td.test/agent/host-9").await;
    let refused = served.join(served.ca.sha256(), "host-1").await;
    assert_eq!(refused.status.code(), Some(69), "{}", text(&refused));
    assert!(served.broker.state().joins.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_absence_leave_nothing_behind() {
    let served = Served::start().await;
    let refused = served.join(served.ca.sha256(), "refused").await;
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused));
    assert!(
        text(&refused).contains("denied: the broker says no"),
        "{}",
        text(&refused)
    );
    // The broker signs for host-1 only: an answer for another name is not taken.
    let other = served.join(served.ca.sha256(), "host-2").await;
    assert_eq!(other.status.code(), Some(78), "{}", text(&other));
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let absent = Served {
        address: gone,
        dir: tempfile::tempdir().unwrap(),
        ..served
    };
    let unreachable = absent.join([9; 32], "host-1").await;
    assert_eq!(
        unreachable.status.code(),
        Some(69),
        "{}",
        text(&unreachable)
    );
    assert!(
        text(&unreachable).contains("unreachable: no connection to 127.0.0.1"),
        "{}",
        text(&unreachable)
    );
    assert!(!absent.state_dir().join("identity.pem").exists());
    let run = agent(&absent.state_dir(), absent.dir.path())
        .arg("run")
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(78));
    assert!(text(&run).contains("ephor-agent join"), "{}", text(&run));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_own_certificate_is_renewed_with_a_new_key() {
    let served = Served::start().await;
    served.broker.state().certificate_seconds = 3;
    let joined = served.join(served.ca.sha256(), "host-1").await;
    assert_eq!(joined.status.code(), Some(0), "{}", text(&joined));
    let path = served.state_dir().join("identity.pem");
    let before = std::fs::read(&path).unwrap();
    let _running = run(&served).await;
    until("the renewal", || served.broker.state().renewed.len() == 1).await;
    until("a connection with it", || {
        served.broker.state().hellos.len() >= 2
    })
    .await;
    let after = std::fs::read(&path).unwrap();
    assert_ne!(before, after);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let first_instance = served.broker.state().hellos[0].instance_id.clone();
    assert!(
        served
            .broker
            .state()
            .hellos
            .iter()
            .all(|hello| hello.instance_id == first_instance)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cas_of_the_fleet_are_followed_on_disk_and_by_the_own_certificate() {
    let served = Served::start().await;
    let joined = served.join(served.ca.sha256(), "host-1").await;
    assert_eq!(joined.status.code(), Some(0), "{}", text(&joined));
    let next = Ca::create("next", "td.test", 1_700_000_000, 2_000_000_000).unwrap();
    let set = |sequence, ders: Vec<Vec<u8>>| v1::CaBundle {
        sequence,
        ca_certificates_der: ders,
        issuing_key_id: next.certificate().key_id().to_vec(),
        renew_within_milliseconds: 0,
    };
    let old = served.ca.certificate().der().to_vec();
    let new = next.certificate().der().to_vec();
    let _running = run(&served).await;
    let pem = next.certificate().pem();
    let on_disk = || std::fs::read_to_string(served.state_dir().join("identity.pem")).unwrap();
    assert!(!on_disk().contains(&pem));
    // A set that cannot be used changes nothing; the right one is taken from the next heartbeat.
    served.broker.state().ca_bundle = Some(set(6, vec![]));
    until("it was told", || served.broker.state().heartbeats.len() > 5).await;
    assert!(!on_disk().contains(&pem));
    served.broker.state().ca_bundle = Some(set(7, vec![old, new]));
    until("the new CA on disk", || on_disk().contains(&pem)).await;
    assert!(
        on_disk().contains(&served.ca.certificate().pem()),
        "both are trusted"
    );
    until("a certificate of its own", || {
        served.broker.state().renewed.len() == 1
    })
    .await;
    until("it says which set it has", || {
        served
            .broker
            .state()
            .heartbeats
            .last()
            .is_some_and(|beat| beat.ca_sequence == 7)
    })
    .await;
    let beats = served.broker.state().heartbeats.len();
    until("more heartbeats", || {
        served.broker.state().heartbeats.len() > beats + 5
    })
    .await;
    assert_eq!(served.broker.state().renewed.len(), 1, "once is enough");
}
