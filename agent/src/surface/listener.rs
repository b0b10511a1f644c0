//! The Unix socket: made safely, accepted from within limits, drained at the stop.
//!
//! Limits per uid come before attestation, because attesting costs more than refusing. A
//! connection that does not send a whole request in time is closed, and so is an idle one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::surface::pause::{Parked, Pause};
use crate::surface::quota::Quota;
use crate::tasks::{self, Tasks};

/// Longest path of a Unix socket: `sun_path` less its final zero byte.
const PATH_MAX: usize = 107;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path cannot be one.
    #[error("socket {path}: {problem}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Another process listens there.
    #[error("socket {0}: an agent is listening there already; stop it first")]
    InUse(PathBuf),
    /// The system said no.
    #[error("socket {path}: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// Whether a path may be a socket's: absolute, at most 107 bytes, never abstract.
///
/// # Errors
/// [`ListenError::Path`].
pub fn check_path(path: &Path) -> Result<(), ListenError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let problem = if bytes.contains(&0) || bytes.first() == Some(&b'@') {
        "abstract sockets have no owner and no mode; give an absolute path"
    } else if bytes.len() > PATH_MAX {
        "the path is longer than 107 bytes, which a Unix socket cannot have"
    } else if !path.is_absolute() || path.file_name().is_none() {
        "give an absolute path to a file"
    } else {
        return Ok(());
    };
    Err(ListenError::Path {
        path: path.to_owned(),
        problem,
    })
}

/// Makes the socket: everyone may connect, because who may have what is decided by
/// attestation. Its directory is made (0755) if missing, and must not be writable by others.
///
/// # Errors
/// When path or directory are not safe, or another agent listens there.
pub fn bind(path: &Path) -> Result<UnixListener, ListenError> {
    check_path(path)?;
    let io = |error| ListenError::Io {
        path: path.to_owned(),
        error,
    };
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !parent.exists() {
        fs::create_dir_all(parent).map_err(io)?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).map_err(io)?;
    }
    check_directory(path, parent)?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(io)?;
    super::peer::prepare_listener(&listener).map_err(io)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(io)?;
    Ok(listener)
}

/// A listener that the service manager made. Who may replace it is the manager's to say; that each
/// message says who wrote it is ours.
///
/// # Errors
/// When the option cannot be set, or the runtime does not take it.
pub fn adopt(listener: std::os::unix::net::UnixListener) -> Result<UnixListener, ListenError> {
    let path = listener
        .local_addr()
        .ok()
        .and_then(|address| address.as_pathname().map(Path::to_owned));
    let Some(path) = path else {
        return Err(ListenError::Path {
            path: PathBuf::new(),
            problem: "the socket that was passed has no path; abstract ones have no owner and no mode",
        });
    };
    let io = |error| ListenError::Io {
        path: path.clone(),
        error,
    };
    let listener = UnixListener::from_std(listener).map_err(io)?;
    super::peer::prepare_listener(&listener).map_err(io)?;
    Ok(listener)
}

/// Others must not be able to put their own socket in our place.
fn check_directory(path: &Path, parent: &Path) -> Result<(), ListenError> {
    let metadata = fs::metadata(parent).map_err(|error| ListenError::Io {
        path: path.to_owned(),
        error,
    })?;
    let own = rustix::process::geteuid().as_raw();
    let problem = if !metadata.is_dir() {
        "its directory is not a directory"
    } else if metadata.uid() != own && metadata.uid() != 0 {
        "its directory belongs to another user, who could replace the socket"
    } else if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0 {
        "its directory can be written by others, who could replace the socket; chmod go-w it"
    } else {
        return Ok(());
    };
    Err(ListenError::Path {
        path: path.to_owned(),
        problem,
    })
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |error| ListenError::Io {
        path: path.to_owned(),
        error,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::Path {
            path: path.to_owned(),
            problem: "something that is no socket is there; it is left alone",
        });
    }
    match StdStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// Serves one accepted connection until it ends.
pub trait Serve: Send + Sync + 'static {
    /// Runs the connection, which begins with the bytes `ahead`. `activity` is to be told of
    /// requests; when `drain` is cancelled the request on its way is answered and then the
    /// connection closed; at a pause the connection is given back, unless it had to be closed.
    fn serve(
        self: Arc<Self>,
        opened: Opened,
        activity: Arc<Activity>,
        drain: CancellationToken,
        pause: Pause,
    ) -> impl Future<Output = Option<Parked>> + Send;
    /// The bytes of an answer to a uid that has too many connections.
    fn too_many(&self) -> Vec<u8>;
}

/// A connection to be served.
pub struct Opened {
    /// The connection.
    pub stream: UnixStream,
    /// What was read from it already.
    pub ahead: Bytes,
}

/// What a connection's watchdog looks at: starts and ends of requests.
#[derive(Debug, Default)]
pub struct Activity {
    started: AtomicU64,
    ended: AtomicU64,
}

impl Activity {
    /// A whole request head was read.
    pub fn begin(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Its answer was made.
    pub fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests begun and answered.
    #[must_use]
    pub fn look(&self) -> (u64, u64) {
        (
            self.started.load(Ordering::Relaxed),
            self.ended.load(Ordering::Relaxed),
        )
    }
}

/// The threads that connections are served on, in turn.
///
/// All of a cached fetch then happens on one thread: nothing is handed from one to another, and
/// none is woken but by the kernel.
pub struct Threads(Vec<Handle>);

impl Threads {
    /// As many as [`tasks::threads`] says.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(tasks: &Tasks) -> io::Result<Self> {
        (0..tasks::threads())
            .map(|number| tasks.thread(format!("surface-{number}")))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The one that this runs on.
    #[must_use]
    pub fn this() -> Self {
        Self(vec![Handle::current()])
    }
}

/// Accepts until told to stop, then drains. At a pause it accepts nothing and waits.
pub async fn run<S: Serve>(
    listener: UnixListener,
    serve: Arc<S>,
    tasks: Tasks,
    threads: Threads,
    pause: Pause,
) {
    let stop = tasks.stop().clone();
    let mut door = Door {
        threads: threads.0.into_iter().cycle(),
        quota: Quota::new(limits::CONNECTIONS_PER_UID, limits::CONNECTIONS),
        serve,
        tasks,
        pause,
    };
    loop {
        if door.pause.is_asked() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = door.pause.becomes(false) => {}
            }
        }
        for parked in door.pause.take() {
            let patience = match parked.ahead.is_empty() {
                // It was idle, and may stay so for as long as any other.
                true => limits::IDLE,
                false => limits::FIRST_REQUEST,
            };
            door.open(parked.stream, parked.ahead, patience);
        }
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = door.pause.becomes(true) => continue,
            () = door.pause.laid_aside() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => door.open(stream, Bytes::new(), limits::FIRST_REQUEST),
            Err(error) => {
                // Out of descriptors, mostly: accepting again at once would only spin.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Lets connections in.
struct Door<S> {
    threads: std::iter::Cycle<std::vec::IntoIter<Handle>>,
    quota: Quota,
    serve: Arc<S>,
    tasks: Tasks,
    pause: Pause,
}

impl<S: Serve> Door<S> {
    /// `patience`: how long its first request from here on may take to come.
    fn open(&mut self, stream: StdStream, ahead: Bytes, patience: Duration) {
        let Ok(peer) = getsockopt(&stream, sockopt::PeerCredentials) else {
            return;
        };
        let uid = peer.uid();
        let Some(place) = self.quota.take(uid) else {
            tracing::warn!(uid, "refused a connection: this uid or all have too many");
            // Best effort: a caller that does not read is not waited for.
            let _ = (&stream).write(&self.serve.too_many());
            return;
        };
        let Some(thread) = self.threads.next() else {
            return;
        };
        let (serve, drain) = (Arc::clone(&self.serve), self.tasks.stop().child_token());
        let (pause, counted) = (self.pause.clone(), self.pause.serving());
        self.tasks
            .spawn_on(&thread, "surface.connection", async move {
                let _held = (place, counted);
                let opened = match UnixStream::from_std(stream) {
                    Ok(stream) => Opened { stream, ahead },
                    Err(error) => {
                        return tracing::warn!(%error, "a connection could not be watched");
                    }
                };
                if let Some(parked) = watched(serve, opened, patience, drain, pause.clone()).await {
                    pause.park(parked);
                }
            });
    }
}

/// A connection and its watchdog: the first request must come soon, the next ones within the
/// idle time, and none may take for ever.
async fn watched<S: Serve>(
    serve: Arc<S>,
    opened: Opened,
    patience: Duration,
    drain: CancellationToken,
    pause: Pause,
) -> Option<Parked> {
    let activity = Arc::new(Activity::default());
    let connection = serve.serve(opened, Arc::clone(&activity), drain, pause);
    let watchdog = async {
        tokio::time::sleep(patience).await;
        let mut before = activity.look();
        if before.0 == 0 {
            return;
        }
        loop {
            tokio::time::sleep(limits::IDLE).await;
            let now = activity.look();
            if now == before {
                return;
            }
            before = now;
        }
    };
    tokio::select! {
        parked = connection => parked,
        () = watchdog => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn paths() {
        let long = format!("/{}", "a".repeat(PATH_MAX));
        for bad in ["", "relative", "@abstract", "\0abstract", "/", &long] {
            assert!(check_path(Path::new(bad)).is_err(), "{bad:?}");
        }
        let longest = format!("/{}", "a".repeat(PATH_MAX - 1));
        for good in ["/run/ephor/agent.sock", &longest] {
            check_path(Path::new(good)).unwrap();
        }
    }

    #[tokio::test]
    async fn the_socket_is_for_everyone_and_its_directory_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/agent.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o755
        );
        assert!(matches!(bind(&path), Err(ListenError::InUse(_))));
        drop(listener);
        drop(bind(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(matches!(bind(&path), Err(ListenError::Path { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        fs::remove_file(&path).unwrap();
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(bind(&path), Err(ListenError::Path { .. })));
    }

    struct Echo;

    impl Serve for Echo {
        async fn serve(
            self: Arc<Self>,
            Opened { mut stream, ahead }: Opened,
            activity: Arc<Activity>,
            drain: CancellationToken,
            pause: Pause,
        ) -> Option<Parked> {
            let mut byte = [0];
            loop {
                tokio::select! {
                    () = drain.cancelled() => return None,
                    () = pause.becomes(true) => {
                        let stream = stream.into_std().ok()?;
                        return Some(Parked { stream, ahead });
                    }
                    read = stream.read(&mut byte) => if !matches!(read, Ok(1)) { return None },
                }
                activity.begin();
                let _ = stream.write_all(&byte).await;
                activity.end();
            }
        }

        fn too_many(&self) -> Vec<u8> {
            b"!".to_vec()
        }
    }

    async fn start(dir: &Path) -> (PathBuf, Tasks) {
        start_with(dir, Pause::default()).await
    }

    async fn start_with(dir: &Path, pause: Pause) -> (PathBuf, Tasks) {
        let (path, tasks) = (dir.join("s"), Tasks::new());
        let listener = bind(&path).unwrap();
        tasks.spawn(
            "listener",
            run(
                listener,
                Arc::new(Echo),
                tasks.clone(),
                Threads::this(),
                pause,
            ),
        );
        (path, tasks)
    }

    async fn one_byte(stream: &mut UnixStream) -> Option<u8> {
        let mut byte = [0];
        (stream.read(&mut byte).await.ok()? == 1).then_some(byte[0])
    }

    #[tokio::test]
    async fn a_pause_that_is_taken_back_was_only_a_wait() {
        let (dir, pause) = (tempfile::tempdir().unwrap(), Pause::default());
        let (path, tasks) = start_with(dir.path(), pause.clone()).await;
        let mut open = UnixStream::connect(&path).await.unwrap();
        open.write_all(b"a").await.unwrap();
        assert_eq!(one_byte(&mut open).await, Some(b'a'));
        pause.begin(limits::STOP_WITHIN).await;
        open.write_all(b"b").await.unwrap();
        let mut late = UnixStream::connect(&path).await.unwrap();
        late.write_all(b"c").await.unwrap();
        let waits = tokio::time::timeout(limits::ACCEPT_PAUSE, one_byte(&mut late)).await;
        assert!(waits.is_err(), "answered in a pause");
        pause.end();
        assert_eq!(one_byte(&mut open).await, Some(b'b'));
        assert_eq!(one_byte(&mut late).await, Some(b'c'));
        assert!(tasks.finish(limits::STOP_WITHIN).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_laid_aside_may_be_idle_for_as_long_as_any() {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let parked = Parked {
            stream: ours,
            ahead: Bytes::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let (_path, _tasks) = start_with(dir.path(), Pause::with(vec![parked])).await;
        let mut open = UnixStream::from_std(theirs).unwrap();
        tokio::time::sleep(limits::IDLE / 2).await;
        open.write_all(b"a").await.unwrap();
        assert_eq!(one_byte(&mut open).await, Some(b'a'));
        assert_eq!(one_byte(&mut open).await, None, "idle for too long");
    }

    #[tokio::test]
    async fn one_uid_cannot_take_all_connections_and_gets_places_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, tasks) = start(dir.path()).await;
        let mut open = Vec::new();
        for _ in 0..limits::CONNECTIONS_PER_UID {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            assert_eq!(one_byte(&mut stream).await, Some(b'x'));
            open.push(stream);
        }
        let mut refused = UnixStream::connect(&path).await.unwrap();
        assert_eq!(one_byte(&mut refused).await, Some(b'!'));
        assert_eq!(one_byte(&mut refused).await, None);
        drop(open.pop());
        loop {
            let mut again = UnixStream::connect(&path).await.unwrap();
            again.write_all(b"y").await.unwrap();
            if one_byte(&mut again).await == Some(b'y') {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(tasks.finish(limits::STOP_WITHIN).await);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_and_idle_connections_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _tasks) = start(dir.path()).await;
        let mut silent = UnixStream::connect(&path).await.unwrap();
        let mut used = UnixStream::connect(&path).await.unwrap();
        used.write_all(b"x").await.unwrap();
        assert_eq!(one_byte(&mut used).await, Some(b'x'));
        assert_eq!(one_byte(&mut silent).await, None);
        used.write_all(b"y").await.unwrap();
        assert_eq!(
            one_byte(&mut used).await,
            Some(b'y'),
            "used connections outlive the first deadline"
        );
        assert_eq!(
            one_byte(&mut used).await,
            None,
            "idle ones are closed in the end"
        );
    }
}
