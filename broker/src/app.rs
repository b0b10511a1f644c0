//! What all stages share, how it comes up and how it goes down.

mod init;
mod start;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use ephor_crypto::jwt::TokenKind;
use ephor_crypto::seal::SealingKey;
use ephor_crypto::tls::TrustStore;
use ephor_crypto::x509::CaCertificate;
use ephor_proto::event::AuditEvent;
use ephor_proto::id::TaskId;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::TrustDomain;
use ephor_proto::time::UnixMillis;
use tokio_util::sync::CancellationToken;

use crate::clock::{ClockGuard, SharedClock};
use crate::config::Config;
use crate::deliver::Handovers;
use crate::fleet::Fleet;
use crate::inforce::InForce;
use crate::keys::Keys;
use crate::keys::plan::Schedule;
use crate::keys::server::Names;
use crate::kind::pace::Pace;
use crate::kind::targets::{Secrets, Targets};
use crate::ledger::{Ledger, ReadError};
use crate::metrics::Counted;
use crate::policy::Snapshot;
use crate::recover::{Backups, Paths, Readmission, Standing, former_origins, places};
use crate::request::{Refusal, Refusals, Throttle};
use crate::retain::{Retained, Retention};
use crate::revoke::{Crls, Pending, Queues, StatusLists, Timers, UsedLogins, Uses};
use crate::tasks::Tasks;

pub use init::{InitOptions, init};
pub use start::{StartError, run};

/// One broker. Passed to every stage as `Arc<Broker>`.
pub struct Broker {
    /// Wall and boot time.
    pub clock: SharedClock,
    /// Whether wall time can be believed.
    pub clock_guard: ClockGuard,
    /// The store and its audit log.
    pub ledger: Ledger,
    /// The policy in force.
    pub policy: ArcSwap<Snapshot>,
    /// How another takes its place.
    pub inforce: InForce,
    /// Our own keys, as of the last rotation.
    pub keys: ArcSwap<Keys>,
    /// What opens and seals them.
    pub(crate) sealer: SealingKey,
    /// CAs whose agents may connect; follows `keys`.
    pub trust: Arc<TrustStore>,
    /// When keys follow each other.
    pub schedule: Schedule,
    /// How long what is over is kept.
    pub retention: Retention,
    pub(crate) retained: Retained,
    /// The names in our own server certificate, once we listen.
    pub(crate) server_names: OnceLock<Names>,
    /// Guards the change of keys: one at a time, from reading the store to the swap.
    pub(crate) rotating: tokio::sync::Mutex<()>,
    /// Rung when `keys` were swapped.
    pub(crate) keys_changed: tokio::sync::watch::Sender<u64>,
    /// The agents.
    pub fleet: Arc<Fleet>,
    /// Who we are.
    pub installation: Installation,
    /// Background work.
    pub tasks: Tasks,
    /// Status lists as published.
    pub lists: StatusLists,
    /// Certificate revocation lists as published.
    pub crls: Crls,
    /// Refusals being summed up.
    pub refusals: Refusals<AuditEvent>,
    /// Rate and open work per host.
    pub throttle: Throttle,
    /// When credentials expire.
    pub timers: Timers,
    /// When tasks end at the latest.
    pub deadlines: Timers<TaskId>,
    /// Ends that are not proven yet.
    pub pending: Pending,
    /// Where things have effects, by the names of policy.
    pub targets: Targets,
    /// Where our own passwords at them are.
    pub(crate) target_secrets: Secrets,
    /// Ends that wait at their targets.
    pub queues: Queues,
    /// Hand-overs that are not confirmed yet.
    pub handovers: Handovers,
    /// When to look again for what is gone at its target.
    pub later_looks: Timers,
    /// How fast what lives at targets is renewed there.
    pub pace: Pace,
    /// Uses seen at targets.
    pub logins_used: UsedLogins,
    /// Uses seen by introspection.
    pub uses: Uses,
    /// What the store counted last, for metrics.
    pub counted: Counted,
    /// Whether the store is what others have seen of it.
    pub(crate) standing: Standing,
    /// Who of the epoch before may come back.
    pub(crate) readmission: Option<Readmission>,
    /// Origins of the logs of earlier epochs.
    pub(crate) former_origins: Vec<String>,
    /// Cancelled when a new epoch began.
    pub(crate) ended_epoch: CancellationToken,
    /// The one backup that runs or ran last.
    pub(crate) backups: Backups,
    /// Files that it comes back to.
    pub(crate) paths: Paths,
}

/// Who this broker is to others.
#[derive(Debug, Clone)]
pub struct Installation {
    /// Installation id.
    pub id: String,
    /// Epoch of the store.
    pub epoch: u32,
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// `iss` of tokens.
    pub issuer: String,
    /// Base URL of the plain listener.
    pub lists_url: String,
    /// Origin line of checkpoints.
    pub origin: String,
}

impl Installation {
    /// As stored, and as reached by `config` on the addresses that were bound.
    fn new(
        stored: &crate::ledger::Installation,
        trust_domain: TrustDomain,
        config: &Config,
        (https, http): (SocketAddr, SocketAddr),
    ) -> Self {
        let host = |listen: SocketAddr| public_host(config, listen);
        Self {
            id: stored.id.clone(),
            epoch: stored.epoch,
            trust_domain,
            issuer: config
                .issuer
                .clone()
                .unwrap_or_else(|| format!("https://{}", host(https))),
            lists_url: config
                .lists_url
                .clone()
                .unwrap_or_else(|| format!("http://{}", host(http))),
            origin: stored.origin.clone(),
        }
    }
}

/// How others reach a listener: the first configured name, else its address; a listener on all
/// addresses is at least reachable from this machine.
fn public_host(config: &Config, listen: SocketAddr) -> String {
    let port = listen.port();
    match config.server_names.first() {
        Some(name) if name.contains(':') => format!("[{name}]:{port}"),
        Some(name) => format!("{name}:{port}"),
        None if listen.ip().is_unspecified() => format!("localhost:{port}"),
        None => listen.to_string(),
    }
}

/// What a [`Broker`] is made of.
pub(crate) struct Parts {
    pub(crate) clock: SharedClock,
    pub(crate) ledger: Ledger,
    pub(crate) policy: Snapshot,
    pub(crate) policy_dir: PathBuf,
    pub(crate) keys: Keys,
    pub(crate) sealer: SealingKey,
    pub(crate) schedule: Schedule,
    pub(crate) retention: Retention,
    pub(crate) fleet: Fleet,
    pub(crate) installation: Installation,
    pub(crate) paths: Paths,
    pub(crate) target_secrets: Secrets,
}

impl Broker {
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn new(parts: Parts) -> Result<Self, ReadError> {
        let Parts {
            clock,
            ledger,
            policy,
            policy_dir,
            keys,
            sealer,
            schedule,
            retention,
            fleet,
            installation,
            paths,
            target_secrets,
        } = parts;
        let signer = Arc::clone(keys.token_signer(TokenKind::StatusList));
        let readmission = Readmission::load(&ledger, clock.wall())?;
        let trusted = trusted(&keys, readmission.as_ref());
        let places = places(&ledger)?;
        let former_origins = former_origins(&ledger)?;
        let lists_url = &installation.lists_url;
        let broker = Self {
            clock_guard: ClockGuard::new(Arc::clone(&clock), ledger.clock_high_water()),
            lists: StatusLists::new(lists_url, &installation.issuer, places, signer),
            crls: Crls::new(lists_url, Arc::clone(&clock)),
            policy: ArcSwap::from_pointee(policy),
            inforce: InForce::new(policy_dir),
            trust: Arc::new(TrustStore::new(trusted)),
            keys: ArcSwap::from_pointee(keys),
            sealer,
            schedule,
            retention,
            retained: Retained::default(),
            server_names: OnceLock::new(),
            rotating: tokio::sync::Mutex::new(()),
            keys_changed: tokio::sync::watch::Sender::new(0),
            fleet: Arc::new(fleet),
            tasks: Tasks::new(),
            refusals: Refusals::default(),
            throttle: Throttle::default(),
            timers: Timers::default(),
            deadlines: Timers::default(),
            pending: Pending::default(),
            targets: Targets::default(),
            target_secrets,
            queues: Queues::default(),
            handovers: Handovers::default(),
            later_looks: Timers::default(),
            pace: Pace::default(),
            logins_used: UsedLogins::default(),
            uses: Uses::default(),
            counted: Counted::default(),
            standing: Standing::default(),
            backups: Backups::default(),
            paths,
            readmission,
            former_origins,
            ended_epoch: CancellationToken::new(),
            clock,
            ledger,
            installation,
        };
        // Before anything is done with it.
        broker.restore_standing()?;
        Ok(broker)
    }

    /// Wall time, if new things may be issued now. Refusing, revoking and listing never ask.
    ///
    /// # Errors
    /// `log_rewound`, `clock_step`, `store_full` or `store_unavailable`, with what to do.
    pub fn may_issue(&self) -> Result<UnixMillis, Refusal> {
        self.vouch()?;
        if let Some(reason) = self.ledger.health().stopped {
            return Err(crate::issue::refused_by_store(&reason));
        }
        self.clock_guard
            .check()
            .map_err(|fault| Refusal::new(Code::ClockStep, fault.to_string()))
    }
}

/// The CAs whose agents may connect: ours, and those of an epoch whose agents come back.
pub(crate) fn trusted(keys: &Keys, readmission: Option<&Readmission>) -> Vec<CaCertificate> {
    let mut trusted = keys.trusted();
    trusted.extend(
        readmission
            .into_iter()
            .flat_map(|before| before.cas().to_vec()),
    );
    trusted
}

#[cfg(test)]
mod live;
#[cfg(test)]
pub(crate) mod tests;
