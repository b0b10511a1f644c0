//! Ends of which it is not known whether they were stored, and what is in no queue.

use super::*;

impl Kit {
    /// Time passes and the sweep looks, until all are dead.
    async fn swept(&self) {
        for _ in 0..200 {
            self.bench.clock.advance_millis(100);
            self.bench.broker.expire_due().await;
            self.bench.broker.sweep().await;
            let dead = |(state, _): &(CredentialState, Content)| *state == CredentialState::Dead;
            if self.logins().iter().all(dead) {
                return self.judge();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{:?}", self.logins());
    }
}

#[tokio::test]
async fn an_expiry_of_doubtful_fate_ends_at_the_target() {
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.confirm(&[id]).await;
    kit.bench.pass_seconds(299);
    // Its token expires with it, in a commit of its own, so this one is the first.
    kit.bench.pass_seconds(2);
    kit.bench.broker.ledger.faults().doubt_next();
    kit.bench.broker.expire_due().await;
    assert_eq!(kit.bench.row(id).state, CredentialState::Revoking);
    assert!(
        kit.bench
            .broker
            .queues
            .waiting(kit.bench.clock.boottime())
            .is_empty()
    );
    kit.swept().await;
}

#[tokio::test]
async fn what_a_successor_of_doubtful_fate_replaced_is_ended_too() {
    let kit = Kit::new().await;
    let r = kit.bench.request(kit.bench.new_task(), "other-db");
    let (first, _) = login(&kit.bench.issue(r.clone()).await.unwrap());
    kit.confirm(&[first]).await;
    kit.bench.broker.ledger.faults().doubt_next();
    kit.bench.issue(r).await.unwrap_err();
    assert_eq!(kit.bench.row(first).state, CredentialState::Revoking);
    kit.swept().await;
    assert_eq!(kit.logins().len(), 2);
    assert!(kit.other.with(|inner| inner.alive.is_empty()));
}

#[tokio::test]
async fn a_reopening_of_doubtful_fate_is_ended_anew() {
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.bench.broker.revoke(id, "a test").await.unwrap();
    kit.orders.with(|inner| inner.hidden = 1);
    kit.bench.clock.advance_millis(66_000);
    kit.bench.broker.ledger.faults().doubt_next();
    kit.bench.broker.look_again(kit.bench.clock.wall()).await;
    assert_eq!(kit.bench.row(id).state, CredentialState::Revoking);
    kit.swept().await;
    assert_eq!(kit.bench.events_of("prove.dead").len(), 2);
}

#[tokio::test]
async fn what_is_revoking_and_in_no_queue_comes_back_to_one() {
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    let now = kit.bench.clock.wall();
    let row = crate::complete::revoke_row(kit.bench.row(id), EndCause::Revoked, now).unwrap();
    let batch = crate::ledger::Batch {
        name: "test.revoking",
        lane: crate::ledger::Lane::Revoke,
        require: Vec::new(),
        rows: vec![row.into()],
        events: Vec::new(),
    };
    let stored = kit.bench.broker.ledger.submit(batch).unwrap().await;
    stored.unwrap();
    kit.bench.broker.sweep().await;
    assert!(
        kit.bench
            .broker
            .queues
            .waiting(kit.bench.clock.boottime())
            .is_empty()
    );
    kit.bench.broker.reconcile_targets();
    kit.bench.broker.sweep().await;
    assert_eq!(
        kit.bench
            .broker
            .queues
            .waiting(kit.bench.clock.boottime())
            .len(),
        1
    );
}
