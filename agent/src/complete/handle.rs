//! One task, as those who act for it hold it.

use std::sync::Arc;

use ephor_proto::grpc::v1;
use ephor_proto::id::TaskId;
use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule::{Process, TaskKey};
use tokio::sync::watch;

use crate::journal::{JournalError, TaskOpened, Written};

/// A task that was open when this was made. Clones share it.
#[derive(Debug, Clone)]
pub struct TaskHandle(pub(super) Arc<Entry>);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) opened: TaskOpened,
    opened_seq: u64,
    written: Written,
    ended: watch::Sender<Option<EndCause>>,
}

impl Entry {
    pub(super) fn new(opened: TaskOpened, opened_seq: u64, written: Written) -> Self {
        Self {
            opened,
            opened_seq,
            written,
            ended: watch::Sender::new(None),
        }
    }

    /// Tells everybody who acts for the task; the first cause stays.
    pub(super) fn finish(&self, cause: EndCause) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(cause);
            first
        });
    }
}

impl TaskHandle {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.0.opened.id
    }

    /// Which rule found it: `run`, `unit`, `ancestor` or `peer`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        self.0.opened.key.rule()
    }

    /// What it is bound to.
    #[must_use]
    pub fn key(&self) -> &TaskKey {
        &self.0.opened.key
    }

    /// The uid that opened it.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.0.opened.uid
    }

    /// Its main process.
    #[must_use]
    pub fn process(&self) -> Process {
        let first = self.0.opened.processes.first().map(|handle| handle.process);
        first.unwrap_or(Process {
            pid: 0,
            start_time: 0,
        })
    }

    /// The agent's counter when it was opened.
    #[must_use]
    pub fn opened_seq(&self) -> u64 {
        self.0.opened_seq
    }

    /// Waits until a restart of the agent would find it. Nothing secret may leave before.
    ///
    /// # Errors
    /// When it could not be journalled: nothing may be handed over for it.
    pub async fn durable(&self) -> Result<(), JournalError> {
        self.0.written.durable().await
    }

    /// Whether it could not be journalled, so that it must not be joined.
    pub(super) fn has_failed(&self) -> bool {
        self.0.written.has_failed()
    }

    /// Whether it goes on. Look again right before a secret is written.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.ended.borrow().is_none()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> EndCause {
        let mut ended = self.0.ended.subscribe();
        let cause = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|cause| *cause);
        // The sender lives as long as this handle.
        cause.unwrap_or(EndCause::Lost)
    }

    /// As the broker takes it.
    #[must_use]
    pub fn to_wire(&self) -> v1::Task {
        let process = self.process();
        v1::Task {
            id: self.id().to_bytes().to_vec(),
            rule: self.rule().to_owned(),
            pid: process.pid,
            start_time: process.start_time,
            opened_seq: self.opened_seq(),
        }
    }
}
