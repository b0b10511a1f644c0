//! What this agent counts, and the loopback listener that tells it: metrics, life and readiness.
//!
//! An answer from memory is counted by one relaxed addition in [`crate::hold`] and nowhere else: it
//! is a per-call path of applications. Nothing here names a subject, a task or an audience.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ephor_proto::metrics::{self, Label, Page, Refusals, Stages};
use ephor_proto::stage::Stage;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::app::Agent;
use crate::limits;
use crate::uplink::Link;

/// Stages passed and refused; what memory answered is in none of them.
pub static STAGES: Stages = Stages::new();
/// Refusals that left this agent.
pub static REFUSALS: Refusals = Refusals::new();

/// The six stages of an agent.
const OURS: [Stage; 6] = [
    Stage::Request,
    Stage::Attest,
    Stage::Deliver,
    Stage::Complete,
    Stage::Revoke,
    Stage::Prove,
];

/// Listens on a loopback address.
///
/// # Errors
/// As the system's.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    adopt(std::net::TcpListener::bind(address)?)
}

/// Takes over a listener that somebody else made.
///
/// # Errors
/// When it is on another address than loopback; else as the system's.
pub fn adopt(listener: std::net::TcpListener) -> std::io::Result<TcpListener> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        let why = format!("metrics are served on loopback only, and {address} is not");
        return Err(std::io::Error::other(why));
    }
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves until the agent stops.
pub async fn serve(listener: TcpListener, agent: Arc<Agent>) {
    let stop = agent.tasks.stop().clone();
    let places = Arc::new(Semaphore::new(limits::METRICS_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let (served, stop) = (Arc::clone(&agent), stop.clone());
                agent.tasks.spawn("metrics.connection", async move {
                    let _place = place;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(limits::METRICS_CONNECTION) => {}
                        () = connection(stream, served) => {}
                    }
                });
            }
            // No place: closed, and the client may try again.
            (Ok(_), Err(_)) => {}
            (Err(error), _) => {
                tracing::warn!(%error, "accepting a connection for metrics failed");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, agent: Arc<Agent>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = answer(&agent, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::FIRST_REQUEST)
        .max_headers(limits::HEADER_LINES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection for metrics was closed");
    }
}

fn answer(agent: &Arc<Agent>, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET {
        return response(StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new());
    }
    const JSON: &str = "application/json";
    match path {
        "/healthz" => response(StatusCode::OK, JSON, r#"{"status":"ok"}"#.to_owned()),
        "/readyz" => {
            let (ready, body) = readiness(agent);
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            response(status, JSON, body.to_string())
        }
        "/metrics" => match page(agent) {
            Ok(text) => response(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(_) => response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                String::new(),
            ),
        },
        _ => response(StatusCode::NOT_FOUND, "text/plain", String::new()),
    }
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Ready: the broker answers, or what is in memory is still served.
fn readiness(agent: &Agent) -> (bool, serde_json::Value) {
    let held = agent.hold.held();
    let (up, broker) = match agent.uplink.link() {
        Link::Up(_) => (true, "up".to_owned()),
        Link::Connecting => (false, "connecting".to_owned()),
        Link::Away { why, .. } => (false, why.to_string()),
    };
    let ready = up || held > 0;
    let serving = match (up, held) {
        (true, _) => "everything",
        (false, 1..) => "what is in memory",
        (false, 0) => "nothing",
    };
    let body = serde_json::json!({
        "ready": ready,
        "joined": agent.host.as_str(),
        "broker": broker,
        "held": held,
        "serving": serving,
    });
    (ready, body)
}

fn page(agent: &Arc<Agent>) -> Result<String, std::fmt::Error> {
    let agent = Arc::clone(agent);
    metrics::page(move |page| {
        STAGES.tell(page, &OURS)?;
        REFUSALS.tell(page)?;
        tell_now(page, &agent)
    })
}

fn tell_now(page: &mut Page<'_>, agent: &Agent) -> std::fmt::Result {
    let version = (Label::Version, env!("CARGO_PKG_VERSION"));
    page.gauges("build_info", "The running version", [([version], 1)])?;
    let state = match agent.uplink.link() {
        Link::Up(_) => "up",
        Link::Connecting => "connecting",
        Link::Away { .. } => "away",
    };
    let links =
        ["up", "connecting", "away"].map(|link| ([(Label::State, link)], u64::from(link == state)));
    page.gauges("link", "Whether the broker is reached", links)?;
    let open = agent.table.open_tasks().len() as u64;
    page.gauges("tasks", "Tasks that are open", [([], open)])?;
    page.gauges(
        "held",
        "Credentials in memory",
        [([], agent.hold.held() as u64)],
    )?;
    let ends = [([(Label::Queue, "ends")], agent.spool.len() as u64)];
    page.gauges("waiting", "What the broker was not told yet", ends)?;
    page.counters("served", "Answers from memory", [([], agent.hold.served())])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn other_addresses_than_loopback_are_not_for_this() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        assert!(bind(SocketAddr::from(([127, 0, 0, 1], 0))).is_ok());
        let passed = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let refusal = adopt(passed).unwrap_err().to_string();
        assert!(refusal.contains("loopback only"), "{refusal}");
    }
}
