//! What the parts of the agent share, and the one order in which they start and stop.

mod run;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use dashmap::DashMap;
use ephor_proto::id::{CorrelationId, CredentialId, InstanceId, TaskId};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::spiffe::HostName;
use ephor_proto::time::{Boottime, Clock};

use crate::attest::{self, HashCache, Mode};
use crate::clock::SharedClock;
use crate::complete::TaskTable;
use crate::deliver::certificates::Certificates;
use crate::deliver::confirm::Confirmations;
use crate::handover::{self, Memory};
use crate::hold::Hold;
use crate::hold::entry::Now;
use crate::hold::renew::Renewer;
use crate::journal::{Journal, Unfinished};
use crate::limits;
use crate::prove::Receipts;
use crate::surface::quota::Quota;
use crate::tasks::Tasks;
use crate::uplink::checkpoint::Highest;
use crate::uplink::connect::Connect;
use crate::uplink::session::{self, Renewal, Wiring};
use crate::uplink::spool::Spool;
use crate::uplink::{NewCorrelation, Uplink};
use crate::{deliver, revoke};

pub use run::run;

/// The running agent.
pub struct Agent {
    /// The host's clocks.
    pub clock: SharedClock,
    /// This host.
    pub host: HostName,
    /// Its trust domain.
    pub trust_domain: String,
    /// How callers are held.
    pub mode: Mode,
    /// Digests of executables.
    pub hashes: Arc<HashCache>,
    /// Credentials in memory.
    pub hold: Hold,
    /// Keeps them fresh.
    pub renewer: Renewer,
    /// The broker.
    pub uplink: Uplink,
    /// Open tasks and who watches them.
    pub table: TaskTable,
    /// What survives this process.
    pub journal: Journal,
    /// Ends the broker does not have yet.
    pub spool: Arc<Spool>,
    /// Receipts of ended tasks.
    pub receipts: Receipts,
    /// What certificates need beside an answer.
    pub certificates: Certificates,
    /// Hand-overs that the broker waits to hear of.
    pub confirmations: Confirmations,
    /// Requests that wait for the broker, by uid.
    pub waiting: Quota,
    /// Every spawned task.
    pub tasks: Tasks,
    /// Open tasks, and what the broker knows of them.
    contacts: DashMap<TaskId, Contact, ahash::RandomState>,
    /// Credentials of open tasks that the broker revoked one by one.
    revoked: DashMap<TaskId, Vec<CredentialId>, ahash::RandomState>,
    /// New epochs of the broker since this agent, or the first of those before it that handed over, started.
    pub epochs: AtomicU32,
    correlation: NewCorrelation,
    /// Held while this runs: two agents on one state would undo each other's journal.
    state_lock: File,
}

/// What is known of a task's standing at the broker.
#[derive(Debug, Clone, Copy, Default)]
pub struct Contact {
    /// Who opened it.
    pub uid: u32,
    /// Requests that named it to the broker, less those that policy denied: such a task was not
    /// opened there, and its end is nothing to record. A loop of denied callers leaves no trace
    /// but its coalesced denials.
    asked: u32,
    /// Since when the broker is known to know it.
    known: Option<Boottime>,
}

impl Contact {
    /// Whether the broker knows the task, or may.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.asked > 0 || self.known.is_some()
    }
}

/// What an agent is made of beside the host itself; tests hand in their own.
pub struct Parts {
    /// The host's clocks.
    pub clock: SharedClock,
    /// This host.
    pub host: HostName,
    /// Its trust domain.
    pub trust_domain: String,
    /// How callers are held.
    pub mode: Mode,
    /// Largest executable that is hashed, in bytes.
    pub max_exe_hash_bytes: u64,
    /// Where journal and checkpoint are.
    pub state_dir: PathBuf,
    /// How the broker is reached.
    pub connect: Box<dyn Connect>,
    /// What renewing the agent's certificate replaces.
    pub renewal: Option<Renewal>,
    /// Every spawned task.
    pub tasks: Tasks,
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings or identity.
    #[error("invalid: {0}")]
    Config(String),
    /// The host.
    #[error("invalid: {0}")]
    Host(String),
}

impl Agent {
    /// Starts everything but the socket: the journal's tasks are adopted, ends are taken, the
    /// connection to the broker is begun.
    ///
    /// # Errors
    /// When the journal cannot be opened or the kernel cannot watch.
    pub fn start(parts: Parts) -> Result<Arc<Self>, StartError> {
        let lock = lock_state(&parts.state_dir)?;
        Self::start_with(parts, lock, Memory::default())
    }

    /// As [`Self::start`], with the lock of the state directory and what another agent
    /// remembered.
    fn start_with(parts: Parts, state_lock: File, memory: Memory) -> Result<Arc<Self>, StartError> {
        let host_error = |error: &dyn std::fmt::Display| StartError::Host(error.to_string());
        let clock = Arc::clone(&parts.clock);
        let (journal, unfinished) =
            Journal::open(&parts.state_dir.join("journal")).map_err(|error| host_error(&error))?;
        let started = TaskTable::start(journal.clone(), parts.tasks.clone(), Arc::clone(&clock));
        let (table, ends) = started.map_err(|error| host_error(&error))?;
        let correlation = correlations(Arc::clone(&clock));
        let instance =
            random_id(&*clock, InstanceId::from_parts).map_err(|error| host_error(&error))?;
        let hold = Hold::default();
        let agent = Arc::new(Self {
            host: parts.host,
            trust_domain: parts.trust_domain,
            mode: parts.mode,
            hashes: Arc::new(HashCache::new(Arc::clone(&clock), parts.max_exe_hash_bytes)),
            renewer: Renewer::new(hold.clone(), Arc::clone(&clock)),
            hold,
            uplink: Uplink::new(
                instance,
                Arc::clone(&correlation),
                Arc::clone(&clock),
                parts.tasks.clone(),
            ),
            table,
            journal,
            spool: Arc::default(),
            receipts: Receipts::default(),
            certificates: Certificates::new(
                (parts.renewal.as_ref()).map_or_else(Arc::default, |own| Arc::clone(&own.trust)),
            ),
            confirmations: Confirmations::default(),
            waiting: Quota::new(limits::WAITING_PER_UID, limits::CONNECTIONS),
            contacts: DashMap::default(),
            revoked: DashMap::default(),
            epochs: AtomicU32::new(0),
            correlation,
            state_lock,
            clock,
            tasks: parts.tasks,
        });
        agent.adopt(unfinished);
        handover::install(&agent, memory);
        let wiring = Wiring {
            uplink: agent.uplink.clone(),
            connect: parts.connect,
            downlink: Arc::new(revoke::Pushes(Arc::clone(&agent))),
            spool: Arc::clone(&agent.spool),
            highest: Arc::new(Highest::open(parts.state_dir.join("checkpoint"))),
            boot_id: attest::boot_id().map_err(|error| host_error(&error))?,
            tasks: agent.tasks.clone(),
            renewal: parts.renewal,
            stop: agent.tasks.stop().child_token(),
        };
        let tasks = &agent.tasks;
        tasks.spawn_vital("revoke.ends", revoke::run(Arc::clone(&agent), ends));
        let renewals = Arc::new(deliver::Renewals(Arc::clone(&agent)));
        tasks.spawn_vital(
            "hold.renewer",
            agent.renewer.clone().run(renewals, tasks.clone()),
        );
        let told = Arc::clone(&agent);
        tasks.spawn_vital("deliver.confirm", async move {
            let stop = told.tasks.stop().clone();
            told.confirmations.run(&told.uplink, &stop).await;
        });
        tasks.spawn_vital("uplink.session", session::run(Arc::new(wiring)));
        Ok(agent)
    }

    /// Takes over the tasks of an earlier run before the first heartbeat is sent.
    fn adopt(&self, unfinished: Vec<Unfinished>) {
        for task in &unfinished {
            let known = Some(Boottime::from_millis(0));
            self.contacts.insert(
                task.opened.id,
                Contact {
                    uid: task.opened.uid,
                    asked: 1,
                    known,
                },
            );
        }
        let adoption = self.table.adopt(unfinished);
        tracing::info!(
            adopted = adoption.adopted,
            ended = adoption.ended,
            "tasks of the journal"
        );
    }

    /// A refusal with a new correlation id.
    #[must_use]
    pub fn problem(&self, code: Code, detail: impl Into<String>) -> Problem {
        Problem::new(code, (self.correlation)(), detail)
    }

    /// Held while this runs, and by who takes over after it.
    #[must_use]
    pub fn state_lock(&self) -> &File {
        &self.state_lock
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now {
            wall: self.clock.wall(),
            boot: self.clock.boottime(),
        }
    }

    /// A new id.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new_id<T>(&self, make: impl FnOnce(u64, [u8; 10]) -> T) -> Result<T, Problem> {
        random_id(&*self.clock, make)
            .map_err(|error| self.problem(Code::Internal, error.to_string()))
    }

    /// Notes whose task it is.
    pub fn opened(&self, task: TaskId, uid: u32) {
        self.contacts.entry(task).or_insert(Contact {
            uid,
            asked: 0,
            known: None,
        });
    }

    /// The broker is being told of a task.
    pub fn told(&self, task: TaskId) {
        if let Some(mut contact) = self.contacts.get_mut(&task) {
            contact.asked = contact.asked.saturating_add(1);
        }
    }

    /// Policy denied what was asked for a task: that request did not open it.
    pub fn denied(&self, task: TaskId) {
        if let Some(mut contact) = self.contacts.get_mut(&task) {
            contact.asked = contact.asked.saturating_sub(1);
        }
    }

    /// The broker gave something for a task, so it knows it from now on.
    pub fn known(&self, task: TaskId) {
        let now = self.clock.boottime();
        if let Some(mut contact) = self.contacts.get_mut(&task) {
            contact.known.get_or_insert(now);
        }
    }

    /// Whether the broker knew a task before `then`.
    #[must_use]
    pub fn known_before(&self, task: TaskId, then: Boottime) -> bool {
        self.contact(task).known.is_some_and(|since| since < then)
    }

    /// What is known of a task.
    #[must_use]
    pub fn contact(&self, task: TaskId) -> Contact {
        self.contacts
            .view(&task, |_, contact| *contact)
            .unwrap_or_default()
    }

    /// The uid of a task whose end the broker does not have yet.
    #[must_use]
    pub fn owner(&self, task: TaskId) -> Option<u32> {
        self.contacts.view(&task, |_, contact| contact.uid)
    }

    /// Remembers that one credential of an open task was revoked.
    pub fn note_revoked(&self, task: TaskId, credential: CredentialId) {
        // Held to the end, so that `forget` comes after.
        let Some(_open) = self.contacts.get(&task) else {
            return;
        };
        let mut revoked = self.revoked.entry(task).or_default();
        if !revoked.contains(&credential) {
            if revoked.len() >= limits::REVOKED_KEPT {
                revoked.remove(0);
            }
            revoked.push(credential);
        }
    }

    /// What [`Self::note_revoked`] remembers of a task.
    #[must_use]
    pub fn revoked(&self, task: TaskId) -> Vec<CredentialId> {
        self.revoked
            .view(&task, |_, revoked| revoked.clone())
            .unwrap_or_default()
    }

    /// The broker has the end of a task, or never had the task.
    pub fn forget(&self, task: TaskId) {
        self.contacts.remove(&task);
        // After the contact: what is noted while that is there is removed here.
        self.revoked.remove(&task);
        self.table.closed(task);
    }
}

fn lock_state(state_dir: &Path) -> Result<File, StartError> {
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|error| StartError::Host(format!("{}: {error}", path.display())))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(StartError::Config(format!(
            "{}: another agent uses this state directory; stop it first",
            path.display()
        ))),
    }
}

/// A source of correlation ids. Without randomness they are told apart by time only, because a
/// refusal must still be said.
#[must_use]
pub fn correlations(clock: SharedClock) -> NewCorrelation {
    Arc::new(move || {
        let random = ephor_crypto::random::bytes().unwrap_or_default();
        CorrelationId::from_parts(clock.wall().as_millis(), random)
    })
}

fn random_id<T>(
    clock: &dyn Clock,
    make: impl FnOnce(u64, [u8; 10]) -> T,
) -> Result<T, ephor_crypto::random::RandomError> {
    Ok(make(
        clock.wall().as_millis(),
        ephor_crypto::random::bytes()?,
    ))
}
