//! Certificate revocation lists (RFC 5280 §5), each for the certificates that name its URL.
//!
//! A list is only as good as its signature: [`RevocationList::verify`] is the one way to
//! read one, and it must never give the content of a list that the CA did not sign.

use std::collections::HashSet;

use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::ca::since_1970;
use super::{CaCertificate, Leaf, Serial, X509Error};
use crate::p256::{P256Public, verify_der};

/// One revoked certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its number.
    pub serial: Serial,
    /// When, seconds since 1970.
    pub at: i64,
}

/// What a list is to say. Times are seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct CrlContent<'a> {
    /// Its own URL, as it stands in the certificates: a list speaks of no others
    /// (RFC 5280 §5.2.5). `None`: it speaks of all certificates of its CA.
    pub url: Option<&'a str>,
    /// Grows with every list of this URL (RFC 5280 §5.2.3).
    pub number: u64,
    /// When it was made.
    pub this_update: i64,
    /// When verifiers stop to believe it.
    pub next_update: i64,
    /// The revoked ones.
    pub revoked: &'a [Revoked],
}

impl CrlContent<'_> {
    /// `key_id` is what the CA's certificate calls its key: an upstream CA may have another way to
    /// make it than we, and a verifier looks for the list's issuer by it (RFC 5280 §5.2.1).
    pub(super) fn params(
        &self,
        key_id: &[u8],
    ) -> Result<CertificateRevocationListParams, X509Error> {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |seconds: i64| {
            let since = since_1970(seconds).ok_or(X509Error::Validity {
                not_before: self.this_update,
                not_after: self.next_update,
            })?;
            Ok::<_, X509Error>(epoch + since)
        };
        let revoked_certs = self.revoked.iter().map(|one| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(one.serial.as_bytes()),
                revocation_time: at(one.at)?,
                // The task is over; nobody says that the key was lost.
                reason_code: Some(RevocationReason::CessationOfOperation),
                invalidity_date: None,
            })
        });
        Ok(CertificateRevocationListParams {
            this_update: at(self.this_update)?,
            next_update: at(self.next_update)?,
            crl_number: SerialNumber::from(self.number),
            issuing_distribution_point: self.url.map(|url| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint {
                    uris: vec![url.to_owned()],
                },
                scope: Some(CrlScope::UserCertsOnly),
            }),
            revoked_certs: revoked_certs.collect::<Result<_, X509Error>>()?,
            key_identifier_method: match key_id {
                [] => KeyIdMethod::Sha256,
                named => KeyIdMethod::PreSpecified(named.to_vec()),
            },
        })
    }
}

/// A list whose signature was checked.
#[derive(Clone, Debug)]
pub struct RevocationList {
    url: String,
    number: u64,
    this_update: i64,
    next_update: i64,
    serials: HashSet<Serial>,
    issuer_spki: Vec<u8>,
    issuer_key_id: Vec<u8>,
}

impl RevocationList {
    /// Reads a list in DER that one of `cas` signed.
    ///
    /// # Errors
    /// [`X509Error::Crl`] when it is malformed, signed by nobody of them, or does not name
    /// the one URL that it is for.
    pub fn verify(der: &[u8], cas: &[CaCertificate]) -> Result<Self, X509Error> {
        let malformed = || X509Error::Crl("it is no CRL in DER");
        let Ok(([], list)) = CertificateRevocationList::from_der(der) else {
            return Err(malformed());
        };
        let signed = list.tbs_cert_list.as_ref();
        let signature = &list.signature_value.data;
        let is_from = |ca: &&CaCertificate| {
            P256Public::from_spki(ca.spki()).is_ok_and(|key| verify_der(&key, signed, signature))
        };
        let Some(issuer) = cas.iter().find(is_from) else {
            return Err(X509Error::Crl("no trusted CA has signed it"));
        };
        let number = list
            .crl_number()
            .and_then(|number| number.to_u64_digits().first().copied());
        let serials = list
            .iter_revoked_certificates()
            .map(|one| Serial::new(one.raw_serial()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            url: url_of(&list).ok_or(X509Error::Crl("it does not name the one URL it is for"))?,
            number: number.ok_or(X509Error::Crl("it has no number"))?,
            this_update: list.last_update().timestamp(),
            next_update: list.next_update().ok_or_else(malformed)?.timestamp(),
            serials,
            issuer_spki: issuer.spki().to_vec(),
            issuer_key_id: issuer.key_id().to_vec(),
        })
    }

    /// The URL in the certificates that it speaks of.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its number: a smaller one is an older list.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When it was made, seconds since 1970.
    #[must_use]
    pub fn this_update(&self) -> i64 {
        self.this_update
    }

    /// When it is no longer to be believed, seconds since 1970.
    #[must_use]
    pub fn next_update(&self) -> i64 {
        self.next_update
    }

    /// Whether it lists this certificate.
    #[must_use]
    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.serials.contains(serial)
    }

    /// What it lists, in no order.
    pub fn serials(&self) -> impl Iterator<Item = &Serial> {
        self.serials.iter()
    }

    /// Whether the key of `ca` has signed it.
    #[must_use]
    pub fn is_signed_by(&self, ca: &CaCertificate) -> bool {
        self.issuer_spki == ca.spki()
    }

    /// Whether it is of the CA that issued `leaf`, going by what that calls the CA's key
    /// (RFC 5280 §4.2.1.1): a CA says nothing about certificates of another.
    #[must_use]
    pub fn is_of_issuer(&self, leaf: &Leaf) -> bool {
        !self.issuer_key_id.is_empty() && self.issuer_key_id == leaf.authority_key_id
    }

    /// How many it lists.
    #[must_use]
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// Whether it lists none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }
}

fn url_of(list: &CertificateRevocationList<'_>) -> Option<String> {
    list.extensions().iter().find_map(|extension| {
        let ParsedExtension::IssuingDistributionPoint(point) = extension.parsed_extension() else {
            return None;
        };
        match point.distribution_point.as_ref()? {
            DistributionPointName::FullName(names) => match names.as_slice() {
                [GeneralName::URI(url)] => Some((*url).to_owned()),
                _ => None,
            },
            DistributionPointName::NameRelativeToCRLIssuer(_) => None,
        }
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::super::{Ca, Svid};
    use super::*;
    use crate::p256::SigningKey;

    const START: i64 = 1_800_000_000;
    const URL: &str = "http://lists.test/crl/7";

    fn ca() -> Ca {
        Ca::create("Test CA", "td.test", START, START + 86_400 * 365).unwrap()
    }

    fn serial(byte: u8) -> Serial {
        Serial::new(&[byte; 18]).unwrap()
    }

    fn content(revoked: &[Revoked]) -> CrlContent<'_> {
        CrlContent {
            url: Some(URL),
            number: 1_800_000_000_123,
            this_update: START,
            next_update: START + 3_600,
            revoked,
        }
    }

    #[test]
    fn what_was_signed_is_read_back() {
        let ca = ca();
        let revoked = [
            Revoked {
                serial: serial(1),
                at: START - 5,
            },
            Revoked {
                serial: serial(0xff),
                at: START,
            },
        ];
        let der = ca.sign_crl(&content(&revoked)).unwrap();
        let list = RevocationList::verify(&der, &[ca.certificate().clone()]).unwrap();
        assert_eq!((list.url(), list.number()), (URL, 1_800_000_000_123));
        assert_eq!(
            (list.this_update(), list.next_update()),
            (START, START + 3_600)
        );
        assert!(list.is_revoked(&serial(1)) && list.is_revoked(&serial(0xff)));
        assert!(!list.is_revoked(&serial(2)) && list.len() == 2 && !list.is_empty());
    }

    #[test]
    fn the_key_is_called_as_in_the_certificate_of_the_ca() {
        let key = SigningKey::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![rcgen::SanType::URI(
            "spiffe://td.test".to_owned().try_into().unwrap(),
        )];
        params.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20]);
        let certificate = params.self_signed(&key).unwrap();
        let pem = super::super::pem("CERTIFICATE", certificate.der());
        let der = Ca::from_parts(&pem, key).unwrap();
        let der = der.sign_crl(&content(&[])).unwrap();
        let (_, list) = CertificateRevocationList::from_der(&der).unwrap();
        let key_id =
            list.extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
                    _ => None,
                });
        assert_eq!(key_id.unwrap().0, [7; 20]);
    }

    #[test]
    fn a_list_that_nobody_trusted_signed_is_refused() {
        let (ca, other) = (ca(), ca());
        let der = ca.sign_crl(&content(&[])).unwrap();
        let refused = RevocationList::verify(&der, &[other.certificate().clone()]);
        assert!(matches!(
            refused,
            Err(X509Error::Crl("no trusted CA has signed it"))
        ));
        for at in [20, der.len() / 2, der.len() - 3] {
            let mut changed = der.clone();
            changed[at] ^= 1;
            assert!(
                RevocationList::verify(&changed, &[ca.certificate().clone()]).is_err(),
                "{at}"
            );
        }
        let empty = RevocationList::verify(&der, &[ca.certificate().clone()]).unwrap();
        assert!(empty.is_empty());
    }

    #[test]
    fn a_list_of_everything_is_for_no_url() {
        let ca = ca();
        let whole = CrlContent {
            url: None,
            ..content(&[])
        };
        let der = ca.sign_crl(&whole).unwrap();
        let refused = RevocationList::verify(&der, &[ca.certificate().clone()]);
        assert!(matches!(refused, Err(X509Error::Crl(why)) if why.contains("one URL")));
    }

    #[test]
    fn a_certificate_names_its_list_and_webpki_refuses_it_once_listed() {
        let (ca, key) = (ca(), SigningKey::generate().unwrap());
        let svid = Svid {
            spiffe_id: "spiffe://td.test/orders/web",
            dns: &["orders.internal".to_owned()],
            crl: URL,
            serial: &serial(3),
            not_before: START,
            not_after: START + 600,
        };
        let der = ca.issue_svid(&svid, &key.public_key().spki()).unwrap();
        let leaf = Leaf::parse(&der).unwrap();
        assert_eq!(
            (
                leaf.serial.clone(),
                leaf.spiffe_id.as_str(),
                leaf.crl.as_deref()
            ),
            (serial(3), svid.spiffe_id, Some(URL))
        );
        for (issuer, is_own) in [(&ca, true), (&super::tests::ca(), false)] {
            let der = issuer.sign_crl(&content(&[])).unwrap();
            let list = RevocationList::verify(&der, &[issuer.certificate().clone()]).unwrap();
            assert!(list.is_signed_by(issuer.certificate()));
            assert_eq!(list.is_signed_by(ca.certificate()), is_own);
            assert_eq!(list.is_of_issuer(&leaf), is_own);
        }
        let revoked = [Revoked {
            serial: serial(3),
            at: START,
        }];
        for (revoked, refused) in [(&revoked[..0], false), (&revoked[..], true)] {
            let crl = ca.sign_crl(&content(revoked)).unwrap();
            let crl = webpki::OwnedCertRevocationList::from_der(&crl)
                .unwrap()
                .into();
            let crls = [&crl];
            let options = webpki::RevocationOptionsBuilder::new(&crls)
                .unwrap()
                .build();
            let certificate = rustls_pki_types::CertificateDer::from(der.clone());
            let leaf = webpki::EndEntityCert::try_from(&certificate).unwrap();
            let anchors = [ca.certificate().anchor().clone()];
            let outcome = leaf.verify_for_usage(
                crate::tls::provider().signature_verification_algorithms.all,
                &anchors,
                &[],
                rustls_pki_types::UnixTime::since_unix_epoch(since_1970(START + 5).unwrap()),
                webpki::KeyUsage::client_auth(),
                Some(options),
                None,
            );
            match outcome.err() {
                Some(webpki::Error::CertRevoked) => assert!(refused),
                Some(other) => panic!("{other:?}"),
                None => assert!(!refused),
            }
        }
    }
}
