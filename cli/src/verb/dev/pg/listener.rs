//! Whether what listens on loopback is the server behind a Unix socket. Its directory belongs to the
//! server; a port on loopback belongs to whoever takes it first, and he could ask for a password.

use std::path::Path;

use tokio::net::UnixStream;

/// State of a socket that listens (`TCP_LISTEN`).
const LISTENS: &str = "0A";

/// Whether everything that could answer at `127.0.0.1:port` belongs to the user who listens at `socket`.
///
/// # Errors
/// Why it cannot be told, or who it is instead.
pub async fn is_of(socket: &Path, port: u16) -> Result<(), String> {
    let shown = socket.display();
    let connected = UnixStream::connect(socket).await;
    let server = connected.and_then(|stream| stream.peer_cred());
    let server = server.map_err(|why| format!("{shown}: {why}"))?.uid();
    let mut listeners = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // Without IPv6 there is no second one, nor anybody in it.
        let text = std::fs::read_to_string(table).unwrap_or_default();
        listeners.extend(owners(&text, port));
    }
    match listeners.iter().find(|uid| **uid != server) {
        None if listeners.is_empty() => Err(format!("127.0.0.1:{port}: nobody listens there")),
        None => Ok(()),
        Some(uid) => Err(format!(
            "127.0.0.1:{port}: who listens there has uid {uid}, the server at {shown} has {server}; nothing was sent"
        )),
    }
}

/// Who listens where a connection to loopback may arrive (proc(5), `/proc/net/tcp`).
fn owners(table: &str, port: u16) -> Vec<u32> {
    let loopback = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
    let mapped = format!(
        "{:016X}{:08X}{loopback}",
        0,
        u32::from_ne_bytes([0, 0, 0xff, 0xff])
    );
    let any = ["0".repeat(8), "0".repeat(32), loopback, mapped];
    let owner = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (address, number) = fields.next()?.split_once(':')?;
        let mut fields = fields.skip(1);
        let here = fields.next()? == LISTENS
            && u16::from_str_radix(number, 16) == Ok(port)
            && any.iter().any(|known| known == address);
        // Queues, timer and retransmissions stand between.
        let uid = fields.nth(3)?.parse().ok()?;
        here.then_some(uid)
    };
    table.lines().filter_map(owner).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[tokio::test]
    async fn listeners_are_found_by_address_and_told_by_owner() {
        let own = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"] {
            let address: std::net::IpAddr = address.parse().unwrap();
            let Ok(listener) = TcpListener::bind((address, 0)) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let table = match address.is_ipv4() {
                true => "/proc/net/tcp",
                false => "/proc/net/tcp6",
            };
            let text = std::fs::read_to_string(table).unwrap();
            assert_eq!(owners(&text, port), [own], "{address}");
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _server = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // Its port is nobody else's, before it listens too.
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let port = bound.local_addr().unwrap().port();
        let why = is_of(&socket, port).await.unwrap_err();
        assert!(why.contains("nobody listens"), "{why}");
        let _listener = bound.listen(1).unwrap();
        is_of(&socket, port).await.unwrap();
        let other = "   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000  4711        0 1 1 0";
        assert_eq!(owners(other, 5432), [4711]);
        assert!(owners(other, 5433).is_empty());
        assert!(owners(&other.replace(" 0A ", " 01 "), 5432).is_empty());
        assert!(owners(&other.replace("0100007F", "0200007F"), 5432).is_empty());
    }
}
