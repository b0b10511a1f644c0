//! Many small client processes, each with one connection and so with a task of its own: what
//! one host with many workloads looks like to the agent.
//!
//! Each connects, waits for the word, makes its calls one after the other, says so, and stays
//! until it is dismissed: its credentials live as long as it does.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::args::Made;
use crate::client::Connection;
use crate::clock::Moment;
use crate::host;
use crate::scenario::cold::cold_call;

/// Most that one task may hold at the agent is 256.
pub const CALLS_EACH: usize = 250;

/// A running set of workers.
pub struct Workers(Vec<Worker>);

struct Worker {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Workers {
    /// Starts `count` workers and waits until all are connected.
    pub async fn start(socket: &Path, count: usize, made: Made) -> anyhow::Result<Self> {
        let mut workers = Vec::with_capacity(count);
        for _ in 0..count {
            let mut process = Command::new(std::env::current_exe()?)
                .arg("__worker")
                .arg(socket)
                .arg("--made")
                .arg(match made {
                    Made::Token => "token",
                    Made::Certificate => "certificate",
                })
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let input = process.stdin.take().context("no standard input")?;
            let output =
                BufReader::new(process.stdout.take().context("no standard output")?).lines();
            workers.push(Worker {
                _process: process,
                input,
                output,
            });
        }
        for worker in &mut workers {
            worker.expect("connected").await?;
        }
        Ok(Self(workers))
    }

    /// Lets all work at once; the time until the last is done.
    pub async fn work(&mut self) -> anyhow::Result<Duration> {
        let start = Moment::now();
        for worker in &mut self.0 {
            worker.input.write_all(b"go\n").await?;
        }
        for worker in &mut self.0 {
            worker.expect("done").await?;
        }
        Ok(start.elapsed())
    }

    /// Calls that one [`Self::work`] makes.
    pub fn calls(&self) -> f64 {
        (self.0.len() * CALLS_EACH) as f64
    }
}

impl Worker {
    async fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        match self.output.next_line().await? {
            Some(line) if line == word => Ok(()),
            other => bail!("a worker said {other:?} instead of {word}"),
        }
    }
}

/// One worker: the process behind `__worker`.
pub async fn work(socket: &Path, made: Made) -> anyhow::Result<()> {
    let mut connection = Connection::unix(socket).await?;
    host::print("connected")?;
    let mut words = BufReader::new(tokio::io::stdin()).lines();
    while words.next_line().await?.is_some() {
        for number in 0..CALLS_EACH {
            connection
                .call(&cold_call(made, &format!("cold {number}")))
                .await?;
        }
        host::print("done")?;
    }
    Ok(())
}
