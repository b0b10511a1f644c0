//! Two tasks talk; one ends, and nobody who copied from it talks any more.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use ephor_crypto::x509::{CaCertificate, RevocationList};
use ephor_testkit::installation::{Installation, Side};
use ephor_testkit::wait;
use rustls::AlertDescription;

use super::support::{DEADLINE, Program, SELF, Thief, alert, ask, example, running, service};

/// The promise: refused and closed within this.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// Longer than any test.
const LONG: u64 = 600;

/// Whether the broker lists a certificate in a list that its CA signed.
fn is_listed(kit: &Installation, thief: &Thief) -> bool {
    let ca = std::fs::read_to_string(kit.path("state/ca.pem")).unwrap();
    let cas = CaCertificate::all_from_pem(&ca).unwrap();
    let url = thief.leaf.crl.as_deref().unwrap();
    let path = format!("/crl/{}", url.rsplit_once('/').unwrap().1);
    let list = RevocationList::verify(&kit.public(&path).unwrap().bytes, &cas).unwrap();
    list.is_revoked(&thief.leaf.serial)
}

/// Until the handshake says why: a connection that was being made when the list came is closed
/// without a word.
fn until_refused(thief: &Thief, address: SocketAddr, deadline: Duration) {
    let refused = || alert(&thief.call(address).err()?);
    let alert = wait::until("the handshake refused", deadline, refused).unwrap();
    assert_eq!(alert, AlertDescription::CertificateRevoked);
    for _ in 0..20 {
        assert_eq!(refused(), Some(AlertDescription::CertificateRevoked));
    }
}

#[test]
fn a_killed_tasks_copied_certificate_is_refused_at_the_handshake_and_its_connection_closed() {
    let kit = running();
    let (_service, address) = service(&kit, LONG);
    let mut victim = Program::victim(&kit, LONG);
    let thief = Thief::copy(&victim.line());
    assert!(!is_listed(&kit, &thief));
    let (mut open, said) = thief.call(address).unwrap();
    assert_eq!(said, format!("hello {SELF} {}", thief.leaf.serial));
    assert_eq!(ask(&mut open).unwrap(), said);

    victim.kill();
    until_refused(&thief, address, REFUSED_WITHIN);
    // Without a word from our side: an end that the server made, and not the deadline's.
    open.sock.set_read_timeout(Some(REFUSED_WITHIN)).unwrap();
    let end = open.sock.read(&mut [0; 64]).map_err(|error| error.kind());
    assert_eq!(end, Ok(0), "the connection that stood is closed");
    assert!(is_listed(&kit, &thief));
}

#[test]
fn renewals_disturb_neither_kept_connections_nor_new_ones() {
    let kit = running();
    let (_service, address) = service(&kit, 6);
    let words = [&*address.to_string(), SELF, "30"];
    let client = Program::start(&kit, 6, &example("client"), &words);
    let (lines, is_good) = client.rest();
    let log = std::fs::read_to_string(kit.path("programs.log")).unwrap();
    assert!(is_good, "{lines:#?} {log}");
    let of = |way: &str| -> Vec<_> {
        let greeting = format!("{way} hello {SELF} ");
        let serials = lines.iter().filter_map(|line| line.strip_prefix(&greeting));
        serials.map(str::to_owned).collect()
    };
    let (kept, mut new) = (of("kept"), of("new"));
    assert_eq!((kept.len(), new.len()), (30, 30), "{lines:#?}");
    assert!(lines.last().unwrap().starts_with("done "));
    new.dedup();
    assert!(new.len() >= 2, "a renewed certificate was shown: {new:?}");
}

#[test]
fn an_agent_that_starts_anew_and_a_broker_that_is_away_disturb_nobody() {
    let kit = running();
    let (_service, address) = service(&kit, LONG);
    let mut victim = Program::victim(&kit, LONG);
    let thief = Thief::copy(&victim.line());
    let (mut open, _) = thief.call(address).unwrap();

    kit.kill(Side::Agent).unwrap();
    ask(&mut open).unwrap();
    thief.call(address).unwrap();
    kit.start_daemon(Side::Agent, &[]).unwrap();
    kit.wait_connected().unwrap();

    kit.kill(Side::Broker).unwrap();
    // It ends while nobody can list it: known lists go on until they expire.
    victim.kill();
    ask(&mut open).unwrap();
    thief.call(address).unwrap();
    kit.start_daemon(Side::Broker, &[]).unwrap();
    until_refused(&thief, address, DEADLINE);
    let closed = wait::until("the connection closed", DEADLINE, || ask(&mut open).err());
    closed.unwrap();
}
