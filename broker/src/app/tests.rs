#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::time::Duration;

use ephor_proto::problem::Code;
use tempfile::TempDir;

use super::*;
use crate::clock::FakeClock;
use crate::keys::tests::sealer;
use crate::ledger::{Batch, Lane, Options, Row};

pub(crate) const POLICY: &str = r#"
trust_domain = "test.example"
[ttl]
default = "5m"
max = "1h"
task = "12h"
service = "none"
"#;

/// A whole broker without listeners, on a clock that stands still.
pub(crate) struct TestBroker {
    pub(crate) broker: Arc<Broker>,
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) dir: TempDir,
}

impl TestBroker {
    /// A new installation with this policy.
    pub(crate) async fn with_policy(policy: &str) -> Self {
        ephor_crypto::tls::install();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("policy")).unwrap();
        std::fs::write(dir.path().join("policy/ephor.toml"), policy).unwrap();
        let database = dir.path().join("ephor.db");
        Ledger::create(
            &database,
            "inst0001",
            "test.example/inst0001",
            "test.example",
        )
        .unwrap();
        let clock = FakeClock::new();
        let domain = TrustDomain::new("test.example").unwrap();
        let rows = Keys::generate(&sealer(1), &domain, "inst0001", now(&clock)).unwrap();
        let broker = open(dir.path(), &clock);
        let rows = rows.into_iter().map(Row::Key).collect();
        write(&broker, rows).await;
        broker.shutdown();
        let ledger = open(dir.path(), &clock);
        Self {
            broker: assemble(ledger, dir.path(), &clock),
            clock,
            dir,
        }
    }

    pub(crate) async fn new() -> Self {
        Self::with_policy(POLICY).await
    }

    /// Stops it and starts it again, `away` later.
    pub(crate) async fn restart(self, away: Duration) -> Self {
        assert!(self.broker.tasks.shutdown(Duration::from_secs(30)).await);
        self.broker.ledger.clone().shutdown();
        drop(self.broker);
        self.clock
            .advance_millis(u64::try_from(away.as_millis()).unwrap());
        let ledger = open(self.dir.path(), &self.clock);
        let broker = assemble(ledger, self.dir.path(), &self.clock);
        Self {
            broker,
            clock: self.clock,
            dir: self.dir,
        }
    }

    /// Writes rows with neither precondition nor event.
    pub(crate) async fn write(&self, rows: Vec<Row>) {
        write(&self.broker.ledger, rows).await;
    }
}

fn now(clock: &Arc<FakeClock>) -> UnixMillis {
    ephor_proto::time::Clock::wall(clock.as_ref())
}

fn open(dir: &Path, clock: &Arc<FakeClock>) -> Ledger {
    let options = Options {
        take_over: false,
        reserve_path: dir.join("reserve"),
        clock: clock.clone() as SharedClock,
    };
    Ledger::open(&dir.join("ephor.db"), options).unwrap()
}

async fn write(ledger: &Ledger, rows: Vec<Row>) {
    let batch = Batch {
        name: "test",
        lane: Lane::Normal,
        require: Vec::new(),
        rows,
        events: Vec::new(),
    };
    ledger.submit(batch).unwrap().await.unwrap();
}

fn assemble(ledger: Ledger, dir: &Path, clock: &Arc<FakeClock>) -> Arc<Broker> {
    let policy = Snapshot::load(&dir.join("policy")).unwrap();
    let stored = ledger.installation().clone();
    let trust_domain = policy.trust_domain().clone();
    let rows = crate::keys::rotate::stored_keys(&ledger).unwrap();
    let keys = Keys::unseal(&sealer(1), &rows, &trust_domain, &stored.origin).unwrap();
    let clock = clock.clone() as SharedClock;
    let fleet = Fleet::restore(ledger.reader().hosts().unwrap(), Arc::clone(&clock));
    let installation = Installation {
        id: stored.id,
        epoch: stored.epoch,
        trust_domain,
        issuer: "https://broker.test.example".to_owned(),
        lists_url: "http://broker.test.example".to_owned(),
        origin: stored.origin,
    };
    let broker = Arc::new(
        Broker::new(Parts {
            clock,
            ledger,
            policy,
            policy_dir: dir.join("policy"),
            keys,
            sealer: sealer(1),
            schedule: crate::keys::plan::Schedule::default(),
            retention: crate::retain::Retention::default(),
            fleet,
            installation,
            paths: crate::recover::Paths {
                master_key: dir.join("master.key"),
                backups: dir.join("backup"),
            },
            target_secrets: Default::default(),
        })
        .unwrap(),
    );
    broker.restore().unwrap();
    broker
}

fn config(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broker.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file), crate::config::Settings::default()).unwrap()
}

#[test]
fn urls_name_what_others_can_reach() {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let none = config("");
    assert_eq!(public_host(&none, at("127.0.0.1:1234")), "127.0.0.1:1234");
    assert_eq!(public_host(&none, at("0.0.0.0:1234")), "localhost:1234");
    assert_eq!(public_host(&none, at("[::1]:1234")), "[::1]:1234");
    assert_eq!(
        public_host(
            &config("server_names = ['a.example', 'b']"),
            at("0.0.0.0:1")
        ),
        "a.example:1"
    );
    assert_eq!(
        public_host(&config("server_names = ['2001:db8::1']"), at("0.0.0.0:1")),
        "[2001:db8::1]:1"
    );
}

#[tokio::test]
async fn a_restart_keeps_keys_and_log() {
    let before = TestBroker::new().await;
    before.broker.invite("web-*", None).await.unwrap();
    let keys = before.broker.keys.load_full();
    let head = before.broker.ledger.head();
    let after = before.restart(Duration::from_secs(5)).await;
    assert_eq!(after.broker.keys.load().ca().sha256(), keys.ca().sha256());
    assert_eq!(after.broker.keys.load().token_public(), keys.token_public());
    assert_eq!(after.broker.keys.load().log_vkey(), keys.log_vkey());
    assert_eq!(after.broker.ledger.head(), head);
}

#[tokio::test]
async fn a_clock_step_stops_issuing_and_its_correction_resumes() {
    let test = TestBroker::new().await;
    test.clock.step_wall_millis(7_200_000);
    assert_eq!(test.broker.may_issue().unwrap_err().code, Code::ClockStep);
    assert!(test.broker.invite("web-*", None).await.is_err());
    test.clock.step_wall_millis(-7_200_000);
    assert!(test.broker.may_issue().is_ok());
}

#[tokio::test]
async fn a_log_that_went_back_is_noticed_and_stops_issuing() {
    let test = TestBroker::new().await;
    test.broker.invite("web-*", None).await.unwrap();
    let seen = test.broker.newest_checkpoint().unwrap();
    test.broker.compare_with_seen("web-1", "").await.unwrap();
    test.broker.compare_with_seen("web-1", &seen).await.unwrap();
    test.broker.invite("web-*", None).await.unwrap();
    test.broker.compare_with_seen("web-1", &seen).await.unwrap();
    assert!(
        test.broker.may_issue().is_ok(),
        "an older checkpoint is a prefix"
    );
    let newer = test.broker.newest_checkpoint().unwrap();

    // The same installation from a copy made before: same keys, fewer events.
    let copy = TestBroker::new().await;
    assert_eq!(
        copy.broker
            .compare_with_seen("web-1", &newer)
            .await
            .unwrap_err()
            .code,
        Code::InvalidRequest
    );
    let keys = crate::keys::rotate::stored_keys(&test.broker.ledger).unwrap();
    copy.write(keys.into_iter().map(Row::Key).collect()).await;
    let copy = copy.restart(Duration::from_secs(1)).await;
    assert!(copy.broker.may_issue().is_ok());
    let refused = copy.broker.compare_with_seen("web-1", &newer).await;
    assert_eq!(refused.unwrap_err().code, Code::LogRewound);
    assert_eq!(copy.broker.may_issue().unwrap_err().code, Code::LogRewound);
    let refused = copy.broker.compare_with_seen("web-1", "no note").await;
    assert_eq!(refused.unwrap_err().code, Code::InvalidRequest);
    assert!(
        copy.broker.newest_checkpoint().is_err(),
        "no second head of one size"
    );

    // A restart does not end it, and nothing is swept.
    let size = copy.broker.ledger.head().size;
    let copy = copy.restart(Duration::from_secs(3600)).await;
    assert_eq!(copy.broker.may_issue().unwrap_err().code, Code::LogRewound);
    assert!(!copy.broker.may_sweep());
    let behind = copy.broker.behind().unwrap();
    assert_eq!(
        (behind.host.as_deref(), behind.size),
        (Some("web-1"), size - 1)
    );
}
