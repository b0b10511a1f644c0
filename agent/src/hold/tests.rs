use std::pin::Pin;

use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::TrustStore;
use ephor_crypto::x509::{Ca, Serial, Svid};
use ephor_proto::grpc::v1;
use ephor_proto::id::{CredentialId, DecisionId};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::time::UnixMillis;

use super::entry::{Beside, Now};
use super::*;
use crate::attest::{HashCache, Mode, Peer, attest};
use crate::clock::SystemClock;
use crate::journal::JournalError;
use crate::request::{Asker, BoundTask, Identity};

/// Always there.
struct Present;

impl Identity for Present {
    fn still(&self) -> Result<(), String> {
        Ok(())
    }

    fn is_open(&self) -> bool {
        true
    }

    fn journalled(&self) -> Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn evidence(&self) -> v1::Evidence {
        v1::Evidence::default()
    }

    fn known_evidence(&self) -> Option<v1::Evidence> {
        None
    }
    fn hashed_evidence(&self) -> Result<v1::Evidence, String> {
        Ok(v1::Evidence::default())
    }
    fn process(&self) -> Option<ephor_proto::task_rule::Process> {
        None
    }
}

fn fingerprint() -> Fingerprint {
    let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
    let peer = Peer::from_stream(&one, Mode::Pidfd).unwrap();
    let seen = attest(
        &peer,
        false,
        &HashCache::with_defaults(SystemClock::shared()),
    )
    .unwrap();
    seen.fingerprint().clone()
}

fn task(n: u8) -> TaskId {
    TaskId::from_parts(u64::from(n), [n; 10])
}

pub(crate) fn key(item: &str) -> Arc<Key> {
    Arc::new(Key {
        fingerprint: fingerprint(),
        entitlement: "identity".into(),
        item: item.into(),
        reason: "".into(),
        ttl_seconds: None,
        subject: "".into(),
        request: None,
    })
}

fn now(millis: u64) -> Now {
    Now {
        wall: UnixMillis::from_millis(1_000_000_000 + millis),
        boot: Boottime::from_millis(millis),
    }
}

/// A database login, issued at boot time 0 for 300 s; `renews` is what it extends.
pub(crate) fn held_login(renews: Option<&Held>) -> Held {
    let login = v1::Login {
        target: "orders".into(),
        host: "db1".into(),
        port: 5432,
        database: "orders".into(),
        user: "eph_orders_x".into(),
        password: "hunter2".into(),
        sslmode: "verify-full".into(),
        group: "orders_rw".into(),
        ..v1::Login::default()
    };
    let id = CredentialId::from_parts(1, [9; 10]).to_bytes().to_vec();
    let answer = v1::IssueResponse {
        request_id: RequestId::from_parts(1, [1; 10]).to_bytes().to_vec(),
        decision_id: DecisionId::from_parts(1, [1; 10]).to_bytes().to_vec(),
        subject: "spiffe://td/x".into(),
        credentials: vec![v1::Credential {
            id,
            kind: "postgres".into(),
            issued_at: 1_000_000_000,
            expires_at: 1_000_300_000,
            refresh_at: 1_000_200_000,
            capped_by: "ttl.default".into(),
            login: renews.is_none().then_some(login),
            ..v1::Credential::default()
        }],
        ..Default::default()
    };
    let asker = Arc::clone(&held(1, 1).asker);
    Held::new(answer, asker, (None, renews), (now(0), now(5)))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Issued at boot time 0 for 300 s.
fn held(n: u8, credentials: u8) -> Arc<Held> {
    let task = BoundTask {
        id: task(n),
        rule: "peer",
        pid: 1,
        start_time: 1,
        opened_seq: 1,
    };
    let asker = Arc::new(Asker {
        task,
        fingerprint: fingerprint(),
        identity: Box::new(Present),
    });
    let credential = |c: u8| v1::Credential {
        id: CredentialId::from_parts(u64::from(c), [c; 10])
            .to_bytes()
            .to_vec(),
        kind: "jwt".into(),
        issued_at: 1_000_000_000,
        expires_at: 1_000_300_000,
        refresh_at: 1_000_200_000,
        capped_by: "ttl.default".into(),
        token: format!("secret-\"{c}\"-"),
        audience: "a".into(),
        certificate_chain_der: Vec::new(),
        login: None,
    };
    let answer = v1::IssueResponse {
        request_id: RequestId::from_parts(1, [1; 10]).to_bytes().to_vec(),
        decision_id: DecisionId::from_parts(1, [1; 10]).to_bytes().to_vec(),
        subject: "spiffe://td/x".into(),
        credentials: (0..credentials).map(credential).collect(),
        ..Default::default()
    };
    let held = Held::new(answer, asker, (None, None), (now(0), now(5)));
    Arc::new(held.unwrap_or_else(|error| panic!("{error}")))
}

fn problem() -> Problem {
    Problem::new(
        Code::TaskEnded,
        ephor_proto::id::CorrelationId::from_parts(1, [1; 10]),
        "over",
    )
}

fn lead(hold: &Hold, n: u8, key: &Arc<Key>) -> (Lead, watch::Receiver<Option<Outcome>>) {
    match hold.enter(task(n), key, Boottime::from_millis(0)) {
        Found::Lead(lead, outcome) => (lead, outcome),
        Found::Held(_) | Found::Flying(_) | Found::Ended | Found::Full => panic!("no lead"),
    }
}

fn is_flying(found: &Found) -> bool {
    matches!(found, Found::Flying(_))
}

#[test]
fn lives_end_by_the_smaller_bound() {
    let of = |issued: u64, sent: Now, now: Now| {
        let at = |offset: u64| UnixMillis::from_millis(issued + offset);
        Lifetime::of(at(0), at(200_000), at(300_000), sent, now)
    };
    // Clocks agree: exact, and a slow answer does not lengthen it.
    assert_eq!(of(1_000_000_000, now(0), now(0)).end.as_millis(), 300_000);
    assert_eq!(
        of(1_000_000_000, now(0), now(4_000)).end.as_millis(),
        300_000
    );
    // The broker's whole second lies 900 ms back: the wall-clock end is the earlier one.
    assert_eq!(of(999_999_100, now(0), now(10)).end.as_millis(), 299_100);
    // The host is a day wrong, either way: by life, one second less.
    for issued in [1_000_000_000 - 86_400_000, 1_000_000_000 + 86_400_000] {
        let life = of(issued, now(500), now(600));
        assert_eq!(
            (life.end.as_millis(), life.refresh.as_millis()),
            (299_500, 200_500)
        );
    }
}

#[test]
fn equal_requests_share_a_flight_and_then_the_credential() {
    let (hold, key) = (Hold::default(), key("a"));
    let (first, outcome) = lead(&hold, 1, &key);
    assert!(is_flying(&hold.enter(
        task(1),
        &key,
        Boottime::from_millis(0)
    )));
    assert!(
        matches!(
            hold.enter(task(2), &key, Boottime::from_millis(0)),
            Found::Lead(..)
        ),
        "another task is another"
    );
    let credential = held(1, 1);
    assert!(first.land(Arc::clone(&credential), problem));
    assert!(matches!(&*outcome.borrow(), Some(Ok(landed)) if Arc::ptr_eq(landed, &credential)));
    assert!(
        hold.serve(task(1), key.view(), Boottime::from_millis(299_999))
            .is_some()
    );
    assert!(
        hold.serve(task(1), key.view(), Boottime::from_millis(300_000))
            .is_none(),
        "never at its end"
    );
    let mut other = self::key("a");
    Arc::get_mut(&mut other).unwrap().ttl_seconds = Some(1);
    assert!(
        hold.serve(task(1), other.view(), Boottime::from_millis(0))
            .is_none()
    );
    assert!(
        matches!(
            hold.enter(task(1), &key, Boottime::from_millis(300_000)),
            Found::Lead(..)
        ),
        "asked for anew"
    );
}

#[test]
fn a_failed_or_dropped_lead_leaves_room_for_the_next() {
    let (hold, key) = (Hold::default(), key("a"));
    let (first, outcome) = lead(&hold, 1, &key);
    first.fail(problem());
    assert!(matches!(&*outcome.borrow(), Some(Err(refused)) if refused.code == Code::TaskEnded));
    let (second, outcome) = lead(&hold, 1, &key);
    drop(second);
    assert!(outcome.has_changed().is_err(), "closed");
    let _third = lead(&hold, 1, &key);
}

#[test]
fn a_wipe_is_for_good_and_counts_every_copy() {
    let (hold, key) = (Hold::default(), key("a"));
    assert!(lead(&hold, 1, &key).0.land(held(1, 2), problem));
    let other = self::key("b");
    let (late, outcome) = lead(&hold, 1, &other);
    let bytes = hold
        .serve(task(1), key.view(), Boottime::from_millis(0))
        .unwrap()
        .full()
        .unwrap();
    let weak = Arc::downgrade(
        &hold
            .serve(task(1), key.view(), Boottime::from_millis(0))
            .unwrap(),
    );
    assert_eq!(hold.wipe(task(1)), 2);
    assert!(weak.upgrade().is_none(), "nobody keeps it");
    assert!(!bytes.is_empty(), "an answer being written is still whole");
    assert_eq!(hold.wipe(task(1)), 0);
    assert!(
        !late.land(held(1, 1), problem),
        "what comes late finds no place"
    );
    assert!(matches!(&*outcome.borrow(), Some(Err(_))));
    assert!(matches!(
        hold.enter(task(1), &key, Boottime::from_millis(0)),
        Found::Ended
    ));
    assert_eq!(hold.wipe(task(9)), 0);
    assert!(
        matches!(
            hold.enter(task(9), &key, Boottime::from_millis(0)),
            Found::Ended
        ),
        "even when nothing was held"
    );
}

#[test]
fn one_credential_can_be_wiped_or_replaced() {
    let (hold, key) = (Hold::default(), key("a"));
    let old = held(1, 1);
    assert!(lead(&hold, 1, &key).0.land(Arc::clone(&old), problem));
    let new = held(1, 1);
    assert!(hold.replace(task(1), &old, Arc::clone(&new)));
    assert!(
        !hold.replace(task(1), &old, held(1, 1)),
        "only what is there is replaced"
    );
    assert_eq!(
        hold.wipe_credential(task(1), CredentialId::from_parts(7, [7; 10])),
        0
    );
    assert_eq!(hold.wipe_credential(task(1), new.credentials[0].id), 1);
    assert!(hold.list(task(1), Boottime::from_millis(0)).is_empty());
}

#[test]
fn a_task_holds_only_so_many() {
    let hold = Hold::default();
    let mut leads = Vec::new();
    for n in 0..limits::CREDENTIALS_PER_TASK {
        let key = key(&n.to_string());
        leads.push(lead(&hold, 1, &key));
    }
    let key = key("one more");
    assert!(matches!(
        hold.enter(task(1), &key, Boottime::from_millis(0)),
        Found::Full
    ));
    leads.clear();
    let _room = lead(&hold, 1, &key);
    assert_eq!(
        hold.inner.held.load(Ordering::Relaxed),
        1,
        "the count of all is right again"
    );
}

#[test]
fn bodies_are_json_and_made_once() {
    let one = held(1, 1);
    let flat: ephor_proto::http::agent::Token =
        serde_json::from_slice(&one.flat().unwrap().unwrap()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(flat.credential.token.as_deref(), Some("secret-\"0\"-"));
    let (first, second) = (one.full().unwrap(), one.full().unwrap());
    assert_eq!(first.as_ptr(), second.as_ptr());
    let two = held(1, 2);
    assert!(two.flat().unwrap().is_none());
    assert_eq!(two.copies(), 2);
    let full: ephor_proto::http::agent::Credentials =
        serde_json::from_slice(&two.full().unwrap()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(full.credentials.len(), 2);
}

#[test]
fn a_certificate_is_handed_out_with_the_cas_of_that_moment() {
    let ca = || Ca::create("Test", "td", 1_700_000_000, 4_000_000_000).unwrap();
    let (first, second) = (ca(), ca());
    let trust = Arc::new(TrustStore::new(vec![first.certificate().clone()]));
    let beside = Beside {
        key: Arc::new(SigningKey::generate().unwrap()),
        trust: Arc::clone(&trust),
    };
    let svid = Svid {
        spiffe_id: "spiffe://td/x",
        dns: &[],
        crl: "http://lists.test/crl/0",
        serial: &Serial::new(&[1]).unwrap(),
        not_before: 1_800_000_000,
        not_after: 1_800_000_300,
    };
    let spki = beside.key.public_key().spki();
    let given = v1::Credential {
        id: CredentialId::from_parts(1, [1; 10]).to_bytes().to_vec(),
        kind: "x509".into(),
        certificate_chain_der: vec![first.issue_svid(&svid, &spki).unwrap()],
        ..Default::default()
    };
    let answer = v1::IssueResponse {
        request_id: RequestId::from_parts(1, [1; 10]).to_bytes().to_vec(),
        decision_id: DecisionId::from_parts(1, [1; 10]).to_bytes().to_vec(),
        credentials: vec![given],
        ..Default::default()
    };
    let asker = Arc::clone(&held(1, 1).asker);
    let held = Held::new(answer, asker, (Some(&beside), None), (now(0), now(5)));
    let held = held.unwrap_or_else(|error| panic!("{error}"));
    let bundle = || {
        let flat = held.flat().unwrap().unwrap();
        let flat: ephor_proto::http::agent::Token =
            serde_json::from_slice(&flat).unwrap_or_else(|e| panic!("{e}"));
        flat.credential.certificate.unwrap().bundle
    };
    assert_eq!(bundle(), first.certificate().pem());
    let both = vec![first.certificate().clone(), second.certificate().clone()];
    trust.replace(both);
    assert_eq!(
        bundle(),
        first.certificate().pem() + &second.certificate().pem()
    );
}
