//! Stage 8 on the host: what is held for an ended task is wiped at once, before anything
//! else is done about the end.
//!
//! It needs no broker and no disk to wipe. Telling the broker and the journal come after.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ephor_proto::grpc::v1;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::stage::Stage;
use ephor_proto::state::task::EndCause;
use ephor_proto::time::Boottime;
use tokio::sync::mpsc;

use crate::app::Agent;
use crate::complete::{Ended, Snapshot};
use crate::crash_point;
use crate::deliver;
use crate::journal::{JournalError, Record};
use crate::metrics::STAGES;
use crate::uplink::session::Downlink;
use crate::uplink::spool::End;

/// Takes ends as they come, until the table that sends them is gone.
pub async fn run(agent: Arc<Agent>, mut ends: mpsc::Receiver<Ended>) {
    let stop = agent.tasks.stop().clone();
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = ends.recv() => ended,
        };
        match ended {
            Some(ended) => end(&agent, ended),
            None => return,
        }
    }
}

/// Ends a task here and now. False when it was not open.
pub fn end_task(agent: &Agent, task: TaskId, cause: EndCause) -> bool {
    // Wiped first, whatever the table says: this path needs nothing else to have worked.
    let wiped = agent.hold.wipe(task);
    match agent.table.end(task, cause) {
        Some(ended) => {
            finish(agent, ended, wiped);
            true
        }
        None => false,
    }
}

/// Ends a task because its owner asked, and waits until a restart would know: what is
/// acknowledged here must not be undone by a crash while the broker is away.
///
/// # Errors
/// When it could not be journalled. It is wiped and told all the same.
pub async fn release(agent: &Agent, task: TaskId) -> Result<(), JournalError> {
    let cause = EndCause::Released;
    if end_task(agent, task, cause) {
        // The table noted it already; this one stands behind it in the same queue.
        agent
            .journal
            .append(Record::TaskEnding { id: task, cause })?
            .durable()
            .await?;
    }
    Ok(())
}

/// The owner of a task that the table ended, but whose end is still in the queue to [`run`]:
/// who started a process asks for its receipt as soon as it exits, often before we are told.
#[must_use]
pub fn being_ended(agent: &Agent, task: TaskId) -> Option<u32> {
    let cause = agent.table.outcome(task)?;
    let uid = agent.owner(task)?;
    agent
        .receipts
        .begin(task, uid, cause.as_str(), agent.hold.wipe(task));
    Some(uid)
}

/// An end that the table reported: wipe, then say so.
pub fn end(agent: &Agent, ended: Ended) {
    let wiped = agent.hold.wipe(ended.task);
    finish(agent, ended, wiped);
}

fn finish(agent: &Agent, ended: Ended, wiped: u32) {
    let Ended { task, cause } = ended;
    crash_point!("revoke.wiped");
    tracing::info!(%task, cause = cause.as_str(), wiped, "task ended; what was held for it is wiped");
    STAGES.counted(Stage::Complete, 1);
    STAGES.counted(Stage::Revoke, u64::from(wiped));
    let contact = agent.contact(task);
    agent
        .receipts
        .begin(task, contact.uid, cause.as_str(), wiped);
    if contact.is_told() {
        agent.spool.add(End {
            task,
            cause: on_the_wire(cause),
        });
    } else {
        // The broker never heard of it: there is nothing to revoke and no receipt.
        agent.receipts.told(task, None);
        agent.forget(task);
    }
}

/// The wire knows two causes; the broker knows the others itself.
pub fn on_the_wire(cause: EndCause) -> &'static str {
    match cause {
        EndCause::Released => "released",
        EndCause::Exited | EndCause::Deadline | EndCause::Lost | EndCause::Revoked => "exited",
    }
}

/// What the broker says unasked reaches memory first.
pub struct Pushes(pub Arc<Agent>);

impl Downlink for Pushes {
    fn snapshot(&self) -> Snapshot {
        self.0.table.snapshot()
    }

    fn task_revoked(&self, task: TaskId, cause: &str) {
        tracing::info!(%task, cause, "the broker ended a task");
        end_task(&self.0, task, cause.parse().unwrap_or(EndCause::Revoked));
    }

    fn credential_revoked(&self, task: TaskId, credential: CredentialId) {
        let wiped = self.0.hold.wipe_credential(task, credential);
        STAGES.counted(Stage::Revoke, u64::from(wiped));
        self.0.note_revoked(task, credential);
        tracing::info!(%task, %credential, wiped, "the broker revoked a credential");
    }

    fn banned(&self) {
        let mut ended = 0;
        for task in self.0.table.open_tasks() {
            ended += u32::from(end_task(&self.0, task, EndCause::Revoked));
        }
        // Nothing is held outside an open task; if something were, it goes too.
        let mut wiped = 0;
        for task in self.0.hold.tasks() {
            wiped += self.0.hold.wipe(task);
        }
        tracing::warn!(
            ended,
            wiped,
            "this host is banned: its tasks are ended and nothing is held any more"
        );
    }

    fn epoch_ended(&self) {
        let void = self.0.hold.void();
        self.0.epochs.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            void = void.len(),
            "what was held of the epoch before is void; it is asked for again"
        );
        deliver::again(&self.0, void);
    }

    fn tasks_closed(&self, tasks: &[TaskId], sent: Boottime) {
        for task in tasks {
            // A task whose first credential came after the heartbeat left was not known to the
            // broker then, but is now.
            if self.0.known_before(*task, sent) {
                self.task_revoked(*task, EndCause::Lost.as_str());
            }
        }
    }

    fn end_heard(&self, task: TaskId) {
        self.0.receipts.heard(task);
    }

    fn end_acknowledged(&self, task: TaskId, receipt: Option<v1::CompleteResponse>) {
        crash_point!("complete.sent");
        STAGES.counted(Stage::Prove, 1);
        self.0.receipts.told(task, receipt);
        self.0.forget(task);
    }
}
