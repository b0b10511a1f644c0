//! Logins that a certificate lets in: the same course, another secret.

use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::DatabaseLeaf;

use super::*;
use crate::kind::x509::serial;

const BY_CERTIFICATE: &str = r#"
[entitlement.orders-cert]
owner = "team:orders"
purpose = "Serve the order page"
who = ["orders/web"]
gives = [{ postgres = { target = "orders", role = "orders_rw", login = "certificate" } }]
"#;

async fn kit() -> Kit {
    let kit = Kit::new().await;
    let policy = format!("{POLICY}{LOGINS}{BY_CERTIFICATE}");
    kit.bench.put_policy(&policy);
    kit
}

fn asked(kit: &Kit, task: TaskId) -> v1::IssueRequest {
    let mut r = kit.bench.request(task, "orders-cert");
    let key = SigningKey::generate().unwrap();
    r.public_key_der = key.public_key().spki();
    r
}

fn leaf(login: &v1::Login) -> DatabaseLeaf {
    let [der] = login.certificate_chain_der.as_slice() else {
        panic!("{login:?}")
    };
    DatabaseLeaf::parse(der).unwrap()
}

#[tokio::test]
async fn it_has_a_certificate_of_its_role_and_its_end_and_no_password_anywhere() {
    let kit = kit().await;
    let task = kit.bench.new_task();
    let none = kit
        .bench
        .issue(kit.bench.request(task, "orders-cert"))
        .await;
    assert_eq!(none.unwrap_err().code, Code::KeyNeeded);
    assert!(kit.logins().is_empty());
    let r = asked(&kit, task);
    let answer = kit.bench.issue(r.clone()).await.unwrap();
    let (id, login) = login(&answer);
    assert_eq!(login.password, "");
    let (there, until) = kit.orders.with(|inner| inner.alive[&login.user].clone());
    assert_eq!(there, "", "the role has no password");
    let row = kit.bench.row(id);
    let leaf = leaf(&login);
    assert_eq!(leaf.role, login.user);
    assert_eq!(leaf.spki, r.public_key_der);
    assert_eq!(leaf.serial, serial(id, 0).unwrap());
    assert_eq!(until, row.expires_at);
    assert_eq!(
        leaf.not_after,
        i64::try_from(until.as_unix_seconds()).unwrap()
    );
    // A server may be behind.
    let issued = row.issued_at.as_unix_seconds();
    let content = Content::of(&row).unwrap().certificate.unwrap();
    assert_eq!(content.not_before, issued - 3_600);
    let recorded = kit.bench.events_of("issue.recorded");
    let said = recorded.last().unwrap().facts.get("serial").cloned();
    assert_eq!(said, Some(leaf.serial.to_string()));
}

/// A server that trusts one of the two CAs takes nothing of the other.
#[tokio::test]
async fn its_ca_is_not_that_of_workloads() {
    let kit = kit().await;
    let keys = kit.bench.broker.keys.load_full();
    let databases = keys.database_roots_pem();
    assert_eq!(databases.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(!keys.roots_pem().contains(databases.trim()));
    assert_ne!(keys.database_ca().sha256(), keys.ca().sha256());
    assert!(!keys.trusts(keys.database_ca().certificate().key_id()));
    let ours = keys.database_ca().certificate().clone();
    assert!(keys.trusted().iter().all(|ca| ca.sha256() != ours.sha256()));
    assert!(!keys.bundle().roots.iter().any(|root| root == ours.der()));
}

#[tokio::test]
async fn a_renewal_brings_the_next_certificate_for_the_same_role() {
    let kit = kit().await;
    let task = kit.bench.new_task();
    let (id, first) = login(&kit.bench.issue(asked(&kit, task)).await.unwrap());
    kit.confirm(&[id]).await;
    kit.bench.pass_seconds(200);
    let mut r = asked(&kit, task);
    r.renews = id.to_bytes().to_vec();
    for _ in 0..2 {
        // The second time as when the first answer was lost.
        let (again, renewed) = login(&kit.bench.issue(r.clone()).await.unwrap());
        assert_eq!((again, &renewed.user), (id, &first.user));
        let (before, after) = (leaf(&first), leaf(&renewed));
        assert_eq!(after.spki, r.public_key_der);
        assert_eq!(after.serial, serial(id, 1).unwrap());
        let (_, until) = kit.orders.with(|inner| inner.alive[&first.user].clone());
        assert_eq!(
            after.not_after,
            i64::try_from(until.as_unix_seconds()).unwrap()
        );
        assert!(after.not_after > before.not_after);
    }
    let mut without = kit.bench.request(task, "orders-cert");
    without.renews = id.to_bytes().to_vec();
    let refused = kit.bench.issue(without).await.unwrap_err();
    assert_eq!(refused.code, Code::KeyNeeded);
    kit.bench.complete(task, "exited").await.unwrap();
    kit.all_dead().await;
}

/// Even after a renewal for another key: whoever asks again has only the key that it asked with.
#[tokio::test]
async fn the_same_request_again_gets_another_role_for_its_own_key() {
    let kit = kit().await;
    let task = kit.bench.new_task();
    let r = asked(&kit, task);
    let (id, before) = login(&kit.bench.issue(r.clone()).await.unwrap());
    kit.confirm(&[id]).await;
    kit.bench.pass_seconds(200);
    let mut renewal = asked(&kit, task);
    renewal.renews = id.to_bytes().to_vec();
    kit.bench.issue(renewal).await.unwrap();
    let (next, after) = login(&kit.bench.issue(r.clone()).await.unwrap());
    let leaf = leaf(&after);
    assert_ne!((id, &before.user), (next, &after.user));
    assert_eq!((leaf.role, leaf.spki), (after.user, r.public_key_der));
    assert_eq!(leaf.serial, serial(next, 0).unwrap());
    kit.until("the first is dead", |kit| {
        kit.bench.row(id).state == CredentialState::Dead
    })
    .await;
}

/// What policy gives by password is no longer what it gives by certificate.
#[tokio::test]
async fn another_way_in_is_another_login() {
    let kit = kit().await;
    let task = kit.bench.new_task();
    let (id, _) = login(&kit.bench.issue(asked(&kit, task)).await.unwrap());
    kit.confirm(&[id]).await;
    let by_password = BY_CERTIFICATE.replace(", login = \"certificate\"", "");
    kit.bench
        .put_policy(&format!("{POLICY}{LOGINS}{by_password}"));
    kit.bench.pass_seconds(200);
    let mut r = asked(&kit, task);
    r.renews = id.to_bytes().to_vec();
    let refused = kit.bench.issue(r).await.unwrap_err();
    assert_eq!(refused.code, Code::CredentialEnded);
}
