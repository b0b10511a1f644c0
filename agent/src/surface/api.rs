//! The native API on the Unix socket: parse, call a stage, encode, nothing else.
//!
//! A hyper service without a router in front: a dozen paths, and this is a per-API-call path of
//! the applications. No browser and no proxy may speak here, whatever else the request says.

pub mod answer;
pub mod caller;
pub mod headers;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ephor_proto::http::agent as wire;
use ephor_proto::id::TaskId;
use ephor_proto::limits::{MAX_BODY_BYTES, MAX_HEADER_BYTES};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::stage::Stage;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::app::Agent;
use crate::clock::Stopwatch;
use crate::deliver;
use crate::hold::Held;
use crate::hold::entry::{Cost, bundle_pem};
use crate::limits;
use crate::metrics::STAGES;
use crate::request::{BadRequest, Requested, query};
use crate::revoke;
use crate::surface::listener::{Activity, Opened, Serve};
use crate::surface::pause::{Parked, Pause};
use crate::surface::peer::PeerStream;
use crate::uplink::{CallError, Link};
use answer::Answer;
use caller::Caller;

/// The API of an agent.
pub struct Api(pub Arc<Agent>);

impl Serve for Api {
    async fn serve(
        self: Arc<Self>,
        opened: Opened,
        activity: Arc<Activity>,
        drain: CancellationToken,
        pause: Pause,
    ) -> Option<Parked> {
        let stream = match PeerStream::new(opened.stream, opened.ahead, self.0.mode) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(%error, "a connection was refused: its peer cannot be held");
                return None;
            }
        };
        let speaker = stream.speaker().clone();
        let caller = Arc::new(Caller::new(Arc::clone(&self.0), speaker.clone()));
        let counted = Arc::clone(&activity);
        let service = service_fn(move |request| {
            let (caller, activity) = (Arc::clone(&caller), Arc::clone(&counted));
            async move {
                activity.begin();
                let response = respond(&caller, request).await;
                activity.end();
                Ok::<_, Infallible>(response)
            }
        });
        // hyper's own timeout would arm a timer for every request; the listener's watchdog has one
        // for the connection.
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(limits::HEADER_LINES)
            .serve_connection(TokioIo::new(stream), service);
        let paused = tokio::select! {
            ended = &mut connection => {
                closed(ended);
                return None;
            }
            () = drain.cancelled() => None,
            () = pause.becomes(true) => Some(activity.look()),
        };
        if paused.is_some() {
            speaker.goes_on();
        }
        Pin::new(&mut connection).graceful_shutdown();
        let ended = (&mut connection).await;
        let is_whole = ended.is_ok() && speaker.refused().is_none();
        closed(ended);
        let (begun, answered) = paused?;
        // An answer made since then said that the connection closes.
        if !is_whole || begun != answered || activity.look() != (begun, answered) {
            return None;
        }
        let parts = connection.into_parts();
        let stream = parts.io.into_inner().into_std().ok()?;
        let ahead = parts.read_buf;
        Some(Parked { stream, ahead })
    }

    fn too_many(&self) -> Vec<u8> {
        let problem = self.0.problem(
            Code::RateLimited,
            "this user has too many connections to the agent; close some",
        );
        answer::raw(&problem)
    }
}

fn closed(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection was closed");
    }
}

/// Answers one request.
async fn respond(caller: &Caller, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    match handle(caller, &head, body).await {
        Ok(answer) => answer.into_response(),
        Err(problem) => answer::refusal(&problem),
    }
}

/// What a path means; each takes one method.
enum Route {
    Credentials,
    Tasks,
    CompleteOther(TaskId),
    Token,
    Certificate,
    Database,
    Bundle,
    Whoami,
    Task,
    CompleteOwn,
    Ready,
}

async fn handle(caller: &Caller, head: &Parts, body: Incoming) -> Result<Answer, Problem> {
    let agent = caller.agent();
    let refuse = |bad: BadRequest| agent.problem(bad.code, bad.detail);
    headers::check(head).map_err(refuse)?;
    let route = route(head).map_err(refuse)?;
    let query = head.uri.query();
    match route {
        Route::Token => {
            no_body(head).map_err(refuse)?;
            flat(caller, &Requested::token(query).map_err(refuse)?).await
        }
        Route::Certificate => {
            no_body(head).map_err(refuse)?;
            flat(caller, &Requested::certificate(query).map_err(refuse)?).await
        }
        Route::Database => {
            no_body(head).map_err(refuse)?;
            flat(caller, &Requested::database(query).map_err(refuse)?).await
        }
        Route::Bundle => {
            no_body(head).map_err(refuse)?;
            query::only(query, []).map_err(refuse)?;
            Ok(Answer::json(&wire::Bundle {
                trust_domain: agent.trust_domain.clone(),
                x509: bundle_pem(agent.certificates.trust()),
            }))
        }
        Route::Credentials => {
            query::only(query, []).map_err(refuse)?;
            let body = read(agent, body).await?;
            let requested = Requested::from_body(&body).map_err(refuse)?;
            let (held, cost) = credential(caller, &requested).await?;
            let full = held.full();
            let full = full.map_err(|error| agent.problem(Code::Internal, error.to_string()))?;
            Ok(Answer::Issued(full, cost))
        }
        Route::Tasks => {
            query::only(query, []).map_err(refuse)?;
            open_task(caller, &read(agent, body).await?)
        }
        Route::CompleteOther(task) => {
            query::only(query, []).map_err(refuse)?;
            empty(&read(agent, body).await?).map_err(refuse)?;
            complete(caller, task).await
        }
        Route::CompleteOwn => {
            let bind = bind(query).map_err(refuse)?;
            empty(&read(agent, body).await?).map_err(refuse)?;
            let (_, task) = caller.find(bind)?;
            complete(
                caller,
                task.ok_or_else(|| agent.problem(Code::NotFound, "the caller has no open task"))?
                    .id(),
            )
            .await
        }
        Route::Whoami => {
            no_body(head).map_err(refuse)?;
            whoami(caller, bind(query).map_err(refuse)?).await
        }
        Route::Task => {
            no_body(head).map_err(refuse)?;
            task(caller, bind(query).map_err(refuse)?)
        }
        Route::Ready => {
            no_body(head).map_err(refuse)?;
            ready(caller, bind(query).map_err(refuse)?)
        }
    }
}

fn route(head: &Parts) -> Result<Route, BadRequest> {
    let (path, get, post) = (head.uri.path(), Method::GET, Method::POST);
    let (method, route) = match path {
        "/v1/token" => (get, Route::Token),
        "/v1/certificate" => (get, Route::Certificate),
        "/v1/database" => (get, Route::Database),
        "/v1/bundle" => (get, Route::Bundle),
        "/v1/credentials" => (post, Route::Credentials),
        "/v1/whoami" => (get, Route::Whoami),
        "/v1/task" => (get, Route::Task),
        "/v1/ready" => (get, Route::Ready),
        "/v1/task/complete" => (post, Route::CompleteOwn),
        "/v1/tasks" => (post, Route::Tasks),
        other => {
            let id = other
                .strip_prefix("/v1/tasks/")
                .and_then(|rest| rest.strip_suffix("/complete"));
            let not_found = || BadRequest {
                code: Code::NotFound,
                detail: "there is no such path on the agent's socket".to_owned(),
            };
            let id = id
                .ok_or_else(not_found)?
                .parse()
                .map_err(|error: ephor_proto::id::BadId| BadRequest::invalid(error.to_string()))?;
            (post, Route::CompleteOther(id))
        }
    };
    if head.method == method {
        return Ok(route);
    }
    let detail = format!("{path} takes {method} only");
    Err(BadRequest {
        code: Code::MethodNotAllowed,
        detail,
    })
}

/// From memory or the broker, for the caller as it is right before the answer is written; with
/// what the stages took, if the broker was asked.
async fn credential(
    caller: &Caller,
    requested: &Requested,
) -> Result<(Arc<Held>, Option<Cost>), Problem> {
    let agent = caller.agent();
    // Twice, because the task that the connection remembers may have ended meanwhile.
    let mut tries = 0;
    loop {
        tries += 1;
        let attesting = Stopwatch::start();
        let asker = caller
            .asker(requested.bind)
            .inspect_err(|_| STAGES.refused(Stage::Attest))?;
        let key = deliver::key_of(&asker, requested);
        if let Some(held) = deliver::held(agent, &asker, key) {
            caller.check_at_once(&asker)?;
            agent.confirmations.handed_over(&held);
            return Ok((held, None));
        }
        let attested = attesting.micros();
        STAGES.counted(Stage::Request, 1);
        STAGES.passed(Stage::Attest, attested);
        let fetched = deliver::fetch(agent, &asker, key.to_key(), caller.uid()).await;
        match fetched {
            Err(problem) if problem.code == Code::TaskEnded && tries == 1 => caller.forget(),
            Err(problem) => {
                STAGES.refused(Stage::Deliver);
                return Err(problem);
            }
            Ok((held, cost)) => {
                caller
                    .check_before_write(&asker)
                    .inspect_err(|_| STAGES.refused(Stage::Deliver))?;
                agent.confirmations.handed_over(&held);
                STAGES.passed(Stage::Deliver, attesting.micros());
                let cost = cost.map(|cost| Cost {
                    attest: cost.attest + attested,
                    ..cost
                });
                return Ok((held, cost));
            }
        }
    }
}

/// One credential alone.
async fn flat(caller: &Caller, requested: &Requested) -> Result<Answer, Problem> {
    let agent = caller.agent();
    let (held, cost) = credential(caller, requested).await?;
    let flat = held
        .flat()
        .map_err(|error| agent.problem(Code::Internal, error.to_string()))?;
    let several = "it gives several credentials: POST /v1/credentials";
    let flat = flat.ok_or_else(|| agent.problem(Code::Conflict, several))?;
    Ok(Answer::Issued(flat, cost))
}

fn open_task(caller: &Caller, body: &[u8]) -> Result<Answer, Problem> {
    let agent = caller.agent();
    let body = if body.is_empty() { b"{}" } else { body };
    let _: wire::TaskOpen = serde_json::from_slice(body).map_err(|error| {
        agent.problem(
            Code::InvalidRequest,
            format!("the body opens no task: {error}"),
        )
    })?;
    let task = caller.open_run()?;
    Ok(Answer::json(&wire::TaskOpened { task }))
}

/// Ends a task of the caller's uid; repeated, it gives the same receipt.
async fn complete(caller: &Caller, task: TaskId) -> Result<Answer, Problem> {
    let agent = caller.agent();
    caller.attested()?;
    let open = agent.table.open_task(task).map(|open| open.uid());
    let owner = open
        .or_else(|| revoke::being_ended(agent, task))
        .or_else(|| agent.receipts.owner(task));
    if owner != Some(caller.uid()) {
        return Err(agent.problem(
            Code::NotFound,
            format!("no task {task} of this user is known here"),
        ));
    }
    if open.is_some()
        && let Err(error) = revoke::release(agent, task).await
    {
        let detail = format!(
            "{error}. The task is ended and wiped here, but a crash now could forget that: ask again"
        );
        return Err(agent.problem(Code::StoreUnavailable, detail));
    }
    let patience = match agent.uplink.link() {
        Link::Up(_) | Link::Connecting => limits::RECEIPT_WAIT,
        // The end is journalled and told on return; waiting here would not bring the receipt.
        Link::Away { .. } => Duration::ZERO,
    };
    let completed = agent.receipts.completed(task, patience).await;
    let completed = completed.ok_or_else(|| {
        agent.problem(
            Code::NotFound,
            "that task ended too long ago to be known here",
        )
    })?;
    Ok(Answer::json(&completed))
}

async fn whoami(caller: &Caller, bind: Option<wire::Bind>) -> Result<Answer, Problem> {
    let agent = caller.agent();
    let (task_rule, task) = caller.find(bind)?;
    let (evidence, to_broker) = caller.evidence(bind, false).await?;
    let answer = match agent.uplink.whoami(to_broker).await {
        Err(CallError::Refused(problem)) if problem.code == Code::EvidenceNeeded => {
            agent
                .uplink
                .whoami(caller.evidence(bind, true).await?.1)
                .await
        }
        answer => answer,
    };
    let answer = answer.map_err(CallError::into_problem)?;
    Ok(Answer::json(&wire::Whoami {
        subjects: answer.subjects,
        host: agent.host.as_str().to_owned(),
        trust_domain: agent.trust_domain.clone(),
        evidence,
        task_rule: task_rule.to_owned(),
        task: task.map(|task| task.id()),
    }))
}

fn task(caller: &Caller, bind: Option<wire::Bind>) -> Result<Answer, Problem> {
    let agent = caller.agent();
    let (rule, task) = caller.find(bind)?;
    let task = task.ok_or_else(|| {
        agent.problem(
            Code::NotFound,
            "the caller has no open task; asking for a credential opens one",
        )
    })?;
    let mut credentials = Vec::new();
    for (key, held) in agent.hold.list(task.id(), agent.clock.boottime()) {
        for credential in &held.credentials {
            credentials.push(wire::Held {
                kind: credential.kind.clone(),
                id: credential.id,
                entitlement: key.entitlement.to_string(),
                expires_at: credential.expires_at,
            });
        }
    }
    let state = if task.is_open() { "open" } else { "completing" };
    let cause = agent.receipts.cause(task.id()).map(str::to_owned);
    Ok(Answer::json(&wire::Task {
        task: task.id(),
        rule: rule.to_owned(),
        state: state.to_owned(),
        cause,
        credentials,
        revoked: agent.revoked(task.id()),
        epochs: agent.epochs.load(std::sync::atomic::Ordering::Relaxed),
    }))
}

fn ready(caller: &Caller, bind: Option<wire::Bind>) -> Result<Answer, Problem> {
    let agent = caller.agent();
    let (_, task) = caller.find(bind)?;
    let held = task.is_some_and(|task| {
        !agent
            .hold
            .list(task.id(), agent.clock.boottime())
            .is_empty()
    });
    let missing = match (held, agent.uplink.link()) {
        (true, _) => None,
        (false, Link::Up(_)) => {
            Some("no credential was fetched for the caller's task yet".to_owned())
        }
        (false, Link::Connecting) => Some("the agent is connecting to the broker".to_owned()),
        (false, Link::Away { why, .. }) => Some(why.to_string()),
    };
    Ok(Answer::json(&wire::Ready {
        ready: held,
        missing,
    }))
}

fn bind(raw: Option<&str>) -> Result<Option<wire::Bind>, BadRequest> {
    let [bind] = query::only(raw, ["bind"])?;
    bind.map(|text| text.parse().map_err(BadRequest::invalid))
        .transpose()
}

/// A GET has no body: one would only be a way to smuggle a second request.
fn no_body(head: &Parts) -> Result<(), BadRequest> {
    let length = head.headers.get(http::header::CONTENT_LENGTH);
    if length.is_some_and(|length| length != "0")
        || head.headers.contains_key(http::header::TRANSFER_ENCODING)
    {
        return Err(BadRequest::invalid("GET takes no body here"));
    }
    Ok(())
}

fn empty(body: &[u8]) -> Result<(), BadRequest> {
    match body {
        b"" | b"{}" => Ok(()),
        _ => Err(BadRequest::invalid("this path takes no body, or {}")),
    }
}

/// The whole body, within size and time.
async fn read(agent: &Agent, body: Incoming) -> Result<Bytes, Problem> {
    let collected = tokio::time::timeout(
        limits::BODY_READ,
        Limited::new(body, MAX_BODY_BYTES).collect(),
    )
    .await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(agent.problem(
            Code::TooLarge,
            format!("the body is larger than {MAX_BODY_BYTES} bytes"),
        )),
        Ok(Err(_)) => Err(agent.problem(Code::InvalidRequest, "the body broke off")),
        Err(_elapsed) => Err(agent.problem(Code::InvalidRequest, "the body did not come in time")),
    }
}
