//! Writes an audit export: log, receipts and the verifier script.
//!
//! It appears whole or not at all, and only after it was checked as its reader will check it.

use std::future::Future;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ephor_proto::http::admin::Status;
use ephor_proto::id::TaskId;
use ephor_proto::log::{
    Receipt, TILE_WIDTH, VerifierKey, bundle_entry, bundle_path, split_bundle, tile_path,
};
use serde::de::DeserializeOwned;

use super::{Dir, Log, Refused, open, width_of};
use crate::client::Peer;
use crate::exit::{CHECK_FAILED, Failure};

/// The verifier in another language that goes with every export.
const SCRIPT: &str = include_str!("../../../examples/verify.py");
/// Receipts listed in one call.
const PAGE: usize = 1000;
/// Bytes of a hash in a tile.
const HASH: usize = 32;

/// What an export is made from: the broker's admin socket.
pub trait Origin {
    /// `GET target`.
    fn bytes(&self, target: &str) -> impl Future<Output = Result<Bytes, Failure>>;
}

impl Origin for Peer {
    async fn bytes(&self, target: &str) -> Result<Bytes, Failure> {
        Peer::bytes(self, target).await
    }
}

/// What was exported.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Events in the log.
    pub events: u64,
    /// The first so many of them have no text, which retention pruned.
    pub pruned: u64,
    /// Receipts.
    pub receipts: usize,
    /// The log's verifier key, as the broker gave it.
    pub key: String,
}

/// Writes log, receipts and verifier script to `dir`, which does not exist or is empty.
///
/// # Errors
/// When the directory cannot be used, the broker not be reached, or what it gave does not hold.
pub async fn export(broker: &Peer, dir: &Path) -> Result<Summary, Failure> {
    export_from(broker, dir).await
}

/// Whether an export could be written to `dir`, by making and removing what it begins with.
///
/// # Errors
/// When the directory cannot be used.
pub fn check_target(dir: &Path) -> Result<(), Failure> {
    staging(dir).map(drop)
}

pub(super) async fn export_from(origin: &impl Origin, dir: &Path) -> Result<Summary, Failure> {
    let staging = staging(dir)?;
    let writer = Writer {
        root: staging.path().to_owned(),
    };
    let status: Status = parsed(&origin.bytes("/v1/status").await?, "status")?;
    let key: VerifierKey = status
        .log_key
        .parse()
        .map_err(|why| broken(format!("the broker's log key is malformed: {why}")))?;
    // Receipts first: each refers to a head that the log fetched afterwards contains.
    let receipts = write_receipts(origin, &writer).await?;
    let (events, pruned) = write_log(origin, &writer, &key).await?;
    writer.write("verify.py", SCRIPT.as_bytes())?;
    check(&writer, &key, &receipts)?;
    // An empty directory is replaced in one step; anything else makes the rename fail.
    std::fs::rename(staging.path(), dir).map_err(|why| Failure::local(dir.display(), why))?;
    Ok(Summary {
        events,
        pruned,
        receipts: receipts.len(),
        key: status.log_key,
    })
}

/// A directory beside the wanted one, removed unless it is renamed.
fn staging(dir: &Path) -> Result<tempfile::TempDir, Failure> {
    let at = |why: &dyn std::fmt::Display| Failure::usage(format!("{}: {why}", dir.display()));
    match std::fs::read_dir(dir).map(Iterator::count) {
        Ok(1..) => {
            return Err(at(&"is not empty. Name a directory that does not exist."));
        }
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(at(&why)),
        Ok(0) | Err(_) => {}
    }
    let name = dir
        .file_name()
        .ok_or_else(|| at(&"has no name of its own. Name a new directory."))?;
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(|why| at(&why))?;
    let prefix = format!(".{}.", name.to_string_lossy());
    // What is in it is for others to read; the umask still applies.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(mode)
        .tempdir_in(parent)
        .map_err(|why| at(&why))
}

async fn write_receipts(origin: &impl Origin, writer: &Writer) -> Result<Vec<TaskId>, Failure> {
    writer.directory("receipts")?;
    let mut all: Vec<TaskId> = Vec::new();
    loop {
        let after = all
            .last()
            .map(|task| format!("&after={task}"))
            .unwrap_or_default();
        let page = origin
            .bytes(&format!("/v1/receipts?limit={PAGE}{after}"))
            .await?;
        let page: Vec<TaskId> = parsed(&page, "list of receipts")?;
        if page.is_empty() {
            return Ok(all);
        }
        for task in &page {
            let bytes = origin.bytes(&format!("/v1/tasks/{task}/receipt")).await?;
            let _: Receipt = parsed(&bytes, "receipt")?;
            writer.write(&format!("receipts/{task}.json"), &bytes)?;
        }
        all.extend(page);
    }
}

async fn write_log(
    origin: &impl Origin,
    writer: &Writer,
    key: &VerifierKey,
) -> Result<(u64, u64), Failure> {
    // Asked before the head: what it says is pruned, the log below that head tells.
    let status: Status = parsed(&origin.bytes("/v1/status").await?, "status")?;
    let pruned = status.pruned.map_or(0, |pruned| pruned.entries);
    let note = origin.bytes("/checkpoint").await?;
    let text = std::str::from_utf8(&note).map_err(|_| broken("its checkpoint is no text"))?;
    let size = open(text, key)
        .map_err(|why| broken(format!("its checkpoint {why}")))?
        .size();
    writer.write("log/checkpoint", &note)?;
    if pruned > 0 {
        writer.write("log/pruned", format!("{pruned}\n").as_bytes())?;
    }
    let without = pruned / u64::from(TILE_WIDTH);
    for number in without..size.div_ceil(u64::from(TILE_WIDTH)) {
        let width = width_of(size, number);
        let (path, whole) = (bundle_path(number, width), bundle_path(number, TILE_WIDTH));
        let bundle = piece(origin, &path, &whole, |bytes| first_entries(bytes, width)).await?;
        writer.write(&format!("log/{path}"), &bundle)?;
    }
    let mut hashes = size;
    for level in 0u8..8 {
        for number in 0..hashes.div_ceil(u64::from(TILE_WIDTH)) {
            let width = width_of(hashes, number);
            let (path, whole) = (
                tile_path(level, number, width),
                tile_path(level, number, TILE_WIDTH),
            );
            let tile = piece(origin, &path, &whole, |bytes| first_hashes(bytes, width)).await?;
            writer.write(&format!("log/{path}"), &tile)?;
        }
        hashes /= u64::from(TILE_WIDTH);
    }
    Ok((size, pruned))
}

/// A tile or bundle. A partial one may be gone once the full one is there (c2sp.org/tlog-tiles,
/// "Partial Tiles"): then its part of the full one is taken.
async fn piece(
    origin: &impl Origin,
    path: &str,
    whole: &str,
    part: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Vec<u8>, Failure> {
    let found = match origin.bytes(&format!("/{path}")).await {
        Err(_) if path != whole => origin.bytes(&format!("/{whole}")).await,
        found => found,
    };
    part(&found?).ok_or_else(|| broken(format!("{path} is cut short")))
}

fn first_hashes(tile: &[u8], width: u16) -> Option<Vec<u8>> {
    tile.get(..usize::from(width) * HASH).map(<[u8]>::to_vec)
}

fn first_entries(bundle: &[u8], width: u16) -> Option<Vec<u8>> {
    let entries = split_bundle(bundle).ok()?;
    let mut out = Vec::with_capacity(bundle.len());
    let all = entries
        .get(..usize::from(width))?
        .iter()
        .all(|entry| bundle_entry(&mut out, entry));
    all.then_some(out)
}

fn check(writer: &Writer, key: &VerifierKey, receipts: &[TaskId]) -> Result<(), Failure> {
    let source = Dir(writer.root.clone());
    let held = Log::read(&source, key).and_then(|log| {
        receipts
            .iter()
            .try_for_each(|task| log.check(&source, *task).map(|_| ()))
    });
    held.map_err(|why: Refused| broken(why.to_string()))
}

fn parsed<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|why| broken(format!("its {what} is malformed: {why}")))
}

/// The broker's log is damaged or inconsistent: the gravest thing an export can find.
fn broken(why: impl std::fmt::Display) -> Failure {
    Failure::new(
        CHECK_FAILED,
        format!("invalid: the broker's audit log does not hold: {why}.\nNothing was exported."),
    )
}

/// Writes below one directory.
struct Writer {
    root: PathBuf,
}

impl Writer {
    fn directory(&self, path: &str) -> Result<(), Failure> {
        let path = self.root.join(path);
        std::fs::create_dir_all(&path).map_err(|why| Failure::local(path.display(), why))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.root.join(path);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, bytes));
        written.map_err(|why| Failure::local(path.display(), why))
    }
}
