//! A certificate from the agent, read once into what TLS uses. A key that does not belong to its
//! certificate, or a certificate that has expired, does not get in.

use std::sync::Arc;

use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::certified_key;
use ephor_crypto::x509::{CaCertificate, Leaf, X509Error};
use ephor_proto::http::agent::FlatCertificate;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::time::UnixMillis;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::Status;
use crate::clock;
use crate::error::Error;

/// The certificate in use.
pub struct Held {
    pub id: SpiffeId,
    pub key: Arc<CertifiedKey>,
    pub serial: String,
    /// The list that would revoke it: where all lists are.
    pub crl: String,
    /// The end of the certificate itself.
    pub expires_at: UnixMillis,
    pub refresh_at: UnixMillis,
}

/// A certificate, and the CAs to check others with.
pub struct Fetched {
    pub held: Held,
    pub cas: Vec<CaCertificate>,
}

impl Fetched {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn read(answer: FlatCertificate) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Answer {
            what: "the agent",
            why: why.to_owned(),
        };
        let credential = answer.credential;
        let given = credential
            .certificate
            .ok_or_else(|| wrong("there is no certificate in it"))?;
        let secret = Zeroizing::new(given.private_key);
        let chain = CertificateDer::pem_slice_iter(given.chain.as_bytes());
        let chain = chain
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| X509Error::Malformed)?;
        let leaf = Leaf::parse(chain.first().map_or(&[][..], |leaf| leaf))?;
        let key = Arc::new(private_key(&secret)?);
        if key.public_key().spki() != leaf.spki {
            return Err(wrong("the key is not that of the certificate"));
        }
        let expires_at = UnixMillis::from_unix_seconds(u64::try_from(leaf.not_after).unwrap_or(0));
        if expires_at <= clock::wall() {
            return Err(wrong("the certificate has expired"));
        }
        let chain: Vec<&[u8]> = chain.iter().map(|der| &**der).collect();
        Ok(Self {
            cas: CaCertificate::all_from_pem(&given.bundle)?,
            held: Held {
                id: leaf.spiffe_id.parse()?,
                key: certified_key(&chain, key),
                serial: leaf.serial.to_string(),
                crl: leaf
                    .crl
                    .ok_or_else(|| wrong("the certificate names no revocation list"))?,
                expires_at,
                refresh_at: credential.refresh_at,
            },
        })
    }
}

impl Held {
    pub fn status(&self) -> Status {
        Status {
            id: self.id.clone(),
            serial: self.serial.clone(),
            expires_at: self.expires_at,
            refresh_at: self.refresh_at,
        }
    }
}

fn private_key(pem: &str) -> Result<SigningKey, X509Error> {
    let mut der =
        PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| X509Error::Malformed)?;
    let secret = Secret::new(der.secret_pkcs8_der().to_vec());
    der.zeroize();
    Ok(SigningKey::from_pkcs8(&secret)?)
}
