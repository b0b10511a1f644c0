//! The highest checkpoint of the broker's log this agent has seen, kept across restarts.
//!
//! It is shown in every `Hello`: a broker whose log does not extend it was restored from an
//! old copy, and learns so from us. It must never go down.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use ephor_crypto::ed25519;
use ephor_proto::log::{Checkpoint, SignedNote, VerifierKey};

use super::identity::write_private;

/// The file and what is in it.
pub struct Highest {
    path: PathBuf,
    /// Guards file and value together.
    current: Mutex<Option<(u64, String)>>,
}

impl Highest {
    /// Reads the file; a missing or damaged one counts as none, because it only makes the
    /// check weaker, never wrong.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let current = std::fs::read_to_string(&path)
            .ok()
            .and_then(|note| Some((tree_size(&note)?, note)));
        Self {
            path,
            current: Mutex::new(current),
        }
    }

    /// The note, empty when none was seen.
    #[must_use]
    pub fn note(&self) -> String {
        self.lock()
            .as_ref()
            .map(|(_, note)| note.clone())
            .unwrap_or_default()
    }

    /// Keeps `note` if its tree is larger than any before; durable when this returns true.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn raise(&self, note: &str) -> io::Result<bool> {
        let Some(size) = tree_size(note) else {
            return Ok(false);
        };
        let mut current = self.lock();
        if current
            .as_ref()
            .is_some_and(|(highest, _)| *highest >= size)
        {
            return Ok(false);
        }
        write_private(&self.path, note.as_bytes())?;
        *current = Some((size, note.to_owned()));
        Ok(true)
    }

    /// The broker began a new epoch, whose log has another name: what was seen of the one before is
    /// kept beside, as evidence, and no longer compared.
    ///
    /// # Errors
    /// When the files cannot be written; the old one then still stands.
    pub fn begin_again(&self) -> io::Result<()> {
        let mut current = self.lock();
        if let Some((_, note)) = current.as_ref() {
            write_private(&self.path.with_extension("before"), note.as_bytes())?;
            write_private(&self.path, b"")?;
        }
        *current = None;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(u64, String)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `note` is a checkpoint signed by the log whose C2SP verifier key is `log_key`.
///
/// # Errors
/// What is wrong with note, key or signature.
pub(super) fn verify(note: &str, log_key: &str) -> Result<(), String> {
    let key: VerifierKey = log_key.parse().map_err(|error| format!("{error}"))?;
    let note: SignedNote = note.parse().map_err(|error| format!("{error}"))?;
    let text = note
        .verify(&key, |public, message, signature| {
            ed25519::verify(public, message, signature)
        })
        .map_err(|error| error.to_string())?;
    text.parse::<Checkpoint>()
        .map(drop)
        .map_err(|error| error.to_string())
}

/// The second line of a checkpoint (C2SP tlog-checkpoint): the number of leaves.
fn tree_size(note: &str) -> Option<u64> {
    if note.len() > ephor_proto::limits::MAX_NOTE_BYTES {
        return None;
    }
    let line = note.lines().nth(1)?;
    let canonical =
        line.bytes().all(|b| b.is_ascii_digit()) && (line == "0" || !line.starts_with('0'));
    line.parse().ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(size: u64) -> String {
        format!("ephor.example/log\n{size}\nq83vEjRWeJA=\n\n\u{2014} ephor.example/log abc\n")
    }

    #[test]
    fn only_the_logs_own_signature_counts() {
        let key = ed25519::LogKey::generate().unwrap();
        let verifier = VerifierKey::new("ephor.test/log", key.public()).unwrap();
        let text = Checkpoint::new("ephor.test/log", 7, [1; 32])
            .unwrap()
            .to_string();
        let note = SignedNote::new(text.clone(), &verifier, key.sign(text.as_bytes())).to_string();
        verify(&note, &verifier.to_string()).unwrap();
        assert!(verify(&note.replace("\n7\n", "\n8\n"), &verifier.to_string()).is_err());
        let other = VerifierKey::new(
            "ephor.test/log",
            ed25519::LogKey::generate().unwrap().public(),
        )
        .unwrap();
        assert!(verify(&note, &other.to_string()).is_err());
        assert!(verify(&note, "").is_err() && verify("rubbish", &verifier.to_string()).is_err());
    }

    #[test]
    fn it_only_goes_up_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let highest = Highest::open(path.clone());
        assert_eq!(highest.note(), "");
        assert!(highest.raise(&note(7)).unwrap());
        assert!(!highest.raise(&note(7)).unwrap());
        assert!(!highest.raise(&note(3)).unwrap());
        assert!(!highest.raise("rubbish").unwrap());
        assert!(!highest.raise("a\n09\nb").unwrap());
        assert_eq!(highest.note(), note(7));
        assert_eq!(Highest::open(path.clone()).note(), note(7));
        assert!(highest.raise(&note(10)).unwrap());
        assert_eq!(Highest::open(path.clone()).note(), note(10));
        highest.begin_again().unwrap();
        assert_eq!(Highest::open(path.clone()).note(), "");
        let kept = std::fs::read_to_string(path.with_extension("before")).unwrap();
        assert_eq!(kept, note(10));
        assert!(highest.raise(&note(2)).unwrap());
        assert_eq!(Highest::open(path).note(), note(2));
    }
}
