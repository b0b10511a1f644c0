//! Certificates: what they say, how they renew, where they are listed.

use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Leaf, Serial};
use ephor_proto::grpc::v1;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::Clock;

use super::harness::{Bench, POLICY};
use crate::kind::x509::serial;
use crate::limits;

const WEB_CERT: &str = r#"
[entitlement.web-cert]
owner = "team:orders"
purpose = "Serve mTLS"
who = ["orders/web"]
gives = [{ x509 = { dns = ["orders.internal"] } }, { jwt = { audience = "search" } }]
"#;

fn policy() -> String {
    format!("{POLICY}{WEB_CERT}")
}

/// A broker whose policy gives certificates, too.
async fn bench() -> Bench {
    let bench = Bench::new().await;
    bench.put_policy(&policy());
    bench
}

fn key() -> Vec<u8> {
    SigningKey::generate().unwrap().public_key().spki()
}

fn asked(bench: &Bench, task: TaskId, entitlement: &str) -> v1::IssueRequest {
    let mut r = bench.request(task, entitlement);
    r.public_key_der = key();
    r
}

fn certificate(answer: &v1::IssueResponse) -> (CredentialId, Leaf) {
    let one = answer.credentials.iter().find(|one| one.kind == "x509");
    let one = one.unwrap();
    assert!(one.token.is_empty());
    let leaf = Leaf::parse(&one.certificate_chain_der[0]).unwrap();
    (CredentialId::from_slice(&one.id).unwrap(), leaf)
}

#[tokio::test]
async fn a_certificate_says_what_policy_gives_and_nothing_else() {
    let bench = bench().await;
    let r = asked(&bench, bench.new_task(), "web-cert");
    let answer = bench.issue(r.clone()).await.unwrap();
    let (id, leaf) = certificate(&answer);
    assert_eq!(answer.credentials.len(), 2, "and the token");
    assert_eq!(leaf.spiffe_id, "spiffe://prod.example/orders/web");
    assert_eq!(leaf.spki, r.public_key_der);
    assert_eq!(leaf.serial, serial(id, 0).unwrap());
    let row = bench.row(id);
    let seconds = |at: u64| i64::try_from(at).unwrap();
    assert_eq!(leaf.not_after, seconds(row.expires_at.as_unix_seconds()));
    assert_eq!(
        leaf.not_before,
        seconds(row.issued_at.as_unix_seconds()) - 30
    );
    assert_eq!(
        (row.item.as_str(), row.capped_by.as_str()),
        ("orders.internal", "ttl.default")
    );
    let text =
        String::from_utf8_lossy(&answer.credentials[0].certificate_chain_der[0]).into_owned();
    assert!(
        text.contains("orders.internal") && text.contains(&bench.broker.crls.uri(row.status_list))
    );

    let again = bench.issue(r).await.unwrap();
    assert_eq!(
        certificate(&again),
        (id, leaf),
        "a retry gets a certificate that says the same"
    );
    let recorded = bench.events_of("issue.recorded");
    assert!(
        recorded
            .iter()
            .any(|event| event.facts.contains_key("serial"))
    );
}

#[tokio::test]
async fn without_a_key_there_is_none_and_nothing_is_recorded() {
    let bench = bench().await;
    let task = bench.new_task();
    for entitlement in ["web-cert", "identity"] {
        let refused = bench
            .issue(bench.request(task, entitlement))
            .await
            .unwrap_err();
        assert_eq!(refused.code, Code::KeyNeeded, "{entitlement}");
    }
    assert_eq!(bench.events_of("issue.recorded").len(), 0);
    assert_eq!(bench.events_of("decide.allowed").len(), 0);
    let mut r = bench.request(task, "web-cert");
    r.public_key_der = vec![1; 91];
    assert_eq!(bench.issue(r).await.unwrap_err().code, Code::InvalidRequest);
}

#[tokio::test]
async fn identity_without_an_audience_is_the_svid() {
    let bench = bench().await;
    let answer = bench
        .issue(asked(&bench, bench.new_task(), "identity"))
        .await
        .unwrap();
    let (_, leaf) = certificate(&answer);
    assert_eq!(leaf.spiffe_id, "spiffe://prod.example/orders/web");
    let listed = "identity = { audiences = [\"billing\"] }\nruns = [{ uid = 1000 }]";
    bench.put_policy(&POLICY.replace("runs = [{ uid = 1000 }]", listed));
    let task = bench.new_task();
    assert!(bench.issue(asked(&bench, task, "identity")).await.is_ok());
    bench.put_policy(&POLICY.replace(
        "runs = [{ uid = 1000 }]",
        "identity = false\nruns = [{ uid = 1000 }]",
    ));
    let off = bench
        .issue(asked(&bench, bench.new_task(), "identity"))
        .await
        .unwrap_err();
    assert_eq!(off.code, Code::AudienceNotAllowed);
}

#[tokio::test]
async fn a_renewal_is_for_another_key_and_both_are_listed_at_the_end() {
    let bench = bench().await;
    let task = bench.new_task();
    let (id, first) = certificate(&bench.issue(asked(&bench, task, "identity")).await.unwrap());
    bench.pass_seconds(200);
    let mut r = asked(&bench, task, "identity");
    r.renews = id.to_bytes().to_vec();
    let (same, second) = certificate(&bench.issue(r).await.unwrap());
    assert_eq!((same, &second.serial), (id, &serial(id, 1).unwrap()));
    assert!(second.not_after > first.not_after && second.spki != first.spki);
    assert!(bench.crl_of(id).await.is_empty());
    bench.broker.revoke(id, "test").await.unwrap();
    let list = bench.crl_of(id).await;
    assert!(list.is_revoked(&first.serial) && list.is_revoked(&second.serial) && list.len() == 2);
    assert_eq!(bench.row(id).state, CredentialState::Contained);
    let evidence = bench.row(id).evidence.unwrap();
    assert!(evidence.contains(&second.serial.to_string()), "{evidence}");
    assert!(!evidence.contains("introspection"), "{evidence}");
}

/// What a retired CA issued is not renewed by it, or it could never be distrusted on time.
#[tokio::test]
async fn under_a_new_ca_a_certificate_is_followed_by_one_of_the_new_ca() {
    use crate::keys::state::KeyKind;
    let bench = bench().await;
    let task = bench.new_task();
    let (id, first) = certificate(&bench.issue(asked(&bench, task, "identity")).await.unwrap());
    let (_, token, _) = bench.token().await;
    let forced = ephor_proto::http::admin::Rotate {
        now: true,
        force: true,
        ..Default::default()
    };
    bench.broker.rotate_key(KeyKind::Ca, &forced).await.unwrap();
    let new_ca = bench
        .broker
        .keys
        .load()
        .ca()
        .certificate()
        .key_id()
        .to_vec();
    bench.pass_seconds(200);
    let mut r = asked(&bench, task, "identity");
    r.renews = id.to_bytes().to_vec();
    let answer = bench.issue(r.clone()).await.unwrap();
    let (next, second) = certificate(&answer);
    assert_ne!(next, id);
    assert_eq!(second.authority_key_id, new_ca);
    assert_ne!(first.authority_key_id, new_ca);
    assert!(second.not_after > first.not_after);
    assert_eq!(
        certificate(&bench.issue(r).await.unwrap()).0,
        next,
        "a retry is the same one"
    );
    // Both end with the task, each on its own CA's list.
    assert_eq!(bench.row(id).state, CredentialState::Live);
    assert_ne!(bench.row(id).status_list, bench.row(next).status_list);
    // What is revoked is not followed, and a token is renewed as ever.
    bench.broker.revoke(id, "test").await.unwrap();
    assert!(bench.crl_of(id).await.is_revoked(&first.serial));
    let mut r = asked(&bench, task, "identity");
    r.renews = id.to_bytes().to_vec();
    assert_eq!(
        bench.issue(r).await.unwrap_err().code,
        Code::CredentialEnded
    );
    assert_eq!(bench.row(token).state, CredentialState::Live);
}

/// It was good when that was decided, and revoked when it was to be recorded.
#[tokio::test]
async fn what_was_revoked_meanwhile_is_not_followed_by_one_of_the_new_ca() {
    use crate::keys::state::KeyKind;
    let bench = bench().await;
    let task = bench.new_task();
    let (id, _) = certificate(&bench.issue(asked(&bench, task, "identity")).await.unwrap());
    let forced = ephor_proto::http::admin::Rotate {
        now: true,
        force: true,
        ..Default::default()
    };
    bench.broker.rotate_key(KeyKind::Ca, &forced).await.unwrap();
    let mut r = asked(&bench, task, "identity");
    r.renews = id.to_bytes().to_vec();
    // Nothing is written while both are under way, the revocation first.
    let outside = rusqlite::Connection::open(bench.database()).unwrap();
    outside.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (revoked, followed, ()) = tokio::join!(
        biased;
        bench.broker.revoke(id, "stolen"),
        bench.issue(r),
        async { outside.execute_batch("ROLLBACK").unwrap() },
    );
    revoked.unwrap();
    assert_eq!(followed.unwrap_err().code, Code::CredentialEnded);
    assert_eq!(bench.events_of("issue.recorded").len(), 1);
}

/// Nobody makes the list of a distrusted CA, so no evidence names one.
#[tokio::test]
async fn the_end_of_what_a_distrusted_ca_issued_names_no_list() {
    use crate::keys::state::KeyKind;
    let bench = bench().await;
    let task = bench.new_task();
    let (id, _) = certificate(&bench.issue(asked(&bench, task, "identity")).await.unwrap());
    let (earlier, leaf) = certificate(&bench.issue(asked(&bench, task, "web-cert")).await.unwrap());
    bench.broker.revoke(earlier, "test").await.unwrap();
    let listed = bench.events_of("revoke.listed").pop().unwrap();
    assert!(listed.facts.contains_key("list_version"));
    assert!(listed.evidence[0].place.contains(&leaf.serial.to_string()));
    let forced = ephor_proto::http::admin::Rotate {
        now: true,
        force: true,
        ..Default::default()
    };
    bench.broker.rotate_key(KeyKind::Ca, &forced).await.unwrap();
    bench.clock.advance_millis(1_000);
    bench
        .broker
        .distrust_keys(KeyKind::Ca, "stolen")
        .await
        .unwrap();
    let keys = bench.broker.list_keys().unwrap();
    let gone = keys
        .iter()
        .find(|key| key.kind == "ca" && key.version == 1)
        .unwrap();
    bench.clock.advance_millis(1_000);
    let receipt = bench.complete(task, "exited").await.unwrap().receipt;
    let words = |id| {
        format!(
            "CA version 1 distrusted here since {}; a verifier that still has that root: until {}",
            gone.since,
            bench.row(id).expires_at
        )
    };
    let event = bench.verified(&receipt);
    let of = |id| event.evidence.iter().find(|one| one.credential == id);
    for id in [id, earlier] {
        assert_eq!(of(id).unwrap().place, words(id));
        assert_eq!(of(id).unwrap().until, Some(bench.row(id).expires_at));
    }
    let all = bench.events_of("revoke.listed");
    let listed = all.iter().find(|one| one.evidence[0].credential == id);
    let listed = listed.unwrap();
    assert_eq!(listed.evidence[0].place, words(id));
    assert!(!listed.facts.contains_key("list_version"));
    assert_eq!(bench.row(id).evidence.unwrap(), words(id));
}

#[tokio::test]
async fn renewing_faster_than_certificates_expire_is_refused_in_time() {
    let bench = bench().await;
    let task = bench.new_task();
    let (id, _) = certificate(&bench.issue(asked(&bench, task, "identity")).await.unwrap());
    for _ in 1..limits::CERTIFICATES_PER_CREDENTIAL {
        let mut r = asked(&bench, task, "identity");
        r.renews = id.to_bytes().to_vec();
        bench.issue(r).await.unwrap();
    }
    let mut r = asked(&bench, task, "identity");
    r.renews = id.to_bytes().to_vec();
    assert_eq!(bench.issue(r).await.unwrap_err().code, Code::Busy);
    bench.broker.revoke(id, "test").await.unwrap();
    assert_eq!(
        bench.crl_of(id).await.len(),
        limits::CERTIFICATES_PER_CREDENTIAL
    );
}

#[tokio::test]
async fn the_end_of_the_task_lists_it_also_after_a_restart_until_a_day_after_its_expiry() {
    let bench = bench().await;
    let task = bench.new_task();
    let (id, leaf) = certificate(&bench.issue(asked(&bench, task, "web-cert")).await.unwrap());
    let (live, other) = certificate(
        &bench
            .issue(asked(&bench, bench.new_task(), "web-cert"))
            .await
            .unwrap(),
    );
    let receipt = bench.complete(task, "exited").await.unwrap().receipt;
    let event = bench.verified(&receipt);
    let evidence = event
        .evidence
        .iter()
        .find(|one| one.credential == id)
        .unwrap();
    assert!(evidence.place.contains("/crl/") && evidence.place.contains(&leaf.serial.to_string()));
    let before = bench.crl_of(id).await;
    assert!(before.is_revoked(&leaf.serial) && !before.is_revoked(&other.serial));

    bench.clock.advance_millis(5);
    let bench = bench.reopened().await;
    let after = bench.crl_of(id).await;
    assert!(after.is_revoked(&leaf.serial) && !after.is_revoked(&other.serial));
    assert!(after.number() > before.number(), "numbers only grow");

    bench.pass_seconds(400);
    bench.broker.expire_due().await;
    assert_eq!(bench.row(live).state, CredentialState::Dead);
    assert!(
        bench.crl_of(live).await.is_revoked(&other.serial),
        "a clock that goes back revives nothing"
    );
    bench.pass_seconds(25 * 3600);
    bench.broker.prune_listings().await;
    assert!(bench.crl_of(id).await.is_empty());
}

/// Its row names a list by a number that no status list has.
#[tokio::test]
async fn a_certificate_whose_row_was_set_aside_is_listed_and_tokens_are_given_out() {
    let bench = bench().await;
    let (id, leaf) = certificate(
        &bench
            .issue(asked(&bench, bench.new_task(), "identity"))
            .await
            .unwrap(),
    );
    let number = bench.row(id).status_list;
    let outside = rusqlite::Connection::open(bench.database()).unwrap();
    let sql = "UPDATE credential SET kind = 'nonsense' WHERE id = ?1";
    assert_eq!(outside.execute(sql, [id.to_bytes()]).unwrap(), 1);
    drop(outside);
    let bench = bench.reopened().await;
    assert_eq!(bench.broker.ledger.set_aside_at_open(), 1);
    let keys = &bench.broker.keys;
    let built = bench.broker.crls.current(number, keys).await.unwrap();
    assert!(built.lists_all(std::slice::from_ref(&leaf.serial)));
    let now = bench.clock.wall();
    assert!(bench.broker.lists.current(number, now).await.is_err());
    bench.token().await;
}

#[tokio::test]
async fn a_list_takes_no_more_credentials_than_it_may() {
    let bench = bench().await;
    let ca = bench.broker.keys.load().issuing().version;
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..=limits::CREDENTIALS_PER_CRL {
        *counts
            .entry(bench.broker.crls.reserve(ca).unwrap())
            .or_insert(0) += 1;
    }
    assert_eq!(
        counts.values().copied().collect::<Vec<_>>(),
        [limits::CREDENTIALS_PER_CRL, 1]
    );
    let full = *counts.keys().next().unwrap();
    bench.broker.crls.release(full, None);
    assert_eq!(
        bench.broker.crls.reserve(ca).unwrap(),
        full + 1,
        "the newest first"
    );
    let (id, _) = certificate(
        &bench
            .issue(asked(&bench, bench.new_task(), "identity"))
            .await
            .unwrap(),
    );
    assert_eq!(bench.row(id).status_list, full + 1);
    assert!(
        !bench
            .crl_of(id)
            .await
            .is_revoked(&Serial::new(&[1]).unwrap())
    );
}

#[tokio::test]
async fn the_list_of_everything_has_what_every_list_has() {
    let bench = bench().await;
    let (task, other) = (bench.new_task(), bench.new_task());
    let (_, first) = certificate(&bench.issue(asked(&bench, task, "identity")).await.unwrap());
    let ca = bench.broker.keys.load().issuing().version;
    for _ in 0..limits::CREDENTIALS_PER_CRL {
        bench.broker.crls.reserve(ca).unwrap();
    }
    let (id, second) = certificate(&bench.issue(asked(&bench, other, "identity")).await.unwrap());
    bench.complete(task, "exited").await.unwrap();
    bench.complete(other, "exited").await.unwrap();
    assert!(
        !bench.crl_of(id).await.is_revoked(&first.serial),
        "they are on two lists"
    );
    let whole = bench.broker.crls.whole(&bench.broker.keys).await.unwrap();
    let text = String::from_utf8(whole.to_vec()).unwrap();
    assert_eq!(text.matches("BEGIN X509 CRL").count(), 1, "one for each CA");
    let ca = bench.broker.keys.load().ca().certificate().pem();
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (list, ca) = (put("crl.pem", &text), put("ca.pem", &ca));
    let shown = std::process::Command::new("openssl")
        .args(["crl", "-noout", "-text", "-CAfile"])
        .arg(ca)
        .arg("-in")
        .arg(list)
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).to_lowercase();
    for serial in [&first.serial, &second.serial] {
        assert!(
            shown.contains(&serial.to_string()),
            "{serial} is not in {shown}"
        );
    }
    assert!(!shown.contains("issuing distribution point"));
}
