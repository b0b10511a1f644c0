//! A CA of ours that was signed elsewhere: its chain, checked before anything is issued under it.
//!
//! What a verifier will do with our leaves is tried here first, on a leaf that is thrown away: chain
//! builders differ, but one that refuses this leaf would refuse them all.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{Ca, CaCertificate, ServerNames, X509Error};
use crate::p256::SigningKey;

/// Why a chain is refused. Nothing was changed.
#[derive(Debug, Error)]
pub enum ChainError {
    /// Not a list of certificates.
    #[error("the chain is not a list of PEM certificates: the CA's own first, its root last")]
    Form,
    /// The first certificate is not one of a CA of ours.
    #[error(
        "the first certificate of the chain is not acceptable: {0}. It must be the one made from the request, a CA, \
         with the one URI name spiffe://TRUST_DOMAIN (openssl: -copy_extensions copy, or subjectAltName in the \
         extension file)"
    )]
    First(X509Error),
    /// The first certificate is for another trust domain.
    #[error("the first certificate is of trust domain `{0}`, not of this broker's")]
    TrustDomain(String),
    /// The first certificate lacks a right that issuing needs.
    #[error(
        "the first certificate lacks {0}: sign it as a CA certificate with the key usages keyCertSign and cRLSign, \
         critical, and a subject key identifier"
    )]
    Lacks(&'static str),
    /// It is its own root.
    #[error("the chain has no certificate above the first; add the upstream CA's, its root last")]
    NoRoot,
    /// The last certificate is not self-signed.
    #[error(
        "the last certificate of the chain is not a root (issuer and subject differ); add the rest"
    )]
    NotARoot,
    /// A verifier would refuse what is issued under it.
    #[error(
        "a certificate issued under this chain would be refused: {0}. Look at path length, validity, name \
         constraints (URI of the trust domain, DNS names of the broker) and the order: each certificate is \
         signed by the next"
    )]
    Refused(String),
    /// The trial failed on our side.
    #[error("the chain could not be tried: {0}")]
    Trial(#[from] X509Error),
}

/// The certificates of a PEM text, DER, in order.
///
/// # Errors
/// [`ChainError::Form`].
pub fn certificates_of_pem(pem: &[u8]) -> Result<Vec<Vec<u8>>, ChainError> {
    let all = CertificateDer::pem_slice_iter(pem);
    let ders = all
        .map(|der| der.map(|der| der.to_vec()).map_err(|_| ChainError::Form))
        .collect::<Result<Vec<_>, _>>()?;
    if ders.is_empty() {
        return Err(ChainError::Form);
    }
    Ok(ders)
}

/// Checks that `chain` (DER, our CA's certificate first, its root last) is one under which certificates
/// of `trust_domain` with these names will be accepted until at least `until_unix`. Gives the CA.
///
/// # Errors
/// [`ChainError`] says what to mend.
pub fn check_chain(
    chain: &[Vec<u8>],
    key: SigningKey,
    names: &ServerNames<'_>,
    (now_unix, until_unix): (i64, i64),
    trust_domain: &str,
) -> Result<Ca, ChainError> {
    let (first, above) = chain.split_first().ok_or(ChainError::Form)?;
    let certificate = CaCertificate::from_der(first).map_err(ChainError::First)?;
    if certificate.trust_domain() != trust_domain {
        return Err(ChainError::TrustDomain(
            certificate.trust_domain().to_owned(),
        ));
    }
    check_rights(first, &certificate)?;
    let (root, between) = above.split_last().ok_or(ChainError::NoRoot)?;
    if !is_root(root)? {
        return Err(ChainError::NotARoot);
    }
    if !certificate.valid_at(now_unix) {
        let now = "the first certificate is not valid now".to_owned();
        return Err(ChainError::Refused(now));
    }
    if certificate.not_after() < until_unix {
        let soon = "the certificate ends too soon; have it signed for longer".to_owned();
        return Err(ChainError::Refused(soon));
    }
    // To a chain builder a root is a name and a key.
    if super::not_after(root)? < until_unix {
        let soon = "its root has ended, or ends too soon".to_owned();
        return Err(ChainError::Refused(soon));
    }
    let ca = Ca::from_parts(&certificate.pem(), key).map_err(ChainError::First)?;
    let leaf = SigningKey::generate().map_err(X509Error::from)?;
    let spki = leaf.public_key().spki();
    let trial = ca.issue_server(
        names,
        &spki,
        [0x41; 16],
        now_unix.saturating_sub(1),
        until_unix,
    )?;
    let between: Vec<CertificateDer<'_>> = std::iter::once(first)
        .chain(between)
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    for at in [now_unix, until_unix.saturating_sub(1)] {
        try_leaf(&trial, &between, root, at)?;
    }
    Ok(ca)
}

fn try_leaf(
    leaf: &[u8],
    between: &[CertificateDer<'_>],
    root: &[u8],
    at_unix: i64,
) -> Result<(), ChainError> {
    let refused = |error: webpki::Error| ChainError::Refused(error.to_string());
    let root = CertificateDer::from(root);
    let anchor = webpki::anchor_from_trusted_cert(&root).map_err(refused)?;
    let leaf = CertificateDer::from(leaf);
    let seconds = u64::try_from(at_unix).unwrap_or(0);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let parsed = EndEntityCert::try_from(&leaf).map_err(refused)?;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        parsed
            .verify_for_usage(
                crate::tls::provider().signature_verification_algorithms.all,
                std::slice::from_ref(&anchor),
                between,
                at,
                usage,
                None,
                None,
            )
            .map_err(refused)?;
    }
    Ok(())
}

/// webpki does not look at a CA's key usage; others do (RFC 5280 §4.2.1.3).
fn check_rights(der: &[u8], certificate: &CaCertificate) -> Result<(), ChainError> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|_| ChainError::Form)?;
    let usage = parsed.key_usage().map_err(|_| ChainError::Form)?;
    let usage = usage.ok_or(ChainError::Lacks("a key usage"))?.value;
    if !usage.key_cert_sign() {
        return Err(ChainError::Lacks(
            "the right to sign certificates (keyCertSign)",
        ));
    }
    if !usage.crl_sign() {
        return Err(ChainError::Lacks(
            "the right to sign revocation lists (cRLSign)",
        ));
    }
    if certificate.key_id().is_empty() {
        return Err(ChainError::Lacks("a subject key identifier"));
    }
    Ok(())
}

fn is_root(der: &[u8]) -> Result<bool, ChainError> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|_| ChainError::Form)?;
    Ok(parsed.issuer().as_raw() == parsed.subject().as_raw() && parsed.is_ca())
}
