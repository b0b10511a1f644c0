//! A broker on a temporary store with a clock that tests move, two hosts and a policy.

use std::path::Path;
use std::sync::Arc;

use ephor_crypto::Secret;
use ephor_crypto::seal::SealingKey;
use ephor_crypto::x509::RevocationList;
use ephor_proto::event::AuditEvent;
use ephor_proto::grpc::v1;
use ephor_proto::http::admin::{PolicyApplied, PolicyFile};
use ephor_proto::id::{CredentialId, InstanceId, RequestId, TaskId};
use ephor_proto::log::{Receipt, VerifierKey, verify_receipt};
use ephor_proto::problem::Problem;
use ephor_proto::spiffe::TrustDomain;
use ephor_proto::state::agent::AgentState;
use ephor_proto::time::{Clock, UnixMillis};

use crate::app::{Broker, Installation, Parts};
use crate::clock::FakeClock;
use crate::fleet::{Fleet, Peer};
use crate::inforce::at_start;
use crate::keys::Keys;
use crate::ledger::{Batch, CredentialRow, HostRow, Lane, Ledger, Options, Row};
use crate::policy::Snapshot;
use crate::request::Refusal;
use crate::surface::tls::AgentCertificate;

pub(crate) const POLICY: &str = r#"
trust_domain = "prod.example"
[ttl]
default = "5m"
max = "1h"
[workload."orders/web"]
owner = "team:orders"
purpose = "Serves the order page"
runs = [{ uid = 1000 }]
[workload."billing/api"]
owner = "team:billing"
purpose = "Charges orders"
runs = [{ uid = 2000 }]
[entitlement.billing-api]
owner = "team:billing"
purpose = "Charge orders"
who = ["orders/web"]
gives = [{ jwt = { audience = "billing", claims = { plan = "gold" } } }]
[entitlement.billing-check]
owner = "team:billing"
purpose = "Check tokens for billing"
who = ["billing/api"]
gives = [{ introspect = { audience = "billing" } }]
"#;

/// The same, with tasks that end after half an hour.
pub(crate) fn with_deadline() -> String {
    POLICY.replace("max = \"1h\"", "max = \"1h\"\nservice = \"30m\"")
}

pub(crate) const ISSUER: &str = "https://broker.test";
const HOSTS: [&str; 2] = ["web-1", "web-2"];

pub(crate) struct Bench {
    pub(crate) broker: Arc<Broker>,
    pub(crate) clock: Arc<FakeClock>,
    dir: Dir,
    next: std::cell::Cell<u64>,
}

/// Where the store is; removed with it, unless it is another process's.
struct Dir {
    path: std::path::PathBuf,
    _own: Option<tempfile::TempDir>,
}

impl Dir {
    fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl From<tempfile::TempDir> for Dir {
    fn from(own: tempfile::TempDir) -> Self {
        Self {
            path: own.path().to_owned(),
            _own: Some(own),
        }
    }
}

fn instance() -> InstanceId {
    InstanceId::from_parts(1, [9; 10])
}

fn domain() -> TrustDomain {
    TrustDomain::new("prod.example").unwrap()
}

fn sealer() -> SealingKey {
    SealingKey::new(&Secret::new(vec![7; 32])).unwrap()
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::create_in(tempfile::tempdir().unwrap().into()).await
    }

    /// A new store in a directory of somebody else's, who looks at it when this process is dead.
    pub(crate) async fn create_at(path: &Path, epoch: u32) -> Self {
        let dir = Dir {
            path: path.to_owned(),
            _own: None,
        };
        let mut bench = Self::create_in(dir).await;
        bench.begin_epoch(epoch);
        bench
    }

    fn begin_epoch(&mut self, epoch: u32) {
        Arc::get_mut(&mut self.broker).unwrap().installation.epoch = epoch;
    }

    /// Another broker on a store that is there, which takes it over; `seconds` after it was made.
    pub(crate) fn take_over_at(path: &Path, seconds: u64, epoch: u32) -> Self {
        ephor_crypto::tls::install();
        let clock = FakeClock::new();
        clock.advance_millis(seconds * 1000);
        let dir = Dir {
            path: path.to_owned(),
            _own: None,
        };
        let ledger = open_with(&dir, &clock, true);
        let broker = broker_on(ledger, &clock, dir.path());
        broker.restore().unwrap();
        // As when an agent has shown that it knows the log.
        broker.confirmed();
        let mut bench = Self {
            broker,
            clock,
            dir,
            next: std::cell::Cell::new(10_000),
        };
        bench.begin_epoch(epoch);
        bench
    }

    async fn create_in(dir: Dir) -> Self {
        ephor_crypto::tls::install();
        let clock = FakeClock::new();
        Ledger::create(
            &dir.path().join("ephor.db"),
            "inst-1",
            "broker.test/log",
            "prod.example",
        )
        .unwrap();
        let ledger = open(&dir, &clock);
        let mut rows: Vec<Row> = Keys::generate(&sealer(), &domain(), "inst-1", clock.wall())
            .unwrap()
            .into_iter()
            .map(Row::Key)
            .collect();
        rows.extend(HOSTS.map(|name| Row::Host(host(name, clock.wall()))));
        let batch = Batch {
            name: "test.init",
            lane: Lane::Normal,
            require: vec![],
            rows,
            events: vec![],
        };
        ledger.submit(batch).unwrap().await.unwrap();
        let broker = broker_on(ledger, &clock, dir.path());
        broker.restore().unwrap();
        Self {
            broker,
            clock,
            dir,
            next: std::cell::Cell::new(100),
        }
    }

    pub(crate) fn database(&self) -> std::path::PathBuf {
        self.dir.path().join("ephor.db")
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The password of the broker's own login at a target.
    pub(crate) fn put_target_secret(&self, target: &str, password: &str) {
        let file = self.dir.path().join(format!("target-{target}"));
        crate::files::replace(&file, password.as_bytes(), crate::files::PRIVATE).unwrap();
    }

    /// The receipt of a closed task, as it is handed out.
    pub(crate) fn receipt(&self, task: TaskId) -> String {
        let signer = self.broker.log_signer();
        let receipt = crate::ledger::log::receipt(&self.broker.ledger.reader(), &signer, task);
        serde_json::to_string(&receipt.unwrap().unwrap()).unwrap()
    }

    pub(crate) fn put_policy(&self, text: &str) {
        let snapshot = Snapshot::from_texts(&[("ephor.toml", text)]).unwrap();
        self.broker.policy.store(Arc::new(snapshot));
    }

    /// Applies a policy as over the admin socket.
    pub(crate) async fn apply(&self, text: &str) -> Result<PolicyApplied, Refusal> {
        let file = PolicyFile {
            name: "ephor.toml".to_owned(),
            text: text.to_owned(),
        };
        self.broker
            .apply_policy(vec![file], "uid 0".to_owned(), false)
            .await
    }

    /// The same store, as after a crash and a restart.
    pub(crate) async fn reopened(self) -> Self {
        let Self {
            broker,
            clock,
            dir,
            next,
        } = self;
        broker.ledger.clone().shutdown();
        drop(broker);
        let broker = broker_on(open(&dir, &clock), &clock, dir.path());
        broker.restore().unwrap();
        Self {
            broker,
            clock,
            dir,
            next,
        }
    }

    pub(crate) fn peer(&self, host: &str) -> Peer {
        let shown = AgentCertificate::for_tests(host, [1; 32], UnixMillis::MAX);
        let member = self.broker.fleet.member(&shown).unwrap();
        self.broker
            .fleet
            .peer(member, &instance().to_bytes())
            .unwrap()
    }

    /// As after an agent showed that it has seen more than this store has.
    pub(crate) async fn fall_behind(&self) {
        let behind = crate::recover::Behind {
            since: self.clock.wall(),
            host: Some("web-1".to_owned()),
            size: self.broker.ledger.head().size,
            seen_size: 1 << 20,
            seen: String::new(),
        };
        self.broker.fell_behind(behind).await;
    }

    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// Now, and later with every call.
    fn moment(&self) -> u64 {
        self.clock.wall().as_millis() + self.number()
    }

    pub(crate) fn new_task(&self) -> TaskId {
        TaskId::from_parts(self.moment(), ephor_crypto::random::bytes().unwrap())
    }

    pub(crate) fn request(&self, task: TaskId, entitlement: &str) -> v1::IssueRequest {
        v1::IssueRequest {
            request_id: RequestId::from_parts(
                self.moment(),
                ephor_crypto::random::bytes().unwrap(),
            )
            .to_bytes()
            .to_vec(),
            task: Some(v1::Task {
                id: task.to_bytes().to_vec(),
                rule: "run".into(),
                pid: 42,
                start_time: 43,
                opened_seq: 1,
            }),
            evidence: Some(v1::Evidence {
                uid: 1000,
                pid: 42,
                start_time: 43,
                ..Default::default()
            }),
            entitlement: entitlement.to_owned(),
            ..Default::default()
        }
    }

    /// Issued on the first host.
    pub(crate) async fn issue(&self, r: v1::IssueRequest) -> Result<v1::IssueResponse, Problem> {
        self.broker.issue(&self.peer("web-1"), r).await
    }

    /// One `billing-api` token of a new task.
    pub(crate) async fn token(&self) -> (TaskId, CredentialId, String) {
        let task = self.new_task();
        let answer = self.issue(self.request(task, "billing-api")).await.unwrap();
        let (id, token) = only(&answer);
        (task, id, token)
    }

    /// The token of the service that may ask about `billing` tokens.
    pub(crate) async fn service_token(&self) -> String {
        let mut r = self.request(self.new_task(), "identity");
        r.item = ISSUER.to_owned();
        r.evidence.as_mut().unwrap().uid = 2000;
        only(&self.issue(r).await.unwrap()).1
    }

    pub(crate) async fn complete(
        &self,
        task: TaskId,
        cause: &str,
    ) -> Result<v1::CompleteResponse, Problem> {
        let r = v1::CompleteRequest {
            instance_id: instance().to_bytes().to_vec(),
            task_id: task.to_bytes().to_vec(),
            cause: cause.to_owned(),
        };
        self.broker.complete(&self.peer("web-1"), r).await
    }

    pub(crate) fn row(&self, id: CredentialId) -> CredentialRow {
        self.broker.ledger.reader().credential(id).unwrap().unwrap()
    }

    pub(crate) fn events(&self) -> Vec<AuditEvent> {
        let stored = self.broker.ledger.reader().events(0, 10_000).unwrap();
        stored
            .into_iter()
            .map(|stored| stored.event().unwrap())
            .collect()
    }

    pub(crate) fn events_of(&self, event_type: &str) -> Vec<AuditEvent> {
        self.events()
            .into_iter()
            .filter(|event| event.event_type == event_type)
            .collect()
    }

    /// Whether a token is active, asked by itself.
    pub(crate) fn is_active(&self, token: &str) -> bool {
        self.broker
            .introspect(Some(token), token)
            .unwrap()
            .is_some()
    }

    /// Whether the list that is served now has the credential's bit.
    pub(crate) async fn is_listed(&self, id: CredentialId) -> bool {
        let row = self.row(id);
        let built = self
            .broker
            .lists
            .current(row.status_list, self.clock.wall())
            .await
            .unwrap();
        built.is_revoked(row.status_index)
    }

    /// The revocation list of a certificate's credential, as a verifier reads it.
    pub(crate) async fn crl_of(&self, id: CredentialId) -> RevocationList {
        let number = self.row(id).status_list;
        let keys = &self.broker.keys;
        let built = self.broker.crls.current(number, keys).await.unwrap();
        RevocationList::verify(&built.der, &keys.load().trusted()).unwrap()
    }

    /// Checks a receipt as a stranger does and gives its event.
    pub(crate) fn verified(&self, receipt: &str) -> AuditEvent {
        let receipt: Receipt = serde_json::from_str(receipt).unwrap();
        let key: VerifierKey = self.broker.keys.load().log_vkey().parse().unwrap();
        let check = |public: &[u8; 32], message: &[u8], signature: &[u8]| {
            ephor_crypto::ed25519::verify(public, message, signature)
        };
        verify_receipt(&receipt, &key, check).unwrap().event
    }

    /// Lets time pass while agents go on speaking.
    pub(crate) fn pass_seconds(&self, seconds: u64) {
        self.clock.advance_millis(seconds * 1000);
    }
}

pub(crate) fn only(answer: &v1::IssueResponse) -> (CredentialId, String) {
    assert_eq!(answer.credentials.len(), 1);
    let credential = &answer.credentials[0];
    (
        CredentialId::from_slice(&credential.id).unwrap(),
        credential.token.clone(),
    )
}

fn open(dir: &Dir, clock: &Arc<FakeClock>) -> Ledger {
    open_with(dir, clock, false)
}

fn open_with(dir: &Dir, clock: &Arc<FakeClock>, take_over: bool) -> Ledger {
    let options = Options {
        take_over,
        reserve_path: dir.path().join("reserve"),
        clock: Arc::clone(clock) as _,
    };
    Ledger::open(&dir.path().join("ephor.db"), options).unwrap()
}

fn host(name: &str, now: UnixMillis) -> HostRow {
    HostRow {
        name: name.to_owned(),
        version: 1,
        state: AgentState::Active,
        joined_at: now,
        last_heard: Some(now),
        boot_id: "boot-1".to_owned(),
        instance: Some(instance()),
        spki_sha256: [1; 32],
        previous_spki_sha256: None,
        certificate_expires_at: UnixMillis::MAX,
        generation: 1,
        banned_at: None,
        epoch: 1,
    }
}

fn broker_on(ledger: Ledger, clock: &Arc<FakeClock>, dir: &std::path::Path) -> Arc<Broker> {
    let mut keys = Vec::new();
    for name in Keys::NAMES {
        keys.append(&mut ledger.reader().keys(name).unwrap());
    }
    let hosts = ledger.reader().hosts().unwrap();
    let installation = Installation {
        id: "inst-1".to_owned(),
        epoch: 1,
        trust_domain: domain(),
        issuer: ISSUER.to_owned(),
        lists_url: "http://lists.test".to_owned(),
        origin: "broker.test/log".to_owned(),
    };
    // What was applied last, as at a real start; a new store has the one of the tests.
    let policy = match ledger.reader().policy_in_force().unwrap() {
        Some(_) => {
            at_start("/nonexistent".as_ref(), &ledger)
                .unwrap()
                .split()
                .0
        }
        None => Snapshot::from_texts(&[("ephor.toml", POLICY)]).unwrap(),
    };
    Arc::new(
        Broker::new(Parts {
            clock: Arc::clone(clock) as _,
            policy,
            policy_dir: "/nonexistent".into(),
            keys: Keys::unseal(&sealer(), &keys, &domain(), "broker.test/log").unwrap(),
            sealer: sealer(),
            schedule: crate::keys::plan::Schedule::default(),
            retention: crate::retain::Retention::default(),
            fleet: Fleet::restore(hosts, Arc::clone(clock) as _),
            ledger,
            installation,
            paths: crate::recover::Paths {
                master_key: dir.join("master.key"),
                backups: dir.join("backup"),
            },
            target_secrets: crate::kind::targets::Secrets {
                dir: Some(dir.to_owned()),
                credentials: None,
            },
        })
        .unwrap(),
    )
}
