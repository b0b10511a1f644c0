//! A broker as it really starts, on real sockets and the real clock, and an agent's client of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod older;

use std::future::Future;
use std::time::Duration;

use ephor_confine::supervise::Inherited;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{
    CertificateSlot, Peer, PinnedCa, TrustStore, ca_name, certified_key, client_config,
};
use ephor_crypto::x509::{CaCertificate, csr};
use ephor_proto::grpc::v1::enrolment_client::EnrolmentClient;
use ephor_proto::grpc::v1::uplink_client::UplinkClient;
use ephor_proto::grpc::{PROBLEM_METADATA, VERSION, v1};
use ephor_proto::id::{InstanceId, RequestId};
use ephor_proto::problem::{Code, Problem};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

use super::start::{listen, open, start_background};
use super::*;

struct Live {
    broker: Arc<Broker>,
    connections: Tasks,
    config: Config,
    https: SocketAddr,
    http: SocketAddr,
    token: String,
    dir: TempDir,
}

impl Live {
    async fn start() -> Self {
        Self::with_policy(super::tests::POLICY).await
    }

    async fn with_policy(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("policy")).unwrap();
        std::fs::write(at("policy/ephor.toml"), policy).unwrap();
        let text = format!(
            "state_dir = {:?}\npolicy_dir = {:?}\nadmin_socket = {:?}\nhttps_listen = '127.0.0.1:0'\nhttp_listen = '127.0.0.1:0'",
            at("state"),
            at("policy"),
            at("admin.sock"),
        );
        std::fs::write(at("broker.toml"), text).unwrap();
        let config =
            Config::load(Some(&at("broker.toml")), crate::config::Settings::default()).unwrap();
        let options = InitOptions {
            token_for: Some("web-*".to_owned()),
            token_file: Some(at("token")),
        };
        let init_config = config.clone();
        tokio::task::spawn_blocking(move || init(&init_config, &options))
            .await
            .unwrap()
            .unwrap();
        let token = std::fs::read_to_string(at("token"))
            .unwrap()
            .trim()
            .to_owned();
        let (broker, sockets) = open(&config, Inherited::none()).await.unwrap();
        broker.restore().unwrap();
        let connections = Tasks::new();
        let (https, http) = listen(&broker, &config, sockets, &connections).unwrap();
        start_background(&broker, &config);
        broker.fleet.listening();
        Self {
            broker,
            connections,
            config,
            https,
            http,
            token,
            dir,
        }
    }

    async fn channel(
        &self,
        certificate: Option<Arc<CertificateSlot>>,
    ) -> Result<Channel, tonic::transport::Error> {
        let ca = self.broker.keys.load().ca().certificate().clone();
        self.channel_of(ca, false, certificate).await
    }

    /// For a client that trusts one CA, and may ask for a certificate of it.
    async fn channel_of(
        &self,
        ca: CaCertificate,
        asks: bool,
        certificate: Option<Arc<CertificateSlot>>,
    ) -> Result<Channel, tonic::transport::Error> {
        let peer = Peer::spiffe_id("spiffe://test.example/broker");
        let name = if asks {
            ca_name(&ca.sha256())
        } else {
            peer.server_name()
        };
        let trust = Arc::new(TrustStore::new(vec![ca]));
        let verifier = Arc::new(PinnedCa::new(trust, peer));
        let config = client_config(verifier, certificate.map(|slot| slot as _), &[b"h2"]).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let address = self.https;
        let connect = tower::service_fn(move |_| {
            let (connector, name) = (connector.clone(), name.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("https://broker")
            .connect_with_connector(connect)
            .await
    }

    async fn join(&self, host: &str) -> Arc<CertificateSlot> {
        let key = Arc::new(SigningKey::generate().unwrap());
        let request = v1::JoinRequest {
            version: Some(VERSION),
            token: self.token.clone(),
            host: host.to_owned(),
            csr_der: csr(&key).unwrap(),
        };
        let mut client = EnrolmentClient::new(self.channel(None).await.unwrap());
        let answer = client.join(request).await.unwrap().into_inner();
        Arc::new(CertificateSlot::new(certified_key(
            &[&answer.certificate_der],
            key,
        )))
    }

    async fn admin(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(&self.config.admin_socket)
            .await
            .unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn instance() -> Vec<u8> {
    InstanceId::from_parts(1, [1; 10]).to_bytes().to_vec()
}

fn hello() -> v1::HelloRequest {
    v1::HelloRequest {
        version: Some(VERSION),
        instance_id: instance(),
        boot_id: "boot-a".to_owned(),
        checkpoint: String::new(),
    }
}

fn heartbeat() -> v1::HeartbeatRequest {
    v1::HeartbeatRequest {
        instance_id: instance(),
        boot_id: "boot-a".to_owned(),
        seq: 1,
        open_tasks: Vec::new(),
        ended_tasks: Vec::new(),
        ca_sequence: 0,
        checkpoint: String::new(),
    }
}

fn code<T>(outcome: Result<T, tonic::Status>) -> Code {
    let Err(status) = outcome else {
        panic!("it was allowed")
    };
    let json = status
        .metadata()
        .get_bin(PROBLEM_METADATA)
        .expect("a problem")
        .to_bytes()
        .unwrap();
    serde_json::from_slice::<Problem>(&json).unwrap().code
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_speaks_and_is_cut_off_by_a_ban() {
    let live = Live::start().await;
    let certificate = live.join("web-1").await;
    let channel = live.channel(Some(Arc::clone(&certificate))).await.unwrap();
    let mut uplink = UplinkClient::new(channel);
    assert_eq!(
        code(uplink.heartbeat(heartbeat()).await),
        Code::StaleInstance
    );
    let answer = uplink.hello(hello()).await.unwrap().into_inner();
    assert_eq!(answer.issuer, format!("https://{}", live.https));
    let beat = uplink.heartbeat(heartbeat()).await.unwrap().into_inner();
    // What the broker hands out as seen, it accepts as seen.
    let seen = v1::HelloRequest {
        checkpoint: beat.checkpoint,
        ..hello()
    };
    uplink.hello(seen).await.unwrap();
    let mut watch = uplink
        .watch(v1::WatchRequest {
            instance_id: instance(),
        })
        .await
        .unwrap()
        .into_inner();
    live.broker.fleet.push("web-1", v1::Push::default());
    assert!(within(watch.message()).await.unwrap().is_some());

    let banned = live
        .admin("POST", "/v1/hosts/web-1/ban", r#"{"reason":"test"}"#)
        .await;
    assert!(
        banned.contains("200 OK") && banned.contains("banned"),
        "{banned}"
    );
    // The live connection is cut: the stream ends, whichever way the client sees it.
    within(async { while let Ok(Some(_)) = watch.message().await {} }).await;
    // And a new one is told why.
    let mut again = UplinkClient::new(live.channel(Some(certificate)).await.unwrap());
    assert_eq!(code(again.hello(hello()).await), Code::AgentBanned);
    assert_eq!(code(again.heartbeat(heartbeat()).await), Code::AgentBanned);
    assert!(
        live.admin("GET", "/v1/hosts", "")
            .await
            .contains(r#""state":"banned""#)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_requests_in_one_message_each_has_its_own_outcome() {
    use ephor_proto::limits::MAX_ISSUE_BATCH;
    use v1::issue_outcome::Outcome;
    let policy = crate::issue::tests::harness::POLICY.replace("prod.example", "test.example");
    let live = Live::with_policy(&policy).await;
    let certificate = live.join("web-1").await;
    let mut uplink = UplinkClient::new(live.channel(Some(certificate)).await.unwrap());
    let batch = |requests| v1::IssueBatch {
        instance_id: instance(),
        requests,
    };
    let wire = crate::request::tests::wire;
    assert_eq!(
        code(uplink.issue(batch(vec![wire()])).await),
        Code::StaleInstance,
        "of an instance that did not say hello"
    );
    uplink.hello(hello()).await.unwrap();
    let numbered = |number: u8| v1::IssueRequest {
        request_id: RequestId::from_parts(5, [number; 10]).to_bytes().to_vec(),
        ..wire()
    };
    let malformed = v1::IssueRequest::default();
    let requests = vec![numbered(1), malformed, numbered(2), numbered(1)];
    let answer = uplink.issue(batch(requests)).await.unwrap().into_inner();
    let outcomes: Vec<_> = answer
        .outcomes
        .into_iter()
        .map(|outcome| match outcome.outcome.unwrap() {
            Outcome::Issued(issued) => Ok(issued.credentials[0].id.clone()),
            Outcome::Refused(json) => Err(serde_json::from_slice::<Problem>(&json).unwrap().code),
        })
        .collect();
    assert_eq!(outcomes.len(), 4);
    assert_eq!(outcomes[1], Err(Code::InvalidRequest));
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    assert_eq!(
        outcomes[0], outcomes[3],
        "the same request id, the same credential"
    );
    assert_ne!(outcomes[0], outcomes[2]);
    let too_many = vec![wire(); MAX_ISSUE_BATCH + 1];
    assert_eq!(
        code(uplink.issue(batch(too_many)).await),
        Code::InvalidRequest
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_agents_certificate_only_join_is_open() {
    let live = Live::start().await;
    let mut uplink = UplinkClient::new(live.channel(None).await.unwrap());
    assert_eq!(code(uplink.hello(hello()).await), Code::Unauthenticated);
    assert_eq!(
        code(uplink.heartbeat(heartbeat()).await),
        Code::Unauthenticated
    );
    assert_eq!(
        code(uplink.issue(v1::IssueBatch::default()).await),
        Code::Unauthenticated
    );
    assert_eq!(
        code(uplink.watch(v1::WatchRequest::default()).await),
        Code::Unauthenticated
    );
    let mut enrolment = EnrolmentClient::new(live.channel(None).await.unwrap());
    assert_eq!(
        code(enrolment.join(v1::JoinRequest::default()).await),
        Code::VersionSkew
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_protobuf_is_an_error_and_the_connection_goes_on() {
    let live = Live::start().await;
    let certificate = live.join("web-1").await;
    let channel = live.channel(Some(certificate)).await.unwrap();
    let mut raw = tonic::client::Grpc::new(channel.clone());
    raw.ready().await.unwrap();
    // Field 1 of a credential is bytes, of Hello a message.
    let codec = tonic_prost::ProstCodec::<v1::Credential, v1::HelloResponse>::default();
    let wrong = v1::Credential {
        id: vec![0xff; 9],
        ..Default::default()
    };
    let path = http::uri::PathAndQuery::from_static("/ephor.v1.Uplink/Hello");
    assert!(
        raw.unary(tonic::Request::new(wrong), path, codec)
            .await
            .is_err()
    );
    let codec = tonic_prost::ProstCodec::<v1::Credential, v1::HelloResponse>::default();
    let large = v1::Credential {
        token: "x".repeat(5 << 20),
        ..Default::default()
    };
    let path = http::uri::PathAndQuery::from_static("/ephor.v1.Uplink/Hello");
    raw.ready().await.unwrap();
    assert!(
        raw.unary(tonic::Request::new(large), path, codec)
            .await
            .is_err()
    );
    assert!(UplinkClient::new(channel).hello(hello()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_listener_has_what_is_public_and_nothing_else() {
    let live = Live::start().await;
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(live.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(get("/checkpoint").await.starts_with("HTTP/1.1 200"));
    for path in [
        "/jwks",
        "/introspect",
        "/v1/status",
        "/v1/hosts",
        "/ephor.v1.Enrolment/Join",
        "/",
    ] {
        assert!(get(path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_broker_and_a_second_init_are_refused() {
    let live = Live::start().await;
    let held = match open(&live.config, Inherited::none()).await {
        Ok(_) => panic!("two brokers on one store"),
        Err(error) => error,
    };
    assert_eq!(held.exit_code(), 78);
    assert!(
        held.to_string().contains("held by the running broker"),
        "{held}"
    );
    live.connections.shutdown(Duration::from_secs(30)).await;
    live.broker.tasks.shutdown(Duration::from_secs(30)).await;
    live.broker.ledger.clone().shutdown();
    let config = live.config.clone();
    let again = tokio::task::spawn_blocking(move || init(&config, &InitOptions::default()))
        .await
        .unwrap();
    assert!(
        again
            .unwrap_err()
            .to_string()
            .contains("complete installation")
    );

    // Another master key opens nothing, and says so.
    std::fs::write(live.config.state_dir.join("master.key"), [7; 32]).unwrap();
    let wrong = match open(&live.config, Inherited::none()).await {
        Ok(_) => panic!("opened with a wrong key"),
        Err(error) => error,
    };
    assert!(
        wrong.to_string().contains("bring back the master key"),
        "{wrong}"
    );
    // Another trust domain is another installation.
    let policy = super::tests::POLICY.replace("test.example", "other.example");
    std::fs::write(live.dir.path().join("policy/ephor.toml"), policy).unwrap();
    let other = match open(&live.config, Inherited::none()).await {
        Ok(_) => panic!("opened for another trust domain"),
        Err(error) => error,
    };
    assert!(other.to_string().contains("other.example"), "{other}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_ca_follows_another_both_are_served_and_a_distrusted_one_ends_at_once() {
    use crate::keys::state::KeyKind;
    let live = Live::start().await;
    let keys = live.broker.keys.load_full();
    let old = keys.ca().certificate().clone();
    let pem = || std::fs::read_to_string(live.config.ca_file()).unwrap();
    let certificate = live.join("web-1").await;
    let channel = live.channel(Some(Arc::clone(&certificate))).await.unwrap();
    let mut uplink = UplinkClient::new(channel);
    let told = uplink.hello(hello()).await.unwrap().into_inner();
    let before = told.ca_bundle.unwrap();
    assert_eq!(before.ca_certificates_der, [old.der()]);
    let with = |ca_sequence| v1::HeartbeatRequest {
        ca_sequence,
        ..heartbeat()
    };
    let same = uplink.heartbeat(with(before.sequence)).await.unwrap();
    assert!(same.into_inner().ca_bundle.is_none());

    let forced = ephor_proto::http::admin::Rotate {
        now: true,
        force: true,
        ..Default::default()
    };
    live.broker.rotate_key(KeyKind::Ca, &forced).await.unwrap();
    let new = live.broker.keys.load().ca().certificate().clone();
    let after = uplink.heartbeat(with(before.sequence)).await.unwrap();
    let after = after.into_inner().ca_bundle.unwrap();
    assert!(after.sequence > before.sequence);
    assert_eq!(after.ca_certificates_der, [old.der(), new.der()]);
    assert_eq!(after.issuing_key_id, new.key_id());
    within(async {
        while !(pem().contains(&old.pem()) && pem().contains(&new.pem())) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    // Who knows only the old one is served without asking, who asks for the new one gets it.
    let reach = async |ca: &CaCertificate, asks| live.channel_of(ca.clone(), asks, None).await;
    within(async {
        while reach(&new, true).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    reach(&old, false).await.unwrap();
    reach(&old, true).await.unwrap();
    assert!(reach(&new, false).await.is_err());
    // A join token from before, which pins the old one, is still good.
    let mut enrolment = EnrolmentClient::new(reach(&old, true).await.unwrap());
    let invited = live.broker.invite("web-2", None).await.unwrap();
    let request = v1::JoinRequest {
        version: Some(VERSION),
        token: invited.token.expose_str().unwrap().to_owned(),
        host: "web-2".to_owned(),
        csr_der: csr(&SigningKey::generate().unwrap()).unwrap(),
    };
    let joined = enrolment.join(request).await.unwrap().into_inner();
    assert_eq!(joined.ca_certificates_der, [old.der(), new.der()]);

    // Renewed while both are trusted, used when only the new one is.
    let key = Arc::new(SigningKey::generate().unwrap());
    let renew = v1::RenewIdentityRequest {
        instance_id: instance(),
        public_key_der: key.public_key().spki(),
        checkpoint: String::new(),
    };
    let renewed = uplink.renew_identity(renew).await.unwrap().into_inner();
    live.broker.distrust_keys(KeyKind::Ca, "").await.unwrap();
    assert_eq!(
        code(uplink.heartbeat(with(0)).await),
        Code::Unauthenticated,
        "on a connection that stood before"
    );
    within(async {
        while reach(&new, false).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(reach(&old, true).await.is_err());
    let old_certificate = live.channel_of(new.clone(), true, Some(certificate)).await;
    // TLS 1.3 tells a client that it is refused only after its handshake.
    if let Ok(channel) = old_certificate {
        assert!(UplinkClient::new(channel).hello(hello()).await.is_err());
    }
    let slot = CertificateSlot::new(certified_key(&[&renewed.certificate_der], key));
    let channel = live.channel_of(new, true, Some(Arc::new(slot))).await;
    UplinkClient::new(channel.unwrap())
        .hello(hello())
        .await
        .unwrap();
}
