//! A log as a broker would keep it, with a tree by RFC 6962's definition: a second opinion on the
//! verifier's own. It may lie where a test says so.

use ephor_crypto::ed25519::LogKey;
use ephor_proto::event::{AuditEvent, CredentialPart, Evidence, Outcome, Totals};
use ephor_proto::id::{CredentialId, EventId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::log::{Checkpoint, Receipt, SignedNote, TILE_WIDTH, VerifierKey};
use ephor_proto::log::{bundle_entry, leaf_hash, node_hash};
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::UnixMillis;

use super::super::export::Origin;
use crate::exit::Failure;

pub(super) const NAME: &str = "log.example.org";

/// Log, key and receipts.
pub(super) struct Synthetic {
    pub(super) leaves: Vec<Vec<u8>>,
    pub(super) receipts: Vec<(TaskId, usize)>,
    /// Size of the head that is published; the tree may have grown since.
    pub(super) published: usize,
    /// The first so many leaves have no text any more.
    pub(super) pruned: usize,
    key: LogKey,
}

impl Synthetic {
    pub(super) fn new() -> Self {
        Self {
            leaves: Vec::new(),
            receipts: Vec::new(),
            published: 0,
            pruned: 0,
            key: LogKey::generate().unwrap(),
        }
    }

    /// So many leaves: every now and then all leaves of a task, others between.
    pub(super) fn of(size: usize) -> Self {
        let mut log = Self::new();
        let mut task = 0;
        while log.leaves.len() < size {
            if log.leaves.len().is_multiple_of(56) && log.leaves.len() + 8 <= size {
                task += 1;
                log.whole_task(task_id(task), 1 + task as usize % 3);
            } else {
                log.push(event(Stage::Operate, "policy"));
            }
        }
        log
    }

    pub(super) fn vkey(&self) -> VerifierKey {
        VerifierKey::new(NAME, self.key.public()).unwrap()
    }

    pub(super) fn push(&mut self, event: AuditEvent) -> usize {
        self.leaves.push(event.leaf_bytes().unwrap());
        self.published = self.leaves.len();
        self.leaves.len() - 1
    }

    /// Issues `count` credentials to a task, ends it, and proves it.
    pub(super) fn whole_task(&mut self, task: TaskId, count: usize) {
        let all = self.issue(task, count);
        self.receipt(task, &all, all.len());
    }

    pub(super) fn issue(&mut self, task: TaskId, count: usize) -> Vec<CredentialId> {
        let first = self.leaves.len();
        let ids: Vec<CredentialId> = (first..first + count)
            .map(|number| credential_id(number, task))
            .collect();
        for id in &ids {
            let mut issued = event(Stage::Issue, "recorded");
            issued.task = Some(task);
            issued.credential = Some(CredentialPart {
                kind: Kind::Jwt,
                id: *id,
                scope: "billing".to_owned(),
                issued_at: UnixMillis::from_unix_seconds(1_700_000_000),
                expires_at: UnixMillis::from_unix_seconds(1_700_000_300),
                state: CredentialState::Live,
            });
            self.push(issued);
        }
        ids
    }

    /// Issues one credential to a task, in the place of what stands there.
    pub(super) fn issue_at(&mut self, place: usize, task: TaskId) -> CredentialId {
        let id = self.issue(task, 1)[0];
        self.leaves[place] = self.leaves.pop().unwrap();
        self.published = self.leaves.len();
        id
    }

    /// A receipt that tells of `told` and counts `counted`.
    pub(super) fn receipt(&mut self, task: TaskId, told: &[CredentialId], counted: usize) {
        let mut ended = event(Stage::Complete, "exited");
        ended.task = Some(task);
        self.push(ended);
        let mut receipt = event(Stage::Prove, "receipt");
        receipt.task = Some(task);
        receipt.evidence = told.iter().map(|id| evidence(*id)).collect();
        receipt.totals = Some(Totals {
            credentials: u32::try_from(counted).unwrap(),
            dead: 0,
            listed: u32::try_from(counted).unwrap(),
            listed_until: None,
        });
        let index = self.push(receipt);
        self.receipts.retain(|(other, _)| *other != task);
        self.receipts.push((task, index));
    }

    /// A signed head over the first leaves.
    pub(super) fn head(&self, size: usize) -> SignedNote {
        let root = if size == 0 {
            ephor_crypto::digest::sha256(b"")
        } else {
            root(&self.hashes()[..size])
        };
        let text = Checkpoint::new(NAME, size as u64, root)
            .unwrap()
            .to_string();
        let signature = self.key.sign(text.as_bytes());
        SignedNote::new(text, &self.vkey(), signature)
    }

    /// A receipt refers to the head of its own time.
    pub(super) fn receipt_of(&self, task: TaskId) -> Receipt {
        let (_, index) = self
            .receipts
            .iter()
            .find(|(other, _)| *other == task)
            .unwrap();
        let size = index + 1;
        let text = String::from_utf8(self.leaves[*index].clone()).unwrap();
        Receipt::new(
            text,
            *index as u64,
            &path(*index, &self.hashes()[..size]),
            &self.head(size),
        )
    }

    fn hashes(&self) -> Vec<[u8; 32]> {
        self.leaves.iter().map(|leaf| leaf_hash(leaf)).collect()
    }

    /// Any tile or bundle by its path; a partial one only until the full one is there.
    fn tile(&self, path: &str) -> Option<Vec<u8>> {
        let (path, width) = match path.split_once(".p/") {
            Some((path, width)) => (path, width.parse().unwrap()),
            None => (path, usize::from(TILE_WIDTH)),
        };
        let (level, number) = path.strip_prefix("/tile/")?.split_once('/')?;
        let from = number.parse::<usize>().unwrap() * usize::from(TILE_WIDTH);
        if level == "entries" {
            if from < self.pruned {
                return None;
            }
            let part = self.leaves.get(from..).unwrap_or_default();
            let part = served(part, width)?;
            let mut bundle = Vec::new();
            let all = part.iter().all(|leaf| bundle_entry(&mut bundle, leaf));
            return all.then_some(bundle);
        }
        let span = usize::from(TILE_WIDTH).pow(level.parse().unwrap());
        let hashes: Vec<[u8; 32]> = self.hashes().chunks_exact(span).map(root).collect();
        Some(served(hashes.get(from..)?, width)?.concat())
    }
}

impl Origin for Synthetic {
    async fn bytes(&self, target: &str) -> Result<bytes::Bytes, Failure> {
        let task = target
            .strip_prefix("/v1/tasks/")
            .and_then(|rest| rest.strip_suffix("/receipt"));
        let found = match (target, task) {
            ("/v1/status", _) => Some(self.status().into_bytes()),
            (list, _) if list.starts_with("/v1/receipts?") => Some(self.page(list)),
            ("/checkpoint", _) => Some(self.head(self.published).to_string().into_bytes()),
            (_, Some(task)) => {
                Some(serde_json::to_vec(&self.receipt_of(task.parse().unwrap())).unwrap())
            }
            (path, None) => self.tile(path),
        };
        found
            .map(Into::into)
            .ok_or_else(|| Failure::usage(format!("{target} does not exist")))
    }
}

impl Synthetic {
    /// Three a page, whatever was asked for.
    fn page(&self, list: &str) -> Vec<u8> {
        let after: Option<TaskId> = list
            .split_once("&after=")
            .map(|(_, after)| after.parse().unwrap());
        let tasks = self.receipts.iter().map(|(task, _)| *task);
        let page: Vec<TaskId> = tasks
            .filter(|task| after.is_none_or(|after| *task > after))
            .take(3)
            .collect();
        serde_json::to_vec(&page).unwrap()
    }

    fn status(&self) -> String {
        let pruned = serde_json::json!({
            "before": "2026-01-01T00:00:00.000Z", "at": "2026-04-01T00:00:00.000Z", "entries": self.pruned,
        });
        serde_json::json!({
            "pruned": (self.pruned > 0).then_some(pruned),
            "version": "0", "trust_domain": "example.org", "installation": "inst", "epoch": 1,
            "policy_version": "6b1e", "log_key": self.vkey().to_string(), "log_size": self.leaves.len(),
            "issuer": "https://localhost", "lists_url": "http://localhost", "issuing": true,
            "quarantined": 0, "crypto": "test",
        })
        .to_string()
    }
}

/// The first `width` of a tile, unless it is full and a part of it is asked for.
fn served<T>(rest: &[T], width: usize) -> Option<&[T]> {
    let is_full = rest.len() >= usize::from(TILE_WIDTH);
    if is_full && width < usize::from(TILE_WIDTH) {
        None
    } else {
        rest.get(..width)
    }
}

pub(super) fn task_id(number: u32) -> TaskId {
    let mut random = [0; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    TaskId::from_parts(1_700_000_000_000, random)
}

fn credential_id(number: usize, task: TaskId) -> CredentialId {
    let mut random: [u8; 10] = task.to_bytes()[6..].try_into().unwrap();
    random[0] = u8::try_from(number % 251).unwrap();
    random[2..4].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
    CredentialId::from_parts(1_700_000_000_000, random)
}

pub(super) fn event(stage: Stage, verb: &str) -> AuditEvent {
    let id = EventId::from_parts(1, ephor_crypto::random::bytes().unwrap());
    AuditEvent::new(
        id,
        UnixMillis::from_unix_seconds(1_700_000_000),
        (stage, verb),
        Outcome::Ok,
        ("inst", 1),
    )
}

fn evidence(credential: CredentialId) -> Evidence {
    Evidence {
        credential,
        kind: Kind::Jwt,
        state: CredentialState::Contained,
        proof: None,
        place: "introspection".to_owned(),
        at: UnixMillis::from_unix_seconds(1_700_000_001),
        until: Some(UnixMillis::from_unix_seconds(1_700_000_300)),
    }
}

/// RFC 6962 §2.1 by its definition.
fn root(hashes: &[[u8; 32]]) -> [u8; 32] {
    match hashes {
        [only] => *only,
        more => {
            let (left, right) = more.split_at(more.len().next_power_of_two() / 2);
            node_hash(root(left), root(right))
        }
    }
}

/// RFC 6962 §2.1.1 by its definition.
fn path(index: usize, hashes: &[[u8; 32]]) -> Vec<[u8; 32]> {
    if hashes.len() == 1 {
        return Vec::new();
    }
    let k = hashes.len().next_power_of_two() / 2;
    let (left, right) = hashes.split_at(k);
    let (mut below, sibling) = if index < k {
        (path(index, left), root(right))
    } else {
        (path(index - k, right), root(left))
    };
    below.push(sibling);
    below
}
