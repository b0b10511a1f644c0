//! Which password a server asks a role for: a login that is begun, and one with a password of which it is
//! known that it lets nobody in.
//!
//! A server that checks passwords by SCRAM (RFC 5802) tells the salt of the one in force to whoever begins to log
//! in. Another salt is another password. The same salt is no proof: whoever may set a password may
//! send the server a verifier of another one with a salt that he has seen. So there is a second look: a whole login
//! with the password itself. A server that takes it shows that it knows its verifier, and only then says whether the
//! role may log in at all.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ephor_crypto::scram::Exchange;
use ephor_crypto::{Secret, random};
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
/// invalid_authorization_specification: after the password was taken, that the role may not log in.
const NOT_PERMITTED: &str = "28000";
/// invalid_password
const WRONG_PASSWORD: &str = "28P01";
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
    /// The password that it was shown, and the role may not log in all the same.
    Shut,
    /// The password that it was shown, and it lets the role in.
    Open,
    /// Another password than the one that it was shown.
    Another,
    /// Nothing: it lets the role in.
    Nothing,
    /// It cannot be seen, and why.
    Unknown(String),
}

/// Who logs in where.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) user: &'a str,
    pub(super) database: &'a str,
    /// With its rounds; none: the login is begun only.
    pub(super) password: Option<(&'a Secret, NonZeroU32)>,
}

/// Logs in as far as it goes, and leaves.
pub(super) async fn asks_for(who: Who<'_>, host: &Address, tls: &Tls) -> AsksFor {
    match timeout(limits::PG_CONNECT, begin(who, host, tls)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(why)) => AsksFor::Unknown(why.to_string()),
        Err(_) => AsksFor::Unknown("no answer".to_owned()),
    }
}

async fn begin(who: Who<'_>, host: &Address, tls: &Tls) -> std::io::Result<AsksFor> {
    match (host, tls) {
        (Address::Socket { dir, port }, _) => {
            let path = std::path::Path::new(dir).join(format!(".s.PGSQL.{port}"));
            ask(UnixStream::connect(path).await?, who).await
        }
        (Address::Tcp { host, port }, Tls::Off) => {
            ask(TcpStream::connect((host.as_str(), *port)).await?, who).await
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
            ask(connect.connect(stream).await?, who).await
        }
    }
}

async fn ask<S>(mut stream: S, who: Who<'_>) -> std::io::Result<AsksFor>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut startup = PROTOCOL.to_be_bytes().to_vec();
    for (name, value) in [
        ("user", who.user),
        ("database", who.database),
        ("application_name", "ephor-broker"),
    ] {
        for text in [name, value] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
    }
    startup.push(0);
    stream.write_all(&framed(None, &startup)).await?;
    let bare = bare()?;
    loop {
        let (tag, body) = message(&mut stream).await?;
        let (kind, rest) = body.split_at_checked(4).unwrap_or((&[], &body));
        match (tag, kind) {
            (b'R', [0, 0, 0, 0]) => return Ok(AsksFor::Nothing),
            (b'R', [0, 0, 0, 10]) => {
                stream.write_all(&first(&bare)).await?;
            }
            (b'R', [0, 0, 0, 11]) => {
                let Some(asked) = Challenge::parse(rest) else {
                    return Ok(AsksFor::Unknown("it names no salt".to_owned()));
                };
                return match who.password {
                    Some(known) => finish(stream, (&bare, &asked), known).await,
                    None => Ok(AsksFor::Password { salt: asked.salt }),
                };
            }
            (b'R', _) => {
                let why = "it asks for a password in a way that shows nothing of it";
                return Ok(AsksFor::Unknown(why.to_owned()));
            }
            (b'E', _) => return Ok(AsksFor::Unknown(said(&body, b"M"))),
            // A notice, or a version that it does not speak whole.
            _ => {}
        }
    }
}

/// Shows the password, and looks what the server makes of it.
async fn finish<S>(
    mut stream: S,
    (bare, asked): (&str, &Challenge),
    (password, rounds): (&Secret, NonZeroU32),
) -> std::io::Result<AsksFor>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let salt = STANDARD
        .decode(&asked.salt)
        .map_err(std::io::Error::other)?;
    // Rounds of a stranger are not worked off.
    if asked.rounds != rounds.get() {
        return Ok(AsksFor::Another);
    }
    let last = format!("c=biws,r={}", asked.nonce);
    let auth_message = format!("{bare},{},{last}", asked.text);
    let exchange = Exchange::new(password, (&salt, rounds), &auth_message);
    let last = format!("{last},p={}", exchange.proof);
    stream
        .write_all(&framed(Some(b'p'), last.as_bytes()))
        .await?;
    let signature = format!("v={}", exchange.server_signature);
    let mut took_it = false;
    loop {
        let (tag, body) = message(&mut stream).await?;
        let (kind, rest) = body.split_at_checked(4).unwrap_or((&[], &body));
        match (tag, kind) {
            (b'R', [0, 0, 0, 12]) if rest == signature.as_bytes() => took_it = true,
            // Nobody that knows a verifier of this password.
            (b'R', [0, 0, 0, 12]) => return Ok(AsksFor::Another),
            (b'R', [0, 0, 0, 0]) => {}
            (b'E', _) => {
                return Ok(match (took_it, said(&body, b"C").as_str()) {
                    (true, NOT_PERMITTED) => AsksFor::Shut,
                    (false, WRONG_PASSWORD) => AsksFor::Another,
                    _ => AsksFor::Unknown(said(&body, b"M")),
                });
            }
            (b'N', _) => {}
            // It goes on to tell of its session.
            _ if took_it => return Ok(AsksFor::Open),
            _ => return Ok(AsksFor::Unknown("no answer of SCRAM".to_owned())),
        }
    }
}

/// How a client begins: a name that the server takes from the start of the session, and a random number.
fn bare() -> std::io::Result<String> {
    let nonce: [u8; 18] = random::bytes().map_err(std::io::Error::other)?;
    Ok(format!("n=,r={}", STANDARD.encode(nonce)))
}

/// The first message of a client. No channel is bound: the password of nobody is none to be stolen.
fn first(bare: &str) -> Vec<u8> {
    let data = format!("n,,{bare}");
    let mut body = MECHANISM.as_bytes().to_vec();
    body.push(0);
    let length = i32::try_from(data.len()).unwrap_or(0);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(data.as_bytes());
    framed(Some(b'p'), &body)
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
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    text: String,
    nonce: String,
    salt: String,
    rounds: u32,
}

impl Challenge {
    fn parse(first: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(first).ok()?;
        let part = |name| text.split(',').find_map(|part| part.strip_prefix(name));
        Some(Self {
            text: text.to_owned(),
            nonce: part("r=")?.to_owned(),
            salt: part("s=")?.to_owned(),
            rounds: part("i=")?.parse().ok()?,
        })
    }
}

/// A field of an error: `M` is for people, `C` the code of it.
fn said(body: &[u8], field: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let text = fields.find_map(|one| one.strip_prefix(field));
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_found_and_nothing_else_is_one() {
        let found = Challenge::parse(b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").unwrap();
        let wanted = ("abc", "W22ZaJ0SNY7soEsUEjb6gQ==", 4096);
        assert_eq!(
            (found.nonce.as_str(), found.salt.as_str(), found.rounds),
            wanted
        );
        for other in [
            &b""[..],
            b"r=abc",
            b"\xff\xfe",
            b"e=other-error",
            b"r=abc,s=a,i=x",
        ] {
            assert_eq!(Challenge::parse(other), None, "{other:?}");
        }
        assert_eq!(said(b"SFATAL\0C28000\0Mno line\0\0", b"M"), "no line");
        assert_eq!(said(b"SFATAL\0C28000\0Mno line\0\0", b"C"), "28000");
    }
}
