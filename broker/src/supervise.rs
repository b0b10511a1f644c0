//! What a service manager does for us, by systemd's two small protocols: it opens our sockets
//! (sd_listen_fds(3)) and is told when we serve, when we stop and that we live (sd_notify(3)).
//!
//! Without a service manager all of it is absent and nothing else changes. A socket that was
//! passed and that nobody asked for is refused: it would accept callers who wait for ever.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Listening sockets that were open when we were started, by their names (`FileDescriptorName=`).
pub struct Inherited {
    descriptors: ListenFd,
    names: Vec<String>,
}

impl Inherited {
    /// Takes them, once, before the first thread: the variables are removed.
    #[must_use]
    pub fn take() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let descriptors = ListenFd::from_env();
        let mut names: Vec<String> = names.split(':').map(str::to_owned).collect();
        names.resize(descriptors.len(), String::new());
        Self { descriptors, names }
    }

    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self {
            descriptors: ListenFd::empty(),
            names: Vec::new(),
        }
    }

    /// The TCP listener of this name, ready for the runtime.
    ///
    /// # Errors
    /// When what has the name is no listening TCP socket.
    pub fn tcp(&mut self, name: &str) -> io::Result<Option<TcpListener>> {
        let Some(place) = self.place(name) else {
            return Ok(None);
        };
        let listener = self.descriptors.take_tcp_listener(place)?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(listener)
    }

    /// The Unix listener of this name, ready for the runtime.
    ///
    /// # Errors
    /// When what has the name is no listening Unix socket.
    pub fn unix(&mut self, name: &str) -> io::Result<Option<UnixListener>> {
        let Some(place) = self.place(name) else {
            return Ok(None);
        };
        let listener = self.descriptors.take_unix_listener(place)?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(listener)
    }

    /// The name of a socket that nobody took.
    #[must_use]
    pub fn left_over(&self) -> Option<&str> {
        self.names
            .iter()
            .find(|name| !name.starts_with(TAKEN))
            .map(String::as_str)
    }

    fn place(&mut self, name: &str) -> Option<usize> {
        let place = self.names.iter().position(|named| named == name)?;
        if let Some(named) = self.names.get_mut(place) {
            named.insert(0, TAKEN);
        }
        Some(place)
    }
}

/// Stands before the name of a socket that was taken; no service manager gives such a name.
const TAKEN: char = '\0';

/// Everything is served from now on.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Nothing new is taken from now on.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often the service manager wants a sign of life, if it does: half of its patience.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

/// Gives signs of life for as long as it is polled, which is for as long as the runtime turns.
pub async fn keep_alive(every: Duration) {
    let mut beat = tokio::time::interval(every);
    loop {
        beat.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this does nothing.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn without_a_service_manager_there_is_nothing() {
        let mut none = Inherited::none();
        assert!(none.tcp("metrics").unwrap().is_none());
        assert!(none.unix("socket").unwrap().is_none());
        assert!(none.left_over().is_none());
    }

    #[test]
    fn a_name_is_found_once_and_what_is_left_is_named() {
        let mut some = Inherited {
            descriptors: ListenFd::empty(),
            names: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(some.place("b"), Some(1));
        assert_eq!(some.place("b"), None);
        assert_eq!(some.left_over(), Some("a"));
    }
}
