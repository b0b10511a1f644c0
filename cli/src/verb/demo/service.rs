//! The service of the tour, `billing`: it answers callers whose token introspection calls
//! active, and asks with an identity of its own. On a second port it speaks mTLS, as a service does
//! that uses our crate: a listed certificate gets no handshake, and loses the connections it has.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use ephor_client::{Identity, Incoming, Listener, Peers};
use ephor_proto::http::agent::Token;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming as Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::handshake::TAKEN;
use super::scene::{AUDIENCE, PROGRAM_ID};
use super::web::{self, Trust};
use crate::client::Peer;
use crate::exit::Failure;
use crate::verb::dev::Installation;
use crate::words::query_escaped;

/// Longest life of one connection.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// How often it looks for changed revocation lists.
const LISTS_EVERY: Duration = Duration::from_millis(50);
/// After a failed `accept`, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// See the module.
pub struct Service {
    listener: TcpListener,
    port: u16,
    agent: Peer,
    issuer: String,
    introspection: String,
    jwks: String,
    trust: Trust,
    tls: Listener,
}

/// The listener for programs that policy names.
async fn mtls(agent: &ephor_client::Agent) -> Result<Listener, ephor_client::Error> {
    let identity = Identity::builder(agent)
        .poll_every(LISTS_EVERY)
        .start()
        .await?;
    let peers = Peers::id(PROGRAM_ID)?;
    Listener::bind(("127.0.0.1", 0), &identity, peers, &[]).await
}

/// One connection, until either side ends it.
async fn hold(incoming: Incoming) -> Option<()> {
    let mut connection = incoming.handshake().await.ok()?;
    connection.write_u8(TAKEN).await.ok()?;
    connection.flush().await.ok()?;
    connection.read_u8().await.ok().map(drop)
}

impl Service {
    /// Listens, and finds the broker's endpoints by discovery.
    ///
    /// # Errors
    /// When the broker cannot be reached or speaks for another issuer.
    pub async fn open(installation: &Installation) -> Result<Self, Failure> {
        let failed = |why| Failure::local("the service cannot listen", why);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let trust = Trust::read(&installation.layout().ca_file())?;
        let issuer = installation.broker().issuer.clone();
        let url = format!("{issuer}/.well-known/openid-configuration");
        let known = web::call(
            Some(&trust),
            &web::Get {
                url: url.clone(),
                bearer: None,
            },
        )
        .await?
        .json(&url)?;
        let endpoint = |name: &str| known.get(name).and_then(Value::as_str).map(str::to_owned);
        let (Some(introspection), Some(jwks)) =
            (endpoint("introspection_endpoint"), endpoint("jwks_uri"))
        else {
            return Err(Failure::local(url, "names no introspection or keys"));
        };
        let agent = Peer::agent_at(installation.layout().socket());
        let ours = ephor_client::Agent::at(installation.layout().socket());
        let tls = mtls(&ours);
        let tls = tls
            .await
            .map_err(|why| Failure::local("the mTLS service", why))?;
        Ok(Self {
            listener,
            port,
            agent,
            issuer,
            introspection,
            jwks,
            trust,
            tls,
        })
    }

    /// Its ports on 127.0.0.1: plain, for tokens, and mTLS.
    pub fn ports(&self) -> (u16, u16) {
        let tls = self.tls.local_addr().map_or(0, |address| address.port());
        (self.port, tls)
    }

    /// Answers callers until it is dropped.
    pub async fn serve(&self) -> Infallible {
        tokio::select! {
            never = self.serve_tokens() => never,
            never = self.serve_tls() => never,
        }
    }

    /// Takes callers that it may take, says so, and keeps their connections open.
    async fn serve_tls(&self) -> Infallible {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                incoming = self.tls.accept() => match incoming {
                    Ok(incoming) => drop(connections.spawn(hold(incoming))),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn serve_tokens(&self) -> Infallible {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let answer = service_fn(|request| self.answer(request));
            let connection = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            // What goes wrong on one connection is that caller's to notice.
            let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
        }
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
        let bearer = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let status = match token {
            None => StatusCode::UNAUTHORIZED,
            Some(token) => match self.is_active(token).await {
                Ok(true) => StatusCode::OK,
                Ok(false) => StatusCode::UNAUTHORIZED,
                Err(_) => StatusCode::SERVICE_UNAVAILABLE,
            },
        };
        let mut response = Response::new(Full::new(Bytes::new()));
        *response.status_mut() = status;
        Ok(response)
    }

    /// RFC 7662: whether the broker calls the token active, for us.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub async fn is_active(&self, token: &str) -> Result<bool, Failure> {
        let target = format!("/v1/token?audience={}", query_escaped(&self.issuer));
        let own: Token = self.agent.read(&target).await?;
        let own = own.credential.token.unwrap_or_default();
        let post = web::Post {
            url: self.introspection.clone(),
            bearer: format!("Bearer {own}"),
            form: format!("token={}", query_escaped(token)),
        };
        let known = web::call(Some(&self.trust), &post)
            .await?
            .json(&self.introspection)?;
        let active = known.get("active").and_then(Value::as_bool) == Some(true);
        Ok(active && known.get("aud").and_then(Value::as_str) == Some(AUDIENCE))
    }

    /// The broker's public keys, as a verifier fetches them.
    ///
    /// # Errors
    /// When they cannot be fetched.
    pub async fn keys(&self) -> Result<Value, Failure> {
        web::call(
            Some(&self.trust),
            &web::Get {
                url: self.jwks.clone(),
                bearer: None,
            },
        )
        .await?
        .json(&self.jwks)
    }
}
