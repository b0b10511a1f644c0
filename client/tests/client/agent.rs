//! The agent's socket, tokens and the guard.

use std::time::Duration;

use ephor_client::{Agent, Error, Identity};
use ephor_proto::problem::Code;

use super::fake::Fake;

#[tokio::test]
async fn a_refusal_has_its_code_and_when_to_come_back() {
    let mut fake = Fake::start().await;
    let agent = fake.agent("web");
    fake.state().refuses = true;
    let refused = agent.tokens("billing").token().await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::RateLimited));
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(3)));
    let refused = Identity::start(&agent).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::RateLimited));
    let nobody = Agent::at("/nonexistent/agent.sock");
    let away = nobody.tokens("billing").token().await.unwrap_err();
    assert!(matches!(away, Error::Agent { .. }), "{away}");
}

#[tokio::test]
async fn tokens_come_per_use_and_the_last_one_bridges_an_agents_absence_until_its_refresh() {
    let mut fake = Fake::start().await;
    fake.state().refresh_after = Duration::from_secs(2);
    let tokens = fake.agent("web").tokens("a&b=c d");
    let token = tokens.token().await.unwrap();
    // What the fake gives is the query it was asked with.
    assert_eq!(token.expose(), "audience=a%26b%3Dc%20d");
    assert!(!format!("{token:?}").contains("audience"));
    fake.take_agents_away().await;
    let bridged = tokens.token().await.unwrap();
    assert_eq!(bridged.expose(), token.expose());
    let mut tries = 0;
    let away = loop {
        match tokens.token().await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(away) => break away,
        }
        tries += 1;
        assert!(tries < 200, "an old token is given for ever");
    };
    assert!(matches!(away, Error::Agent { .. }), "{away}");
    assert!(token.expires_at().as_unix_seconds() > super::fake::now());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_completes_the_task_once_on_every_way_out() {
    let mut fake = Fake::start().await;
    let agent = fake.agent("web");
    let completed = |fake: &Fake| fake.state().completed;
    let work = |agent: Agent| async move {
        let _task = agent.task_guard();
        Err::<(), _>("it went wrong")
    };
    work(agent.clone()).await.unwrap_err();
    assert_eq!(completed(&fake), 1);
    let receipt = agent.task_guard().complete().await.unwrap();
    assert_eq!((completed(&fake), receipt.listed), (2, 1));
    agent.task_guard().disarm();
    assert_eq!(completed(&fake), 2);
    // Nobody there: it says so in the log, and does not hold up whoever leaves.
    fake.take_agents_away().await;
    drop(agent.task_guard());
}
