//! A wire between broker and server that counts, by the second, what the broker asks: the messages that
//! let a statement run (PostgreSQL's protocol, section 55.7: `Query` and `Execute`). It reads their frames
//! and changes nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Moment;

/// See the module. Ends with the process.
pub struct Wire {
    port: u16,
    calls: Arc<Calls>,
}

struct Calls {
    begun: Moment,
    /// Guards the counts by second; held for one addition.
    seconds: Mutex<Vec<u32>>,
}

impl Calls {
    fn second(&self) -> usize {
        usize::try_from(self.begun.elapsed().as_secs()).unwrap_or(usize::MAX)
    }

    fn count(&self) {
        let now = self.second();
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        if seconds.len() <= now {
            seconds.resize(now + 1, 0);
        }
        if let Some(count) = seconds.get_mut(now) {
            *count += 1;
        }
    }
}

impl Wire {
    /// Listens on a port of its own and leads to this one.
    pub fn start(server: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let calls = Arc::new(Calls {
            begun: Moment::now(),
            seconds: Mutex::default(),
        });
        let counted = Arc::clone(&calls);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counted = Arc::clone(&counted);
                // A server that is away: the client sees a connection that ends.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)) {
                    std::thread::spawn(move || pass(client, server, &counted));
                }
            }
        });
        Ok(Self { port, calls })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The second that is counted now.
    pub fn second(&self) -> usize {
        self.calls.second()
    }

    /// Calls of each second from this one on.
    pub fn since(&self, second: usize) -> Vec<u32> {
        let seconds = self.calls.seconds.lock();
        let seconds = seconds.unwrap_or_else(PoisonError::into_inner);
        seconds.iter().skip(second).copied().collect()
    }
}

fn pass(client: TcpStream, server: TcpStream, calls: &Calls) {
    let (Ok(mut from_server), Ok(mut to_client)) = (server.try_clone(), client.try_clone()) else {
        return;
    };
    for side in [&client, &server] {
        drop(side.set_nodelay(true));
    }
    std::thread::spawn(move || {
        drop(std::io::copy(&mut from_server, &mut to_client));
        drop(to_client.shutdown(Shutdown::Both));
    });
    drop(forward(&client, &server, calls));
    drop(server.shutdown(Shutdown::Both));
}

fn forward(mut client: &TcpStream, mut server: &TcpStream, calls: &Calls) -> std::io::Result<()> {
    let mut frames = Frames::default();
    let mut part = [0; 16 * 1024];
    loop {
        let length = client.read(&mut part)?;
        let some = part.get(..length).unwrap_or_default();
        if some.is_empty() {
            return Ok(());
        }
        for _ in 0..frames.take(some) {
            calls.count();
        }
        server.write_all(some)?;
    }
}

/// Where in the stream of a client's messages a part begins. The first message has no type.
#[derive(Default)]
struct Frames {
    is_begun: bool,
    /// Of a head that is not whole yet.
    head: Vec<u8>,
    /// Of the body that are still to come.
    left: usize,
}

impl Frames {
    /// Takes the next part; how many statements it lets run.
    fn take(&mut self, part: &[u8]) -> u32 {
        let mut found = 0;
        for byte in part {
            if self.left > 0 {
                self.left -= 1;
                continue;
            }
            self.head.push(*byte);
            let (kind, length) = match (self.is_begun, self.head.as_slice()) {
                (false, [a, b, c, d]) => (0, [*a, *b, *c, *d]),
                (true, [kind, a, b, c, d]) => (*kind, [*a, *b, *c, *d]),
                _ => continue,
            };
            // The length counts itself.
            self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(0);
            self.left = self.left.saturating_sub(4);
            self.is_begun = true;
            self.head.clear();
            found += u32::from(matches!(kind, b'Q' | b'E'));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_counted_wherever_the_parts_end() {
        let mut sent = vec![0, 0, 0, 9, 0, 3, 0, 0, 0];
        for kind in *b"PBESQX" {
            sent.extend([kind, 0, 0, 0, 6, b'E', b'Q']);
        }
        for size in [1, 3, 7, 100] {
            let mut frames = Frames::default();
            let found: u32 = sent.chunks(size).map(|part| frames.take(part)).sum();
            assert_eq!(found, 2, "in parts of {size}");
        }
    }
}
