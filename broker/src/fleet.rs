//! The agents: who they are at every request, whether they are heard, and how they are
//! told something.
//!
//! A certificate was good when it was issued; what counts is the host's row *now*. Rows
//! here are the committed ones and change only after a commit. Nothing in this folder
//! decides what a subject may have.

mod ban;
mod bundle;
mod heartbeat;
mod hello;
mod invite;
mod join;
mod readmit;
mod renew;
mod rollcall;
mod silence;
mod token;
mod update;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ephor_proto::grpc::v1;
use ephor_proto::id::InstanceId;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::HostName;
use ephor_proto::state::agent::{self, AgentEvent, AgentState};
use ephor_proto::state::{Effect, Effects};
use ephor_proto::time::{Boottime, UnixMillis};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::ledger::HostRow;
use crate::limits;
use crate::request::Refusal;
use crate::surface::listener::Cuts;
use crate::surface::tls::AgentCertificate;

pub use invite::Invited;
pub(crate) use invite::invitation;
pub use rollcall::{RollCall, Standing, missing, of_earlier_boots};
pub use silence::Readiness;
pub(crate) use silence::keep_watch;

/// All hosts known to this broker.
pub struct Fleet {
    clock: SharedClock,
    /// Guards the map only; each host has a lock of its own.
    hosts: RwLock<HashMap<String, Arc<Host>>>,
    /// Guards the readiness; held for a copy or a tick.
    readiness: Mutex<Readiness>,
}

/// One host.
struct Host {
    name: HostName,
    /// Guards what changes; held for a copy or a short update, never across an await.
    live: Mutex<Live>,
}

struct Live {
    /// As committed.
    row: HostRow,
    /// State now; silence is not stored.
    state: AgentState,
    last_heard: Boottime,
    last_heard_at: Option<UnixMillis>,
    /// Cut to end the connections of the present holder of the name.
    cut: CancellationToken,
    watch: Option<mpsc::Sender<v1::Push>>,
    /// When it was banned, while requests from before may still commit.
    swept_since: Option<Boottime>,
    /// Earlier starts of this agent, the latest last. One that speaks again runs beside its
    /// successor: the host, or its state, was copied.
    superseded: VecDeque<InstanceId>,
}

/// An agent whose connection's certificate is its host's present one. It has not yet
/// said which start of it is speaking. Made by [`Fleet::member`] only.
///
/// ```compile_fail
/// // Its fields are private: nobody outside can take one apart, or write one down.
/// fn pry(member: ephor_broker::fleet::Member) {
///     let ephor_broker::fleet::Member { host: _, spki_sha256: _ } = member;
/// }
/// ```
pub struct Member {
    host: Arc<Host>,
    spki_sha256: [u8; 32],
}

/// The current start of the agent of a host, authenticated for this one request. Made by
/// [`Fleet::peer`] only.
///
/// ```compile_fail
/// // As for a member.
/// fn pry(peer: ephor_broker::fleet::Peer) {
///     let ephor_broker::fleet::Peer { host: _, instance: _, boot_id: _ } = peer;
/// }
/// ```
pub struct Peer {
    host: Arc<Host>,
    instance: InstanceId,
    boot_id: String,
}

impl Member {
    /// Its host.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.name.as_str()
    }
}

impl Peer {
    /// Its host.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.name.as_str()
    }

    /// Its host's name, parsed.
    #[must_use]
    pub fn host_name(&self) -> &HostName {
        &self.host.name
    }

    /// This start of the agent.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The boot it runs on.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({}, {})", self.host(), self.instance)
    }
}

impl Host {
    fn new(name: HostName, row: HostRow, now: Boottime) -> Self {
        let live = Live {
            state: row.state,
            last_heard: now,
            last_heard_at: row.last_heard,
            cut: CancellationToken::new(),
            watch: None,
            // After a restart: requests of the run before may have committed behind the ban.
            swept_since: (row.state == AgentState::Banned).then_some(now),
            row,
            superseded: VecDeque::new(),
        };
        Self {
            name,
            live: Mutex::new(live),
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Takes over a committed row and what follows from it. Commits may be told out of order;
    /// an older row than the present one says nothing any more. Gives what must be cut.
    fn install(&mut self, row: HostRow, now: Boottime) -> Option<CancellationToken> {
        if row.version <= self.row.version {
            return None;
        }
        let before = std::mem::replace(&mut self.row, row);
        if before.instance != self.row.instance {
            self.watch = None;
        }
        let rejoined = before.joined_at != self.row.joined_at;
        let banned = self.row.state == AgentState::Banned && before.state != AgentState::Banned;
        if rejoined || banned {
            self.state = self.row.state;
            self.swept_since = banned.then_some(now);
            self.watch = None;
            return Some(std::mem::take(&mut self.cut));
        }
        None
    }

    /// One step of the agent's state machine.
    fn step(&mut self, event: AgentEvent, now: Boottime) -> Effects {
        match agent::step(self.state, event, now) {
            Ok((state, effects)) => {
                self.state = state;
                effects
            }
            // Its table has no illegal pair; if it gets one, nothing is admitted.
            Err(illegal) => {
                tracing::error!(%illegal, "agent state machine");
                Effects::NONE
            }
        }
    }
}

impl Fleet {
    /// The fleet as stored.
    #[must_use]
    pub fn restore(rows: Vec<HostRow>, clock: SharedClock) -> Self {
        let now = clock.boottime();
        let known = |row: HostRow| {
            let name: HostName = row.name.parse().ok()?;
            Some((row.name.clone(), Arc::new(Host::new(name, row, now))))
        };
        Self {
            hosts: RwLock::new(rows.into_iter().filter_map(known).collect()),
            readiness: Mutex::new(Readiness::default()),
            clock,
        }
    }

    fn find(&self, name: &str) -> Option<Arc<Host>> {
        self.hosts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn all(&self) -> Vec<Arc<Host>> {
        self.hosts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    fn len(&self) -> usize {
        self.hosts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The agent behind a certificate, by the host's row as it is now.
    ///
    /// # Errors
    /// `agent_banned`, or `unauthenticated` when the certificate is expired, replaced, or of
    /// a host that never joined here.
    pub fn member(&self, certificate: &AgentCertificate) -> Result<Member, Refusal> {
        let name = certificate.host();
        let refused = |detail: String| Err(Refusal::new(Code::Unauthenticated, detail));
        let Some(host) = self.find(name.as_str()) else {
            return refused(format!(
                "no host `{name}` has joined here; join it with a new join token"
            ));
        };
        if self.clock.wall() > certificate.not_after() {
            return refused(format!(
                "the certificate of host `{name}` has expired; join it with a new join token"
            ));
        }
        let spki_sha256 = certificate.spki_sha256();
        let live = host.live();
        if live.state == AgentState::Banned {
            let detail =
                format!("host `{name}` is banned; it can only come back with a new join token");
            return Err(Refusal::new(Code::AgentBanned, detail));
        }
        let present = live.row.spki_sha256 == spki_sha256;
        if !present && live.row.previous_spki_sha256 != Some(spki_sha256) {
            return refused(format!(
                "the certificate of host `{name}` was replaced; use the newest one"
            ));
        }
        drop(live);
        Ok(Member { host, spki_sha256 })
    }

    /// An authenticated agent, speaking for its current start.
    ///
    /// # Errors
    /// `stale_instance` when another start of it has said `Hello`
    /// since, or none has.
    pub fn peer(&self, member: Member, instance_id: &[u8]) -> Result<Peer, Refusal> {
        let instance = parse_instance(instance_id)?;
        let boot_id = {
            let mut live = member.host.live();
            if live.row.instance != Some(instance) {
                let detail = format!(
                    "another start of the agent on `{}` is current; say Hello first",
                    member.host()
                );
                return Err(Refusal::new(Code::StaleInstance, detail));
            }
            // Any call shows that it lives; but silence ends with Hello or a heartbeat only,
            // which say what is left there.
            if live.state != AgentState::Silent {
                live.last_heard = self.clock.boottime();
                live.last_heard_at = Some(self.clock.wall());
            }
            live.row.boot_id.clone()
        };
        Ok(Peer {
            host: member.host,
            instance,
            boot_id,
        })
    }

    /// How many hosts there are of each state.
    #[must_use]
    pub fn states(&self) -> [(AgentState, u64); AgentState::ALL.len()] {
        let mut states = AgentState::ALL.map(|state| (state, 0));
        for host in self.all() {
            let now = host.live().state;
            if let Some((_, n)) = states.iter_mut().find(|(state, _)| *state == now) {
                *n += 1;
            }
        }
        states
    }

    /// Whether nothing may be issued to this host now: not heard for 15 s, or never.
    #[must_use]
    pub fn is_silent(&self, host: &str) -> bool {
        let Some(host) = self.find(host) else {
            return true;
        };
        let now = self.clock.boottime();
        !host
            .live()
            .step(AgentEvent::Draw, now)
            .contains(Effect::Admit)
    }

    /// Tells an agent something, if it listens. One that does not keep up loses its stream and
    /// learns the rest from its next heartbeat and its next stream.
    pub fn push(&self, host: &str, push: v1::Push) {
        let Some(host) = self.find(host) else { return };
        let mut live = host.live();
        let Some(watch) = &live.watch else { return };
        if let Err(error) = watch.try_send(push) {
            tracing::debug!(host = %host.name, %error, "watch stream closed");
            live.watch = None;
        }
    }

    /// What this agent is told from now on; an earlier stream of it ends.
    #[must_use]
    pub fn watch(&self, peer: &Peer) -> mpsc::Receiver<v1::Push> {
        let (sender, receiver) = mpsc::channel(limits::PUSHES_PER_HOST);
        let mut live = peer.host.live();
        // A ban between the check and here must not leave an open stream.
        if live.state != AgentState::Banned && live.row.instance == Some(peer.instance) {
            live.watch = Some(sender);
        }
        receiver
    }

    /// Ends every stream of [`Self::watch`]: it has no end of its own, so a stop would wait for
    /// each until it is cut.
    pub fn hang_up(&self) {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        for host in hosts.values() {
            host.live().watch = None;
        }
    }

    /// Puts a committed row in place, unless a newer one is there already.
    fn store(&self, name: &HostName, row: HostRow) -> Arc<Host> {
        let now = self.clock.boottime();
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        let host = hosts
            .entry(name.as_str().to_owned())
            .or_insert_with(|| Arc::new(Host::new(name.clone(), row.clone(), now)));
        let cut = host.live().install(row, now);
        if let Some(cut) = cut {
            cut.cancel();
        }
        Arc::clone(host)
    }

    fn readiness(&self) -> MutexGuard<'_, Readiness> {
        self.readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when agents can reach us; `None` before.
    pub(crate) fn ready_since(&self) -> Option<Boottime> {
        self.readiness().since()
    }

    /// Whether no host could say anything of our log.
    pub(crate) fn has_nobody(&self) -> bool {
        self.all()
            .iter()
            .all(|host| host.live().state == AgentState::Banned)
    }

    /// From now on agents can reach us.
    pub fn listening(&self) {
        let now = self.clock.boottime();
        self.readiness().begin(now);
    }
}

impl Cuts for Fleet {
    fn cut_token(&self, agent: &AgentCertificate) -> CancellationToken {
        // A host that is not known has nothing to cut: its requests are refused one by one.
        self.find(agent.host().as_str())
            .map_or_else(CancellationToken::new, |host| host.live().cut.clone())
    }
}

fn parse_instance(bytes: &[u8]) -> Result<InstanceId, Refusal> {
    InstanceId::from_slice(bytes).map_err(|error| {
        Refusal::new(
            Code::InvalidRequest,
            format!("`instance_id` is malformed: {error}"),
        )
    })
}

#[cfg(test)]
mod tests;
