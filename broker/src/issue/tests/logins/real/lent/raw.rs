//! A client that can stop in the middle of its login, as no library does.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ephor_crypto::Secret;
use ephor_crypto::scram::Exchange;

/// A login whose password the server has looked up, and not been shown yet.
pub(super) struct Begun {
    stream: TcpStream,
    last: String,
}

/// A session.
pub(super) struct Inside(TcpStream);

const BARE: &str = "n=,r=a-nonce-of-a-test";

impl Begun {
    pub(super) fn new(port: u16, (user, password): (&str, &str)) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        let startup = format!("\0\x03\0\0user\0{user}\0database\0orders\0\0");
        send(&mut stream, None, startup.as_bytes());
        let (tag, body) = read(&mut stream);
        assert_eq!((tag, &body[..4]), (b'R', &[0, 0, 0, 10][..]), "{body:?}");
        let data = format!("n,,{BARE}");
        let mut first = b"SCRAM-SHA-256\0".to_vec();
        first.extend_from_slice(&i32::try_from(data.len()).unwrap().to_be_bytes());
        first.extend_from_slice(data.as_bytes());
        send(&mut stream, Some(b'p'), &first);
        let (tag, body) = read(&mut stream);
        assert_eq!((tag, &body[..4]), (b'R', &[0, 0, 0, 11][..]), "{body:?}");
        let asked = String::from_utf8(body[4..].to_vec()).unwrap();
        let part = |name: &str| {
            let mut parts = asked.split(',');
            parts.find_map(|part| part.strip_prefix(name)).unwrap()
        };
        let salt = STANDARD.decode(part("s=")).unwrap();
        let rounds = part("i=").parse().unwrap();
        let last = format!("c=biws,r={}", part("r="));
        let password = Secret::from_string(password.to_owned());
        let auth_message = format!("{BARE},{asked},{last}");
        let made = Exchange::new(&password, (&salt, rounds), &auth_message);
        let last = format!("{last},p={}", made.proof);
        Self { stream, last }
    }

    /// Goes on, and gives what the server says if that is no session.
    pub(super) fn finish(mut self) -> Result<Inside, String> {
        send(&mut self.stream, Some(b'p'), self.last.as_bytes());
        until_ready(&mut self.stream)?;
        Ok(Inside(self.stream))
    }
}

impl Inside {
    pub(super) fn run(&mut self, sql: &str) -> Result<(), String> {
        send(&mut self.0, Some(b'Q'), format!("{sql}\0").as_bytes());
        until_ready(&mut self.0)
    }
}

fn until_ready(stream: &mut TcpStream) -> Result<(), String> {
    loop {
        match read(stream) {
            (b'Z', _) => return Ok(()),
            (b'E', body) => return Err(String::from_utf8_lossy(&body).into_owned()),
            _ => {}
        }
    }
}

fn send(stream: &mut TcpStream, tag: Option<u8>, body: &[u8]) {
    let mut whole: Vec<u8> = tag.into_iter().collect();
    let length = i32::try_from(body.len() + 4).unwrap();
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(body);
    stream.write_all(&whole).unwrap();
}

fn read(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes(head[1..].try_into().unwrap());
    let mut body = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut body).unwrap();
    (head[0], body)
}
