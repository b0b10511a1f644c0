//! One's own certificate: fetched from the agent, kept renewed in memory, shown in handshakes.
//! An expired one is never shown, whatever the timers did.

mod held;
mod renew;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use ephor_crypto::tls::{self, Accept, TrustStore, Verified, Workloads};
use ephor_crypto::x509::Leaf;
use ephor_proto::spiffe::{SpiffeId, TrustDomain};
use ephor_proto::time::UnixMillis;
use rustls::client::ResolvesClientCert;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::agent::Agent;
use crate::clock;
use crate::error::Error;
use crate::limits;
use crate::live::{Closed, Live};
use crate::peers::Peers;
use crate::revocations::{Lists, poll};
use crate::tasks::Tasks;
use held::Held;

/// How an [`Identity`] is to be.
#[derive(Debug, Clone)]
pub struct Builder {
    agent: Agent,
    entitlement: Option<String>,
    ttl: Option<Duration>,
    poll_every: Duration,
    max_staleness: Option<Duration>,
    close_on_expiry: bool,
}

impl Builder {
    /// The certificate of this entitlement, instead of one's own identity.
    #[must_use]
    pub fn entitlement(mut self, name: &str) -> Self {
        self.entitlement = Some(name.to_owned());
        self
    }

    /// A wanted lifetime, in whole seconds; policy caps it.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How often to look whether a revocation list has changed; [`limits::POLL_EVERY`] when not
    /// set. It bounds how long a revoked peer's connection lives on.
    #[must_use]
    pub fn poll_every(mut self, pause: Duration) -> Self {
        self.poll_every = pause;
        self
    }

    /// Refuses every handshake once the lists that are known were not seen to be up to date for this
    /// long. Without it a broker that cannot be reached disturbs nobody until its lists expire, after a day; certificates
    /// expire much earlier, so what a thief gains meanwhile is bounded by their lifetime.
    #[must_use]
    pub fn max_staleness(mut self, most: Duration) -> Self {
        self.max_staleness = Some(most);
        self
    }

    /// Leaves connections open when the certificate they were made with expires. They still end
    /// when the peer's credential is revoked while it is being renewed; once it is not renewed
    /// any more nothing ends them.
    #[must_use]
    pub fn keep_past_expiry(mut self) -> Self {
        self.close_on_expiry = false;
        self
    }

    /// Fetches the certificate and takes a first look at the lists. A broker that cannot be
    /// reached does not stop the start; its lists are then still to come, and peers are refused
    /// until they are there.
    ///
    /// # Errors
    /// When the agent refuses, cannot be reached, or gives what cannot be used.
    pub async fn start(self) -> Result<Identity, Error> {
        tls::install();
        let fetched = renew::fetch(&self.agent, self.entitlement.as_deref(), self.ttl).await?;
        let shared = Arc::new(Shared::new(&self, fetched)?);
        let (looked, mut first) = watch::channel(false);
        let mut tasks = Tasks::default();
        tasks.spawn(renew::certificate(Arc::clone(&shared)));
        tasks.spawn(renew::bundle(Arc::clone(&shared)));
        tasks.spawn(poll::run(Arc::clone(&shared), looked));
        if self.close_on_expiry {
            tasks.spawn(expire(Arc::clone(&shared)));
        }
        // Whatever comes of it, the poller goes on.
        let _ = tokio::time::timeout(limits::FIRST_LOOK, first.wait_for(|done| *done)).await;
        Ok(Identity(Arc::new(Handle {
            shared,
            _tasks: tasks,
        })))
    }
}

/// What is known of the certificate in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who we are.
    pub id: SpiffeId,
    /// Its serial number, in hex.
    pub serial: String,
    /// When it expires.
    pub expires_at: UnixMillis,
    /// When the next one is fetched, or about then.
    pub refresh_at: UnixMillis,
}

/// A workload's own identity. Clones share it; its renewal and its looks at the lists stop when
/// the last one is gone, those inside configurations, listeners and connectors included.
#[derive(Clone)]
pub struct Identity(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    _tasks: Tasks,
}

impl Identity {
    /// One's own identity, with the defaults of [`Identity::builder`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start(agent: &Agent) -> Result<Self, Error> {
        Self::builder(agent).start().await
    }

    /// An identity that is to be otherwise.
    #[must_use]
    pub fn builder(agent: &Agent) -> Builder {
        Builder {
            agent: agent.clone(),
            entitlement: None,
            ttl: None,
            poll_every: limits::POLL_EVERY,
            max_staleness: None,
            close_on_expiry: true,
        }
    }

    /// The certificate in use.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared().status.borrow().clone()
    }

    /// Waits until the certificate in use is another one than `since`, and says which. At once when
    /// it was replaced already, so that no renewal between two calls is missed.
    pub async fn renewed(&self, since: &Status) -> Status {
        let mut status = self.shared().status.subscribe();
        let newer = status.wait_for(|now| now.serial != since.serial).await;
        // Its other end is in `self`, so this is never an error.
        newer.map_or_else(|_| self.status(), |now| now.clone())
    }

    /// How many connections stand under this identity.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared().live.count()
    }

    /// How long ago all revocation lists that are known were last as their index had them; `None`
    /// if never. What [`Builder::max_staleness`] bounds, and worth an alarm.
    #[must_use]
    pub fn lists_seen(&self) -> Option<Duration> {
        self.shared().lists.seen()
    }

    /// A server's configuration, for servers that do their own accepting. It refuses at the
    /// handshake; only a [`Listener`](crate::Listener) also ends what stands.
    ///
    /// # Errors
    /// When this build cannot do TLS 1.3.
    pub fn server_config(&self, peers: Peers, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
        let clients = Arc::new(self.workloads(peers));
        let config = tls::server_config(Arc::new(Resolver(self.clone())), clients, alpn)?;
        Ok(Arc::new(config))
    }

    /// A client's configuration, for clients that do their own connecting. Whatever server name
    /// they put in decides nothing: the SPIFFE ID does.
    ///
    /// # Errors
    /// When this build cannot do TLS 1.3.
    pub fn client_config(&self, peers: Peers, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
        let servers = Arc::new(self.workloads(peers));
        let own: Arc<dyn ResolvesClientCert> = Arc::new(Resolver(self.clone()));
        Ok(Arc::new(tls::client_config(servers, Some(own), alpn)?))
    }

    fn workloads(&self, peers: Peers) -> Workloads {
        let identity = self.clone();
        let accept: Accept = Arc::new(move |peer| identity.shared().admit(&peers, peer));
        Workloads::new(Arc::clone(&self.shared().trust), accept)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.status()).finish()
    }
}

/// What the background works on; it does not keep the background alive.
pub(crate) struct Shared {
    pub agent: Agent,
    pub entitlement: Option<String>,
    pub ttl: Option<Duration>,
    pub poll_every: Duration,
    pub trust_domain: TrustDomain,
    pub held: ArcSwap<Held>,
    pub trust: Arc<TrustStore>,
    trust_changes: AtomicU64,
    /// Held by who changes the trust set, so that its connections are gone through once.
    changing_trust: Mutex<()>,
    pub lists: Arc<Lists>,
    pub live: Arc<Live>,
    pub status: watch::Sender<Status>,
}

impl Shared {
    fn new(builder: &Builder, fetched: held::Fetched) -> Result<Self, Error> {
        let held::Fetched { held, cas } = fetched;
        let trust = Arc::new(TrustStore::new(cas));
        let shared = Self {
            agent: builder.agent.clone(),
            entitlement: builder.entitlement.clone(),
            ttl: builder.ttl,
            poll_every: builder.poll_every,
            trust_domain: held.id.trust_domain(),
            lists: Arc::new(Lists::new(Arc::clone(&trust), builder.max_staleness)),
            trust,
            trust_changes: AtomicU64::new(0),
            changing_trust: Mutex::default(),
            live: Arc::default(),
            status: watch::Sender::new(held.status()),
            held: ArcSwap::from_pointee(held),
        };
        shared.learn_issuers(&shared.held.load());
        Ok(shared)
    }

    /// Whether a peer may take part: one of those wanted, and not revoked as far as can be known.
    fn admit(&self, peers: &Peers, peer: &Verified<'_>) -> Result<(), CertificateError> {
        let id: Option<SpiffeId> = peer.leaf.spiffe_id.parse().ok();
        let wanted = id.is_some_and(|id| id.is_member_of(&self.trust_domain) && peers.include(&id));
        if !wanted {
            return Err(CertificateError::ApplicationVerificationFailure);
        }
        self.lists.admit(peer)
    }

    /// How often the trust set was changed.
    pub fn trust_changes(&self) -> u64 {
        self.trust_changes.load(Ordering::SeqCst)
    }

    /// Why a connection that was just registered may not stay; `trust` is the count from before
    /// its handshake.
    pub fn no_longer_holds(
        &self,
        leaf: &Leaf,
        chain: &[CertificateDer<'_>],
        trust: u64,
    ) -> Option<Closed> {
        if self.lists.is_listed(leaf) {
            return Some(Closed::Revoked);
        }
        let changed = self.trust_changes() != trust;
        (changed && !self.is_trusted(chain)).then_some(Closed::Distrusted)
    }

    /// Whether this chain, whose validity in time is looked at elsewhere, ends at a CA that is
    /// trusted now.
    fn is_trusted(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, above)) = chain.split_first() else {
            return false;
        };
        let anyone = Workloads::new(Arc::clone(&self.trust), Arc::new(|_| Ok(())));
        // A leaf that has expired is not distrusted: within its life it was verified before.
        let within = Leaf::parse(leaf).map_or(0, |leaf| leaf.not_after);
        let now = clock::unix_seconds().min(within);
        anyone.verify_client_cert(leaf, above, at(now)).is_ok()
    }

    /// Remembers the CAs between a certificate of our own and its root: they sign lists.
    fn learn_issuers(&self, held: &Held) {
        let lists = Arc::clone(&self.lists);
        let accept: Accept = Arc::new(move |own| {
            lists.learn(own);
            Ok(())
        });
        let own = Workloads::new(Arc::clone(&self.trust), accept);
        if let Some((leaf, above)) = held.key.cert.split_first() {
            // One that does not hold brings nothing.
            let _ = own.verify_client_cert(leaf, above, at(clock::unix_seconds()));
        }
    }
}

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Ends connections as the certificates of their peers do.
async fn expire(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(shared.poll_every).await;
        shared.live.close_expired(clock::unix_seconds());
    }
}

/// Shows the newest certificate, and none that has expired.
struct Resolver(Identity);

impl Resolver {
    fn current(&self) -> Option<Arc<CertifiedKey>> {
        let held = self.0.shared().held.load();
        (clock::wall() < held.expires_at).then(|| Arc::clone(&held.key))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
