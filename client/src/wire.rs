//! One HTTP/1.1 connection, kept while it is good. It never follows a redirect and never reads
//! more than it was told to.

use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

/// An open connection.
pub struct Http {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes; polled only while a call is made. None once it has ended.
    driver: Option<Driver>,
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An answer. Its body may hold a secret, and is wiped.
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Zeroizing<Vec<u8>>,
}

impl Http {
    /// Speaks over `stream`.
    pub async fn over<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        Ok(Self {
            sender,
            driver: Some(Box::pin(connection)),
        })
    }

    /// Whether it may be used for one more call, as far as is known.
    pub fn is_open(&self) -> bool {
        self.driver.is_some() && !self.sender.is_closed()
    }

    /// Sends a request and reads its answer, of at most `most` bytes: a larger one is
    /// [`io::ErrorKind::FileTooLarge`], and ends the connection.
    pub async fn call(&mut self, request: Request<Full<Bytes>>, most: usize) -> io::Result<Reply> {
        let Self { sender, driver } = self;
        let call = async {
            sender.ready().await.map_err(io::Error::other)?;
            let answer = sender.send_request(request).await;
            let (head, mut body) = answer.map_err(io::Error::other)?.into_parts();
            let mut read = Zeroizing::new(Vec::new());
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(io::Error::other)?;
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if read.len() + data.len() > most {
                    let error = format!("the answer is larger than {most} bytes");
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
                }
                read.extend_from_slice(data);
            }
            Ok(Reply {
                status: head.status,
                body: read,
            })
        };
        tokio::pin!(call);
        if let Some(driving) = driver {
            tokio::select! {
                biased;
                answer = &mut call => return answer,
                // It ends after the last answer, or because of an error: then the call says so,
                // but only when the driver is gone.
                _ = driving => {}
            }
        }
        *driver = None;
        call.await
    }
}
