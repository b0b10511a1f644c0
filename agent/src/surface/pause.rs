//! A stop of serving that can be taken back: idle connections are laid aside whole, so that this
//! agent or its successor goes on with them as if nothing had been.
//!
//! It never cuts a request that is being answered: such a connection stays where it is.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

/// A connection on which nothing is being answered.
pub struct Parked {
    /// The connection.
    pub stream: UnixStream,
    /// What was read from it and belongs to the next request. Its sender was checked.
    pub ahead: Bytes,
}

/// Shared by the listener, its connections and who stops them. Clones share it.
#[derive(Clone, Default)]
pub struct Pause(Arc<Inner>);

struct Inner {
    asked: watch::Sender<bool>,
    serving: watch::Sender<usize>,
    /// Guards the connections that were laid aside.
    parked: Mutex<Vec<Parked>>,
    laid_aside: Notify,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            asked: watch::Sender::new(false),
            serving: watch::Sender::new(0),
            parked: Mutex::default(),
            laid_aside: Notify::new(),
        }
    }
}

/// Counts a connection for as long as it lives.
pub struct Serving(Pause);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.0.serving.send_modify(|count| *count -= 1);
    }
}

impl Pause {
    /// Not paused, with these connections to go on with.
    #[must_use]
    pub fn with(parked: Vec<Parked>) -> Self {
        let pause = Self::default();
        pause.lock().extend(parked);
        pause
    }

    /// A connection is served from now on.
    #[must_use]
    pub fn serving(&self) -> Serving {
        self.0.serving.send_modify(|count| *count += 1);
        Serving(self.clone())
    }

    /// Stops accepting and reading. Waits at most `patience` for what is being answered.
    pub async fn begin(&self, patience: Duration) {
        self.0.asked.send_replace(true);
        let mut serving = self.0.serving.subscribe();
        let _ = tokio::time::timeout(patience, serving.wait_for(|count| *count == 0)).await;
    }

    /// Goes on, with what was laid aside.
    pub fn end(&self) {
        self.0.asked.send_replace(false);
    }

    /// Whether it is asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self.0.asked.borrow()
    }

    /// Waits until it is asked for, or until that is taken back.
    pub async fn becomes(&self, asked: bool) {
        // The sender lives as long as this.
        let _ = self.0.asked.subscribe().wait_for(|now| *now == asked).await;
    }

    /// Lays a connection aside.
    pub fn park(&self, connection: Parked) {
        self.lock().push(connection);
        self.0.laid_aside.notify_one();
    }

    /// Waits until one is laid aside, which can be after the pause was taken back.
    pub async fn laid_aside(&self) {
        self.0.laid_aside.notified().await;
    }

    /// Takes all that were laid aside.
    #[must_use]
    pub fn take(&self) -> Vec<Parked> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Parked>> {
        self.0.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
