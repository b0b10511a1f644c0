//! The issuing CA.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CrlDistributionPoint,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};

use super::crl::CrlContent;
use super::{CaCertificate, Serial, X509Error, is_trust_domain, split_spiffe_id};
use crate::p256::{P256Public, SigningKey};
use crate::random;

/// 9999-12-31T23:59:59Z, the last time X.509 can write (RFC 5280 §4.1.2.5).
const TIME_MAX: i64 = 253_402_300_799;

/// A P-256 certificate authority: certificate and kept key.
pub struct Ca {
    certificate: CaCertificate,
    issuer: Issuer<'static, SigningKey>,
}

/// What a workload's certificate says: an X509-SVID with DNS names that policy gives.
#[derive(Clone, Copy, Debug)]
pub struct Svid<'a> {
    /// Its SPIFFE ID, of the CA's trust domain.
    pub spiffe_id: &'a str,
    /// DNS names, from policy only.
    pub dns: &'a [String],
    /// Where the list that would revoke it is published (RFC 5280 §4.2.1.13).
    pub crl: &'a str,
    /// Its number.
    pub serial: &'a Serial,
    /// Start, seconds since 1970.
    pub not_before: i64,
    /// End, seconds since 1970.
    pub not_after: i64,
}

/// What the client certificate of a database login says: the role's name as its common name, which
/// is what PostgreSQL compares, and nothing that any other verifier looks for.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseClient<'a> {
    /// The role: `[a-z0-9_]`, at most 63 bytes.
    pub role: &'a str,
    /// Its number.
    pub serial: &'a Serial,
    /// Start, seconds since 1970.
    pub not_before: i64,
    /// End, seconds since 1970.
    pub not_after: i64,
}

/// The names a server certificate carries.
#[derive(Clone, Copy, Debug)]
pub struct ServerNames<'a> {
    /// Its SPIFFE ID, of the CA's trust domain.
    pub spiffe_id: &'a str,
    /// DNS names clients use.
    pub dns: &'a [&'a str],
    /// Addresses clients use.
    pub ips: &'a [IpAddr],
}

impl Ca {
    /// A new self-signed CA with a new key for the names of `trust_domain`, which issues
    /// leaves only. Times in seconds since 1970.
    ///
    /// # Errors
    /// When a name or the validity cannot stand in a certificate.
    pub fn create(
        common_name: &str,
        trust_domain: &str,
        not_before_unix: i64,
        not_after_unix: i64,
    ) -> Result<Self, X509Error> {
        let key = SigningKey::generate()?;
        let times = (not_before_unix, not_after_unix);
        Self::create_with(key, common_name, trust_domain, times)
    }

    /// The same with this key, by which it may be named.
    ///
    /// # Errors
    /// As [`Ca::create`].
    pub fn create_with(
        key: SigningKey,
        common_name: &str,
        trust_domain: &str,
        (not_before_unix, not_after_unix): (i64, i64),
    ) -> Result<Self, X509Error> {
        if !is_trust_domain(trust_domain) {
            return Err(X509Error::Name("the trust domain"));
        }
        let mut serial: [u8; 16] = random::bytes()?;
        if let Some(first) = serial.first_mut() {
            *first = (*first & 0x7f) | 0x40;
        }
        let mut params = params(&serial, not_before_unix, not_after_unix)?;
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        let certificate = CaCertificate::from_der(params.self_signed(&key)?.der())?;
        Self::assemble(certificate, key)
    }

    /// A stored CA.
    ///
    /// # Errors
    /// When the certificate is not a CA's or `key` is not its key.
    pub fn from_parts(certificate_pem: &str, key: SigningKey) -> Result<Self, X509Error> {
        let certificate = CaCertificate::from_pem(certificate_pem)?;
        if certificate.spki() != key.public_key().spki() {
            return Err(X509Error::Ca(
                "the private key belongs to another certificate",
            ));
        }
        Self::assemble(certificate, key)
    }

    fn assemble(certificate: CaCertificate, key: SigningKey) -> Result<Self, X509Error> {
        let issuer = Issuer::from_ca_cert_der(&certificate.der().into(), key)?;
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// The public part.
    #[must_use]
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// The private key, to be sealed and stored.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        self.issuer.key()
    }

    /// SHA-256 of the certificate's DER: what a join token pins.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.certificate.sha256()
    }

    /// A client and server certificate (X509-SVID) whose only name is `spiffe_id`; DER.
    /// The public key is a P-256 `SubjectPublicKeyInfo` in DER, times are seconds since 1970.
    ///
    /// # Errors
    /// When an argument cannot stand in a certificate of this CA, or it would outlive the CA.
    pub fn issue_agent(
        &self,
        spiffe_id: &str,
        public_key_spki_der: &[u8],
        serial: [u8; 16],
        not_before_unix: i64,
        not_after_unix: i64,
    ) -> Result<Vec<u8>, X509Error> {
        let names = vec![self.subject(spiffe_id)?];
        let params = params(&serial, not_before_unix, not_after_unix)?;
        self.issue(params, names, public_key_spki_der, not_after_unix)
    }

    /// A workload's X509-SVID; DER. The public key is a P-256 `SubjectPublicKeyInfo` in DER.
    ///
    /// # Errors
    /// As [`Ca::issue_agent`].
    pub fn issue_svid(
        &self,
        svid: &Svid<'_>,
        public_key_spki_der: &[u8],
    ) -> Result<Vec<u8>, X509Error> {
        let mut names = vec![self.subject(svid.spiffe_id)?];
        for name in svid.dns {
            names.push(dns(name)?);
        }
        let mut params = params(svid.serial.as_bytes(), svid.not_before, svid.not_after)?;
        params.crl_distribution_points = vec![CrlDistributionPoint {
            uris: vec![svid.crl.to_owned()],
        }];
        self.issue(params, names, public_key_spki_der, svid.not_after)
    }

    /// The client certificate of a database login; DER. It has no alternative name, so it is no
    /// X509-SVID, and no server's certificate. The public key is a P-256 `SubjectPublicKeyInfo` in DER.
    ///
    /// # Errors
    /// When an argument cannot stand in such a certificate, or it would outlive the CA.
    pub fn issue_database_client(
        &self,
        client: &DatabaseClient<'_>,
        public_key_spki_der: &[u8],
    ) -> Result<Vec<u8>, X509Error> {
        if !is_database_role(client.role) {
            return Err(X509Error::Name("the role"));
        }
        let mut params = params(
            client.serial.as_bytes(),
            client.not_before,
            client.not_after,
        )?;
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, client.role);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign_leaf(params, public_key_spki_der, client.not_after)
    }

    /// Signs a revocation list; DER (RFC 5280 §5).
    ///
    /// # Errors
    /// When a time or the URL cannot stand in a list.
    pub fn sign_crl(&self, content: &CrlContent<'_>) -> Result<Vec<u8>, X509Error> {
        let params = content.params(self.certificate.key_id())?;
        Ok(params.signed_by(&self.issuer)?.der().to_vec())
    }

    /// A certificate like [`Ca::issue_agent`]'s that also has DNS names and addresses.
    ///
    /// # Errors
    /// As [`Ca::issue_agent`].
    pub fn issue_server(
        &self,
        names: &ServerNames<'_>,
        public_key_spki_der: &[u8],
        serial: [u8; 16],
        not_before_unix: i64,
        not_after_unix: i64,
    ) -> Result<Vec<u8>, X509Error> {
        let mut san = vec![self.subject(names.spiffe_id)?];
        for name in names.dns {
            san.push(dns(name)?);
        }
        san.extend(names.ips.iter().copied().map(SanType::IpAddress));
        let params = params(&serial, not_before_unix, not_after_unix)?;
        self.issue(params, san, public_key_spki_der, not_after_unix)
    }

    /// Vouches for another CA of the same trust domain: whoever trusts this one, and nothing else yet,
    /// can verify what that one issued. DER of the certificate to send along.
    ///
    /// # Errors
    /// When the trust domains differ, the serial is zero, or the validity is empty or outlives this CA.
    pub fn cross_sign(
        &self,
        other: &Self,
        serial: [u8; 16],
        not_before_unix: i64,
        not_after_unix: i64,
    ) -> Result<Vec<u8>, X509Error> {
        let ours = &self.certificate;
        if other.certificate.trust_domain() != ours.trust_domain() {
            return Err(X509Error::Name("the other CA"));
        }
        if not_after_unix > ours.not_after() {
            return Err(X509Error::OutlivesCa {
                asked: not_after_unix,
                ca: ours.not_after(),
            });
        }
        let mut params = params(&serial, not_before_unix, not_after_unix)?;
        params
            .distinguished_name
            .push(DnType::CommonName, other.certificate.common_name()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{}", ours.trust_domain()))?];
        params.use_authority_key_identifier_extension = true;
        let public = other.key().public_key();
        Ok(params.signed_by(public, &self.issuer)?.der().to_vec())
    }

    /// A SPIFFE ID with a path in this CA's trust domain, and no other.
    fn subject(&self, spiffe_id: &str) -> Result<SanType, X509Error> {
        match split_spiffe_id(spiffe_id) {
            Some((trust_domain, path))
                if trust_domain == self.certificate.trust_domain() && !path.is_empty() =>
            {
                uri(spiffe_id)
            }
            Some(_) | None => Err(X509Error::Name("the SPIFFE ID")),
        }
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        names: Vec<SanType>,
        spki_der: &[u8],
        not_after_unix: i64,
    ) -> Result<Vec<u8>, X509Error> {
        params.subject_alt_names = names;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        self.sign_leaf(params, spki_der, not_after_unix)
    }

    /// What every leaf has; its names and what it is for are given.
    fn sign_leaf(
        &self,
        mut params: CertificateParams,
        spki_der: &[u8],
        not_after_unix: i64,
    ) -> Result<Vec<u8>, X509Error> {
        let ca_end = self.certificate.not_after();
        if not_after_unix > ca_end {
            return Err(X509Error::OutlivesCa {
                asked: not_after_unix,
                ca: ca_end,
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let public = P256Public::from_spki(spki_der)?;
        Ok(params.signed_by(&public, &self.issuer)?.der().to_vec())
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ca").field(&self.certificate).finish()
    }
}

/// A PKCS#10 request (RFC 2986, DER) that proves possession of `key` and names nothing:
/// every name comes from policy.
///
/// # Errors
/// When signing fails.
pub fn csr(key: &SigningKey) -> Result<Vec<u8>, X509Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// A PKCS#10 request (RFC 2986, PEM) for the certificate of a CA of `trust_domain` with this key:
/// what an upstream CA is asked to sign. It asks for what [`super::check_chain`] demands.
///
/// # Errors
/// When a name cannot stand in a certificate, or signing fails.
pub fn ca_csr(
    key: &SigningKey,
    common_name: &str,
    trust_domain: &str,
) -> Result<String, X509Error> {
    if !is_trust_domain(trust_domain) {
        return Err(X509Error::Name("the trust domain"));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    let request = params.serialize_request(key)?;
    Ok(super::pem("CERTIFICATE REQUEST", request.der()))
}

/// Checks the proof of possession of a PKCS#10 request in DER and gives its key. Whatever
/// names and extensions it asks for are ignored.
///
/// # Errors
/// [`X509Error::Csr`] when it is malformed, not P-256, or not signed by its own key.
pub fn verify_csr(csr_der: &[u8]) -> Result<P256Public, X509Error> {
    let request =
        CertificateSigningRequestParams::from_der(&csr_der.into()).map_err(|_| X509Error::Csr)?;
    P256Public::from_point(request.public_key.der_bytes()).map_err(|_| X509Error::Csr)
}

fn params(serial: &[u8], not_before: i64, not_after: i64) -> Result<CertificateParams, X509Error> {
    let serial = Serial::new(serial)?;
    let refused = || X509Error::Validity {
        not_before,
        not_after,
    };
    if not_before >= not_after {
        return Err(refused());
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + since_1970(not_before).ok_or_else(refused)?;
    params.not_after = epoch + since_1970(not_after).ok_or_else(refused)?;
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

/// Cannot overflow when it is added to 1970: bounded by the year 9999.
pub(super) fn since_1970(seconds: i64) -> Option<Duration> {
    let seconds = u64::try_from(seconds.min(TIME_MAX + 1)).ok()?;
    (seconds <= TIME_MAX.unsigned_abs()).then(|| Duration::from_secs(seconds))
}

/// What the broker calls a role that it made, and nothing that could be read as more than one name.
fn is_database_role(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=63).contains(&name.len()) && name.bytes().all(allowed)
}

fn uri(id: &str) -> Result<SanType, X509Error> {
    id.try_into()
        .map(SanType::URI)
        .map_err(|_| X509Error::Name("the SPIFFE ID"))
}

fn dns(name: &str) -> Result<SanType, X509Error> {
    rustls_pki_types::DnsName::try_from(name).map_err(|_| X509Error::Name("a DNS name"))?;
    name.try_into()
        .map(SanType::DnsName)
        .map_err(|_| X509Error::Name("a DNS name"))
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
    use crate::Secret;
    use crate::x509::Leaf;
    use x509_parser::prelude::{FromDer, X509Certificate};

    const START: i64 = 1_800_000_000;
    const END: i64 = START + 365 * 86_400;
    const AGENT: &str = "spiffe://td.test/agent/host-1";

    fn ca() -> Ca {
        Ca::create("Test CA", "td.test", START, END).unwrap()
    }

    fn key() -> SigningKey {
        SigningKey::generate().unwrap()
    }

    #[test]
    fn agent_certificate_follows_the_spiffe_profile() {
        let (ca, key) = (ca(), key());
        let der = ca
            .issue_agent(
                AGENT,
                &key.public_key().spki(),
                [0xab; 16],
                START - 30,
                START + 86_400,
            )
            .unwrap();
        let leaf = Leaf::parse(&der).unwrap();
        assert_eq!(leaf.spiffe_id, AGENT);
        let serial = Serial::new(&[0xab; 16]).unwrap();
        assert_eq!(leaf.serial, serial);
        assert_eq!(
            (leaf.not_before, leaf.not_after),
            (START - 30, START + 86_400)
        );
        assert_eq!(leaf.spki, key.public_key().spki());
        let leaf = Leaf::parse(&der).unwrap();
        assert_eq!((leaf.spiffe_id.as_str(), leaf.serial), (AGENT, serial));
        assert_eq!(leaf.not_after, START + 86_400);
        assert_eq!(leaf.spki, key.public_key().spki());

        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject().iter().count(), 0);
        let san = parsed.subject_alternative_name().unwrap().unwrap();
        // RFC 5280 §4.2.1.6: critical when the subject is empty.
        assert!(san.critical);
        assert_eq!(san.value.general_names.len(), 1);
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.flags == 1);
        let extended = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && extended.server_auth && !extended.any);
        assert!(
            parsed
                .verify_signature(Some(
                    X509Certificate::from_der(ca.certificate().der())
                        .unwrap()
                        .1
                        .public_key()
                ))
                .is_ok()
        );
    }

    #[test]
    fn the_certificate_of_a_database_login_names_its_role_and_is_no_svid() {
        let (ca, key) = (ca(), key());
        let serial = Serial::new(&[7; 16]).unwrap();
        let client = |role| DatabaseClient {
            role,
            serial: &serial,
            not_before: START,
            not_after: START + 300,
        };
        let spki = key.public_key().spki();
        let role = "eph_orders_ab3c5d_0123456789abcdefghjkmn7kq2";
        let der = ca.issue_database_client(&client(role), &spki).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let names: Vec<_> = parsed.subject().iter_common_name().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].as_str().unwrap(), role);
        assert_eq!(parsed.subject().iter().count(), 1);
        assert!(parsed.subject_alternative_name().unwrap().is_none());
        let extended = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && !extended.server_auth && !extended.any);
        assert!(!parsed.is_ca());
        assert!(matches!(Leaf::parse(&der), Err(X509Error::Profile(_))));
        let read = super::super::DatabaseLeaf::parse(&der).unwrap();
        assert_eq!((read.role.as_str(), &read.serial), (role, &serial));
        assert_eq!((read.not_after, read.spki), (START + 300, spki.clone()));
        let long = "a".repeat(64);
        for bad in ["", "Orders", "a b", "a,CN=b", "postgres\0", &long] {
            let refused = ca.issue_database_client(&client(bad), &spki);
            assert!(matches!(refused, Err(X509Error::Name(_))), "{bad}");
        }
        let late = DatabaseClient {
            not_after: END + 1,
            ..client(role)
        };
        let refused = ca.issue_database_client(&late, &spki);
        assert!(matches!(refused, Err(X509Error::OutlivesCa { .. })));
        // A workload's certificate is nobody's login: it has no common name.
        let svid = ca
            .issue_agent(AGENT, &spki, [1; 16], START, START + 300)
            .unwrap();
        assert!(super::super::DatabaseLeaf::parse(&svid).is_err());
    }

    #[test]
    fn serials_keep_their_bytes() {
        let (ca, spki) = (ca(), key().public_key().spki());
        let mut one = [0; 16];
        one[15] = 1;
        let mut gap = [0xff; 16];
        gap[..2].copy_from_slice(&[0, 0]);
        for serial in [one, gap, [0xff; 16], [0x01; 16]] {
            let der = ca.issue_agent(AGENT, &spki, serial, START, END).unwrap();
            assert_eq!(
                Leaf::parse(&der).unwrap().serial,
                Serial::new(&serial).unwrap()
            );
        }
        assert!(matches!(
            ca.issue_agent(AGENT, &spki, [0; 16], START, END),
            Err(X509Error::Serial)
        ));
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let (ca, spki) = (ca(), key().public_key().spki());
        assert!(ca.issue_agent(AGENT, &spki, [1; 16], START, END).is_ok());
        let names = ServerNames {
            spiffe_id: "spiffe://td.test/broker",
            dns: &[],
            ips: &[],
        };
        let results = [
            ca.issue_agent(AGENT, &spki, [1; 16], START, END + 1),
            ca.issue_server(&names, &spki, [1; 16], START, END + 1),
        ];
        for result in results {
            assert!(
                matches!(result, Err(X509Error::OutlivesCa { asked, ca: END }) if asked == END + 1)
            );
        }
    }

    #[test]
    fn empty_or_impossible_validity_is_refused() {
        for (from, to) in [
            (START, START),
            (START + 1, START),
            (-1, START),
            (START, i64::MAX),
            (i64::MIN, START),
        ] {
            assert!(
                matches!(
                    Ca::create("x", "td.test", from, to),
                    Err(X509Error::Validity { .. })
                ),
                "{from} {to}"
            );
        }
        assert_eq!(
            Ca::create("x", "td.test", 0, TIME_MAX)
                .unwrap()
                .certificate()
                .not_after(),
            TIME_MAX
        );
    }

    #[test]
    fn names_outside_the_trust_domain_are_refused() {
        let (ca, spki) = (ca(), key().public_key().spki());
        for id in [
            "spiffe://other/agent/h",
            "spiffe://td.test",
            "spiffe://td.test/",
            "agent/h",
            "spiffe://td.test.evil/a",
        ] {
            assert!(
                matches!(
                    ca.issue_agent(id, &spki, [1; 16], START, END),
                    Err(X509Error::Name(_))
                ),
                "{id}"
            );
        }
        for name in ["", "a b", "*.x y", "é"] {
            let names = ServerNames {
                spiffe_id: "spiffe://td.test/broker",
                dns: &[name],
                ips: &[],
            };
            assert!(
                ca.issue_server(&names, &spki, [1; 16], START, END).is_err(),
                "{name}"
            );
        }
        assert!(Ca::create("x", "TD", START, END).is_err());
        assert!(matches!(
            ca.issue_agent(AGENT, b"nokey", [1; 16], START, END),
            Err(X509Error::Key(_))
        ));
    }

    #[test]
    fn ca_survives_storage() {
        let ca = ca();
        let pem = ca.certificate().pem();
        let stored = Secret::new(ca.key().to_pkcs8().expose().to_vec());
        let again = Ca::from_parts(&pem, SigningKey::from_pkcs8(&stored).unwrap()).unwrap();
        assert_eq!(again.sha256(), ca.sha256());
        assert_eq!(again.certificate().trust_domain(), "td.test");
        assert!(matches!(Ca::from_parts(&pem, key()), Err(X509Error::Ca(_))));
        assert!(matches!(
            Ca::from_parts("no pem", key()),
            Err(X509Error::Malformed)
        ));
        let key = key();
        let der = again
            .issue_agent(AGENT, &key.public_key().spki(), [1; 16], START, END)
            .unwrap();
        assert!(CaCertificate::from_der(&der).is_err());
        assert!(Leaf::parse(ca.certificate().der()).is_err());
    }

    #[test]
    fn ca_is_valid_only_in_its_time() {
        let ca = ca();
        for (at, valid) in [
            (START - 1, false),
            (START, true),
            (END, true),
            (END + 1, false),
        ] {
            assert_eq!(ca.certificate().valid_at(at), valid, "{at}");
        }
    }

    #[test]
    fn csr_proves_possession() {
        let key = key();
        let mut request = csr(&key).unwrap();
        assert_eq!(&verify_csr(&request).unwrap(), key.public_key());
        // Another key put in place of the signer's.
        let at = request
            .windows(65)
            .position(|w| w == key.public_key().point())
            .unwrap();
        let other = self::key();
        request[at..at + 65].copy_from_slice(other.public_key().point());
        assert!(matches!(verify_csr(&request), Err(X509Error::Csr)));
        assert!(matches!(verify_csr(b""), Err(X509Error::Csr)));
    }
}
