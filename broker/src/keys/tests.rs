//! Keys as they are stored and opened.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use ephor_crypto::Secret;
use ephor_crypto::x509::Leaf;

use super::*;

pub(crate) fn sealer(byte: u8) -> SealingKey {
    SealingKey::new(&Secret::new(vec![byte; 32])).unwrap()
}

fn domain() -> TrustDomain {
    TrustDomain::new("test.example").unwrap()
}

fn now() -> UnixMillis {
    UnixMillis::from_millis(1_800_000_000_000)
}

#[test]
fn keys_survive_a_restart() {
    let rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
    let one = Keys::unseal(&sealer(1), &rows, &domain(), "o").unwrap();
    let two = Keys::unseal(&sealer(1), &rows, &domain(), "o").unwrap();
    assert_eq!(one.ca().sha256(), two.ca().sha256());
    assert_eq!(one.token_public(), two.token_public());
    assert_eq!(one.log_vkey(), two.log_vkey());
    assert_eq!(one.ca_end().millis_since(now()), limits::CA_SECONDS * 1000);
}

#[test]
fn no_private_key_stands_in_a_row_in_clear() {
    let rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
    for row in &rows {
        let opened = sealer(1).open(&record(&row.name), 1, &row.sealed).unwrap();
        let private = opened.expose();
        assert!(
            !row.sealed
                .windows(private.len())
                .any(|window| window == private)
        );
        assert!(
            !row.public
                .windows(private.len())
                .any(|window| window == private)
        );
    }
}

#[test]
fn another_master_key_or_a_moved_row_is_refused() {
    let mut rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
    let refused = |sealer: &SealingKey, rows: &[KeyRow]| {
        Keys::unseal(sealer, rows, &domain(), "o")
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused(&sealer(2), &rows).contains("bring back the master key"));
    assert!(refused(&sealer(1), &[]).contains("init"));
    let other = TrustDomain::new("other.example").unwrap();
    assert!(matches!(
        Keys::unseal(&sealer(1), &rows, &other, "o"),
        Err(KeysError::TrustDomain { .. })
    ));
    let moved = rows[0].sealed.clone();
    rows[1].sealed = moved;
    assert!(refused(&sealer(1), &rows).contains("`token`"));
}

#[test]
fn replacing_all_distrusts_the_old_at_once() {
    let (sealer, domain) = (sealer(1), domain());
    let mut rows = Keys::generate(&sealer, &domain, "abcd", now()).unwrap();
    let before = Keys::unseal(&sealer, &rows, &domain, "o").unwrap();
    let owner = Owner {
        trust_domain: &domain,
        installation: "abcd",
    };
    let later = now().saturating_add_millis(1);
    let kinds = [KeyKind::Ca, KeyKind::Token];
    let written = Keys::replace_all(&sealer, &rows, &kinds, owner, later).unwrap();
    assert_eq!(written.len(), 4);
    for row in written {
        rows.retain(|old| (&old.name, old.version) != (&row.name, row.version));
        rows.push(row);
    }
    let after = Keys::unseal(&sealer, &rows, &domain, "o").unwrap();
    assert_ne!(after.ca().sha256(), before.ca().sha256());
    assert_eq!(after.trusted().len(), 1);
    assert_eq!(after.token_keys().len(), 1);
    assert_ne!(after.token_keys()[0].0, before.token_keys()[0].0);
    assert_eq!(after.log_vkey(), before.log_vkey(), "was not named");
    assert!(after.bundle().sequence > before.bundle().sequence);
    let gone = rows.iter().filter(|row| row.state == KeyState::Destroyed);
    assert!(gone.clone().count() == 2 && gone.clone().all(|row| row.sealed.is_empty()));
}

#[test]
fn agents_get_a_day_and_never_more_than_the_ca() {
    let rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
    let keys = Keys::unseal(&sealer(1), &rows, &domain(), "o").unwrap();
    let spki = SigningKey::generate().unwrap().public_key().spki();
    let id = "spiffe://test.example/agent/web-1";
    let (der, end) = keys.issue_agent(id, &spki, now()).unwrap();
    let leaf = Leaf::parse(&der).unwrap();
    assert_eq!((leaf.spiffe_id.as_str(), leaf.spki), (id, spki.clone()));
    assert_eq!(end.millis_since(now()), 24 * 3_600_000);
    let late = now().saturating_add_millis((limits::CA_SECONDS - 60) * 1000);
    let (der, end) = keys.issue_agent(id, &spki, late).unwrap();
    assert_eq!(end, keys.ca_end());
    assert_eq!(
        Leaf::parse(&der).unwrap().not_after,
        keys.ca().certificate().not_after()
    );
}

/// A server tells which CAs it trusts by their names. Another key of the same version, as an older copy
/// of the store makes it, has another one.
#[test]
fn no_two_cas_for_databases_have_one_name() {
    let database = || {
        let rows = Keys::generate(&sealer(1), &domain(), "abcd", now()).unwrap();
        let row = rows.into_iter().find(|row| row.name == DATABASE).unwrap();
        CaCertificate::from_der(&row.public).unwrap()
    };
    let names = |ca: &CaCertificate| {
        let (der, before) = (ca.der(), b"Ephor databases abcd ");
        let places = (0..der.len()).filter(|at| der[*at..].starts_with(before));
        let names = places.map(|at| der[at + before.len()..][..8].to_vec());
        names.collect::<Vec<_>>()
    };
    let (one, two) = (names(&database()), names(&database()));
    assert_eq!(one.len(), 2, "as issuer and as subject");
    assert!(one[0] == one[1] && two[0] == two[1] && one[0] != two[0]);
}
