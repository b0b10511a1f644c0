//! What exists at a target must not live without anyone who has it: the broker revokes whatever its
//! agent does not confirm. So each hand-over is confirmed, a few milliseconds after it.
//!
//! Coalesced without a timer: what is handed over while one message is on its way travels in the
//! next. Nothing here is a secret.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ephor_proto::id::CredentialId;
use ephor_proto::limits::MAX_CONFIRM_BATCH;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::hold::Held;
use crate::limits;
use crate::uplink::{CallError, Uplink};

/// Hand-overs that the broker was not told of.
#[derive(Default)]
pub struct Confirmations {
    /// Guards the queue; held for a push or a take.
    waiting: Mutex<VecDeque<CredentialId>>,
    added: Notify,
}

impl Confirmations {
    /// An answer is about to be written to its caller.
    pub fn handed_over(&self, held: &Held) {
        if held.at_targets().next().is_some() && held.hand_over() {
            self.add(held.at_targets());
        }
    }

    /// Tells the broker of these. What finds no place counts as not handed over, and is revoked.
    pub fn add(&self, ids: impl Iterator<Item = CredentialId>) {
        let mut waiting = self.lock();
        for id in ids {
            if waiting.len() >= limits::CONFIRMATIONS {
                tracing::warn!(credential = %id.short(), "too many hand-overs wait to be confirmed; the broker will revoke this one");
                break;
            }
            waiting.push_back(id);
        }
        drop(waiting);
        self.added.notify_one();
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells the broker until told to stop.
    pub async fn run(&self, uplink: &Uplink, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.added.notified() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.tell_all(uplink) => {}
            }
        }
    }

    async fn tell_all(&self, uplink: &Uplink) {
        loop {
            let batch: Vec<CredentialId> = {
                let waiting = self.lock();
                waiting.iter().take(MAX_CONFIRM_BATCH).copied().collect()
            };
            if batch.is_empty() {
                return;
            }
            match uplink.confirm(&batch).await {
                Ok(()) => self.forget(batch.len()),
                Err(CallError::Broken(problem)) => {
                    tracing::info!(correlation = %problem.correlation_id, "hand-overs wait to be confirmed");
                    tokio::time::sleep(limits::CONFIRM_AGAIN).await;
                    uplink.connected().await;
                }
                Err(error @ CallError::Refused(_)) => match error.refused() {
                    // The broker is there, and cannot just now.
                    Some(code) if code.default_retry_after().is_some() => {
                        tokio::time::sleep(limits::CONFIRM_AGAIN).await;
                    }
                    Some(_) | None => {
                        tracing::warn!(
                            count = batch.len(),
                            "the broker did not take what was confirmed; it will revoke it"
                        );
                        self.forget(batch.len());
                    }
                },
            }
        }
    }

    /// Only added to at the other end, so these are the ones that were told.
    fn forget(&self, count: usize) {
        self.lock().drain(..count);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<CredentialId>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
