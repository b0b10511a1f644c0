//! HTTP over a Unix socket: the agent's native API and the broker's admin socket.
//!
//! One connection a call: these are commands, not servers. The only thing beyond plain HTTP
//! is a process descriptor that rides on the first bytes of `POST /v1/tasks`.

mod fd_stream;
mod server;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use ephor_proto::http::agent::LOCAL_HEADER;
use ephor_proto::problem::Problem;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::exit::Failure;

/// Longest a call may take: the agent answers within its own deadline of 5 s.
const CALL_MAX: Duration = Duration::from_secs(20);
/// Largest answer taken: listings and tiles are paged below this.
const ANSWER_MAX: usize = 64 << 20;

/// A good answer.
struct Answer {
    body: Bytes,
    timing: Option<String>,
}

/// A peer on a Unix socket, the agent or the broker's admin interface.
#[derive(Debug, Clone)]
pub struct Peer {
    path: PathBuf,
    what: &'static str,
    hint: &'static str,
}

impl Peer {
    /// The agent at `EPHOR_SOCKET`, else where packages put it.
    pub fn agent() -> Self {
        let path = std::env::var_os("EPHOR_SOCKET")
            .map_or_else(|| "/run/ephor/agent.sock".into(), PathBuf::from);
        Self::agent_at(path)
    }

    /// The agent at this path.
    pub fn agent_at(path: PathBuf) -> Self {
        Self {
            path,
            what: "the agent",
            hint: "Is it running?  On a laptop: ephor dev",
        }
    }

    /// The broker's admin socket at `EPHOR_ADMIN_SOCKET`, else where packages put it.
    pub fn broker() -> Self {
        let path = std::env::var_os("EPHOR_ADMIN_SOCKET")
            .map_or_else(|| "/run/ephor/broker-admin.sock".into(), PathBuf::from);
        Self::broker_at(path)
    }

    /// The broker's admin socket at this path.
    pub fn broker_at(path: PathBuf) -> Self {
        Self {
            path,
            what: "the broker's admin socket",
            hint: "It answers root and the broker's own user.",
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The user of the process that serves it.
    pub fn user(&self) -> Result<u32, Failure> {
        server::user(&self.path).map_err(|why| self.away(&why))
    }

    /// `GET target`, JSON back.
    pub async fn read<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        self.json(
            &self
                .send(Method::GET, target, Bytes::new(), None)
                .await?
                .body,
        )
    }

    /// `GET target`, bytes back.
    pub async fn bytes(&self, target: &str) -> Result<Bytes, Failure> {
        let answer = self.send(Method::GET, target, Bytes::new(), None).await?;
        Ok(answer.body)
    }

    /// `POST target` with a JSON body, JSON back.
    pub async fn post<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.post_timed(target, body)
            .await
            .map(|(answer, _)| answer)
    }

    /// As [`Self::post`], with what the peer says its stages took (`Server-Timing`), if it does.
    pub async fn post_timed<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> Result<(T, Option<String>), Failure> {
        let answer = self.send(Method::POST, target, encode(body)?, None).await?;
        Ok((self.json(&answer.body)?, answer.timing))
    }

    /// As [`Self::post`], with a descriptor by `SCM_RIGHTS`.
    pub async fn post_with_fd<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
        fd: OwnedFd,
    ) -> Result<T, Failure> {
        self.json(
            &self
                .send(Method::POST, target, encode(body)?, Some(fd))
                .await?
                .body,
        )
    }

    fn json<T: DeserializeOwned>(&self, body: &Bytes) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|why| {
            Failure::unreachable(format!(
                "{} at {} answered something else: {why}",
                self.what,
                self.path.display()
            ))
        })
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
        fd: Option<OwnedFd>,
    ) -> Result<Answer, Failure> {
        match tokio::time::timeout(CALL_MAX, self.exchange(method, target, body, fd)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::unreachable(format!(
                "{} at {} did not answer within {} s.",
                self.what,
                self.path.display(),
                CALL_MAX.as_secs()
            ))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
        fd: Option<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|why| self.away(&why))?;
        server::check(&stream, &self.path, self.what)?;
        let stream = TokioIo::new(fd_stream::FdStream::new(stream, fd));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(|why| self.away(&why))?;
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(http::header::HOST, "localhost")
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(LOCAL_HEADER, "1")
            .body(Full::new(body))
            .map_err(|why| Failure::usage(format!("{target} is no request target: {why}")))?;
        let call = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|why| self.away(&why))?;
            let status = answer.status();
            let timing = answer.headers().get("server-timing");
            let timing = timing.and_then(|value| value.to_str().ok().map(str::to_owned));
            let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            let body = body.map_err(|why| self.away(&why))?.to_bytes();
            if status.is_success() {
                return Ok(Answer { body, timing });
            }
            match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => Err(Failure::refused(&problem)),
                Err(_) => Err(Failure::unreachable(format!(
                    "{} at {} answered {status}",
                    self.what,
                    self.path.display()
                ))),
            }
        };
        tokio::pin!(call);
        tokio::select! {
            answer = &mut call => answer,
            // The connection ends after the answer, or because of an error: then the call says so.
            _ = connection => call.await,
        }
    }

    fn away(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::unreachable(format!(
            "{} at {}: {why}.\n{}",
            self.what,
            self.path.display(),
            self.hint
        ))
    }
}

/// What a person typed as one segment of a path (RFC 3986 §2.1): it cannot become another path.
pub fn segment(typed: &str) -> String {
    let mut out = String::with_capacity(typed.len());
    for byte in typed.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                out.push(char::from(byte))
            }
            // A dot, too: `..` must stay one segment.
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn encode(body: &impl Serialize) -> Result<Bytes, Failure> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|why| Failure::usage(format!("cannot be sent: {why}")))
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn what_was_typed_stays_one_segment() {
        assert_eq!(segment("t-7kq2"), "t-7kq2");
        assert_eq!(
            segment("../v1/status?x#y z"),
            "%2E%2E%2Fv1%2Fstatus%3Fx%23y%20z"
        );
        assert_eq!(segment("\u{e4}\r\n"), "%C3%A4%0D%0A");
    }
}
