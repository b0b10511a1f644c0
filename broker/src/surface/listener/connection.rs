//! One connection, from its first byte to its end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Connection, Server};
use crate::limits;
use crate::tasks::Tasks;

/// Runs out when the first request has not arrived in time, counted from accept.
pub(super) fn first_request() -> Pin<Box<Sleep>> {
    Box::pin(sleep(limits::FIRST_REQUEST))
}

impl Server {
    /// Serves one connection. `_place` is given back when it ends.
    pub(super) async fn serve<I>(
        self: Arc<Self>,
        io: I,
        from: Connection,
        cut: CancellationToken,
        mut first_request: Pin<Box<Sleep>>,
        _place: OwnedSemaphorePermit,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let asked = Arc::new(AtomicBool::new(false));
        let mut age = Box::pin(sleep(age_limit(&from)));
        let service = hyper::service::service_fn({
            let (asked, server) = (Arc::clone(&asked), Arc::clone(&self));
            move |request| {
                asked.store(true, Ordering::Relaxed);
                Arc::clone(&server).answer(request, from.clone())
            }
        });
        let builder = self.builder();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        let (mut waiting, mut draining) = (true, false);
        let mut drain = Box::pin(sleep(limits::DRAIN));
        loop {
            tokio::select! {
                biased;
                () = cut.cancelled() => return,
                () = self.stop.cancelled(), if !draining => draining = true,
                () = &mut age, if !draining => draining = true,
                () = &mut drain, if draining => return,
                () = &mut first_request, if waiting => {
                    if !asked.load(Ordering::Relaxed) {
                        return;
                    }
                    waiting = false;
                    continue;
                }
                outcome = connection.as_mut() => {
                    if let Err(error) = outcome {
                        tracing::debug!(listener = self.name, %error, "connection ended");
                    }
                    return;
                }
            }
            // Only stop and age come here, once: let open requests finish, within a deadline.
            drain = Box::pin(sleep(limits::DRAIN));
            connection.as_mut().graceful_shutdown();
        }
    }

    fn builder(&self) -> auto::Builder<Streams> {
        let mut builder = auto::Builder::new(Streams(self.tasks.clone()));
        if self.http1_only {
            builder = builder.http1_only();
        }
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HEADER_READ)
            .max_buf_size(ephor_proto::limits::MAX_HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits::HTTP2_STREAMS)
            .max_pending_accept_reset_streams(limits::HTTP2_PENDING_RESETS)
            .max_local_error_reset_streams(limits::HTTP2_LOCAL_RESETS)
            .max_header_list_size(
                u32::try_from(ephor_proto::limits::MAX_HEADER_BYTES).unwrap_or(u32::MAX),
            )
            .keep_alive_interval(limits::HTTP2_PING_INTERVAL)
            .keep_alive_timeout(limits::HTTP2_PING_TIMEOUT);
        builder
    }

    /// One request, with its deadline.
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        from: Connection,
    ) -> Result<Response<Body>, Infallible> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(from);
        match timeout(limits::REQUEST, self.router.clone().oneshot(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = StatusCode::REQUEST_TIMEOUT;
                Ok(answer)
            }
        }
    }
}

/// Agents stay; everyone else connects again after a while, so that nobody keeps a place
/// for ever by reading slowly.
fn age_limit(from: &Connection) -> std::time::Duration {
    match from {
        Connection::Https { agent: Some(_), .. } => limits::AGENT_CONNECTION_AGE,
        Connection::Https { agent: None, .. }
        | Connection::Http { .. }
        | Connection::Admin { .. } => limits::CONNECTION_AGE,
    }
}

/// Spawns HTTP/2 streams into the broker's task group.
#[derive(Clone)]
struct Streams(Tasks);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        self.0.spawn("stream", async move {
            stream.await;
        });
    }
}
