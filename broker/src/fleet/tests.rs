#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use ephor_crypto::digest::sha256;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Leaf, csr};
use ephor_proto::grpc::VERSION;
use ephor_proto::id::TaskId;
use ephor_proto::problem::Problem;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::state::task::{EndCause, TaskState};

use super::*;
use crate::app::tests::TestBroker;
use crate::ledger::{Row, TaskRow};

/// An agent as the broker knows it: key, certificate, and which start of it this is.
struct Agent {
    host: String,
    key: SigningKey,
    instance: InstanceId,
    boot_id: &'static str,
}

impl Agent {
    fn named(host: &str) -> Self {
        let key = SigningKey::generate().unwrap();
        Self {
            host: host.to_owned(),
            key,
            instance: InstanceId::from_parts(1, [1; 10]),
            boot_id: "boot-a",
        }
    }

    fn join_request(&self, token: &str) -> v1::JoinRequest {
        v1::JoinRequest {
            version: Some(VERSION),
            token: token.to_owned(),
            host: self.host.clone(),
            csr_der: csr(&self.key).unwrap(),
        }
    }

    /// What its connections show, whatever the broker thinks of it.
    fn certificate(&self) -> AgentCertificate {
        let spki_sha256 = sha256(&self.key.public_key().spki());
        AgentCertificate::for_tests(&self.host, spki_sha256, UnixMillis::MAX)
    }

    async fn hello(&self, test: &TestBroker) -> Result<v1::HelloResponse, Code> {
        let member = test
            .broker
            .fleet
            .member(&self.certificate())
            .map_err(|refusal| refusal.code)?;
        let request = v1::HelloRequest {
            version: Some(VERSION),
            instance_id: self.instance.to_bytes().to_vec(),
            boot_id: self.boot_id.to_owned(),
            checkpoint: String::new(),
        };
        test.broker
            .hello(&member, request)
            .await
            .map_err(|problem| problem.code)
    }

    fn peer(&self, test: &TestBroker) -> Result<Peer, Code> {
        let fleet = &test.broker.fleet;
        let member = fleet
            .member(&self.certificate())
            .map_err(|refusal| refusal.code)?;
        fleet
            .peer(member, &self.instance.to_bytes())
            .map_err(|refusal| refusal.code)
    }

    async fn heartbeat(
        &self,
        test: &TestBroker,
        seq: u64,
        open: &[TaskId],
    ) -> v1::HeartbeatResponse {
        self.heartbeat_with(test, seq, open, &[]).await
    }

    async fn heartbeat_with(
        &self,
        test: &TestBroker,
        seq: u64,
        open: &[TaskId],
        ended: &[(TaskId, &'static str)],
    ) -> v1::HeartbeatResponse {
        let peer = self.peer(test).unwrap();
        let request = v1::HeartbeatRequest {
            instance_id: self.instance.to_bytes().to_vec(),
            boot_id: self.boot_id.to_owned(),
            seq,
            open_tasks: open.iter().map(|id| id.to_bytes().to_vec()).collect(),
            ca_sequence: 0,
            checkpoint: String::new(),
            ended_tasks: ended.iter().map(ended_task).collect(),
        };
        test.broker.heartbeat(&peer, request).await.unwrap()
    }

    /// Opens tasks as issuing would.
    async fn open_tasks(&self, test: &TestBroker, count: u16) -> Vec<TaskId> {
        let id = |n: u16| {
            let mut random = [0; 10];
            random[8..].copy_from_slice(&n.to_be_bytes());
            TaskId::from_parts(1, random)
        };
        let rows = (0..count).map(|n| Row::Task(self.task(id(n), u64::from(n) + 1)));
        test.write(rows.collect()).await;
        (0..count).map(id).collect()
    }

    fn task(&self, id: TaskId, opened_seq: u64) -> TaskRow {
        TaskRow {
            id,
            version: 1,
            host: self.host.clone(),
            subject: "spiffe://test.example/orders/web"
                .parse::<SpiffeId>()
                .unwrap(),
            rule: "peer".to_owned(),
            pid: 7,
            start_time: 8,
            boot_id: self.boot_id.to_owned(),
            instance: self.instance,
            opened_seq,
            state: TaskState::Open,
            opened_at: UnixMillis::from_millis(1_800_000_000_000),
            ended_at: None,
            closed_at: None,
            deadline: None,
        }
    }
}

fn ended_task((task, cause): &(TaskId, &'static str)) -> v1::EndedTask {
    v1::EndedTask {
        task_id: task.to_bytes().to_vec(),
        cause: (*cause).to_owned(),
    }
}

async fn invite(test: &TestBroker, pattern: &str, ttl_seconds: Option<u64>) -> String {
    let invited = test.broker.invite(pattern, ttl_seconds).await.unwrap();
    invited.token.expose_str().unwrap().to_owned()
}

async fn joined(test: &TestBroker, host: &str) -> Agent {
    let agent = Agent::named(host);
    let token = invite(test, host, None).await;
    test.broker.join(agent.join_request(&token)).await.unwrap();
    agent
}

async fn active(test: &TestBroker, host: &str) -> Agent {
    let agent = joined(test, host).await;
    agent.hello(test).await.unwrap();
    agent
}

fn code<T>(outcome: Result<T, Problem>) -> Code {
    match outcome {
        Ok(_) => panic!("it was allowed"),
        Err(problem) => problem.code,
    }
}

fn state_of(test: &TestBroker, id: TaskId) -> TaskState {
    test.broker.ledger.reader().task(id).unwrap().unwrap().state
}

fn open_count(test: &TestBroker, host: &str) -> usize {
    test.broker
        .ledger
        .reader()
        .open_tasks_of(host)
        .unwrap()
        .len()
}

/// Virtual seconds, each with its silence tick.
fn seconds_pass(test: &TestBroker, seconds: u64) {
    for _ in 0..seconds {
        test.clock.advance_millis(1000);
        test.broker.fleet.judge_silence();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_parallel_redemptions_one_wins() {
    let test = TestBroker::new().await;
    let token = invite(&test, "*", None).await;
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..64 {
        // Half of them want one name, half have names of their own.
        let name = if n % 2 == 0 {
            "web-1".to_owned()
        } else {
            format!("db-{n}")
        };
        let (broker, request) = (
            Arc::clone(&test.broker),
            Agent::named(&name).join_request(&token),
        );
        #[allow(clippy::disallowed_methods)]
        tries.spawn(async move {
            broker
                .join(request)
                .await
                .map(drop)
                .map_err(|problem| problem.code)
        });
    }
    let outcomes = tries.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(
        outcomes
            .iter()
            .flat_map(|outcome| outcome.as_ref().err())
            .all(|code| *code == Code::JoinRefused)
    );
    assert_eq!(test.broker.ledger.reader().hosts().unwrap().len(), 1);
}

#[tokio::test]
async fn a_joined_agent_is_who_the_token_says() {
    let test = TestBroker::new().await;
    let agent = Agent::named("web-1");
    let token = invite(&test, "web-*", None).await;
    let answer = test.broker.join(agent.join_request(&token)).await.unwrap();
    let leaf = Leaf::parse(&answer.certificate_der).unwrap();
    assert_eq!(leaf.spiffe_id, "spiffe://test.example/agent/web-1");
    assert_eq!(leaf.spki, agent.key.public_key().spki());
    assert_eq!(
        answer.ca_certificates_der,
        [test.broker.keys.load().ca().certificate().der()]
    );
    assert!(agent.peer(&test).is_err(), "it has not said Hello");
    let hello = agent.hello(&test).await.unwrap();
    assert_eq!(hello.heartbeat_milliseconds, 5000);
    let expires_at = u64::try_from(leaf.not_after).unwrap() * 1000;
    assert_eq!(hello.renew_identity_at, expires_at - 8 * 3_600_000);
    assert_eq!(agent.peer(&test).unwrap().host(), "web-1");
    assert!(!test.broker.fleet.is_silent("web-1"));
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_told_without_their_value() {
    let test = TestBroker::new().await;
    let agent = Agent::named("web-1");
    let join = |token: String| {
        let request = agent.join_request(&token);
        test.broker.join(request)
    };
    let used = invite(&test, "*", None).await;
    test.broker
        .join(Agent::named("other").join_request(&used))
        .await
        .unwrap();
    assert_eq!(code(join(used.clone()).await), Code::JoinRefused);
    let elsewhere = invite(&test, "db-*", None).await;
    assert_eq!(code(join(elsewhere).await), Code::JoinRefused);
    let short = invite(&test, "*", Some(10)).await;
    test.clock.advance_millis(10_000);
    assert_eq!(code(join(short).await), Code::JoinRefused);
    // The right id with another secret.
    let good = invite(&test, "*", None).await;
    let mut parts: Vec<&str> = good.split('.').collect();
    let secret = "A".repeat(43);
    parts[2] = &secret;
    assert_eq!(code(join(parts.join(".")).await), Code::JoinRefused);
    assert_eq!(
        code(join("ej1.nonsense".to_owned()).await),
        Code::InvalidRequest
    );
    assert!(test.broker.ledger.reader().host("web-1").unwrap().is_none());

    let events = test.broker.ledger.reader().events(0, 100).unwrap();
    let refused: Vec<_> = events
        .iter()
        .filter(|event| event.json.contains("operate.join_refused"))
        .collect();
    assert_eq!(refused.len(), 4, "one for each kind");
    for token in [used, good] {
        let secret = token.split('.').nth(2).unwrap();
        assert!(!events.iter().any(|event| event.json.contains(secret)));
    }
}

#[tokio::test]
async fn malformed_joins_are_named() {
    let test = TestBroker::new().await;
    let token = invite(&test, "*", None).await;
    let good = Agent::named("web-1").join_request(&token);
    let with = |change: &dyn Fn(&mut v1::JoinRequest)| {
        let mut request = good.clone();
        change(&mut request);
        test.broker.join(request)
    };
    assert_eq!(
        code(with(&|r| r.host = "../x".into()).await),
        Code::InvalidRequest
    );
    assert_eq!(code(with(&|r| r.host.clear()).await), Code::InvalidRequest);
    assert_eq!(
        code(with(&|r| r.csr_der.clear()).await),
        Code::InvalidRequest
    );
    assert_eq!(
        code(with(&|r| r.csr_der = vec![0; 5000]).await),
        Code::TooLarge
    );
    assert_eq!(
        code(with(&|r| r.version = Some(v1::Version { major: 1, minor: 2 })).await),
        Code::VersionSkew
    );
    assert_eq!(code(with(&|r| r.version = None).await), Code::VersionSkew);
    let skew_of_one = with(&|r| r.version = Some(v1::Version { major: 1, minor: 1 })).await;
    assert!(skew_of_one.is_ok());
}

#[tokio::test]
async fn a_token_never_takes_the_name_of_a_living_agent() {
    let test = TestBroker::new().await;
    test.broker.fleet.listening();
    let living = active(&test, "web-1").await;
    let token = invite(&test, "web-1", None).await;
    let thief = Agent::named("web-1");
    assert_eq!(
        code(test.broker.join(thief.join_request(&token)).await),
        Code::JoinRefused
    );
    assert!(living.peer(&test).is_ok(), "the living one is not touched");

    // Dead for 15 s the name is free, with the same token; the old key is void.
    let tasks = living.open_tasks(&test, 2).await;
    seconds_pass(&test, 15);
    test.broker.join(thief.join_request(&token)).await.unwrap();
    assert_eq!(living.peer(&test).unwrap_err(), Code::Unauthenticated);
    assert!(thief.hello(&test).await.is_ok());
    assert_ne!(
        state_of(&test, tasks[0]),
        TaskState::Open,
        "what the old one held has ended"
    );
}

#[tokio::test]
async fn a_ban_is_final_until_a_newer_token() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    let spare = invite(&test, "web-*", None).await;
    let tasks = agent.open_tasks(&test, 3).await;
    let certificate = agent.certificate();
    let cut = test.broker.fleet.cut_token(&certificate);
    let mut watch = test.broker.fleet.watch(&agent.peer(&test).unwrap());

    let listed = test.broker.ban("web-1", "stolen laptop").await.unwrap();
    assert_eq!((listed.state.as_str(), listed.open_tasks), ("banned", 0));
    assert!(cut.is_cancelled());
    assert!(watch.recv().await.is_none(), "its stream has ended");
    assert_eq!(agent.peer(&test).unwrap_err(), Code::AgentBanned);
    assert_eq!(agent.hello(&test).await.unwrap_err(), Code::AgentBanned);
    assert!(test.broker.fleet.is_silent("web-1"));
    for task in tasks {
        assert_eq!(state_of(&test, task).cause(), Some(EndCause::Revoked));
    }
    let again = test.broker.ban("web-1", "").await.unwrap();
    assert_eq!(again.state, "banned");
    assert_eq!(
        test.broker.ban("web-2", "").await.unwrap_err().code,
        Code::NotFound
    );

    let newcomer = Agent::named("web-1");
    assert_eq!(
        code(test.broker.join(newcomer.join_request(&spare)).await),
        Code::JoinRefused
    );
    test.clock.advance_millis(1);
    let token = invite(&test, "web-1", None).await;
    test.broker
        .join(newcomer.join_request(&token))
        .await
        .unwrap();
    assert_eq!(agent.peer(&test).unwrap_err(), Code::Unauthenticated);
    assert!(newcomer.hello(&test).await.is_ok());
}

#[tokio::test]
async fn a_ban_outlives_a_restart() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    test.broker.ban("web-1", "").await.unwrap();
    let test = test.restart(Duration::from_secs(1)).await;
    assert_eq!(agent.peer(&test).unwrap_err(), Code::AgentBanned);
}

#[tokio::test]
async fn a_task_that_commits_behind_a_ban_is_swept() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    test.broker.ban("web-1", "").await.unwrap();
    let late = agent.open_tasks(&test, 1).await;
    for host in test.broker.fleet.freshly_banned() {
        test.broker.end_tasks_of(&host, EndCause::Revoked).await;
    }
    assert_ne!(state_of(&test, late[0]), TaskState::Open);
    seconds_pass(&test, 61);
    test.broker.fleet.freshly_banned();
    assert!(
        test.broker.fleet.freshly_banned().is_empty(),
        "and not for ever"
    );
}

#[tokio::test]
async fn the_newest_start_of_an_agent_is_the_only_one() {
    let test = TestBroker::new().await;
    let mut agent = active(&test, "web-1").await;
    let old = agent.instance;
    agent.instance = InstanceId::from_parts(2, [2; 10]);
    assert_eq!(agent.peer(&test).unwrap_err(), Code::StaleInstance);
    agent.hello(&test).await.unwrap();
    assert!(agent.peer(&test).is_ok());
    agent.instance = old;
    assert_eq!(agent.peer(&test).unwrap_err(), Code::StaleInstance);
    // The one before, which still runs somewhere: a copy. It cannot take its place back.
    assert_eq!(agent.hello(&test).await.unwrap_err(), Code::StaleInstance);
}

#[tokio::test]
async fn certificates_that_are_not_the_hosts_own_are_refused() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    let spki = agent.certificate().spki_sha256();
    let member = |host: &str, spki, until| {
        let certificate = AgentCertificate::for_tests(host, spki, UnixMillis::from_millis(until));
        test.broker
            .fleet
            .member(&certificate)
            .map(drop)
            .map_err(|refusal| refusal.code)
    };
    assert_eq!(member("web-1", spki, u64::MAX), Ok(()));
    assert_eq!(
        member("web-1", [0; 32], u64::MAX),
        Err(Code::Unauthenticated)
    );
    assert_eq!(member("web-2", spki, u64::MAX), Err(Code::Unauthenticated));
    assert_eq!(
        member("web-1", spki, 1_700_000_000_000),
        Err(Code::Unauthenticated)
    );
}

#[tokio::test]
async fn a_lost_renewal_locks_nobody_out() {
    let test = TestBroker::new().await;
    let mut agent = active(&test, "web-1").await;
    let renew = async |agent: &Agent, key: &SigningKey| {
        let member = test.broker.fleet.member(&agent.certificate()).unwrap();
        let request = v1::RenewIdentityRequest {
            instance_id: agent.instance.to_bytes().to_vec(),
            public_key_der: key.public_key().spki(),
            checkpoint: String::new(),
        };
        test.broker.renew_identity(&member, request).await.unwrap()
    };
    // Two answers are lost; the key in use stays good, the lost ones do not.
    let (lost, next) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    renew(&agent, &lost).await;
    assert!(agent.peer(&test).is_ok());
    let answer = renew(&agent, &next).await;
    assert_eq!(
        Leaf::parse(&answer.certificate_der).unwrap().spki,
        next.public_key().spki()
    );
    let first = std::mem::replace(&mut agent.key, lost);
    assert_eq!(agent.peer(&test).unwrap_err(), Code::Unauthenticated);
    agent.key = next;
    agent.hello(&test).await.unwrap();
    let test_with = |key| Agent {
        host: "web-1".into(),
        key,
        instance: agent.instance,
        boot_id: agent.boot_id,
    };
    assert_eq!(
        test_with(first).peer(&test).unwrap_err(),
        Code::Unauthenticated,
        "the one before is void now"
    );
    let row = test.broker.ledger.reader().host("web-1").unwrap().unwrap();
    assert_eq!(row.generation, 3);
}

#[tokio::test]
async fn silence_takes_15_s_and_ends_with_a_heartbeat() {
    let test = TestBroker::new().await;
    test.broker.fleet.listening();
    let agent = active(&test, "web-1").await;
    let task = agent.open_tasks(&test, 1).await;
    seconds_pass(&test, 14);
    assert!(!test.broker.fleet.is_silent("web-1"));
    seconds_pass(&test, 1);
    assert!(test.broker.fleet.is_silent("web-1"));
    assert_eq!(open_count(&test, "web-1"), 1, "silence ends nothing");
    assert!(agent.peer(&test).is_ok(), "it may speak");
    assert!(
        test.broker.fleet.is_silent("web-1"),
        "but only a heartbeat ends its silence"
    );
    agent.heartbeat(&test, 5, &task).await;
    assert!(!test.broker.fleet.is_silent("web-1"));
    assert_eq!(open_count(&test, "web-1"), 1);
}

#[tokio::test]
async fn when_a_silent_host_was_last_heard_outlives_a_restart() {
    let test = TestBroker::new().await;
    test.broker.fleet.listening();
    let agent = active(&test, "web-1").await;
    seconds_pass(&test, 5);
    agent.heartbeat(&test, 1, &[]).await;
    let heard = test.broker.hosts().unwrap()[0].last_heard;
    test.broker.store_last_heard("web-1").await;
    let test = test.restart(Duration::from_secs(60)).await;
    assert!(heard.is_some());
    assert_eq!(test.broker.hosts().unwrap()[0].last_heard, heard);
}

/// Named test 1 of the first issue.
#[tokio::test]
async fn a_broker_away_for_10_minutes_ends_none_of_1000_tasks() {
    let test = TestBroker::new().await;
    test.broker.fleet.listening();
    let agent = active(&test, "web-1").await;
    let tasks = agent.open_tasks(&test, 1000).await;
    let test = test.restart(Duration::from_secs(600)).await;
    // Starting takes its time, and the agent backs off before it comes back.
    seconds_pass(&test, 30);
    test.broker.fleet.listening();
    seconds_pass(&test, 14);
    assert!(
        !test.broker.fleet.is_silent("web-1"),
        "nobody could be heard yet"
    );
    agent.hello(&test).await.unwrap();
    let answer = agent.heartbeat(&test, 2000, &tasks).await;
    assert!(answer.closed_tasks.is_empty());
    assert_eq!(open_count(&test, "web-1"), 1000);
}

/// The same, when the broker was not restarted but stopped or suspended.
#[tokio::test]
async fn a_broker_that_stood_still_blames_nobody() {
    let test = TestBroker::new().await;
    test.broker.fleet.listening();
    let _agent = active(&test, "web-1").await;
    seconds_pass(&test, 3);
    test.clock.advance_millis(600_000);
    test.broker.fleet.judge_silence();
    seconds_pass(&test, 14);
    assert!(!test.broker.fleet.is_silent("web-1"));
    seconds_pass(&test, 1);
    assert!(test.broker.fleet.is_silent("web-1"));
}

/// Named test 5 of the first issue.
#[tokio::test]
async fn a_new_boot_within_15_s_ends_the_old_tasks_at_hello() {
    let test = TestBroker::new().await;
    test.broker.fleet.listening();
    let mut agent = active(&test, "web-1").await;
    let tasks = agent.open_tasks(&test, 3).await;
    seconds_pass(&test, 8);
    agent.boot_id = "boot-b";
    agent.instance = InstanceId::from_parts(9, [9; 10]);
    agent.hello(&test).await.unwrap();
    for task in tasks {
        assert_eq!(state_of(&test, task).cause(), Some(EndCause::Lost));
    }
}

#[tokio::test]
async fn a_heartbeat_ends_what_is_missing_and_tells_what_ended() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    let tasks = agent.open_tasks(&test, 4).await;
    // Opened at 1, 2, 3, 4; the set was taken at 4.
    let answer = agent.heartbeat(&test, 4, &tasks[..1]).await;
    assert!(answer.closed_tasks.is_empty());
    assert_eq!(state_of(&test, tasks[0]), TaskState::Open, "there");
    assert_eq!(state_of(&test, tasks[1]).cause(), Some(EndCause::Lost));
    assert_eq!(state_of(&test, tasks[2]).cause(), Some(EndCause::Lost));
    assert_eq!(
        state_of(&test, tasks[3]),
        TaskState::Open,
        "younger than the set"
    );
    // One that ended here is told; one that nobody knows may be on its way.
    let unknown = TaskId::from_parts(77, [7; 10]);
    let answer = agent
        .heartbeat(&test, 4, &[tasks[0], tasks[1], unknown])
        .await;
    assert_eq!(answer.closed_tasks, [tasks[1].to_bytes().to_vec()]);
    assert!(!answer.checkpoint.is_empty());
    assert_eq!(answer.policy_version, test.broker.policy.load().version());
}

#[tokio::test]
async fn a_heartbeat_that_comes_before_an_ends_own_notice_knows_its_cause() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    let tasks = agent.open_tasks(&test, 5).await;
    let unknown = TaskId::from_parts(77, [7; 10]);
    let ended = [
        (tasks[1], "exited"),
        (tasks[2], "released"),
        (unknown, "exited"),
        // Still in the set: it is there.
        (tasks[0], "exited"),
    ];
    agent.heartbeat_with(&test, 9, &tasks[..1], &ended).await;
    assert_eq!(state_of(&test, tasks[0]), TaskState::Open, "there");
    assert_eq!(state_of(&test, tasks[1]).cause(), Some(EndCause::Exited));
    assert_eq!(state_of(&test, tasks[2]).cause(), Some(EndCause::Released));
    for task in &tasks[3..] {
        assert_eq!(state_of(&test, *task).cause(), Some(EndCause::Lost));
    }
    let reader = test.broker.ledger.reader();
    assert!(reader.task(unknown).unwrap().is_none(), "not opened by it");
}

#[tokio::test]
async fn a_malformed_heartbeat_ends_nothing() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    let tasks = agent.open_tasks(&test, 1).await;
    let good = v1::HeartbeatRequest {
        instance_id: agent.instance.to_bytes().to_vec(),
        boot_id: "boot-a".to_owned(),
        seq: 100,
        open_tasks: Vec::new(),
        ca_sequence: 0,
        checkpoint: String::new(),
        ended_tasks: Vec::new(),
    };
    let with = |change: &dyn Fn(&mut v1::HeartbeatRequest)| {
        let mut request = good.clone();
        change(&mut request);
        let (peer, broker) = (agent.peer(&test).unwrap(), Arc::clone(&test.broker));
        async move { broker.heartbeat(&peer, request).await }
    };
    assert_eq!(
        code(with(&|r| r.open_tasks = vec![vec![1]]).await),
        Code::InvalidRequest
    );
    // What the broker alone can know.
    let lost = vec![ended_task(&(tasks[0], "lost"))];
    assert_eq!(
        code(with(&|r| r.ended_tasks = lost.clone()).await),
        Code::InvalidRequest
    );
    let both = |r: &mut v1::HeartbeatRequest| {
        r.open_tasks = vec![vec![0; 16]; 8_500];
        r.ended_tasks = vec![ended_task(&(tasks[0], "exited")); 8_500];
    };
    assert_eq!(code(with(&both).await), Code::TooLarge);
    assert_eq!(
        code(with(&|r| r.boot_id = "boot-b".into()).await),
        Code::InvalidRequest
    );
    assert_eq!(
        code(with(&|r| r.open_tasks = vec![vec![0; 16]; 17_000]).await),
        Code::TooLarge
    );
    assert_eq!(state_of(&test, tasks[0]), TaskState::Open);
}

#[tokio::test]
async fn a_push_reaches_the_agent_and_a_slow_one_loses_its_stream() {
    let test = TestBroker::new().await;
    let agent = active(&test, "web-1").await;
    let fleet = &test.broker.fleet;
    let mut watch = fleet.watch(&agent.peer(&test).unwrap());
    fleet.push("web-1", v1::Push::default());
    fleet.push("nobody", v1::Push::default());
    assert!(watch.recv().await.is_some());
    for _ in 0..=limits::PUSHES_PER_HOST {
        fleet.push("web-1", v1::Push::default());
    }
    for _ in 0..limits::PUSHES_PER_HOST {
        assert!(watch.recv().await.is_some());
    }
    assert!(watch.recv().await.is_none());
}

#[tokio::test]
async fn hosts_are_listed_by_name() {
    let test = TestBroker::new().await;
    joined(&test, "web-2").await;
    let agent = active(&test, "web-1").await;
    agent.open_tasks(&test, 2).await;
    let hosts = test.broker.hosts().unwrap();
    let shown: Vec<_> = hosts
        .iter()
        .map(|h| (h.name.as_str(), h.state.as_str(), h.open_tasks))
        .collect();
    assert_eq!(shown, [("web-1", "active", 2), ("web-2", "joined", 0)]);
    assert!(hosts[0].last_heard.is_some() && hosts[1].last_heard.is_none());
}

#[tokio::test]
async fn invites_have_bounds() {
    let test = TestBroker::new().await;
    for (pattern, ttl) in [
        ("a/b", None),
        ("", None),
        ("*", Some(0)),
        ("*", Some(8 * 24 * 3600)),
    ] {
        let refused = test.broker.invite(pattern, ttl).await.err().unwrap();
        assert_eq!(refused.code, Code::InvalidRequest, "{pattern} {ttl:?}");
    }
}
