//! Logins at a target: made after their record, let out after their outcome, ended there.

mod accepted;
mod certificate;
mod compared;
mod doubtful;
mod known;
mod late;
mod mended;
mod moved;
mod real;

use std::collections::BTreeSet;
use std::sync::Arc;

use ephor_proto::grpc::v1;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::problem::Code;
use ephor_proto::state::credential::{CredentialState, Proof};
use ephor_proto::state::task::EndCause;
use ephor_proto::time::Clock;

use super::harness::{Bench, POLICY, only};
use crate::kind::effect::scripted::{Mood, Script};
use crate::kind::effect::{AtTarget, Content};
use crate::kind::targets::{Endpoint, Known};

const LOGINS: &str = r#"
[target.orders]
owner = "team:dba"
postgres = { url = "postgres://ephor@db1/orders" }
[target.other]
owner = "team:dba"
postgres = { url = "postgres://ephor@db2/other" }
[entitlement.orders-db]
owner = "team:orders"
purpose = "Serve the order page"
who = ["orders/web"]
gives = [{ postgres = { target = "orders", role = "orders_rw" } }, { jwt = { audience = "search" } }]
[entitlement.other-db]
owner = "team:orders"
purpose = "Look things up"
who = ["orders/web"]
gives = [{ postgres = { target = "other", role = "other_ro" } }]
"#;

/// A broker whose policy gives logins at two targets that do what the test says.
struct Kit {
    bench: Bench,
    orders: Arc<Script>,
    other: Arc<Script>,
}

impl Kit {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let kit = Self {
            bench,
            orders: Arc::default(),
            other: Arc::default(),
        };
        kit.begin();
        kit
    }

    fn begin(&self) {
        self.bench.put_policy(&format!("{POLICY}{LOGINS}"));
        for (name, script) in [("orders", &self.orders), ("other", &self.other)] {
            let known = Known {
                owner: "team:dba".to_owned(),
                at: AtTarget::Scripted(Arc::clone(script)),
                endpoint: Endpoint {
                    host: "db1".to_owned(),
                    port: 5432,
                    sslmode: "verify-full".to_owned(),
                    sslrootcert: String::new(),
                },
                has_secret: false,
                policy: None,
            };
            self.bench.broker.targets.put(name, known);
        }
        self.bench.broker.start_timers();
    }

    /// As after a crash and a restart: with the stores of both sides, and nothing else.
    async fn restarted(self) -> Self {
        let kit = Self {
            bench: self.bench.reopened().await,
            orders: self.orders,
            other: self.other,
        };
        kit.begin();
        kit
    }

    async fn ask(&self, task: TaskId) -> Result<v1::IssueResponse, ephor_proto::problem::Problem> {
        self.bench
            .issue(self.bench.request(task, "orders-db"))
            .await
    }

    async fn confirm(&self, ids: &[CredentialId]) {
        let r = v1::ConfirmRequest {
            instance_id: Vec::new(),
            credential_ids: ids.iter().map(|id| id.to_bytes().to_vec()).collect(),
        };
        let peer = self.bench.peer("web-1");
        self.bench.broker.confirm(&peer, r).await.unwrap();
    }

    /// All that the store knows of this kind.
    fn logins(&self) -> Vec<(CredentialState, Content)> {
        let reader = self.bench.broker.ledger.reader();
        let all = reader.credentials(&Default::default()).unwrap();
        let all = all.iter().filter(|row| !row.kind.is_signed());
        all.map(|row| (row.state, Content::of(row).unwrap()))
            .collect()
    }

    /// What lives at the target has a record before it, and what is called dead there is dead.
    fn judge(&self) {
        let alive = self.orders.with(|inner| inner.alive.clone());
        let known: BTreeSet<String> = self.logins().into_iter().map(|(_, c)| c.name).collect();
        assert!(alive.keys().all(|name| known.contains(name)), "{alive:?}");
        for (state, content) in self.logins() {
            let dead = state == CredentialState::Dead;
            assert!(!(dead && alive.contains_key(&content.name)), "{content:?}");
        }
    }

    /// So many more in the store that are like this one, and nowhere else.
    async fn store_more_like(&self, id: CredentialId, many: u64) {
        let first = self.bench.row(id);
        for some in 0..many / 500 {
            let rows = (0..500).map(|n| {
                let mut row = first.clone();
                row.id = CredentialId::from_parts(some * 500 + n + 1, [7; 10]);
                row.version = 1;
                row.item = format!("{}_{some}_{n}", first.item);
                row.content = row.content.replace(&first.item, &row.item);
                crate::ledger::Row::from(row)
            });
            let batch = crate::ledger::Batch {
                name: "test.many",
                lane: crate::ledger::Lane::Normal,
                require: Vec::new(),
                rows: rows.collect(),
                events: Vec::new(),
            };
            let stored = self.bench.broker.ledger.submit(batch).unwrap().await;
            stored.unwrap();
        }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if is_so(self) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            self.bench.clock.advance_millis(5);
        }
        panic!("{what}: {:?}", self.logins());
    }

    async fn all_dead(&self) {
        let dead = |kit: &Self| {
            kit.logins()
                .iter()
                .all(|(state, _)| *state == CredentialState::Dead)
        };
        self.until("all logins are dead", dead).await;
        self.judge();
    }
}

fn login(answer: &v1::IssueResponse) -> (CredentialId, v1::Login) {
    let one = answer
        .credentials
        .iter()
        .find(|one| one.login.is_some())
        .unwrap();
    assert!(one.token.is_empty());
    (
        CredentialId::from_slice(&one.id).unwrap(),
        one.login.clone().unwrap(),
    )
}

#[tokio::test]
async fn a_login_is_recorded_made_recorded_and_handed_out_in_this_order() {
    let kit = Kit::new().await;
    let answer = kit.ask(kit.bench.new_task()).await.unwrap();
    let (id, login) = login(&answer);
    assert_eq!((login.host.as_str(), login.port), ("db1", 5432));
    assert_eq!(
        (login.database.as_str(), login.group.as_str()),
        ("orders", "orders_rw")
    );
    assert!(login.user.starts_with("eph_orders_db_"), "{}", login.user);
    let (there, until) = kit.orders.with(|inner| inner.alive[&login.user].clone());
    assert_eq!(there, login.password);
    let row = kit.bench.row(id);
    assert_eq!((row.state, row.expires_at), (CredentialState::Live, until));
    assert_eq!(row.item, login.user);
    let types: Vec<_> = kit
        .bench
        .events()
        .into_iter()
        .map(|event| event.event_type)
        .collect();
    let at = |verb: &str| types.iter().position(|one| one == verb).unwrap();
    assert!(at("issue.recorded") < at("issue.minted"), "{types:?}");
    for event in kit.bench.events() {
        let leaf = String::from_utf8(event.leaf_bytes().unwrap()).unwrap();
        assert!(!leaf.contains(&login.password), "{leaf}");
    }
    assert!(!row.content.contains(&login.password), "{}", row.content);
}

#[tokio::test]
async fn the_end_of_its_task_ends_it_at_the_target_before_the_receipt() {
    let kit = Kit::new().await;
    let task = kit.bench.new_task();
    let (id, login) = login(&kit.ask(task).await.unwrap());
    let answer = kit.bench.complete(task, "exited").await.unwrap();
    assert_eq!(
        (answer.dead, answer.listed),
        (1, 1),
        "the login, and the token"
    );
    assert!(kit.orders.with(|inner| inner.alive.is_empty()));
    let receipt = kit.bench.verified(&answer.receipt);
    let seen = receipt
        .evidence
        .iter()
        .find(|seen| seen.credential == id)
        .unwrap();
    assert_eq!(
        (seen.state, seen.proof),
        (CredentialState::Dead, Some(Proof::Dropped))
    );
    assert!(
        seen.place.starts_with("orders (system id 1, timeline 1"),
        "{}",
        seen.place
    );
    let dead = kit.bench.events_of("prove.dead");
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].facts["name"], login.user);
    kit.judge();
}

#[tokio::test]
async fn what_was_not_made_or_may_have_been_is_not_handed_out_and_is_ended() {
    for (mood, proof) in [
        (Mood::Refuses, Proof::Absent),
        // Dropped at the first try, whose answer was lost, too.
        (Mood::LosesAnswers, Proof::Absent),
    ] {
        let kit = Kit::new().await;
        kit.orders.is(mood);
        let problem = kit.ask(kit.bench.new_task()).await.unwrap_err();
        assert_eq!(problem.code, Code::TargetFailed, "{problem}");
        kit.orders.is(Mood::Well);
        kit.all_dead().await;
        let gone = kit.logins()[0].1.gone.clone().unwrap();
        assert_eq!(gone.proof, proof);
        // The token of the same request went nowhere, and is listed.
        let reader = kit.bench.broker.ledger.reader();
        let rows = reader.credentials(&Default::default()).unwrap();
        assert!(rows.iter().all(|row| !row.state.is_usable()), "{rows:?}");
    }
}

#[tokio::test]
async fn a_target_that_hangs_holds_up_neither_another_nor_tokens_and_is_told_in_time() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let (slow, fast) = (bench.new_task(), bench.new_task());
    kit.ask(slow).await.unwrap();
    bench.issue(bench.request(fast, "other-db")).await.unwrap();
    let (of_tokens, _, _) = bench.token().await;
    kit.orders.is(Mood::Hangs);
    // As the sweep does it: together.
    let ends = vec![slow, fast, of_tokens];
    bench.broker.complete_tasks(ends, EndCause::Lost).await;
    let closed = |task| {
        bench
            .broker
            .ledger
            .reader()
            .receipt_leaf(task)
            .unwrap()
            .is_some()
    };
    assert!(closed(of_tokens), "at once");
    kit.until("the other target's is gone", |kit| {
        kit.other.with(|inner| inner.alive.is_empty())
    })
    .await;
    for _ in 0..100 {
        bench.broker.sweep().await;
        if closed(fast) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(closed(fast) && !closed(slow));
    bench.clock.advance_millis(4_900);
    bench.broker.flag_late().await;
    let late = bench.events_of("revoke.overdue");
    assert_eq!(late.len(), 1);
    assert_eq!(late[0].facts["target"], "orders");
    assert_eq!(late[0].facts["target_owner"], "team:dba");
    let overdue = crate::ledger::CredentialFilter {
        overdue: Some(true),
        ..Default::default()
    };
    let rows = bench.broker.ledger.reader().credentials(&overdue).unwrap();
    assert!(
        rows[0]
            .overdue
            .as_ref()
            .unwrap()
            .to_string()
            .contains("no answer yet"),
        "{rows:?}"
    );
}

#[tokio::test]
async fn what_nobody_confirmed_is_ended_and_what_was_confirmed_stays() {
    let kit = Kit::new().await;
    let (kept, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    let (lost, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.confirm(&[kept, CredentialId::from_parts(1, [1; 10])])
        .await;
    kit.bench.clock.advance_millis(10_001);
    kit.bench.broker.sweep().await;
    kit.until("the lost one is dead", |kit| {
        kit.bench.row(lost).state == CredentialState::Dead
    })
    .await;
    assert_eq!(kit.bench.row(kept).state, CredentialState::Live);
    // Also across a restart, which asks once more for what was not confirmed.
    let (lost, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    let kit = kit.restarted().await;
    kit.bench.clock.advance_millis(10_001);
    kit.bench.broker.sweep().await;
    kit.until("the lost one is dead", |kit| {
        kit.bench.row(lost).state == CredentialState::Dead
    })
    .await;
    assert_eq!(kit.bench.row(kept).state, CredentialState::Live);
    kit.judge();
}

#[tokio::test]
async fn a_login_whose_time_is_over_is_ended_at_its_target() {
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.confirm(&[id]).await;
    kit.bench.pass_seconds(299);
    kit.bench.broker.expire_due().await;
    assert_eq!(kit.bench.row(id).state, CredentialState::Live);
    kit.bench.pass_seconds(2);
    kit.bench.broker.expire_due().await;
    kit.all_dead().await;
}

#[tokio::test]
async fn a_renewal_lets_the_same_login_live_longer_there_and_sends_no_secret() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    let task = bench.new_task();
    let r = bench.request(task, "other-db");
    let (id, login) = login(&bench.issue(r).await.unwrap());
    kit.confirm(&[id]).await;
    bench.pass_seconds(200);
    let mut r = bench.request(task, "other-db");
    r.renews = id.to_bytes().to_vec();
    for _ in 0..2 {
        // The second time as when the first answer was lost.
        let answer = bench.issue(r.clone()).await.unwrap();
        let renewed = &answer.credentials[0];
        assert_eq!((answer.credentials.len(), &renewed.login), (1, &None));
        assert_eq!(only(&answer).0, id);
        let row = bench.row(id);
        let (there, until) = kit.other.with(|inner| inner.alive[&login.user].clone());
        assert_eq!((until, there), (row.expires_at, login.password.clone()));
        assert_eq!(row.expires_at.as_millis(), renewed.expires_at);
        assert!(row.expires_at > bench.clock.wall().saturating_add_millis(290_000));
    }
    // Not told to the target: told to the caller.
    kit.other.is(Mood::Refuses);
    let mut r = bench.request(task, "other-db");
    r.renews = id.to_bytes().to_vec();
    bench.pass_seconds(10);
    let problem = bench.issue(r).await.unwrap_err();
    assert_eq!(problem.code, Code::TargetFailed);
    assert!(problem.detail.contains("stays as it was handed out"));
    assert_eq!(bench.row(id).state, CredentialState::Live);
}

#[tokio::test]
async fn the_same_request_again_ends_the_first_login_and_makes_another() {
    let kit = Kit::new().await;
    let r = kit.bench.request(kit.bench.new_task(), "orders-db");
    let first = kit.bench.issue(r.clone()).await.unwrap();
    let (id, before) = login(&first);
    let again = kit.bench.issue(r.clone()).await.unwrap();
    let (next, after) = login(&again);
    assert_ne!((id, &before.user), (next, &after.user));
    assert_ne!(before.password, after.password);
    kit.until("the first is dead", |kit| {
        kit.bench.row(id).state == CredentialState::Dead
    })
    .await;
    assert!(
        kit.orders
            .with(|inner| inner.alive.keys().eq([&after.user]))
    );
    let (first, second) = (kit.bench.row(id), kit.bench.row(next));
    assert_eq!(first.grant, second.grant);
    assert_eq!(first.expires_at, second.expires_at);
    kit.judge();
    // What a person ended is not made again.
    kit.bench.broker.revoke(next, "a test").await.unwrap();
    assert_eq!(
        kit.bench.issue(r).await.unwrap_err().code,
        Code::CredentialEnded
    );
    // Once it failed, the same request may be sent again, too.
    kit.other.is(Mood::Refuses);
    let r = kit.bench.request(kit.bench.new_task(), "other-db");
    let problem = kit.bench.issue(r.clone()).await.unwrap_err();
    assert_eq!(problem.code, Code::TargetFailed);
    kit.other.is(Mood::Well);
    let last = login(&kit.bench.issue(r).await.unwrap()).1;
    kit.until("only the last one lives", |kit| {
        kit.other.with(|inner| inner.alive.keys().eq([&last.user]))
    })
    .await;
}

#[tokio::test]
async fn an_intent_without_outcome_is_ended_after_a_restart() {
    let kit = Kit::new().await;
    kit.orders.is(Mood::Hangs);
    let task = kit.bench.new_task();
    let asked = kit.ask(task);
    let hung = tokio::time::timeout(std::time::Duration::from_millis(300), asked).await;
    assert!(hung.is_err(), "the caller went away");
    assert_eq!(kit.logins()[0].0, CredentialState::Intended);
    kit.orders.is(Mood::Well);
    let kit = kit.restarted().await;
    kit.bench.broker.sweep().await;
    kit.all_dead().await;
    // And without one: a while after the intent.
    kit.orders.is(Mood::Hangs);
    let asked = kit.ask(kit.bench.new_task());
    let hung = tokio::time::timeout(std::time::Duration::from_millis(300), asked).await;
    assert!(hung.is_err());
    kit.orders.is(Mood::Well);
    kit.bench.clock.advance_millis(11_000);
    kit.bench.broker.sweep().await;
    kit.all_dead().await;
}

#[tokio::test]
async fn what_a_target_has_is_compared_with_the_store() {
    let kit = Kit::new().await;
    let bench = &kit.bench;
    kit.orders
        .with(|inner| inner.groups = vec!["orders_rw".to_owned()]);
    let (kept, of_kept) = login(&kit.ask(bench.new_task()).await.unwrap());
    let (missing, of_missing) = login(&kit.ask(bench.new_task()).await.unwrap());
    let (dead, of_dead) = login(&kit.ask(bench.new_task()).await.unwrap());
    kit.confirm(&[kept, missing]).await;
    bench.broker.revoke(dead, "a test").await.unwrap();
    let until = bench.row(kept).expires_at;
    let longer = until.saturating_add_millis(3_600_000);
    let stray = crate::kind::name::make("orders-db", "inst-1", [9; 16]);
    let foreign = crate::kind::name::make("orders-db", "another", [9; 16]);
    kit.orders.with(|inner| {
        inner.alive.remove(&of_missing.user);
        inner.alive.get_mut(&of_kept.user).unwrap().1 = longer;
        for name in [&of_dead.user, &stray, &foreign] {
            inner.alive.insert(name.clone(), ("x".to_owned(), longer));
        }
        inner.epoch = 0;
    });
    bench.clock.advance_millis(31_000);
    bench.broker.reconcile("orders").await;
    kit.until("only what is held live, and another's, is there", |kit| {
        let mut expected = [&of_kept.user, &foreign];
        expected.sort();
        kit.orders.with(|inner| inner.alive.keys().eq(expected))
    })
    .await;
    assert_eq!(kit.orders.with(|inner| inner.alive[&of_kept.user].1), until);
    assert_eq!(kit.orders.with(|inner| inner.epoch), 1, "begun there");
    kit.until("what was missing is dead", |kit| {
        [missing, dead]
            .iter()
            .all(|id| kit.bench.row(*id).state == CredentialState::Dead)
    })
    .await;
    assert_eq!(bench.row(kept).state, CredentialState::Live);
    let names = |verb: &str| {
        let events = bench.events_of(verb);
        let mut names: Vec<_> = events
            .iter()
            .map(|event| event.facts.get("name").cloned())
            .collect();
        names.sort();
        names
    };
    let mut drifted = [Some(of_kept.user.clone()), Some(of_missing.user)];
    drifted.sort();
    assert_eq!(names("revoke.drift"), drifted);
    assert_eq!(names("revoke.stray"), [Some(stray.clone())]);
    assert_eq!(names("revoke.stray_ended"), [Some(stray)]);
    assert_eq!(bench.events_of("revoke.reopened").len(), 1);
    // More than it was made: ended.
    kit.orders
        .with(|inner| inner.attributes = vec!["createrole".to_owned()]);
    bench.broker.reconcile("orders").await;
    kit.until("it is dead", |kit| {
        kit.bench.row(kept).state == CredentialState::Dead
    })
    .await;
    assert!(kit.orders.with(|inner| inner.alive.contains_key(&foreign)));
}

#[tokio::test]
async fn a_later_look_reopens_what_was_hidden() {
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.bench.broker.revoke(id, "a test").await.unwrap();
    kit.bench.broker.look_again(kit.bench.clock.wall()).await;
    kit.orders.with(|inner| inner.hidden = 1);
    kit.bench.clock.advance_millis(66_000);
    // Also across a restart.
    let kit = kit.restarted().await;
    kit.bench.clock.advance_millis(66_000);
    kit.bench.broker.look_again(kit.bench.clock.wall()).await;
    let reopened = kit.bench.events_of("revoke.reopened");
    assert_eq!(reopened.len(), 1);
    assert!(
        reopened[0].facts["why"].contains("1 sessions"),
        "{reopened:?}"
    );
    kit.all_dead().await;
    assert_eq!(kit.bench.events_of("prove.dead").len(), 2);
    kit.bench.clock.advance_millis(66_000);
    kit.bench.broker.look_again(kit.bench.clock.wall()).await;
    assert_eq!(kit.bench.events_of("revoke.reopened").len(), 1);
}

#[tokio::test]
async fn its_use_is_sampled_and_stands_where_its_end_is_told() {
    let kit = Kit::new().await;
    let (id, login) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    let at = ephor_proto::time::UnixMillis::from_millis;
    kit.orders.with(|inner| {
        inner.uses = vec![crate::kind::postgres::Use {
            role: login.user.clone(),
            oid: 7,
            pid: 1,
            from: Some("10.0.0.7".to_owned()),
            database: None,
            first: at(1_000),
            last: at(2_000),
            is_static: false,
        }];
    });
    kit.bench.broker.sample("orders").await.unwrap();
    kit.bench.broker.revoke(id, "a test").await.unwrap();
    let used = kit.bench.events_of("prove.dead")[0].used.clone().unwrap();
    assert_eq!(
        (used.place.as_str(), used.source.as_str()),
        ("10.0.0.7", "pg_stat_activity")
    );
    assert_eq!(
        (used.first, used.last, used.count),
        (Some(at(1_000)), Some(at(2_000)), Some(1))
    );
}

#[tokio::test]
async fn a_login_whose_row_was_set_aside_is_ended_by_what_the_log_says() {
    let kit = Kit::new().await;
    let task = kit.bench.new_task();
    let (id, _) = login(&kit.ask(task).await.unwrap());
    let connection = rusqlite::Connection::open(kit.bench.database()).unwrap();
    let spoilt = connection.execute(
        "UPDATE credential SET state = 'no state' WHERE id = ?1",
        [id.to_bytes()],
    );
    assert_eq!(spoilt.unwrap(), 1);
    drop(connection);
    let kit = kit.restarted().await;
    assert_eq!(
        kit.bench
            .broker
            .ledger
            .reader()
            .quarantined_count()
            .unwrap(),
        1
    );
    let ended = kit.bench.complete(task, "exited").await.unwrap();
    assert_eq!((ended.dead, ended.listed), (1, 1));
    assert!(kit.orders.with(|inner| inner.alive.is_empty()));
}

/// Also when all that is left of it is that it is there: what it is called is in the log.
#[tokio::test]
async fn a_login_whose_row_goes_bad_while_the_broker_runs_is_ended_by_what_the_log_says() {
    for damage in ["content = '{}'", "kind = 'no kind'", "state = 'no state'"] {
        let kit = Kit::new().await;
        let task = kit.bench.new_task();
        let (bad, _) = login(&kit.ask(task).await.unwrap());
        let (good, _) = login(&kit.ask(task).await.unwrap());
        let connection = rusqlite::Connection::open(kit.bench.database()).unwrap();
        let sql = format!("UPDATE credential SET {damage} WHERE id = ?1");
        assert_eq!(connection.execute(&sql, [bad.to_bytes()]).unwrap(), 1);
        let ended = kit.bench.complete(task, "exited").await;
        let ended = ended.unwrap_or_else(|problem| panic!("{damage}: {problem:?}"));
        assert_eq!((ended.dead, ended.listed), (2, 2), "{damage}");
        assert!(kit.orders.with(|inner| inner.alive.is_empty()), "{damage}");
        let receipt = kit.bench.verified(&ended.receipt);
        assert_eq!(receipt.facts["set_aside"], bad.to_string());
        let dead = receipt.evidence.iter().filter(|seen| seen.proof.is_some());
        let mut dead: Vec<_> = dead.map(|seen| seen.credential).collect();
        dead.sort_unstable();
        let mut both = [bad, good];
        both.sort_unstable();
        assert_eq!(dead, both, "{damage}");
        kit.judge();
    }
}

/// A restart with many: nothing is forgotten, nothing of them is asked of the target or ended.
#[tokio::test]
async fn ten_thousand_live_logins_survive_a_restart_untouched() {
    const MANY: u64 = 10_000;
    let kit = Kit::new().await;
    let (id, _) = login(
        &kit.bench
            .issue(kit.bench.request(kit.bench.new_task(), "other-db"))
            .await
            .unwrap(),
    );
    kit.confirm(&[id]).await;
    kit.store_more_like(id, MANY).await;
    kit.other.with(|inner| inner.calls.clear());
    let kit = kit.restarted().await;
    assert_eq!(kit.bench.broker.timers.len() as u64, MANY + 1);
    kit.bench.broker.sweep().await;
    kit.bench.broker.expire_due().await;
    assert!(
        kit.bench
            .broker
            .queues
            .waiting(kit.bench.clock.boottime())
            .is_empty()
            && kit.bench.broker.pending.is_empty()
    );
    assert_eq!(kit.other.with(|inner| inner.calls.len()), 0);
    assert_eq!(
        kit.bench.broker.ledger.reader().live_count().unwrap(),
        MANY + 1
    );
    // All of them at once: in batches, the newest request of a person among them.
    kit.bench.pass_seconds(301);
    kit.bench.broker.expire_due().await;
    for _ in 0..6_000 {
        if kit.bench.broker.ledger.reader().live_count().unwrap() == 0
            && kit
                .bench
                .broker
                .queues
                .waiting(kit.bench.clock.boottime())
                .is_empty()
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let dead = |row: &crate::ledger::CredentialRow| row.state == CredentialState::Dead;
    let rows = kit
        .bench
        .broker
        .ledger
        .reader()
        .credentials(&Default::default())
        .unwrap();
    assert!(rows.iter().filter(|row| !row.kind.is_signed()).all(dead));
    let calls = kit.other.with(|inner| inner.calls.len());
    assert!(calls < 1_000, "{calls} calls");
}

#[tokio::test]
async fn a_person_ends_one_and_waits_until_it_is_gone() {
    let kit = Kit::new().await;
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    let revoked = kit.bench.broker.revoke(id, "a test").await.unwrap();
    assert_eq!(revoked.row.state, CredentialState::Dead);
    kit.judge();
    // What policy no longer names stays reachable while this process runs.
    let (id, _) = login(&kit.ask(kit.bench.new_task()).await.unwrap());
    kit.bench.put_policy(POLICY);
    let revoked = kit.bench.broker.revoke(id, "a test").await.unwrap();
    assert_eq!(revoked.row.state, CredentialState::Dead);
}
