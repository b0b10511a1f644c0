//! Policies that take each other's place, against a real store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;

use ephor_crypto::p256::SigningKey;
use ephor_proto::grpc::v1;
use ephor_proto::http::admin::PolicyFile;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::grant::{GrantEnd, GrantState};
use ephor_proto::state::task::{EndCause, TaskState};

use super::{Checked, at_start};
use crate::issue::tests::harness::{Bench, POLICY, only};
use crate::ledger::{Batch, Lane, Ledger, Options, PolicyRow, Row};
use crate::policy::Snapshot;

fn without_billing() -> String {
    let cut = POLICY.find("[entitlement.billing-api]").unwrap();
    let rest = POLICY.find("[entitlement.billing-check]").unwrap();
    format!("{}{}", &POLICY[..cut], &POLICY[rest..])
}

fn checked(text: &str) -> Checked {
    let file = PolicyFile {
        name: "ephor.toml".to_owned(),
        text: text.to_owned(),
    };
    Checked::of(vec![file]).unwrap()
}

/// Another token in a task.
async fn another(bench: &Bench, task: TaskId, audience: &str) -> (CredentialId, String) {
    let mut r = bench.request(task, "identity");
    r.item = audience.to_owned();
    only(&bench.issue(r).await.unwrap())
}

#[tokio::test]
async fn what_is_no_longer_given_is_revoked_and_nothing_else() {
    let bench = Bench::new().await;
    let (task, id, token) = bench.token().await;
    let (kept, kept_token) = another(&bench, task, "shop").await;
    let applied = bench.apply(&without_billing()).await.unwrap();
    assert_eq!((applied.credentials, applied.tasks), (1, 0));
    assert!(applied.changed && applied.finished);
    assert_eq!(applied.changes.len(), 1);
    assert_eq!(applied.changes[0].effect, "removed");

    let row = bench.row(id);
    assert_eq!(row.state, CredentialState::Contained);
    assert_eq!(row.narrowed_by.as_deref(), Some(applied.version.as_str()));
    assert!(!bench.is_active(&token) && bench.is_listed(id).await);
    let grant = bench
        .broker
        .ledger
        .reader()
        .grant(row.grant)
        .unwrap()
        .unwrap();
    assert_eq!(grant.state, GrantState::Closed(GrantEnd::Narrowed));
    let started = bench.events_of("revoke.started").pop().unwrap();
    assert_eq!(
        started.policy_version.as_deref(),
        Some(applied.version.as_str())
    );
    assert_eq!(
        started.facts["narrowed"],
        "billing-api does not exist any more"
    );

    assert_eq!(bench.row(kept).state, CredentialState::Live);
    assert!(
        bench.is_active(&kept_token),
        "what stays allowed is left alone"
    );
    let task_row = bench.broker.ledger.reader().task(task).unwrap().unwrap();
    assert_eq!(task_row.state, TaskState::Open);
    let refused = bench.issue(bench.request(task, "billing-api")).await;
    assert_eq!(refused.unwrap_err().code, Code::UnknownEntitlement);

    let ended = bench.complete(task, "exited").await.unwrap();
    let receipt = bench.verified(&ended.receipt);
    assert_eq!(receipt.facts["narrowed"], "1");
    assert_eq!(receipt.facts["narrowed_by"], applied.version);
    assert_eq!(bench.events_of("prove.receipt").len(), 1);
}

#[tokio::test]
async fn each_version_names_the_one_before_and_is_kept_with_its_text() {
    let bench = Bench::new().await;
    let first = bench.apply(POLICY).await.unwrap();
    let second = bench.apply(&without_billing()).await.unwrap();
    let back = bench.apply(POLICY).await.unwrap();
    assert!(first.changed && second.changed && back.changed);
    assert!(!bench.apply(POLICY).await.unwrap().changed);
    assert_eq!(back.version, first.version);
    let reader = bench.broker.ledger.reader();
    let chain = reader.policies(10).unwrap();
    let links: Vec<_> = chain
        .iter()
        .rev()
        .map(|entry| (entry.number, entry.version.clone(), entry.previous.clone()))
        .collect();
    let v = |applied: &super::PolicyApplied| applied.version.clone();
    assert_eq!(
        links,
        [
            (1, v(&first), None),
            (2, v(&second), Some(v(&first))),
            (3, v(&first), Some(v(&second))),
        ]
    );
    assert!(chain.iter().all(|entry| entry.applied_by == "uid 0"));
    let stored = reader.policy(2).unwrap().unwrap();
    let files: Vec<PolicyFile> = serde_json::from_str(&stored.files).unwrap();
    assert_eq!(files[0].text, without_billing());
    assert_eq!(reader.policy_number(&second.version[..6]).unwrap(), Some(2));
    drop(reader);
    let events = bench.events_of("operate.policy_applied");
    assert_eq!(events.len(), 3);
    assert_eq!(events[1].facts["previous"], first.version);
    assert_eq!(events[1].facts["by"], "uid 0");
    assert_eq!(events[1].facts["removed"], "1");
}

#[tokio::test]
async fn a_broken_policy_changes_nothing_and_is_told() {
    let bench = Bench::new().await;
    let (_, id, token) = bench.token().await;
    let before = bench.broker.policy.load().version().to_owned();
    for (broken, said) in [
        (
            POLICY.replace("who = [\"orders/web\"]", "who = [\"orders/wed\"]"),
            "orders/wed does not exist (orders/web?). ephor.toml:1",
        ),
        (
            POLICY.replace("prod.example", "other.example"),
            "trust domain other.example",
        ),
        ("[".to_owned(), "not TOML"),
    ] {
        let refused = bench.apply(&broken).await.unwrap_err();
        assert_eq!(refused.code, Code::PolicyInvalid);
        let stays = format!("Policy {} stays in force.", &before[..4]);
        assert!(
            refused.detail.contains(said) && refused.detail.ends_with(&stays),
            "{}",
            refused.detail
        );
        assert!(
            !refused.detail.starts_with("invalid"),
            "said by the code: {}",
            refused.detail
        );
    }
    assert_eq!(bench.broker.policy.load().version(), before);
    assert_eq!(bench.row(id).state, CredentialState::Live);
    assert!(bench.is_active(&token));
    assert!(
        bench
            .broker
            .ledger
            .reader()
            .policy_in_force()
            .unwrap()
            .is_none()
    );
    let told = bench.events_of("operate.policy_refused");
    assert_eq!(told.len(), 2, "the two that are no policy");
    assert_eq!(told[0].policy_version.as_deref(), Some(before.as_str()));
    bench.token().await;
}

#[tokio::test]
async fn a_subject_without_a_place_ends_with_its_task_and_receipt() {
    for (from, to, why) in [
        (
            "runs = [{ uid = 1000 }]",
            "runs = [{ uid = 1000, hosts = [\"db-*\"] }]",
            "orders/web may not run on web-1 any more",
        ),
        (
            "orders/web",
            "orders/shop",
            "orders/web is no workload any more",
        ),
    ] {
        let bench = Bench::new().await;
        let (task, id, token) = bench.token().await;
        let service = bench.service_token().await;
        let applied = bench.apply(&POLICY.replace(from, to)).await.unwrap();
        assert_eq!((applied.credentials, applied.tasks), (1, 1), "{to}");
        let row = bench.broker.ledger.reader().task(task).unwrap().unwrap();
        assert_eq!(row.state.cause(), Some(EndCause::Revoked));
        assert!(!bench.is_active(&token) && bench.is_active(&service));
        assert_eq!(
            bench.row(id).narrowed_by.as_deref(),
            Some(applied.version.as_str())
        );
        let ended = bench.events_of("complete.revoked").pop().unwrap();
        assert_eq!(ended.facts["narrowed"], why);
        let receipt = bench.events_of("prove.receipt").pop().unwrap();
        assert_eq!(
            (receipt.task, receipt.facts["narrowed"].as_str()),
            (Some(task), "1")
        );
        assert_eq!(receipt.facts["narrowed_by"], applied.version);
        assert_eq!(bench.events_of("operate.policy_narrowed").len(), 1);
    }
}

#[tokio::test]
async fn a_lower_ceiling_revokes_what_lives_longer() {
    for (from, to, why) in [
        ("max = \"1h\"", "max = \"2m\"", "ttl.max allows 2m now"),
        (
            "max = \"1h\"",
            "max = \"1h\"\n[ttl.kind]\njwt = \"3m\"",
            "ttl.kind.jwt allows 3m now",
        ),
        (
            "max = \"1h\"",
            "max = \"1h\"\nservice = \"1m\"",
            "its task may not last so long any more",
        ),
        (
            "purpose = \"Charge orders\"",
            "purpose = \"Charge orders\"\nttl = \"1m\"",
            "entitlement allows 1m now",
        ),
        (
            "plan = \"gold\"",
            "plan = \"blue\"",
            "billing-api does not give exactly this for billing any more",
        ),
        (
            "who = [\"orders/web\"]",
            "who = [\"billing/api\"]",
            "billing-api does not name orders/web any more",
        ),
    ] {
        let bench = Bench::new().await;
        let (_, long, _) = bench.token().await;
        let mut r = bench.request(bench.new_task(), "identity");
        r.item = "shop".to_owned();
        r.ttl_seconds = Some(60);
        let short = only(&bench.issue(r).await.unwrap()).0;
        let mut policy = POLICY.replace(from, to);
        if to.contains("2m") {
            policy = policy.replace("default = \"5m\"", "default = \"2m\"");
        }
        let applied = bench
            .apply(&policy)
            .await
            .unwrap_or_else(|why| panic!("{to}: {}", why.detail));
        assert_eq!(applied.credentials, 1, "{to}");
        let told = bench.events_of("revoke.started").pop().unwrap();
        assert_eq!(told.facts["narrowed"], why);
        assert_eq!(bench.row(long).state, CredentialState::Contained, "{to}");
        assert_eq!(bench.row(short).state, CredentialState::Live, "{to}");
    }
}

#[tokio::test]
async fn nothing_that_was_just_given_or_renewed_falls_to_its_own_policy() {
    let bench = Bench::new().await;
    bench
        .apply(&POLICY.replace("max = \"1h\"", "max = \"1h\"\nservice = \"30m\""))
        .await
        .unwrap();
    for n in 0..30 {
        bench.clock.advance_millis(137);
        let (task, id, _) = bench.token().await;
        let (_, audience) = (another(&bench, task, "shop").await, n);
        if audience % 3 == 0 {
            bench.clock.advance_millis(60_333);
            let mut r = bench.request(task, "billing-api");
            r.renews = id.to_bytes().to_vec();
            bench.issue(r).await.unwrap();
        }
    }
    let policy = bench.broker.policy.load_full();
    assert_eq!(
        bench.broker.outdated(&policy, None).await.unwrap().sum(),
        super::Narrowed::default()
    );
}

#[tokio::test]
async fn a_wider_policy_widens_nothing_that_is_out() {
    let bench = Bench::new().await;
    let (_, id, _) = bench.token().await;
    let before = bench.row(id);
    let wider = POLICY.replace("default = \"5m\"", "default = \"50m\"");
    let applied = bench.apply(&wider).await.unwrap();
    assert_eq!(
        (applied.credentials, applied.changes[0].effect.as_str()),
        (0, "widened")
    );
    assert_eq!(bench.row(id), before);
}

#[tokio::test]
async fn a_dry_run_counts_and_does_nothing() {
    let bench = Bench::new().await;
    let (_, id, _) = bench.token().await;
    let version = bench.broker.policy.load().version().to_owned();
    let file = PolicyFile {
        name: "a.toml".into(),
        text: without_billing(),
    };
    let would = bench
        .broker
        .apply_policy(vec![file], "uid 0".into(), true)
        .await
        .unwrap();
    assert_eq!(
        (would.dry_run, would.credentials, would.changes.len()),
        (true, 1, 1)
    );
    assert_eq!(bench.broker.policy.load().version(), version);
    assert_eq!(bench.row(id).state, CredentialState::Live);
    assert!(bench.events_of("operate.policy_applied").is_empty());
}

#[tokio::test]
async fn what_an_older_policy_allowed_is_not_recorded_after_a_newer_one() {
    let bench = Bench::new().await;
    bench.apply(POLICY).await.unwrap();
    // Durable, and not yet in force in memory: a request is decided under the old one here.
    let new = checked(&without_billing());
    let newest = bench.broker.ledger.reader().policy_version().unwrap();
    let recorded = bench
        .broker
        .record_applied(&new.snapshot, &new.files, "uid 0", newest, &[]);
    recorded.await.unwrap();
    let asking = bench.issue(bench.request(bench.new_task(), "billing-api"));
    let swapping = async {
        // The request waits for exactly this.
        tokio::task::yield_now().await;
        while bench.broker.ledger.health().conflicts == 0 {
            tokio::task::yield_now().await;
        }
        bench.put_policy(&without_billing());
        bench.broker.inforce.swapped.notify_waiters();
    };
    let both = async { tokio::join!(asking, swapping).0 };
    let asked = tokio::time::timeout(std::time::Duration::from_secs(20), both).await;
    let asked = asked.expect("decided on the older policy, and recorded all the same");
    assert_eq!(asked.unwrap_err().code, Code::UnknownEntitlement);
    let policy = bench.broker.policy.load_full();
    assert_eq!(
        bench.broker.outdated(&policy, None).await.unwrap().sum(),
        super::Narrowed::default()
    );
}

#[tokio::test]
async fn what_a_crash_cut_short_is_finished_at_the_next_start() {
    let bench = Bench::new().await;
    bench.apply(POLICY).await.unwrap();
    let (task, id, token) = bench.token().await;
    // The commit and the swap, and no look at what is out.
    bench
        .broker
        .replace(checked(&without_billing()), "uid 0")
        .await
        .unwrap();
    assert!(bench.is_active(&token));
    let version = bench.broker.policy.load().version().to_owned();

    let bench = bench.reopened().await;
    assert_eq!(
        bench.broker.policy.load().version(),
        version,
        "the newest good one, without a directory"
    );
    bench.broker.confirmed();
    bench.broker.narrow_after_start();
    let broker = bench.broker.clone();
    while broker
        .ledger
        .reader()
        .credential(id)
        .unwrap()
        .unwrap()
        .state
        != CredentialState::Contained
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(!bench.is_active(&token));
    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!(bench.verified(&ended.receipt).facts["narrowed_by"], version);
}

/// Waits for what must come.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(std::time::Duration::from_secs(8), async {
        while !is_so() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Whoever applies a policy and goes away when it is in force.
async fn apply_and_leave(bench: &Bench, text: &str) {
    let version = checked(text).snapshot.version().to_owned();
    let policy = &bench.broker.policy;
    tokio::select! {
        _ = bench.apply(text) => panic!("answered before everything was revoked"),
        () = until("it is in force", || policy.load().version() == version) => {}
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_keeps_no_later_policy_out_and_falls_to_it() {
    let bench = Bench::new().await;
    bench.apply(POLICY).await.unwrap();
    let (_, id, _) = bench.token().await;
    let outside = rusqlite::Connection::open(bench.database()).unwrap();
    outside
        .busy_timeout(std::time::Duration::from_secs(5))
        .unwrap();
    let set = |value: &str| {
        let sql = format!("UPDATE credential SET kind = '{value}' WHERE id = ?1");
        assert_eq!(outside.execute(&sql, [id.to_bytes()]).unwrap(), 1);
    };
    set("nonsense");
    apply_and_leave(&bench, &without_billing()).await;
    let inforce = &bench.broker.inforce;
    until("what the directory is, is told", || {
        inforce.trouble().is_some()
    })
    .await;
    // Of this entitlement it changes nothing; it has to look at it all the same.
    let later = format!("{}# later\n", without_billing());
    apply_and_leave(&bench, &later).await;
    until("only one of them tries again", || {
        bench.broker.tasks.len() == 1
    })
    .await;
    set("jwt");
    until("it is revoked", || {
        bench.row(id).state == CredentialState::Contained
    })
    .await;
    let version = checked(&later).snapshot.version().to_owned();
    assert_eq!(bench.row(id).narrowed_by, Some(version));
}

#[tokio::test]
async fn an_old_copy_takes_no_policy_and_revokes_nothing_for_one() {
    let bench = Bench::new().await;
    bench.apply(POLICY).await.unwrap();
    let (_, id, _) = bench.token().await;
    let broker = &bench.broker;
    broker
        .replace(checked(&without_billing()), "uid 0")
        .await
        .unwrap();
    bench.fall_behind().await;
    let refused = broker.replace(checked(POLICY), "uid 0").await;
    assert_eq!(refused.unwrap_err().code, Code::LogRewound);
    let (_, is_all) = broker.narrow(broker.inforce.narrowing.begin(None)).await;
    assert!(!is_all && bench.row(id).state == CredentialState::Live);

    // Nor does a start on it.
    let bench = bench.reopened().await;
    bench.broker.begin_policy(Some(checked(POLICY)), None).await;
    let in_force = bench.broker.policy.load().version().to_owned();
    assert_eq!(in_force, checked(&without_billing()).snapshot.version());
    assert!(bench.broker.inforce.trouble().unwrap().contains("recover"));
}

#[tokio::test]
async fn a_certificate_with_a_name_that_policy_gives_no_more_is_revoked() {
    let bench = Bench::new().await;
    let with = |names: &str| {
        format!(
            "{POLICY}[entitlement.web-cert]\nowner = \"team:orders\"\npurpose = \"Serve\"\n\
             who = [\"orders/web\"]\ngives = [{{ x509 = {{ dns = [{names}] }} }}, {{ jwt = {{ audience = \"search\" }} }}]\n"
        )
    };
    bench.apply(&with("\"orders.internal\"")).await.unwrap();
    let task = bench.new_task();
    let asked = |entitlement: &str| {
        let mut r = bench.request(task, entitlement);
        r.public_key_der = SigningKey::generate().unwrap().public_key().spki();
        r
    };
    let given = bench.issue(asked("web-cert")).await.unwrap();
    let own = only_id(&bench.issue(asked("identity")).await.unwrap());
    let ids: Vec<_> = given
        .credentials
        .iter()
        .map(|one| CredentialId::from_slice(&one.id).unwrap())
        .collect();
    let grant = bench.row(ids[0]).grant;
    let applied = bench.apply(&with("\"shop.internal\"")).await.unwrap();
    assert_eq!(applied.credentials, 1);
    let states: Vec<_> = ids.iter().map(|id| bench.row(*id).state).collect();
    assert_eq!(states, [CredentialState::Contained, CredentialState::Live]);
    assert_eq!(bench.row(own).state, CredentialState::Live);
    let grant = bench.broker.ledger.reader().grant(grant).unwrap().unwrap();
    assert!(
        matches!(grant.state, GrantState::Open { .. }),
        "its token may go on"
    );

    let off = with("\"shop.internal\"").replace(
        "purpose = \"Serves the order page\"",
        "purpose = \"x\"\nidentity = false",
    );
    assert_eq!(bench.apply(&off).await.unwrap().credentials, 1);
    assert_eq!(bench.row(own).state, CredentialState::Contained);
    let told = bench.events_of("revoke.started").pop().unwrap();
    assert_eq!(
        told.facts["narrowed"],
        "identity does not give exactly this any more"
    );
}

fn only_id(answer: &v1::IssueResponse) -> CredentialId {
    assert_eq!(answer.credentials.len(), 1);
    CredentialId::from_slice(&answer.credentials[0].id).unwrap()
}

#[tokio::test]
async fn an_agent_that_did_not_listen_hears_it_with_its_next_stream() {
    let bench = Bench::new().await;
    let (task, id, _) = bench.token().await;
    bench.token().await;
    let (kept, _) = another(&bench, task, "shop").await;
    assert!(bench.broker.revoked_at("web-1").unwrap().is_empty());
    bench.apply(&without_billing()).await.unwrap();
    let told = |host: &str| -> Vec<Vec<u8>> {
        let missed = bench.broker.revoked_at(host).unwrap().into_iter();
        let id = |push: v1::Push| match push.what.unwrap() {
            v1::push::What::CredentialRevoked(revoked) => revoked.credential_id,
            v1::push::What::TaskRevoked(_) => panic!("no task ended"),
        };
        missed.map(id).collect()
    };
    let heard = told("web-1");
    assert_eq!(heard.len(), 2, "both tasks had one");
    assert!(heard.contains(&id.to_bytes().to_vec()));
    assert!(!heard.contains(&kept.to_bytes().to_vec()));
    assert!(told("web-2").is_empty());
    bench.complete(task, "exited").await.unwrap();
    assert_eq!(told("web-1").len(), 1, "an ended task is the heartbeat's");
    bench.pass_seconds(301);
    assert!(told("web-1").is_empty(), "what has expired is nobody's");
}

#[tokio::test]
async fn twenty_policies_under_requests_fail_none_that_stays_allowed() {
    let bench = Bench::new().await;
    let applying = async {
        for n in 0..20 {
            let text = if n % 2 == 0 {
                without_billing()
            } else {
                POLICY.to_owned()
            };
            bench.apply(&text).await.unwrap();
        }
    };
    let done = std::cell::Cell::new(false);
    let asking = async {
        let mut given = 0;
        while !done.get() {
            another(&bench, bench.new_task(), "shop").await;
            given += 1;
            // This one is allowed now and then; whatever comes, it never outlives its policy.
            let _ = bench
                .issue(bench.request(bench.new_task(), "billing-api"))
                .await;
        }
        given
    };
    let applying = async {
        applying.await;
        done.set(true);
    };
    let ((), first, second) = tokio::join!(applying, asking, async {
        let mut given = 0;
        while !done.get() {
            another(&bench, bench.new_task(), "other").await;
            given += 1;
        }
        given
    });
    assert!(
        first + second >= 20,
        "requests went on between the changes: {first} + {second}"
    );
    bench.apply(&without_billing()).await.unwrap();
    let policy = bench.broker.policy.load_full();
    assert_eq!(
        bench.broker.outdated(&policy, None).await.unwrap().sum(),
        super::Narrowed::default()
    );
    let mut live = Vec::new();
    bench
        .broker
        .ledger
        .reader()
        .live_credentials(|row| live.push(row.entitlement.to_owned()))
        .unwrap();
    assert_eq!(live.len(), first + second);
    assert!(live.iter().all(|entitlement| entitlement == "identity"));
}

/// A store with these versions, the last in force; `directory` as it was seen at the last apply.
async fn store(dir: &Path, versions: &[&str], directory: Option<&str>) -> Ledger {
    Ledger::create(
        &dir.join("ephor.db"),
        "inst-1",
        "broker.test/log",
        "prod.example",
    )
    .unwrap();
    let options = Options {
        take_over: false,
        reserve_path: dir.join("reserve"),
        clock: crate::clock::FakeClock::new() as _,
    };
    let ledger = Ledger::open(&dir.join("ephor.db"), options).unwrap();
    for (number, text) in (1..).zip(versions) {
        let Checked { snapshot, files } = checked(text);
        let row = PolicyRow {
            number,
            version: snapshot.version().to_owned(),
            previous: None,
            applied_at: ephor_proto::time::UnixMillis::from_millis(1),
            applied_by: "uid 0".to_owned(),
            directory: directory.map(|text| checked(text).snapshot.version().to_owned()),
            files: serde_json::to_string(&files).unwrap(),
        };
        let batch = Batch {
            name: "test",
            lane: Lane::Normal,
            require: vec![],
            rows: vec![Row::Policy(Box::new(row))],
            events: vec![],
        };
        ledger.submit(batch).unwrap().await.unwrap();
    }
    ledger
}

/// What a start does about a directory: which policy it begins with, which it then applies, and
/// whether it complains.
async fn start(
    versions: &[&str],
    seen: Option<&str>,
    directory: &str,
) -> Option<(String, Option<String>, bool)> {
    let dir = tempfile::tempdir().unwrap();
    let ledger = store(dir.path(), versions, seen).await;
    let policy = dir.path().join("policy");
    std::fs::create_dir(&policy).unwrap();
    std::fs::write(policy.join("ephor.toml"), directory).unwrap();
    let (snapshot, then, trouble) = at_start(&policy, &ledger).ok()?.split();
    let then = then.map(|then| then.snapshot.version().to_owned());
    Some((snapshot.version().to_owned(), then, trouble.is_some()))
}

#[tokio::test]
async fn a_start_takes_the_directory_unless_it_is_broken_or_older() {
    let (a, b) = (POLICY, without_billing());
    let c = format!("{POLICY}# changed\n");
    let v = |text: &str| {
        Snapshot::from_texts(&[("ephor.toml", text)])
            .unwrap()
            .version()
            .to_owned()
    };
    // A new store; the same as applied; changed files; broken files; applied from elsewhere, and the
    // directory is as it was then; or it has changed since.
    assert_eq!(start(&[], None, a).await, Some((v(a), Some(v(a)), false)));
    assert_eq!(start(&[a], Some(a), a).await, Some((v(a), None, false)));
    assert_eq!(
        start(&[a], Some(a), &b).await,
        Some((v(a), Some(v(&b)), false))
    );
    assert_eq!(
        start(&[a], Some(a), "broken").await,
        Some((v(a), None, true))
    );
    assert_eq!(start(&[a, &b], Some(a), a).await, Some((v(&b), None, true)));
    assert_eq!(
        start(&[a, &b], Some(a), &c).await,
        Some((v(&b), Some(v(&c)), false))
    );
    assert_eq!(start(&[], None, "broken").await, None);
}

#[tokio::test]
async fn an_applied_policy_that_cannot_be_used_any_more_is_not_undone_by_the_files_it_replaced() {
    let (wide, narrow) = (POLICY, without_billing());
    let dir = tempfile::tempdir().unwrap();
    let ledger = store(dir.path(), &[wide, &narrow], Some(wide)).await;
    // What this version refuses: as after an update to one that is stricter.
    let text = serde_json::to_string(&[PolicyFile {
        name: "ephor.toml".to_owned(),
        text: "refused".to_owned(),
    }]);
    let outside = rusqlite::Connection::open(dir.path().join("ephor.db")).unwrap();
    let sql = "UPDATE policy SET files = ?1 WHERE number = 2";
    assert_eq!(outside.execute(sql, [text.unwrap()]).unwrap(), 1);
    let policy = dir.path().join("policy");
    std::fs::create_dir(&policy).unwrap();
    let holds = |text: &str| std::fs::write(policy.join("ephor.toml"), text).unwrap();

    holds(wide);
    let refused = match at_start(&policy, &ledger) {
        Ok(_) => panic!("the wider policy is in force again"),
        Err(refused) => refused.to_string(),
    };
    assert!(
        refused.contains("uid 0") && refused.contains("Change the files"),
        "{refused}"
    );
    // Files that were changed since are somebody's word; the broker says what it could not use.
    holds(&format!("{POLICY}# changed\n"));
    let (snapshot, then, trouble) = at_start(&policy, &ledger).unwrap().split();
    assert_eq!(then.unwrap().snapshot.version(), snapshot.version());
    assert!(trouble.unwrap().contains("cannot be used"));
    // The files of that very version.
    holds(&narrow);
    let (snapshot, _, trouble) = at_start(&policy, &ledger).unwrap().split();
    assert_eq!(snapshot.version(), checked(&narrow).snapshot.version());
    assert_eq!(trouble, None);
}

#[tokio::test]
async fn the_quick_look_and_the_close_one_find_the_same() {
    let bench = Bench::new().await;
    bench.apply(POLICY).await.unwrap();
    for _ in 0..3 {
        let (task, ..) = bench.token().await;
        another(&bench, task, "shop").await;
        another(&bench, task, "search").await;
        bench.service_token().await;
        bench.clock.advance_millis(10_000);
    }
    let old = bench.broker.policy.load_full();
    let mut found_some = 0;
    for (from, to) in [
        ("", "# the same\n"),
        ("max = \"1h\"", "max = \"5m\""),
        (
            "default = \"5m\"\nmax = \"1h\"",
            "default = \"1m\"\nmax = \"1m\"",
        ),
        ("max = \"1h\"", "max = \"1h\"\nservice = \"4m\""),
        (
            "purpose = \"Charge orders\"",
            "purpose = \"Charge orders\"\nttl = \"1m\"",
        ),
        (
            "purpose = \"Charge orders\"",
            "purpose = \"Charge\"\nttl = \"20m\"",
        ),
        ("plan = \"gold\"", "plan = \"blue\""),
        ("who = [\"orders/web\"]", "who = [\"billing/api\"]"),
        (
            "who = [\"orders/web\"]",
            "who = [\"billing/api\", \"orders/web\"]",
        ),
        (
            "runs = [{ uid = 1000 }]",
            "runs = [{ uid = 1000, hosts = [\"db-*\"] }]",
        ),
        (
            "runs = [{ uid = 1000 }]",
            "runs = [{ uid = 1000, hosts = [\"web-*\"] }]",
        ),
        (
            "runs = [{ uid = 1000 }]",
            "runs = [{ uid = 1000 }]\nidentity = { audiences = [\"shop\"] }",
        ),
        (
            "runs = [{ uid = 2000 }]",
            "runs = [{ uid = 2000 }]\nidentity = false",
        ),
        ("orders/web", "orders/shop"),
    ] {
        let text = match from {
            "" => format!("{POLICY}{to}"),
            from => POLICY.replace(from, to),
        };
        let new = std::sync::Arc::new(checked(&text).snapshot);
        let quick = bench
            .broker
            .outdated(&new, Some(old.clone()))
            .await
            .unwrap()
            .sum();
        let close = bench.broker.outdated(&new, None).await.unwrap().sum();
        assert_eq!(quick, close, "{to}");
        found_some += u64::from(close != super::Narrowed::default());
    }
    assert_eq!(found_some, 9);
}
