//! The reserve: a preallocated file that takes revocations when the store cannot (promise P9).
//!
//! What lies here was acknowledged as durable: it is put into the store before anything else,
//! and never thrown away. A frame counts only with its checksum, which covers the file's
//! generation, so that frames of an emptied reserve never come back.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use ephor_crypto::digest::sha256;

use super::encode::Encoded;
use crate::files;

const MAGIC: &[u8; 8] = b"EPHRSRV1";
/// Where frames begin: past the header's own block.
const FIRST: u64 = 4096;
/// Length, sequence number, checksum.
const FRAME_HEADER: usize = 4 + 8 + 32;

/// A batch in the reserve.
pub(super) struct Frame {
    /// Grows over the life of the store; tells which frames the store already has.
    pub(super) seq: u64,
    /// The batch.
    pub(super) batch: Encoded,
}

/// The open file.
pub(super) struct Reserve {
    file: File,
    size: u64,
    generation: u64,
    /// Where the next frame goes.
    end: u64,
    next_seq: u64,
}

/// Why frames were not written.
#[derive(Debug)]
pub(super) enum NotReserved {
    /// No place left.
    Full,
    /// A batch cannot be encoded.
    Invalid(String),
    /// Writing or flushing failed: what is on disk is not known.
    Io(io::Error),
}

impl Reserve {
    /// Opens the file, or makes it at its full size; returns what lies in it. A damaged header
    /// is an error of kind `InvalidData`.
    pub(super) fn open(path: &Path, size: u64) -> io::Result<(Self, Vec<Frame>)> {
        let options = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .clone();
        let file = options.open(path)?;
        let length = file.metadata()?.len();
        if length < FIRST {
            preallocate(&file, size)?;
            let mut reserve = Self {
                file,
                size,
                generation: 0,
                end: FIRST,
                next_seq: 1,
            };
            reserve.clear()?;
            files::sync(files::parent(path))?;
            return Ok((reserve, Vec::new()));
        }
        let mut header = [0; 48];
        file.read_exact_at(&mut header, 0)?;
        let generation = parse_header(&header).ok_or_else(|| {
            let text = format!("the header of {} is damaged", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        let mut reserve = Self {
            file,
            size: length,
            generation,
            end: FIRST,
            next_seq: 1,
        };
        let frames = reserve.scan()?;
        Ok((reserve, frames))
    }

    /// Sequence numbers up to this one are used.
    pub(super) fn used_up_to(&mut self, seq: u64) {
        self.next_seq = self.next_seq.max(seq.saturating_add(1));
    }

    /// Writes batches behind one flush: all of them, or `Full` and none.
    pub(super) fn append(&mut self, batches: &[&Encoded]) -> Result<(), NotReserved> {
        let mut bytes = Vec::new();
        let mut seq = self.next_seq;
        for batch in batches {
            let payload = serde_json::to_vec(batch)
                .map_err(|error| NotReserved::Invalid(error.to_string()))?;
            let length = u32::try_from(payload.len())
                .map_err(|error| NotReserved::Invalid(error.to_string()))?;
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&seq.to_le_bytes());
            bytes.extend_from_slice(&self.checksum(seq, &payload));
            bytes.extend_from_slice(&payload);
            seq += 1;
        }
        let end = self.end + bytes.len() as u64;
        if end > self.size {
            return Err(NotReserved::Full);
        }
        self.file
            .write_all_at(&bytes, self.end)
            .map_err(NotReserved::Io)?;
        self.file.sync_data().map_err(NotReserved::Io)?;
        (self.end, self.next_seq) = (end, seq);
        Ok(())
    }

    /// Forgets all frames: the store has them.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.generation += 1;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&self.generation.to_le_bytes());
        let checksum = sha256(&header);
        header.extend_from_slice(&checksum);
        self.file.write_all_at(&header, 0)?;
        self.file.sync_data()?;
        self.end = FIRST;
        Ok(())
    }

    /// What lies here.
    pub(super) fn frames(&mut self) -> io::Result<Vec<Frame>> {
        self.end = FIRST;
        self.scan()
    }

    /// Reads frames until the first that is torn or absent.
    fn scan(&mut self) -> io::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some((seq, payload)) = self.frame_at(self.end)? {
            self.end += (FRAME_HEADER + payload.len()) as u64;
            self.used_up_to(seq);
            let batch = serde_json::from_slice(&payload)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            frames.push(Frame { seq, batch });
        }
        Ok(frames)
    }

    fn frame_at(&self, at: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut header = [0; FRAME_HEADER];
        if at + FRAME_HEADER as u64 > self.size {
            return Ok(None);
        }
        self.file.read_exact_at(&mut header, at)?;
        let (length, rest) = header.split_at(4);
        let (seq, checksum) = rest.split_at(8);
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
        let seq = u64::from_le_bytes(seq.try_into().unwrap_or_default());
        if length == 0 || at + FRAME_HEADER as u64 + u64::from(length) > self.size {
            return Ok(None);
        }
        let mut payload = vec![0; length as usize];
        self.file
            .read_exact_at(&mut payload, at + FRAME_HEADER as u64)?;
        let whole = self.checksum(seq, &payload) == checksum;
        Ok(whole.then_some((seq, payload)))
    }

    fn checksum(&self, seq: u64, payload: &[u8]) -> [u8; 32] {
        let mut message = Vec::with_capacity(16 + payload.len());
        message.extend_from_slice(&self.generation.to_le_bytes());
        message.extend_from_slice(&seq.to_le_bytes());
        message.extend_from_slice(payload);
        sha256(&message)
    }
}

fn parse_header(header: &[u8; 48]) -> Option<u64> {
    let (content, checksum) = header.split_at(16);
    let (magic, generation) = content.split_at(8);
    let whole = magic == MAGIC && sha256(content) == checksum;
    whole.then_some(u64::from_le_bytes(generation.try_into().ok()?))
}

/// Writes zeros, so that the blocks are there when the file system has none left to give.
fn preallocate(file: &File, size: u64) -> io::Result<()> {
    let zeros = [0; 64 * 1024];
    let mut at = 0;
    while at < size {
        let part = zeros.get(
            ..usize::try_from(size - at)
                .unwrap_or(usize::MAX)
                .min(zeros.len()),
        );
        let part = part.unwrap_or(&zeros);
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::batch::Lane;
    use super::*;

    fn batch(name: &str) -> Encoded {
        let (require, rows, leaves) = (Vec::new(), Vec::new(), Vec::new());
        Encoded {
            name: name.to_owned(),
            lane: Lane::Revoke,
            require,
            rows,
            leaves,
        }
    }

    fn names(path: &Path) -> Vec<String> {
        let (_, frames) = Reserve::open(path, 64 * 1024).unwrap();
        frames.into_iter().map(|frame| frame.batch.name).collect()
    }

    #[test]
    fn what_was_appended_is_read_again_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let (mut reserve, frames) = Reserve::open(&path, 64 * 1024).unwrap();
        assert!(frames.is_empty());
        assert_eq!(path.metadata().unwrap().len(), 64 * 1024);
        reserve.append(&[&batch("a"), &batch("b")]).unwrap();
        reserve.append(&[&batch("c")]).unwrap();
        assert_eq!(names(&path), ["a", "b", "c"]);
        reserve.clear().unwrap();
        assert!(names(&path).is_empty());
        // Same length as the old first frame: what follows it is old and must stay dead.
        reserve.append(&[&batch("d")]).unwrap();
        assert_eq!(names(&path), ["d"]);
    }

    #[test]
    fn a_torn_frame_ends_the_reading_and_a_full_file_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let (mut reserve, _) = Reserve::open(&path, 8192).unwrap();
        reserve.append(&[&batch("a"), &batch("b")]).unwrap();
        let torn = reserve.end - 3;
        reserve.file.write_all_at(b"x", torn).unwrap();
        assert_eq!(names(&path), ["a"]);
        let before = reserve.end;
        let huge = batch(&"x".repeat(8192));
        assert!(matches!(
            reserve.append(&[&batch("c"), &huge]),
            Err(NotReserved::Full)
        ));
        assert_eq!(reserve.end, before);
    }

    #[test]
    fn a_damaged_header_is_an_error_not_an_empty_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let (reserve, _) = Reserve::open(&path, 8192).unwrap();
        reserve.file.write_all_at(b"x", 3).unwrap();
        let error = Reserve::open(&path, 8192).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
