//! One call to the broker for all who ask the same at once.

use std::sync::Arc;

use ephor_proto::id::TaskId;
use ephor_proto::problem::Problem;
use tokio::sync::watch;

use super::{Held, Hold, Key};

/// How a flight ended, for everyone on it.
pub type Outcome = Result<Arc<Held>, Problem>;

/// The duty to ask the broker. Dropping it without landing frees the slot, and those who
/// wait see the channel close.
pub struct Lead {
    hold: Hold,
    task: TaskId,
    key: Arc<Key>,
    flight: u64,
    sender: Option<watch::Sender<Option<Outcome>>>,
}

impl Lead {
    pub(super) fn new(
        hold: Hold,
        (task, key, flight): (TaskId, Arc<Key>, u64),
        sender: watch::Sender<Option<Outcome>>,
    ) -> Self {
        Self {
            hold,
            task,
            key,
            flight,
            sender: Some(sender),
        }
    }

    /// The broker gave it. False when the task ended meanwhile: nobody gets the copy.
    #[must_use]
    pub fn land(mut self, held: Arc<Held>, ended: impl FnOnce() -> Problem) -> bool {
        let landed = self.hold.land(self.task, &self.key, self.flight, &held);
        if let Some(sender) = self.sender.take() {
            sender.send_replace(Some(if landed { Ok(held) } else { Err(ended()) }));
        }
        landed
    }

    /// The broker refused or could not be reached.
    pub fn fail(mut self, problem: Problem) {
        self.hold.cancel(self.task, &self.key, self.flight);
        if let Some(sender) = self.sender.take() {
            sender.send_replace(Some(Err(problem)));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.hold.cancel(self.task, &self.key, self.flight);
        }
    }
}
