//! The file format: a line that names version and format, then frames of length, checksum and
//! JSON. The checksum is the start of a SHA-256: it finds damage, it proves nothing.

use std::path::{Path, PathBuf};

use ephor_crypto::digest::sha256;

use super::record::Record;
use crate::limits::MAX_JOURNAL_RECORD_BYTES;

/// Version that this build writes, and the newest that it reads.
const VERSION: u32 = 1;
/// First line of the file, before the version.
const MAGIC: &str = "ephor-agent-journal ";
/// Length (32 bit, little endian) and checksum.
const FRAME_HEAD: usize = 4 + CHECK;
const CHECK: usize = 8;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is no journal.
    #[error("{0} is not a journal of ephor-agent; move it away or name another state directory")]
    Foreign(PathBuf),
    /// It was written by a later release.
    #[error(
        "{path} has format {found}, this build reads up to {VERSION}: run the newer ephor-agent, or let its tasks end first"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The disk said no.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl OpenError {
    pub(super) fn io(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// The first line.
pub(super) fn head() -> Vec<u8> {
    format!("{MAGIC}{VERSION}\n").into_bytes()
}

/// One record as bytes; `None` when it is larger than a reader would take.
pub(super) fn frame(record: &Record) -> Option<Vec<u8>> {
    let body = serde_json::to_vec(record)
        .ok()
        .filter(|body| body.len() <= MAX_JOURNAL_RECORD_BYTES)?;
    let mut frame = u32::try_from(body.len()).ok()?.to_le_bytes().to_vec();
    frame.extend(sha256(&body).into_iter().take(CHECK));
    frame.extend(body);
    Some(frame)
}

/// The whole records of a file, and how many bytes after them are torn or damaged.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Record>, usize), OpenError> {
    let mut rest = after_head(path, bytes)?;
    let mut records = Vec::new();
    while let Some((record, after)) = first_frame(rest) {
        records.push(record);
        rest = after;
    }
    Ok((records, rest.len()))
}

fn after_head<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], OpenError> {
    // A crash while the file was made leaves the start of the line.
    if head().starts_with(bytes) {
        return Ok(&[]);
    }
    let foreign = || OpenError::Foreign(path.to_owned());
    let rest = bytes.strip_prefix(MAGIC.as_bytes()).ok_or_else(foreign)?;
    let end = rest
        .iter()
        .take(11)
        .position(|byte| *byte == b'\n')
        .ok_or_else(foreign)?;
    let (version, rest) = rest.split_at_checked(end).ok_or_else(foreign)?;
    let version = std::str::from_utf8(version)
        .ok()
        .and_then(|text| text.parse().ok());
    match version {
        Some(found) if found > VERSION => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
        }),
        Some(VERSION) => Ok(rest.get(1..).unwrap_or_default()),
        Some(_) | None => Err(foreign()),
    }
}

fn first_frame(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD)?;
    let (length, check) = head.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length > MAX_JOURNAL_RECORD_BYTES {
        return None;
    }
    let (body, rest) = rest.split_at_checked(length)?;
    if !sha256(body).starts_with(check) {
        return None;
    }
    serde_json::from_slice(body)
        .ok()
        .map(|record| (record, rest))
}
