//! A target whose history does not go on from where it was.

use super::*;

impl Kit {
    fn lsn_is(&self, lsn: u64) {
        self.bench.clock.advance_millis(10);
        self.orders.with(|inner| inner.lsn = lsn);
    }

    async fn compare(&self) {
        self.bench.clock.advance_millis(10);
        self.bench.broker.reconcile("orders").await;
    }

    fn told(&self) -> usize {
        self.bench.events_of("revoke.target_changed").len()
    }

    fn is_hurried(&self) -> bool {
        self.bench.broker.targets.is_hurried("orders")
    }
}

/// As after a cold copy, or a machine's snapshot: same system id, same timeline.
#[tokio::test]
async fn a_step_back_on_the_same_timeline_is_noticed_at_the_next_call_and_told_once() {
    let kit = Kit::new().await;
    let broker = &kit.bench.broker;
    kit.lsn_is(0x50);
    kit.compare().await;
    // An older answer that comes late says nothing.
    let begun = kit.bench.clock.boottime();
    let late = broker.target("orders").unwrap().at.seen().await.unwrap();
    kit.lsn_is(0x60);
    broker.sample("orders").await.unwrap();
    broker.heard_of("orders", &late, begun);
    assert!(!kit.is_hurried());
    kit.lsn_is(0x10);
    broker.sample("orders").await.unwrap();
    assert!(kit.is_hurried());
    // By the time it is compared its log has passed the old place: it went back all the same.
    kit.lsn_is(0x70);
    kit.compare().await;
    assert_eq!(kit.told(), 1);
    kit.compare().await;
    assert_eq!(kit.told(), 1);
    // Noticed by a comparison itself.
    kit.lsn_is(0x20);
    for lsn in 0x20..0x24 {
        kit.lsn_is(lsn);
        kit.compare().await;
        assert_eq!(kit.told(), 2, "the same is not told again");
    }
    let kit = kit.restarted().await;
    kit.lsn_is(0x24);
    kit.compare().await;
    assert_eq!(kit.told(), 2);
    kit.lsn_is(0x10);
    kit.compare().await;
    assert_eq!(kit.told(), 3);
}

#[tokio::test]
async fn a_comparison_that_is_wanted_while_one_is_under_way_is_not_forgotten() {
    let kit = Kit::new().await;
    let targets = &kit.bench.broker.targets;
    assert!(targets.begin_look("orders"));
    targets.hurry_look("orders");
    for _ in 0..2 {
        kit.bench.broker.reconcile_changed();
        assert!(kit.is_hurried());
    }
    targets.end_look("orders");
    kit.bench.broker.reconcile_changed();
    assert!(!kit.is_hurried());
    kit.until("it was compared", |kit| {
        kit.bench.broker.targets.last_heard("orders").is_some()
    })
    .await;
}

/// What was proven shortly before an outage of hours is in doubt after it, also across a restart.
#[tokio::test]
async fn what_was_proven_before_a_long_silence_is_looked_for_again() {
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.bench.broker.revoke(id, "a test").await.unwrap();
    let looked_at_again = |kit: &Kit| {
        let events = kit.bench.events_of("revoke.target_changed");
        events.last().unwrap().facts["looked_at_again"].clone()
    };
    kit.lsn_is(0x50);
    kit.compare().await;
    kit.bench.pass_seconds(3_600);
    kit.lsn_is(0x40);
    kit.compare().await;
    assert_eq!(looked_at_again(&kit), "1");
    // From then on that is long ago.
    kit.lsn_is(0x30);
    kit.compare().await;
    assert_eq!(looked_at_again(&kit), "0");

    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.bench.broker.revoke(id, "a test").await.unwrap();
    kit.compare().await;
    let kit = kit.restarted().await;
    kit.bench.pass_seconds(3_600);
    kit.lsn_is(0x20);
    kit.compare().await;
    assert_eq!(looked_at_again(&kit), "1");
}
