//! The server to compare with: the same socket, the same HTTP stack, the same requests and an
//! answer of the same headers and length, a constant; with `--sign` one ES256 signature a request.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ephor_crypto::jws::JwsSigner;
use ephor_crypto::p256::SigningKey;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// As long as a token's answer.
const ANSWER_BYTES: usize = 910;
/// What a cold answer tells beside.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TIMING: &str = "attest;dur=2.308, decide;dur=0.013, issue;dur=1.248";
/// As long as a token's claims.
const CLAIMS_BYTES: usize = 300;

/// Serves until killed.
pub async fn serve(socket: &Path, sign: bool) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let signer = if sign {
        Some(Arc::new(signer()?))
    } else {
        None
    };
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

fn signer() -> anyhow::Result<JwsSigner> {
    let key = Arc::new(SigningKey::generate()?);
    let kid = key.public_key().thumbprint();
    Ok(JwsSigner::new(key, "JWT", &kid)?)
}

fn answer(signer: Option<&JwsSigner>) -> Response<Full<Bytes>> {
    let claims = [b'x'; CLAIMS_BYTES];
    let token = signer.and_then(|signer| signer.sign(&claims).ok());
    let signed = token.is_some();
    let length = token.map_or(ANSWER_BYTES, |token| token.len().max(ANSWER_BYTES));
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
