//! A backup: a copy of the store with a manifest, in a directory that appears whole or not at all.
//!
//! The manifest is bound to the master key, without which nothing of the copy is of use, so that
//! whoever keeps backups cannot alter one unseen. The master key itself stays where it is unless it
//! was asked for: a copy that opens itself is worth as much as the broker.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ephor_crypto::digest::{Sha256Hasher, hex, sha256};
use ephor_crypto::seal::SealingKey;
use ephor_proto::event::Outcome;
use ephor_proto::http::admin;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::time::{Boottime, UnixMillis};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::app::Broker;
use crate::files;
use crate::ledger::log::signed_checkpoint_of;
use crate::ledger::{Batch, Lane, inspect};
use crate::limits;
use crate::request::Refusal;

/// The copy.
pub(super) const DATABASE: &str = "ephor.db";
/// What stands in the directory beside the copy.
pub(super) const MANIFEST: &str = "manifest.json";
/// Binds [`MANIFEST`] to the master key.
pub(super) const SEAL: &str = "manifest.seal";
/// The master key, when it was asked for.
pub(super) const MASTER_KEY: &str = "master.key";
/// How the name of a copy ends that is not whole yet.
const PARTIAL: &str = ".partial";
/// The form of [`Manifest`] that this version writes and reads.
const FORMAT: u32 = 1;
/// What the seal is bound to.
const RECORD: &str = "backup/manifest/sha256";

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Form of this file.
    pub format: u32,
    /// When the copy was made.
    pub made_at: UnixMillis,
    /// Version of the broker that made it.
    pub version: String,
    /// Installation id.
    pub installation: String,
    /// Epoch of the store.
    pub epoch: u32,
    /// Trust domain.
    pub trust_domain: String,
    /// Origin line of the log.
    pub origin: String,
    /// Events in the log of the copy.
    pub log_size: u64,
    /// Signed checkpoint of exactly that log.
    pub checkpoint: String,
    /// Bytes of the copy.
    pub bytes: u64,
    /// SHA-256 of the copy, in hex.
    pub sha256: String,
    /// Whether the master key is in the backup, too.
    pub master_key: bool,
}

impl Manifest {
    pub(super) const fn is_known_form(&self) -> bool {
        self.format == FORMAT
    }
}

/// Why there is no backup. Nothing is left where it should have been.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("{path}: {error}")]
    Io {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("the copy: {0}")]
    Copy(#[from] crate::ledger::OpenError),
    #[error("the copy's checkpoint: {0}")]
    Read(#[from] crate::ledger::ReadError),
    #[error("the manifest: {0}")]
    Manifest(String),
    /// What it was, and what became of the copy.
    #[error("{0}")]
    Removed(String),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::Io { path, error }
}

/// The one backup that runs or ran last.
#[derive(Default)]
pub(crate) struct Backups {
    /// Guards the state; held for a copy of it only.
    last: Mutex<Option<Last>>,
}

struct Last {
    state: admin::BackupState,
    /// When this became its state.
    since: Boottime,
}

impl Backups {
    fn set(&self, state: admin::BackupState, since: Boottime) {
        let last = Some(Last { state, since });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// Takes the one place.
    ///
    /// # Errors
    /// Why it is not free: another runs, or is being fetched.
    fn begin(&self, begun: &admin::BackupState, now: Boottime) -> Result<(), String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last {
            let at = Path::new(&last.state.at);
            let is_new = now < last.since.saturating_add(limits::BACKUP_FETCHED_WITHIN);
            match last.state.state {
                admin::BackupStage::Running => {
                    return Err("a backup is being made already".to_owned());
                }
                admin::BackupStage::Done
                    if at.exists() && (is_new || Unfetched::of(at).is_none()) =>
                {
                    return Err(format!(
                        "another command is fetching the backup in {}; try again when it is done",
                        at.display()
                    ));
                }
                admin::BackupStage::Done | admin::BackupStage::Failed => {}
            }
        }
        *last = Some(Last {
            state: begun.clone(),
            since: now,
        });
        Ok(())
    }

    /// What became of it.
    pub(crate) fn last(&self) -> Option<admin::BackupState> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|last| last.state.clone())
    }
}

impl Broker {
    /// Begins a backup into a new directory below our own, since we may write nowhere else; ask
    /// [`Broker::last_backup`] how it goes.
    ///
    /// # Errors
    /// When another backup runs, or the store is full: what lies in the reserve would be missing.
    pub fn begin_backup(
        self: &Arc<Self>,
        asked: admin::Backup,
    ) -> Result<admin::BackupState, Refusal> {
        self.vouch()?;
        if self.ledger.health().reserve_in_use {
            let detail = "the store is full, and some revocations lie in its reserve; free space first, or the \
                          backup would lack them";
            return Err(Refusal::new(Code::StoreFull, detail));
        }
        let into = self
            .paths
            .backups
            .join(self.clock.wall().as_millis().to_string());
        let begun = admin::BackupState::running(&into.display().to_string());
        self.backups
            .begin(&begun, self.clock.boottime())
            .map_err(|why| Refusal::new(Code::Busy, why))?;
        let broker = Arc::clone(self);
        self.tasks.spawn(
            "operate.backup",
            async move { broker.backup(into, asked).await },
        );
        Ok(begun)
    }

    /// Removes what an earlier run left of backups. Call before anything is served: nobody fetches
    /// one yet.
    pub(crate) async fn remove_left_backups(&self) {
        let backups = self.paths.backups.clone();
        let removing = tokio::task::spawn_blocking(move || remove_left(&backups));
        if let Err(error) = removing.await {
            tracing::error!(%error, "left backups could not be looked for");
        }
    }

    /// The backup that runs or ran last.
    #[must_use]
    pub fn last_backup(&self) -> Option<admin::BackupState> {
        self.backups.last()
    }

    async fn backup(self: Arc<Self>, into: PathBuf, asked: admin::Backup) {
        let with_master_key = asked.with_master_key;
        // A copy that nobody knows of must never be, also when this process dies now.
        if let Err(error) = self.record_begun(&asked).await {
            let error = format!("it could not be recorded, and was not begun: {error}");
            return self.backup_failed(&into, &error);
        }
        let (broker, path) = (Arc::clone(&self), into.clone());
        let made = tokio::task::spawn_blocking(move || write(&broker, &path, with_master_key));
        let manifest = match made.await {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(error)) => return self.backup_failed(&into, &error.to_string()),
            Err(error) => return self.backup_failed(&into, &error.to_string()),
        };
        if let Err(error) = self.record_backup(&asked.to, &manifest).await {
            let error = format!("that it is whole could not be recorded: {error}");
            return self.backup_failed(&into, &removed(&into, error));
        }
        tracing::info!(
            to = asked.to,
            events = manifest.log_size,
            bytes = manifest.bytes,
            "backup made"
        );
        let key_file = self.paths.master_key.display().to_string();
        let state = admin::BackupState {
            state: admin::BackupStage::Done,
            log_size: manifest.log_size,
            bytes: manifest.bytes,
            sha256: manifest.sha256,
            master_key: (!with_master_key).then_some(key_file),
            ..admin::BackupState::running(&into.display().to_string())
        };
        self.backups.set(state, self.clock.boottime());
    }

    fn backup_failed(&self, into: &Path, error: &str) {
        tracing::error!(error, "no backup was made");
        let state = admin::BackupState {
            state: admin::BackupStage::Failed,
            error: Some(error.to_owned()),
            ..admin::BackupState::running(&into.display().to_string())
        };
        self.backups.set(state, self.clock.boottime());
    }

    /// `operate.backup_begun`: from here on there may be a copy.
    async fn record_begun(&self, asked: &admin::Backup) -> Result<(), String> {
        let facts = [
            ("to", asked.to.clone()),
            ("master_key", asked.with_master_key.to_string()),
        ];
        self.record_of_backup("operate.backup_begun", "backup_begun", facts)
            .await
    }

    /// `operate.backup`: who keeps copies of the store should be no secret.
    async fn record_backup(&self, to: &str, manifest: &Manifest) -> Result<(), String> {
        let facts = [
            ("to", to.to_owned()),
            ("log_size", manifest.log_size.to_string()),
            ("bytes", manifest.bytes.to_string()),
            ("sha256", manifest.sha256.clone()),
            ("master_key", manifest.master_key.to_string()),
        ];
        self.record_of_backup("operate.backup", "backup", facts)
            .await
    }

    async fn record_of_backup<const N: usize>(
        &self,
        name: &'static str,
        verb: &str,
        facts: [(&str, String); N],
    ) -> Result<(), String> {
        let event = self.event(Stage::Operate, verb, Outcome::Ok);
        let mut event = event.map_err(|refusal| refusal.detail)?;
        let facts = facts.map(|(name, value)| (name.to_owned(), value));
        event.facts.extend(facts);
        let batch = Batch {
            name,
            lane: Lane::Normal,
            require: Vec::new(),
            rows: Vec::new(),
            events: vec![event.into()],
        };
        let ticket = self.ledger.submit(batch).map_err(|full| full.to_string())?;
        ticket.await.map(drop).map_err(|error| error.to_string())
    }
}

/// Everything into a directory beside, which then gets its name.
fn write(broker: &Broker, to: &Path, with_master_key: bool) -> Result<Manifest, BackupError> {
    let partial = files::beside(to, PARTIAL);
    remove_left(files::parent(to));
    files::make_directory(&partial).map_err(io(&partial))?;
    let made = fill(broker, &partial, with_master_key).and_then(|manifest| {
        std::fs::rename(&partial, to).map_err(io(to))?;
        files::sync(files::parent(to)).map_err(io(to))?;
        Ok(manifest)
    });
    made.map_err(|error| BackupError::Removed(removed(&partial, error.to_string())))
}

/// Removes what there is of a copy, and says so behind `error`.
fn removed(copy: &Path, error: String) -> String {
    match std::fs::remove_dir_all(copy) {
        Ok(()) => format!("{error}; the copy was removed"),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => error,
        Err(why) => format!(
            "{error}; what there is of the copy in {} could not be removed: {why}. Remove it",
            copy.display()
        ),
    }
}

/// A copy that nobody fetches, and nobody begins to while this lives: who does holds its lock.
struct Unfetched(#[allow(dead_code)] File);

impl Unfetched {
    fn of(copy: &Path) -> Option<Self> {
        let directory = File::open(copy).ok()?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self(directory))
    }
}

/// Removes copies that were never finished or never fetched: of a broker or a command that died.
/// Nothing else in there is touched, nor what a command is fetching.
fn remove_left(backups: &Path) {
    let Ok(entries) = std::fs::read_dir(backups) else {
        return;
    };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str() else { continue };
        let number = name.strip_suffix(PARTIAL).unwrap_or(name);
        if number.parse::<u64>().is_err() {
            continue;
        }
        let Some(_unfetched) = Unfetched::of(&path) else {
            tracing::info!(copy = %path.display(), "a backup is being fetched; it stays");
            continue;
        };
        match std::fs::remove_dir_all(&path) {
            Ok(()) => {
                tracing::warn!(copy = %path.display(), "a backup that nobody fetched was removed")
            }
            Err(error) => {
                tracing::error!(%error, copy = %path.display(), "a backup that nobody fetched could not be removed; remove it");
            }
        }
    }
}

fn fill(broker: &Broker, into: &Path, with_master_key: bool) -> Result<Manifest, BackupError> {
    let copy = into.join(DATABASE);
    broker.ledger.copy_to(&copy)?;
    let found = inspect(&copy)?;
    let checkpoint = signed_checkpoint_of(found.head, &broker.log_signer())?;
    let (bytes, sha256) = digest(&copy).map_err(io(&copy))?;
    let manifest = Manifest {
        format: FORMAT,
        made_at: broker.clock.wall(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        installation: found.installation.id,
        epoch: found.installation.epoch,
        trust_domain: found.installation.trust_domain,
        origin: found.installation.origin,
        log_size: found.head.size,
        checkpoint: checkpoint.to_string(),
        bytes,
        sha256,
        master_key: with_master_key,
    };
    let json = serde_json::to_vec_pretty(&manifest);
    let json = json.map_err(|error| BackupError::Manifest(error.to_string()))?;
    let seal = seal(&broker.sealer, &json).map_err(BackupError::Manifest)?;
    private(&into.join(MANIFEST), &json)?;
    private(&into.join(SEAL), &seal)?;
    if with_master_key {
        let from = &broker.paths.master_key;
        let key = zeroize::Zeroizing::new(std::fs::read(from).map_err(io(from))?);
        private(&into.join(MASTER_KEY), &key)?;
    }
    files::sync(into).map_err(io(into))?;
    Ok(manifest)
}

fn private(path: &Path, content: &[u8]) -> Result<(), BackupError> {
    files::write_new(path, content, files::PRIVATE).map_err(io(path))
}

/// Length and SHA-256 of a file.
pub(super) fn digest(path: &Path) -> std::io::Result<(u64, String)> {
    let (mut file, mut hash, mut length) = (File::open(path)?, Sha256Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else {
            return Ok((length, hex(&hash.finish())));
        };
        hash.update(part);
        length += read as u64;
    }
}

fn seal(sealer: &SealingKey, manifest: &[u8]) -> Result<Vec<u8>, String> {
    let sealed = sealer.seal(RECORD, FORMAT, &sha256(manifest));
    sealed.map_err(|error| error.to_string())
}

/// Whether `seal` was made over `manifest` under this master key.
pub(super) fn is_sealed(sealer: &SealingKey, manifest: &[u8], seal: &[u8]) -> bool {
    let opened = sealer.open(RECORD, FORMAT, seal);
    opened.is_ok_and(|opened| opened.expose() == sha256(manifest).as_slice())
}

#[cfg(test)]
mod tests;
