//! Servers that follow, and one that takes over without all that was said: what the receipt says then.

use ephor_proto::state::task::EndCause;

use super::*;

/// It is not listed.
const ALONE: &str = "connections = 8";

/// A server and one that follows it, in policy with `more`, in which `{}` is the follower's port.
async fn followed(more: &str) -> (World, Cluster) {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let standby = cluster.standby(&[]).unwrap();
    let bench = Bench::new().await;
    let more = more.replace("{}", &standby.port().to_string());
    begin_with(&bench, cluster.port(), &more);
    (World { bench, cluster }, standby)
}

fn is_refused(cluster: &Cluster, pair: (&str, &str)) -> bool {
    let refused = cluster.psql_as(pair, "orders", "select 1");
    refused.is_err_and(|why| why.to_string().contains("authentication failed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_one_with_a_session_on_a_standby() {
    for (more, says) in [
        (
            r#"standbys = ["127.0.0.1:{}"]"#,
            ", standby 127.0.0.1:{} at 0/",
        ),
        (
            ALONE,
            "; partial: 1 of the servers that follow are not listed",
        ),
    ] {
        let (world, standby) = followed(more).await;
        let bench = &world.bench;
        let task = bench.new_task();
        let answer = bench.issue(bench.request(task, "orders-db")).await.unwrap();
        let (id, given) = login(&answer);
        world.cluster.wait_followed(&standby).unwrap();
        let pair = (given.user.as_str(), given.password.as_str());
        let mut session = standby.session(pair, "orders", "").unwrap();
        session.send("select 7;").unwrap();
        let idle = format!(
            "select count(*) = 1 from pg_stat_activity where usename = '{}' and state = 'idle'",
            given.user
        );
        standby.wait_true("postgres", &idle).unwrap();
        let ended = completed(bench, task).await;
        let receipt = bench.verified(&ended.receipt);
        let said = &receipt.evidence[0];
        assert_eq!((said.credential, said.proof), (id, Some(Proof::Dropped)));
        let says = says.replace("{}", &standby.port().to_string());
        assert!(said.place.contains(&says), "{} in {}", says, said.place);
        if more != ALONE {
            assert!(!said.place.contains("partial"), "{}", said.place);
            assert!(!session.finish().unwrap().contains("still here"));
            assert!(is_refused(&standby, pair));
        }
    }
}

/// The standby was made the only host of policy: nothing is ended, and it is said why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_of_one_whose_database_is_in_recovery() {
    let (world, standby) = followed(ALONE).await;
    let bench = &world.bench;
    let task = bench.new_task();
    let (id, given) = login(&bench.issue(bench.request(task, "orders-db")).await.unwrap());
    world.cluster.wait_followed(&standby).unwrap();
    begin(bench, standby.port());
    assert!(bench.complete(task, "exited").await.is_err());
    bench.clock.advance_millis(5_000);
    bench.broker.flag_late().await;
    let late = bench.row(id).overdue.unwrap().to_string();
    assert!(late.contains("no host of it takes writes"), "{late}");
    assert!(late.contains("is in recovery"), "{late}");
    begin(bench, world.cluster.port());
    bench.clock.advance_millis(61_000);
    let ended = completed(bench, task).await;
    let said = &bench.verified(&ended.receipt).evidence[0];
    assert_eq!(said.proof, Some(Proof::Dropped));
    assert!(said.place.contains(", timeline 1, lsn "), "{}", said.place);
    let pair = (given.user.as_str(), given.password.as_str());
    assert!(is_refused(&world.cluster, pair));
}

/// A failover to a replica that never saw the fence. The receipt named the server, its timeline and how far
/// it was: that stays true. What is not true any more is reopened, without a person, and ended there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_after_a_failover_that_lost_the_fence() {
    let (mut world, standby) = followed(ALONE).await;
    let (task, other) = (world.bench.new_task(), world.bench.new_task());
    let bench = &world.bench;
    let (id, given) = login(&bench.issue(bench.request(task, "orders-db")).await.unwrap());
    let pair = (given.user.as_str(), given.password.as_str());
    // Known to be where it is: from here on another history is noticed.
    bench.broker.reconcile("orders").await;
    world.cluster.wait_followed(&standby).unwrap();
    let cut = "alter system set primary_conninfo = ''; select pg_reload_conf()";
    standby.psql("postgres", cut).unwrap();
    let alone = "select count(*) = 0 from pg_stat_wal_receiver";
    standby.wait_true("postgres", alone).unwrap();
    // Only the old primary will ever have known this one.
    let (lost, _) = login(
        &bench
            .issue(bench.request(other, "orders-db"))
            .await
            .unwrap(),
    );
    let ended = completed(bench, task).await;
    let first = bench.verified(&ended.receipt).evidence[0].place.clone();
    assert!(first.contains(", timeline 1, lsn "), "{first}");
    assert!(bench.events_of("revoke.target_changed").is_empty());

    world.cluster.crash().unwrap();
    standby.promote().unwrap();
    let lives = standby.psql_as(pair, "orders", "select 1");
    assert_eq!(lives.unwrap(), "1", "the dead login lives again there");
    begin(&world.bench, standby.port());
    let bench = &world.bench;
    bench.clock.advance_millis(31_000);
    bench.broker.sample("orders").await.unwrap();
    assert_eq!(
        bench.broker.targets.hurried(),
        ["orders"],
        "within a sample"
    );
    bench.broker.reconcile("orders").await;
    let changed = bench.events_of("revoke.target_changed");
    assert_eq!(changed.len(), 1);
    let facts = &changed[0].facts;
    assert!(facts["before"].contains(", timeline 1, "), "{facts:?}");
    assert!(facts["now"].contains(", timeline 2, "), "{facts:?}");
    let id_of = |text: &str| text.split(',').next().unwrap().to_owned();
    assert_eq!(id_of(&facts["before"]), id_of(&facts["now"]), "one cluster");
    assert_eq!(facts["looked_at_again"], "1");
    let reopened = bench.events_of("revoke.reopened");
    assert_eq!(reopened.len(), 1);
    assert!(
        reopened[0].facts["before"].contains("timeline 1"),
        "{reopened:?}"
    );
    for _ in 0..2_000 {
        if [id, lost].map(|id| bench.row(id).state) == [CredentialState::Dead; 2] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        bench.clock.advance_millis(10);
    }
    assert!(is_refused(&standby, pair));
    let names = "select count(*) from pg_roles where rolname like 'eph\\_%'";
    assert_eq!(standby.psql("postgres", names).unwrap(), "0");
    let evidence = bench.row(id).evidence.unwrap();
    assert!(evidence.contains(", timeline 2, "), "{evidence}");
    // The one that the new primary never had: told, and its task's receipt says that it is absent there.
    bench
        .broker
        .complete_tasks(vec![other], EndCause::Exited)
        .await;
    let drift = bench.events_of("revoke.drift");
    assert_eq!(drift[0].facts["differs"], "it is not there");
    let said = &bench.verified(&bench.receipt(other)).evidence[0];
    assert_eq!((said.credential, said.proof), (lost, Some(Proof::Absent)));
    assert!(said.place.contains(", timeline 2, "), "{}", said.place);
    // Nothing more is told of the same.
    bench.broker.reconcile("orders").await;
    assert_eq!(bench.events_of("revoke.target_changed").len(), 1);
}
