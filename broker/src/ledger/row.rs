//! Rows, as stages read and write them. Never a secret: keys come sealed, tokens as hashes.
//!
//! Rows are written whole. A row's `version` is the one it will have: 1 when it is new, the
//! stored version plus 1 when it replaces one; anything else is a conflict. So a change that was
//! decided on stale data cannot be stored.

use ephor_proto::id::{
    CredentialId, DecisionId, EventId, GrantId, InstanceId, JoinTokenId, RequestId, TaskId,
};
use ephor_proto::kind::Kind;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::state::agent::AgentState;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::grant::GrantState;
use ephor_proto::state::request::RequestState;
use ephor_proto::state::task::{EndCause, TaskState};
use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::batch::Key;
use super::overdue::Overdue;
use super::retain::Prune;
use crate::keys::state::KeyState;

/// One write of a batch: a closed set, which every engine matches.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Row {
    /// A task.
    Task(TaskRow),
    /// A request.
    Request(RequestRow),
    /// A decision; written once.
    Decision(DecisionRow),
    /// A grant.
    Grant(GrantRow),
    /// A credential.
    Credential(Box<CredentialRow>),
    /// A host.
    Host(HostRow),
    /// A join token.
    JoinToken(JoinTokenRow),
    /// A sealed key; replaces the same version of the same name (re-sealing).
    Key(KeyRow),
    /// The receipt of a task; written once.
    Receipt {
        /// The task.
        task: TaskId,
        /// Which event *of this batch* is its leaf, from 0.
        event: u32,
    },
    /// A version of the policy; written once.
    Policy(Box<PolicyRow>),
    /// A setting; replaces an earlier value.
    Meta(String, String),
    /// Forgets a dead credential's listing: its list index is free again, its content is dropped.
    Unlist(CredentialId),
    /// Sets those credentials of a task aside that cannot be read, as a start does; none is none.
    SetAside {
        /// The task.
        task: TaskId,
        /// When.
        at: UnixMillis,
    },
    /// Erases the personal values of an event. The log keeps the commitments.
    ErasePersonal(EventId),
    /// Forgets what retention no longer keeps, all of it or none.
    Prune(Box<Prune>),
    /// Begins the next epoch: whoever wrote this can write no more, and has to open the store again.
    NewEpoch(NewEpoch),
}

impl Row {
    /// What this row is stored under.
    pub fn key(&self) -> Key {
        match self {
            Self::Task(row) => Key::Task(row.id),
            Self::Request(row) => Key::Request(row.id),
            Self::Decision(row) => Key::Decision(row.id),
            Self::Grant(row) => Key::Grant(row.id),
            Self::Credential(row) => Key::Credential(row.id),
            Self::Host(row) => Key::Host(row.name.clone()),
            Self::JoinToken(row) => Key::JoinToken(row.id),
            Self::Key(row) => Key::Key(row.name.clone(), row.version),
            Self::Receipt { task, .. } => Key::Receipt(*task),
            Self::Policy(row) => Key::Policy(row.number),
            Self::Meta(name, _) => Key::Meta(name.clone()),
            Self::Unlist(id) => Key::Credential(*id),
            Self::SetAside { task, .. } => set_aside_key(*task),
            Self::ErasePersonal(id) => Key::Personal(*id),
            Self::Prune(_) => Key::Meta(super::retain::DETAIL_BEFORE.to_owned()),
            Self::NewEpoch(_) => Key::Meta("epoch".to_owned()),
        }
    }

    /// The version it must replace: `Some(0)` means that nothing may be stored yet, `None` that
    /// it is no precondition.
    pub(super) fn replaces(&self) -> Option<u64> {
        let version = match self {
            Self::Task(row) => row.version,
            Self::Request(row) => row.version,
            Self::Grant(row) => row.version,
            Self::Credential(row) => row.version,
            Self::Host(row) => row.version,
            Self::JoinToken(row) => row.version,
            Self::Decision(_) | Self::Receipt { .. } | Self::Policy(_) => 1,
            Self::Key(_)
            | Self::Meta(..)
            | Self::Unlist(_)
            | Self::SetAside { .. }
            | Self::ErasePersonal(_)
            | Self::Prune(_)
            | Self::NewEpoch(_) => {
                return None;
            }
        };
        Some(version.saturating_sub(1))
    }
}

/// Marks in the reserve that a task's unreadable credentials are set aside once the store has space.
pub(super) fn set_aside_key(task: TaskId) -> Key {
    Key::Meta(format!("set_aside.{task}"))
}

impl From<CredentialRow> for Row {
    fn from(row: CredentialRow) -> Self {
        Self::Credential(Box::new(row))
    }
}

/// What the store of a new epoch does not take over from the one before. All in one statement each,
/// however many rows there are: half a new epoch would be none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEpoch {
    /// Origin line of the log from here on.
    pub origin: String,
    /// Hosts that may come back; `None` is all. The others are banned.
    pub admit: Option<Vec<String>>,
    /// When it begins.
    pub at: UnixMillis,
}

/// A task: what credentials are bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Id.
    pub id: TaskId,
    /// See the module.
    pub version: u64,
    /// Host it runs on.
    pub host: String,
    /// Who it is.
    pub subject: SpiffeId,
    /// How it was found: `run`, `unit`, `ancestor`, `peer`.
    pub rule: String,
    /// Process id on that host.
    pub pid: u32,
    /// Start time of that process, in clock ticks since boot.
    pub start_time: u64,
    /// Boot of the host on which it runs.
    pub boot_id: String,
    /// Start of the agent that opened it.
    pub instance: InstanceId,
    /// The agent's sequence number at which it was opened.
    pub opened_seq: u64,
    /// State; from `completing` on it says why the task ended.
    pub state: TaskState,
    /// When it opened.
    pub opened_at: UnixMillis,
    /// When its end was learned.
    pub ended_at: Option<UnixMillis>,
    /// When all of its credentials were dead or listed.
    pub closed_at: Option<UnixMillis>,
    /// When it ends at the latest.
    pub deadline: Option<UnixMillis>,
}

/// A request; its id is the idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRow {
    /// Id.
    pub id: RequestId,
    /// See the module.
    pub version: u64,
    /// SHA-256 of what was asked; a retry must ask the same.
    pub digest: [u8; 32],
    /// Task it belongs to.
    pub task: TaskId,
    /// State.
    pub state: RequestState,
    /// What was decided.
    pub decision: Option<DecisionId>,
    /// Grant that it opened or draws on.
    pub grant: Option<GrantId>,
    /// What it was given.
    pub credentials: Vec<CredentialId>,
    /// When it came.
    pub requested_at: UnixMillis,
}

/// The one record of what was allowed or denied. Never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// Id.
    pub id: DecisionId,
    /// Request it answers.
    pub request: RequestId,
    /// Task, when one was opened.
    pub task: Option<TaskId>,
    /// Whether it was allowed.
    pub allowed: bool,
    /// Code of a refusal; empty when allowed.
    pub code: String,
    /// Who asked; empty when no subject matched.
    pub subject: String,
    /// Entitlement asked for.
    pub entitlement: String,
    /// Item of it, such as an audience.
    pub item: String,
    /// FILE:LINE that decided; empty when nothing matched.
    pub rule: String,
    /// Policy in force.
    pub policy_version: String,
    /// Life given, in seconds; 0 when denied.
    pub ttl_seconds: u64,
    /// What capped it; empty when denied.
    pub capped_by: String,
    /// When.
    pub decided_at: UnixMillis,
}

/// The window that one approval or rule opens for one task and entitlement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRow {
    /// Id.
    pub id: GrantId,
    /// See the module.
    pub version: u64,
    /// Task.
    pub task: TaskId,
    /// Decision that opened it.
    pub decision: DecisionId,
    /// Entitlement.
    pub entitlement: String,
    /// Item of it.
    pub item: String,
    /// State.
    pub state: GrantState,
    /// When it opened.
    pub opened_at: UnixMillis,
    /// When it ends at the latest.
    pub until: UnixMillis,
    /// When it closed.
    pub closed_at: Option<UnixMillis>,
    /// Nothing was issued with it, so that no credential leads to it.
    pub alone: bool,
}

/// One issued thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRow {
    /// Id; a token's `jti`.
    pub id: CredentialId,
    /// See the module.
    pub version: u64,
    /// Kind.
    pub kind: Kind,
    /// Task it is bound to.
    pub task: TaskId,
    /// Host that holds it.
    pub host: String,
    /// Holder.
    pub subject: SpiffeId,
    /// Entitlement that gave it.
    pub entitlement: String,
    /// Item of it; a token's audience.
    pub item: String,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// Request.
    pub request: RequestId,
    /// Decision.
    pub decision: DecisionId,
    /// FILE:LINE that allowed it.
    pub rule: String,
    /// Grant it draws on.
    pub grant: GrantId,
    /// State.
    pub state: CredentialState,
    /// When it was (last) issued.
    pub issued_at: UnixMillis,
    /// When it expires by itself.
    pub expires_at: UnixMillis,
    /// What capped its life.
    pub capped_by: String,
    /// Status list it is in.
    pub status_list: u32,
    /// Its place there, fixed at intent.
    pub status_index: u32,
    /// JSON of exactly what is signed; empty once the listing was forgotten.
    pub content: String,
    /// Why it ended.
    pub cause: Option<EndCause>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMillis>,
    /// What shows that it is dead or listed.
    pub evidence: Option<String>,
    /// Why its revocation is late.
    pub overdue: Option<Overdue>,
    /// The policy version that no longer allowed it, when that is why it ended.
    pub narrowed_by: Option<String>,
}

/// A host and its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Name; the key.
    pub name: String,
    /// See the module.
    pub version: u64,
    /// State.
    pub state: AgentState,
    /// When it joined.
    pub joined_at: UnixMillis,
    /// When it was last heard, as far as that was worth storing.
    pub last_heard: Option<UnixMillis>,
    /// Its boot.
    pub boot_id: String,
    /// Current start of its agent.
    pub instance: Option<InstanceId>,
    /// SHA-256 of its public key.
    pub spki_sha256: [u8; 32],
    /// The key before, good until the new one is used: the answer to a renewal may get lost.
    pub previous_spki_sha256: Option<[u8; 32]>,
    /// When its certificate expires.
    pub certificate_expires_at: UnixMillis,
    /// Renewals of the certificate, so that a clone is noticed.
    pub generation: u64,
    /// When it was banned; join tokens made before are void for it.
    pub banned_at: Option<UnixMillis>,
    /// Epoch in which it joined or was admitted again.
    pub epoch: u32,
}

/// A one-time token that lets a host join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRow {
    /// Id.
    pub id: JoinTokenId,
    /// See the module.
    pub version: u64,
    /// SHA-256 of the whole token.
    pub hash: [u8; 32],
    /// Host name or pattern it is good for.
    pub host_pattern: String,
    /// When it expires.
    pub expires_at: UnixMillis,
    /// Host that used it.
    pub used_by: Option<String>,
}

/// One version of a key of ours, sealed under the master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// Name, such as `ca` or `log`.
    pub name: String,
    /// Version, counted from 1; part of the key.
    pub version: u32,
    /// The private key, sealed; empty when it was wiped.
    pub sealed: Vec<u8>,
    /// The public key or certificate.
    pub public: Vec<u8>,
    /// For a CA that was signed elsewhere: the certificates above it, each in DER, one after the
    /// other, the root last.
    pub chain: Vec<u8>,
    /// Where it is in its life.
    pub state: KeyState,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it came into its state.
    pub since: UnixMillis,
    /// When its state ends, where that is known: of a retired key its last day.
    pub until: Option<UnixMillis>,
}

/// One policy that was in force from some time on. Each names the one before it: a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// Place in the chain, counted from 1.
    pub number: u64,
    /// Hash over its files, in hexadecimal.
    pub version: String,
    /// The version before it; `None` for the first.
    pub previous: Option<String>,
    /// When it was applied.
    pub applied_at: UnixMillis,
    /// Who applied it: `uid N` of the admin socket, `sighup`, or `start`.
    pub applied_by: String,
    /// The version that the broker's own directory held then, when it could be read.
    pub directory: Option<String>,
    /// Its files: a JSON array of `{"name", "text"}`, by name.
    pub files: String,
}
