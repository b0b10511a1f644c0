//! The end of a task that never asked for a credential, or whose request is still on its way.
//!
//! It is stored closed, so that a request that arrives later finds a task that has ended and gets
//! nothing.

use ephor_proto::id::{CorrelationId, TaskId};
use ephor_proto::spiffe::{HostName, SpiffeId};
use ephor_proto::stage::Stage;
use ephor_proto::state::task::{EndCause, TaskState};

use crate::app::Broker;
use crate::fleet::Peer;
use crate::ledger::{Batch, Lane, Row, TaskRow};
use crate::revoke::{NotEnded, written};

impl Broker {
    /// Stores the closed task with its receipt over nothing. When it was opened meanwhile, that
    /// wins and the ordinary end follows.
    pub(super) async fn close_unheard(
        &self,
        peer: &Peer,
        task: TaskId,
        cause: EndCause,
        correlation: CorrelationId,
    ) -> Result<(), NotEnded> {
        let now = self.clock.wall();
        let host: HostName = peer
            .host()
            .parse()
            .map_err(|e| NotEnded::Defect(format!("host name: {e}")))?;
        let row = TaskRow {
            id: task,
            version: 1,
            host: peer.host().to_owned(),
            subject: SpiffeId::agent(&self.installation.trust_domain, &host),
            rule: "none".to_owned(),
            pid: 0,
            start_time: 0,
            boot_id: peer.boot_id().to_owned(),
            instance: peer.instance(),
            opened_seq: 0,
            state: TaskState::Closed {
                cause,
                contained: false,
            },
            opened_at: now,
            ended_at: Some(now),
            closed_at: Some(now),
            deadline: None,
        };
        let mut ended =
            self.task_event(Stage::Complete, cause.as_str(), &row, Some(correlation))?;
        ended.cause = Some(cause.as_str().to_owned());
        ended.facts.insert("credentials".to_owned(), "0".to_owned());
        let receipt = self.receipt_event(&row, &[])?;
        let rows = vec![Row::Task(row), Row::Receipt { task, event: 1 }];
        let events = vec![ended.into(), receipt.into()];
        let batch = Batch {
            name: "complete.unheard",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows,
            events,
        };
        let ticket = self.ledger.submit(batch)?;
        written(ticket.await).map(drop)
    }
}
