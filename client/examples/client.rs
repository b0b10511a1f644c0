//! A client that calls the example service: over a connection that it keeps, and over a new one.
//!
//! ```text
//! ephor run -- client 127.0.0.1:8443 spiffe://prod.example/billing/api
//! ```
//!
//! With a number at the end it does so that many times, five times a second. Its task ends with
//! it, by a guard: what it was given is revoked by then.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Duration;

use ephor_client::{Agent, Connection, Connector, Identity, Peers};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(200);

/// Moves the bytes of connections.
type Drivers = JoinSet<Result<(), hyper::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(address), Some(service)) = (words.next(), words.next()) else {
        return Err("say where the service is and who it is: client ADDRESS SPIFFE-ID".into());
    };
    let rounds = words.next().map_or(Ok(1_u32), |rounds| rounds.parse())?;

    let agent = Agent::from_env();
    let task = agent.task_guard();
    let mut identity = Identity::builder(&agent);
    if let Ok(seconds) = std::env::var("TTL_SECONDS") {
        identity = identity.ttl(Duration::from_secs(seconds.parse()?));
    }
    let identity = identity.start().await?;
    let connector = Connector::new(&identity, Peers::id(&service)?, &[b"http/1.1"])?;

    let mut drivers = JoinSet::new();
    let mut kept = open(connector.connect(&address).await?, &mut drivers).await?;
    for round in 0..rounds {
        if round > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        // It ends when the certificate that it was made with does, and is made anew then.
        if kept.is_closed() {
            kept = open(connector.connect(&address).await?, &mut drivers).await?;
        }
        println!("kept {}", call(&mut kept).await?);
        let mut new = open(connector.connect(&address).await?, &mut drivers).await?;
        println!("new {}", call(&mut new).await?);
        while drivers.try_join_next().is_some() {}
    }
    println!("done {}", task.complete().await?.receipt_id);
    Ok(())
}

async fn open(
    connection: Connection,
    drivers: &mut Drivers,
) -> Result<SendRequest<Empty<Bytes>>, Box<dyn Error>> {
    let (sender, driver) = handshake(TokioIo::new(connection)).await?;
    drivers.spawn(driver);
    Ok(sender)
}

async fn call(sender: &mut SendRequest<Empty<Bytes>>) -> Result<String, Box<dyn Error>> {
    let request = Request::get("/").header("host", "service");
    let answer = sender.send_request(request.body(Empty::new())?).await?;
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}
