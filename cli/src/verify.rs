//! Checks an audit export: the same questions as `examples/verify.py`, by other code.
//!
//! Pure over a [`Source`], so that tests can tamper with every byte. The key comes from the caller and
//! never from the export: whoever can change the one could change the other.

mod export;
mod history;
mod source;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use ephor_proto::event::AuditEvent;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::limits::MAX_EVIDENCE_PER_LEAF;
use ephor_proto::log::{
    BadReceipt, Checkpoint, Receipt, SignedNote, VerifierKey, bundle_path, leaf_hash, split_bundle,
};
use ephor_proto::log::{TILE_WIDTH, tile_path, verify_receipt};
use serde::Deserialize;

pub use export::{Summary, check_target, export};
use history::History;
pub use source::{Dir, Source};

/// The event type of a task's receipt.
const RECEIPT: &str = "prove.receipt";
/// The event type of a pruning.
const PRUNING: &str = "operate.pruned";
/// Says how many leading events have no text, where some have none.
const PRUNED: &str = "log/pruned";
/// The event type of a credential's record.
const ISSUED: &str = "issue.recorded";

/// What does not hold. The text is for people and names the place.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A file is missing or cannot be read.
    #[error("{path}: {why}")]
    File {
        /// Inside the export.
        path: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// A file is not in its format.
    #[error("{path}: {why}")]
    Form {
        /// Inside the export.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The entries are not those that were signed.
    #[error("the entries do not hash to the root that {0} signed")]
    Root(String),
    /// A hash tile is not of these entries.
    #[error("{0} is not what its entries hash to")]
    Tile(String),
    /// The receipt of this task does not hold.
    #[error("receipt of {task}: {why}")]
    Receipt {
        /// The task.
        task: TaskId,
        /// What is wrong.
        why: String,
    },
}

/// A log whose entries, tiles and signature agree.
pub struct Log {
    key: VerifierKey,
    history: History,
    /// What was issued to whom, by task.
    issued: BTreeMap<String, Vec<CredentialId>>,
    /// Where each task's receipts are.
    receipts: BTreeMap<String, Vec<u64>>,
    /// The first so many events have no text in this export, only their hash.
    pruned: u64,
    /// Of how many events the log itself says that their text was pruned.
    told_pruned: u64,
}

/// The part of an event that is checked here; the rest may be newer than this program.
#[derive(Deserialize)]
struct Brief {
    #[serde(rename = "type")]
    event_type: String,
    outcome: String,
    task: Option<String>,
    credential: Option<BriefCredential>,
    #[serde(default)]
    facts: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct BriefCredential {
    id: CredentialId,
}

impl Log {
    /// Reads all entries and checks them against the signed checkpoint and the tiles.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn read(source: &impl Source, key: &VerifierKey) -> Result<Self, Refused> {
        let head = checkpoint(source, key)?;
        let mut log = Self {
            key: key.clone(),
            history: History::default(),
            issued: BTreeMap::new(),
            receipts: BTreeMap::new(),
            pruned: pruned(source, head.size())?,
            told_pruned: 0,
        };
        let without = log.pruned / u64::from(TILE_WIDTH);
        for tile in 0..without {
            log.add_hashes(source, tile)?;
        }
        for bundle in without..head.size().div_ceil(u64::from(TILE_WIDTH)) {
            log.add_bundle(source, bundle, width_of(head.size(), bundle))?;
        }
        if log.history.root(head.size()) != Some(head.root()) {
            return Err(Refused::Root(key.name().to_owned()));
        }
        log.check_tiles(source)?;
        if log.pruned > log.told_pruned {
            return Err(Refused::Form {
                path: PRUNED.to_owned(),
                why: format!(
                    "says that {} events lost their text, the log of {}",
                    log.pruned, log.told_pruned
                ),
            });
        }
        Ok(log)
    }

    /// How many events have only their hash here: retention took their text, and the log says so.
    pub fn pruned(&self) -> u64 {
        self.pruned
    }

    /// The hashes of a full bundle whose text was pruned; the root shows whether they are right.
    fn add_hashes(&mut self, source: &impl Source, number: u64) -> Result<(), Refused> {
        let path = format!("log/{}", tile_path(0, number, TILE_WIDTH));
        let bytes = source.file(&path)?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        if hashes.len() != usize::from(TILE_WIDTH) || !rest.is_empty() {
            return Err(Refused::Tile(path));
        }
        for hash in hashes {
            self.history.push(*hash);
        }
        Ok(())
    }

    /// Number of events.
    pub fn size(&self) -> u64 {
        self.history.size()
    }

    fn add_bundle(&mut self, source: &impl Source, number: u64, width: u16) -> Result<(), Refused> {
        let path = format!("log/{}", bundle_path(number, width));
        let bytes = source.file(&path)?;
        let form = |why: String| Refused::Form {
            path: path.clone(),
            why,
        };
        let entries = split_bundle(&bytes).map_err(|why| form(why.to_string()))?;
        if entries.len() != usize::from(width) {
            return Err(form(format!(
                "has {} entries instead of {width}",
                entries.len()
            )));
        }
        for entry in entries {
            let index = self.history.push(leaf_hash(entry));
            let brief: Brief = serde_json::from_slice(entry)
                .map_err(|why| form(format!("leaf {index} is no event: {why}")))?;
            self.remember(index, brief);
        }
        Ok(())
    }

    fn remember(&mut self, index: u64, brief: Brief) {
        if brief.event_type == PRUNING
            && let Some(below) = brief.facts.get("entries_below")
        {
            let below = below.as_str().and_then(|below| below.parse().ok());
            self.told_pruned = self.told_pruned.max(below.unwrap_or(0));
        }
        let Some(task) = brief.task else { return };
        match (
            brief.event_type.as_str(),
            brief.outcome.as_str(),
            brief.credential,
        ) {
            (ISSUED, "ok", Some(credential)) => {
                self.issued.entry(task).or_default().push(credential.id)
            }
            (RECEIPT, "ok", _) => self.receipts.entry(task).or_default().push(index),
            (_, _, _) => {}
        }
    }

    fn check_tiles(&self, source: &impl Source) -> Result<(), Refused> {
        for level in 0u8..=7 {
            let hashes = self.history.subtrees(usize::from(level) * 8);
            for (tile, part) in (0u64..).zip(hashes.chunks(usize::from(TILE_WIDTH))) {
                let width = u16::try_from(part.len()).unwrap_or(TILE_WIDTH);
                let path = format!("log/{}", tile_path(level, tile, width));
                if source.file(&path)? != part.concat() {
                    return Err(Refused::Tile(path));
                }
            }
        }
        Ok(())
    }

    /// Checks that a task's receipt is in this log and tells of every credential the task was issued.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn check(&self, source: &impl Source, task: TaskId) -> Result<Proven, Refused> {
        let path = format!("receipts/{task}.json");
        let receipt: Receipt =
            serde_json::from_slice(&source.file(&path)?).map_err(|why| Refused::Form {
                path,
                why: format!("no receipt: {why}"),
            })?;
        self.prove(&receipt, task)
            .map_err(|why| Refused::Receipt { task, why })
    }

    fn prove(&self, receipt: &Receipt, task: TaskId) -> Result<Proven, String> {
        let verified = verify_receipt(receipt, &self.key, signed_by)
            .map_err(|why: BadReceipt| why.to_string())?;
        let (event, head) = (verified.event, verified.checkpoint);
        if head.size() > self.size() {
            return Err(format!("it is younger than this log of {}", self.size()));
        }
        if self.history.root(head.size()) != Some(head.root()) {
            return Err("its checkpoint is of another history".to_owned());
        }
        if self.history.leaf(receipt.index) != Some(leaf_hash(receipt.leaf.as_bytes())) {
            return Err(format!("leaf {} of the log is another one", receipt.index));
        }
        if event.event_type != RECEIPT || event.task != Some(task) {
            return Err("it is of another task, or no receipt".to_owned());
        }
        let known = self
            .receipts
            .get(&task.to_string())
            .map_or(&[][..], Vec::as_slice);
        let expected: &[u64] = match receipt.index < self.pruned {
            true => &[],
            false => &[receipt.index],
        };
        if known != expected {
            return Err("the log has more than one receipt of this task".to_owned());
        }
        self.check_complete(&event, task)?;
        Ok(Proven {
            task,
            index: receipt.index,
            event: Box::new(event),
        })
    }

    /// Every credential issued is told of, and no other. A receipt has room for so many; of the others
    /// it gives the number.
    fn check_complete(&self, event: &AuditEvent, task: TaskId) -> Result<(), String> {
        let issued: BTreeSet<CredentialId> = self
            .issued
            .get(&task.to_string())
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let told: BTreeSet<CredentialId> = event
            .evidence
            .iter()
            .map(|evidence| evidence.credential)
            .collect();
        if let Some(unsettled) = event
            .evidence
            .iter()
            .find(|evidence| !evidence.state.is_settled())
        {
            return Err(format!(
                "{} is {}, not ended",
                unsettled.credential,
                unsettled.state.as_str()
            ));
        }
        // What was issued in the pruned part is not known: all that is known must be told of.
        let is_whole = self.pruned == 0;
        if is_whole && let Some(stranger) = told.difference(&issued).next() {
            return Err(format!(
                "it tells of {stranger}, which the log did not issue to this task"
            ));
        }
        let counted = event.totals.map(|totals| totals.credentials as usize);
        let differs = |counted: usize| counted < issued.len() || is_whole && counted > issued.len();
        if counted.is_some_and(differs) {
            return Err(format!(
                "the log issued {}, the receipt counts {}",
                issued.len(),
                counted.unwrap_or(0)
            ));
        }
        let may_sum_up = told.len() >= MAX_EVIDENCE_PER_LEAF && counted.is_some();
        match issued.difference(&told).next() {
            Some(missing) if !may_sum_up => Err(format!(
                "it does not tell of {missing}, which the log issued"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// A receipt that holds.
pub struct Proven {
    /// The task.
    pub task: TaskId,
    /// Its leaf.
    pub index: u64,
    /// What it tells.
    pub event: Box<AuditEvent>,
}

/// Of `size` entries, how many are in bundle or tile `number`.
pub fn width_of(size: u64, number: u64) -> u16 {
    let before = number.saturating_mul(u64::from(TILE_WIDTH));
    u16::try_from(size.saturating_sub(before))
        .unwrap_or(TILE_WIDTH)
        .min(TILE_WIDTH)
}

/// How many leading events of an export of `size` have no text: whole bundles.
fn pruned(source: &impl Source, size: u64) -> Result<u64, Refused> {
    let text = match source.file(PRUNED) {
        Err(Refused::File { why, .. }) if why.kind() == std::io::ErrorKind::NotFound => {
            return Ok(0);
        }
        text => text?,
    };
    let number = String::from_utf8(text)
        .ok()
        .and_then(|text| text.trim_end().parse().ok());
    let fits = |number: &u64| *number <= size && number.is_multiple_of(u64::from(TILE_WIDTH));
    number.filter(fits).ok_or_else(|| Refused::Form {
        path: PRUNED.to_owned(),
        why: "is no number of whole bundles of this log".to_owned(),
    })
}

/// The signed checkpoint of an export, as `key` signed it.
fn checkpoint(source: &impl Source, key: &VerifierKey) -> Result<Checkpoint, Refused> {
    let path = "log/checkpoint";
    let form = |why: String| Refused::Form {
        path: path.to_owned(),
        why,
    };
    let text = String::from_utf8(source.file(path)?).map_err(|_| form("is no text".to_owned()))?;
    open(&text, key).map_err(form)
}

/// Size and root that `key` signed.
///
/// # Errors
/// When the note is malformed, not signed by this key, or of another log.
pub fn open(note: &str, key: &VerifierKey) -> Result<Checkpoint, String> {
    let note: SignedNote = note
        .parse()
        .map_err(|why: ephor_proto::log::BadNote| why.to_string())?;
    let text = note.verify(key, signed_by).map_err(|why| why.to_string())?;
    let head: Checkpoint = text
        .parse()
        .map_err(|why: ephor_proto::log::BadCheckpoint| why.to_string())?;
    if head.origin() != key.name() {
        return Err(format!(
            "is of log {}, the key of {}",
            head.origin(),
            key.name()
        ));
    }
    Ok(head)
}

fn signed_by(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    ephor_crypto::ed25519::verify(key, message, signature)
}
