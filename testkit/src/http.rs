//! A small blocking HTTP/1.1 client: one connection a call, over a Unix socket or TLS.
//!
//! It shares no code with the servers under test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// An answer: status and JSON body (`Null` when the body is no JSON).
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: Value,
    /// The body as bytes.
    pub bytes: Vec<u8>,
    /// Status line and header lines, in lower case.
    pub head: String,
}

impl Answer {
    /// The value of a header named in lower case, itself in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(found, value)| (found == name).then_some(value))
    }
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Header lines beside `Host`, `Connection` and `Content-Length`.
    pub headers: &'a [(&'a str, &'a str)],
    /// Body.
    pub body: &'a [u8],
}

/// Over a Unix socket.
///
/// # Errors
/// When nobody answers, or not in HTTP.
pub fn unix(socket: &Path, call: &Call<'_>) -> anyhow::Result<Answer> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    exchange(stream, "localhost", call)
}

/// Over TCP.
///
/// # Errors
/// When nobody answers, or not in HTTP.
pub fn plain(address: SocketAddr, call: &Call<'_>) -> anyhow::Result<Answer> {
    let tcp = TcpStream::connect_timeout(&address, TIMEOUT)?;
    tcp.set_read_timeout(Some(TIMEOUT))?;
    exchange(tcp, &address.to_string(), call)
}

/// Over TLS 1.3; the server's certificate must be of the CA in `ca_file`.
///
/// # Errors
/// When nobody answers, or not in HTTP.
pub fn tls(address: SocketAddr, ca_file: &Path, call: &Call<'_>) -> anyhow::Result<Answer> {
    let tcp = TcpStream::connect_timeout(&address, TIMEOUT)?;
    tcp.set_read_timeout(Some(TIMEOUT))?;
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let client = rustls::ClientConnection::new(config(ca_file)?, name)?;
    exchange(
        rustls::StreamOwned::new(client, tcp),
        &address.to_string(),
        call,
    )
}

fn config(ca_file: &Path) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    // Two, while one CA follows another.
    for certificate in
        CertificateDer::pem_file_iter(ca_file).map_err(|why| anyhow::anyhow!("{why}"))?
    {
        roots.add(certificate.map_err(|why| anyhow::anyhow!("{why}"))?)?;
    }
    let config = rustls::ClientConfig::builder_with_provider(ephor_crypto::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn exchange(mut stream: impl Read + Write, host: &str, call: &Call<'_>) -> anyhow::Result<Answer> {
    let mut head = format!(
        "{} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n",
        call.method,
        call.target,
        call.body.len()
    );
    for (name, value) in call.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(call.body)?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A server may close without a TLS close_notify; the length below tells if all came.
        Err(why) if why.kind() == std::io::ErrorKind::UnexpectedEof => {}
        done => drop(done?),
    }
    parse(&answer)
}

fn parse(answer: &[u8]) -> anyhow::Result<Answer> {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("no end of headers")?;
    let (head, rest) = answer.split_at(end);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let mut bytes = rest.get(4..).unwrap_or_default().to_vec();
    if head.contains("transfer-encoding: chunked") {
        bytes = unchunk(&bytes)?;
    }
    let declared = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|n| n.parse().ok());
    anyhow::ensure!(
        declared.is_none_or(|n: usize| n == bytes.len()),
        "the answer was cut"
    );
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no status")?;
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Ok(Answer {
        status,
        body,
        bytes,
        head,
    })
}

fn unchunk(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = rest
            .windows(2)
            .position(|two| two == b"\r\n")
            .context("chunk")?;
        let (size, after) = rest.split_at(line);
        let size = usize::from_str_radix(std::str::from_utf8(size)?.trim(), 16)?;
        let after = after.get(2..).context("chunk")?;
        if size == 0 {
            return Ok(whole);
        }
        whole.extend_from_slice(after.get(..size).context("chunk")?);
        rest = after.get(size + 2..).context("chunk")?;
    }
}
