//! The way through the reserve: revocations in while the store is full, and out again first.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Trouble, Writer, count};
use crate::ledger::apply::{Stop, holds, live_of, refusal, stored_version};
use crate::ledger::batch::{CommitError, Key, Require};
use crate::ledger::encode::Encoded;
use crate::ledger::overlay::Overlay;
use crate::ledger::queue::Job;
use crate::ledger::reserve::{Frame, NotReserved};

impl Writer {
    /// Puts what lies in the reserve into the store, in one transaction.
    pub(super) fn merge_reserve(&mut self) -> Result<(), Trouble> {
        if self.shared.overlay.load().is_empty() {
            return Ok(());
        }
        let frames = match &mut self.reserve {
            Some(reserve) => reserve
                .frames()
                .map_err(|error| Trouble::Damaged(error.to_string()))?,
            None => return Ok(()),
        };
        self.merge(&frames)
    }

    /// Puts frames into the store that it does not have yet, then empties the reserve.
    pub(in crate::ledger) fn merge(&mut self, frames: &[Frame]) -> Result<(), Trouble> {
        if let Some(last) = frames.last() {
            let batches: Vec<&Encoded> = frames.iter().map(|frame| &frame.batch).collect();
            self.transact(&batches, Some(last.seq))?;
            tracing::info!(batches = batches.len(), "moved the reserve into the store");
        }
        if let Some(reserve) = &mut self.reserve
            && let Err(error) = reserve.clear()
        {
            die(&error);
        }
        // Only now: a reader that finds no overlay must find the rows in the store.
        self.shared.overlay.store(Arc::new(Overlay::default()));
        Ok(())
    }

    /// Acknowledges revocations from the reserve. Their preconditions are checked against the
    /// store and what the reserve already holds.
    pub(super) fn reserve(&mut self, jobs: Vec<Job>) {
        let mut overlay = Overlay::clone(&self.shared.overlay.load());
        let mut accepted = Vec::new();
        for job in jobs {
            match self.fits(&overlay, &job.batch) {
                Ok(()) => {
                    let first_leaf = self.frontier.size() + overlay.leaves();
                    overlay.add(&job.batch);
                    accepted.push((job, first_leaf));
                }
                Err(stop) => job.answer.failed(refusal(stop)),
            }
        }
        if accepted.is_empty() {
            return;
        }
        let batches: Vec<&Encoded> = accepted.iter().map(|(job, _)| &job.batch).collect();
        let written = match &mut self.reserve {
            Some(reserve) => reserve.append(&batches),
            None => Err(NotReserved::Full),
        };
        match written {
            Ok(()) => self.acknowledge(accepted, overlay),
            Err(NotReserved::Io(error)) => die(&error),
            Err(NotReserved::Full) => refuse_all(accepted, &Trouble::Full.error()),
            Err(NotReserved::Invalid(text)) => {
                refuse_all(accepted, &refusal(Stop::Invalid(text)));
            }
        }
    }

    fn acknowledge(&mut self, accepted: Vec<(Job, u64)>, overlay: Overlay) {
        crate::crash_point!("ledger.reserve_written");
        count(&self.shared.counts.reserved, accepted.len());
        tracing::warn!(
            batches = accepted.len(),
            "the store has no space: revocations went to the reserve"
        );
        self.shared.overlay.store(Arc::new(overlay));
        for (job, first_leaf) in accepted {
            job.answer.committed(first_leaf, true);
        }
    }

    fn fits(&self, overlay: &Overlay, batch: &Encoded) -> Result<(), Stop> {
        for require in &batch.require {
            match require {
                // What waits in the reserve ended some of them already.
                Require::LiveCredentials { task, count } => {
                    let out = |id: &[u8]| overlay.is_still_out(id);
                    if live_of(&self.connection, *task, out)? != *count {
                        return Err(Stop::Conflict(Key::Task(*task)));
                    }
                }
                Require::Absent(_)
                | Require::Version(..)
                | Require::TaskOpen(_)
                | Require::GrantOpen(_)
                | Require::HostAdmitted(_)
                | Require::PolicyInForce(_) => holds(&self.connection, require)?,
            }
        }
        let mut own: HashMap<Key, u64> = HashMap::new();
        for row in &batch.rows {
            let Some(before) = row.replaces() else {
                continue;
            };
            let key = row.key();
            let stored = match own.get(&key).copied().or_else(|| overlay.version(&key)) {
                Some(version) => Some(version),
                None => stored_version(&self.connection, &key)?,
            };
            if stored.unwrap_or(0) != before {
                return Err(Stop::Conflict(key));
            }
            own.insert(key, before + 1);
        }
        Ok(())
    }
}

fn refuse_all(jobs: Vec<(Job, u64)>, error: &CommitError) {
    tracing::error!(batches = jobs.len(), %error, "the reserve took no more revocations");
    for (job, _) in jobs {
        job.answer.failed(error.clone());
    }
}

fn die(error: &std::io::Error) {
    tracing::error!(%error, "a write or flush of the reserve failed; what is on disk is not known; aborting");
    std::process::abort();
}
