//! Ends, however they come, against a real store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod damaged;

use ephor_proto::id::TaskId;
use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::{EndCause, TaskState};

use crate::complete::{By, End, Step};
use crate::issue::tests::harness::Bench;

#[tokio::test]
async fn an_exit_is_refused_listed_and_proven() {
    let bench = Bench::new().await;
    let service = bench.service_token().await;
    let (task, id, token) = bench.token().await;
    let active = bench
        .broker
        .introspect(Some(&service), &token)
        .unwrap()
        .unwrap();
    assert_eq!(active.row.id, id);

    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (0, 1));
    assert_eq!(ended.listed_until, bench.row(id).expires_at.as_millis());
    assert!(
        bench
            .broker
            .introspect(Some(&service), &token)
            .unwrap()
            .is_none()
    );
    assert!(!bench.is_active(&token));
    assert!(bench.is_listed(id).await);

    let proven = bench.verified(&ended.receipt);
    assert_eq!(proven.event_type, "prove.receipt");
    assert_eq!(proven.task, Some(task));
    assert_eq!(proven.cause.as_deref(), Some("exited"));
    let totals = proven.totals.unwrap();
    assert_eq!((totals.credentials, totals.dead, totals.listed), (1, 0, 1));
    assert_eq!(proven.evidence[0].credential, id);
    assert_eq!(proven.evidence[0].state, CredentialState::Contained);
    let listed = bench.events_of("revoke.listed");
    let used = listed[0].used.clone().unwrap();
    assert_eq!(
        (used.count, used.source.as_str()),
        (Some(1), "introspection")
    );
    assert_eq!(used.place, "spiffe://prod.example/billing/api");
    let row = bench.broker.ledger.reader().task(task).unwrap().unwrap();
    assert_eq!(
        row.state,
        TaskState::Closed {
            cause: EndCause::Exited,
            contained: true
        }
    );
}

#[tokio::test]
async fn ends_told_twice_at_once_and_late_have_one_receipt() {
    let bench = Bench::new().await;
    let (task, ..) = bench.token().await;
    let (one, two, ()) = tokio::join!(
        bench.complete(task, "exited"),
        bench.complete(task, "released"),
        bench
            .broker
            .complete_tasks(vec![task, task], EndCause::Lost),
    );
    let (one, two) = (
        bench.verified(&one.unwrap().receipt),
        bench.verified(&two.unwrap().receipt),
    );
    assert_eq!(one.id, two.id);
    let late = bench.complete(task, "exited").await.unwrap();
    assert_eq!(bench.verified(&late.receipt).id, one.id);
    assert_eq!(bench.events_of("prove.receipt").len(), 1);
    assert_eq!(bench.events_of("revoke.listed").len(), 1);
    let ends = bench
        .events()
        .into_iter()
        .filter(|event| event.event_type.starts_with("complete."));
    assert_eq!(ends.count(), 1, "the first cause stays");
}

#[tokio::test]
async fn many_tasks_end_together() {
    let bench = Bench::new().await;
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(bench.token().await.0);
    }
    let commits = bench.broker.ledger.health().commits;
    bench
        .broker
        .complete_tasks(tasks.clone(), EndCause::Lost)
        .await;
    assert!(
        bench.broker.ledger.health().commits - commits < 40,
        "they share commits"
    );
    for task in tasks {
        let row = bench.broker.ledger.reader().task(task).unwrap().unwrap();
        assert_eq!(row.state.cause(), Some(EndCause::Lost));
        assert!(bench.broker.receipt(task).unwrap().is_some());
    }
}

#[tokio::test]
async fn a_task_that_ended_before_its_request_came_gets_nothing() {
    let bench = Bench::new().await;
    let task = bench.new_task();
    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (0, 0));
    assert_eq!(
        bench.verified(&ended.receipt).totals.unwrap().credentials,
        0
    );
    let refused = bench
        .issue(bench.request(task, "billing-api"))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::TaskEnded);
}

#[tokio::test]
async fn a_request_and_the_end_of_its_task_at_once_leave_nothing_live() {
    for _ in 0..20 {
        let bench = Bench::new().await;
        let task = bench.new_task();
        let (issued, ended) = tokio::join!(
            bench.issue(bench.request(task, "billing-api")),
            bench.complete(task, "exited")
        );
        assert!(ended.is_ok());
        let rows = bench.broker.ledger.reader().credentials_of(task).unwrap();
        assert!(
            rows.iter()
                .all(|row| row.state == CredentialState::Contained)
        );
        assert_eq!(issued.is_ok(), rows.len() == 1);
    }
}

#[tokio::test]
async fn a_full_disk_stops_issuing_and_no_revocation() {
    let bench = Bench::new().await;
    let (task, id, token) = bench.token().await;
    bench.broker.ledger.faults().set_max_pages(1);
    let mut refused = None;
    for _ in 0..10_000 {
        if let Err(problem) = bench
            .issue(bench.request(bench.new_task(), "billing-api"))
            .await
        {
            refused = Some(problem);
            break;
        }
    }
    assert_eq!(refused.unwrap().code, Code::StoreFull);
    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (0, 1));
    assert_eq!(
        ended.receipt, "",
        "its leaf is in the reserve, not in the tree yet"
    );
    assert!(!bench.is_active(&token) && bench.is_listed(id).await);

    let bench = bench.reopened().await;
    assert!(!bench.is_active(&token) && bench.is_listed(id).await);
    let late = bench.complete(task, "exited").await.unwrap();
    assert_eq!(bench.verified(&late.receipt).task, Some(task));
    assert_eq!(bench.events_of("prove.receipt").len(), 1);
}

#[tokio::test]
async fn another_hosts_task_does_not_exist_here() {
    let bench = Bench::new().await;
    let (task, _, token) = bench.token().await;
    let r = ephor_proto::grpc::v1::CompleteRequest {
        task_id: task.to_bytes().to_vec(),
        cause: "exited".into(),
        ..Default::default()
    };
    let refused = bench
        .broker
        .complete(&bench.peer("web-2"), r)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
    assert!(bench.is_active(&token));
    assert_eq!(
        bench.complete(task, "lost").await.unwrap_err().code,
        Code::InvalidRequest
    );
}

#[tokio::test]
async fn an_end_that_a_crash_cut_in_half_is_driven_on_at_start() {
    let bench = Bench::new().await;
    let (task, id, token) = bench.token().await;
    let (other, single, _) = bench.token().await;
    begin_only(&bench, task).await;
    half_revoke(&bench, single).await;
    assert!(!bench.is_active(&token), "refused from the first commit on");

    let bench = bench.reopened().await;
    assert!(!bench.is_active(&token));
    assert!(bench.is_listed(id).await);
    bench.broker.sweep().await;
    assert!(bench.broker.receipt(task).unwrap().is_some());
    assert_eq!(bench.row(id).state, CredentialState::Contained);
    assert_eq!(bench.row(single).state, CredentialState::Contained);
    let row = bench.broker.ledger.reader().task(other).unwrap().unwrap();
    assert_eq!(row.state, TaskState::Open);
}

async fn begin_only(bench: &Bench, task: TaskId) {
    let end = End {
        task,
        cause: EndCause::Exited,
        by: By::Broker,
    };
    match bench.broker.advance(&end).await.unwrap() {
        Step::Submitted(ticket, _) => drop(ticket.await.unwrap()),
        Step::Closed(_) | Step::AtTargets(_) => panic!("it was open"),
    }
}

async fn half_revoke(bench: &Bench, id: ephor_proto::id::CredentialId) {
    let now = bench.broker.clock.wall();
    let row = super::revoke_row(bench.row(id), EndCause::Revoked, now).unwrap();
    let batch = crate::ledger::Batch {
        name: "test.half",
        lane: crate::ledger::Lane::Revoke,
        require: vec![],
        rows: vec![row.into()],
        events: vec![],
    };
    bench.broker.ledger.submit(batch).unwrap().await.unwrap();
}
