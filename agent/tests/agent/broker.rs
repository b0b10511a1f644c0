//! A broker that does what a test tells it, behind an in-memory stream.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ephor_agent::uplink::connect::{Connect, ConnectError, Connecting, Wire};
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Ca, Serial, Svid, verify_csr};
use ephor_proto::grpc::v1::enrolment_server::Enrolment;
use ephor_proto::grpc::v1::uplink_server::{Uplink, UplinkServer};
use ephor_proto::grpc::{PROBLEM_METADATA, VERSION, v1};
use ephor_proto::id::{CorrelationId, CredentialId, DecisionId};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::time::Clock;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

/// What was asked so far, and how to answer.
pub struct State {
    pub hellos: Vec<v1::HelloRequest>,
    pub heartbeats: Vec<v1::HeartbeatRequest>,
    pub issues: Vec<v1::IssueRequest>,
    pub completes: Vec<v1::CompleteRequest>,
    pub confirmed: Vec<Vec<u8>>,
    /// Answers so many confirmations with this first.
    pub refuse_confirm: Option<(u32, Code)>,
    /// Entitlements that give a login.
    pub logins: Vec<&'static str>,
    /// Entitlements that give a token beside it.
    pub with_token: Vec<&'static str>,
    pub refuse_issue: Option<Code>,
    /// Answers hello and heartbeats with this.
    pub refuse_agent: Option<Code>,
    /// Calls on the first connection that were refused, because its certificate was replaced.
    pub replaced: Option<u32>,
    pub want_hash: bool,
    /// Entitlements that give a certificate; asked for without a key, they are refused.
    pub certificates: Vec<&'static str>,
    /// Signs certificates for another key than the one that was sent.
    pub wrong_key: bool,
    pub ttl_millis: u64,
    pub closed: Vec<Vec<u8>>,
    pub checkpoint: String,
    pub log_key: String,
    pub ca_bundle: Option<v1::CaBundle>,
    pub version: v1::Version,
    pub renewed: Vec<Vec<u8>>,
    pub joins: Vec<v1::JoinRequest>,
    pub certificate_seconds: i64,
    pushes: Vec<mpsc::Sender<Result<v1::Push, Status>>>,
}

/// Shared by the test and the connections.
#[derive(Clone)]
pub struct Broker {
    state: Arc<Mutex<State>>,
    /// Each issue takes one permit.
    pub gate: Arc<Semaphore>,
    /// Each complete takes one, before it is answered.
    pub end_gate: Arc<Semaphore>,
    up: Arc<AtomicBool>,
    serial: Arc<AtomicU64>,
    generation: watch::Sender<CancellationToken>,
    /// Only where there is TLS.
    pub ca: Option<Arc<Ca>>,
}

impl Broker {
    pub fn new() -> Self {
        let state = State {
            hellos: Vec::new(),
            heartbeats: Vec::new(),
            issues: Vec::new(),
            completes: Vec::new(),
            confirmed: Vec::new(),
            refuse_confirm: None,
            logins: Vec::new(),
            with_token: Vec::new(),
            refuse_issue: None,
            refuse_agent: None,
            replaced: None,
            want_hash: false,
            certificates: vec!["identity"],
            wrong_key: false,
            ttl_millis: 300_000,
            closed: Vec::new(),
            checkpoint: String::new(),
            log_key: String::new(),
            ca_bundle: None,
            version: VERSION,
            renewed: Vec::new(),
            joins: Vec::new(),
            certificate_seconds: 86_400,
            pushes: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            gate: Arc::new(Semaphore::new(1000)),
            end_gate: Arc::new(Semaphore::new(1000)),
            up: Arc::new(AtomicBool::new(true)),
            serial: Arc::default(),
            generation: watch::Sender::new(CancellationToken::new()),
            ca: None,
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Cuts every connection and takes no new one.
    pub fn go_away(&self) {
        self.up.store(false, Ordering::SeqCst);
        self.generation
            .send_replace(CancellationToken::new())
            .cancel();
        self.state().pushes.clear();
    }

    pub fn come_back(&self) {
        self.up.store(true, Ordering::SeqCst);
    }

    pub async fn push(&self, what: v1::push::What) {
        let pushes = self.state().pushes.clone();
        for push in pushes {
            let _ = push
                .send(Ok(v1::Push {
                    what: Some(what.clone()),
                }))
                .await;
        }
    }

    pub fn is_watched(&self) -> bool {
        self.state().pushes.iter().any(|push| !push.is_closed())
    }

    fn problem(&self, code: Code) -> Problem {
        let correlation = CorrelationId::from_parts(1, [9; 10]);
        Problem::new(code, correlation, "the broker says no")
            .with_decision(DecisionId::from_parts(1, [3; 10]))
    }

    fn refusal(&self, code: Code) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(
            PROBLEM_METADATA,
            MetadataValue::from_bytes(&serde_json::to_vec(&self.problem(code)).unwrap()),
        );
        Status::with_metadata(tonic::Code::PermissionDenied, "refused", metadata)
    }

    async fn issue_one(&self, request: v1::IssueRequest) -> Result<v1::IssueResponse, Code> {
        let ttl_millis = {
            let mut state = self.state();
            state.issues.push(request.clone());
            let hash = request
                .evidence
                .as_ref()
                .map_or(0, |evidence| evidence.exe_sha256.len());
            if state.want_hash && hash != 32 {
                return Err(Code::EvidenceNeeded);
            }
            if let Some(code) = state.refuse_issue {
                return Err(code);
            }
            let gives = state.certificates.contains(&request.entitlement.as_str());
            if gives && request.item.is_empty() && request.public_key_der.is_empty() {
                return Err(Code::KeyNeeded);
            }
            state.ttl_millis
        };
        self.gate.acquire().await.unwrap().forget();
        Ok(v1::IssueResponse {
            request_id: request.request_id.clone(),
            decision_id: DecisionId::from_parts(1, [3; 10]).to_bytes().to_vec(),
            subject: "spiffe://td.test/tests".into(),
            owner: "team:tests".into(),
            rule: "tests.toml:1".into(),
            credentials: self.credentials(&request, ttl_millis),
            attest_microseconds: 1_040,
            decide_microseconds: 80,
            issue_microseconds: 4_200,
        })
    }

    /// One, or a login and a token; a renewal is of one.
    fn credentials(&self, request: &v1::IssueRequest, ttl_millis: u64) -> Vec<v1::Credential> {
        let is_in = |list: &[&'static str]| list.contains(&request.entitlement.as_str());
        let (login, both) = {
            let state = self.state();
            (is_in(&state.logins), is_in(&state.with_token))
        };
        let first = self.credential(request, ttl_millis);
        if !login {
            return vec![first];
        }
        // Ids of logins are odd here, so that a renewal tells which it is.
        let number = first.token.trim_start_matches("token-").to_owned();
        let is_login = request.renews.is_empty() || request.renews.last() == Some(&0xdb);
        let mut login = first.clone();
        if let Some(last) = login.id.last_mut().filter(|_| request.renews.is_empty()) {
            *last = 0xdb;
        }
        login.kind = "postgres".into();
        login.token.clear();
        login.login = request.renews.is_empty().then(|| v1::Login {
            target: "orders".into(),
            host: "db1".into(),
            port: 5432,
            database: "orders".into(),
            user: format!("eph_orders_{number}"),
            password: format!("password-{number}"),
            sslmode: "verify-full".into(),
            sslrootcert: String::new(),
            group: "orders_rw".into(),
            ..v1::Login::default()
        });
        match (request.renews.is_empty(), is_login, both) {
            (true, _, true) => vec![login, self.credential(request, ttl_millis)],
            (false, false, _) => vec![first],
            (true, _, false) | (false, true, _) => vec![login],
        }
    }

    fn credential(&self, request: &v1::IssueRequest, ttl_millis: u64) -> v1::Credential {
        let number = self.serial.fetch_add(1, Ordering::SeqCst);
        let now = ephor_agent::clock::SystemClock.wall().as_millis();
        let fresh = CredentialId::from_parts(
            now,
            number.to_be_bytes().repeat(2)[..10].try_into().unwrap(),
        );
        let id = if request.renews.is_empty() {
            fresh.to_bytes().to_vec()
        } else {
            request.renews.clone()
        };
        let chain = self.chain(&request.public_key_der, number, now);
        v1::Credential {
            id,
            kind: if chain.is_empty() { "jwt" } else { "x509" }.into(),
            issued_at: now,
            expires_at: now + ttl_millis,
            refresh_at: now + ttl_millis * 2 / 3,
            capped_by: "ttl.default".into(),
            token: format!("token-{number}"),
            audience: request.item.clone(),
            certificate_chain_der: chain,
            login: None,
        }
    }

    fn chain(&self, spki: &[u8], number: u64, now: u64) -> Vec<Vec<u8>> {
        let Some(ca) = self.ca.as_ref().filter(|_| !spki.is_empty()) else {
            return Vec::new();
        };
        let other = SigningKey::generate().unwrap().public_key().spki();
        let svid = Svid {
            spiffe_id: "spiffe://td.test/tests",
            dns: &[],
            crl: "http://lists.test/crl/0",
            serial: &Serial::new(&(number + 1).to_be_bytes()).unwrap(),
            not_before: i64::try_from(now / 1000).unwrap() - 30,
            not_after: i64::try_from(now / 1000).unwrap() + 300,
        };
        let spki = if self.state().wrong_key {
            &other[..]
        } else {
            spki
        };
        vec![ca.issue_svid(&svid, spki).unwrap()]
    }
}

#[tonic::async_trait]
impl Uplink for Broker {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloResponse>, Status> {
        let mut state = self.state();
        state.hellos.push(request.into_inner());
        if let Some(code) = state.refuse_agent {
            return Err(self.refusal(code));
        }
        Ok(Response::new(v1::HelloResponse {
            version: Some(state.version),
            trust_domain: "td.test".into(),
            installation: "one".into(),
            issuer: "https://broker".into(),
            heartbeat_milliseconds: 50,
            log_key: state.log_key.clone(),
            renew_identity_at: 0,
            ca_bundle: state.ca_bundle.clone(),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let mut state = self.state();
        state.heartbeats.push(request.into_inner());
        if let Some(code) = state.refuse_agent {
            return Err(self.refusal(code));
        }
        let answer = v1::HeartbeatResponse {
            closed_tasks: state.closed.clone(),
            policy_version: "p".into(),
            checkpoint: state.checkpoint.clone(),
            ca_bundle: state.ca_bundle.clone(),
        };
        Ok(Response::new(answer))
    }

    async fn whoami(
        &self,
        _request: Request<v1::WhoamiRequest>,
    ) -> Result<Response<v1::WhoamiResponse>, Status> {
        Ok(Response::new(v1::WhoamiResponse {
            subjects: vec!["spiffe://td.test/tests".into()],
            policy_version: "p".into(),
        }))
    }

    async fn issue(
        &self,
        request: Request<v1::IssueBatch>,
    ) -> Result<Response<v1::IssueOutcomes>, Status> {
        use v1::issue_outcome::Outcome;
        {
            let mut state = self.state();
            let is_first = state.hellos.len() == 1;
            if let Some(refused) = state.replaced.as_mut().filter(|_| is_first) {
                *refused += 1;
                return Err(self.refusal(Code::Unauthenticated));
            }
        }
        let requests = request.into_inner().requests;
        let outcomes = requests.into_iter().map(async |request| {
            let outcome = match self.issue_one(request).await {
                Ok(issued) => Outcome::Issued(issued),
                Err(code) => Outcome::Refused(serde_json::to_vec(&self.problem(code)).unwrap()),
            };
            v1::IssueOutcome {
                outcome: Some(outcome),
            }
        });
        let outcomes = futures_util::future::join_all(outcomes).await;
        Ok(Response::new(v1::IssueOutcomes { outcomes }))
    }

    async fn confirm(
        &self,
        request: Request<v1::ConfirmRequest>,
    ) -> Result<Response<v1::ConfirmResponse>, Status> {
        let mut state = self.state();
        if let Some((left @ 1.., code)) = state.refuse_confirm {
            state.refuse_confirm = Some((left - 1, code));
            return Err(self.refusal(code));
        }
        state.confirmed.extend(request.into_inner().credential_ids);
        Ok(Response::new(v1::ConfirmResponse {}))
    }

    async fn complete(
        &self,
        request: Request<v1::CompleteRequest>,
    ) -> Result<Response<v1::CompleteResponse>, Status> {
        self.state().completes.push(request.into_inner());
        self.end_gate.acquire().await.unwrap().forget();
        let receipt = r#"{"leaf":"proven"}"#.into();
        Ok(Response::new(v1::CompleteResponse {
            receipt,
            dead: 0,
            listed: 1,
            listed_until: 5,
            revoke_microseconds: 1,
        }))
    }

    type WatchStream = ReceiverStream<Result<v1::Push, Status>>;

    async fn watch(
        &self,
        _request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        self.state().pushes.push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew_identity(
        &self,
        request: Request<v1::RenewIdentityRequest>,
    ) -> Result<Response<v1::RenewIdentityResponse>, Status> {
        let ca = self
            .ca
            .as_ref()
            .ok_or_else(|| Status::unimplemented("not here"))?;
        let public_key = request.into_inner().public_key_der;
        self.state().renewed.push(public_key.clone());
        Ok(Response::new(v1::RenewIdentityResponse {
            certificate_der: crate::join::agent_certificate(ca, &public_key, 86_400),
            ca_certificates_der: vec![ca.certificate().der().to_vec()],
        }))
    }
}

#[tonic::async_trait]
impl Enrolment for Broker {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let ca = self
            .ca
            .as_ref()
            .ok_or_else(|| Status::unimplemented("not here"))?;
        self.state().joins.push(request.clone());
        if request.host == "refused" {
            return Err(self.refusal(Code::JoinRefused));
        }
        let public = verify_csr(&request.csr_der)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let seconds = self.state().certificate_seconds;
        Ok(Response::new(v1::JoinResponse {
            certificate_der: crate::join::agent_certificate(ca, &public.spki(), seconds),
            ca_certificates_der: vec![ca.certificate().der().to_vec()],
            trust_domain: "td.test".into(),
            installation: "one".into(),
        }))
    }
}

impl Connect for Broker {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            if !self.up.load(Ordering::SeqCst) {
                return Err(ConnectError::Timeout {
                    address: "memory".into(),
                    seconds: 0,
                });
            }
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let service = TowerToHyperService::new(UplinkServer::new(self.clone()));
            let cut = self.generation.borrow().clone();
            #[allow(clippy::disallowed_methods, reason = "the other side, not the agent")]
            tokio::spawn(async move {
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let connection = connection.serve_connection(TokioIo::new(theirs), service);
                tokio::select! {
                    _ = connection => {}
                    () = cut.cancelled() => {}
                }
            });
            Ok(Box::new(ours) as Box<dyn Wire>)
        })
    }
}
