//! Agents show the highest checkpoint they have seen. A log that does not extend it was restored
//! from an older copy.
//!
//! Only our own signature makes a note evidence: an agent can neither invent one nor change one, so
//! a compromised host cannot stop the broker.

use ephor_proto::limits::MAX_NOTE_BYTES;
use ephor_proto::log::{Checkpoint, SignedNote, VerifierKey};
use ephor_proto::problem::Code;

use super::Behind;
use crate::app::Broker;
use crate::issue::store_unavailable;
use crate::ledger::log::{root_at, signed_checkpoint};
use crate::request::Refusal;

impl Broker {
    /// The newest signed checkpoint, as a note.
    pub(crate) fn newest_checkpoint(&self) -> Result<String, Refusal> {
        // Two heads of one size would be signed otherwise.
        self.vouch()?;
        let signer = self.log_signer();
        let note = signed_checkpoint(&self.ledger.reader(), &signer).map_err(store_unavailable)?;
        Ok(note.to_string())
    }

    /// Compares what the agent of `host` has seen of our log with what we have.
    ///
    /// # Errors
    /// `log_rewound` when it has seen what this store does not have, now or before;
    /// `invalid_request` when the note is not one of this log.
    pub(crate) async fn compare_with_seen(&self, host: &str, note: &str) -> Result<(), Refusal> {
        if !note.is_empty() {
            let (seen, note) = self.parse_note(note)?;
            self.check_signature(seen.origin(), &note)?;
            if self.extends(&seen)? {
                // Every log begins with nothing: that says nothing of this one.
                if seen.size() > 0 {
                    self.confirmed();
                }
            } else {
                self.fell_behind(Behind {
                    since: self.clock.wall(),
                    host: Some(host.to_owned()),
                    size: self.ledger.head().size,
                    seen_size: seen.size(),
                    seen: note.to_string(),
                })
                .await;
            }
        }
        self.vouch()
    }

    /// Whether this log is the one of a checkpoint, or has grown from it.
    fn extends(&self, seen: &Checkpoint) -> Result<bool, Refusal> {
        let root = root_at(&self.ledger.reader(), seen.size()).map_err(store_unavailable)?;
        Ok(seen.origin() == self.installation.origin && root == Some(seen.root()))
    }

    fn parse_note(&self, text: &str) -> Result<(Checkpoint, SignedNote), Refusal> {
        if text.len() > MAX_NOTE_BYTES {
            let detail = "`checkpoint` is longer than any note of this log";
            return Err(Refusal::new(Code::TooLarge, detail));
        }
        let note: SignedNote = text.parse().map_err(|error| not_ours(&error))?;
        let checkpoint = note.text.parse().map_err(|error| not_ours(&error))?;
        Ok((checkpoint, note))
    }

    /// An agent that was off may hold a note by a key that signs no more. It shows what was seen
    /// all the same. So does one of an epoch that this store has never heard of; one of an epoch
    /// before says nothing about this.
    fn check_signature(&self, origin: &str, note: &SignedNote) -> Result<(), Refusal> {
        if self.former_origins.iter().any(|former| former == origin) {
            return Err(not_ours(&format!(
                "{origin} is the log of an earlier epoch"
            )));
        }
        let verify = |public: &[u8; 32], message: &[u8], signature: &[u8]| {
            ephor_crypto::ed25519::verify(public, message, signature)
        };
        let keys = self.keys.load();
        let mut why = "it has no key".to_owned();
        let is_ours = keys.log_vkeys().iter().rev().any(|key| {
            let key = VerifierKey::new(origin, *key.public_key());
            let outcome = key.and_then(|key| note.verify(&key, verify).map(drop));
            outcome.map_err(|error| why = error.to_string()).is_ok()
        });
        if is_ours { Ok(()) } else { Err(not_ours(&why)) }
    }
}

fn not_ours(why: &dyn std::fmt::Display) -> Refusal {
    let detail = format!("`checkpoint` is not of this log: {why}");
    Refusal::new(Code::InvalidRequest, detail)
}

#[cfg(test)]
mod tests;
