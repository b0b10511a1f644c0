//! One connection's caller: attested once, checked again before every secret.

use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ephor_proto::grpc::v1;
use ephor_proto::http::agent as wire;
use ephor_proto::id::TaskId;
use ephor_proto::problem::{Code, Problem};
use ephor_proto::state::task::EndCause;
use ephor_proto::task_rule;

use crate::app::Agent;
use crate::attest::{self, AttestError, Attested, Fingerprint, HashCache, Peer};
use crate::complete::{TaskError, TaskHandle};
use crate::crash_point;
use crate::journal::JournalError;
use crate::request::{Asker, BoundTask, Identity};
use crate::revoke;
use crate::surface::peer::Speaker;

/// The process at the other end of one connection.
pub struct Caller {
    agent: Arc<Agent>,
    speaker: Speaker,
    attested: OnceLock<Attested>,
    /// Guards the last binding used on this connection; requests on it come one by one.
    bound: Mutex<Option<(Option<wire::Bind>, Arc<Asker>)>>,
}

impl Caller {
    /// A caller that was not looked at yet.
    #[must_use]
    pub fn new(agent: Arc<Agent>, speaker: Speaker) -> Self {
        Self {
            agent,
            speaker,
            attested: OnceLock::new(),
            bound: Mutex::default(),
        }
    }

    /// The agent it speaks to.
    #[must_use]
    pub fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// Its uid at connect.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.speaker.peer().uid()
    }

    /// What was seen of it, at the first request of the connection.
    ///
    /// # Errors
    /// When it cannot be attested.
    pub fn attested(&self) -> Result<&Attested, Problem> {
        if let Some(attested) = self.attested.get() {
            return Ok(attested);
        }
        let attested = attest::attest(self.speaker.peer(), false, &self.agent.hashes)
            .map_err(|error| self.refused(&error))?;
        Ok(self.attested.get_or_init(|| attested))
    }

    /// Whom a request is for: the caller, or the process that it stands in for.
    ///
    /// # Errors
    /// When either cannot be attested, or there is no task for it.
    pub fn asker(&self, bind: Option<wire::Bind>) -> Result<Arc<Asker>, Problem> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, asker)) = bound.as_ref()
            && *last == bind
            && asker.identity.is_open()
        {
            return Ok(Arc::clone(asker));
        }
        // What was attested earlier on this connection opens no task for what is there now.
        if let Some(before) = self.attested.get() {
            attest::recheck(self.speaker.peer(), before).map_err(|error| self.refused(&error))?;
        }
        let asker = Arc::new(self.resolve(bind)?);
        *bound = Some((bind, Arc::clone(&asker)));
        Ok(asker)
    }

    /// Looks up the task anew at the next request.
    pub fn forget(&self) {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The rule that holds for the caller, and its open task, without opening one.
    ///
    /// # Errors
    /// When it cannot be attested, or `bind` names a wrong process.
    pub fn find(
        &self,
        bind: Option<wire::Bind>,
    ) -> Result<(&'static str, Option<TaskHandle>), Problem> {
        let attested = self.attested()?;
        self.agent
            .table
            .find(self.speaker.peer(), attested, bind)
            .map_err(|error| self.no_task(&error))
    }

    /// Opens the task of `ephor run` with the descriptor that came beside the request.
    ///
    /// # Errors
    /// When none came, or it is no pidfd of a process that the caller may name.
    pub fn open_run(&self) -> Result<TaskId, Problem> {
        self.attested()?;
        let Some(descriptor) = self.speaker.take_descriptor() else {
            let detail =
                "send one pidfd of the task's main process (SCM_RIGHTS) beside the request";
            return Err(self.agent.problem(Code::InvalidRequest, detail));
        };
        let task = self
            .agent
            .table
            .open_run(self.speaker.peer(), descriptor)
            .map_err(|error| self.no_task(&error))?;
        self.agent.opened(task.id(), task.uid());
        Ok(task.id())
    }

    /// Evidence of the process that `bind` names, as the caller and as the broker take it.
    ///
    /// # Errors
    /// When it cannot be attested.
    pub async fn evidence(
        &self,
        bind: Option<wire::Bind>,
        hash: bool,
    ) -> Result<(wire::Evidence, v1::Evidence), Problem> {
        let (speaker, hashes) = (self.speaker.clone(), Arc::clone(&self.agent.hashes));
        let seen = self.agent.tasks.blocking("attest.evidence", move || {
            let attested = match bind {
                Some(bind) => attest::attest_ancestor(speaker.peer(), bind, hash, &hashes)?
                    .map(|(_, attested)| attested),
                None => None,
            };
            let attested =
                attested.map_or_else(|| attest::attest(speaker.peer(), hash, &hashes), Ok)?;
            Ok::<_, AttestError>((attested.evidence().to_http(), attested.evidence().to_wire()))
        });
        match seen.await {
            Ok(seen) => seen.map_err(|error| self.refused(&error)),
            Err(error) => Err(self.agent.problem(Code::Internal, error.to_string())),
        }
    }

    /// The last look before a secret is written: nobody else spoke on the connection, and
    /// caller and asker still are what was attested.
    ///
    /// # Errors
    /// Then nothing may be written.
    pub fn check_before_write(&self, asker: &Asker) -> Result<(), Problem> {
        self.check(asker, attest::recheck)
    }

    /// As [`Self::check_before_write`], when nothing was waited for since the request was read.
    ///
    /// # Errors
    /// As there.
    pub fn check_at_once(&self, asker: &Asker) -> Result<(), Problem> {
        self.check(asker, attest::recheck_speaker)
    }

    fn check(
        &self,
        asker: &Asker,
        recheck: fn(&Peer, &Attested) -> Result<(), AttestError>,
    ) -> Result<(), Problem> {
        if let Some(refused) = self.speaker.refused() {
            return Err(self.agent.problem(Code::CallerGone, refused.to_string()));
        }
        if !asker.identity.is_open() {
            return Err(self.agent.problem(
                Code::TaskEnded,
                "the task ended before the hand-over; nothing was handed out",
            ));
        }
        let checked = self.attested().and_then(|attested| {
            recheck(self.speaker.peer(), attested).map_err(|error| self.refused(&error))
        });
        // The caller itself is the asker, unless it stands in for another process.
        let checked = checked.and_then(|()| match asker.task.rule {
            "ancestor" => asker
                .identity
                .still()
                .map_err(|why| self.agent.problem(Code::CallerGone, why)),
            _ => Ok(()),
        });
        if let Err(problem) = checked {
            self.lost(asker, &problem);
            return Err(problem);
        }
        crash_point!("deliver.before_write");
        Ok(())
    }

    /// The one a task was opened for is not there any more: the task is over, so that what was
    /// issued for it is revoked. A task of several processes goes on without this one; what is
    /// held for it never left the agent.
    fn lost(&self, asker: &Asker, problem: &Problem) {
        tracing::info!(task = %asker.task.id, reason = %problem.detail, "nothing was handed out");
        if asker.task.rule == "peer" {
            revoke::end_task(&self.agent, asker.task.id, EndCause::Exited);
        }
    }

    fn resolve(&self, bind: Option<wire::Bind>) -> Result<Asker, Problem> {
        let (peer, own) = (self.speaker.peer(), self.attested()?);
        let ancestor = match bind {
            Some(bind) => attest::attest_ancestor(peer, bind, false, &self.agent.hashes)
                .map_err(|error| self.refused(&error))?,
            None => None,
        };
        let (named, attested) = match ancestor {
            Some((named, attested)) => (Some(named), attested),
            None => (None, own.clone()),
        };
        let handle = self
            .agent
            .table
            .resolve(peer, &attested, bind, named.as_ref())
            .map_err(|error| self.no_task(&error))?;
        self.agent.opened(handle.id(), handle.uid());
        let task = bound(&handle);
        let fingerprint = attested.fingerprint().clone();
        let who = named.map_or_else(|| Who::Speaker(self.speaker.clone()), Who::Found);
        let hashes = Arc::clone(&self.agent.hashes);
        Ok(Asker {
            task,
            fingerprint,
            identity: Box::new(Process {
                who,
                attested,
                handle,
                hashes,
                sent: OnceLock::new(),
            }),
        })
    }

    fn refused(&self, error: &AttestError) -> Problem {
        self.agent
            .problem(error.code(), format!("{error}. Nothing was handed out"))
    }

    fn no_task(&self, error: &TaskError) -> Problem {
        self.agent.problem(error.code(), error.to_string())
    }
}

fn bound(handle: &TaskHandle) -> BoundTask {
    BoundTask {
        id: handle.id(),
        rule: handle.rule(),
        pid: handle.process().pid,
        start_time: handle.process().start_time,
        opened_seq: handle.opened_seq(),
    }
}

/// The asker that an earlier agent had, attested again; one that is not there any more stays gone:
/// what is held is then served and not renewed.
#[must_use]
pub fn asker_again(
    handle: TaskHandle,
    process: Option<task_rule::Process>,
    fingerprint: Fingerprint,
    hashes: &Arc<HashCache>,
) -> Asker {
    let again = process.map(|process| attest::attest_again(process, &fingerprint, hashes));
    let task = bound(&handle);
    let identity: Box<dyn Identity> = match again {
        Some(Ok((peer, attested))) => Box::new(Process {
            who: Who::Found(peer),
            attested,
            handle,
            hashes: Arc::clone(hashes),
            sent: OnceLock::new(),
        }),
        Some(Err(_)) | None => Box::new(Gone(handle)),
    };
    Asker {
        task,
        fingerprint,
        identity,
    }
}

/// An asker that was gone when another agent took over.
struct Gone(TaskHandle);

impl Identity for Gone {
    fn still(&self) -> Result<(), String> {
        Err("the process that asked for it is gone".to_owned())
    }

    fn is_open(&self) -> bool {
        self.0.is_open()
    }

    fn journalled(&self) -> Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send + '_>> {
        Box::pin(self.0.durable())
    }

    fn evidence(&self) -> v1::Evidence {
        v1::Evidence::default()
    }

    fn known_evidence(&self) -> Option<v1::Evidence> {
        None
    }

    fn hashed_evidence(&self) -> Result<v1::Evidence, String> {
        self.still().map(|()| self.evidence())
    }

    fn process(&self) -> Option<task_rule::Process> {
        None
    }
}

enum Who {
    Speaker(Speaker),
    /// An ancestor that stands in, or whom an earlier agent attested.
    Found(Peer),
}

/// An attested process and its task.
struct Process {
    who: Who,
    attested: Attested,
    handle: TaskHandle,
    hashes: Arc<HashCache>,
    /// The evidence as sent, with the login name.
    sent: OnceLock<v1::Evidence>,
}

impl Process {
    fn peer(&self) -> &Peer {
        match &self.who {
            Who::Speaker(speaker) => speaker.peer(),
            Who::Found(peer) => peer,
        }
    }
}

impl Identity for Process {
    fn still(&self) -> Result<(), String> {
        attest::recheck(self.peer(), &self.attested).map_err(|error| error.to_string())
    }

    fn is_open(&self) -> bool {
        self.handle.is_open()
    }

    fn journalled(&self) -> Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send + '_>> {
        Box::pin(self.handle.durable())
    }

    fn evidence(&self) -> v1::Evidence {
        let made = || self.attested.evidence().to_wire();
        self.sent.get_or_init(made).clone()
    }

    fn known_evidence(&self) -> Option<v1::Evidence> {
        self.sent.get().cloned()
    }

    fn process(&self) -> Option<task_rule::Process> {
        Some(self.peer().process().id())
    }

    fn hashed_evidence(&self) -> Result<v1::Evidence, String> {
        let hashed =
            attest::attest(self.peer(), true, &self.hashes).map_err(|error| error.to_string())?;
        if hashed.fingerprint() != self.attested.fingerprint() {
            return Err("the process changed while it was attested; ask again".to_owned());
        }
        Ok(hashed.evidence().to_wire())
    }
}
