//! A small HTTP/1.1 client over TCP, with TLS under the installation's own CA and no other.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ephor_crypto::tls::{Peer, PinnedCa, TrustStore, client_config};
use ephor_crypto::x509::CaCertificate;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::exit::Failure;

/// Longest wait for one answer.
const CALL_MAX: Duration = Duration::from_secs(5);
/// Largest answer: a status list.
const ANSWER_MAX: usize = 4 << 20;

/// The CA that servers must have.
pub struct Trust(Arc<TrustStore>);

impl Trust {
    /// From a PEM file.
    ///
    /// # Errors
    /// When it is no CA certificate.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::local(path.display(), why);
        let pem = std::fs::read_to_string(path).map_err(|why| failed(&why))?;
        let cas = CaCertificate::all_from_pem(&pem).map_err(|why| failed(&why))?;
        Ok(Self(Arc::new(TrustStore::new(cas))))
    }
}

/// A request without a body.
pub struct Get {
    /// Where.
    pub url: String,
    /// `Authorization`, if any.
    pub bearer: Option<String>,
}

/// A form to post.
pub struct Post {
    /// Where.
    pub url: String,
    /// `Authorization`.
    pub bearer: String,
    /// The encoded form.
    pub form: String,
}

/// What [`call`] takes.
pub trait Asked {
    /// Method, URL, authorization and body.
    fn parts(&self) -> (Method, &str, Option<&str>, &str);
}

impl Asked for Get {
    fn parts(&self) -> (Method, &str, Option<&str>, &str) {
        (Method::GET, &self.url, self.bearer.as_deref(), "")
    }
}

impl Asked for Post {
    fn parts(&self) -> (Method, &str, Option<&str>, &str) {
        (Method::POST, &self.url, Some(&self.bearer), &self.form)
    }
}

/// An answer of any status.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON, when the status says success.
    ///
    /// # Errors
    /// For another status, or no JSON.
    pub fn json(&self, url: &str) -> Result<serde_json::Value, Failure> {
        if self.status != 200 {
            return Err(Failure::local(url, format!("answered {}", self.status)));
        }
        serde_json::from_slice(&self.body).map_err(|why| Failure::local(url, why))
    }
}

/// One call on a connection of its own. `trust` is for `https`.
///
/// # Errors
/// When there is no answer.
pub async fn call(trust: Option<&Trust>, asked: &impl Asked) -> Result<Answer, Failure> {
    let (_, url, _, _) = asked.parts();
    match tokio::time::timeout(CALL_MAX, connected(trust, asked)).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::unreachable(format!(
            "{url} did not answer within {} s.",
            CALL_MAX.as_secs()
        ))),
    }
}

async fn connected(trust: Option<&Trust>, asked: &impl Asked) -> Result<Answer, Failure> {
    let (method, url, bearer, body) = asked.parts();
    let failed = |why: &dyn std::fmt::Display| Failure::unreachable(format!("{url}: {why}"));
    let uri: Uri = url
        .parse()
        .map_err(|why: http::uri::InvalidUri| failed(&why))?;
    let authority = uri.authority().ok_or_else(|| failed(&"no host"))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, authority.as_str());
    if let Some(bearer) = bearer {
        request = request.header(header::AUTHORIZATION, bearer);
    }
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    let request = request
        .body(Full::new(Bytes::from(body.to_owned())))
        .map_err(|why| failed(&why))?;
    let port = authority.port_u16().ok_or_else(|| failed(&"no port"))?;
    let stream = TcpStream::connect((authority.host(), port))
        .await
        .map_err(|why| failed(&why))?;
    match (uri.scheme_str(), trust) {
        (Some("https"), Some(trust)) => {
            let peer = Peer::host(authority.host()).map_err(|why| failed(&why))?;
            let name = peer.server_name();
            let verifier = Arc::new(PinnedCa::new(Arc::clone(&trust.0), peer));
            let config =
                client_config(verifier, None, &[b"http/1.1"]).map_err(|why| failed(&why))?;
            let stream = TlsConnector::from(Arc::new(config))
                .connect(name, stream)
                .await;
            exchange(stream.map_err(|why| failed(&why))?, request, &failed).await
        }
        (Some("http"), _) => exchange(stream, request, &failed).await,
        (_, _) => Err(failed(&"neither http nor https with a CA")),
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: Request<Full<Bytes>>,
    failed: &dyn Fn(&dyn std::fmt::Display) -> Failure,
) -> Result<Answer, Failure> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|why| failed(&why))?;
    let call = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|why| failed(&why))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|why| failed(&why))?.to_bytes();
        Ok(Answer { status, body })
    };
    tokio::pin!(call);
    tokio::select! {
        answer = &mut call => answer,
        // The connection ends after the answer, or because of an error: then the call says so.
        _ = connection => call.await,
    }
}
