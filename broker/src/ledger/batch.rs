//! What a stage hands to the ledger, and what it gets back.
//!
//! [`Durable`] is the only proof that something was recorded. It has no public constructor: the
//! writer makes one after the commit, and nobody else can.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ephor_proto::event::{AuditEvent, PersonalValue};
use ephor_proto::id::{CredentialId, DecisionId, EventId, GrantId, JoinTokenId, RequestId, TaskId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::row::Row;

/// Which queue a batch waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lane {
    /// Ends and revocations: always first, with places of their own, and with the reserve file
    /// when the store is full.
    Revoke,
    /// Everything else.
    Normal,
}

/// A named transaction: preconditions, rows and audit events, all or nothing.
#[derive(Debug)]
pub struct Batch {
    /// Names the transaction in logs, such as `issue.intent`.
    pub name: &'static str,
    /// Which queue it waits in.
    pub lane: Lane,
    /// What must hold at the commit.
    pub require: Vec<Require>,
    /// Rows to write. The version of each is itself a precondition, see [`Row`].
    pub rows: Vec<Row>,
    /// Events, appended to the log in this order.
    pub events: Vec<NewEvent>,
}

/// An event to append; its leaf index is given at the commit.
#[derive(Debug)]
pub struct NewEvent {
    /// The event as it will stand in the leaf.
    pub event: AuditEvent,
    /// What the leaf only commits to, by the name of the field that holds the commitment.
    pub personal: Vec<(String, PersonalValue)>,
}

impl From<AuditEvent> for NewEvent {
    fn from(event: AuditEvent) -> Self {
        Self {
            event,
            personal: Vec::new(),
        }
    }
}

/// Names one stored thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Key {
    /// A task.
    Task(TaskId),
    /// A request.
    Request(RequestId),
    /// A decision.
    Decision(DecisionId),
    /// A grant.
    Grant(GrantId),
    /// A credential.
    Credential(CredentialId),
    /// A host by its name.
    Host(String),
    /// A join token.
    JoinToken(JoinTokenId),
    /// One version of a named key.
    Key(String, u32),
    /// The receipt of a task.
    Receipt(TaskId),
    /// A version of the policy, by its place in the chain.
    Policy(u64),
    /// A setting.
    Meta(String),
    /// Personal values of an event.
    Personal(EventId),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task(id) => write!(f, "task {id}"),
            Self::Request(id) => write!(f, "request {id}"),
            Self::Decision(id) => write!(f, "decision {id}"),
            Self::Grant(id) => write!(f, "grant {id}"),
            Self::Credential(id) => write!(f, "credential {id}"),
            Self::Host(name) => write!(f, "host {name}"),
            Self::JoinToken(id) => write!(f, "join token {id}"),
            Self::Key(name, version) => write!(f, "key {name} version {version}"),
            Self::Receipt(id) => write!(f, "receipt of task {id}"),
            Self::Policy(number) => write!(f, "policy number {number}"),
            Self::Meta(name) => write!(f, "setting {name}"),
            Self::Personal(id) => write!(f, "personal values of event {id}"),
        }
    }
}

/// A precondition, checked inside the transaction. One that does not hold is a
/// [`CommitError::Conflict`] of this batch and of no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Require {
    /// Nothing is stored under this key.
    Absent(Key),
    /// What is stored has this version (keys, receipts and settings have version 1).
    Version(Key, u64),
    /// The task exists and is `open`.
    TaskOpen(TaskId),
    /// The grant exists and is `open`.
    GrantOpen(GrantId),
    /// The host exists and is not `banned`.
    HostAdmitted(String),
    /// No other version of the policy is the newest one. So nothing that an older policy allowed is
    /// recorded once a newer one is durable.
    PolicyInForce(String),
    /// The task has exactly this many credentials that are `intended`, `live` or `replacing`.
    /// Whoever ends a task states how many it ends, so that none issued meanwhile is missed.
    LiveCredentials {
        /// The task.
        task: TaskId,
        /// How many.
        count: u64,
    },
}

/// Number of a commit within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchId(pub(super) u64);

/// Proof that a batch is on disk. Made by the ledger's writer only, after the flush.
#[derive(Debug, PartialEq, Eq)]
pub struct Durable {
    batch: BatchId,
}

impl Durable {
    pub(super) fn of(batch: BatchId) -> Self {
        Self { batch }
    }

    /// Which batch this proves; compare with [`Ticket::batch`].
    pub fn batch(&self) -> BatchId {
        self.batch
    }
}

/// The answer to a batch that is on disk.
#[derive(Debug)]
pub struct Committed {
    /// Proof that it is.
    pub durable: Durable,
    /// Leaf index of its first event; the others follow without a gap. Without events, the size
    /// of the log at that moment.
    pub first_leaf: u64,
    /// True when it lies in the reserve file: acknowledged and visible to readers as rows, but
    /// its leaves enter the tree (at the indices given) only when the store has space again.
    pub in_reserve: bool,
}

/// Why a batch is not known to be on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A precondition did not hold; nothing was written. Read again and decide anew.
    #[error("{0} is not as this change expected; nothing was written, read it again")]
    Conflict(Key),
    /// The ledger takes no such change now; nothing was written.
    #[error("the ledger refused the change and wrote nothing: {0}")]
    Refused(Reason),
    /// The fate is not known: drop the secret, revoke by id.
    #[error("it is not known whether the change was written; treat it as both")]
    Unknown,
}

/// Why the ledger refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The disk, or the reserve for revocations, has no space.
    #[error("the store has no space left; free some on its file system")]
    DiskFull,
    /// Another broker took this store over.
    #[error("another broker took this store over; stop this one")]
    EpochLost,
    /// Another process holds the write lock.
    #[error("another process holds the store's write lock")]
    Busy,
    /// The batch cannot be stored as it is.
    #[error("the change cannot be stored: {0}")]
    Invalid(String),
    /// SQLite reports damage.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// A lane has no place left, or the ledger is shutting down. Nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger's queue is full; nothing was queued, try again")]
pub struct Full;

/// A place in the queue; resolves when the batch's fate is known.
#[derive(Debug)]
pub struct Ticket {
    batch: BatchId,
    answer: oneshot::Receiver<Result<Committed, CommitError>>,
}

impl Ticket {
    pub(super) fn new(batch: BatchId) -> (Answer, Self) {
        let (sender, answer) = oneshot::channel();
        (Answer { batch, sender }, Self { batch, answer })
    }

    /// Which batch was queued.
    pub fn batch(&self) -> BatchId {
        self.batch
    }

    /// Waits on a thread that runs no async tasks.
    ///
    /// # Errors
    /// As the future.
    pub fn wait(self) -> Result<Committed, CommitError> {
        self.answer
            .blocking_recv()
            .unwrap_or(Err(CommitError::Unknown))
    }
}

impl Future for Ticket {
    type Output = Result<Committed, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A writer that went away without an answer may have committed.
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(CommitError::Unknown)))
    }
}

/// The writer's end of a [`Ticket`].
#[derive(Debug)]
pub(super) struct Answer {
    batch: BatchId,
    sender: oneshot::Sender<Result<Committed, CommitError>>,
}

impl Answer {
    /// Tells that it is on disk.
    pub(super) fn committed(self, first_leaf: u64, in_reserve: bool) {
        let durable = Durable::of(self.batch);
        // The one who asked may have gone; the record stands all the same.
        let _ = self.sender.send(Ok(Committed {
            durable,
            first_leaf,
            in_reserve,
        }));
    }

    /// Tells that it is not, or may not be.
    pub(super) fn failed(self, error: CommitError) {
        let _ = self.sender.send(Err(error));
    }
}
