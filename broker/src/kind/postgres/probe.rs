//! Which password a server asks a role for: a login that is begun and never finished.
//!
//! A server that checks passwords by SCRAM (RFC 5802) tells the salt of the one in force to whoever
//! begins to log in. So it can be seen that it is another password by now, without anybody having to keep the one
//! that should be dead.

use ephor_crypto::random;
use ephor_proto::postgres::Address;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::tls::TlsConnect as _;

use super::access::Tls;
use super::tls::Encrypt;
use crate::limits;

/// Version 3.0 of the protocol, and the number that asks for TLS first.
const PROTOCOL: i32 = 196_608;
const TLS_REQUEST: i32 = 80_877_103;
const MECHANISM: &str = "SCRAM-SHA-256";
/// Longest message that is read here; a server that asks for a password says little.
const MESSAGE: usize = 16 * 1024;

/// What a server wants of somebody who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AsksFor {
    /// The password with this salt, in base64.
    Password {
        /// Of the verifier in force; random where there is none.
        salt: String,
    },
    /// Nothing: it lets the role in.
    Nothing,
    /// It cannot be seen, and why.
    Unknown(String),
}

/// Begins a login of `user` into `database`.
pub(super) async fn asks_for(login: (&str, &str), host: &Address, tls: &Tls) -> AsksFor {
    match timeout(limits::PG_CONNECT, begin(login, host, tls)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(why)) => AsksFor::Unknown(why.to_string()),
        Err(_) => AsksFor::Unknown("no answer".to_owned()),
    }
}

async fn begin(login: (&str, &str), host: &Address, tls: &Tls) -> std::io::Result<AsksFor> {
    match (host, tls) {
        (Address::Socket { dir, port }, _) => {
            let path = std::path::Path::new(dir).join(format!(".s.PGSQL.{port}"));
            ask(UnixStream::connect(path).await?, login).await
        }
        (Address::Tcp { host, port }, Tls::Off) => {
            ask(TcpStream::connect((host.as_str(), *port)).await?, login).await
        }
        (Address::Tcp { host, port }, Tls::VerifyFull { ca_file }) => {
            let encrypt = Encrypt::verify_full(ca_file).await;
            let mut encrypt = encrypt.map_err(std::io::Error::other)?;
            let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.write_all(&8_i32.to_be_bytes()).await?;
            stream.write_all(&TLS_REQUEST.to_be_bytes()).await?;
            if stream.read_u8().await? != b'S' {
                return Ok(AsksFor::Unknown("it takes no TLS".to_owned()));
            }
            let connect =
                <Encrypt as tokio_postgres::tls::MakeTlsConnect<TcpStream>>::make_tls_connect(
                    &mut encrypt,
                    host,
                )?;
            ask(connect.connect(stream).await?, login).await
        }
    }
}

async fn ask<S>(mut stream: S, (user, database): (&str, &str)) -> std::io::Result<AsksFor>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut startup = PROTOCOL.to_be_bytes().to_vec();
    for (name, value) in [
        ("user", user),
        ("database", database),
        ("application_name", "ephor-broker"),
    ] {
        for text in [name, value] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
    }
    startup.push(0);
    stream.write_all(&framed(None, &startup)).await?;
    loop {
        let (tag, body) = message(&mut stream).await?;
        let (kind, rest) = body.split_at_checked(4).unwrap_or((&[], &body));
        match (tag, kind) {
            (b'R', [0, 0, 0, 0]) => return Ok(AsksFor::Nothing),
            (b'R', [0, 0, 0, 10]) => {
                stream.write_all(&first()?).await?;
            }
            (b'R', [0, 0, 0, 11]) => return Ok(salt(rest)),
            (b'R', _) => {
                let why = "it asks for a password in a way that shows nothing of it";
                return Ok(AsksFor::Unknown(why.to_owned()));
            }
            (b'E', _) => return Ok(AsksFor::Unknown(said(&body))),
            // A notice, or a version that it does not speak whole.
            _ => {}
        }
    }
}

/// The first message of a client: a name that the server takes from the start of the session, and a
/// random number. No channel is bound, because nothing is proven to the server.
fn first() -> std::io::Result<Vec<u8>> {
    use base64::Engine as _;
    let nonce: [u8; 18] = random::bytes().map_err(std::io::Error::other)?;
    let nonce = base64::engine::general_purpose::STANDARD.encode(nonce);
    let data = format!("n,,n=,r={nonce}");
    let mut body = MECHANISM.as_bytes().to_vec();
    body.push(0);
    let length = i32::try_from(data.len()).unwrap_or(0);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(data.as_bytes());
    Ok(framed(Some(b'p'), &body))
}

fn framed(tag: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len() + 4).unwrap_or(0);
    let mut whole: Vec<u8> = tag.into_iter().collect();
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(body);
    whole
}

async fn message<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<(u8, Vec<u8>)> {
    let tag = stream.read_u8().await?;
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(0);
    let length = length.checked_sub(4).filter(|length| *length <= MESSAGE);
    let length = length.ok_or_else(|| std::io::Error::other("no answer of PostgreSQL"))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((tag, body))
}

/// `r=NONCE,s=SALT,i=ROUNDS`
fn salt(first: &[u8]) -> AsksFor {
    let text = std::str::from_utf8(first).unwrap_or_default();
    match text.split(',').find_map(|part| part.strip_prefix("s=")) {
        Some(salt) => AsksFor::Password {
            salt: salt.to_owned(),
        },
        None => AsksFor::Unknown("it names no salt".to_owned()),
    }
}

/// What an error says to people.
fn said(body: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let text = fields.find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_found_and_nothing_else_is_one() {
        let found = salt(b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let wanted = "W22ZaJ0SNY7soEsUEjb6gQ==".to_owned();
        assert_eq!(found, AsksFor::Password { salt: wanted });
        for other in [&b""[..], b"r=abc", b"\xff\xfe", b"e=other-error"] {
            assert!(matches!(salt(other), AsksFor::Unknown(_)), "{other:?}");
        }
        assert_eq!(said(b"SFATAL\0C28000\0Mno line\0\0"), "no line");
    }
}
