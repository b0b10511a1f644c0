//! A role that was there before, lent to one task at a time at a real server: its password dies with
//! the task, and the role goes on, shut until the next one. Judged by `psql`.

mod against;
mod raw;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ephor_proto::grpc::v1;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::problem::Code;
use ephor_proto::state::credential::{CredentialState, Proof};
use ephor_testkit::postgres::Cluster;

use super::super::super::harness::Bench;
use super::{World, begin, cluster, login, policy};
use crate::kind::effect::Content;

const ROLE: &str = "legacy_app";

/// Takes the role for a new task.
async fn taken(bench: &Bench) -> (TaskId, CredentialId, v1::Login) {
    let task = bench.new_task();
    let answer = bench.issue(bench.request(task, "legacy")).await.unwrap();
    let (id, given) = login(&answer);
    assert_eq!(answer.credentials[0].kind, Kind::Secret.as_str());
    assert_eq!((given.user.as_str(), given.group.as_str()), (ROLE, ""));
    (task, id, given)
}

fn is_let_in(cluster: &Cluster, password: &str) -> bool {
    let said = cluster.psql_as((ROLE, password), "orders", "select session_user");
    match said {
        Ok(who) => who == ROLE,
        Err(why) => {
            let why = why.to_string();
            assert!(why.contains("password authentication failed"), "{why}");
            false
        }
    }
}

/// What the server itself has: the role is shut by us, with the password of nobody that was set last, nobody
/// is connected, nobody is a member, and nothing is out.
fn assert_back(cluster: &Cluster, of: &str) {
    let sql = "select not a.rolcanlogin and c.could_login, a.rolvaliduntil = 'infinity',
            a.rolpassword like 'SCRAM-SHA-256$1:' || c.salt || '$%',
            (select count(*) from pg_stat_activity s where s.usesysid = a.oid),
            (select count(*) from pg_auth_members m where m.roleid = a.oid),
            (select count(*) from ephor.checkout o where o.state <> 'in')
        from pg_authid a join ephor.checkout c on c.role_oid = a.oid
        where a.rolname = 'legacy_app' order by c.at desc limit 1";
    assert_eq!(cluster.psql("ephor", sql).unwrap(), "t|t|t|0|0|0", "{of}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_dies_with_the_task_and_the_role_goes_on() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    assert!(is_let_in(cluster, "of-old"));
    let (task, id, given) = taken(bench).await;
    assert!(is_let_in(cluster, &given.password));
    assert!(!is_let_in(cluster, "of-old"));
    let pair = (ROLE, given.password.as_str());
    let open = cluster.session(pair, "orders", "").unwrap();
    let is_there = "select count(*) = 1 from pg_stat_activity where usename = 'legacy_app'";
    cluster.wait_true("orders", is_there).unwrap();
    bench.broker.sample("orders").await.unwrap();

    let ended = bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (1, 0));
    assert!(!is_let_in(cluster, &given.password));
    assert!(!open.finish().unwrap().contains("still here"));
    assert_back(cluster, "one task");
    let receipt = bench.verified(&ended.receipt);
    let seen = &receipt.evidence[0];
    assert_eq!((seen.credential, seen.proof), (id, Some(Proof::Refused)));
    assert!(
        seen.place.contains("the role legacy_app goes on")
            && seen.place.contains("system id")
            && !seen.place.contains("partial"),
        "{}",
        seen.place
    );
    let gone = Content::of(&bench.row(id)).unwrap().gone.unwrap();
    assert_eq!(gone.sessions_ended, 1, "{gone:?}");
    let dead = bench.events_of("prove.dead");
    let used = dead[0].used.as_ref().unwrap();
    assert_eq!(
        (used.count, used.source.as_str()),
        (Some(1), "pg_stat_activity")
    );

    // The next task gets another one.
    let (task, second, next) = taken(bench).await;
    assert_ne!(next.password, given.password);
    let named = bench.broker.ledger.reader().logins_named(ROLE).unwrap();
    assert_eq!(named, [second]);
    assert!(is_let_in(cluster, &next.password));
    assert!(!is_let_in(cluster, &given.password));
    bench.complete(task, "exited").await.unwrap();
    assert_back(cluster, "two tasks");
    // No password of anybody is in the log of the server, or in ours.
    let log = cluster.log();
    let events = serde_json::to_string(&bench.events()).unwrap();
    for secret in [&given.password, &next.password] {
        assert!(!log.contains(secret) && !events.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_task_has_it_whatever_a_broker_believes() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let (first, second) = (bench.new_task(), bench.new_task());
    let (one, two) = tokio::join!(
        bench.issue(bench.request(first, "legacy")),
        bench.issue(bench.request(second, "legacy")),
    );
    let won = one.is_ok();
    let (answer, refused) = match (one, two) {
        (Ok(answer), Err(refused)) | (Err(refused), Ok(answer)) => (answer, refused),
        (one, two) => panic!("{one:?} {two:?}"),
    };
    // By what this broker knows, or by what the server said.
    assert_eq!(refused.code, Code::InUse, "{refused:?}");
    assert!(refused.retry_after.is_some(), "{refused:?}");
    let (winner, loser) = if won {
        (first, second)
    } else {
        (second, first)
    };
    let (winner_id, given) = login(&answer);
    assert!(is_let_in(cluster, &given.password));
    // Once it is recorded, nothing of another's is.
    let before = bench.events().len();
    let refused = bench
        .issue(bench.request(loser, "legacy"))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::InUse);
    let until = bench.row(winner_id).expires_at;
    for said in [
        format!("lent to task {} of yours on web-1", winner.short()),
        format!("or {until} unless it is renewed"),
        "Nothing was issued; ask again in 30 s".to_owned(),
    ] {
        assert!(refused.detail.contains(&said), "{said}: {refused:?}");
    }
    assert_eq!(refused.retry_after, Some(30));
    assert_eq!(bench.events_of("issue.minted").len(), 1);
    assert!(bench.events().len() <= before + 1);
    // Another broker knows nothing of it; its server does.
    let known = bench.broker.target("orders").unwrap();
    let target = known.at.own_login().unwrap().target();
    let password = ephor_crypto::scram::password().unwrap();
    let verifier = ephor_crypto::scram::ScramVerifier::new(&password, 1.try_into().unwrap());
    let other = crate::kind::postgres::Checkout {
        credential: bench.broker.new_id().unwrap(),
        role: crate::kind::postgres::Ident::parse(ROLE).unwrap(),
        database: crate::kind::postgres::Ident::parse("orders").unwrap(),
        valid_until: ephor_proto::time::UnixMillis::MAX,
        deadline: ephor_proto::time::UnixMillis::from_millis(4_000_000_000_000),
    };
    let epoch = bench.broker.installation.epoch;
    let refused = target.check_out(epoch, &other, &verifier.unwrap()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("is checked out") && refused.contains(&winner_id.to_string()),
        "{refused}"
    );
    // Its end is none of the one who has it.
    let one = (other.credential, &other.role);
    let database = crate::kind::postgres::Ident::parse("orders").unwrap();
    target.check_in(epoch, one, &database).await.unwrap();
    assert!(is_let_in(cluster, &given.password));

    assert_eq!(bench.complete(winner, "exited").await.unwrap().dead, 1);
    let answer = bench.issue(bench.request(loser, "legacy")).await.unwrap();
    assert!(is_let_in(cluster, &login(&answer).1.password));
    assert!(!is_let_in(cluster, &given.password));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_sets_a_password_of_its_own_loses_that_too() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let (task, _, given) = taken(bench).await;
    let pair = (ROLE, given.password.as_str());
    cluster
        .psql_as(pair, "orders", "alter role legacy_app password 'mine'")
        .unwrap();
    assert!(is_let_in(cluster, "mine"));
    // Held open, it keeps every ALTER ROLE waiting.
    let mut open = cluster.session((ROLE, "mine"), "orders", "").unwrap();
    open.send("begin; alter role legacy_app password 'theirs';")
        .unwrap();
    let is_there = "select count(*) = 1 from pg_stat_activity where usename = 'legacy_app' and state = 'idle in transaction'";
    cluster.wait_true("orders", is_there).unwrap();
    assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 1);
    for password in ["mine", "theirs", given.password.as_str()] {
        assert!(!is_let_in(cluster, password), "{password}");
    }
    assert_back(cluster, "its own password");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_administrators_do_meanwhile() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let proof = |id| {
        let content = Content::of(&bench.row(id)).unwrap();
        content.gone.unwrap()
    };
    // Renamed: it is the same role.
    let (task, id, given) = taken(bench).await;
    cluster
        .psql("postgres", "alter role legacy_app rename to renamed")
        .unwrap();
    assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 1);
    assert!(proof(id).remains.contains("the role renamed goes on"));
    let refused = cluster.psql_as(("renamed", &given.password), "orders", "select 1");
    assert!(refused.is_err());
    cluster
        .psql("postgres", "alter role renamed rename to legacy_app")
        .unwrap();
    // Shut: it stays so, and nobody gets it.
    let (task, _, _) = taken(bench).await;
    cluster
        .psql("postgres", "alter role legacy_app nologin")
        .unwrap();
    bench.broker.reconcile("orders").await;
    assert_eq!(bench.events_of("revoke.drift").len(), 1);
    assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 1);
    let can = "select rolcanlogin from pg_roles where rolname = 'legacy_app'";
    assert_eq!(cluster.psql("postgres", can).unwrap(), "f");
    let task = bench.new_task();
    let refused = bench
        .issue(bench.request(task, "legacy"))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::TargetRefused);
    let said = "somebody has shut it: to mend it: ALTER ROLE legacy_app LOGIN. Nothing was issued";
    assert!(refused.detail.ends_with(said), "{refused:?}");
    assert_eq!(refused.retry_after, None);
    cluster
        .psql("postgres", "alter role legacy_app login")
        .unwrap();
    // A way to more than it should be.
    let reach = "grant pg_execute_server_program to legacy_app";
    cluster.psql("postgres", reach).unwrap();
    let refused = bench
        .issue(bench.request(task, "legacy"))
        .await
        .unwrap_err();
    assert!(refused.detail.contains("reaches beyond"), "{refused:?}");
    let reach = "revoke pg_execute_server_program from legacy_app";
    cluster.psql("postgres", reach).unwrap();
    // Whoever installs does not allow it any more.
    let allowed = "delete from ephor.static_role where role = 'legacy_app'";
    cluster.psql("ephor", allowed).unwrap();
    let refused = bench
        .issue(bench.request(task, "legacy"))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::TargetRefused);
    let said = "to mend it: ephor target init URL --static-role legacy_app. Nothing was issued";
    assert!(refused.detail.ends_with(said), "{refused:?}");
    let allowed = "insert into ephor.static_role values ('legacy_app')";
    cluster.psql("ephor", allowed).unwrap();
    // The server is set back to when it was out.
    let (task, id, _) = taken(bench).await;
    assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 1);
    let back =
        "update ephor.checkout set state = 'out' where at = (select max(at) from ephor.checkout)";
    cluster.psql("ephor", back).unwrap();
    bench.broker.reconcile("orders").await;
    assert_eq!(bench.events_of("revoke.reopened").len(), 1);
    for _ in 0..500 {
        bench.broker.sweep().await;
        if bench.row(id).state == CredentialState::Dead {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.clock.advance_millis(50);
    }
    assert_back(cluster, "set back");
    // Dropped: there is no password left.
    let (task, id, given) = taken(bench).await;
    let open = cluster
        .session((ROLE, &given.password), "orders", "")
        .unwrap();
    let is_there = "select count(*) = 1 from pg_stat_activity where usename = 'legacy_app'";
    cluster.wait_true("orders", is_there).unwrap();
    cluster.psql("postgres", "drop role legacy_app").unwrap();
    assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 1);
    assert_eq!(proof(id).proof, Proof::Absent);
    assert!(!open.finish().unwrap().contains("still here"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_renewed_made_again_for_a_lost_answer_and_says_what_it_could_not_see() {
    let world = World::new().await;
    let (bench, cluster) = (&world.bench, &world.cluster);
    let until = || {
        let sql = "select extract(epoch from rolvaliduntil)::bigint from pg_roles where rolname = 'legacy_app'";
        cluster
            .psql("postgres", sql)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let task = bench.new_task();
    let r = bench.request(task, "legacy");
    let (first, given) = login(&bench.issue(r.clone()).await.unwrap());
    // Its answer was lost: what was made is ended, and made again.
    let (second, again) = login(&bench.issue(r).await.unwrap());
    assert_ne!(first, second);
    assert!(!is_let_in(cluster, &given.password));
    assert!(is_let_in(cluster, &again.password));
    let before = until();
    bench.pass_seconds(60);
    let mut renewal = bench.request(task, "legacy");
    renewal.renews = second.to_bytes().to_vec();
    let renewed = bench.issue(renewal).await.unwrap();
    assert!(renewed.credentials[0].login.is_none());
    assert_eq!(until(), before + 60);
    // A renewal before that one, which is carried out only now.
    let known = bench.broker.target("orders").unwrap();
    let content = Content::of(&bench.row(second)).unwrap();
    let late = bench.row(second).expires_at.saturating_sub_millis(30_000);
    let late = known
        .at
        .extend(bench.broker.installation.epoch, (second, &content), late);
    late.await.unwrap();
    assert_eq!(until(), before + 60);
    assert!(is_let_in(cluster, &again.password));
    // A server that lets it in without asking.
    let hba = cluster.data().join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    let trust = format!("host all legacy_app 127.0.0.1/32 trust\n{lines}");
    std::fs::write(&hba, trust).unwrap();
    cluster.psql("postgres", "select pg_reload_conf()").unwrap();
    let rule = "select count(*) = 1 from pg_hba_file_rules where user_name = '{legacy_app}'";
    cluster.wait_true("postgres", rule).unwrap();
    assert_eq!(bench.complete(task, "exited").await.unwrap().dead, 2);
    let gone = Content::of(&bench.row(second)).unwrap().gone.unwrap();
    assert!(
        gone.partial
            .contains("lets legacy_app in without a password"),
        "{gone:?}"
    );
    // What policy no longer says is taken back.
    let (_, id, _) = taken(bench).await;
    let other = policy(cluster.port()).replace("role = \"legacy_app\"", "role = \"another\"");
    bench.apply(&other).await.unwrap();
    for _ in 0..500 {
        bench.broker.sweep().await;
        if bench.row(id).state == CredentialState::Dead {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.clock.advance_millis(50);
    }
    assert_back(cluster, "policy");
    let task = bench.new_task();
    let refused = bench
        .issue(bench.request(task, "legacy"))
        .await
        .unwrap_err();
    assert!(
        refused.detail.contains("not allowed to be lent"),
        "{refused:?}"
    );
}

const CHILD: &str = "EPHOR_TEST_LENT_DIR";
const PORT: &str = "EPHOR_TEST_LENT_PORT";
const NAME: &str = "issue::tests::logins::real::lent::child";
/// Of a role that is open, as before it was ever lent: nobody knows of what the process had begun.
const OPEN: [&str; 5] = [
    "lent.taken",
    "lent.fenced",
    "lent.quiet",
    "lent.set",
    "lent.back",
];
const POINTS: [&str; 11] = [
    "mint.before_call",
    "mint.after_call",
    "mint.after_commit",
    "mint.successor",
    "lent.fenced",
    "lent.quiet",
    "lent.set",
    "lent.back",
    "revoke.before_target",
    "revoke.after_target",
    "revoke.gone",
];

/// The process that dies; does nothing when it was not started for that.
#[tokio::test]
async fn child() {
    let told = [CHILD, PORT].map(std::env::var);
    let [Ok(dir), Ok(port)] = told else {
        return;
    };
    crate::crash::armed::check().unwrap();
    let bench = Bench::create_at(Path::new(&dir), 1).await;
    begin(&bench, port.parse().unwrap());
    let task = bench.new_task();
    let r = bench.request(task, "legacy");
    drop(bench.issue(r.clone()).await);
    drop(bench.issue(r).await);
    drop(bench.complete(task, "exited").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_nobody_keeps_a_password() {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let opened = OPEN.iter().map(|point| (*point, true));
    for (point, is_open) in POINTS.iter().map(|point| (*point, false)).chain(opened) {
        if is_open {
            let open = "alter role legacy_app login password 'of-old'";
            cluster.psql("postgres", open).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(CHILD, dir.path())
            .env(PORT, cluster.port().to_string())
            .env("EPHOR_CRASH", point)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        let status = status.await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was not reached");

        let bench = Bench::take_over_at(dir.path(), 400, 1);
        let reader = bench.broker.ledger.reader();
        let rows = reader.credentials(&Default::default()).unwrap();
        drop(reader);
        // What is out there is on record, and what is called dead is not out.
        let sql = "select credential from ephor.checkout where state <> 'in'";
        for id in cluster.psql("ephor", sql).unwrap().lines() {
            let row = rows.iter().find(|row| row.id.to_string() == id);
            if is_open && row.is_none() {
                continue;
            }
            let row = row.unwrap_or_else(|| panic!("{point}: {id} without a record"));
            assert_ne!(row.state, CredentialState::Dead, "{point}");
        }
        begin(&bench, cluster.port());
        bench.broker.reconcile("orders").await;
        for _ in 0..2_000 {
            bench.broker.sweep().await;
            bench.broker.expire_due().await;
            let reader = bench.broker.ledger.reader();
            let rows = reader.credentials(&Default::default()).unwrap();
            drop(reader);
            if rows.iter().all(|row| row.state == CredentialState::Dead) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            bench.clock.advance_millis(50);
        }
        let reader = bench.broker.ledger.reader();
        let rows = reader.credentials(&Default::default()).unwrap();
        drop(reader);
        assert!(!rows.is_empty(), "{point}");
        let dead = rows.iter().all(|row| row.state == CredentialState::Dead);
        assert!(dead, "{point}: {rows:?}");
        // Two looks at once, of the test and of the start, may refuse each other once.
        let out = "select count(*) from ephor.checkout where state <> 'in'";
        let is_out = || cluster.psql("ephor", out).unwrap() != "0";
        for _ in 0..100 {
            if !is_out() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            bench.broker.reconcile("orders").await;
        }
        assert!(!is_out(), "{point}");
        // Nothing was ever lent before the call: then the role has the password that it had.
        if point != "mint.before_call" {
            assert_back(&cluster, point);
            assert!(!is_let_in(&cluster, "of-old"), "{point}");
        }
    }
}
