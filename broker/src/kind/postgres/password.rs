//! The file with the password of the broker's own login, and the one beside it while another takes its
//! place: `FILE.next` is complete when it is there, and becomes `FILE` only once the server has
//! taken it. So one of the two always lets us in, whenever we are stopped.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ephor_crypto::Secret;
use tokio::fs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::limits;

/// Beside a file, the password that is to follow.
pub(super) fn next(file: &Path) -> PathBuf {
    beside(file, ".next")
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// The first line of a file that only its owner can read; `None` when there is no file. A service manager
/// that hands one out keeps it root's, and lets us read it by its group.
pub(super) async fn read(file: &Path) -> Result<Option<Secret>, String> {
    let about = |why: String| format!("credential file {}: {why}", file.display());
    let mut opened = match fs::File::open(file).await {
        Ok(opened) => opened,
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(about(why.to_string())),
    };
    let known = opened.metadata().await;
    let known = known.map_err(|why| about(why.to_string()))?;
    let allowed = if known.uid() == 0 { 0o040 } else { 0 };
    if known.mode() & 0o077 & !allowed != 0 {
        return Err(about("others can read it: chmod 600".to_owned()));
    }
    let mut bytes = Vec::new();
    let read = opened.read_to_end(&mut bytes).await;
    let bytes = Secret::new(bytes);
    read.map_err(|why| about(why.to_string()))?;
    if bytes.len() > limits::PG_PASSWORD_FILE {
        return Err(about("too long for a password".to_owned()));
    }
    let line = bytes.expose().split(|byte| *byte == b'\n').next();
    let line = line.unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(about("it is empty".to_owned()));
    }
    Ok(Some(Secret::new(line.to_vec())))
}

/// Stores the password that is to follow that of `file`: whole and durable, or not at all.
pub(super) async fn write_next(file: &Path, password: &Secret) -> Result<(), String> {
    let made = beside(file, ".new");
    let failed = |why: std::io::Error| format!("{}: {why}", made.display());
    // What a broker left that was stopped here was never used.
    match fs::remove_file(&made).await {
        Err(why) if why.kind() != ErrorKind::NotFound => return Err(failed(why)),
        Ok(()) | Err(_) => {}
    }
    let opened = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&made)
        .await;
    let mut written = opened.map_err(failed)?;
    written.write_all(password.expose()).await.map_err(failed)?;
    written.write_all(b"\n").await.map_err(failed)?;
    written.sync_all().await.map_err(failed)?;
    replace(&made, &next(file)).await
}

/// The password that follows becomes the one in force; the one before is gone.
pub(super) async fn settle(file: &Path) -> Result<(), String> {
    replace(&next(file), file).await
}

/// Forgets a password that was never given to the server.
pub(super) async fn forget_next(file: &Path) -> Result<(), String> {
    let next = next(file);
    let failed = |why: std::io::Error| format!("{}: {why}", next.display());
    fs::remove_file(&next).await.map_err(failed)?;
    durable(&next).await
}

async fn replace(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |why: std::io::Error| format!("{}: {why}", to.display());
    fs::rename(from, to).await.map_err(failed)?;
    durable(to).await
}

/// The name, too, is on the disk.
async fn durable(file: &Path) -> Result<(), String> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let failed = |why: std::io::Error| format!("{}: {why}", directory.display());
    let opened = fs::File::open(directory).await.map_err(failed)?;
    opened.sync_all().await.map_err(failed)
}
