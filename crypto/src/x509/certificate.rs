//! Reading certificates. Reading proves nothing: chains are verified in `tls`.

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::pem::pem;
use super::{Serial, X509Error, split_spiffe_id};
use crate::digest::{hex, sha256};

/// The public part of a CA: what those hold who trust it.
#[derive(Clone)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    trust_domain: String,
    spki: Vec<u8>,
    key_id: Vec<u8>,
    not_before: i64,
    not_after: i64,
}

impl CaCertificate {
    /// Reads a CA certificate whose one URI name is `spiffe://TRUST_DOMAIN`.
    ///
    /// # Errors
    /// When it is malformed, not a CA, or names no trust domain.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        let parsed = parse(der)?;
        if !parsed.is_ca() {
            return Err(X509Error::Ca("the certificate is not a CA certificate"));
        }
        let trust_domain = match split_spiffe_id(single_uri(&parsed)?) {
            Some((trust_domain, "")) => trust_domain.to_owned(),
            Some(_) | None => return Err(X509Error::Ca("its URI name is not a trust domain")),
        };
        let der = CertificateDer::from(der.to_vec());
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|_| X509Error::Malformed)?
            .to_owned();
        Ok(Self {
            trust_domain,
            spki: parsed.public_key().raw.to_vec(),
            key_id: subject_key_id(&parsed),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            anchor,
            der,
        })
    }

    /// Reads the first certificate of a PEM text; see [`CaCertificate::from_der`].
    ///
    /// # Errors
    /// As [`CaCertificate::from_der`], and when there is no certificate in the text.
    pub fn from_pem(pem: &str) -> Result<Self, X509Error> {
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| X509Error::Malformed)?;
        Self::from_der(&der)
    }

    /// Reads every certificate of a PEM text, at least one; see [`CaCertificate::from_der`].
    ///
    /// # Errors
    /// As [`CaCertificate::from_pem`].
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>, X509Error> {
        let all = CertificateDer::pem_slice_iter(pem.as_bytes());
        let cas = all
            .map(|der| Self::from_der(&der.map_err(|_| X509Error::Malformed)?))
            .collect::<Result<Vec<_>, _>>()?;
        if cas.is_empty() {
            return Err(X509Error::Malformed);
        }
        Ok(cas)
    }

    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate in PEM (RFC 7468).
    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    /// SHA-256 of the DER: what a join token pins.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// Its subject key identifier (RFC 5280 §4.2.1.2), which its leaves name; empty when it has none.
    #[must_use]
    pub fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// Its common name.
    pub(super) fn common_name(&self) -> Result<String, X509Error> {
        let parsed = parse(&self.der)?;
        let name = parsed.subject().iter_common_name().next();
        let name = name.and_then(|name| name.as_str().ok());
        name.map(str::to_owned).ok_or(X509Error::Malformed)
    }

    /// The trust domain it issues for, without `spiffe://`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// End of validity, seconds since 1970, inclusive.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whether `now_unix` (seconds since 1970) lies in its validity. The chain builder does
    /// not ask: to it a trust anchor is a name and a key.
    #[must_use]
    pub fn valid_at(&self, now_unix: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now_unix)
    }

    pub(super) fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub(crate) fn anchor(&self) -> &TrustAnchor<'static> {
        &self.anchor
    }
}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CaCertificate({}, {})",
            self.trust_domain,
            hex(&self.sha256())
        )
    }
}

/// What a leaf certificate of the fleet says. Only its form was checked (X509-SVID §2–§4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its one URI name.
    pub spiffe_id: String,
    /// Serial number.
    pub serial: Serial,
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity, seconds since 1970, inclusive.
    pub not_after: i64,
    /// DER `SubjectPublicKeyInfo`.
    pub spki: Vec<u8>,
    /// Key identifier of the CA that issued it (RFC 5280 §4.2.1.1); empty when it names none.
    pub authority_key_id: Vec<u8>,
    /// The URL of the list that would revoke it (RFC 5280 §4.2.1.13): the first, if it names any.
    pub crl: Option<String>,
}

impl Leaf {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// When it is malformed, has not exactly one URI name, is a CA or may sign certificates,
    /// or has a serial of more than 20 bytes.
    pub fn parse(der: &[u8]) -> Result<Self, X509Error> {
        let parsed = parse(der)?;
        if parsed.is_ca() {
            return Err(X509Error::Profile("it is a CA certificate"));
        }
        check_key_usage(&parsed)?;
        let spiffe_id = single_uri(&parsed)?;
        match split_spiffe_id(spiffe_id) {
            Some((_, path)) if !path.is_empty() => {}
            Some(_) | None => {
                return Err(X509Error::Profile(
                    "its URI name is not a SPIFFE ID with a path",
                ));
            }
        }
        Ok(Self {
            spiffe_id: spiffe_id.to_owned(),
            serial: Serial::new(parsed.raw_serial())?,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            spki: parsed.public_key().raw.to_vec(),
            authority_key_id: authority_key_id(&parsed),
            crl: crl_url(&parsed),
        })
    }
}

/// What the client certificate of a database login says. Only its form was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseLeaf {
    /// Its one common name: the role that it logs in as.
    pub role: String,
    /// Serial number.
    pub serial: Serial,
    /// End of validity, seconds since 1970, inclusive.
    pub not_after: i64,
    /// DER `SubjectPublicKeyInfo`.
    pub spki: Vec<u8>,
}

impl DatabaseLeaf {
    /// Reads one.
    ///
    /// # Errors
    /// When it is malformed, a CA, has not exactly one common name, or has another name beside it.
    pub fn parse(der: &[u8]) -> Result<Self, X509Error> {
        let parsed = parse(der)?;
        if parsed.is_ca() {
            return Err(X509Error::Profile("it is a CA certificate"));
        }
        check_key_usage(&parsed)?;
        if !matches!(parsed.subject_alternative_name(), Ok(None)) {
            return Err(X509Error::Profile("it has alternative names"));
        }
        let mut names = parsed.subject().iter_common_name();
        let role = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().map_err(|_| X509Error::Malformed)?,
            (Some(_), Some(_)) | (None, _) => {
                return Err(X509Error::Profile("it has not exactly one common name"));
            }
        };
        Ok(Self {
            role: role.to_owned(),
            serial: Serial::new(parsed.raw_serial())?,
            not_after: parsed.validity().not_after.timestamp(),
            spki: parsed.public_key().raw.to_vec(),
        })
    }
}

fn crl_url(parsed: &X509Certificate<'_>) -> Option<String> {
    let points =
        parsed
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::CRLDistributionPoints(points) => Some(points),
                _ => None,
            })?;
    let mut names = points
        .points
        .iter()
        .filter_map(|point| match &point.distribution_point {
            Some(DistributionPointName::FullName(names)) => Some(names),
            Some(DistributionPointName::NameRelativeToCRLIssuer(_)) | None => None,
        })
        .flatten();
    names.find_map(|name| match name {
        GeneralName::URI(url) => Some((*url).to_owned()),
        _ => None,
    })
}

/// Certificates in DER that stand one after the other.
///
/// # Errors
/// [`X509Error::Malformed`].
pub fn split_der(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, X509Error> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = X509Certificate::from_der(bytes).map_err(|_| X509Error::Malformed)?;
        let len = bytes.len() - rest.len();
        all.push(bytes.get(..len).ok_or(X509Error::Malformed)?.to_vec());
        bytes = rest;
    }
    Ok(all)
}

/// The end of any certificate's validity, seconds since 1970, inclusive.
///
/// # Errors
/// [`X509Error::Malformed`].
pub fn not_after(der: &[u8]) -> Result<i64, X509Error> {
    parse(der).map(|parsed| parsed.validity().not_after.timestamp())
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, X509Error> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(X509Error::Malformed),
    }
}

/// X509-SVID §2: exactly one URI name.
fn single_uri<'a>(parsed: &'a X509Certificate<'_>) -> Result<&'a str, X509Error> {
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| X509Error::Malformed)?
        .ok_or(X509Error::Profile("it has no subject alternative name"))?;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri),
        (Some(_), Some(_)) | (None, _) => {
            Err(X509Error::Profile("it must have exactly one URI name"))
        }
    }
}

/// X509-SVID §4.3: a leaf signs handshakes, never certificates or CRLs.
fn check_key_usage(parsed: &X509Certificate<'_>) -> Result<(), X509Error> {
    let usage = parsed
        .key_usage()
        .map_err(|_| X509Error::Malformed)?
        .ok_or(X509Error::Profile("it has no key usage"))?
        .value;
    if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(X509Error::Profile("its key usage is not that of a leaf"));
    }
    Ok(())
}

fn subject_key_id(parsed: &X509Certificate<'_>) -> Vec<u8> {
    let found = parsed
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
    found.unwrap_or_default()
}

fn authority_key_id(parsed: &X509Certificate<'_>) -> Vec<u8> {
    let found = parsed
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
            _ => None,
        });
    found.map(|id| id.0.to_vec()).unwrap_or_default()
}
