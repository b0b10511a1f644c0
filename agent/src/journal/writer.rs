//! The one thread that writes: groups what waits, makes it durable, then says so.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use tokio::sync::watch;

use super::JournalError;
use super::file::{OpenError, frame, head, parse};
use super::record::{Live, Record, Unfinished};
use crate::crash_point;
use crate::limits::{JOURNAL_COMPACT_BYTES, JOURNAL_GROUP};

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Ask {
    Write(Job),
    /// Write what came before, then nothing ever again.
    Close(watch::Sender<Option<Result<(), JournalError>>>),
}

/// A record and who waits for its fate.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) record: Record,
    pub(super) fate: watch::Sender<Option<Result<(), JournalError>>>,
}

#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes that are whole and durable.
    length: u64,
    /// Bytes right after the last compaction.
    compacted: u64,
    /// Size from which a compaction is thought of.
    compact_at: u64,
    live: Live,
    broken: bool,
}

impl Writer {
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Unfinished>), OpenError> {
        let bytes = read(path)?;
        let (records, torn) = parse(path, &bytes)?;
        if torn > 0 {
            // Its task is missing from the heartbeat, and so completed by the broker.
            tracing::warn!(path = %path.display(), bytes = torn, "journal ended in a torn record, cut off");
        }
        let mut live = Live::default();
        records.iter().for_each(|record| live.apply(record));
        let unfinished = live.unfinished();
        let (file, length) =
            compact(path, &live).map_err(|error| OpenError::io("writing", path, error))?;
        let writer = Self {
            path: path.to_owned(),
            file,
            length,
            compacted: length,
            compact_at: JOURNAL_COMPACT_BYTES,
            live,
            broken: false,
        };
        Ok((writer, unfinished))
    }

    pub(super) fn run(mut self, queue: &Receiver<Ask>) {
        while let Ok(first) = queue.recv() {
            let (mut group, mut closed, mut next) = (Vec::new(), None, Some(first));
            while let Some(ask) = next {
                match ask {
                    Ask::Write(job) => group.push(job),
                    Ask::Close(fate) => {
                        closed = Some(fate);
                        break;
                    }
                }
                let more = group.len() < JOURNAL_GROUP;
                next = if more { queue.try_recv().ok() } else { None };
            }
            self.write_group(group);
            if let Some(fate) = closed {
                let fine = if self.broken {
                    Err(JournalError::Broken)
                } else {
                    Ok(())
                };
                fate.send_replace(Some(fine));
                return;
            }
            self.compact_if_large();
        }
    }

    fn write_group(&mut self, group: Vec<Job>) {
        let mut bytes = Vec::new();
        let (framed, refused): (Vec<_>, Vec<_>) = group.into_iter().partition(|job| {
            frame(&job.record)
                .map(|frame| bytes.extend(frame))
                .is_some()
        });
        for job in refused {
            job.fate.send_replace(Some(Err(JournalError::Refused)));
        }
        if framed.is_empty() {
            return;
        }
        let result = self.make_durable(&bytes);
        if result.is_ok() {
            crash_point!("journal.written");
        }
        for job in framed {
            if result.is_ok() {
                self.live.apply(&job.record);
            }
            job.fate.send_replace(Some(result));
        }
    }

    fn make_durable(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        if self.broken {
            return Err(JournalError::Broken);
        }
        crash_point!("journal.before_write");
        if let Err(error) = self.file.write_all(bytes) {
            tracing::error!(path = %self.path.display(), %error, "journal not written");
            // Part of it may be there: it must not stand before the next record.
            let cut = self
                .file
                .set_len(self.length)
                .and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            self.broken = cut.is_err();
            return Err(JournalError::Refused);
        }
        crash_point!("journal.before_sync");
        if let Err(error) = self.file.sync_data() {
            tracing::error!(path = %self.path.display(), %error, "journal not durable; nothing new is handed over until a restart");
            self.broken = true;
            return Err(JournalError::Broken);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn compact_if_large(&mut self) {
        if self.broken || self.length < self.compact_at.max(self.compacted.saturating_mul(4)) {
            return;
        }
        match compact(&self.path, &self.live) {
            Ok((file, length)) => (self.file, self.length, self.compacted) = (file, length, length),
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "journal not compacted");
                // After the rename it is not known which file a restart would read.
                self.broken = !self.is_at_path();
                self.compacted = self.length;
            }
        }
    }

    fn is_at_path(&self) -> bool {
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let (open, named) = (
            self.file.metadata().map(identity),
            std::fs::metadata(&self.path).map(identity),
        );
        open.is_ok_and(|open| named.is_ok_and(|named| named == open))
    }
}

#[cfg(test)]
impl Writer {
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = file;
    }

    pub(super) fn compact_at(&mut self, bytes: u64) {
        self.compact_at = bytes;
    }
}

fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file
            .read_to_end(&mut bytes)
            .map(|_| bytes)
            .map_err(|error| OpenError::io("reading", path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(bytes),
        Err(error) => Err(OpenError::io("opening", path, error)),
    }
}

/// Writes what is live into a new file, makes it durable and puts it in the old one's place.
fn compact(path: &Path, live: &Live) -> std::io::Result<(File, u64)> {
    let mut bytes = head();
    live.records()
        .filter_map(|record| frame(&record))
        .for_each(|frame| bytes.extend(frame));
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    crash_point!("journal.before_rename");
    std::fs::rename(&beside, path)?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()?;
    crash_point!("journal.compacted");
    Ok((file, bytes.len() as u64))
}
