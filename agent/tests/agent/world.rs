//! A running agent with its socket and its broker, and a client that says exactly what it is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ephor_agent::app::{Agent, Parts};
use ephor_agent::attest::Mode;
use ephor_agent::clock::SystemClock;
use ephor_agent::surface::api::Api;
use ephor_agent::surface::listener::{self, Threads};
use ephor_agent::surface::pause::Pause;
use ephor_agent::tasks::Tasks;
use ephor_agent::uplink::Link;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::broker::Broker;

pub const LOCAL: &str = "Host: x\r\nEphor-Local: 1\r\n";

pub struct World {
    pub broker: Broker,
    pub agent: Arc<Agent>,
    pub socket: PathBuf,
    tasks: Tasks,
    dir: Option<tempfile::TempDir>,
}

pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
    pub closed: bool,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.head, self.body))
    }

    pub fn token(&self) -> String {
        self.json()["token"]
            .as_str()
            .unwrap_or_else(|| panic!("{}\n{}", self.head, self.body))
            .to_owned()
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn task(&self) -> ephor_proto::id::TaskId {
        self.json()["task"].as_str().unwrap().parse().unwrap()
    }
}

impl World {
    pub fn start() -> Self {
        Self::start_with(Broker::new(), tempfile::tempdir().unwrap())
    }

    pub fn start_with(broker: Broker, dir: tempfile::TempDir) -> Self {
        let tasks = Tasks::new();
        let parts = Parts {
            clock: SystemClock::shared(),
            host: "host-1".parse().unwrap(),
            trust_domain: "td.test".into(),
            mode: Mode::Pidfd,
            max_exe_hash_bytes: 1 << 30,
            state_dir: dir.path().to_owned(),
            connect: Box::new(broker.clone()),
            renewal: None,
            tasks: tasks.clone(),
        };
        let agent = Agent::start(parts).unwrap();
        let socket = dir.path().join("s");
        let listening = listener::bind(&socket).unwrap();
        let (api, threads) = (
            Arc::new(Api(Arc::clone(&agent))),
            Threads::start(&tasks).unwrap(),
        );
        tasks.spawn(
            "listener",
            listener::run(listening, api, tasks.clone(), threads, Pause::default()),
        );
        Self {
            broker,
            agent,
            socket,
            tasks,
            dir: Some(dir),
        }
    }

    /// Stops the agent and starts another on the same state.
    pub async fn restart(mut self) -> Self {
        assert!(self.tasks.finish(Duration::from_secs(5)).await);
        let dir = self.dir.take().unwrap();
        let broker = self.broker.clone();
        drop(self);
        Self::start_with(broker, dir)
    }

    pub async fn get(&self, target: &str) -> Reply {
        say(
            &self.socket,
            &format!("GET {target} HTTP/1.1\r\n{LOCAL}\r\n"),
        )
        .await
    }

    pub async fn post(&self, target: &str, body: &str) -> Reply {
        let length = body.len();
        say(
            &self.socket,
            &format!("POST {target} HTTP/1.1\r\n{LOCAL}Content-Length: {length}\r\n\r\n{body}"),
        )
        .await
    }

    pub async fn token(&self, audience: &str) -> String {
        self.get(&format!("/v1/token?audience={audience}"))
            .await
            .token()
    }

    /// The broker goes away, and the agent has noticed.
    pub async fn lose_broker(&self) {
        self.broker.go_away();
        until("the loss is noticed", || {
            matches!(self.agent.uplink.link(), Link::Away { .. })
        })
        .await;
    }

    pub fn issues(&self) -> usize {
        self.broker.state().issues.len()
    }
}

/// One request on a connection of its own.
pub async fn say(socket: &Path, request: &str) -> Reply {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    reply(&mut stream).await
}

/// Reads one answer; `closed` says whether the agent closed the connection after it.
pub async fn reply(stream: &mut UnixStream) -> Reply {
    let mut bytes = Vec::new();
    let mut head_end = None;
    while head_end.is_none() {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.unwrap_or(0);
        if read == 0 {
            return Reply {
                status: 0,
                head: String::from_utf8_lossy(&bytes).into(),
                body: String::new(),
                closed: true,
            };
        }
        bytes.extend_from_slice(&part[..read]);
        head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    }
    let head_end = head_end.unwrap() + 4;
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |n| n.parse().unwrap());
    while bytes.len() < head_end + length {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.unwrap();
        assert_ne!(read, 0, "the body broke off");
        bytes.extend_from_slice(&part[..read]);
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = String::from_utf8(bytes[head_end..].to_vec()).unwrap();
    let closed = if lower.contains("connection: close") {
        stream.read(&mut [0; 1]).await.unwrap_or(0) == 0
    } else {
        false
    };
    Reply {
        status,
        head,
        body,
        closed,
    }
}

/// Waits for a condition, with a deadline.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not happen within 10 s: {what}");
}
