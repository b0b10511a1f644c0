//! From settings to a serving agent and to its end: stopped, or handed over to a successor.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ephor_confine::supervise::{self, Inherited};
use ephor_crypto::tls::{
    self, CertificateSlot, Peer as TlsPeer, PinnedCa, TrustStore, certified_key,
};

use super::{Agent, Parts, StartError};
use crate::attest::{self, Mode};
use crate::clock::SystemClock;
use crate::config::{Config, PeerPidfd};
use crate::handover::{self, Given, Giver, Memory, Taken, Taking};
use crate::limits;
use crate::metrics;
use crate::surface::api::Api;
use crate::surface::listener::{self, Threads};
use crate::surface::pause::{Parked, Pause};
use crate::tasks::Tasks;
use crate::uplink::connect::{Address, Asks, TlsConnect};
use crate::uplink::identity::{Identity, Joined};
use crate::uplink::session::Renewal;

/// Runs the agent of this host until it is told to stop or has handed over. With `take_over` it takes
/// over from the agent that runs, if one does.
///
/// # Errors
/// When it cannot start; nothing was served then, and who was to hand over goes on.
pub async fn run(
    config: Config,
    ready_file: Option<&Path>,
    inherited: Inherited,
    take_over: bool,
) -> Result<(), StartError> {
    let not_taken = |error| StartError::Config(format!("not taken over: {error}"));
    let parts = parts(&config)?;
    let offered = match parts.renewal.as_ref().filter(|_| take_over) {
        Some(own) => handover::ask(&config.state_dir, &own.trust).map_err(not_taken)?,
        None => None,
    };
    let tasks = parts.tasks.clone();
    let threads = Threads::start(&tasks)
        .map_err(|error| StartError::Host(format!("starting threads: {error}")))?;
    // Bound before anything of the broker's is asked for: a second agent must not take over.
    let (sockets, agent) = match offered {
        None => (Sockets::open(&config, inherited)?, Agent::start(parts)?),
        Some(offered) => {
            same_sockets(&config, inherited, &offered)?;
            let taken = offered.begin().map_err(not_taken)?;
            // The agent before may have renewed it since it was read above, and the broker knows only
            // the newest.
            if let Some(renewal) = &parts.renewal {
                newest_identity(renewal);
            }
            let (sockets, lock, memory) = Sockets::taken(taken)?;
            (sockets, Agent::start_with(parts, lock, memory)?)
        }
    };
    let given = sockets.serve(&config, &agent, threads)?;
    if let Some(path) = ready_file {
        write_ready(path, &config.socket)
            .map_err(|error| StartError::Host(format!("writing {}: {error}", path.display())))?;
    }
    tracing::info!(socket = %config.socket.display(), host = %agent.host, "ready");
    supervise::ready("serving");
    if let Some(every) = supervise::watchdog() {
        let stop = tasks.stop().clone();
        tasks.spawn("watchdog", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = supervise::keep_alive(every) => {}
            }
        });
    }
    let stopped = wait_for_stop(&tasks).await;
    supervise::stopping();
    if !tasks.finish(limits::STOP_WITHIN).await {
        tracing::warn!("some work did not end in time and was cut off");
    }
    match given.outcome.get() {
        // The successor's now.
        Some(Given::Taken) => stopped,
        Some(Given::Lost) => Err(StartError::Host(
            "the successor died when it was to begin; start this agent again".to_owned(),
        )),
        None => {
            // The service manager's stays: callers wait there for the next start.
            if given.own_socket {
                let _ = std::fs::remove_file(&config.socket);
            }
            stopped
        }
    }
}

/// Whether and how this agent gave its sockets away.
struct Giving {
    outcome: Arc<OnceLock<Given>>,
    own_socket: bool,
}

/// Where this agent listens.
struct Sockets {
    callers: tokio::net::UnixListener,
    metrics: Option<tokio::net::TcpListener>,
    /// Made by an agent, not by the service manager.
    own: bool,
    /// Connections to go on with.
    connections: Vec<Parked>,
}

impl Sockets {
    /// Those of the agent before, with the rest of what it gave.
    fn taken(taken: Taken) -> Result<(Self, File, Memory), StartError> {
        let error = |error: &dyn std::fmt::Display| {
            StartError::Host(format!("a socket that was handed over: {error}"))
        };
        let metrics = taken.metrics.map(tokio::net::TcpListener::from_std);
        let sockets = Self {
            callers: listener::adopt(taken.callers).map_err(|why| error(&why))?,
            metrics: metrics.transpose().map_err(|why| error(&why))?,
            own: taken.own_socket,
            connections: taken.connections,
        };
        Ok((sockets, taken.lock, taken.memory))
    }

    /// Serves callers, metrics and successors.
    fn serve(
        self,
        config: &Config,
        agent: &Arc<Agent>,
        threads: Threads,
    ) -> Result<Giving, StartError> {
        let copy = |socket: BorrowedFd<'_>| {
            let copied = socket.try_clone_to_owned();
            copied.map_err(|error| StartError::Host(format!("copying a socket: {error}")))
        };
        let giving = Giving {
            outcome: Arc::default(),
            own_socket: self.own,
        };
        let pause = Pause::with(self.connections);
        let giver = Giver {
            agent: Arc::clone(agent),
            pause: pause.clone(),
            callers: copy(self.callers.as_fd())?,
            metrics: (self.metrics.as_ref())
                .map(|listener| copy(listener.as_fd()))
                .transpose()?,
            own_socket: self.own,
            state_dir: config.state_dir.clone(),
            given: Arc::clone(&giving.outcome),
        };
        let (tasks, api) = (&agent.tasks, Arc::new(Api(Arc::clone(agent))));
        tasks.spawn_vital(
            "surface.listener",
            listener::run(self.callers, api, tasks.clone(), threads, pause),
        );
        if let Some(listener) = self.metrics {
            let told = metrics::serve(listener, Arc::clone(agent));
            tasks.spawn_vital("metrics", told);
        }
        tasks.spawn("handover", giver.run());
        Ok(giving)
    }

    /// Those that were passed to us, else new ones.
    fn open(config: &Config, mut inherited: Inherited) -> Result<Self, StartError> {
        let passed = |name: &str, error: std::io::Error| {
            StartError::Config(format!("the socket `{name}` that was passed: {error}"))
        };
        let callers = inherited
            .unix("agent")
            .map_err(|error| passed("agent", error))?;
        let own = callers.is_none();
        let callers = match callers {
            Some(listener) => listener::adopt(listener),
            None => listener::bind(&config.socket),
        };
        let callers = callers.map_err(|error| StartError::Config(error.to_string()))?;
        let metrics = inherited
            .tcp("metrics")
            .map_err(|error| passed("metrics", error))?;
        let metrics = match (metrics, config.metrics_listen) {
            (Some(listener), _) => Some(metrics::adopt(listener)),
            (None, Some(address)) => Some(metrics::bind(address)),
            (None, None) => None,
        };
        let metrics = metrics
            .transpose()
            .map_err(|error| StartError::Config(format!("listening for metrics: {error}")))?;
        if let Some(name) = inherited.left_over() {
            return Err(StartError::Config(format!(
                "a socket named `{name}` was passed, and nobody would answer on it; \
                 the names are `agent` and `metrics` (FileDescriptorName=)"
            )));
        }
        Ok(Self {
            callers,
            metrics,
            own,
            connections: Vec::new(),
        })
    }
}

/// A successor serves the sockets that it is given, and so must have been told of the same ones.
fn same_sockets(
    config: &Config,
    mut inherited: Inherited,
    offered: &Taking,
) -> Result<(), StartError> {
    let other = |what: &str, given: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
        StartError::Config(format!(
            "not taken over: the agent that runs has {what} {given:?}, and these settings say {wanted:?}; \
             a change of sockets takes a plain restart"
        ))
    };
    // Sockets of a service manager are the same ones for both.
    let is_passed = matches!(inherited.unix("agent"), Ok(Some(_)));
    let callers = offered.socket();
    if !is_passed && callers.as_deref() != Some(&config.socket) {
        return Err(other("its socket at", &callers, &config.socket));
    }
    let is_passed = matches!(inherited.tcp("metrics"), Ok(Some(_)));
    let (given, wanted) = (offered.metrics(), config.metrics_listen);
    let is_same = match (given, wanted) {
        (Some(given), Some(wanted)) => {
            given.ip() == wanted.ip() && [0, given.port()].contains(&wanted.port())
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !is_passed && !is_same {
        return Err(other("`metrics_listen`", &given, &wanted));
    }
    Ok(())
}

/// The identity as it is stored now.
fn newest_identity(renewal: &Renewal) {
    match Identity::load(&renewal.state_dir) {
        Ok(identity) => {
            let renew_at = identity.renew_at_millis();
            let certificate = certified_key(&[&identity.certificate_der], identity.key);
            renewal.trust.replace(identity.cas);
            renewal.slot.replace(certificate);
            renewal.renew_at_millis.store(renew_at, Ordering::Relaxed);
        }
        Err(error) => {
            tracing::error!(%error, "the identity cannot be read again; going on with it as it was")
        }
    }
}

/// SIGTERM and SIGINT stop cleanly; a vital part that failed is an error.
async fn wait_for_stop(tasks: &Tasks) -> Result<(), StartError> {
    use tokio::signal::unix::{SignalKind, signal};
    let host_error =
        |error: std::io::Error| StartError::Host(format!("waiting for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(host_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(host_error)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
        () = tasks.stop().cancelled() => {}
    }
    match tasks.failed() {
        Some(name) => Err(StartError::Host(format!(
            "`{name}` failed inside the agent; see the log"
        ))),
        None => Ok(()),
    }
}

/// What the host's configuration and identity give.
fn parts(config: &Config) -> Result<Parts, StartError> {
    attest::start_check().map_err(|error| StartError::Host(error.to_string()))?;
    let identity =
        Identity::load(&config.state_dir).map_err(|error| StartError::Config(error.to_string()))?;
    if let Some(host) = config
        .host
        .as_ref()
        .filter(|host| host.as_str() != identity.host.as_str())
    {
        let detail = format!(
            "the settings name host `{host}`, but this host joined as `{}`",
            identity.host
        );
        return Err(StartError::Config(detail));
    }
    let broker = config
        .broker
        .clone()
        .or_else(|| Joined::load(&config.state_dir).map(|joined| joined.broker));
    let broker = broker
        .ok_or_else(|| StartError::Config("no broker: set `broker` or join again".to_owned()))?;
    let address = Address::parse(&broker).map_err(|error| StartError::Config(error.to_string()))?;
    let renew_at_millis = AtomicU64::new(identity.renew_at_millis());
    let (host, trust_domain) = (
        identity.host.clone(),
        identity.trust_domain.as_str().to_owned(),
    );
    let peer = TlsPeer::spiffe_id(&format!("spiffe://{trust_domain}/broker"));
    let trust = Arc::new(TrustStore::new(identity.cas));
    let slot = Arc::new(CertificateSlot::new(certified_key(
        &[&identity.certificate_der],
        identity.key,
    )));
    let verifier = Arc::new(PinnedCa::new(Arc::clone(&trust), peer.clone()));
    let tls = tls::client_config(verifier, Some(Arc::clone(&slot) as _), &[b"h2"]);
    let tls = tls.map_err(|error| StartError::Host(error.to_string()))?;
    Ok(Parts {
        clock: SystemClock::shared(),
        host,
        trust_domain,
        mode: match config.peer_pidfd {
            PeerPidfd::Auto => Mode::Pidfd,
            PeerPidfd::Off => Mode::StartTime,
        },
        max_exe_hash_bytes: config.max_exe_hash_bytes,
        state_dir: config.state_dir.clone(),
        connect: Box::new(TlsConnect::new(
            address,
            Asks::NewestOf(Arc::clone(&trust)),
            Arc::new(tls),
        )),
        renewal: Some(Renewal {
            renew_at_millis,
            slot,
            trust,
            state_dir: config.state_dir.clone(),
            file: tokio::sync::Mutex::default(),
            ca_sequence: AtomicU64::new(0),
            sooner: tokio::sync::Notify::new(),
        }),
        tasks: Tasks::new(),
    })
}

/// Tells who started us that we serve: by rename, so that a reader sees all or nothing.
fn write_ready(path: &Path, socket: &Path) -> std::io::Result<()> {
    let json = serde_json::json!({ "pid": std::process::id(), "socket": socket });
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, json.to_string())?;
    std::fs::rename(&temporary, path)
}
