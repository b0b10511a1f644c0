//! Where an export is read from.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use ephor_proto::id::TaskId;

use super::Refused;

/// Larger than any file of an export: 256 entries of 65535 bytes and their lengths.
const FILE_MAX: u64 = 17 << 20;

/// The files of an export.
pub trait Source {
    /// The bytes of a file, by its path inside the export.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    fn file(&self, path: &str) -> Result<Vec<u8>, Refused>;

    /// Tasks that have a file in `receipts/`.
    ///
    /// # Errors
    /// When the directory cannot be read, or holds something else.
    fn receipts(&self) -> Result<BTreeSet<TaskId>, Refused>;
}

/// A directory that `audit export` wrote.
#[derive(Debug, Clone)]
pub struct Dir(pub PathBuf);

impl Source for Dir {
    fn file(&self, path: &str) -> Result<Vec<u8>, Refused> {
        let mut bytes = Vec::new();
        let read = File::open(self.0.join(path))
            .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) if bytes.len() as u64 > FILE_MAX => Err(Refused::Form {
                path: path.to_owned(),
                why: "is larger than any file of an export".to_owned(),
            }),
            Ok(_) => Ok(bytes),
            Err(why) => Err(Refused::File {
                path: path.to_owned(),
                why,
            }),
        }
    }

    fn receipts(&self) -> Result<BTreeSet<TaskId>, Refused> {
        let at = |why| Refused::File {
            path: "receipts".to_owned(),
            why,
        };
        let entries = std::fs::read_dir(self.0.join("receipts")).map_err(at)?;
        let mut tasks = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(at)?.file_name();
            let name = name.to_string_lossy();
            let task = name
                .strip_suffix(".json")
                .and_then(|task| task.parse().ok());
            tasks.insert(task.ok_or_else(|| {
                at(std::io::Error::new(
                    ErrorKind::InvalidData,
                    format!("{name} is no receipt"),
                ))
            })?);
        }
        Ok(tasks)
    }
}
