//! The server to compare with: the same socket, the same HTTP stack, the same requests and an
//! answer of the same headers and length, a constant; with `--sign` one ES256 signature a request, or a
//! key and a certificate for it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ephor_crypto::jws::JwsSigner;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Ca, Serial, Svid};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::args::Made;

/// As long as a token's answer.
const ANSWER_BYTES: usize = 910;
/// As long as a certificate's.
const CERTIFICATE_ANSWER_BYTES: usize = 2_600;
/// What a cold answer tells beside.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TIMING: &str = "attest;dur=2.308, decide;dur=0.013, issue;dur=1.248";
/// As long as a token's claims.
const CLAIMS_BYTES: usize = 300;

/// Serves until killed.
pub async fn serve(socket: &Path, sign: Option<Made>) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let signer = sign.map(Signer::new).transpose()?.map(Arc::new);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let signer = signer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let signer = signer.clone();
            async move {
                // What breaks off is answered all the same: nobody reads it.
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(answer(signer.as_deref()))
            }
        });
        connections.spawn(async move {
            // A client that goes away is no news.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// What is made once a request.
enum Signer {
    Token(JwsSigner),
    Certificate(Box<Ca>),
}

impl Signer {
    fn new(made: Made) -> anyhow::Result<Self> {
        match made {
            Made::Token => {
                let key = Arc::new(SigningKey::generate()?);
                let kid = key.public_key().thumbprint();
                Ok(Self::Token(JwsSigner::new(key, "JWT", &kid)?))
            }
            Made::Certificate => {
                let ca = Ca::create("Bare", "bare.test", 1_700_000_000, 4_000_000_000)?;
                Ok(Self::Certificate(Box::new(ca)))
            }
        }
    }

    /// Makes one; the length of an answer with it.
    fn make(&self) -> Option<usize> {
        match self {
            Self::Token(signer) => {
                let token = signer.sign(&[b'x'; CLAIMS_BYTES]).ok()?;
                Some(token.len().max(ANSWER_BYTES))
            }
            Self::Certificate(ca) => {
                let key = SigningKey::generate().ok()?;
                let svid = Svid {
                    spiffe_id: "spiffe://bare.test/load",
                    dns: &[],
                    crl: "http://127.0.0.1:8480/crl/4096",
                    serial: &Serial::new(&[1; 18]).ok()?,
                    not_before: 1_800_000_000,
                    not_after: 1_800_000_300,
                };
                let der = ca.issue_svid(&svid, &key.public_key().spki()).ok()?;
                Some(der.len().max(CERTIFICATE_ANSWER_BYTES))
            }
        }
    }
}

fn answer(signer: Option<&Signer>) -> Response<Full<Bytes>> {
    let made = signer.and_then(Signer::make);
    let signed = made.is_some();
    let length = made.unwrap_or(ANSWER_BYTES);
    let mut response = Response::new(Full::new(Bytes::from(vec![b'x'; length])));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if signed {
        headers.insert(SERVER_TIMING, HeaderValue::from_static(TIMING));
    }
    response
}
