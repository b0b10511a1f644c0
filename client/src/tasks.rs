//! Background work belongs to the value it works for, and ends with it: this module is the only
//! one that spawns.

use std::future::Future;

use tokio::task::JoinSet;

/// A group of tasks; all are stopped when it is dropped.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<()>);

impl Tasks {
    /// Runs a task on the current runtime until it ends or the group is dropped. What must not
    /// end unheard says so in a `Drop` of its own.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }
}
