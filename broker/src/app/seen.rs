//! Going back in time: agents show the highest checkpoint they have seen. A log that does not
//! extend it was restored from an older copy, and must not issue (promise P6).

use ephor_proto::limits::MAX_NOTE_BYTES;
use ephor_proto::log::{Checkpoint, SignedNote};
use ephor_proto::problem::Code;

use super::Broker;
use crate::issue::store_unavailable;
use crate::ledger::log::{root_at, signed_checkpoint};
use crate::request::Refusal;

impl Broker {
    /// The newest signed checkpoint, as a note.
    pub(crate) fn newest_checkpoint(&self) -> Result<String, Refusal> {
        let signer = self.log_signer();
        let note = signed_checkpoint(&self.ledger.reader(), &signer).map_err(store_unavailable)?;
        Ok(note.to_string())
    }

    /// Compares what the agent of `host` has seen of our log with what we have. A log that went
    /// back stops issuing; the agent is let in all the same, because revoking goes on.
    ///
    /// # Errors
    /// `invalid_request` when the note is not one of this log.
    pub(crate) fn compare_with_seen(&self, host: &str, note: &str) -> Result<(), Refusal> {
        if note.is_empty() {
            return Ok(());
        }
        let seen = self.read_note(note)?;
        let root = root_at(&self.ledger.reader(), seen.size()).map_err(store_unavailable)?;
        if root == Some(seen.root()) {
            return Ok(());
        }
        let size = self.ledger.head().size;
        self.stop_issuing(format!(
            "host `{host}` has seen {} events of this log with another root; this store has {size}: it was restored \
             from an older copy, or replaced. Bring the newest copy back; nothing is issued meanwhile",
            seen.size()
        ));
        Ok(())
    }

    fn read_note(&self, note: &str) -> Result<Checkpoint, Refusal> {
        let invalid = |why: String| {
            Refusal::new(
                Code::InvalidRequest,
                format!("`checkpoint` is not of this log: {why}"),
            )
        };
        if note.len() > MAX_NOTE_BYTES {
            return Err(Refusal::new(
                Code::TooLarge,
                "`checkpoint` is longer than any note of this log",
            ));
        }
        let note: SignedNote = note.parse().map_err(|error| invalid(format!("{error}")))?;
        let verify = |public: &[u8; 32], message: &[u8], signature: &[u8]| {
            ephor_crypto::ed25519::verify(public, message, signature)
        };
        // An agent that was off may hold a note by a key that signs no more. It shows what was
        // seen all the same; by the newest that signed it.
        let keys = self.keys.load();
        let mut why = String::new();
        let text = keys.log_vkeys().iter().rev().find_map(|key| {
            let text = note.verify(key, verify);
            text.map_err(|error| why = error.to_string()).ok()
        });
        let text = text.ok_or_else(|| invalid(why))?;
        text.parse().map_err(|error| invalid(format!("{error}")))
    }
}
