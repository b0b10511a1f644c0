//! `ephor-broker restore`: a backup in the place of a store.
//!
//! Everything is checked before anything is touched; what was there before is moved aside, never
//! deleted. The restored store knows that it is one: it starts `behind`, because nobody can tell
//! what came after the copy.

use std::fs::File;
use std::path::{Path, PathBuf};

use ephor_crypto::Secret;
use ephor_crypto::seal::SealingKey;
use ephor_proto::log::{Checkpoint, SignedNote};
use ephor_proto::spiffe::TrustDomain;
use ephor_proto::time::UnixMillis;

use super::backup::{DATABASE, MANIFEST, MASTER_KEY, Manifest, SEAL, digest, is_sealed};
use super::behind::{Behind, META};
use crate::config::Config;
use crate::files;
use crate::keys::lacking::lacking;
use crate::keys::master::{MasterKeyError, Provider};
use crate::keys::{Keys, Owner};
use crate::ledger::{Inspected, KeyRow, OpenError, holder_of, inspect, keep_out, mark};
use crate::limits;

/// What to restore, and over what.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The backup.
    pub from: PathBuf,
    /// Move a store that is there aside.
    pub force: bool,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// When the copy was made.
    pub made_at: UnixMillis,
    /// Events in its log.
    pub log_size: u64,
    /// Where the store that was there before is now.
    pub aside: Option<PathBuf>,
    /// The master key came from the backup, too.
    pub master_key: bool,
}

impl std::fmt::Display for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "restored: the store as of {} ({} events).",
            self.made_at, self.log_size
        )?;
        if let Some(aside) = &self.aside {
            write!(f, "\nWhat was there before is in {}.", aside.display())?;
        }
        if self.master_key {
            write!(f, "\nThe master key came from the backup.")?;
        }
        write!(
            f,
            "\nNothing is issued from it yet. Start the broker, then:  ephor broker recover --reason TEXT --admit all"
        )
    }
}

/// Why nothing was restored. The store that was there stands as before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file could not be read or written.
    #[error("invalid: {path}: {error}. Nothing was restored")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The backup is not whole, not ours, or was altered.
    #[error("invalid: {path} is no whole backup: {what}. Nothing was restored")]
    Backup {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The master key.
    #[error(
        "invalid: {0}. A backup opens only with the master key of its broker. Nothing was restored"
    )]
    MasterKey(#[from] MasterKeyError),
    /// A broker runs there.
    #[error(
        "invalid: {path} is held by the running broker with pid {pid}; stop it first. Nothing was restored"
    )]
    Held {
        /// The store.
        path: PathBuf,
        /// Its process id.
        pid: u32,
    },
    /// A store is there.
    #[error(
        "invalid: there is a store at {path} already; if it is worse than the backup, --force moves it aside. \
         Nothing was restored"
    )]
    Present {
        /// The store.
        path: PathBuf,
    },
    /// The restored copy could not be finished.
    #[error("invalid: {0}. Nothing was restored")]
    Finish(#[from] OpenError),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> RestoreError {
    let path = path.to_owned();
    move |error| RestoreError::Io { path, error }
}

/// Puts a backup in the place of the configured store.
///
/// # Errors
/// [`RestoreError`] says what is wrong; nothing was changed then.
pub fn restore(
    config: &Config,
    options: &RestoreOptions,
    now: UnixMillis,
) -> Result<Restored, RestoreError> {
    let database = config.database();
    check_target(&database, options.force)?;
    let backup = Backup::read(&options.from)?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let own = Provider::of(config, credentials.as_deref());
    let key_file = own.path().to_owned();
    let own_key = key_file.exists();
    let provider = if own_key {
        own
    } else {
        Provider::File(options.from.join(MASTER_KEY))
    };
    let sealer = provider.open()?;
    let found = backup.check(&sealer)?;
    files::make_directory(&config.state_dir).map_err(io(&config.state_dir))?;
    if !own_key {
        copy_private(&options.from.join(MASTER_KEY), &key_file)?;
    }
    let staged = config.state_dir.join("ephor.db.restoring");
    // Of one that was killed: its journal would be played back into this copy.
    for left in [&staged, &files::beside(&staged, "-journal")] {
        let _ = std::fs::remove_file(left);
    }
    copy_private(&backup.database, &staged)?;
    if digest(&staged).map_err(io(&staged))?.1 != backup.manifest.sha256 {
        return Err(backup.wrong("it changed while it was copied"));
    }
    mark(&staged, META, &restored_mark(&found, now))?;
    let placed = put_in_place(config, &staged, options.force, now);
    if placed.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    let aside = placed?;
    Ok(Restored {
        made_at: backup.manifest.made_at,
        log_size: found.head.size,
        aside,
        master_key: !own_key,
    })
}

/// The copy in the place of the store that is there. Checking took its time, in which a broker may
/// have been started: asked again, and from here on none can be.
fn put_in_place(
    config: &Config,
    staged: &Path,
    force: bool,
    now: UnixMillis,
) -> Result<Option<PathBuf>, RestoreError> {
    let database = config.database();
    check_target(&database, force)?;
    // One that cannot be opened otherwise is opened by no broker either.
    if let Err(OpenError::Held { path, pid }) = keep_out(&database) {
        return Err(RestoreError::Held { path, pid });
    }
    let aside = move_aside(config, now)?;
    std::fs::rename(staged, &database).map_err(io(&database))?;
    sync(&config.state_dir)?;
    Ok(aside)
}

/// A store that a broker has open is never touched, any other only when that was asked for.
fn check_target(database: &Path, force: bool) -> Result<(), RestoreError> {
    if !database.exists() {
        return Ok(());
    }
    let path = database.to_owned();
    if let Some(pid) = holder_of(database) {
        return Err(RestoreError::Held { path, pid });
    }
    if force {
        Ok(())
    } else {
        Err(RestoreError::Present { path })
    }
}

fn restored_mark(found: &Inspected, now: UnixMillis) -> String {
    let behind = Behind {
        since: now,
        host: None,
        size: found.head.size,
        seen_size: 0,
        seen: String::new(),
    };
    // Text that cannot be read back counts as behind, too.
    serde_json::to_string(&behind).unwrap_or_else(|_| "restored".to_owned())
}

/// The files of a backup, and what its manifest says.
struct Backup {
    path: PathBuf,
    database: PathBuf,
    manifest: Manifest,
    json: Vec<u8>,
    seal: Vec<u8>,
}

impl Backup {
    fn read(from: &Path) -> Result<Self, RestoreError> {
        let wrong = |what: String| RestoreError::Backup {
            path: from.to_owned(),
            what,
        };
        let small = |name: &str| -> Result<Vec<u8>, RestoreError> {
            let path = from.join(name);
            let length = std::fs::metadata(&path)
                .map_err(|error| wrong(format!("{name}: {error}")))?
                .len();
            if length > limits::BACKUP_MANIFEST {
                return Err(wrong(format!("{name} is larger than any of ours")));
            }
            std::fs::read(&path).map_err(|error| wrong(format!("{name}: {error}")))
        };
        let (json, seal) = (small(MANIFEST)?, small(SEAL)?);
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
        if !manifest.is_known_form() {
            return Err(wrong(format!(
                "{MANIFEST} has form {}; use a version at least as new as the one that wrote it ({})",
                manifest.format, manifest.version
            )));
        }
        Ok(Self {
            path: from.to_owned(),
            database: from.join(DATABASE),
            manifest,
            json,
            seal,
        })
    }

    fn wrong(&self, what: impl Into<String>) -> RestoreError {
        RestoreError::Backup {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    /// Every part against every other: bytes, seal, pages, tree, keys, checkpoint.
    fn check(&self, sealer: &SealingKey) -> Result<Inspected, RestoreError> {
        if !is_sealed(sealer, &self.json, &self.seal) {
            let what = "its manifest was altered, or was made under another master key; bring back the master key \
                        that belongs to it";
            return Err(self.wrong(what));
        }
        let read = digest(&self.database);
        let (bytes, sha256) = read.map_err(|error| self.wrong(format!("{DATABASE}: {error}")))?;
        if bytes != self.manifest.bytes {
            let what = format!(
                "{DATABASE} has {bytes} bytes, {} were written",
                self.manifest.bytes
            );
            return Err(self.wrong(what));
        }
        if sha256 != self.manifest.sha256 {
            return Err(self.wrong(format!(
                "{DATABASE} is not what was written: its SHA-256 differs"
            )));
        }
        let found = inspect(&self.database).map_err(|error| self.wrong(error.to_string()))?;
        self.check_keys(&found, sealer)
            .map_err(|what| self.wrong(what))?;
        Ok(found)
    }

    fn check_keys(&self, found: &Inspected, sealer: &SealingKey) -> Result<(), String> {
        let installation = &found.installation;
        if installation.id != self.manifest.installation
            || installation.origin != self.manifest.origin
        {
            return Err("manifest and store are of different installations".to_owned());
        }
        let domain =
            TrustDomain::new(&installation.trust_domain).map_err(|error| error.to_string())?;
        let owner = Owner {
            trust_domain: &domain,
            installation: &installation.id,
        };
        // What its store lacks because it is older, the start makes.
        let lacking = lacking(sealer, &found.keys, owner, self.manifest.made_at);
        let lacking = lacking.map_err(|error| error.to_string())?;
        let rows: Vec<KeyRow> = found.keys.iter().cloned().chain(lacking).collect();
        let keys = Keys::unseal(sealer, &rows, &domain, &installation.origin);
        let keys = keys.map_err(|error| error.to_string())?;
        let note: SignedNote = self
            .manifest
            .checkpoint
            .parse()
            .map_err(|error| format!("{error}"))?;
        let verify = |public: &[u8; 32], message: &[u8], signature: &[u8]| {
            ephor_crypto::ed25519::verify(public, message, signature)
        };
        let text = keys
            .log_vkeys()
            .iter()
            .rev()
            .find_map(|key| note.verify(key, verify).ok())
            .ok_or("its checkpoint is not signed by its log")?;
        let checkpoint: Checkpoint = text.parse().map_err(|error| format!("{error}"))?;
        if checkpoint.size() != found.head.size || checkpoint.root() != found.head.root {
            return Err("its checkpoint is not that of its log".to_owned());
        }
        Ok(())
    }
}

/// The store that is there, with everything that belongs to it, also what an interrupted restore
/// left of one: a write-ahead log or reserve of another store would be played back into this one. The
/// database goes first, so that it is never there without its write-ahead log.
fn move_aside(config: &Config, now: UnixMillis) -> Result<Option<PathBuf>, RestoreError> {
    let database = config.database();
    let all = [
        database.clone(),
        files::beside(&database, "-wal"),
        files::beside(&database, "-shm"),
        config.reserve(),
    ];
    if !all.iter().any(|file| file.exists()) {
        return Ok(None);
    }
    let aside = config
        .state_dir
        .join(format!("before-restore-{}", now.as_millis()));
    files::make_new_directory(&aside).map_err(io(&aside))?;
    for file in all.iter().filter(|file| file.exists()) {
        let Some(name) = file.file_name() else {
            continue;
        };
        std::fs::rename(file, aside.join(name)).map_err(io(file))?;
        // In this order also after a power cut.
        sync(&aside)?;
        sync(&config.state_dir)?;
        crate::crash_point!("restore.moved");
    }
    Ok(Some(aside))
}

fn copy_private(from: &Path, to: &Path) -> Result<(), RestoreError> {
    if from.file_name().is_some_and(|name| name == MASTER_KEY) {
        let key = Secret::new(std::fs::read(from).map_err(io(from))?);
        return files::write_new(to, key.expose(), files::PRIVATE).map_err(io(to));
    }
    let mut source = File::open(from).map_err(io(from))?;
    let mut target = files::create(to, files::PRIVATE).map_err(io(to))?;
    std::io::copy(&mut source, &mut target).map_err(io(to))?;
    target.sync_all().map_err(io(to))
}

fn sync(directory: &Path) -> Result<(), RestoreError> {
    files::sync(directory).map_err(io(directory))
}

#[cfg(test)]
mod tests;
