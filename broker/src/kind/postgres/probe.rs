//! Which password a server asks a role for: a login that is begun, and one with a password of which it is
//! known that it lets nobody in.
//!
//! A server that checks passwords by SCRAM (RFC 5802) tells the salt of the one in force to whoever begins to log
//! in. Another salt is another password. The same salt is no proof: whoever may set a password may
//! send the server a verifier of another one with a salt that he has seen. So there is a second look: a whole login
//! with the password itself. A server that takes it shows that it knows its verifier, and only then says whether the
//! role may log in at all.

use std::io;
use std::num::NonZeroU32;

use bytes::BytesMut;
use ephor_crypto::Secret;
use ephor_proto::postgres::Address;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::TlsConnect as _;

use super::access::Tls;
use super::tls::Encrypt;
use crate::limits;

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

async fn begin(who: Who<'_>, host: &Address, tls: &Tls) -> io::Result<AsksFor> {
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
            let mut encrypt = encrypt.map_err(io::Error::other)?;
            let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
            let mut asks = BytesMut::new();
            frontend::ssl_request(&mut asks);
            stream.write_all(&asks).await?;
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

async fn ask<S>(stream: S, who: Who<'_>) -> io::Result<AsksFor>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wire = Wire {
        stream,
        heard: BytesMut::new(),
    };
    let parameters = [
        ("user", who.user),
        ("database", who.database),
        ("application_name", "ephor-broker"),
    ];
    wire.say(|into| frontend::startup_message(parameters, into))
        .await?;
    // No channel is bound: the password of nobody is none to be stolen.
    let password = who.password.map_or(&[][..], |(secret, _)| secret.expose());
    let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
    loop {
        match wire.hear().await? {
            Message::AuthenticationOk => return Ok(AsksFor::Nothing),
            Message::AuthenticationSasl(_) => {
                wire.say(|into| {
                    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), into)
                })
                .await?;
            }
            Message::AuthenticationSaslContinue(body) => {
                let Some(asked) = Challenge::parse(body.data()) else {
                    return Ok(AsksFor::Unknown("it names no salt".to_owned()));
                };
                return match who.password {
                    None => Ok(AsksFor::Password { salt: asked.salt }),
                    // Rounds of a stranger are not worked off.
                    Some((_, rounds)) if rounds.get() != asked.rounds => Ok(AsksFor::Another),
                    Some(_) => {
                        scram.update(body.data())?;
                        finish(wire, scram).await
                    }
                };
            }
            Message::ErrorResponse(body) => return Ok(AsksFor::Unknown(said(&body, b'M'))),
            Message::NoticeResponse(_) => {}
            _ => {
                let why = "it asks for a password in a way that shows nothing of it";
                return Ok(AsksFor::Unknown(why.to_owned()));
            }
        }
    }
}

/// Shows the password, and looks what the server makes of it.
async fn finish<S>(mut wire: Wire<S>, mut scram: ScramSha256) -> io::Result<AsksFor>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    wire.say(|into| frontend::sasl_response(scram.message(), into))
        .await?;
    let mut took_it = false;
    loop {
        match wire.hear().await? {
            Message::AuthenticationSaslFinal(body) if scram.finish(body.data()).is_ok() => {
                took_it = true;
            }
            // Nobody that knows a verifier of this password.
            Message::AuthenticationSaslFinal(_) => return Ok(AsksFor::Another),
            Message::AuthenticationOk | Message::NoticeResponse(_) => {}
            Message::ErrorResponse(body) => {
                let code = SqlState::from_code(&said(&body, b'C'));
                return Ok(match took_it {
                    // After the password was taken: that the role may not log in.
                    true if code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => AsksFor::Shut,
                    false if code == SqlState::INVALID_PASSWORD => AsksFor::Another,
                    true | false => AsksFor::Unknown(said(&body, b'M')),
                });
            }
            // It goes on to tell of its session.
            _ if took_it => return Ok(AsksFor::Open),
            _ => return Ok(AsksFor::Unknown("no answer of SCRAM".to_owned())),
        }
    }
}

/// A connection, and what was read of the next message.
struct Wire<S> {
    stream: S,
    heard: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn say(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> io::Result<()> {
        let mut message = BytesMut::new();
        write(&mut message)?;
        self.stream.write_all(&message).await
    }

    async fn hear(&mut self) -> io::Result<Message> {
        loop {
            // Before it makes room for it.
            let header = Header::parse(&self.heard)?;
            let is_long =
                |header: Header| usize::try_from(header.len()).map_or(true, |len| len > MESSAGE);
            if header.is_some_and(is_long) {
                return Err(io::Error::other("no answer of PostgreSQL"));
            }
            if let Some(message) = Message::parse(&mut self.heard)? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.heard).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// `r=NONCE,s=SALT,i=ROUNDS`
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    salt: String,
    rounds: u32,
}

impl Challenge {
    fn parse(first: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(first).ok()?;
        let part = |name| text.split(',').find_map(|part| part.strip_prefix(name));
        Some(Self {
            salt: part("s=")?.to_owned(),
            rounds: part("i=")?.parse().ok()?,
        })
    }
}

/// A field of an error: `M` is for people, `C` the code of it.
fn said(body: &ErrorResponseBody, field: u8) -> String {
    let found = body.fields().find(|one| Ok(one.type_() == field));
    let found = found.ok().flatten();
    let text = found.as_ref().map_or(&[][..], |one| one.value_bytes());
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_found_and_nothing_else_is_one() {
        let found = Challenge::parse(b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").unwrap();
        assert_eq!(
            (found.salt.as_str(), found.rounds),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", 4096)
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
    }

    #[tokio::test]
    async fn a_message_without_end_is_not_waited_for() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut wire = Wire {
            stream: near,
            heard: BytesMut::new(),
        };
        far.write_all(&[b'E', 0x7f, 0xff, 0xff, 0xff])
            .await
            .unwrap();
        let said = wire.hear().await.err().map(|why| why.to_string());
        assert_eq!(said.as_deref(), Some("no answer of PostgreSQL"));
        assert!(wire.heard.capacity() < MESSAGE);
    }
}
