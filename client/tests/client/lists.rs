//! What lists may say, who may sign them, and what holds while nobody can be asked.

use std::sync::Arc;
use std::time::Duration;

use ephor_client::{Closed, Connection, Connector, Identity, Listener, Peers};
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Ca, CaCertificate};
use rustls::AlertDescription;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::{Fake, POLL, Pair, alert, connect, now, root, serial, until};

const REVOKED: Option<AlertDescription> = Some(AlertDescription::CertificateRevoked);
/// What rustls tells a peer whose status it could not learn.
const UNKNOWN: Option<AlertDescription> = Some(AlertDescription::UnknownCA);

#[tokio::test]
async fn a_listed_peer_is_refused_and_its_connections_are_closed_on_both_sides() {
    let mut fake = Fake::start().await;
    let pair = Pair::start(&mut fake).await;
    let (mut served, mut called) = pair.connect().await.unwrap();
    assert_eq!(served.peer().id.as_str(), "spiffe://td.test/web");
    assert_eq!(served.peer().serial, pair.client.status().serial);
    assert_eq!(called.peer().id.as_str(), "spiffe://td.test/svc");
    let (mut idle, _other) = pair.connect().await.unwrap();

    fake.publish(0, &[serial(&pair.client.status().serial)]);
    let end = served.read(&mut [0]).await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionAborted);
    assert_eq!(served.closed(), Some(Closed::Revoked));
    // The other side hears of it although nobody reads or writes on this one.
    assert!(called.read(&mut [0]).await.is_err() && called.closed().is_none());
    until("the idle one", || idle.closed() == Some(Closed::Revoked)).await;
    assert!(idle.read(&mut [0]).await.is_err());
    assert_eq!(pair.alert().await, REVOKED);
    drop((served, idle));
    assert_eq!(pair.server.connections(), 0);
}

#[tokio::test]
async fn a_client_refuses_a_listed_server_and_hangs_up() {
    let mut fake = Fake::start().await;
    let pair = Pair::start(&mut fake).await;
    let (_served, called) = pair.connect().await.unwrap();
    fake.publish(0, &[serial(&called.peer().serial)]);
    until("the end", || called.closed() == Some(Closed::Revoked)).await;
    fake.seen().await;
    let (refused, _) = pair.connect().await.unwrap_err();
    assert_eq!(alert(&refused), REVOKED);
}

#[tokio::test]
async fn a_certificate_of_a_list_that_nobody_has_seen_is_refused_until_it_is() {
    let mut fake = Fake::start().await;
    fake.state().list = 7;
    let pair = Pair::start(&mut fake).await;
    assert_eq!(pair.alert().await, UNKNOWN);
    fake.publish(7, &[]);
    fake.seen().await;
    pair.connect().await.unwrap();
}

#[tokio::test]
async fn forged_older_foreign_and_broken_lists_change_nothing() {
    let mut fake = Fake::start().await;
    let pair = Pair::start(&mut fake).await;
    let web = serial(&pair.client.status().serial);
    let (ca, before) = {
        let state = fake.state();
        (Arc::clone(&state.ca), state.lists[&0].1.clone())
    };
    let forged = fake.signed(&root(), 0, 1_000, std::slice::from_ref(&web));
    fake.publish_body(0, forged);
    fake.seen().await;
    pair.connect().await.unwrap();

    fake.publish(0, &[web]);
    fake.seen().await;
    assert_eq!(pair.alert().await, REVOKED);
    let other_number = fake.signed(&ca, 1, 9_999, &[]);
    let forged = fake.signed(&root(), 0, 9_999, &[]);
    for (what, body) in [
        ("played back", before.to_vec()),
        ("of another URL", other_number),
        ("signed by another CA", forged),
        ("no list", b"it is fine".to_vec()),
    ] {
        fake.publish_body(0, body);
        fake.seen().await;
        assert_eq!(pair.alert().await, REVOKED, "{what}");
    }
}

#[tokio::test]
async fn a_list_past_its_next_update_admits_nobody() {
    let mut fake = Fake::start().await;
    let ca = Arc::clone(&fake.state().ca);
    let ended = i64::try_from(now()).unwrap() - 5;
    let old = fake.signed_until(&ca, 0, 10, &[], ended);
    fake.publish_body(0, old);
    let pair = Pair::start(&mut fake).await;
    // Both sides know it, and the client is the first to see a certificate.
    let (_, refused) = pair.connect().await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("evocation list"), "{text}");
    fake.publish(0, &[]);
    fake.seen().await;
    pair.connect().await.unwrap();
}

#[tokio::test]
async fn an_index_sends_nobody_elsewhere() {
    let mut fake = Fake::start().await;
    let spy = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let there = spy.local_addr().unwrap();
    let own = fake.url(0);
    fake.state().elsewhere = vec![
        format!("http://{there}/crl/0"),
        own.replace("/crl/0", "@evil/crl/0"),
        own.replace("/crl/0", "/crl/../secret"),
        own.replace("/crl/0", "/other/0"),
        own.replace("http:", "https:"),
    ];
    let pair = Pair::start(&mut fake).await;
    fake.seen().await;
    pair.connect().await.unwrap();
    let asked = fake.state().asked.clone();
    assert!(asked.iter().all(|path| path == "/crl" || path == "/crl/0"));
    let visited = tokio::time::timeout(POLL, spy.accept()).await;
    assert!(visited.is_err(), "{visited:?}");
}

#[tokio::test]
async fn unchanged_lists_are_fetched_once() {
    let mut fake = Fake::start().await;
    let _identity = fake.builder("svc").start().await.unwrap();
    fake.seen().await;
    let fetched = |fake: &Fake| {
        let state = fake.state();
        state.asked.iter().filter(|path| *path == "/crl/0").count()
    };
    assert_eq!(fetched(&fake), 1);
    fake.publish(0, &[]);
    fake.seen().await;
    assert_eq!(fetched(&fake), 2);
}

#[tokio::test]
async fn an_outage_disturbs_nobody_but_those_who_want_fresh_lists() {
    let mut fake = Fake::start().await;
    let pair = Pair::start(&mut fake).await;
    let most = Duration::from_millis(300);
    let (server, client) = (fake.builder("svc").max_staleness(most), fake.builder("web"));
    let strict = Pair::of(server, client).await;
    let (mut served, mut called) = pair.connect().await.unwrap();
    strict.connect().await.unwrap();
    fake.take_lists_away().await;
    let is_stale = || strict.server.lists_seen().is_some_and(|seen| seen > most);
    until("too stale", is_stale).await;
    assert_eq!(strict.alert().await, UNKNOWN);
    pair.connect().await.unwrap();
    served.write_all(b"y").await.unwrap();
    served.flush().await.unwrap();
    called.read_exact(&mut [0]).await.unwrap();
    fake.bring_lists_back().await;
    fake.seen().await;
    fake.publish(0, &[serial(&pair.client.status().serial)]);
    until("the end", || served.closed() == Some(Closed::Revoked)).await;
}

#[tokio::test]
async fn who_starts_without_lists_refuses_until_they_come() {
    let mut fake = Fake::start().await;
    fake.take_lists_away().await;
    let pair = Pair::start(&mut fake).await;
    assert_eq!(pair.alert().await, UNKNOWN);
    fake.bring_lists_back().await;
    fake.seen().await;
    pair.connect().await.unwrap();
}

/// A CA of ours below a root that somebody else keeps.
fn below_a_root(name: &str) -> (Ca, CaCertificate) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyUsagePurpose, SanType};
    let params = |name: &str, path: u8| {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI("spiffe://td.test".try_into().unwrap())];
        params
    };
    let (root_key, key) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    let root = params(&format!("{name} root"), 1)
        .self_signed(&root_key)
        .unwrap();
    let issuer = Issuer::new(params(&format!("{name} root"), 1), root_key);
    let between = params(name, 0).signed_by(&key, &issuer).unwrap();
    let between = CaCertificate::from_der(between.der()).unwrap();
    let root = CaCertificate::from_der(root.der()).unwrap();
    (Ca::from_parts(&between.pem(), key).unwrap(), root)
}

#[tokio::test]
async fn a_ca_below_the_trusted_root_signs_its_lists_and_a_peers_chain_brings_another_one() {
    let (ca, root) = below_a_root("First");
    let above = vec![ca.certificate().der().to_vec()];
    let mut fake = Fake::with(ca, above, Some(root)).await;
    let pair = Pair::start(&mut fake).await;
    let (served, _called) = pair.connect().await.unwrap();
    fake.publish(0, &[serial(&pair.client.status().serial)]);
    until("the end", || served.closed() == Some(Closed::Revoked)).await;

    // Another CA below a root that the first ones learn of from the bundle alone.
    let (next, next_root) = below_a_root("Next");
    {
        let mut state = fake.state();
        state.above = vec![next.certificate().der().to_vec()];
        state.roots.push(next_root);
        state.list = 1;
        state.ca = Arc::new(next);
    }
    fake.publish(1, &[]);
    let client = fake.builder("web2").start().await.unwrap();
    let callers = Peers::id("spiffe://td.test/web2").unwrap();
    let listener = Listener::bind(("127.0.0.1", 0), &pair.server, callers, &[]).await;
    let listener = listener.unwrap();
    let service = Peers::id("spiffe://td.test/svc").unwrap();
    let connector = Connector::new(&client, service, &[]).unwrap();
    // Until the bundle is seen the CA is unknown; then the list that waited for it is known at
    // once, so that no peer of the new CA is ever refused for its list.
    let mut tries = 0;
    let served = loop {
        match connect(&listener, &connector).await {
            Ok((served, _)) => break served,
            Err((refused, _)) => {
                assert!(refused.to_string().contains("UnknownIssuer"), "{refused}")
            }
        }
        tries += 1;
        assert!(tries < 1_000);
        tokio::time::sleep(POLL).await;
    };
    assert_eq!(served.peer().id.as_str(), "spiffe://td.test/web2");
}

#[tokio::test]
async fn a_list_that_cannot_be_brought_up_to_date_is_not_a_fresh_one() {
    let mut fake = Fake::start().await;
    let most = Duration::from_millis(400);
    let (server, client) = (fake.builder("svc").max_staleness(most), fake.builder("web"));
    let pair = Pair::of(server, client).await;
    for broken in [b"it is fine".to_vec(), vec![0; TOO_LARGE]] {
        connected(&pair).await;
        fake.publish_body(0, broken);
        let is_stale = || pair.server.lists_seen().is_some_and(|seen| seen > most);
        until("too stale", is_stale).await;
        assert_eq!(pair.alert().await, UNKNOWN);
        fake.publish(0, &[]);
    }
}

/// For a list.
const TOO_LARGE: usize = (8 << 20) + 1;

#[tokio::test]
async fn a_list_that_is_too_large_hides_none_of_the_others() {
    let mut fake = Fake::start().await;
    fake.publish_body(0, vec![0; TOO_LARGE]);
    fake.state().list = 1;
    fake.publish(1, &[]);
    let pair = Pair::start(&mut fake).await;
    connected(&pair).await;
}

#[tokio::test]
async fn a_list_that_was_not_taken_is_not_fetched_at_every_look() {
    let mut fake = Fake::start().await;
    fake.publish_body(0, b"it is fine".to_vec());
    let start = now();
    let _identity = fake.builder("svc").start().await.unwrap();
    for _ in 0..5 {
        fake.seen().await;
    }
    let fetched = {
        let state = fake.state();
        state.asked.iter().filter(|path| *path == "/crl/0").count()
    };
    let seconds = usize::try_from(now() - start).unwrap();
    // Once, then once a second; the clock of this test counts whole ones.
    assert!((1..=2 + seconds).contains(&fetched), "{fetched}");
}

#[tokio::test]
async fn a_list_of_another_trusted_ca_says_nothing() {
    let mut fake = Fake::start().await;
    let (other, ca) = (root(), Arc::clone(&fake.state().ca));
    fake.state().roots.push(other.certificate().clone());
    fake.publish_body(0, fake.signed(&other, 0, 1_000, &[]));
    let pair = Pair::start(&mut fake).await;
    fake.seen().await;
    assert_eq!(pair.alert().await, UNKNOWN);
    fake.publish_body(0, fake.signed(&ca, 0, 2_000, &[]));
    connected(&pair).await;
}

#[tokio::test]
async fn lists_go_with_their_ca() {
    let mut fake = Fake::start().await;
    fake.state().ttl = 10;
    fake.state().refresh_after = Duration::from_millis(1_500);
    let old = Arc::clone(&fake.state().ca);
    fake.publish_body(0, fake.signed(&old, 0, 1 << 60, &[]));
    let pair = Pair::start(&mut fake).await;
    pair.connect().await.unwrap();
    let before = {
        let mut state = fake.state();
        let next = root();
        state.roots = vec![next.certificate().clone()];
        state.ca = Arc::new(next);
        // After the next one, none.
        state.ttl = 600;
        state.refresh_after = Duration::from_secs(400);
        state.issued
    };
    // The end of a serial counts the certificates.
    let is_new = |identity: &Identity| {
        let serial = identity.status().serial;
        u16::from_str_radix(&serial[serial.len() - 4..], 16).unwrap() >= before
    };
    until("certificates of the next CA", || {
        is_new(&pair.server) && is_new(&pair.client)
    })
    .await;
    // Its number is far below that of the list which went.
    fake.publish(0, &[]);
    let (served, _called) = connected(&pair).await;
    fake.publish(0, &[serial(&pair.client.status().serial)]);
    until("the end", || served.closed() == Some(Closed::Revoked)).await;
}

/// A connection as soon as both sides have seen what lets them have one.
async fn connected(pair: &Pair) -> (Connection, Connection) {
    let mut tries = 0;
    loop {
        match pair.connect().await {
            Ok(both) => break both,
            Err((refused, _)) => assert!(tries < 300, "{refused}"),
        }
        tries += 1;
        tokio::time::sleep(POLL).await;
    }
}
