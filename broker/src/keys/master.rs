//! The master key: 32 bytes from a systemd credential or a file that only we can read.
//!
//! It is never made up when it is missing: a new one would open nothing. [`Provider`] is the one
//! place that knows where it comes from; everything else gets a [`SealingKey`].

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ephor_crypto::Secret;
use ephor_crypto::random::RandomError;
use ephor_crypto::seal::{KEY_LEN, SealError, SealingKey};

use crate::config::Config;
use crate::files;

/// Name of the systemd credential (`LoadCredentialEncrypted=ephor-master-key:…`).
pub const CREDENTIAL: &str = "ephor-master-key";

/// Why there is no usable master key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file cannot be read or made.
    #[error("cannot use the master key {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others could have read it.
    #[error(
        "the master key {} can be read by others (mode {mode:04o}); chmod 600 it, \
         and if this machine has other users, consider it known",
        path.display()
    )]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to someone else.
    #[error("the master key {} belongs to uid {owner}, neither root nor this user; chown it", path.display())]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Not a regular file of 32 bytes.
    #[error("the master key {} is not a file of exactly 32 bytes", .0.display())]
    Form(PathBuf),
    /// No randomness for a new one.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The key was refused by the cipher.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Who opens the master key.
///
/// A TPM, a PKCS#11 token or a cloud's KMS is one more variant: it keeps a *wrapped* key in a file,
/// and [`Provider::open`] has it unwrapped, once, at start. It answers the same three questions;
/// what is sealed in the store does not change with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// A file that only the broker's user, or root, can read.
    File(PathBuf),
    /// What systemd decrypted for this service (`LoadCredentialEncrypted=`): from a TPM or a host
    /// key, without us.
    Credential(PathBuf),
}

impl Provider {
    /// That of this configuration. `credentials` is `$CREDENTIALS_DIRECTORY`.
    #[must_use]
    pub fn of(config: &Config, credentials: Option<&Path>) -> Self {
        let is_credential = |file: &Path| file.file_name().is_some_and(|name| name == CREDENTIAL);
        match &config.master_key_file {
            Some(file) if is_credential(file) => Self::Credential(file.clone()),
            Some(file) => Self::File(file.clone()),
            None => credentials
                .map(|directory| directory.join(CREDENTIAL))
                .filter(|file| file.exists())
                .map_or_else(
                    || Self::File(config.state_dir.join("master.key")),
                    Self::Credential,
                ),
        }
    }

    /// The key, opened.
    ///
    /// # Errors
    /// [`MasterKeyError`] says what is wrong with which file.
    pub fn open(&self) -> Result<SealingKey, MasterKeyError> {
        match self {
            // systemd hands credentials out as 0400 or, in a mount of their own, 0440.
            Self::Credential(file) => read(file, 0o440),
            Self::File(file) => read(file, 0o700),
        }
    }

    /// Makes a new key where there is none. True when it was made; a credential is made by whoever
    /// encrypts it, never by us.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(&self) -> Result<bool, MasterKeyError> {
        match self {
            Self::Credential(_) => Ok(false),
            Self::File(file) => create(file),
        }
    }

    /// The file that it comes from: read at start, and by nobody else.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::File(file) | Self::Credential(file) => file,
        }
    }
}

/// Reads a key from a file whose mode has no bit but these.
fn read(path: &Path, allowed: u32) -> Result<SealingKey, MasterKeyError> {
    let failed = |source| MasterKeyError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    check(path, &file.metadata().map_err(failed)?, allowed)?;
    // Room for one byte too many, allocated at once: growing would leave a copy behind.
    let mut bytes = zeroize::Zeroizing::new(vec![0; KEY_LEN + 1]);
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read(rest).map_err(failed)? {
            0 => break,
            read => len += read,
        }
    }
    if len != KEY_LEN {
        return Err(MasterKeyError::Form(path.to_owned()));
    }
    bytes.truncate(KEY_LEN);
    Ok(SealingKey::new(&Secret::new(std::mem::take(&mut *bytes)))?)
}

fn check(path: &Path, metadata: &std::fs::Metadata, allowed: u32) -> Result<(), MasterKeyError> {
    if !metadata.is_file() {
        return Err(MasterKeyError::Form(path.to_owned()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 & !allowed != 0 {
        return Err(MasterKeyError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(MasterKeyError::Owner {
            path: path.to_owned(),
            owner,
        });
    }
    Ok(())
}

/// Makes a new master key in `path` (0600, on disk before it is used) if there is none.
/// True when it was made.
fn create(path: &Path) -> Result<bool, MasterKeyError> {
    let failed = |source| MasterKeyError::Io {
        path: path.to_owned(),
        source,
    };
    let key = ephor_crypto::random::secret(KEY_LEN)?;
    // Durable with its name: the database is sealed by it.
    match files::write_new(path, key.expose(), files::PRIVATE) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_once_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        assert!(create(&path).unwrap());
        assert!(!create(&path).unwrap());
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.len(), metadata.permissions().mode() & 0o777),
            (32, 0o600)
        );
        let sealed = read(&path, 0o700).unwrap().seal("r", 1, b"x").unwrap();
        assert!(read(&path, 0o700).unwrap().open("r", 1, &sealed).is_ok());
    }

    #[test]
    fn files_that_are_no_private_key_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        assert!(matches!(read(&path, 0o700), Err(MasterKeyError::Io { .. })));
        create(&path).unwrap();
        for mode in [0o640, 0o604, 0o622] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(read(&path, 0o700), Err(MasterKeyError::Mode { mode: found, .. }) if found == mode)
            );
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for len in [0, 31, 33, 64] {
            std::fs::write(&path, vec![7; len]).unwrap();
            assert!(
                matches!(read(&path, 0o700), Err(MasterKeyError::Form(_))),
                "{len}"
            );
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, 0o700), Err(MasterKeyError::Io { .. })));
        assert!(matches!(
            read(dir.path(), 0o700),
            Err(MasterKeyError::Form(_))
        ));
    }

    #[test]
    fn a_credential_may_be_read_by_its_group_and_is_never_made_by_us() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let config = |text: &str| {
            let file = at("broker.toml");
            let state = at("state");
            std::fs::write(&file, format!("state_dir = {state:?}\n{text}")).unwrap();
            Config::load(Some(&file), crate::config::Settings::default()).unwrap()
        };
        let none = Provider::of(&config(""), Some(dir.path()));
        assert_eq!(none, Provider::File(at("state/master.key")));
        let file = at(CREDENTIAL);
        create(&file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();
        let systemd = Provider::of(&config(""), Some(dir.path()));
        assert_eq!(systemd, Provider::Credential(file.clone()));
        assert!(systemd.open().is_ok() && !systemd.create().unwrap());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
        assert!(matches!(
            systemd.open(),
            Err(MasterKeyError::Mode { mode: 0o444, .. })
        ));
        // A file of another name gets no such leave.
        let named = Provider::of(&config(&format!("master_key_file = {:?}", at("k"))), None);
        assert!(named.create().unwrap());
        std::fs::set_permissions(at("k"), std::fs::Permissions::from_mode(0o440)).unwrap();
        assert!(matches!(named.open(), Err(MasterKeyError::Mode { .. })));
    }
}
