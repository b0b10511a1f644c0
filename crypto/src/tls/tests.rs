//! Whole handshakes in memory, and the verifiers one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::ClientCertVerified;
use rustls::{
    CertificateError, ClientConnection, DigitallySignedStruct, DistinguishedName, Error,
    HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::p256::SigningKey;
use crate::x509::{Ca, CaCertificate, Leaf, Serial, ServerNames};

/// 2100-01-01: handshakes read the real clock, so the certificates here are good for long.
const END: i64 = 4_102_444_800;
const BROKER: &str = "spiffe://td.test/broker";
const AGENT: &str = "spiffe://td.test/agent/h1";

struct Fleet {
    ca: Ca,
    trust: Arc<TrustStore>,
}

impl Fleet {
    fn new() -> Self {
        let ca = Ca::create("Test CA", "td.test", 1, END).unwrap();
        let trust = Arc::new(TrustStore::new(vec![ca.certificate().clone()]));
        Self { ca, trust }
    }

    fn broker(&self) -> Arc<CertificateSlot> {
        let key = Arc::new(SigningKey::generate().unwrap());
        let names = ServerNames {
            spiffe_id: BROKER,
            dns: &["broker.test"],
            ips: &["127.0.0.1".parse().unwrap()],
        };
        let leaf = self
            .ca
            .issue_server(&names, &key.public_key().spki(), [2; 16], 1, END)
            .unwrap();
        Arc::new(CertificateSlot::new(certified_key(
            &[&leaf, self.ca.certificate().der()],
            key,
        )))
    }

    fn agent(&self) -> Arc<CertificateSlot> {
        self.agent_with([3; 16])
    }

    fn agent_with(&self, serial: [u8; 16]) -> Arc<CertificateSlot> {
        let key = Arc::new(SigningKey::generate().unwrap());
        let leaf = self
            .ca
            .issue_agent(AGENT, &key.public_key().spki(), serial, 1, END)
            .unwrap();
        Arc::new(CertificateSlot::new(certified_key(&[&leaf], key)))
    }

    fn server(&self) -> Arc<ServerConfig> {
        let clients = ClientCerts::optional(Arc::clone(&self.trust), Arc::new(|_| true));
        Arc::new(server_config(self.broker(), Arc::new(clients), &[b"h2"]).unwrap())
    }

    fn client(&self, certificate: Option<Arc<CertificateSlot>>, peer: Peer) -> Arc<ClientConfig> {
        let servers = PinnedCa::new(Arc::clone(&self.trust), peer);
        let certificate = certificate.map(|slot| slot as Arc<dyn ResolvesClientCert>);
        Arc::new(client_config(Arc::new(servers), certificate, &[b"h2"]).unwrap())
    }
}

/// Runs one handshake and one byte each way, so that tickets would have arrived.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), Error> {
    use std::io::{Read, Write};
    let name = Peer::spiffe_id(BROKER).server_name();
    let mut client = ClientConnection::new(Arc::clone(client), name)?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    for round in 0..6 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |bytes| server.read_tls(bytes).unwrap());
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |bytes| client.read_tls(bytes).unwrap());
        client.process_new_packets()?;
        if round == 3 {
            client.writer().write_all(b"x").unwrap();
            server.writer().write_all(b"y").unwrap();
        }
    }
    let mut byte = [0];
    server.reader().read_exact(&mut byte).unwrap();
    client.reader().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"y");
    Ok((client, server))
}

fn feed(mut wire: &[u8], mut read: impl FnMut(&mut dyn std::io::Read) -> usize) {
    while !wire.is_empty() {
        assert!(read(&mut wire) > 0);
    }
}

fn reason<T>(result: Result<T, Error>) -> CertificateError {
    match result {
        Err(Error::InvalidCertificate(reason)) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn mutual_tls_1_3_with_the_preferred_key_exchange() {
    let fleet = Fleet::new();
    let (client, server) = handshake(
        &fleet.client(Some(fleet.agent()), Peer::spiffe_id(BROKER)),
        &fleet.server(),
    )
    .unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(b"h2".as_slice()));
    let chain = server.peer_certificates().unwrap();
    assert_eq!(Leaf::parse(&chain[0]).unwrap().spiffe_id, AGENT);
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, preferred_group());
}

#[cfg(feature = "aws-lc-rs")]
fn preferred_group() -> NamedGroup {
    NamedGroup::X25519MLKEM768
}

#[cfg(not(feature = "aws-lc-rs"))]
fn preferred_group() -> NamedGroup {
    NamedGroup::X25519
}

#[test]
fn key_exchange_preference() {
    let groups: Vec<NamedGroup> = provider()
        .kx_groups
        .iter()
        .map(|group| group.name())
        .collect();
    assert_eq!(groups.first(), Some(&preferred_group()));
    // A hybrid first choice must leave a classical one for peers without it.
    assert!(groups.contains(&NamedGroup::X25519));
    #[cfg(feature = "aws-lc-rs")]
    assert_eq!(name(), "aws-lc-rs");
    #[cfg(not(feature = "aws-lc-rs"))]
    assert_eq!(name(), "ring");
}

#[test]
fn install_is_idempotent() {
    install();
    install();
    let installed = CryptoProvider::get_default().unwrap();
    assert_eq!(installed.kx_groups[0].name(), preferred_group());
}

/// Counts how often the client certificate is really checked.
#[derive(Debug)]
struct Counting {
    inner: ClientCerts,
    calls: AtomicUsize,
}

impl ClientCertVerifier for Counting {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.inner.verify_client_cert(leaf, rest, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn counting(fleet: &Fleet) -> Arc<Counting> {
    let inner = ClientCerts::mandatory(Arc::clone(&fleet.trust), Arc::new(|_| true));
    Arc::new(Counting {
        inner,
        calls: AtomicUsize::new(0),
    })
}

/// Three handshakes with a client that would like to resume.
fn three_handshakes(fleet: &Fleet, server: ServerConfig) -> Vec<HandshakeKind> {
    let mut eager =
        ClientConfig::clone(&fleet.client(Some(fleet.agent()), Peer::spiffe_id(BROKER)));
    eager.resumption = Resumption::default();
    let (eager, server) = (Arc::new(eager), Arc::new(server));
    let kind = |_| {
        handshake(&eager, &server)
            .unwrap()
            .1
            .handshake_kind()
            .unwrap()
    };
    (0..3).map(kind).collect()
}

#[test]
fn client_certificate_is_checked_at_every_handshake() {
    let fleet = Fleet::new();
    let clients = counting(&fleet);
    let server = server_config(fleet.broker(), Arc::clone(&clients) as _, &[b"h2"]).unwrap();
    let kinds = three_handshakes(&fleet, server);
    assert_eq!(clients.calls.load(Ordering::SeqCst), 3, "{kinds:?}");
    assert!(!kinds.contains(&HandshakeKind::Resumed));
}

#[test]
fn rustls_defaults_would_skip_the_check() {
    // Shows that the test above can fail, and why the settings must stay.
    let fleet = Fleet::new();
    let clients = counting(&fleet);
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::clone(&clients) as _)
        .with_cert_resolver(fleet.broker());
    let mut server = server;
    server.alpn_protocols = vec![b"h2".to_vec()];
    let kinds = three_handshakes(&fleet, server);
    assert_eq!(clients.calls.load(Ordering::SeqCst), 1, "{kinds:?}");
    assert!(kinds.contains(&HandshakeKind::Resumed));
}

#[test]
fn a_client_without_certificate_joins_only_where_that_is_allowed() {
    let fleet = Fleet::new();
    let client = fleet.client(None, Peer::spiffe_id(BROKER));
    let (_, server) = handshake(&client, &fleet.server()).unwrap();
    assert!(server.peer_certificates().is_none());
    let mandatory = ClientCerts::mandatory(Arc::clone(&fleet.trust), Arc::new(|_| true));
    let strict = Arc::new(server_config(fleet.broker(), Arc::new(mandatory), &[b"h2"]).unwrap());
    assert!(matches!(
        handshake(&client, &strict),
        Err(Error::NoCertificatesPresented)
    ));
    let empty = fleet.client(
        Some(Arc::new(CertificateSlot::empty())),
        Peer::spiffe_id(BROKER),
    );
    assert!(handshake(&empty, &fleet.server()).is_ok());
}

#[test]
fn a_ban_acts_at_the_next_handshake() {
    let fleet = Fleet::new();
    let banned = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let admit: Admit = {
        let (banned, asked) = (Arc::clone(&banned), Arc::clone(&asked));
        Arc::new(move |leaf: &Leaf| {
            asked
                .lock()
                .unwrap()
                .push((leaf.spiffe_id.clone(), leaf.serial.clone()));
            !banned.load(Ordering::SeqCst)
        })
    };
    let clients = ClientCerts::optional(Arc::clone(&fleet.trust), admit);
    let server = Arc::new(server_config(fleet.broker(), Arc::new(clients), &[b"h2"]).unwrap());
    let client = fleet.client(Some(fleet.agent_with([9; 16])), Peer::spiffe_id(BROKER));
    assert!(handshake(&client, &server).is_ok());
    banned.store(true, Ordering::SeqCst);
    assert_eq!(
        reason(handshake(&client, &server)),
        CertificateError::Revoked
    );
    assert_eq!(
        asked.lock().unwrap()[0],
        (AGENT.to_owned(), Serial::new(&[9; 16]).unwrap())
    );
}

#[test]
fn who_trusts_only_the_ca_before_follows_to_the_one_it_vouches_for() {
    let (old, new) = (Fleet::new(), Fleet::new());
    let key = Arc::new(SigningKey::generate().unwrap());
    let names = ServerNames {
        spiffe_id: BROKER,
        dns: &[],
        ips: &[],
    };
    let leaf = new
        .ca
        .issue_server(&names, &key.public_key().spki(), [2; 16], 1, END)
        .unwrap();
    let bridge = old.ca.cross_sign(&new.ca, [7; 16], 1, END).unwrap();
    let chain: [&[u8]; 3] = [&leaf, new.ca.certificate().der(), &bridge];
    let slot = Arc::new(CertificateSlot::new(certified_key(&chain, key)));
    let both = Arc::new(TrustStore::new(vec![
        old.ca.certificate().clone(),
        new.ca.certificate().clone(),
    ]));
    let clients = ClientCerts::optional(both, Arc::new(|_| true));
    let server = Arc::new(server_config(slot, Arc::new(clients), &[b"h2"]).unwrap());
    for fleet in [&old, &new] {
        let client = fleet.client(Some(fleet.agent()), Peer::spiffe_id(BROKER));
        assert!(handshake(&client, &server).is_ok());
    }
    let stranger = Fleet::new();
    let client = stranger.client(Some(old.agent()), Peer::spiffe_id(BROKER));
    assert!(handshake(&client, &server).is_err());
}

#[test]
fn a_rotated_ca_is_distrusted_at_the_next_handshake() {
    let (old, new) = (Fleet::new(), Fleet::new());
    let server = old.server();
    // The client trusts both, so that only the server's view decides.
    let both = Arc::new(TrustStore::new(vec![
        old.ca.certificate().clone(),
        new.ca.certificate().clone(),
    ]));
    let connect = |certificate: Arc<CertificateSlot>| {
        let servers = PinnedCa::new(Arc::clone(&both), Peer::spiffe_id(BROKER));
        Arc::new(client_config(Arc::new(servers), Some(certificate), &[b"h2"]).unwrap())
    };
    let (old_agent, new_agent) = (connect(old.agent()), connect(new.agent()));
    assert!(handshake(&old_agent, &server).is_ok());
    assert!(handshake(&new_agent, &server).is_err());
    old.trust.replace(vec![
        old.ca.certificate().clone(),
        new.ca.certificate().clone(),
    ]);
    assert!(handshake(&old_agent, &server).is_ok());
    assert!(handshake(&new_agent, &server).is_ok());
    old.trust.replace(vec![new.ca.certificate().clone()]);
    assert!(handshake(&old_agent, &server).is_err());
    assert!(handshake(&new_agent, &server).is_ok());
    old.trust.replace(Vec::new());
    assert!(handshake(&new_agent, &server).is_err());
}

#[test]
fn the_client_reaches_only_the_peer_it_wants() {
    let fleet = Fleet::new();
    let server = fleet.server();
    for good in [
        Peer::spiffe_id(BROKER),
        Peer::host("broker.test").unwrap(),
        Peer::host("127.0.0.1").unwrap(),
    ] {
        assert!(
            handshake(&fleet.client(None, good.clone()), &server).is_ok(),
            "{good:?}"
        );
    }
    for bad in [
        Peer::spiffe_id(AGENT),
        Peer::spiffe_id(""),
        Peer::host("other.test").unwrap(),
        Peer::host("127.0.0.2").unwrap(),
    ] {
        assert!(
            handshake(&fleet.client(None, bad.clone()), &server).is_err(),
            "{bad:?}"
        );
    }
    assert!(matches!(Peer::host("a b"), Err(TlsError::Name(_))));
    // An agent, though of the same CA, is no broker.
    let clients = ClientCerts::optional(Arc::clone(&fleet.trust), Arc::new(|_| true));
    let impostor = Arc::new(server_config(fleet.agent(), Arc::new(clients), &[b"h2"]).unwrap());
    let client = fleet.client(None, Peer::spiffe_id(BROKER));
    assert_eq!(
        reason(handshake(&client, &impostor)),
        CertificateError::NotValidForName
    );
    // Nor is the broker of another CA with the same names.
    assert!(handshake(&client, &Fleet::new().server()).is_err());
}

#[test]
fn a_join_token_pins_the_ca() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let join = |hash: [u8; 32], peer: &str| {
        Arc::new(
            client_config(
                Arc::new(JoinPin::new(hash, Peer::spiffe_id(peer))),
                None,
                &[b"h2"],
            )
            .unwrap(),
        )
    };
    let (client, _) = handshake(&join(fleet.ca.sha256(), BROKER), &fleet.server()).unwrap();
    let chain = client.peer_certificates().unwrap();
    let kept: CaCertificate = pinned_ca(chain, &fleet.ca.sha256()).unwrap();
    assert_eq!(kept.der(), fleet.ca.certificate().der());
    assert!(matches!(
        pinned_ca(chain, &other.ca.sha256()),
        Err(TlsError::NotPinned)
    ));

    assert!(handshake(&join(other.ca.sha256(), BROKER), &fleet.server()).is_err());
    assert!(handshake(&join(fleet.ca.sha256(), AGENT), &fleet.server()).is_err());
    // The right CA sent along by a server whose leaf is of another CA.
    let key = Arc::new(SigningKey::generate().unwrap());
    let names = ServerNames {
        spiffe_id: BROKER,
        dns: &[],
        ips: &[],
    };
    let leaf = other
        .ca
        .issue_server(&names, &key.public_key().spki(), [2; 16], 1, END)
        .unwrap();
    let mixed = CertificateSlot::new(certified_key(&[&leaf, fleet.ca.certificate().der()], key));
    let clients = ClientCerts::optional(Arc::clone(&fleet.trust), Arc::new(|_| true));
    let attacker = Arc::new(server_config(Arc::new(mixed), Arc::new(clients), &[b"h2"]).unwrap());
    assert!(handshake(&join(fleet.ca.sha256(), BROKER), &attacker).is_err());
}

#[test]
fn validity_of_leaf_and_ca_is_checked() {
    let ca = Ca::create("Short CA", "td.test", 1_000, 2_000).unwrap();
    let trust = Arc::new(TrustStore::new(vec![ca.certificate().clone()]));
    let key = SigningKey::generate().unwrap();
    let issue = |from, to| {
        CertificateDer::from(
            ca.issue_agent(AGENT, &key.public_key().spki(), [1; 16], from, to)
                .unwrap(),
        )
    };
    let clients = ClientCerts::mandatory(trust, Arc::new(|_| true));
    let at = |leaf: &CertificateDer<'_>, now| {
        clients
            .verify_client_cert(
                leaf,
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(now)),
            )
            .map(|_| ())
    };
    let leaf = issue(1_100, 1_200);
    assert_eq!(reason(at(&leaf, 1_099)), CertificateError::NotValidYet);
    assert!(at(&leaf, 1_100).is_ok());
    assert!(at(&leaf, 1_200).is_ok());
    assert_eq!(reason(at(&leaf, 1_201)), CertificateError::Expired);
    // Back-dated before its CA: the leaf is valid then, the CA is not.
    assert_eq!(
        reason(at(&issue(900, 1_200), 950)),
        CertificateError::UnknownIssuer
    );
    assert!(at(&issue(900, 1_200), 1_000).is_ok());
}

#[test]
fn a_replaced_certificate_is_used_at_once() {
    let fleet = Fleet::new();
    let (slot, server) = (fleet.agent_with([1; 16]), fleet.server());
    let client = fleet.client(Some(Arc::clone(&slot)), Peer::spiffe_id(BROKER));
    let serial = || {
        let (_, server) = handshake(&client, &server).unwrap();
        Leaf::parse(&server.peer_certificates().unwrap()[0])
            .unwrap()
            .serial
    };
    assert_eq!(serial(), Serial::new(&[1; 16]).unwrap());
    slot.replace(fleet.agent_with([2; 16]).current().unwrap());
    assert_eq!(serial(), Serial::new(&[2; 16]).unwrap());
}
