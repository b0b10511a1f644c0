//! TLS with a certificate that somebody holds: the program's own, or the thief's copy of it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{
    CertificateSlot, Peer, PinnedCa, TrustStore, certified_key, client_config,
};
use ephor_crypto::x509::{CaCertificate, Leaf, RevocationList, Serial};
use ephor_proto::http::agent::Certificate;
use rustls::{AlertDescription, Error as TlsError};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::scene::SERVICE_ID;
use super::web;
use crate::exit::Failure;

/// Longest wait for the service's first word.
const SHAKE_MAX: Duration = Duration::from_secs(5);
/// What the service says to a caller that it took.
pub const TAKEN: u8 = b'.';

/// A certificate and its key, as anybody uses them who has them.
pub struct Copy {
    connector: TlsConnector,
    peer: Peer,
    cas: Vec<CaCertificate>,
    serial: Serial,
    list: String,
}

/// How a handshake ended.
pub enum Shaken {
    /// The service took it.
    Taken(Box<TlsStream<TcpStream>>),
    /// The service refused, with this alert.
    Refused(AlertDescription),
    /// The service ended it without a word: the certificate was listed after the handshake had
    /// looked and before the connection was its to keep.
    Dropped,
}

impl Copy {
    /// From an answer of the agent.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn of(certificate: &Certificate) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::local("the certificate", why);
        let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|why| failed(&why))?;
        let leaf = chain.first().map_or(&[][..], |leaf| leaf);
        let leaf = Leaf::parse(leaf).map_err(|why| failed(&why))?;
        let list = leaf.crl.ok_or_else(|| failed(&"it names no list"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(certificate.private_key.as_bytes());
        let key = key.map_err(|why| failed(&why))?;
        let key = Secret::new(key.secret_pkcs8_der().to_vec());
        let key = SigningKey::from_pkcs8(&key).map_err(|why| failed(&why))?;
        let cas = CaCertificate::all_from_pem(&certificate.bundle).map_err(|why| failed(&why))?;
        let peer = Peer::spiffe_id(SERVICE_ID);
        let verifier = PinnedCa::new(Arc::new(TrustStore::new(cas.clone())), peer.clone());
        let chain: Vec<&[u8]> = chain.iter().map(|der| &**der).collect();
        let shown = CertificateSlot::new(certified_key(&chain, Arc::new(key)));
        let config = client_config(Arc::new(verifier), Some(Arc::new(shown)), &[]);
        let config = config.map_err(|why| failed(&why))?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            peer,
            cas,
            serial: leaf.serial,
            list,
        })
    }

    /// What people tell credentials apart by: the end of its serial, without the two bytes that
    /// count the certificates of a credential.
    pub fn short_serial(&self) -> String {
        let bytes = self.serial.as_bytes();
        let end = bytes.len().saturating_sub(2);
        let last = bytes.get(end.saturating_sub(4)..end).unwrap_or(bytes);
        let pairs: Vec<String> = last.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("…{}", pairs.join(":"))
    }

    /// One handshake with the service on `port`.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn shake(&self, port: u16) -> Result<Shaken, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::local("the mTLS service", why);
        let whole = async {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            let mut stream = self.connector.connect(self.peer.server_name(), tcp).await?;
            // TLS 1.3: a client is done before the server has looked at its certificate.
            let word = stream.read_u8().await?;
            Ok::<_, std::io::Error>((stream, word))
        };
        match tokio::time::timeout(SHAKE_MAX, whole).await {
            Ok(Ok((stream, TAKEN))) => Ok(Shaken::Taken(Box::new(stream))),
            Ok(Ok((_, word))) => Err(failed(&format!("it said {word}"))),
            Ok(Err(error)) => match (alert(&error), error.kind()) {
                (Some(alert), _) => Ok(Shaken::Refused(alert)),
                (None, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                    Ok(Shaken::Dropped)
                }
                (None, _) => Err(failed(&error)),
            },
            Err(_) => Err(failed(&"no answer in time")),
        }
    }

    /// Whether a freshly fetched list names it.
    ///
    /// # Errors
    /// When the list cannot be fetched or is not the CA's.
    pub async fn is_listed(&self) -> Result<bool, Failure> {
        let get = web::Get {
            url: self.list.clone(),
            bearer: None,
        };
        let answer = web::call(None, &get).await?;
        let list = RevocationList::verify(&answer.body, &self.cas);
        let list = list.map_err(|why| Failure::local(&self.list, why))?;
        if list.url() != self.list {
            return Err(Failure::local(&self.list, "gave another list"));
        }
        Ok(list.is_revoked(&self.serial))
    }
}

fn alert(error: &std::io::Error) -> Option<AlertDescription> {
    let tls = error.get_ref()?.downcast_ref::<TlsError>()?;
    match tls {
        TlsError::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
