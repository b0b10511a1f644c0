//! What cannot be shown to be dead, because its server is no more: a person answers for it.

use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::EndCause;

use super::super::harness::POLICY;
use super::*;

#[tokio::test]
async fn a_person_may_answer_for_what_a_gone_server_cannot_say_and_it_is_never_called_dead() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let task = bench.new_task();
    let (id, _) = login(&kit.ask(task).await.unwrap());
    kit.confirm(&[id]).await;
    let accept = async |reason: &str| bench.broker.accept(id, reason, "uid 0").await;
    let refused = accept("gone").await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict, "it lives: {}", refused.detail);

    kit.orders.is(Mood::Refuses);
    bench
        .broker
        .complete_tasks(vec![task], EndCause::Lost)
        .await;
    bench.clock.advance_millis(4_900);
    bench.broker.flag_late().await;
    assert!(bench.row(id).overdue.is_some());
    let refused = accept("gone").await.unwrap_err();
    assert!(
        refused.detail.contains("still in policy"),
        "{}",
        refused.detail
    );

    // The server is no more, and policy says so.
    bench.put_policy(POLICY);
    assert_eq!(accept("  ").await.unwrap_err().code, Code::InvalidRequest);
    accept("db1 was scrapped, INC-7").await.unwrap();
    accept("again").await.unwrap();
    let events = bench.events_of("revoke.accepted");
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (
            events[0].facts["by"].as_str(),
            events[0].facts["target"].as_str()
        ),
        ("uid 0", "orders")
    );
    assert!(events[0].reason.is_some());

    // The task gets its receipt, which names it without a proof and does not count it.
    for _ in 0..1_000 {
        bench.broker.sweep().await;
        if bench
            .broker
            .ledger
            .reader()
            .receipt_leaf(task)
            .unwrap()
            .is_some()
        {
            break;
        }
        bench.clock.advance_millis(100);
    }
    let event = bench.verified(&bench.receipt(task));
    let totals = event.totals.unwrap();
    assert_eq!((totals.credentials, totals.dead, totals.listed), (2, 0, 1));
    let seen = event
        .evidence
        .iter()
        .find(|seen| seen.credential == id)
        .unwrap();
    assert_eq!((seen.state, seen.proof), (CredentialState::Revoking, None));
    assert_eq!(seen.place, "orders, not asked: accepted by uid 0");

    // It stays in sight, and is ended when the server comes back after all.
    let row = bench.row(id);
    assert_eq!(row.state, CredentialState::Revoking);
    assert!(
        row.overdue
            .unwrap()
            .to_string()
            .starts_with("accepted by uid 0 on ")
    );
    kit.orders.is(Mood::Well);
    bench.clock.advance_millis(61_000);
    kit.all_dead().await;
    kit.judge();
}
