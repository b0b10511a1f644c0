//! The connections that stand, by the credential of their peer, so that the end of a credential
//! ends them. Whoever adds one looks at the lists afterwards: a list that came in between has
//! either closed it or is seen then.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ephor_crypto::x509::{Leaf, Serial};
use rustix::net::{Shutdown, shutdown};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

/// Length of a serial that Ephor made: the credential's id and the number of the certificate.
const OWN_SERIAL: usize = 18;
/// The credential's id in it.
const CREDENTIAL: usize = 16;

/// Why this side closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The peer's certificate, or another one of the same credential, was listed.
    Revoked,
    /// The peer's certificate has expired.
    Expired,
    /// The CA of the peer's certificate is no longer trusted.
    Distrusted,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revoked => "the peer's certificate was revoked",
            Self::Expired => "the peer's certificate has expired",
            Self::Distrusted => "the CA of the peer's certificate is no longer trusted",
        })
    }
}

impl std::error::Error for Closed {}

/// A socket that can be ended from outside.
#[derive(Debug)]
pub struct Line {
    pub stream: TcpStream,
    closed: OnceLock<Closed>,
}

impl Line {
    pub fn new(stream: TcpStream) -> Arc<Self> {
        Arc::new(Self {
            stream,
            closed: OnceLock::new(),
        })
    }

    /// Ends both directions, whether or not somebody reads; the first reason stays.
    pub fn close(&self, why: Closed) {
        if self.closed.set(why).is_ok() {
            // It fails only when the peer has gone already.
            let _ = shutdown(&self.stream, Shutdown::Both);
        }
    }

    pub fn closed(&self) -> Option<Closed> {
        self.closed.get().copied()
    }
}

/// What all certificates of a credential have in common; a serial that is not ours stands for
/// itself.
fn credential_of(serial: &Serial) -> &[u8] {
    let bytes = serial.as_bytes();
    match bytes.split_at_checked(CREDENTIAL) {
        Some((credential, _)) if bytes.len() == OWN_SERIAL => credential,
        Some(_) | None => bytes,
    }
}

/// All connections of an identity.
#[derive(Debug, Default)]
pub struct Live {
    /// Held for a change or a walk, never across an await.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    all: HashMap<u64, Entry>,
    of_credential: HashMap<Box<[u8]>, Vec<u64>>,
    by_end: BTreeSet<(i64, u64)>,
}

#[derive(Debug)]
struct Entry {
    line: Arc<Line>,
    credential: Box<[u8]>,
    not_after: i64,
    chain: Arc<[CertificateDer<'static>]>,
}

/// A connection's place; it is given up when dropped.
#[derive(Debug)]
pub struct Place {
    live: Arc<Live>,
    number: u64,
}

impl Live {
    /// Adds a connection whose peer showed `chain`, with `leaf` in front.
    pub fn add(
        self: &Arc<Self>,
        line: &Arc<Line>,
        leaf: &Leaf,
        chain: Arc<[CertificateDer<'static>]>,
    ) -> Place {
        let mut inner = self.inner();
        let number = inner.next;
        inner.next += 1;
        let credential: Box<[u8]> = credential_of(&leaf.serial).into();
        let of_same = inner.of_credential.entry(credential.clone()).or_default();
        of_same.push(number);
        inner.by_end.insert((leaf.not_after, number));
        let entry = Entry {
            line: Arc::clone(line),
            credential,
            not_after: leaf.not_after,
            chain,
        };
        inner.all.insert(number, entry);
        Place {
            live: Arc::clone(self),
            number,
        }
    }

    /// Closes the connections of every credential of which a certificate is in `listed`.
    pub fn close_listed<'a>(&self, listed: impl Iterator<Item = &'a Serial>) {
        let inner = self.inner();
        if inner.all.is_empty() {
            return;
        }
        for serial in listed {
            let numbers = inner.of_credential.get(credential_of(serial));
            for entry in numbers
                .into_iter()
                .flatten()
                .filter_map(|n| inner.all.get(n))
            {
                entry.line.close(Closed::Revoked);
            }
        }
    }

    /// Closes the connections whose peer's certificate ended before `now`.
    pub fn close_expired(&self, now: i64) {
        let inner = self.inner();
        let expired = inner.by_end.iter().take_while(|(end, _)| *end < now);
        for entry in expired.filter_map(|(_, number)| inner.all.get(number)) {
            entry.line.close(Closed::Expired);
        }
    }

    /// Closes the connections whose peer's chain is not `trusted`.
    pub fn close_distrusted(&self, trusted: impl Fn(&[CertificateDer<'static>]) -> bool) {
        let all: Vec<_> = {
            let inner = self.inner();
            let pairs = inner.all.values();
            let pair = |entry: &Entry| (Arc::clone(&entry.line), Arc::clone(&entry.chain));
            pairs.map(pair).collect()
        };
        for (line, chain) in all {
            if !trusted(&chain) {
                line.close(Closed::Distrusted);
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.inner().all.len()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.live.inner();
        let Some(entry) = inner.all.remove(&self.number) else {
            return;
        };
        inner.by_end.remove(&(entry.not_after, self.number));
        if let Some(of_same) = inner.of_credential.get_mut(&entry.credential) {
            of_same.retain(|number| *number != self.number);
            if of_same.is_empty() {
                inner.of_credential.remove(&entry.credential);
            }
        }
    }
}
