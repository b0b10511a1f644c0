//! An agent and published lists that say whatever a test wants, for what no real broker does:
//! lists that nobody signed, older ones, none.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ephor_client::{Agent, Builder, Connection, Connector, Error, Identity, Listener, Peers};
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Ca, CaCertificate, CrlContent, Revoked, Serial, Svid, pem, secret_pem};
use ephor_proto::http::agent as wire;
use ephor_proto::http::lists::{CrlIndex, CrlVersion};
use ephor_proto::id::{CorrelationId, CredentialId, DecisionId, ReceiptId, RequestId, TaskId};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::time::UnixMillis;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at the lists.
pub const POLL: Duration = Duration::from_millis(20);
/// Life of certificates unless a test says otherwise, in seconds.
const TTL: u64 = 600;

/// What is answered.
pub struct State {
    pub ca: Arc<Ca>,
    /// Between `ca` and its root, `ca` first, when it is not a root itself.
    pub above: Vec<Vec<u8>>,
    pub roots: Vec<CaCertificate>,
    /// Life of certificates, in seconds.
    pub ttl: u64,
    /// How long after its issue a certificate is to be fetched again.
    pub refresh_after: Duration,
    /// Numbers of certificates that were issued.
    pub issued: u16,
    /// The list that certificates name.
    pub list: u32,
    /// The bodies of lists, each with its version.
    pub lists: BTreeMap<u32, (u64, Bytes)>,
    /// What else stands in the index.
    pub elsewhere: Vec<String>,
    /// Paths that were asked for at the lists' address.
    pub asked: Vec<String>,
    /// How often the index was read on each open connection there: an identity has one.
    looks: HashMap<SocketAddr, usize>,
    /// Answers of the agent are refusals.
    pub refuses: bool,
    /// Tasks that were completed.
    pub completed: u32,
    number: u64,
}

/// See the module.
pub struct Fake {
    state: Arc<Mutex<State>>,
    dir: tempfile::TempDir,
    lists: SocketAddr,
    plain: JoinSet<()>,
    agents: JoinSet<()>,
}

pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

pub fn root() -> Ca {
    let now = i64::try_from(now()).unwrap();
    Ca::create("Test", "td.test", now - 3_600, now + 86_400).unwrap()
}

impl Fake {
    /// With list 0, which is empty.
    pub async fn start() -> Self {
        Self::with(root(), Vec::new(), None).await
    }

    /// Certificates are issued by `ca`, below `root`.
    pub async fn with(ca: Ca, above: Vec<Vec<u8>>, root: Option<CaCertificate>) -> Self {
        let tcp = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let state = State {
            roots: vec![root.unwrap_or_else(|| ca.certificate().clone())],
            ca: Arc::new(ca),
            above,
            ttl: TTL,
            refresh_after: Duration::from_secs(TTL * 2 / 3),
            issued: 0,
            list: 0,
            lists: BTreeMap::new(),
            elsewhere: Vec::new(),
            asked: Vec::new(),
            looks: HashMap::new(),
            refuses: false,
            completed: 0,
            number: 100,
        };
        let mut fake = Self {
            state: Arc::new(Mutex::new(state)),
            dir: tempfile::tempdir().unwrap(),
            lists: tcp.local_addr().unwrap(),
            plain: JoinSet::new(),
            agents: JoinSet::new(),
        };
        fake.publish(0, &[]);
        fake.serve_lists(tcp);
        fake
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn serve_lists(&mut self, tcp: TcpListener) {
        let (state, own) = (Arc::clone(&self.state), self.lists);
        self.plain.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, peer) = tcp.accept().await.unwrap();
                let open = Open::of(&state, peer);
                let answer = service_fn(move |request: Request<Incoming>| {
                    let answer = plain(&mut open.state(), own, peer, request.uri().path());
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                let http = hyper::server::conn::http1::Builder::new();
                connections.spawn(http.serve_connection(TokioIo::new(stream), answer));
            }
        });
    }

    /// Nobody answers at the lists' address any more.
    pub async fn take_lists_away(&mut self) {
        self.plain.shutdown().await;
    }

    /// Somebody does again.
    pub async fn bring_lists_back(&mut self) {
        let tcp = TcpListener::bind(self.lists).await.unwrap();
        self.serve_lists(tcp);
    }

    /// The agent of the workload `name`, on a socket of its own.
    pub fn agent(&mut self, name: &str) -> Agent {
        let path = self.dir.path().join(name);
        if path.exists() {
            return Agent::at(path);
        }
        let socket = UnixListener::bind(&path).unwrap();
        let (state, name, lists) = (Arc::clone(&self.state), name.to_owned(), self.lists);
        self.agents.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let stream = socket.accept().await.unwrap().0;
                let (state, name) = (Arc::clone(&state), name.clone());
                let answer = service_fn(move |request: Request<Incoming>| {
                    assert_eq!(request.headers()["ephor-local"], "1");
                    let answer = local(&mut state.lock().unwrap(), &name, lists, &request);
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                let http = hyper::server::conn::http1::Builder::new();
                connections.spawn(http.serve_connection(TokioIo::new(stream), answer));
            }
        });
        Agent::at(path)
    }

    /// Every agent is gone, with its connections.
    pub async fn take_agents_away(&mut self) {
        self.agents.shutdown().await;
    }

    pub fn builder(&mut self, name: &str) -> Builder {
        Identity::builder(&self.agent(name)).poll_every(POLL)
    }

    /// The URL of a list.
    pub fn url(&self, list: u32) -> String {
        format!("http://{}/crl/{list}", self.lists)
    }

    /// A list that says what it should, newer than any before.
    pub fn publish(&self, list: u32, revoked: &[Serial]) {
        let number = {
            let mut state = self.state();
            state.number += 1;
            state.number
        };
        let ca = Arc::clone(&self.state().ca);
        self.publish_body(list, self.signed(&ca, list, number, revoked));
    }

    /// A list as `ca` signs it.
    pub fn signed(&self, ca: &Ca, list: u32, number: u64, revoked: &[Serial]) -> Vec<u8> {
        let at = i64::try_from(now()).unwrap();
        self.signed_until(ca, list, number, revoked, at + 3_600)
    }

    pub fn signed_until(
        &self,
        ca: &Ca,
        list: u32,
        number: u64,
        revoked: &[Serial],
        next_update: i64,
    ) -> Vec<u8> {
        let at = next_update - 3_600;
        let revoked: Vec<_> = revoked
            .iter()
            .map(|serial| Revoked {
                serial: serial.clone(),
                at,
            })
            .collect();
        ca.sign_crl(&CrlContent {
            url: Some(&self.url(list)),
            number,
            this_update: at,
            next_update,
            revoked: &revoked,
        })
        .unwrap()
    }

    /// Any body, under another version than before.
    pub fn publish_body(&self, list: u32, body: Vec<u8>) {
        let mut state = self.state();
        let version = state.lists.get(&list).map_or(0, |(version, _)| version + 1);
        state.lists.insert(list, (version, body.into()));
    }

    /// Waits until every identity has read the index twice from now on: what was published is known
    /// to each of them by then.
    pub async fn seen(&self) {
        let before = self.state().looks.clone();
        until("two looks at the index", || {
            let looks = &self.state().looks;
            let twice = |peer, now| now >= before.get(peer).unwrap_or(&0) + 2;
            !looks.is_empty() && looks.iter().all(|(peer, now)| twice(peer, *now))
        })
        .await;
    }
}

/// A connection at the lists' address while it is open.
struct Open(Arc<Mutex<State>>, SocketAddr);

impl Open {
    fn of(state: &Arc<Mutex<State>>, peer: SocketAddr) -> Self {
        let open = Self(Arc::clone(state), peer);
        open.state().looks.insert(peer, 0);
        open
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // A test that failed while it held the state has said why.
        if let Ok(mut state) = self.0.lock() {
            state.looks.remove(&self.1);
        }
    }
}

fn plain(
    state: &mut State,
    own: SocketAddr,
    peer: SocketAddr,
    path: &str,
) -> Response<Full<Bytes>> {
    state.asked.push(path.to_owned());
    if path == "/crl" {
        *state.looks.entry(peer).or_default() += 1;
        let lists = state.lists.iter().map(|(number, (version, _))| CrlVersion {
            url: format!("http://{own}/crl/{number}"),
            version: version.to_string(),
        });
        let elsewhere = state.elsewhere.iter().map(|url| CrlVersion {
            url: url.clone(),
            version: "1".to_owned(),
        });
        let lists = lists.chain(elsewhere).collect();
        return json(StatusCode::OK, &CrlIndex { lists });
    }
    let number = path.strip_prefix("/crl/").and_then(|n| n.parse().ok());
    match number.and_then(|number: u32| state.lists.get(&number)) {
        Some((_, body)) => Response::new(Full::new(body.clone())),
        None => json(StatusCode::NOT_FOUND, &()),
    }
}

fn local(
    state: &mut State,
    name: &str,
    lists: SocketAddr,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    if state.refuses {
        let correlation = CorrelationId::from_parts(1, [7; 10]);
        let problem = Problem::new(Code::RateLimited, correlation, "not now").with_retry_after(3);
        return json(StatusCode::TOO_MANY_REQUESTS, &problem);
    }
    let get = request.method() == Method::GET;
    match request.uri().path() {
        "/v1/certificate" if get => json(StatusCode::OK, &certificate(state, name, lists)),
        "/v1/token" if get => {
            let asked = request.uri().query().unwrap_or_default().to_owned();
            json(StatusCode::OK, &flat(state, name, Some(asked), None))
        }
        "/v1/bundle" if get => json(
            StatusCode::OK,
            &wire::Bundle {
                trust_domain: "td.test".to_owned(),
                x509: state.roots.iter().map(CaCertificate::pem).collect(),
            },
        ),
        "/v1/task/complete" if !get => {
            state.completed += 1;
            json(
                StatusCode::OK,
                &wire::Completed {
                    task: TaskId::from_parts(1, [1; 10]),
                    receipt_id: ReceiptId::from_parts(1, [2; 10]),
                    dead: 0,
                    listed: 1,
                    listed_until: None,
                    wiped: 1,
                    heard: true,
                    receipt: None,
                },
            )
        }
        _ => json(StatusCode::NOT_FOUND, &()),
    }
}

/// The credential of a workload is made of its name.
fn id_of(name: &str) -> CredentialId {
    let mut random = [0; 10];
    for (to, from) in random.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    CredentialId::from_parts(1_800_000_000_000, random)
}

fn certificate(state: &mut State, name: &str, lists: SocketAddr) -> wire::FlatCertificate {
    let mut serial = id_of(name).to_bytes().to_vec();
    serial.extend(state.issued.to_be_bytes());
    state.issued += 1;
    let (serial, key) = (
        Serial::new(&serial).unwrap(),
        SigningKey::generate().unwrap(),
    );
    let start = i64::try_from(now()).unwrap();
    let svid = Svid {
        spiffe_id: &format!("spiffe://td.test/{name}"),
        dns: &[],
        crl: &format!("http://{lists}/crl/{}", state.list),
        serial: &serial,
        not_before: start - 30,
        not_after: start + i64::try_from(state.ttl).unwrap(),
    };
    let leaf = state
        .ca
        .issue_svid(&svid, &key.public_key().spki())
        .unwrap();
    let chain = std::iter::once(&leaf).chain(&state.above);
    let private_key = secret_pem(key.to_pkcs8());
    let certificate = wire::Certificate {
        serial: serial.to_string(),
        chain: chain.map(|der| pem("CERTIFICATE", der)).collect(),
        private_key: String::from_utf8(private_key.expose().to_vec()).unwrap(),
        bundle: state.roots.iter().map(CaCertificate::pem).collect(),
    };
    flat(state, name, None, Some(certificate))
}

fn flat(
    state: &State,
    name: &str,
    token: Option<String>,
    certificate: Option<wire::Certificate>,
) -> wire::Token {
    let at = UnixMillis::from_unix_seconds(now());
    let refresh = u64::try_from(state.refresh_after.as_millis()).unwrap();
    wire::Token {
        task: TaskId::from_parts(1, [1; 10]),
        task_rule: "peer".to_owned(),
        request: RequestId::from_parts(1, [3; 10]),
        decision: DecisionId::from_parts(1, [4; 10]),
        subject: format!("spiffe://td.test/{name}"),
        credential: wire::Credential {
            kind: if token.is_some() { "jwt" } else { "x509" }.to_owned(),
            id: id_of(name),
            expires_at: at.saturating_add_millis(state.ttl * 1000),
            refresh_at: at.saturating_add_millis(refresh),
            capped_by: "ttl.default".to_owned(),
            audience: None,
            token,
            certificate,
            login: None,
        },
    }
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = Full::new(serde_json::to_vec(body).unwrap().into());
    Response::builder().status(status).body(body).unwrap()
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, waiting).await;
    waited.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"));
}

/// A server and a client of each other.
pub struct Pair {
    pub server: Identity,
    pub client: Identity,
    pub listener: Listener,
    pub connector: Connector,
}

impl Pair {
    /// `svc` for `web`, both of `fake`.
    pub async fn start(fake: &mut Fake) -> Self {
        let (server, client) = (fake.builder("svc"), fake.builder("web"));
        Self::of(server, client).await
    }

    pub async fn of(server: Builder, client: Builder) -> Self {
        let (server, client) = (server.start().await.unwrap(), client.start().await.unwrap());
        let callers = Peers::id("spiffe://td.test/web").unwrap();
        let service = Peers::id("spiffe://td.test/svc").unwrap();
        let listener = Listener::bind(("127.0.0.1", 0), &server, callers, &[]).await;
        Self {
            listener: listener.unwrap(),
            connector: Connector::new(&client, service, &[]).unwrap(),
            server,
            client,
        }
    }

    /// A connection, seen from both sides, after a byte went each way; or what the server's
    /// side had against it, and what the client heard of that.
    pub async fn connect(&self) -> Result<(Connection, Connection), (Error, Error)> {
        connect(&self.listener, &self.connector).await
    }

    /// The alert that one side sent the other.
    pub async fn alert(&self) -> Option<rustls::AlertDescription> {
        let (server, client) = self.connect().await.err()?;
        alert(&client).or_else(|| alert(&server))
    }
}

/// The alert in what one side heard.
pub fn alert(heard: &Error) -> Option<rustls::AlertDescription> {
    match heard {
        Error::Io(error) | Error::Handshake(error) => super::support::alert(error),
        _ => None,
    }
}

/// A serial number from its hex.
pub fn serial(hex: &str) -> Serial {
    let digits = hex.as_bytes().chunks(2);
    let bytes = digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap());
    Serial::new(&bytes.collect::<Vec<_>>()).unwrap()
}

pub async fn connect(
    listener: &Listener,
    connector: &Connector,
) -> Result<(Connection, Connection), (Error, Error)> {
    let address = listener.local_addr().unwrap();
    let served = async {
        let mut connection = listener.accept().await.unwrap().handshake().await?;
        connection.write_all(b"x").await?;
        connection.flush().await?;
        Ok(connection)
    };
    let called = async {
        let mut connection = connector.connect(address).await?;
        connection.read_exact(&mut [0]).await?;
        Ok(connection)
    };
    match tokio::join!(served, called) {
        (Ok(served), Ok(called)) => Ok((served, called)),
        (Err(refused), Err(heard)) => Err((refused, heard)),
        (served, called) => panic!("{:?} and {:?}", served.err(), called.err()),
    }
}
