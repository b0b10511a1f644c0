//! While the command runs: files are rewritten when newer tokens are there, and somebody
//! looks now and then whether the task was ended from outside.

use std::convert::Infallible;
use std::time::Duration;

use ephor_proto::http::agent::Task;
use ephor_proto::id::TaskId;
use ephor_proto::problem::Code;
use ephor_proto::time::UnixMillis;

use super::fetch::{self, Fetched};
use super::files::TaskDir;
use crate::client::Peer;
use crate::clock;
use crate::cred::Wanted;
use crate::exit::Failure;
use crate::show::to_stderr;
use crate::words::time_of_day;

/// Longest sleep: a suspend stops timers, not expiries.
const SLEEP_MAX: Duration = Duration::from_secs(15);
/// Shortest sleep, so that a wrong clock makes no busy loop.
const SLEEP_MIN: Duration = Duration::from_millis(200);
/// After a failed renewal.
const RETRY_MILLIS: u64 = 5_000;

/// A file to be rewritten.
pub struct Kept {
    wanted: Wanted,
    reason: Option<String>,
    refresh_at: UnixMillis,
    expires_at: UnixMillis,
    failing: bool,
}

impl Kept {
    /// From what was delivered first.
    pub fn new(wanted: Wanted, reason: Option<String>, one: &Fetched) -> Self {
        Self {
            wanted,
            reason,
            refresh_at: one.refresh_at,
            expires_at: one.expires_at,
            failing: false,
        }
    }
}

/// See the module.
pub struct Keeper<'a> {
    agent: &'a Peer,
    task: TaskId,
    dir: Option<&'a TaskDir>,
    files: Vec<Kept>,
    ended: Option<String>,
}

impl<'a> Keeper<'a> {
    /// Of one task.
    pub fn new(agent: &'a Peer, task: TaskId, dir: Option<&'a TaskDir>, files: Vec<Kept>) -> Self {
        Self {
            agent,
            task,
            dir,
            files,
            ended: None,
        }
    }

    /// Why the task had ended before the command did, if it had.
    pub fn into_ended(self) -> Option<String> {
        self.ended
    }

    /// Goes on until it is dropped.
    pub async fn keep(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(self.until_next()).await;
            if self.ended.is_some() {
                continue;
            }
            self.look().await;
            self.rewrite().await;
        }
    }

    fn until_next(&self) -> Duration {
        let now = clock::wall();
        let next = self
            .files
            .iter()
            .map(|kept| kept.refresh_at.millis_since(now))
            .min();
        let next = next.map_or(SLEEP_MAX, Duration::from_millis);
        next.clamp(SLEEP_MIN, SLEEP_MAX)
    }

    async fn look(&mut self) {
        if let Some(cause) = ended(self.agent, self.task).await {
            self.end(cause);
        }
    }

    fn end(&mut self, cause: String) {
        to_stderr(&format!(
            "ephor: revoked: task {} was ended ({cause}); what the command was given is refused from now on.\n",
            self.task.short()
        ));
        self.ended = Some(cause);
    }

    async fn rewrite(&mut self) {
        let now = clock::wall();
        let mut files = std::mem::take(&mut self.files);
        for kept in files.iter_mut().filter(|kept| kept.refresh_at <= now) {
            if self.ended.is_some() {
                break;
            }
            match self.renew(kept).await {
                Ok(()) => kept.failing = false,
                Err(failure) if failure.is(Code::TaskEnded) => self.end("revoked".to_owned()),
                Err(failure) => kept.failed(&failure),
            }
        }
        self.files = files;
    }

    async fn renew(&self, kept: &mut Kept) -> Result<(), Failure> {
        let one = fetch::fetch(self.agent, &kept.wanted, kept.reason.as_deref()).await?;
        if let Some(dir) = self.dir {
            dir.write(&kept.wanted.name, one.token.expose())?;
        }
        kept.refresh_at = one.refresh_at;
        kept.expires_at = one.expires_at;
        Ok(())
    }
}

impl Kept {
    fn failed(&mut self, failure: &Failure) {
        self.refresh_at = clock::wall().saturating_add_millis(RETRY_MILLIS);
        if !std::mem::replace(&mut self.failing, true) {
            let until = time_of_day(self.expires_at);
            let first = failure.message.lines().next().unwrap_or_default();
            to_stderr(&format!(
                "ephor: {first}\n       {} keeps its token until {until}; trying again.\n",
                self.wanted.name
            ));
        }
    }
}

/// Why our task has ended, if it has; an agent that is away says nothing about that.
async fn ended(agent: &Peer, own: TaskId) -> Option<String> {
    match agent.read::<Task>("/v1/task").await {
        Ok(task) if task.task == own && task.state == "open" => None,
        Ok(task) if task.task == own => Some(task.cause.unwrap_or(task.state)),
        // Found by another rule, or not at all: ours is no longer there.
        Ok(_) => Some("revoked".to_owned()),
        Err(failure) if failure.is(Code::TaskEnded) || failure.is(Code::NotFound) => {
            Some("revoked".to_owned())
        }
        Err(_) => None,
    }
}
