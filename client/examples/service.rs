//! A service that takes only callers it knows, over mutual TLS, and forgets them when they end.
//!
//! ```text
//! ephor run -- service 127.0.0.1:8443 spiffe://prod.example/orders/web
//! ```
//!
//! It answers `hello SPIFFE-ID SERIAL`. Without callers named it takes all of its trust domain.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use ephor_client::{Agent, Connection, Identity, Incoming, Listener, Peers};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming as Body};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

/// After a failed `accept`, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let address = words.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let callers: Vec<String> = words.collect();

    let mut identity = Identity::builder(&Agent::from_env());
    if let Ok(seconds) = std::env::var("TTL_SECONDS") {
        identity = identity.ttl(Duration::from_secs(seconds.parse()?));
    }
    let identity = identity.start().await?;
    let mut shown = identity.status();
    let own = shown.id.clone();
    let peers = if callers.is_empty() {
        Peers::trust_domain(own.trust_domain().as_str())?
    } else {
        Peers::any_of(callers.iter().map(String::as_str))?
    };
    let listener = Listener::bind(address, &identity, peers, &[b"http/1.1"]).await?;
    println!("{own} listens on {}", listener.local_addr()?);

    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = listener.accept() => match incoming {
                Ok(incoming) => drop(connections.spawn(serve(incoming))),
                Err(error) => {
                    eprintln!("accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            newer = identity.renewed(&shown) => {
                eprintln!("renewed: {} until {}", newer.serial, newer.expires_at);
                shown = newer;
            }
        }
    }
}

async fn serve(incoming: Incoming) {
    let remote = incoming.remote_addr();
    match incoming.handshake().await {
        Ok(connection) => talk(connection).await,
        Err(error) => eprintln!("{remote} was refused: {error}"),
    }
}

async fn talk(connection: Connection) {
    let peer = connection.peer().clone();
    let greeting = Bytes::from(format!("hello {} {}\n", peer.id, peer.serial));
    let answer = service_fn(move |_: Request<Body>| {
        let answer = Response::new(Full::new(greeting.clone()));
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let http = hyper::server::conn::http1::Builder::new();
    let served = http
        .serve_connection(TokioIo::new(connection), answer)
        .await;
    if let Err(error) = served {
        let why = error.source().map(ToString::to_string).unwrap_or_default();
        eprintln!("{} {} is gone: {why}", peer.id, peer.serial);
    }
}
