//! What is late says all that is known of it, wherever it is asked for, and also after a restart.

use super::*;
use crate::ledger::CredentialFilter;

impl Kit {
    /// What the listing says of one.
    fn late(&self, id: CredentialId) -> crate::ledger::Overdue {
        let row = self.bench.row(id);
        self.bench.broker.overdue_now(&row).unwrap()
    }

    async fn tick(&self, millis: u64) {
        self.bench.clock.advance_millis(millis);
        self.bench.broker.flag_late().await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Ten minutes, by the broker's clock.
#[tokio::test]
async fn what_is_late_says_reason_owner_tries_and_next_try_and_after_a_restart_what_was_stored() {
    let kit = Kit::new().await;
    let task = kit.bench.new_task();
    let (id, login) = login(&kit.ask(task).await.unwrap());
    kit.confirm(&[id]).await;
    kit.orders.is(Mood::Away);
    kit.bench
        .broker
        .complete_tasks(vec![task], EndCause::Lost)
        .await;
    let begun = kit.bench.clock.wall();
    while kit.bench.clock.wall() < begun.saturating_add_millis(600_000) {
        kit.tick(250).await;
    }
    // One that came due with the last tick may be under way.
    let is_planned = |kit: &Kit| {
        let now = kit.bench.clock.wall();
        kit.late(id).next_try.is_some_and(|next| next > now)
    };
    kit.until("the next try is planned", is_planned).await;
    let late = kit.late(id);
    assert_eq!(
        (late.target.as_str(), late.owner.as_str()),
        ("orders", "team:dba")
    );
    assert_eq!(late.why, "the script cannot be reached");
    let now = kit.bench.clock.wall();
    let next_try = late.next_try.unwrap();
    assert!(late.attempts >= 15, "{late:?}");
    assert!(next_try > now && next_try < now.saturating_add_millis(61_000));
    // Told again when it had been tried twice as often, and no more.
    let events = kit.bench.events_of("revoke.overdue");
    let tries: Vec<u32> = events
        .iter()
        .map(|event| event.facts["attempts"].parse().unwrap())
        .collect();
    assert!(tries.len() >= 2, "{tries:?}");
    assert!(
        tries.windows(2).all(|pair| pair[1] >= 2 * pair[0]),
        "{tries:?}"
    );
    let last = &events.last().unwrap().facts;
    assert_eq!(last["why"], "the script cannot be reached");
    assert_eq!(
        (&last["target_owner"], &last["target"]),
        (&late.owner, &late.target)
    );
    assert!(last.contains_key("next_try"), "{last:?}");
    let metrics = kit.bench.broker.metrics().await.unwrap();
    for line in [
        r#"ephor_target_ends{state="overdue"} 1"#,
        r#"ephor_target_overdue{reason="away"} 1"#,
        "ephor_overdue 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} in\n{metrics}"
        );
    }

    let stored = kit.bench.row(id).overdue.unwrap();
    let kit = kit.restarted().await;
    let now = kit.bench.broker.overdue_now(&kit.bench.row(id)).unwrap();
    assert!(now.attempts >= stored.attempts && now.attempts <= stored.attempts + 2);
    assert_eq!((&now.why, &now.owner), (&stored.why, &stored.owner));
    let filter = CredentialFilter {
        overdue: Some(true),
        ..CredentialFilter::default()
    };
    let reader = kit.bench.broker.ledger.reader();
    assert_eq!(reader.credentials(&filter).unwrap().len(), 1);
    drop(reader);
    kit.orders.is(Mood::Well);
    kit.bench.broker.fleet.listening();
    kit.bench.clock.advance_millis(61_000);
    kit.all_dead().await;
    assert!(
        kit.orders
            .with(|inner| !inner.alive.contains_key(&login.user))
    );
    assert_eq!(kit.bench.row(id).overdue, None);
}

/// An outage makes many late together: all are told within the bound, in few commits.
#[tokio::test]
async fn many_that_are_late_together_are_told_together() {
    const MANY: u64 = 2_000;
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.confirm(&[id]).await;
    kit.store_more_like(id, MANY).await;
    kit.orders.is(Mood::Away);
    let kit = kit.restarted().await;
    kit.bench.pass_seconds(301);
    kit.bench.broker.expire_due().await;
    let waiting = |kit: &Kit| {
        let waiting = kit.bench.broker.queues.waiting(kit.bench.clock.boottime());
        waiting.iter().map(|queue| queue.ends).sum::<u64>()
    };
    assert_eq!(waiting(&kit), MANY + 1);
    let before = kit.bench.broker.ledger.health().commits;
    kit.bench.clock.advance_millis(4_500);
    kit.bench.broker.flag_late().await;
    let commits = kit.bench.broker.ledger.health().commits - before;
    assert!(commits < MANY / 10, "{commits} commits");
    let counts = kit.bench.broker.ledger.reader().counts().unwrap();
    assert_eq!(counts.overdue, MANY + 1);
    let calls = kit.orders.with(|inner| inner.calls.len());
    assert!(calls < 20, "{calls} calls at a target that is away");
}
