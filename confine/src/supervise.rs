//! What a service manager does for us, by systemd's two small protocols: it opens our sockets
//! (sd_listen_fds(3)) and is told when we serve, when we stop and that we live (sd_notify(3)).
//!
//! Without a service manager all of it is absent and nothing else changes. A socket that was
//! passed and that nobody asked for is refused: it would accept callers who wait for ever.

use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::time::Duration;

use listenfd::ListenFd;

/// How long the service manager may take to hear that we serve.
const NOTIFY_WITHIN: Duration = Duration::from_secs(5);

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

/// Everything is served from now on. Waits until the manager takes it, for a while.
pub fn ready(status: &str) {
    tell(&format!("READY=1\nSTATUS={status}"), Some(NOTIFY_WITHIN));
}

/// Nothing new is taken from now on.
pub fn stopping() {
    tell("STOPPING=1", None);
}

/// How often the service manager wants a sign of life, if it does: half of its patience.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    let read = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = std::env::var_os("WATCHDOG_PID").is_none()
        || read("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    let patience = read("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 1)?;
    Some(Duration::from_micros(patience / 2))
}

/// Gives signs of life for as long as it is polled, which is for as long as the runtime turns.
pub async fn keep_alive(every: Duration) {
    let mut beat = tokio::time::interval(every);
    loop {
        beat.tick().await;
        tell("WATCHDOG=1", None);
    }
}

/// One message to the manager, if there is one. Without patience it is dropped when the manager does
/// not read: nothing here may ever wait for it.
fn tell(message: &str, patience: Option<Duration>) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let send = || {
        let address = match address.as_encoded_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&address)?,
        };
        let socket = UnixDatagram::unbound()?;
        match patience {
            Some(patience) => socket.set_write_timeout(Some(patience))?,
            None => socket.set_nonblocking(true)?,
        }
        socket.send_to_addr(message.as_bytes(), &address)
    };
    if let Err(error) = send() {
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
