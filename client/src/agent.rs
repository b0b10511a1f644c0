//! The agent's local socket.
//!
//! Whoever can replace the socket could play the agent, hand out a bundle of its own and collect
//! what is sent with its tokens: so each connection is asked who listens at its other end, and
//! nothing is sent to a stranger.

mod server;

pub use server::may_serve;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ephor_proto::cred::IDENTITY;
use ephor_proto::http::agent::{
    Bundle, Completed, FlatCertificate, LOCAL_HEADER, Task, Token as WireToken, Whoami,
};
use ephor_proto::problem::Problem;
use http::{Method, Request, header};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::error::Error;
use crate::limits;
use crate::task::TaskGuard;
use crate::token::TokenSource;
use crate::wire::{Http, Reply};

/// Where packages put it.
const DEFAULT_SOCKET: &str = "/run/ephor/agent.sock";
/// How this crate's errors call it.
const AGENT: &str = "the agent";

/// The agent of this host. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Agent(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// Connections for the next calls. Held for a push or a pop.
    idle: Mutex<Vec<Http>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Agent {
    /// The agent at `EPHOR_SOCKET`, else at `/run/ephor/agent.sock`.
    #[must_use]
    pub fn from_env() -> Self {
        let path = std::env::var_os("EPHOR_SOCKET");
        Self::at(path.map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from))
    }

    /// The agent at this path. Nothing is sent unless root, this process's own user or the owner
    /// of the socket's directory serves it, as with `ephor`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            path: path.into(),
            idle: Mutex::default(),
        }))
    }

    /// Tokens for `audience`, fetched as they are needed.
    #[must_use]
    pub fn tokens(&self, audience: &str) -> TokenSource {
        TokenSource::new(self.clone(), audience)
    }

    /// A guard that completes the caller's task when it is dropped.
    pub fn task_guard(&self) -> TaskGuard {
        TaskGuard::new(self.clone())
    }

    /// Who the caller is to Ephor.
    ///
    /// # Errors
    /// When the agent refuses or cannot be reached.
    pub async fn whoami(&self) -> Result<Whoami, Error> {
        self.read("/v1/whoami").await
    }

    /// The caller's task.
    ///
    /// # Errors
    /// When it has none, or the agent refuses or cannot be reached.
    pub async fn task(&self) -> Result<Task, Error> {
        self.read("/v1/task").await
    }

    /// Ends the caller's task: everything it was given is revoked. Repeated, it gives the same
    /// receipt.
    ///
    /// # Errors
    /// When there is no task, or the agent refuses or cannot be reached.
    pub async fn complete(&self) -> Result<Completed, Error> {
        self.call(Method::POST, COMPLETE).await
    }

    pub(crate) async fn token(&self, audience: &str) -> Result<WireToken, Error> {
        let target = format!("/v1/token?audience={}", escaped(audience));
        self.read(&target).await
    }

    /// `entitlement`'s certificate, or the caller's own.
    pub(crate) async fn certificate(
        &self,
        entitlement: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<FlatCertificate, Error> {
        let entitlement = entitlement.unwrap_or(IDENTITY);
        let mut target = format!("/v1/certificate?entitlement={}", escaped(entitlement));
        if let Some(ttl) = ttl {
            target.push_str(&format!("&ttl_seconds={}", ttl.as_secs()));
        }
        self.read(&target).await
    }

    pub(crate) async fn bundle(&self) -> Result<Bundle, Error> {
        self.read("/v1/bundle").await
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    async fn read<T: DeserializeOwned>(&self, target: &str) -> Result<T, Error> {
        self.call(Method::GET, target).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, target: &str) -> Result<T, Error> {
        let late = |_| Error::Late {
            path: self.0.path.clone(),
            after: limits::CALL,
        };
        let reply = tokio::time::timeout(limits::CALL, self.exchange(&method, target));
        read_reply(&reply.await.map_err(late)??)
    }

    /// Every call of this crate may be made twice, so a kept connection that turns out to be
    /// closed costs nothing but another one.
    async fn exchange(&self, method: &Method, target: &str) -> Result<Reply, Error> {
        let kept = self.idle().pop();
        if let Some(mut http) = kept.filter(Http::is_open) {
            let reply = http.call(request(method, target)?, limits::ANSWER_BYTES);
            if let Ok(reply) = reply.await {
                self.keep(http);
                return Ok(reply);
            }
        }
        let mut http = self.connect().await?;
        let reply = http.call(request(method, target)?, limits::ANSWER_BYTES);
        let reply = reply.await.map_err(|source| self.away(source))?;
        self.keep(http);
        Ok(reply)
    }

    async fn connect(&self) -> Result<Http, Error> {
        let stream = UnixStream::connect(&self.0.path);
        let stream = stream.await.map_err(|source| self.away(source))?;
        self.check_server(&stream)?;
        Http::over(stream).await.map_err(|source| self.away(source))
    }

    /// Refuses a stranger's socket. The kernel says who listens; a file could look like anybody's.
    pub(crate) fn check_server(&self, stream: &impl AsFd) -> Result<(), Error> {
        let peer = rustix::net::sockopt::socket_peercred(stream);
        let uid = peer.map_err(|error| self.away(error.into()))?.uid.as_raw();
        let own = rustix::process::geteuid().as_raw();
        let may = may_serve(uid, &self.0.path, own);
        if may.map_err(|error| self.away(error))? {
            return Ok(());
        }
        Err(Error::Stranger {
            path: self.0.path.clone(),
            uid,
        })
    }

    pub(crate) fn away(&self, source: io::Error) -> Error {
        Error::Agent {
            path: self.0.path.clone(),
            source,
        }
    }

    fn keep(&self, http: Http) {
        let mut idle = self.idle();
        if http.is_open() && idle.len() < limits::IDLE_CONNECTIONS {
            idle.push(http);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Http>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the caller's own task.
pub(crate) const COMPLETE: &str = "/v1/task/complete";

fn request(method: &Method, target: &str) -> Result<Request<Full<Bytes>>, Error> {
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, "localhost")
        .header(LOCAL_HEADER, "1");
    request
        .body(Full::default())
        .map_err(|error| Error::Answer {
            what: AGENT,
            why: error.to_string(),
        })
}

pub(crate) fn read_reply<T: DeserializeOwned>(reply: &Reply) -> Result<T, Error> {
    let otherwise = |why: String| Error::Answer { what: AGENT, why };
    if reply.status.is_success() {
        return serde_json::from_slice(&reply.body).map_err(|error| otherwise(error.to_string()));
    }
    match serde_json::from_slice::<Problem>(&reply.body) {
        Ok(problem) => Err(Error::Refused(Box::new(problem))),
        Err(_) => Err(otherwise(format!("status {}", reply.status))),
    }
}

/// One value of a query (RFC 3986 §2.1): it cannot become another field.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
