//! What survives the agent: which tasks were handed credentials, so that after a crash each
//! is adopted or ended. Handles only, never a secret.
//!
//! One append-only file of framed records and one thread that writes it. Records that wait
//! together share one fsync. A record is durable when its [`Written`] says so; a failed fsync
//! breaks the journal for good, because what the kernel kept is then unknown.

mod file;
mod record;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use tokio::sync::watch;

pub use file::OpenError;
pub use record::{ExeHandle, ProcessHandle, Record, TaskOpened, Unfinished, UnitHandle};

use crate::limits::JOURNAL_QUEUED;
use writer::{Ask, Job, Writer};

/// The journal. Clones share its thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Journal {
    jobs: SyncSender<Ask>,
}

/// Why a record is not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Too many records wait for the disk.
    #[error("the agent's journal is busy; try again")]
    Busy,
    /// The disk refused this record.
    #[error("the agent's journal could not be written; see the agent's log for the disk error")]
    Refused,
    /// It cannot be relied on any more.
    #[error("the agent's journal is broken since an earlier disk error; restart the agent")]
    Broken,
}

/// The fate of a record. Clones share it.
#[derive(Debug, Clone)]
pub struct Written(watch::Receiver<Option<Result<(), JournalError>>>);

impl Written {
    /// Waits until the record is on disk.
    ///
    /// # Errors
    /// When it is not and will not be.
    pub async fn durable(&self) -> Result<(), JournalError> {
        let mut fate = self.0.clone();
        let fate = fate.wait_for(Option::is_some).await;
        // The writer is gone without a word: nothing is known of the record.
        fate.ok()
            .and_then(|fate| *fate)
            .unwrap_or(Err(JournalError::Broken))
    }

    /// Whether it is known by now that the record is not on disk and will not be.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(*self.0.borrow(), Some(Err(_)))
    }

    /// A record that is known to be on disk: it was read from there.
    pub(crate) fn already() -> Self {
        Self(watch::channel(Some(Ok(()))).1)
    }
}

impl Journal {
    /// Opens or makes the journal at `path`, with what it knows to be unfinished. A torn end is
    /// cut off; the file is compacted.
    ///
    /// # Errors
    /// When the file cannot be read or written, or was written by a newer version.
    pub fn open(path: &Path) -> Result<(Self, Vec<Unfinished>), OpenError> {
        let (writer, unfinished) = Writer::open(path)?;
        let (jobs, queue) = sync_channel(JOURNAL_QUEUED);
        let thread = std::thread::Builder::new().name("journal".to_owned());
        thread
            .spawn(move || writer.run(&queue))
            .map_err(|source| OpenError::io("starting the thread of", path, source))?;
        Ok((Self { jobs }, unfinished))
    }

    /// Hands a record to the writer; never blocks.
    ///
    /// # Errors
    /// When the queue is full or the writer has ended.
    pub fn append(&self, record: Record) -> Result<Written, JournalError> {
        let (fate, written) = watch::channel(None);
        match self.jobs.try_send(Ask::Write(Job { record, fate })) {
            Ok(()) => Ok(Written(written)),
            Err(TrySendError::Full(_)) => Err(JournalError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(JournalError::Broken),
        }
    }
    /// Makes durable what was handed in, and writes nothing from then on: another agent takes the
    /// file over. Records that come later are refused.
    ///
    /// # Errors
    /// When the writer is too busy to be told, which changes nothing, or the disk failed before.
    pub async fn close(&self) -> Result<(), JournalError> {
        let (fate, written) = watch::channel(None);
        match self.jobs.try_send(Ask::Close(fate)) {
            Ok(()) => Written(written).durable().await,
            Err(TrySendError::Full(_)) => Err(JournalError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(JournalError::Broken),
        }
    }
}
