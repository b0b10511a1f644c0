//! Many at once.

use super::kit::{EPOCH, shared};
use crate::kind::postgres::*;

/// One that cannot be dropped, one that is gone, one that was never made: each has its own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_end_together_and_one_that_cannot_holds_up_no_other() {
    let world = shared();
    let target = world.target();
    let mut outs = Vec::new();
    for _ in 0..100 {
        outs.push(world.mint(&target).await);
    }
    let session = world.cluster.session(outs[3].pair(), "orders", "").unwrap();
    let seen = format!(
        "select count(*) = 1 from pg_stat_activity where usesysid = {}",
        outs[3].oid
    );
    world.cluster.wait_true("postgres", &seen).unwrap();
    world.ask(&format!("drop role \"{}\"", outs[5].name()));
    let stuck = outs[7].name().to_owned();
    world
        .cluster
        .psql(
            "other",
            &format!("create table stuck (n int); alter table stuck owner to \"{stuck}\""),
        )
        .unwrap();
    let mut endings: Vec<Ending> = outs.iter().map(super::kit::Out::ending).collect();
    let (never, _) = super::kit::login(&["orders_rw"]);
    endings.push(Ending {
        credential: never.credential,
        role: never.role.clone(),
        reassign: None,
    });
    // Two kinds of ending in one call.
    endings[50].reassign = Some(super::kit::ident("orders_rw"));

    let done = target.revoke_many(EPOCH, &endings).await;
    assert_eq!(done.len(), endings.len());
    for (place, outcome) in done.iter().enumerate() {
        match (place, outcome) {
            (7, Err(Failed::Refused { why, .. })) => {
                assert!(why.contains("database other"), "{why}")
            }
            (7, other) => panic!("{other:?}"),
            (3, Ok(evidence)) => assert_eq!((evidence.dropped, evidence.sessions_ended), (true, 1)),
            (5 | 100, Ok(evidence)) => assert!(!evidence.dropped),
            (_, Ok(evidence)) => {
                assert!(evidence.dropped && evidence.sessions_ended == 0, "{place}")
            }
            (_, Err(why)) => panic!("{place}: {why}"),
        }
    }
    let left = outs
        .iter()
        .map(|out| out.oid.to_string())
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(
        world.ask(&format!(
            "select string_agg(rolname, ',') from pg_roles where oid in ({left})"
        )),
        stuck
    );
    assert!(!session.finish().unwrap().contains("still here"));
    world.cluster.psql("other", "drop table stuck").unwrap();
    assert!(
        target
            .revoke_many(EPOCH, &endings)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(
        world.ask(&format!(
            "select count(*) from pg_roles where oid in ({left})"
        )),
        "0"
    );
    assert!(target.revoke_many(EPOCH, &[]).await.is_empty());
}
