//! A store in a directory of its own, rows with the least that they need, and a clock that stands.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::{CredentialId, DecisionId, EventId, GrantId, InstanceId, RequestId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::stage::Stage;
use ephor_proto::state::agent::AgentState;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::grant::GrantState;
use ephor_proto::state::request::RequestState;
use ephor_proto::state::task::TaskState;
use ephor_proto::time::{Boottime, Clock, UnixMillis};

use crate::ledger::*;

pub(super) const NOW: u64 = 1_790_000_000_000;

pub(super) struct FixedClock(pub(super) AtomicU64);

impl Clock for FixedClock {
    fn wall(&self) -> UnixMillis {
        UnixMillis::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn boottime(&self) -> Boottime {
        Boottime::from_millis(1)
    }
}

pub(super) struct Store {
    pub(super) dir: tempfile::TempDir,
    pub(super) clock: Arc<FixedClock>,
}

impl Store {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Self {
            dir,
            clock: Arc::new(FixedClock(AtomicU64::new(NOW))),
        };
        Ledger::create(&store.path(), "inst-1", "ephor.test/log", "test.example").unwrap();
        store
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("ephor.db")
    }

    pub(super) fn try_open(&self, take_over: bool) -> Result<Ledger, OpenError> {
        let reserve_path = self.dir.path().join("reserve");
        Ledger::open(
            &self.path(),
            Options {
                take_over,
                reserve_path,
                clock: self.clock.clone(),
            },
        )
    }

    pub(super) fn open(&self) -> Ledger {
        self.try_open(false).unwrap()
    }

    /// A second connection, as an outsider's `sqlite3` would make.
    pub(super) fn raw(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }
}

/// 10 bytes that differ for every call, in this process and its children.
fn random() -> [u8; 10] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) | u64::from(std::process::id()) << 32;
    // Spread, so that short forms differ as real ones do.
    let spread = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&spread);
    bytes
}

macro_rules! fresh {
    ($($name:ident: $id:ident),*) => {$(
        pub(super) fn $name() -> $id {
            $id::from_parts(NOW, random())
        }
    )*};
}
fresh!(task_id: TaskId, request_id: RequestId, decision_id: DecisionId, grant_id: GrantId, credential_id: CredentialId, event_id: EventId);

pub(super) fn now() -> UnixMillis {
    UnixMillis::from_millis(NOW)
}

pub(super) fn batch(rows: Vec<Row>, events: Vec<AuditEvent>) -> Batch {
    let events = events.into_iter().map(NewEvent::from).collect();
    Batch {
        name: "test",
        lane: Lane::Normal,
        require: Vec::new(),
        rows,
        events,
    }
}

pub(super) fn revoke(rows: Vec<Row>, events: Vec<AuditEvent>) -> Batch {
    Batch {
        lane: Lane::Revoke,
        ..batch(rows, events)
    }
}

pub(super) fn event(verb: &str) -> AuditEvent {
    AuditEvent::new(
        event_id(),
        now(),
        (Stage::Issue, verb),
        Outcome::Ok,
        ("inst-1", 1),
    )
}

pub(super) fn commit(ledger: &Ledger, batch: Batch) -> Result<Committed, CommitError> {
    ledger.submit(batch).unwrap().wait()
}

pub(super) fn task(id: TaskId) -> TaskRow {
    TaskRow {
        id,
        version: 1,
        host: "web-1".to_owned(),
        subject: "spiffe://test.example/orders/web".parse().unwrap(),
        rule: "peer".to_owned(),
        pid: 4182,
        start_time: 99,
        boot_id: "boot".to_owned(),
        instance: InstanceId::from_parts(NOW, [7; 10]),
        opened_seq: 3,
        state: TaskState::Open,
        opened_at: now(),
        ended_at: None,
        closed_at: None,
        deadline: None,
    }
}

pub(super) fn host() -> HostRow {
    HostRow {
        name: "web-1".to_owned(),
        version: 1,
        state: AgentState::Active,
        joined_at: now(),
        last_heard: Some(now()),
        boot_id: "boot".to_owned(),
        instance: Some(InstanceId::from_parts(NOW, [1; 10])),
        spki_sha256: [9; 32],
        certificate_expires_at: now(),
        generation: 4,
        previous_spki_sha256: Some([6; 32]),
        banned_at: Some(UnixMillis::from_millis(7)),
        epoch: 1,
    }
}

pub(super) fn grant(id: GrantId, task: TaskId) -> GrantRow {
    let until = now().saturating_add_millis(600_000);
    GrantRow {
        id,
        version: 1,
        task,
        decision: decision_id(),
        entitlement: "billing-api".to_owned(),
        item: "billing".to_owned(),
        state: GrantState::Open { until },
        opened_at: now(),
        until,
        closed_at: None,
        alone: true,
    }
}

pub(super) fn credential(task: TaskId, index: u32) -> CredentialRow {
    CredentialRow {
        id: credential_id(),
        version: 1,
        kind: Kind::Jwt,
        task,
        host: "web-1".to_owned(),
        subject: "spiffe://test.example/orders/web".parse().unwrap(),
        entitlement: "billing-api".to_owned(),
        item: "billing".to_owned(),
        owner: "team:orders".to_owned(),
        purpose: "charge cards".to_owned(),
        request: request_id(),
        decision: decision_id(),
        rule: "orders.toml:12".to_owned(),
        grant: grant_id(),
        state: CredentialState::Live,
        issued_at: now(),
        expires_at: now().saturating_add_millis(300_000),
        capped_by: "ttl.kind.jwt".to_owned(),
        status_list: 0,
        status_index: index,
        content: "{\"aud\":\"billing\"}".to_owned(),
        cause: None,
        revoked_at: None,
        evidence: None,
        overdue: None,
        narrowed_by: None,
    }
}

pub(super) fn request(credential: &CredentialRow) -> RequestRow {
    RequestRow {
        id: credential.request,
        version: 1,
        digest: [5; 32],
        task: credential.task,
        state: RequestState::Consumed,
        decision: Some(credential.decision),
        grant: Some(credential.grant),
        credentials: vec![credential.id],
        requested_at: now(),
    }
}

pub(super) fn decision(credential: &CredentialRow) -> DecisionRow {
    DecisionRow {
        id: credential.decision,
        request: credential.request,
        task: Some(credential.task),
        allowed: true,
        code: String::new(),
        subject: credential.subject.to_string(),
        entitlement: credential.entitlement.clone(),
        item: credential.item.clone(),
        rule: credential.rule.clone(),
        policy_version: "6b1e".to_owned(),
        ttl_seconds: 300,
        capped_by: credential.capped_by.clone(),
        decided_at: now(),
    }
}

/// The rows of a first credential, in a task of its own.
pub(super) fn issue(index: u32) -> (CredentialRow, Batch) {
    let task_id = task_id();
    let credential = credential(task_id, index);
    let rows = vec![
        Row::Task(task(task_id)),
        Row::Request(request(&credential)),
        Row::Decision(decision(&credential)),
        Row::Grant(GrantRow {
            decision: credential.decision,
            alone: false,
            ..grant(credential.grant, task_id)
        }),
        Row::from(credential.clone()),
    ];
    let mut events = [event("opened"), event("allowed"), event("recorded")];
    for event in &mut events {
        event.task = Some(task_id);
    }
    events[1].request = Some(credential.request);
    events[2].request = Some(credential.request);
    (credential, batch(rows, events.to_vec()))
}

/// The same credential, revoked.
pub(super) fn revoked(credential: &CredentialRow) -> CredentialRow {
    CredentialRow {
        version: credential.version + 1,
        state: CredentialState::Revoking,
        revoked_at: Some(now()),
        ..credential.clone()
    }
}
