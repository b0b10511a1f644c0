//! The running agent's side.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use tokio::net::UnixListener;

use super::frame::{FrameError, Message, receive, send};
use super::{
    Ask, Connection, HandoverError, Offer, Ready, Revoked, VERSION, Yours, check, held, path,
};
use crate::app::Agent;
use crate::crash_point;
use crate::journal::JournalError;
use crate::limits;
use crate::surface::pause::{Parked, Pause};

/// How it came out, for the one who stops the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// A successor has everything.
    Taken,
    /// A successor was ready and died then; whoever starts this agent starts one from the journal.
    Lost,
}

/// What the running agent can give.
pub struct Giver {
    /// The agent.
    pub agent: Arc<Agent>,
    /// Stops its serving.
    pub pause: Pause,
    /// The socket of the callers.
    pub callers: OwnedFd,
    /// That of the metrics.
    pub metrics: Option<OwnedFd>,
    /// The socket was made by an agent, which removes its file in the end.
    pub own_socket: bool,
    /// Where the state is.
    pub state_dir: PathBuf,
    /// Set when it was given away.
    pub given: Arc<OnceLock<Given>>,
}

impl Giver {
    /// Waits for successors until one took over or the agent stops.
    pub async fn run(self) {
        let stop = self.agent.tasks.stop().clone();
        let listener = match self.listen() {
            Ok(listener) => listener,
            Err(error) => {
                return tracing::warn!(%error, "no hand-over to a successor; a plain restart works");
            }
        };
        let this = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a successor failed");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match Arc::clone(&this).give(Arc::new(stream)).await {
                Ok(given) => {
                    let _ = this.given.set(given);
                    return stop.cancel();
                }
                Err(error) => {
                    this.pause.end();
                    tracing::warn!(%error, "not handed over; this agent goes on");
                }
            }
        }
    }

    /// Only who holds the lock of the state directory comes here, so what is there is left over.
    fn listen(&self) -> Result<UnixListener, HandoverError> {
        let path = path(&self.state_dir);
        let _ = std::fs::remove_file(&path);
        let io = |error| HandoverError::Io("listening in the state directory", error);
        let listener = UnixListener::bind(&path).map_err(io)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(listener)
    }

    /// Everything up to the point of no return may fail, and then nothing has happened.
    async fn give(self: Arc<Self>, stream: Arc<UnixStream>) -> Result<Given, HandoverError> {
        let (this, asked) = (Arc::clone(&self), Arc::clone(&stream));
        self.blocking("handover.ask", move || this.asked(&asked))
            .await?;
        tracing::info!("a successor asks to take over");
        self.pause.begin(limits::HANDOVER_PAUSE).await;
        let (this, offered) = (Arc::clone(&self), Arc::clone(&stream));
        let offer = self.blocking("handover.offer", move || this.offer(&offered));
        // Nobody is served meanwhile.
        match tokio::time::timeout(limits::HANDOVER_OFFER, offer).await {
            Ok(offered) => offered?,
            Err(_elapsed) => {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return Err(HandoverError::Slow);
            }
        }
        match self.agent.journal.close().await {
            Err(JournalError::Busy) => return Err(HandoverError::Journal),
            // A broken one is read by the successor as after a crash.
            Ok(()) | Err(JournalError::Refused | JournalError::Broken) => {}
        }
        crash_point!("handover.journal_closed");
        let this = Arc::clone(&self);
        let given = self
            .blocking("handover.give", move || this.give_away(&stream))
            .await;
        match given {
            Ok(connections) => {
                tracing::info!(connections, "a successor has taken over; this agent ends");
                Ok(Given::Taken)
            }
            Err(error) => {
                tracing::error!(%error, "the successor died when it was to begin; this agent cannot go on");
                Ok(Given::Lost)
            }
        }
    }

    fn asked(&self, stream: &UnixStream) -> Result<(), HandoverError> {
        check::may_take_over(stream, self.agent.mode, &self.agent.hashes)?;
        patient(stream)?;
        let ask: Ask = receive(stream)?.head()?;
        if ask.handover != VERSION {
            return Err(HandoverError::Version(ask.handover));
        }
        Ok(())
    }

    fn offer(&self, stream: &UnixStream) -> Result<(), HandoverError> {
        let all = self.agent.hold.all(self.agent.clock.boottime());
        let offer = Offer {
            handover: VERSION,
            own_socket: self.own_socket,
            has_metrics: self.metrics.is_some(),
            held: all.len(),
        };
        let mut descriptors = vec![self.agent.state_lock().as_fd(), self.callers.as_fd()];
        descriptors.extend(self.metrics.as_ref().map(AsFd::as_fd));
        send(stream, &offer, &[], &descriptors)?;
        for (task, key, answer) in &all {
            let (head, secrets) = held::tell(*task, key, answer);
            send(stream, &head, &secrets, &[])?;
        }
        drop(all);
        crash_point!("handover.offered");
        let Ready {} = receive(stream).and_then(|message: Message| message.head())?;
        Ok(())
    }

    /// Fails only before the successor was told to begin.
    fn give_away(&self, stream: &UnixStream) -> Result<usize, FrameError> {
        let parked = self.pause.take();
        let tasks = self.agent.table.open_tasks().into_iter();
        let revoked: Vec<Revoked> = tasks
            .map(|task| Revoked {
                task,
                credentials: self.agent.revoked(task),
            })
            .filter(|of| !of.credentials.is_empty())
            .collect();
        let yours = Yours {
            epochs: self.agent.epochs.load(Ordering::Relaxed),
            revoked: revoked.len(),
            connections: parked.len(),
        };
        send(stream, &yours, &[], &[])?;
        crash_point!("handover.given");
        if let Err(error) = rest(stream, &revoked, &parked) {
            // It begins all the same: whoever was connected connects again, and the broker tells
            // it what is revoked.
            tracing::warn!(%error, "not everything was handed over");
        }
        Ok(parked.len())
    }

    async fn blocking<T: Send + 'static, E: Into<HandoverError> + Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, HandoverError> {
        match self.agent.tasks.blocking(name, work).await {
            Ok(done) => done.map_err(Into::into),
            Err(error) => Err(HandoverError::Io(
                "working beside the runtime",
                std::io::Error::other(error),
            )),
        }
    }
}

fn rest(stream: &UnixStream, revoked: &[Revoked], parked: &[Parked]) -> Result<(), FrameError> {
    for of in revoked {
        send(stream, of, &[], &[])?;
    }
    for Parked { stream: one, ahead } in parked {
        send(stream, &Connection {}, &[ahead], &[one.as_fd()])?;
    }
    Ok(())
}

/// Blocking, but never for ever.
pub(super) fn patient(stream: &UnixStream) -> Result<(), HandoverError> {
    let patience = Some(limits::HANDOVER_SILENCE);
    stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(patience))
        .and_then(|()| stream.set_write_timeout(patience))
        .map_err(|error| HandoverError::Io("preparing the hand-over's socket", error))
}
