//! The one start-up order, and the one shutdown.

use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ephor_confine::supervise::{self, Inherited};
use ephor_crypto::tls::CertificateSlot;
use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::stage::Stage;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Broker, Installation, Parts};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::fleet::{self, Fleet};
use crate::inforce::{Checked, NoPolicy, at_start};
use crate::keys::lacking::complete;
use crate::keys::master::{MasterKeyError, Provider};
use crate::keys::rotate::keep_rotated;
use crate::keys::{Keys, KeysError, Owner, server};
use crate::kind::targets::Secrets;
use crate::ledger::{Batch, Lane, Ledger, OpenError, Options, ReadError};
use crate::policy::LoadErrors;
use crate::recover::Paths;
use crate::surface;
use crate::surface::listener::{BindError, Server, bind_unix};
use crate::surface::tls::Tls;
use crate::{limits, tasks::Tasks};

/// Why the broker does not run. Each is for the operator to mend.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The master key.
    #[error("invalid: {0}")]
    MasterKey(#[from] MasterKeyError),
    /// The store.
    #[error("invalid: {0}")]
    Open(#[from] OpenError),
    /// Reading the store.
    #[error("invalid: the store cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The keys.
    #[error("invalid: {0}")]
    Keys(#[from] KeysError),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] LoadErrors),
    /// Neither the directory nor the store has a policy.
    #[error(transparent)]
    NoPolicy(#[from] NoPolicy),
    /// The policy is for another trust domain than the store.
    #[error(
        "invalid: the policy in {} is for trust domain `{policy}`, this store for `{store}`; \
         a store never changes its trust domain",
        directory.display()
    )]
    TrustDomain {
        /// Where the policy is.
        directory: PathBuf,
        /// The policy's.
        policy: String,
        /// The store's.
        store: String,
    },
    /// TLS.
    #[error("invalid: {0}")]
    Tls(#[from] ephor_crypto::tls::TlsError),
    /// The server certificate.
    #[error("invalid: no server certificate could be made: {0}")]
    Certificate(#[from] ephor_crypto::x509::X509Error),
    /// A listener.
    #[error("unreachable: cannot listen on {address}: {source}; is another process there?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The admin socket.
    #[error("unreachable: {0}")]
    Admin(#[from] BindError),
    /// A socket was passed that nobody would answer on.
    #[error(
        "invalid: a socket named `{0}` was passed, and nobody would answer on it; the names are \
         `https`, `http`, `admin` and, where metrics_listen is set, `metrics` (FileDescriptorName=)"
    )]
    LeftOver(String),
    /// The operating system.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Something without which nothing works has ended by itself.
    #[error("internal error: `{0}` ended by itself; the reason is in the log")]
    Broken(&'static str),
    /// Init only: what is there already, or could not be stored.
    #[error("invalid: {0}")]
    Init(String),
}

impl StartError {
    /// The exit code of the process (`sysexits.h`).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen { .. } | Self::Admin(_) => 69,
            Self::Broken(_) | Self::System { .. } => 70,
            Self::MasterKey(_)
            | Self::Open(_)
            | Self::Read(_)
            | Self::Keys(_)
            | Self::Policy(_)
            | Self::NoPolicy(_)
            | Self::TrustDomain { .. }
            | Self::Tls(_)
            | Self::Certificate(_)
            | Self::LeftOver(_)
            | Self::Init(_) => 78,
        }
    }

    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// Runs the broker until SIGTERM or SIGINT.
///
/// # Errors
/// [`StartError`]; nothing is served then.
pub fn run(
    config: &Config,
    ready_file: Option<&Path>,
    inherited: Inherited,
) -> Result<(), StartError> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    // The ledger's writer has a core to itself: more threads than are left wake each other for nothing.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.saturating_sub(1).max(1))
        .enable_all()
        .build()
        .map_err(StartError::system("start the runtime"))?;
    runtime.block_on(serve(config, ready_file, inherited))
}

async fn serve(
    config: &Config,
    ready_file: Option<&Path>,
    inherited: Inherited,
) -> Result<(), StartError> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(StartError::system("listen for SIGTERM"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(StartError::system("listen for SIGINT"))?;

    ephor_crypto::tls::install();
    let mut config = config.clone();
    let mut source = Source::Inherited(inherited);
    loop {
        let hangup =
            signal(SignalKind::hangup()).map_err(StartError::system("listen for SIGHUP"))?;
        let (broker, sockets) = open_on(&config, source).await?;
        let again = sockets.again()?;
        broker.restore()?;
        record_start(&broker).await;
        broker.remove_left_backups().await;
        let connections = Tasks::new();
        let addresses = listen(&broker, &config, sockets, &connections)?;
        start_background(&broker, &config);
        let reload = reload_on(hangup, Arc::clone(&broker));
        broker.tasks.spawn_vital("policy.reload", reload);
        broker.fleet.listening();
        if let Some(path) = ready_file {
            write_ready(path, &broker, &config, addresses)
                .map_err(StartError::system("write the ready file"))?;
        }
        tracing::info!(https = %addresses.0, http = %addresses.1, issuer = broker.installation.issuer, "serving");
        supervise::ready("serving");
        if let Some(every) = supervise::watchdog() {
            let stop = connections.stop_token();
            connections.spawn("watchdog", async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = supervise::keep_alive(every) => {}
                }
            });
        }

        let ended = tokio::select! {
            _ = terminate.recv() => Some(Ok(())),
            _ = interrupt.recv() => Some(Ok(())),
            name = broker.tasks.broken() => Some(Err(StartError::Broken(name))),
            name = connections.broken() => Some(Err(StartError::Broken(name))),
            () = broker.epoch_ended() => None,
        };
        let Some(ended) = ended else {
            // The store of the new epoch is opened as at a start: nothing of the one before, in
            // memory or on a connection, goes on. Who connects meanwhile waits in the backlog.
            shut_down(broker, connections, None, ready_file).await;
            config.take_over = false;
            source = Source::Kept(again);
            continue;
        };
        supervise::stopping();
        // The service manager's admin socket stays: the next start takes it again.
        let admin_socket = again.own_admin.then_some(config.admin_socket.as_path());
        drop(again);
        shut_down(broker, connections, admin_socket, ready_file).await;
        return ended;
    }
}

/// Where listeners come from.
enum Source {
    /// From the service manager, and made here where it passed none.
    Inherited(Inherited),
    /// From the run before, whose epoch ended.
    Kept(Sockets),
}

#[cfg(test)]
pub(super) async fn open(
    config: &Config,
    inherited: Inherited,
) -> Result<(Arc<Broker>, Sockets), StartError> {
    open_on(config, Source::Inherited(inherited)).await
}

/// Everything that can be wrong with files, keys, policy and addresses is found here, before
/// anything is served.
async fn open_on(config: &Config, source: Source) -> Result<(Arc<Broker>, Sockets), StartError> {
    let clock = SystemClock::shared();
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let provider = Provider::of(config, credentials.as_deref());
    let master_key = provider.path().to_owned();
    let sealer = provider.open()?;
    let options = Options {
        take_over: config.take_over,
        reserve_path: config.reserve(),
        clock: Arc::clone(&clock),
    };
    let ledger = Ledger::open(&config.database(), options)?;
    let stored = ledger.installation().clone();
    let (policy, then, trouble) = at_start(&config.policy_dir, &ledger)?.split();
    let trust_domain = policy.trust_domain().clone();
    let offered = then.as_ref().map_or(&trust_domain, Checked::trust_domain);
    if stored.trust_domain != offered.as_str() {
        return Err(StartError::TrustDomain {
            directory: config.policy_dir.clone(),
            policy: offered.to_string(),
            store: stored.trust_domain,
        });
    }
    let owner = Owner {
        trust_domain: &trust_domain,
        installation: &stored.id,
    };
    let rows = complete(&ledger, &sealer, owner, clock.wall()).await?;
    let keys = Keys::unseal(&sealer, &rows, &trust_domain, &stored.origin)?;
    let fleet = Fleet::restore(ledger.reader().hosts()?, Arc::clone(&clock));
    let sockets = match source {
        Source::Kept(kept) => kept,
        Source::Inherited(inherited) => Sockets::bind(config, inherited).await?,
    };
    let installation = Installation::new(&stored, trust_domain, config, sockets.addresses()?);
    let parts = Parts {
        clock,
        ledger,
        policy,
        policy_dir: config.policy_dir.clone(),
        keys,
        sealer,
        schedule: config.schedule.clone(),
        retention: config.retention,
        fleet,
        installation,
        paths: Paths {
            master_key,
            backups: config.state_dir.join("backup"),
        },
        target_secrets: Secrets {
            dir: config.target_secrets_dir.clone(),
            credentials,
        },
    };
    let broker = Arc::new(Broker::new(parts)?);
    broker.begin_policy(then, trouble).await;
    Ok((broker, sockets))
}

/// Bound before anything is served: ports are known, and conflicts found, first.
pub(super) struct Sockets {
    https: TcpListener,
    http: TcpListener,
    admin: UnixListener,
    metrics: Option<TcpListener>,
    /// The admin socket was made here, not by the service manager.
    own_admin: bool,
}

impl Sockets {
    /// Those that were passed to us, else new ones.
    async fn bind(config: &Config, mut inherited: Inherited) -> Result<Self, StartError> {
        let passed = |name: &'static str| {
            StartError::system(format!("use the socket `{name}` that was passed"))
        };
        let mut tcp =
            async |name, address: SocketAddr| match inherited.tcp(name).map_err(passed(name))? {
                Some(listener) => TcpListener::from_std(listener).map_err(passed(name)),
                None => TcpListener::bind(address)
                    .await
                    .map_err(|source| StartError::Listen { address, source }),
            };
        let https = tcp("https", config.https_listen).await?;
        let http = tcp("http", config.http_listen).await?;
        let metrics = match config.metrics_listen {
            Some(address) => Some(tcp("metrics", address).await?),
            None => None,
        };
        let admin = inherited.unix("admin").map_err(passed("admin"))?;
        let own_admin = admin.is_none();
        let admin = match admin {
            Some(listener) => UnixListener::from_std(listener).map_err(passed("admin"))?,
            None => bind_unix(&config.admin_socket)?,
        };
        if let Some(name) = inherited.left_over() {
            return Err(StartError::LeftOver(name.to_owned()));
        }
        Ok(Self {
            https,
            http,
            admin,
            metrics,
            own_admin,
        })
    }

    /// The same sockets once more, for a run after this one.
    fn again(&self) -> Result<Self, StartError> {
        let failed = || StartError::system("keep a listener");
        let tcp = |listener: &TcpListener| {
            let fd = listener.as_fd().try_clone_to_owned()?;
            TcpListener::from_std(fd.into())
        };
        let admin = self.admin.as_fd().try_clone_to_owned();
        let admin = admin.and_then(|fd| UnixListener::from_std(fd.into()));
        Ok(Self {
            https: tcp(&self.https).map_err(failed())?,
            http: tcp(&self.http).map_err(failed())?,
            admin: admin.map_err(failed())?,
            metrics: self
                .metrics
                .as_ref()
                .map(tcp)
                .transpose()
                .map_err(failed())?,
            own_admin: self.own_admin,
        })
    }

    fn addresses(&self) -> Result<(SocketAddr, SocketAddr), StartError> {
        let of = |listener: &TcpListener| {
            listener
                .local_addr()
                .map_err(StartError::system("read the address of a listener"))
        };
        Ok((of(&self.https)?, of(&self.http)?))
    }
}

/// Starts the listeners. Gives the addresses of HTTPS and HTTP.
pub(super) fn listen(
    broker: &Arc<Broker>,
    config: &Config,
    sockets: Sockets,
    connections: &Tasks,
) -> Result<(SocketAddr, SocketAddr), StartError> {
    let addresses = sockets.addresses()?;
    let trust_domain = &broker.installation.trust_domain;
    let slot = Arc::new(CertificateSlot::empty());
    let names = server::Names::new(trust_domain, &config.server_names, addresses.0.ip());
    let _ = broker.server_names.set(names.clone());
    let end = server::renew(
        &slot,
        &broker.keys.load(),
        &names,
        broker.bridge(),
        broker.clock.wall(),
    )?;
    broker.tasks.spawn_vital(
        "server-certificate",
        server::keep_renewed(
            Arc::clone(broker),
            Arc::clone(&slot),
            names,
            end,
            broker.tasks.stop_token(),
        ),
    );
    let tls = Tls::new(slot, Arc::clone(&broker.trust), trust_domain.clone())?;
    let server = |name, router, places| {
        Server::new(
            name,
            router,
            places,
            connections.clone(),
            connections.stop_token(),
        )
    };
    let https = server(
        "https",
        surface::https_router(broker),
        limits::HTTPS_CONNECTIONS,
    );
    let http = server(
        "http",
        surface::http_router(broker),
        limits::HTTP_CONNECTIONS,
    );
    let admin = server(
        "admin",
        surface::admin_router(broker),
        limits::ADMIN_CONNECTIONS,
    );
    let cuts = Arc::clone(&broker.fleet);
    connections.spawn_vital("https", https.serve_https(sockets.https, tls, cuts));
    connections.spawn_vital("http", http.serve_http(sockets.http));
    connections.spawn_vital("admin", admin.serve_unix(sockets.admin));
    if let Some(listener) = sockets.metrics {
        let metrics = server(
            "metrics",
            surface::metrics_router(broker),
            limits::METRICS_CONNECTIONS,
        );
        connections.spawn_vital("metrics", metrics.serve_http(listener));
    }
    Ok(addresses)
}

pub(super) fn start_background(broker: &Arc<Broker>, config: &Config) {
    broker.tasks.spawn_vital(
        "keys",
        keep_rotated(
            Arc::clone(broker),
            [config.ca_file(), config.database_ca_file()],
            broker.tasks.stop_token(),
        ),
    );
    broker
        .tasks
        .spawn_vital("fleet-watch", fleet::keep_watch(Arc::clone(broker)));
    broker.start_timers();
    broker.narrow_after_start();
}

/// Reads the policy directory again whenever SIGHUP comes.
async fn reload_on(mut hangup: Signal, broker: Arc<Broker>) {
    let stop = broker.tasks.stop_token();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hangup.recv() => {}
        }
        match broker.reload_policy("sighup").await {
            Ok(applied) if applied.changed => {}
            Ok(_) => tracing::info!("SIGHUP: the policy directory holds what is in force already"),
            Err(refusal) => tracing::error!("SIGHUP: {}", refusal.detail),
        }
    }
}

/// `operate.started`: from here on this version and this policy are in force. A start is not
/// refused because the disk is full: revocations must go on.
async fn record_start(broker: &Broker) {
    let Ok(mut event) = broker.event(Stage::Operate, "started", Outcome::Ok) else {
        return;
    };
    event.policy_version = Some(broker.policy.load().version().to_owned());
    event
        .facts
        .insert("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    event
        .facts
        .insert("crypto".to_owned(), ephor_crypto::tls::name().to_owned());
    let mut events = vec![event.into()];
    events.extend(quarantined(broker).into_iter().map(Into::into));
    let batch = Batch {
        name: "operate.started",
        lane: Lane::Normal,
        require: Vec::new(),
        rows: Vec::new(),
        events,
    };
    let outcome = match broker.ledger.submit(batch) {
        Ok(ticket) => ticket.await.map(drop).map_err(|error| error.to_string()),
        Err(full) => Err(full.to_string()),
    };
    if let Err(error) = outcome {
        tracing::error!(error, "the start could not be recorded");
    }
}

/// One event for each row that this start set aside.
fn quarantined(broker: &Broker) -> Vec<AuditEvent> {
    let aside = broker.ledger.set_aside_at_open();
    let rows = match broker
        .ledger
        .reader()
        .quarantined(aside.min(limits::QUARANTINED_TOLD))
    {
        Ok(rows) => rows,
        Err(error) => {
            tracing::error!(%error, "which rows were set aside could not be recorded");
            return Vec::new();
        }
    };
    let mut events: Vec<_> = rows
        .iter()
        .filter_map(|row| broker.quarantined_event(row))
        .collect();
    let more = aside.saturating_sub(rows.len());
    if let Some(last) = events.last_mut().filter(|_| more > 0) {
        last.facts.insert("more".to_owned(), more.to_string());
    }
    events
}

/// Tells whoever started us where we are. Whole or not at all.
fn write_ready(
    path: &Path,
    broker: &Broker,
    config: &Config,
    (https, http): (SocketAddr, SocketAddr),
) -> std::io::Result<()> {
    let ready = serde_json::json!({
        "pid": std::process::id(),
        "https": https.to_string(),
        "http": http.to_string(),
        "issuer": broker.installation.issuer,
        "lists_url": broker.installation.lists_url,
        "admin_socket": config.admin_socket,
        "ca_file": config.ca_file(),
        "trust_domain": broker.installation.trust_domain,
        "installation": broker.installation.id,
        "log_key": broker.keys.load().log_vkey(),
    });
    let partial = path.with_extension("partial");
    let mut file = std::fs::File::create(&partial)?;
    writeln!(file, "{ready}")?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

/// In this order: nobody new, open requests finish, sums are written, background work ends, the
/// store is given back.
async fn shut_down(
    broker: Arc<Broker>,
    connections: Tasks,
    admin_socket: Option<&Path>,
    ready_file: Option<&Path>,
) {
    tracing::info!("stopping");
    if let Some(path) = ready_file {
        let _ = std::fs::remove_file(path);
    }
    broker.fleet.hang_up();
    if !connections
        .shutdown(limits::DRAIN + std::time::Duration::from_secs(1))
        .await
    {
        tracing::warn!(left = connections.len(), "connections were cut at shutdown");
    }
    if let Some(path) = admin_socket {
        let _ = std::fs::remove_file(path);
    }
    broker.write_refusals(true).await;
    if !broker.tasks.shutdown(limits::SHUTDOWN_TASKS).await {
        tracing::warn!(
            left = broker.tasks.len(),
            "background work was cut at shutdown"
        );
    }
    broker.ledger.clone().shutdown();
    tracing::info!("stopped");
}
