//! A client that can stop in the middle of its login, as no library does.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

/// A login whose password the server has looked up, and not been shown yet.
pub(super) struct Begun {
    wire: Wire,
    scram: ScramSha256,
}

/// A session.
pub(super) struct Inside(Wire);

impl Begun {
    pub(super) fn new(port: u16, (user, password): (&str, &str)) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        let mut wire = Wire {
            stream,
            heard: BytesMut::new(),
        };
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let parameters = [("user", user), ("database", "orders")];
        wire.say(|into| frontend::startup_message(parameters, into).unwrap());
        assert!(matches!(wire.hear(), Message::AuthenticationSasl(_)));
        wire.say(|into| {
            frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), into).unwrap();
        });
        let Message::AuthenticationSaslContinue(asked) = wire.hear() else {
            panic!("it asks for no password by SCRAM");
        };
        scram.update(asked.data()).unwrap();
        Self { wire, scram }
    }

    /// Goes on, and gives what the server says if that is no session.
    pub(super) fn finish(mut self) -> Result<Inside, String> {
        self.wire
            .say(|into| frontend::sasl_response(self.scram.message(), into).unwrap());
        self.wire.until_ready()?;
        Ok(Inside(self.wire))
    }
}

impl Inside {
    pub(super) fn run(&mut self, sql: &str) -> Result<(), String> {
        self.0.say(|into| frontend::query(sql, into).unwrap());
        self.0.until_ready()
    }
}

/// A connection, and what was read of the next message.
struct Wire {
    stream: TcpStream,
    heard: BytesMut,
}

impl Wire {
    fn say(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut message = BytesMut::new();
        write(&mut message);
        self.stream.write_all(&message).unwrap();
    }

    fn hear(&mut self) -> Message {
        loop {
            if let Some(message) = Message::parse(&mut self.heard).unwrap() {
                return message;
            }
            let mut part = [0; 4096];
            let length = self.stream.read(&mut part).unwrap();
            assert!(length > 0, "the server has hung up");
            self.heard.extend_from_slice(&part[..length]);
        }
    }

    fn until_ready(&mut self) -> Result<(), String> {
        loop {
            match self.hear() {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => {
                    let text = body
                        .fields()
                        .map(|field| Ok(String::from_utf8_lossy(field.value_bytes()).into_owned()));
                    return Err(text.collect::<Vec<_>>().unwrap().join("\n"));
                }
                _ => {}
            }
        }
    }
}
