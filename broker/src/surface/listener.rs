//! Accepting connections: the broker's own loop, so that every wait has a deadline and
//! every count a limit. Speaks HTTP and knows nothing of what is asked.
//!
//! A connection can end in five ways: its client's, a deadline, its age, the cut of a
//! ban, and shutdown. No malformed byte may end more than its own connection.

mod connection;
mod unix;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::surface::tls::{AgentCertificate, Tls};
use crate::tasks::Tasks;

pub use unix::{BindError, bind_unix};

/// Who is on the other end, as far as the connection itself says. Stands in the
/// extensions of every request.
#[derive(Debug, Clone)]
pub enum Connection {
    /// HTTPS, with the agent's certificate if one was shown.
    Https {
        /// Where it comes from.
        remote: SocketAddr,
        /// What its handshake showed.
        agent: Option<Arc<AgentCertificate>>,
    },
    /// Plain HTTP.
    Http {
        /// Where it comes from.
        remote: SocketAddr,
    },
    /// The admin socket.
    Admin {
        /// User id of the process that connected, by the kernel's word.
        uid: u32,
        /// Its process id.
        pid: Option<i32>,
    },
}

/// Gives the token that cuts an agent's connections when its host is banned.
pub trait Cuts: Send + Sync {
    /// The token of this agent; an already cancelled one refuses the connection.
    fn cut_token(&self, agent: &AgentCertificate) -> CancellationToken;
}

/// One listener's connections.
pub struct Server {
    name: &'static str,
    router: Router,
    tasks: Tasks,
    /// Cancelled to stop accepting and let connections finish.
    stop: CancellationToken,
    /// Places for connections that are not (yet) an agent's.
    places: Arc<Semaphore>,
    /// Places for agents, so that strangers cannot keep them out.
    agent_places: Arc<Semaphore>,
    refused: AtomicU64,
    http1_only: bool,
}

impl Server {
    /// A listener named `name` for logs, with room for `connections`, that hands requests
    /// to `router` until `stop`.
    #[must_use]
    pub fn new(
        name: &'static str,
        router: Router,
        connections: usize,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Self {
        Self {
            name,
            router,
            tasks,
            stop,
            places: Arc::new(Semaphore::new(connections)),
            agent_places: Arc::new(Semaphore::new(connections)),
            refused: AtomicU64::new(0),
            http1_only: true,
        }
    }

    /// Connections closed at accept because there was no place.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Serves HTTPS until stopped.
    pub async fn serve_https(mut self, listener: TcpListener, tls: Tls, cuts: Arc<dyn Cuts>) {
        self.http1_only = false;
        let server = Arc::new(self);
        let next = || async { listener.accept().await };
        server
            .accept_loop(next, |server, (stream, remote), place| {
                let (tls, cuts) = (tls.clone(), Arc::clone(&cuts));
                async move {
                    server
                        .https(stream, remote, &tls, cuts.as_ref(), place)
                        .await
                }
            })
            .await;
    }

    /// Serves plain HTTP until stopped.
    pub async fn serve_http(self, listener: TcpListener) {
        let next = || async { listener.accept().await };
        Arc::new(self)
            .accept_loop(next, |server, (stream, remote), place| async move {
                let from = Connection::Http { remote };
                let cut = CancellationToken::new();
                server
                    .serve(stream, from, cut, connection::first_request(), place)
                    .await;
            })
            .await;
    }

    /// Serves the admin socket until stopped. Who may ask is decided by the router.
    pub async fn serve_unix(self, listener: UnixListener) {
        let next = || async { listener.accept().await };
        Arc::new(self)
            .accept_loop(next, |server, (stream, _), place| async move {
                server.unix(stream, place).await;
            })
            .await;
    }

    async fn accept_loop<S, N, A, H, F>(self: Arc<Self>, next: N, handle: H)
    where
        N: Fn() -> A,
        A: Future<Output = std::io::Result<S>>,
        H: Fn(Arc<Self>, S, OwnedSemaphorePermit) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = next() => accepted,
            };
            match accepted {
                Ok(stream) => match Arc::clone(&self.places).try_acquire_owned() {
                    Ok(place) => {
                        let work = handle(Arc::clone(&self), stream, place);
                        self.tasks.spawn("connection", work);
                    }
                    // Dropped: the client sees a closed connection and may try again.
                    Err(_) => self.count_refused(),
                },
                Err(error) => {
                    tracing::warn!(listener = self.name, %error, "accept failed");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn count_refused(&self) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        // One line for the first and for each further power of two: never a line each.
        if refused.is_power_of_two() {
            tracing::warn!(
                listener = self.name,
                refused,
                "connections refused: no place left"
            );
        }
    }

    async fn https(
        self: Arc<Self>,
        stream: TcpStream,
        remote: SocketAddr,
        tls: &Tls,
        cuts: &dyn Cuts,
        place: OwnedSemaphorePermit,
    ) {
        let mut deadline = connection::first_request();
        // Small frames both ways; waiting to fill a segment only adds latency.
        let _ = stream.set_nodelay(true);
        let accepted = tokio::select! {
            () = self.stop.cancelled() => return,
            () = &mut deadline => {
                tracing::debug!(%remote, "connection closed: no TLS handshake in time");
                return;
            }
            accepted = tls.accept(stream) => accepted,
        };
        let (stream, agent) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%remote, %error, "TLS handshake failed");
                return;
            }
        };
        let Some((cut, place)) = self.admit(agent.as_deref(), cuts, place) else {
            return;
        };
        let from = Connection::Https { remote, agent };
        self.serve(stream, from, cut, deadline, place).await;
    }

    /// Registers an agent's connection for the cut *before* any request of it is looked
    /// at, so that a ban in between finds it; gives it one of the agents' places.
    fn admit(
        &self,
        agent: Option<&AgentCertificate>,
        cuts: &dyn Cuts,
        place: OwnedSemaphorePermit,
    ) -> Option<(CancellationToken, OwnedSemaphorePermit)> {
        let Some(agent) = agent else {
            return Some((CancellationToken::new(), place));
        };
        match Arc::clone(&self.agent_places).try_acquire_owned() {
            Ok(place) => Some((cuts.cut_token(agent), place)),
            Err(_) => {
                self.count_refused();
                None
            }
        }
    }

    async fn unix(self: Arc<Self>, stream: UnixStream, place: OwnedSemaphorePermit) {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "admin connection closed: the kernel does not say whose it is");
                return;
            }
        };
        let from = Connection::Admin {
            uid: peer.uid(),
            pid: peer.pid(),
        };
        let cut = CancellationToken::new();
        self.serve(stream, from, cut, connection::first_request(), place)
            .await;
    }
}

#[cfg(test)]
mod tests;
