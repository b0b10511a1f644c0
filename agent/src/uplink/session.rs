//! The life of the connection: hello, heartbeats, what the broker tells unasked, ends that
//! wait to be told, and the agent's own renewal; then back off and begin again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{CertificateSlot, TrustStore, certified_key};
use ephor_crypto::x509::CaCertificate;
use ephor_proto::grpc::{self, v1};
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::problem::Code;
use ephor_proto::time::Boottime;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, jitter};
use super::bundle;
use super::checkpoint::{self, Highest};
use super::connect::{self, Client, Connect, ConnectError};
use super::identity::Identity;
use super::refusal::{self, CallError};
use super::spool::Spool;
use super::{Link, Session, Uplink, ends, seconds, timed};
use crate::complete::{Ended, Snapshot};
use crate::limits;
use crate::revoke::on_the_wire;
use crate::tasks::Tasks;

/// What the rest of the agent does when the broker speaks, and what it tells of itself.
pub trait Downlink: Send + Sync + 'static {
    /// What a heartbeat tells of this host's tasks.
    fn snapshot(&self) -> Snapshot;
    /// The broker revoked a task.
    fn task_revoked(&self, task: TaskId, cause: &str);
    /// The broker revoked one credential.
    fn credential_revoked(&self, task: TaskId, credential: CredentialId);
    /// These tasks of a heartbeat sent at `sent` are closed or unknown at the broker.
    fn tasks_closed(&self, tasks: &[TaskId], sent: Boottime);
    /// The broker banned this host: everything issued to it is revoked already.
    fn banned(&self);
    /// The broker began a new epoch: nothing issued before is good any more, and tasks go on.
    fn epoch_ended(&self);
    /// The broker has a task's end and has not proven it yet: something is still being revoked.
    fn end_heard(&self, task: TaskId);
    /// An end was acknowledged, with the receipt where there is one.
    fn end_acknowledged(&self, task: TaskId, receipt: Option<v1::CompleteResponse>);
}

/// What the connection needs.
pub struct Wiring {
    /// The handle to publish the connection on.
    pub uplink: Uplink,
    /// How a byte stream is made.
    pub connect: Box<dyn Connect>,
    /// The rest of the agent.
    pub downlink: Arc<dyn Downlink>,
    /// Ends that wait.
    pub spool: Arc<Spool>,
    /// The highest checkpoint seen.
    pub highest: Arc<Highest>,
    /// This boot, as the kernel names it.
    pub boot_id: String,
    /// Where connection tasks belong.
    pub tasks: Tasks,
    /// What renewing replaces; none where a test has no TLS.
    pub renewal: Option<Renewal>,
    /// Ends the loop.
    pub stop: CancellationToken,
}

/// What renewing the agent's own certificate replaces.
pub struct Renewal {
    /// When the present one should be renewed, Unix milliseconds.
    pub renew_at_millis: std::sync::atomic::AtomicU64,
    /// Used from the next handshake on.
    pub slot: Arc<CertificateSlot>,
    /// The CAs trusted from the next handshake on.
    pub trust: Arc<TrustStore>,
    /// Where the identity is stored.
    pub state_dir: PathBuf,
    /// Held by who writes the identity.
    pub file: tokio::sync::Mutex<()>,
    /// Sequence of the CA set in force; 0 until the broker told one.
    pub ca_sequence: std::sync::atomic::AtomicU64,
    /// Rung when the certificate became due earlier than planned.
    pub sooner: tokio::sync::Notify,
}

/// Why a connection was left.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("the connection to the broker was lost")]
    Lost,
    #[error(
        "the broker speaks version {0}, this agent {1}: more than one minor version apart. Update the older one"
    )]
    VersionSkew(String, String),
    #[error("this host is banned at the broker")]
    Banned,
    #[error("the agent's certificate was renewed")]
    Renewed,
    #[error("the agent is stopping")]
    Stopping,
}

/// Keeps the connection up until told to stop.
pub async fn run(wiring: Arc<Wiring>) {
    let mut backoff = Backoff::new(limits::RECONNECT_FIRST, limits::RECONNECT_CAP);
    // Whether the certificate we hold was given on a connection that then was refused.
    let mut came_back = false;
    loop {
        let mut reached = false;
        let over = tokio::select! {
            biased;
            () = wiring.stop.cancelled() => Over::Stopping,
            over = one(&wiring, &mut reached) => over,
        };
        if reached {
            backoff.reset();
            came_back = false;
        }
        if is_ban(&over) {
            wiring.downlink.banned();
        }
        let wait = match over {
            Over::Stopping => return,
            // A broker that gives certificates and takes none must not be asked without end.
            Over::Renewed if reached || !came_back => {
                came_back = !reached;
                tracing::info!("connecting again with the renewed certificate");
                continue;
            }
            Over::Connect(_)
            | Over::Call(_)
            | Over::Lost
            | Over::Banned
            | Over::Renewed
            | Over::VersionSkew(..) => pause(&over, &mut backoff),
        };
        tracing::warn!(reason = %over, wait = ?wait, "no connection to the broker");
        let away = Link::Away {
            why: public(&over).into(),
            retry_after: seconds(wait),
        };
        wiring.uplink.link.send_replace(away);
        tokio::select! {
            () = wiring.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = sooner(&wiring.uplink, wait) => {}
        }
    }
}

/// Until somebody needs the connection, but not before a part of the pause: on a busy host somebody
/// always does, and all hosts at once would keep a broker down that comes up. A long pause is for
/// what asking again cannot mend.
async fn sooner(uplink: &Uplink, wait: Duration) {
    if wait >= limits::REFUSED_PAUSE {
        return std::future::pending().await;
    }
    tokio::time::sleep(limits::RECONNECT_FIRST.max(wait / 8)).await;
    uplink.wanted.notified().await;
}

/// Whether the broker said, on whatever call, that this host is locked out.
fn is_ban(over: &Over) -> bool {
    match over {
        Over::Banned => true,
        Over::Call(error) => error.refused() == Some(Code::AgentBanned),
        Over::Connect(_) | Over::Lost | Over::VersionSkew(..) | Over::Renewed | Over::Stopping => {
            false
        }
    }
}

/// What waiting longer cannot mend is asked less often.
fn pause(over: &Over, backoff: &mut Backoff) -> Duration {
    let next = backoff.next(jitter());
    match over {
        Over::VersionSkew(..) | Over::Banned => limits::REFUSED_PAUSE,
        Over::Call(error)
            if matches!(
                error.refused(),
                Some(Code::AgentBanned | Code::VersionSkew | Code::StaleInstance)
            ) =>
        {
            limits::REFUSED_PAUSE
        }
        Over::Connect(_) | Over::Call(_) | Over::Lost | Over::Renewed | Over::Stopping => next,
    }
}

/// The reason as a caller may read it: no addresses, no certificates.
fn public(over: &Over) -> &'static str {
    match over {
        Over::Connect(_) | Over::Lost => "the agent has no connection to the broker",
        Over::Call(error) => match error.refused() {
            Some(Code::AgentBanned) => "this host is banned at the broker",
            Some(Code::VersionSkew) => "broker and agent are more than one minor version apart",
            Some(Code::StaleInstance) => "another instance of this agent is active at the broker",
            Some(Code::EpochEnded) => {
                "the broker began a new epoch, and the agent is coming back to it"
            }
            Some(Code::LogRewound) => {
                "the broker's store went back in time, and its operator must look into it"
            }
            Some(_) | None => "the broker does not take this agent's calls",
        },
        Over::Banned => "this host is banned at the broker",
        Over::VersionSkew(..) => "broker and agent are more than one minor version apart",
        Over::Renewed => "the agent is connecting again",
        Over::Stopping => "the agent is stopping",
    }
}

/// One connection from its beginning to its end.
async fn one(wiring: &Arc<Wiring>, reached: &mut bool) -> Over {
    match begin(wiring).await {
        Ok((session, over)) => {
            *reached = true;
            live(wiring, &session, &over).await
        }
        Err(over) => over,
    }
}

async fn begin(wiring: &Wiring) -> Result<(Arc<Session>, CancellationToken), Over> {
    let wire = wiring.connect.connect().await?;
    let (h2, over) = connect::handshake(wire, &wiring.tasks).await?;
    let client = Client::with_origin(h2, http::Uri::from_static("https://broker"))
        .max_decoding_message_size(ephor_proto::limits::MAX_MESSAGE_BYTES);
    let hello = v1::HelloRequest {
        version: Some(grpc::VERSION),
        instance_id: wiring.uplink.instance.to_bytes().to_vec(),
        boot_id: wiring.boot_id.clone(),
        checkpoint: wiring.highest.note(),
    };
    let info = wiring.uplink.call(client.clone().hello(timed(hello))).await;
    let info = match info {
        Err(error) if error.refused() == Some(Code::EpochEnded) => {
            return Err(come_back(wiring, client).await);
        }
        answer => answer?,
    };
    let theirs = info.version.unwrap_or_default();
    if !grpc::compatible(grpc::VERSION, theirs) {
        let shown = |v: v1::Version| format!("{}.{}", v.major, v.minor);
        return Err(Over::VersionSkew(shown(theirs), shown(grpc::VERSION)));
    }
    tracing::info!(installation = %info.installation, "connected to the broker");
    bundle::take(wiring, info.ca_bundle.clone()).await;
    Ok((Arc::new(Session { client, info }), over))
}

/// The broker, which our CA vouches for, began a new epoch: our certificate is good for a new one
/// and for nothing else. What was issued in the old epoch goes; tasks stay.
async fn come_back(wiring: &Wiring, client: Client) -> Over {
    let Some(renewal) = &wiring.renewal else {
        return Over::Lost;
    };
    tracing::warn!("the broker began a new epoch; coming back to it with a new certificate");
    match new_identity(wiring, client, renewal).await {
        Ok(()) => {
            wiring.downlink.epoch_ended();
            Over::Renewed
        }
        Err(NoIdentity::Call(error)) => error.into(),
        Err(NoIdentity::Here(reason)) => {
            tracing::error!(reason, "this host could not come back to the new epoch");
            Over::Lost
        }
    }
}

/// Why there is no new certificate.
enum NoIdentity {
    Call(CallError),
    Here(String),
}

impl std::fmt::Display for NoIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call(error) => error.fmt(f),
            Self::Here(reason) => f.write_str(reason),
        }
    }
}

/// Everything that goes on while a connection stands; the first that ends ends it.
async fn live(wiring: &Arc<Wiring>, session: &Arc<Session>, over: &CancellationToken) -> Over {
    // The first heartbeat tells which tasks were adopted. It goes out before anything new is
    // asked for, so that no new task can be missing from it.
    if let Err(over) = heartbeat(wiring, session).await {
        return over;
    }
    // Hello and heartbeat were taken just now: a ban that rang before is not of this connection.
    tokio::select! {
        biased;
        () = wiring.uplink.banned.notified() => {}
        () = std::future::ready(()) => {}
    }
    wiring
        .uplink
        .link
        .send_replace(Link::Up(Arc::clone(session)));
    tokio::select! {
        biased;
        () = wiring.uplink.banned.notified() => Over::Banned,
        () = over.cancelled() => Over::Lost,
        over = watch(wiring, session) => over,
        over = heartbeats(wiring, session) => over,
        over = ends::tell_all(wiring, session) => over,
        over = renew(wiring, session) => over,
    }
}

async fn heartbeats(wiring: &Wiring, session: &Session) -> Over {
    let every = match session.info.heartbeat_milliseconds {
        0 => ephor_proto::limits::HEARTBEAT_MILLIS,
        millis => u64::from(millis),
    };
    loop {
        tokio::time::sleep(Duration::from_millis(every)).await;
        if let Err(over) = heartbeat(wiring, session).await {
            return over;
        }
    }
}

async fn heartbeat(wiring: &Wiring, session: &Session) -> Result<(), Over> {
    let sent = wiring.uplink.clock.boottime();
    let Snapshot { seq, tasks, ended } = wiring.downlink.snapshot();
    let request = v1::HeartbeatRequest {
        instance_id: wiring.uplink.instance.to_bytes().to_vec(),
        boot_id: wiring.boot_id.clone(),
        seq,
        open_tasks: tasks.iter().map(|task| task.to_bytes().to_vec()).collect(),
        ca_sequence: ca_sequence(wiring),
        checkpoint: wiring.highest.note(),
        ended_tasks: ended.iter().map(ended_task).collect(),
    };
    let answer = wiring
        .uplink
        .call(session.client.clone().heartbeat(timed(request)))
        .await?;
    let closed: Vec<TaskId> = answer
        .closed_tasks
        .iter()
        .filter_map(|id| TaskId::from_slice(id).ok())
        .collect();
    wiring.downlink.tasks_closed(&closed, sent);
    raise(wiring, &session.info.log_key, answer.checkpoint).await;
    bundle::take(wiring, answer.ca_bundle).await;
    Ok(())
}

/// An end whose own call may be waiting behind others, at a target that hangs: without it the broker would take
/// the task for lost.
fn ended_task(ended: &Ended) -> v1::EndedTask {
    v1::EndedTask {
        task_id: ended.task.to_bytes().to_vec(),
        cause: on_the_wire(ended.cause).to_owned(),
    }
}

/// Of the CA set in force; 0 asks for it.
fn ca_sequence(wiring: &Wiring) -> u64 {
    let renewal = wiring.renewal.as_ref();
    renewal.map_or(0, |renewal| {
        renewal
            .ca_sequence
            .load(std::sync::atomic::Ordering::Relaxed)
    })
}

/// Keeps a newer checkpoint, if it is signed by the log this connection named.
async fn raise(wiring: &Wiring, log_key: &str, note: String) {
    if note.is_empty() {
        return;
    }
    if let Err(reason) = checkpoint::verify(&note, log_key) {
        tracing::warn!(%reason, "the broker sent a checkpoint that does not verify; it is not kept");
        return;
    }
    let highest = Arc::clone(&wiring.highest);
    let raised = wiring
        .tasks
        .blocking("uplink.checkpoint", move || highest.raise(&note))
        .await;
    if let Ok(Err(error)) = raised {
        tracing::warn!(%error, "the highest checkpoint could not be stored; check the state directory");
    }
}

async fn watch(wiring: &Wiring, session: &Session) -> Over {
    let request = v1::WatchRequest {
        instance_id: wiring.uplink.instance.to_bytes().to_vec(),
    };
    let mut stream = match session
        .client
        .clone()
        .watch(tonic::Request::new(request))
        .await
    {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            return Over::Call(refusal::from_status(&status, &wiring.uplink.correlation));
        }
    };
    loop {
        match stream.next().await {
            Some(Ok(push)) => take_push(wiring, push),
            Some(Err(status)) => {
                return Over::Call(refusal::from_status(&status, &wiring.uplink.correlation));
            }
            None => return Over::Lost,
        }
    }
}

fn take_push(wiring: &Wiring, push: v1::Push) {
    match push.what {
        Some(v1::push::What::TaskRevoked(revoked)) => match TaskId::from_slice(&revoked.task_id) {
            Ok(task) => wiring.downlink.task_revoked(task, &revoked.cause),
            Err(error) => tracing::warn!(%error, "the broker revoked a task with a bad id"),
        },
        Some(v1::push::What::CredentialRevoked(revoked)) => {
            match (
                TaskId::from_slice(&revoked.task_id),
                CredentialId::from_slice(&revoked.credential_id),
            ) {
                (Ok(task), Ok(credential)) => wiring.downlink.credential_revoked(task, credential),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!(%error, "the broker revoked a credential with a bad id")
                }
            }
        }
        // A newer broker's push that this version does not know.
        None => tracing::debug!("unknown push from the broker"),
    }
}

/// Waits until the agent's certificate is due, and renews it. Never ends otherwise.
async fn renew(wiring: &Wiring, session: &Session) -> Over {
    use std::sync::atomic::Ordering;
    let Some(renewal) = &wiring.renewal else {
        return std::future::pending().await;
    };
    let mut backoff = Backoff::new(limits::RENEW_IDENTITY_FIRST, limits::RENEW_IDENTITY_CAP);
    loop {
        let due = match session.info.renew_identity_at {
            0 => renewal.renew_at_millis.load(Ordering::Relaxed),
            at => at.min(renewal.renew_at_millis.load(Ordering::Relaxed)),
        };
        let left = due.saturating_sub(wiring.uplink.clock.wall().as_millis());
        if left > 0 {
            // In steps, because the timer stands still while the host sleeps.
            let step = Duration::from_millis(left).min(limits::RENEW_IDENTITY_STEP);
            tokio::select! {
                () = tokio::time::sleep(step) => {}
                () = renewal.sooner.notified() => {}
            }
            continue;
        }
        match renew_once(wiring, session, renewal).await {
            Ok(()) => return Over::Renewed,
            Err(reason) => {
                let wait = backoff.next(jitter());
                tracing::warn!(
                    reason,
                    ?wait,
                    "the agent's certificate could not be renewed yet"
                );
                tokio::time::sleep(wait).await;
            }
        }
    }
}

async fn renew_once(wiring: &Wiring, session: &Session, renewal: &Renewal) -> Result<(), String> {
    let outcome = new_identity(wiring, session.client.clone(), renewal).await;
    outcome.map_err(|why| why.to_string())
}

/// Asks for a certificate for a new key, and takes it into use. CAs that we did not trust before
/// are those of another epoch, whose log we have seen nothing of.
async fn new_identity(
    wiring: &Wiring,
    mut client: Client,
    renewal: &Renewal,
) -> Result<(), NoIdentity> {
    let here = |error: &dyn std::fmt::Display| NoIdentity::Here(error.to_string());
    let key = SigningKey::generate().map_err(|error| here(&error))?;
    let request = v1::RenewIdentityRequest {
        instance_id: wiring.uplink.instance.to_bytes().to_vec(),
        public_key_der: key.public_key().spki(),
        checkpoint: wiring.highest.note(),
    };
    let call = wiring.uplink.call(client.renew_identity(timed(request)));
    let answer = call.await.map_err(NoIdentity::Call)?;
    let identity = Identity::assemble(key, answer.certificate_der, &answer.ca_certificates_der)
        .map_err(NoIdentity::Here)?;
    let before = renewal.trust.current();
    let is_known = |ca: &CaCertificate| before.iter().any(|known| known.sha256() == ca.sha256());
    let is_new_epoch = !identity.cas.iter().any(is_known);
    let (state_dir, highest) = (renewal.state_dir.clone(), Arc::clone(&wiring.highest));
    let _one_writer = renewal.file.lock().await;
    let store = move || {
        if is_new_epoch {
            // First: a log of another name must not be judged by what was seen of this one.
            highest.begin_again().map_err(|error| error.to_string())?;
        }
        let stored = identity.store(&state_dir);
        stored.map(|()| identity).map_err(|error| error.to_string())
    };
    let stored = wiring.tasks.blocking("uplink.identity", store).await;
    let identity = stored
        .map_err(|error| here(&error))?
        .map_err(NoIdentity::Here)?;
    renewal.renew_at_millis.store(
        identity.renew_at_millis(),
        std::sync::atomic::Ordering::Relaxed,
    );
    renewal.trust.replace(identity.cas.clone());
    renewal
        .slot
        .replace(certified_key(&[&identity.certificate_der], identity.key));
    Ok(())
}
