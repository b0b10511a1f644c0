//! The server to compare with: the same socket, the same HTTP stack, a constant of a token's
//! size, and with `--sign` one ES256 signature a request.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ephor_crypto::jws::JwsSigner;
use ephor_crypto::p256::SigningKey;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// As long as a cached token's answer.
const ANSWER_BYTES: usize = 900;
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
        let service = service_fn(move |_| {
            let answer = answer(signer.as_deref());
            async move { Ok::<_, Infallible>(answer) }
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
    let signed = signer.and_then(|signer| signer.sign(&claims).ok());
    let length = signed.map_or(ANSWER_BYTES, |token| token.len().max(ANSWER_BYTES));
    Response::new(Full::new(Bytes::from(vec![b'x'; length])))
}
