//! Making and opening a store. Every refusal says why and leaves the file as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};

use super::holder::{Fence, Holder, Place};
use super::overlay::Overlay;
use super::queue::Queue;
use super::reserve::{Frame, Reserve};
use super::tree::{Frontier, Head};
use super::writer::{Counts, Shared, Trouble, Writer};
use super::{Installation, Options, quarantine, schema, wal};
use crate::{files, limits};

/// Why a store was not made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is a file already.
    #[error("{0} is there already; nothing was changed")]
    Exists(PathBuf),
    /// There is none.
    #[error("there is no store at {0}; `ephor-broker init` makes one")]
    Missing(PathBuf),
    /// The file system refuses.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// A SQLite file of another application.
    #[error("{0} is no store of Ephor; it was not touched")]
    Foreign(PathBuf),
    /// Written by a newer version.
    #[error(
        "{path} has schema {found}, this version knows {known}; use a version at least as new as the one that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// The file is damaged.
    #[error(
        "{path} is damaged ({reason}); restore a backup, then run `ephor-broker run --take-over`"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A living broker holds it.
    #[error(
        "{path} is held by the running broker with pid {pid}; stop it, or start with --take-over to fence it off"
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Its process id.
        pid: u32,
    },
    /// SQLite refuses.
    #[error("{path}: {error}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: rusqlite::Error,
    },
    /// No randomness.
    #[error("no random bytes for the store's holder: {0}")]
    Random(#[from] ephor_crypto::random::RandomError),
    /// No thread.
    #[error("the ledger's thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// An open store, before its threads run.
pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) wal: Connection,
    pub(super) installation: Installation,
    /// Rows and batches that this open set aside.
    pub(super) set_aside: usize,
}

/// See [`super::Ledger::create`].
pub(super) fn create(
    path: &Path,
    installation: &str,
    origin: &str,
    trust_domain: &str,
) -> Result<(), OpenError> {
    let made = files::create(path, files::PRIVATE);
    made.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => OpenError::Exists(path.to_owned()),
        _ => OpenError::Io {
            path: path.to_owned(),
            error,
        },
    })?;
    let fill = || -> rusqlite::Result<()> {
        let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
        connection.pragma_update(None, "page_size", limits::LEDGER_PAGE_BYTES)?;
        for_writing(&connection)?;
        schema::migrate(&mut connection, 0)?;
        let sql = "INSERT INTO installation VALUES (1, ?1, ?2, ?3, 1, '', 0, 0)";
        connection.execute(sql, params![installation, origin, trust_domain])?;
        connection.close().map_err(|(_, error)| error)
    };
    fill().map_err(|error| refused(path, error))?;
    files::sync(files::parent(path)).map_err(|error| OpenError::Io {
        path: path.to_owned(),
        error,
    })
}

/// See [`super::Ledger::open`].
pub(super) fn open(path: &Path, options: Options) -> Result<Opened, OpenError> {
    let sqlite = |error| refused(path, error);
    if !path.exists() {
        return Err(OpenError::Missing(path.to_owned()));
    }
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    let version = recognise(path, &connection)?;
    for_writing(&connection).map_err(sqlite)?;
    check_pages(path, &connection)?;
    let fence = hold(path, &mut connection, options.take_over)?;
    // The write-ahead log has its name by now; it must still have it after a power cut.
    files::sync(files::parent(path)).map_err(|error| OpenError::Io {
        path: path.to_owned(),
        error,
    })?;
    schema::migrate(&mut connection, version).map_err(sqlite)?;
    let now = options.clock.wall();
    let aside_before = quarantine::count(&connection).map_err(sqlite)?;
    let aside = quarantine::sweep(&mut connection, now).map_err(sqlite)?;
    if aside > 0 {
        tracing::error!(
            rows = aside,
            "rows that cannot be read were set aside in the table `quarantine`"
        );
    }
    let (frontier, head) = check_tree(path, &connection)?;
    let (installation, high_water, reserve_seq) = describe(&connection).map_err(sqlite)?;
    let (reserve, frames) = open_reserve(&options.reserve_path, reserve_seq)?;
    let shared = Arc::new(share(head, high_water));
    let (clock, writes_since_look) = (options.clock, 0);
    let place = Place::of(path).map_err(|error| OpenError::Io {
        path: path.to_owned(),
        error,
    })?;
    let mut writer = Writer {
        connection,
        frontier,
        reserve,
        fence,
        place,
        clock,
        shared,
        writes_since_look,
    };
    merge(path, &mut writer, &frames)?;
    let aside = quarantine::count(&writer.connection).map_err(sqlite)?;
    let wal = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    for_writing(&wal).map_err(sqlite)?;
    Ok(Opened {
        writer,
        wal,
        installation,
        set_aside: aside.saturating_sub(aside_before),
    })
}

fn share(head: Head, high_water: u64) -> Shared {
    Shared {
        queue: Queue::default(),
        head: ArcSwap::from_pointee(head),
        overlay: ArcSwap::from_pointee(Overlay::default()),
        wal: Arc::new(wal::Signal::default()),
        next_batch: AtomicU64::new(1),
        counts: Counts::default(),
        fenced: AtomicBool::new(false),
        full: AtomicBool::new(false),
        high_water: AtomicU64::new(high_water),
        #[cfg(any(test, feature = "failpoints"))]
        faults: super::faults::Faults::from_environment(),
    }
}

/// A connection with the settings that all share. Never through a shared cache, never mapped: a
/// stray write to a mapping would be a write to the store.
pub(super) fn connect(path: &Path, mode: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(limits::LEDGER_BUSY)?;
    connection.set_prepared_statement_cache_capacity(limits::LEDGER_STATEMENTS);
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

fn for_writing(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // What is kept to undo one batch, in memory rather than in a file of its own.
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cache_size", -limits::LEDGER_WRITE_CACHE_KIB)
}

pub(super) fn refused(path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OpenError::Damaged {
            path,
            reason: error.to_string(),
        },
        Some(_) | None => OpenError::Sqlite { path, error },
    }
}

/// Checks that the file is ours and not newer than this version; reads only.
pub(super) fn recognise(path: &Path, connection: &Connection) -> Result<i64, OpenError> {
    let number = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|error| refused(path, error))
    };
    if number("application_id")? != schema::APPLICATION_ID {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let found = number("user_version")?;
    if found > schema::VERSION {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: schema::VERSION,
        });
    }
    if found < 1 {
        let reason = "it was never finished by `ephor-broker init`".to_owned();
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            reason,
        });
    }
    Ok(found)
}

pub(super) fn check_pages(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
    if bytes > limits::LEDGER_CHECK_BYTES {
        tracing::info!(
            bytes,
            "the store is large: only its head and live rows are checked at start"
        );
        return Ok(());
    }
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| refused(path, error))?;
    if found == "ok" {
        return Ok(());
    }
    Err(OpenError::Damaged {
        path: path.to_owned(),
        reason: found,
    })
}

/// Takes the store, unless a living broker holds it.
pub(super) fn hold(
    path: &Path,
    connection: &mut Connection,
    take_over: bool,
) -> Result<Fence, OpenError> {
    let sqlite = |error| refused(path, error);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    let (epoch, holder): (u32, String) = transaction
        .query_row("SELECT epoch, holder FROM installation", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .map_err(sqlite)?;
    if !take_over && let Some(pid) = Holder::is_alive(&holder) {
        return Err(OpenError::Held {
            path: path.to_owned(),
            pid,
        });
    }
    let claim = if take_over {
        epoch.saturating_add(1)
    } else {
        epoch
    };
    let own = Holder::this_process()?.to_string();
    let taken = transaction
        .execute(
            "UPDATE installation SET epoch = ?1, holder = ?2",
            params![claim, own],
        )
        .and_then(|_| transaction.commit());
    match taken {
        Ok(()) => Ok(Fence::taken(claim, own)),
        // Revocations go on without space, so a broker that died must be able to come back.
        Err(error)
            if error.sqlite_error_code() == Some(ErrorCode::DiskFull)
                && Holder::is_alive(&holder).is_none() =>
        {
            tracing::error!(path = %path.display(), "the store has no space left; free some. Until then only revocations are taken");
            Ok(Fence::deferred((epoch, holder), (claim, own)))
        }
        Err(error) => Err(refused(path, error)),
    }
}

/// The last checkpoint must be what the stored hashes give, and every leaf must be there.
pub(super) fn check_tree(
    path: &Path,
    connection: &Connection,
) -> Result<(Frontier, Head), OpenError> {
    let damaged = |reason: String| OpenError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let frontier = Frontier::load(connection).map_err(|error| damaged(error.to_string()))?;
    let head = frontier
        .head()
        .map_err(|error| damaged(error.to_string()))?;
    let stored = super::read::head(connection).map_err(|error| refused(path, error))?;
    let leaves: i64 = connection
        .query_row("SELECT coalesce(max(idx) + 1, 0) FROM leaf", [], |row| {
            row.get(0)
        })
        .map_err(|error| refused(path, error))?;
    if head != stored || leaves != super::codec::int(head.size) {
        let (size, known) = (stored.size, head.size);
        return Err(damaged(format!(
            "its last checkpoint, of {size} events, is not that of the {known} hashes and {leaves} events stored"
        )));
    }
    Ok((frontier, head))
}

pub(super) fn describe(connection: &Connection) -> rusqlite::Result<(Installation, u64, u64)> {
    let sql =
        "SELECT id, origin, trust_domain, epoch, clock_high_water, reserve_seq FROM installation";
    connection.query_row(sql, [], |row| {
        let (id, origin, trust_domain, epoch) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let number = |at| {
            row.get::<_, i64>(at)
                .map(|value| u64::try_from(value).unwrap_or(0))
        };
        Ok((
            Installation {
                id,
                origin,
                trust_domain,
                epoch,
            },
            number(4)?,
            number(5)?,
        ))
    })
}

/// Opens the reserve; without one (no space to make it), revocations are refused once the disk
/// is full, which is said now. A damaged one is kept beside and a new one made.
fn open_reserve(path: &Path, applied: u64) -> Result<(Option<Reserve>, Vec<Frame>), OpenError> {
    let opened = match Reserve::open(path, limits::LEDGER_RESERVE_BYTES) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            let aside = path.with_extension("damaged");
            tracing::error!(%error, kept = %aside.display(), "the reserve is damaged; a new one is made");
            std::fs::rename(path, &aside)
                .and_then(|()| Reserve::open(path, limits::LEDGER_RESERVE_BYTES))
        }
        other => other,
    };
    match opened {
        Ok((mut reserve, mut frames)) => {
            reserve.used_up_to(applied);
            frames.retain(|frame| frame.seq > applied);
            Ok((Some(reserve), frames))
        }
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            tracing::error!(path = %path.display(), "no space for the reserve: a full disk will stop revocations too");
            Ok((None, Vec::new()))
        }
        Err(error) => Err(OpenError::Io {
            path: path.to_owned(),
            error,
        }),
    }
}

/// Moves the reserve in; when there is still no space, readers see it as an overlay.
fn merge(path: &Path, writer: &mut Writer, frames: &[Frame]) -> Result<(), OpenError> {
    match writer.merge(frames) {
        Ok(()) => Ok(()),
        Err(Trouble::Full) => {
            let mut overlay = Overlay::default();
            for frame in frames {
                overlay.add(&frame.batch);
            }
            writer.shared.overlay.store(Arc::new(overlay));
            writer
                .shared
                .full
                .store(true, std::sync::atomic::Ordering::Release);
            Ok(())
        }
        Err(
            trouble @ (Trouble::Fenced | Trouble::Busy | Trouble::Damaged(_) | Trouble::Unknown),
        ) => {
            let reason = format!("the reserve could not be moved in: {trouble:?}");
            Err(OpenError::Damaged {
                path: path.to_owned(),
                reason,
            })
        }
    }
}
