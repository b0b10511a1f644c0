//! Many small client processes, each with one connection and so with a task of its own: what
//! one host with many workloads looks like to the agent.
//!
//! Each connects, waits for the word, makes its calls one after the other, says so, and stays
//! until it is dismissed: its credentials live as long as it does.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::args::{Made, Work};
use crate::client::Connection;
use crate::clock::Moment;
use crate::host;
use crate::scenario::cold::cold_call;

/// A running set of workers.
pub struct Workers {
    all: Vec<Worker>,
    calls: usize,
}

/// One process of them; killed when dropped.
pub struct Worker {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Serial of its last certificate, in hex; empty for tokens.
    pub serial: String,
}

impl Workers {
    /// Starts `count` workers and waits until all are connected.
    pub async fn start(socket: &Path, count: usize, work: &Work) -> anyhow::Result<Self> {
        let mut workers = Vec::with_capacity(count);
        for _ in 0..count {
            let mut process = Command::new(std::env::current_exe()?)
                .arg("__worker")
                .arg(socket)
                .arg("--made")
                .arg(match work.made {
                    Made::Token => "token",
                    Made::Certificate => "certificate",
                })
                .args(["--entitlement", &work.entitlement])
                .args(["--calls", &work.calls.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let input = process.stdin.take().context("no standard input")?;
            let output =
                BufReader::new(process.stdout.take().context("no standard output")?).lines();
            workers.push(Worker {
                process,
                input,
                output,
                serial: String::new(),
            });
        }
        for worker in &mut workers {
            worker.expect("connected").await?;
        }
        Ok(Self {
            all: workers,
            calls: work.calls,
        })
    }

    /// Lets all work at once; the time until the last is done.
    pub async fn work(&mut self) -> anyhow::Result<Duration> {
        let start = Moment::now();
        for worker in &mut self.all {
            worker.input.write_all(b"go\n").await?;
        }
        for worker in &mut self.all {
            worker.serial = worker.expect("done ").await?;
        }
        Ok(start.elapsed())
    }

    /// Calls that one [`Self::work`] makes.
    pub fn calls(&self) -> f64 {
        (self.all.len() * self.calls) as f64
    }

    /// Each for itself.
    pub fn into_each(self) -> Vec<Worker> {
        self.all
    }
}

impl Worker {
    /// `kill -9`.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.process.start_kill()?)
    }

    /// What follows that word.
    async fn expect(&mut self, word: &str) -> anyhow::Result<String> {
        let line = self.output.next_line().await?;
        match line.as_deref().and_then(|line| line.strip_prefix(word)) {
            Some(rest) => Ok(rest.to_owned()),
            None => bail!("a worker said {line:?} instead of {word}"),
        }
    }
}

/// One worker: the process behind `__worker`.
pub async fn work(socket: &Path, work: &Work) -> anyhow::Result<()> {
    let mut connection = Connection::unix(socket).await?;
    host::print("connected")?;
    let mut words = BufReader::new(tokio::io::stdin()).lines();
    while words.next_line().await?.is_some() {
        let mut last = Bytes::new();
        for number in 0..work.calls {
            last = connection
                .call(&cold_call(work, &format!("cold {number}")))
                .await?;
        }
        host::print(&format!("done {}", serial(&last)))?;
    }
    Ok(())
}

/// Of the certificate in an answer; empty for anything else.
fn serial(answer: &[u8]) -> String {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let serial = answer.pointer("/credentials/0/certificate/serial");
    let serial = serial.and_then(serde_json::Value::as_str);
    serial.unwrap_or_default().to_owned()
}
