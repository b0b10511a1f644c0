//! X.509 for the fleet: the issuing CA, the certificates of agents and of the broker, and
//! what is read back from them (SPIFFE X509-SVID profile).
//!
//! Every name comes from the caller's policy; nothing is copied from a CSR but its key. A
//! leaf never outlives its CA, because an expired CA must not leave live leaves behind.

mod ca;
mod certificate;
mod chain;
mod crl;
mod pem;
mod serial;

pub use ca::{Ca, DatabaseClient, ServerNames, Svid, ca_csr, csr, verify_csr};
pub use certificate::{CaCertificate, DatabaseLeaf, Leaf, not_after, split_der};
pub use chain::{ChainError, certificates_of_pem, check_chain};
pub use crl::{CrlContent, RevocationList, Revoked};
pub use pem::{pem, secret_pem};
pub use serial::Serial;

use thiserror::Error;

use crate::p256::KeyError;
use crate::random::RandomError;

/// Why a certificate or CSR was not issued or not accepted.
#[derive(Debug, Error)]
pub enum X509Error {
    /// Not a DER or PEM certificate, or damaged.
    #[error("the certificate cannot be parsed; check that the file is complete and in PEM or DER")]
    Malformed,
    /// The certificate breaks a rule of the SPIFFE X509-SVID profile; says which.
    #[error("the certificate is not acceptable: {0}")]
    Profile(&'static str),
    /// The certificate is not a CA, or its key does not belong to it.
    #[error("the CA cannot be used: {0}")]
    Ca(&'static str),
    /// A name cannot stand in a certificate.
    #[error("{0} is not valid in a certificate of this trust domain")]
    Name(&'static str),
    /// The serial has no set bit, or more than 20 bytes.
    #[error("a serial number must not be zero and is at most 20 bytes long")]
    Serial,
    /// Not a revocation list in DER, or not one of ours; says why.
    #[error("the revocation list is not acceptable: {0}")]
    Crl(&'static str),
    /// `not_before` is not before `not_after`, or a time is not a date before the year 10000.
    #[error(
        "validity from {not_before} to {not_after} (seconds since 1970) is empty or out of range"
    )]
    Validity {
        /// Requested start, seconds since 1970.
        not_before: i64,
        /// Requested end, seconds since 1970.
        not_after: i64,
    },
    /// The leaf would outlive the CA.
    #[error(
        "a certificate until {asked} would outlive its CA, which ends at {ca} (seconds since 1970); rotate the CA or shorten the validity"
    )]
    OutlivesCa {
        /// Requested end, seconds since 1970.
        asked: i64,
        /// End of the CA, seconds since 1970.
        ca: i64,
    },
    /// The CSR is malformed or its signature does not verify.
    #[error("the CSR is refused: it must be a P-256 PKCS#10 request signed by its own key")]
    Csr,
    /// Encoding or signing failed inside the library.
    #[error("issuing failed: {0}")]
    Issue(String),
    /// A key could not be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No randomness for a serial.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl From<rcgen::Error> for X509Error {
    fn from(error: rcgen::Error) -> Self {
        Self::Issue(error.to_string())
    }
}

/// Longest SPIFFE ID in bytes (SPIFFE-ID §2.3).
const SPIFFE_ID_MAX: usize = 2048;

/// Splits `spiffe://TD/path` into trust domain and path (without the first slash; empty
/// for a trust domain's own id). `None` when the syntax is not that of SPIFFE-ID §2.
fn split_spiffe_id(id: &str) -> Option<(&str, &str)> {
    let rest = id
        .strip_prefix("spiffe://")
        .filter(|_| id.len() <= SPIFFE_ID_MAX)?;
    let (trust_domain, path) = match rest.split_once('/') {
        Some((trust_domain, path)) if path.split('/').all(is_path_segment) => (trust_domain, path),
        Some(_) => return None,
        None => (rest, ""),
    };
    is_trust_domain(trust_domain).then_some((trust_domain, path))
}

fn is_trust_domain(name: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=255).contains(&name.len()) && name.bytes().all(allowed)
}

fn is_path_segment(segment: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_id_syntax() {
        assert_eq!(
            split_spiffe_id("spiffe://td.x/agent/h-1"),
            Some(("td.x", "agent/h-1"))
        );
        assert_eq!(split_spiffe_id("spiffe://td"), Some(("td", "")));
        let long = format!("spiffe://td/{}", "a".repeat(SPIFFE_ID_MAX));
        for bad in [
            "",
            "td/a",
            "http://td/a",
            "SPIFFE://td/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://TD/a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/a/",
            "spiffe://td/../a",
            "spiffe://td/./a",
            "spiffe://td/a b",
            "spiffe://td/é",
            "spiffe://td/%41",
            "spiffe://td:1/a",
            "spiffe://u@td/a",
            "spiffe://td/a?q",
            "spiffe://td/a#f",
            &long,
        ] {
            assert_eq!(split_spiffe_id(bad), None, "{bad}");
        }
    }
}
