//! A client that stays connected: `psql` with its input held open.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::Cluster;
use crate::wait;

/// How long a client may take to notice that it was thrown out.
const NOTICES: Duration = Duration::from_secs(10);

/// Bytes of a client's output that are kept.
const KEPT: usize = 256 * 1024;

/// See the module. Killed when dropped.
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
}

impl Cluster {
    /// Connects as `user` over TCP, with `options` as `PGOPTIONS`, and does not wait for it.
    ///
    /// # Errors
    /// When `psql` cannot be started.
    pub fn session(
        &self,
        (user, password): (&str, &str),
        database: &str,
        options: &str,
    ) -> anyhow::Result<Session> {
        let mut command = self.client("psql", user, password);
        command.args([
            "-X",
            "-q",
            "-w",
            "-p",
            &self.port().to_string(),
            "-d",
            database,
        ]);
        command.args(["-v", "ON_ERROR_STOP=0", "-f", "-"]);
        command
            .env("PGOPTIONS", options)
            .env("PGCONNECT_TIMEOUT", "30");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("starting psql")?;
        let input = child.stdin.take();
        Ok(Session { child, input })
    }

    /// Waits until `question` is answered with `t` by the superuser.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_true(&self, database: &str, question: &str) -> anyhow::Result<()> {
        wait::until(question, super::PATIENCE, || {
            (self.psql(database, question).ok()? == "t").then_some(())
        })
    }
}

impl Session {
    /// Sends statements; their answer is not waited for.
    ///
    /// # Errors
    /// When `psql` has ended.
    pub fn send(&mut self, sql: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("psql's input")?;
        input.write_all(sql.as_bytes())?;
        input.write_all(b"\n")?;
        Ok(input.flush()?)
    }

    /// Asks one thing more and gives all that the client was told, until it ends.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn finish(mut self) -> anyhow::Result<String> {
        // It may have ended already.
        let _ = self.send("select 'still here ' || session_user;\n\\q");
        // In the middle of COPY it waits for more to send, and notices nothing either.
        drop(self.input.take());
        // A client that cannot write its output does not notice anything.
        let out = drained(self.child.stdout.take());
        let errors = drained(self.child.stderr.take());
        let child = &mut self.child;
        wait::until("a client ends", NOTICES, || child.try_wait().ok().flatten())?;
        let mut told = out.join().unwrap_or_default();
        told.push_str(&errors.join().unwrap_or_default());
        Ok(told)
    }
}

/// Reads all of it, and keeps the end.
fn drained(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut part = [0; 64 * 1024];
        if let Some(mut pipe) = pipe {
            while let Ok(length @ 1..) = pipe.read(&mut part) {
                kept.extend(part.iter().take(length));
                let over = kept.len().saturating_sub(KEPT);
                kept.drain(..over);
            }
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
