//! A process that is a task: it asks the agent what it is told to on standard input, and says on
//! standard output what came back, one line of JSON for each.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context;
use serde_json::{Value, json};

use crate::http::{self, Call};

/// All that the process does: reads `METHOD TARGET` lines until the end of its input.
///
/// # Errors
/// When its input or output breaks.
pub fn serve(socket: &Path) -> anyhow::Result<()> {
    let (input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    for line in input.lines() {
        let line = line?;
        let (method, target) = line.split_once(' ').context("METHOD TARGET")?;
        let call = Call {
            method,
            target,
            headers: &[("Ephor-Local", "1")],
            body: b"",
        };
        let said = match http::unix(socket, &call) {
            Ok(answer) => json!({"status": answer.status, "body": answer.body}),
            Err(why) => json!({"status": 0, "body": format!("{why:#}")}),
        };
        writeln!(output, "{said}")?;
        output.flush()?;
    }
    Ok(())
}

/// An answer of the agent, as a task got it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// HTTP status; 0: nobody answered, or the answer was cut.
    pub status: u64,
    /// Body.
    pub body: Value,
}

impl Told {
    /// A text of the body.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.body
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Whether asking again may help: nobody answered, or the refusal says so.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.status == 0 || self.body.get("retry_after").is_some()
    }
}

/// The other end of the process. Killed when dropped.
pub struct Task {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Task {
    /// Starts `words`, followed by the agent's socket.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(words: &[String], socket: &Path) -> anyhow::Result<Self> {
        let (program, rest) = words.split_first().context("the program of a task")?;
        let mut process = Command::new(program)
            .args(rest)
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.clone())?;
        let output = process.stdout.take().context("no standard output")?;
        Ok(Self {
            input: process.stdin.take(),
            output: BufReader::new(output),
            process,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Asks, and waits for what came back.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn ask(&mut self, method: &str, target: &str) -> anyhow::Result<Told> {
        self.say(method, target)?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).context("a task said nothing")?;
        Ok(Told {
            status: said.get("status").and_then(Value::as_u64).unwrap_or(0),
            body: said.get("body").cloned().unwrap_or(Value::Null),
        })
    }

    /// Asks, and does not wait.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn say(&mut self, method: &str, target: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("it was told to end")?;
        Ok(writeln!(input, "{method} {target}")?)
    }

    /// Ends by itself, as programs do.
    ///
    /// # Errors
    /// When it does not.
    pub fn exit(&mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        self.process.wait()?;
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
