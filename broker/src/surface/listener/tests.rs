#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod http2;

use std::time::Duration;

use axum::routing::get;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{
    CertificateSlot, Peer, PinnedCa, TrustStore, certified_key, client_config,
};
use ephor_crypto::x509::{Ca, ServerNames};
use ephor_proto::spiffe::TrustDomain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const DOMAIN: &str = "test.example";

struct NoCuts;

impl Cuts for NoCuts {
    fn cut_token(&self, _: &AgentCertificate) -> CancellationToken {
        CancellationToken::new()
    }
}

struct OneCut(CancellationToken);

impl Cuts for OneCut {
    fn cut_token(&self, _: &AgentCertificate) -> CancellationToken {
        self.0.clone()
    }
}

struct Fixture {
    ca: Ca,
    trust: Arc<TrustStore>,
    tasks: Tasks,
    stop: CancellationToken,
}

fn now() -> i64 {
    i64::try_from(ephor_proto::time::Clock::wall(&crate::clock::SystemClock).as_unix_seconds())
        .unwrap()
}

impl Fixture {
    fn new() -> Self {
        ephor_crypto::tls::install();
        let ca = Ca::create("test", DOMAIN, now() - 60, now() + 3600).unwrap();
        let trust = Arc::new(TrustStore::new(vec![ca.certificate().clone()]));
        Self {
            ca,
            trust,
            tasks: Tasks::new(),
            stop: CancellationToken::new(),
        }
    }

    fn server(&self, connections: usize) -> Server {
        let who = |connection: axum::Extension<Connection>| async move {
            match connection.0 {
                Connection::Https {
                    agent: Some(agent), ..
                } => agent.host().to_string(),
                Connection::Https { agent: None, .. } => "stranger".to_owned(),
                Connection::Http { .. } => "http".to_owned(),
                Connection::Admin { uid, .. } => uid.to_string(),
            }
        };
        let router = Router::new()
            .route("/who", get(who))
            .route("/never", get(std::future::pending::<()>));
        Server::new(
            "test",
            router,
            connections,
            self.tasks.clone(),
            self.stop.clone(),
        )
    }

    async fn http(&self, connections: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.tasks
            .spawn_vital("http", self.server(connections).serve_http(listener));
        address
    }

    async fn https(&self, cuts: Arc<dyn Cuts>) -> SocketAddr {
        let key = Arc::new(SigningKey::generate().unwrap());
        let names = ServerNames {
            spiffe_id: "spiffe://test.example/broker",
            dns: &["localhost"],
            ips: &[],
        };
        let leaf = self
            .ca
            .issue_server(
                &names,
                &key.public_key().spki(),
                [1; 16],
                now() - 60,
                now() + 600,
            )
            .unwrap();
        let slot = Arc::new(CertificateSlot::new(certified_key(&[&leaf], key)));
        let tls = Tls::new(
            slot,
            Arc::clone(&self.trust),
            TrustDomain::new(DOMAIN).unwrap(),
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.tasks
            .spawn_vital("https", self.server(8).serve_https(listener, tls, cuts));
        address
    }

    fn agent_certificate(&self, id: &str) -> Arc<CertificateSlot> {
        let key = Arc::new(SigningKey::generate().unwrap());
        let leaf = self
            .ca
            .issue_agent(
                id,
                &key.public_key().spki(),
                [2; 16],
                now() - 60,
                now() + 600,
            )
            .unwrap();
        Arc::new(CertificateSlot::new(certified_key(&[&leaf], key)))
    }

    async fn connect(
        &self,
        address: SocketAddr,
        certificate: Option<Arc<CertificateSlot>>,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let peer = Peer::spiffe_id("spiffe://test.example/broker");
        let name = peer.server_name();
        let verifier = Arc::new(PinnedCa::new(Arc::clone(&self.trust), peer));
        let config =
            client_config(verifier, certificate.map(|slot| slot as _), &[b"http/1.1"]).unwrap();
        let stream = TcpStream::connect(address).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }
}

async fn ask(io: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let mut len = 0;
    loop {
        let read = io.read(&mut answer[len..]).await.unwrap();
        len += read;
        let text = String::from_utf8_lossy(&answer[..len]).into_owned();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")
                    .map(str::to_owned)
            });
            length
                .and_then(|length| length.parse().ok())
                .is_some_and(|length: usize| body.len() >= length)
        });
        if whole || read == 0 {
            return text;
        }
    }
}

/// Reads until the server closes; an error counts as closed too.
async fn closed(io: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    let _ = io.read_to_end(&mut rest).await;
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .expect("in time")
}

#[tokio::test]
async fn a_handshake_tells_agents_from_strangers() {
    let fixture = Fixture::new();
    let address = fixture.https(Arc::new(NoCuts)).await;
    let mut stranger = fixture.connect(address, None).await.unwrap();
    assert!(ask(&mut stranger, "/who").await.ends_with("stranger"));
    let certificate = fixture.agent_certificate("spiffe://test.example/agent/web-1");
    let mut agent = fixture.connect(address, Some(certificate)).await.unwrap();
    assert!(ask(&mut agent, "/who").await.ends_with("web-1"));
}

#[tokio::test]
async fn a_certificate_that_is_no_agents_is_refused() {
    let fixture = Fixture::new();
    let address = fixture.https(Arc::new(NoCuts)).await;
    let certificate = fixture.agent_certificate("spiffe://test.example/orders/web");
    // In TLS 1.3 the client learns of it only when it reads.
    if let Ok(mut stream) = fixture.connect(address, Some(certificate)).await {
        let mut byte = [0];
        assert!(within(stream.read(&mut byte)).await.is_err());
    }
}

#[tokio::test]
async fn malformed_bytes_end_only_their_own_connection() {
    let fixture = Fixture::new();
    let https = fixture.https(Arc::new(NoCuts)).await;
    let http = fixture.http(8).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let unix = bind_unix(&path).unwrap();
    fixture
        .tasks
        .spawn_vital("admin", fixture.server(8).serve_unix(unix));

    let garbage: [&[u8]; 7] = [
        b"\x00",
        &[0xff; 3000],
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01\x00\x00\x01",
        &[b'a'; 100_000],
    ];
    for bytes in garbage {
        for address in [https, http] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            within(closed(&mut stream)).await;
        }
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        within(closed(&mut stream)).await;
    }
    assert!(
        ask(&mut TcpStream::connect(http).await.unwrap(), "/who")
            .await
            .ends_with("http")
    );
    assert!(
        ask(&mut fixture.connect(https, None).await.unwrap(), "/who")
            .await
            .ends_with("stranger")
    );
    let uid = rustix::process::getuid().as_raw().to_string();
    assert!(
        ask(&mut UnixStream::connect(&path).await.unwrap(), "/who")
            .await
            .ends_with(&uid)
    );
}

#[tokio::test(start_paused = true)]
async fn slow_clients_are_closed() {
    let fixture = Fixture::new();
    let https = fixture.https(Arc::new(NoCuts)).await;
    let http = fixture.http(8).await;
    // Nothing at all, half a TLS record, half an HTTP/1 header, half an HTTP/2 preface.
    for (address, bytes) in [
        (https, b"".as_slice()),
        (https, b"\x16\x03\x01\x02".as_slice()),
        (http, b"".as_slice()),
        (http, b"GET /who HTTP/1.1\r\nho".as_slice()),
        (http, b"PRI * HT".as_slice()),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        // Virtual time passes as soon as nobody has work left.
        closed(&mut stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_too_long_gets_an_answer() {
    let fixture = Fixture::new();
    let http = fixture.http(8).await;
    let mut stream = TcpStream::connect(http).await.unwrap();
    assert!(ask(&mut stream, "/never").await.starts_with("HTTP/1.1 408"));
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_places_come_back() {
    let fixture = Fixture::new();
    let http = fixture.http(1).await;
    let mut first = TcpStream::connect(http).await.unwrap();
    assert!(ask(&mut first, "/who").await.ends_with("http"));
    let mut second = TcpStream::connect(http).await.unwrap();
    within(closed(&mut second)).await;
    drop(first);
    within(async {
        loop {
            let mut third = TcpStream::connect(http).await.unwrap();
            let _ = third
                .write_all(b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await;
            let mut answer = Vec::new();
            let _ = third.read_to_end(&mut answer).await;
            if answer.ends_with(b"http") {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_cut_ends_a_live_connection_and_spares_others() {
    let fixture = Fixture::new();
    let cut = CancellationToken::new();
    let address = fixture.https(Arc::new(OneCut(cut.clone()))).await;
    let certificate = fixture.agent_certificate("spiffe://test.example/agent/web-1");
    let mut agent = fixture.connect(address, Some(certificate)).await.unwrap();
    let mut stranger = fixture.connect(address, None).await.unwrap();
    assert!(ask(&mut agent, "/who").await.ends_with("web-1"));
    cut.cancel();
    within(closed(&mut agent)).await;
    assert!(ask(&mut stranger, "/who").await.ends_with("stranger"));
}

#[tokio::test]
async fn stop_lets_open_requests_finish_and_closes_idle_connections() {
    let fixture = Fixture::new();
    let http = fixture.http(8).await;
    let mut idle = TcpStream::connect(http).await.unwrap();
    assert!(ask(&mut idle, "/who").await.ends_with("http"));
    fixture.stop.cancel();
    within(closed(&mut idle)).await;
    assert!(fixture.tasks.shutdown(Duration::from_secs(30)).await);
}
