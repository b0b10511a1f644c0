//! One keep-alive HTTP/1.1 connection over a Unix socket or TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// See the module.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    host: String,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// To a Unix socket.
    pub async fn unix(path: &Path) -> anyhow::Result<Self> {
        let stream = tokio::net::UnixStream::connect(path)
            .await
            .with_context(|| path.display().to_string())?;
        Self::over(stream, "localhost".to_owned()).await
    }

    /// To the broker's HTTPS listener.
    pub async fn tls(
        address: SocketAddr,
        config: Arc<rustls::ClientConfig>,
    ) -> anyhow::Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Self::over(stream, address.to_string()).await
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the driver's handle is kept and aborted on drop"
    )]
    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: String,
    ) -> anyhow::Result<Self> {
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // An error shows as a failed request.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            driver,
            host,
        })
    }

    /// One exchange; anything but 200 is an error that quotes the answer.
    pub async fn call(&mut self, call: &Call) -> anyhow::Result<Bytes> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.target)
            .header(http::header::HOST, &self.host)
            .header("ephor-local", "1");
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let answer = self
            .sender
            .send_request(request.body(Full::new(call.body.clone()))?)
            .await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status != StatusCode::OK {
            bail!(
                "{} {}: {status}: {}",
                call.method,
                call.target,
                String::from_utf8_lossy(&body)
            );
        }
        Ok(body)
    }
}

/// What to send.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Call {
    /// `GET target`
    pub fn get(target: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            target: target.into(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// `POST target` with this body.
    pub fn post(target: impl Into<String>, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self {
            method: Method::POST,
            target: target.into(),
            headers: vec![("content-type", content_type.to_owned())],
            body: body.into(),
        }
    }

    /// As bytes, for [`Raw`](crate::raw::Raw).
    pub fn to_bytes(&self) -> Vec<u8> {
        let (method, target) = (&self.method, &self.target);
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nephor-local: 1\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    /// With one more header.
    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}
