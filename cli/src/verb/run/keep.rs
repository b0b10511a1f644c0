//! While the command runs: files are rewritten when newer tokens are there, and somebody
//! looks now and then whether the task, or a credential of it, was ended from outside. The file
//! of what is dead goes at once, and no other credential is fetched in its place: who revoked it
//! meant it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use ephor_proto::cred::As;
use ephor_proto::http::agent::Task;
use ephor_proto::id::{CredentialId, TaskId};
use ephor_proto::problem::Code;
use ephor_proto::time::UnixMillis;

use super::fetch::{self, Fetched};
use super::files::TaskDir;
use super::reload::Reload;
use crate::client::Peer;
use crate::clock;
use crate::cred::Wanted;
use crate::exit::Failure;
use crate::process::Child;
use crate::show::to_stderr;
use crate::words::{plural, time_of_day};

/// Longest sleep: a suspend stops timers, not expiries, and nobody tells us of a revocation.
const SLEEP_MAX: Duration = Duration::from_secs(3);
/// Shortest sleep, so that a wrong clock makes no busy loop.
const SLEEP_MIN: Duration = Duration::from_millis(200);
/// After a failed renewal.
const RETRY_MILLIS: u64 = 5_000;

/// What the command was given; its file, where it has one, is kept fresh.
pub struct Kept {
    wanted: Wanted,
    reason: Option<String>,
    id: CredentialId,
    digest: String,
    refresh_at: UnixMillis,
    expires_at: UnixMillis,
    failing: bool,
    /// A login's certificate lies in a file, whatever form the login has.
    has_certificate: bool,
}

impl Kept {
    /// From what was delivered first.
    pub fn new(wanted: Wanted, reason: Option<String>, one: &Fetched) -> Self {
        Self {
            wanted,
            reason,
            id: one.id,
            digest: one.digest(),
            refresh_at: one.refresh_at,
            expires_at: one.expires_at,
            failing: false,
            has_certificate: one.has_certificate(),
        }
    }

    /// Whether something of it lies in a file.
    fn is_file(&self) -> bool {
        self.wanted.delivery() == As::File || self.has_certificate
    }

    /// Writes what is new.
    fn put(&self, dir: &TaskDir, one: &Fetched) -> Result<(), Failure> {
        match (&one.login, self.wanted.delivery()) {
            (Some(login), As::Env | As::Fd) => dir.put_beside(&self.wanted.name, login).map(drop),
            (Some(_), As::File) | (None, _) => dir.put(&self.wanted.name, one).map(drop),
        }
    }

    /// The file that is written anew.
    fn path(&self, dir: &TaskDir) -> PathBuf {
        match self.has_certificate {
            true => dir.certificate_of(&self.wanted.name),
            false => dir.path_of(&self.wanted.name),
        }
    }
}

/// See the module.
pub struct Keeper<'a> {
    agent: &'a Peer,
    task: TaskId,
    dir: Option<&'a TaskDir>,
    kept: Vec<Kept>,
    ended: Option<String>,
    tells: Option<(&'a Child, &'a Reload)>,
    /// New epochs of the broker when this looked last.
    epochs: Option<u32>,
}

impl<'a> Keeper<'a> {
    /// Of one task.
    pub fn new(agent: &'a Peer, task: TaskId, dir: Option<&'a TaskDir>, kept: Vec<Kept>) -> Self {
        Self {
            agent,
            task,
            dir,
            kept,
            ended: None,
            tells: None,
            epochs: None,
        }
    }

    /// Tells the command of rewritten files, as `reload` says.
    pub fn telling(self, command: &'a Child, reload: &'a Reload) -> Self {
        Self {
            tells: Some((command, reload)),
            ..self
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
            .kept
            .iter()
            .filter(|kept| kept.is_file())
            .map(|kept| kept.refresh_at.millis_since(now))
            .min();
        let next = next.map_or(SLEEP_MAX, Duration::from_millis);
        next.clamp(SLEEP_MIN, SLEEP_MAX)
    }

    async fn look(&mut self) {
        match seen(self.agent, self.task).await {
            Seen::Ended(cause) => self.end(cause),
            Seen::Open { revoked, epochs } => {
                self.drop_revoked(&revoked);
                self.follow(epochs);
            }
            Seen::Unknown => {}
        }
    }

    fn end(&mut self, cause: String) {
        let files = self.kept.iter().filter(|kept| kept.is_file()).count();
        for kept in std::mem::take(&mut self.kept) {
            self.remove_file(&kept);
        }
        let removed = match files {
            0 => String::new(),
            some => format!("; {} removed", plural(some, "file")),
        };
        to_stderr(&format!(
            "ephor: revoked: task {} was ended ({cause}); what the command was given is refused from now on{removed}.\n",
            self.task.short()
        ));
        self.ended = Some(cause);
    }

    /// In a new epoch all that was handed out before is refused: files are written anew, and what
    /// stands in an environment cannot be.
    fn follow(&mut self, epochs: u32) {
        let before = self.epochs.replace(epochs);
        if before.is_none_or(|before| before >= epochs) {
            return;
        }
        let now = clock::wall();
        for one in &mut self.kept {
            if one.is_file() {
                one.refresh_at = now;
            } else {
                to_stderr(&format!(
                    "ephor: the broker began a new epoch: {} ({}) is refused from now on.\n       \
                     For another one, start the command again; a file would have been rewritten (?as=file).\n",
                    one.wanted.name,
                    one.wanted.what()
                ));
            }
        }
    }

    fn drop_revoked(&mut self, revoked: &[CredentialId]) {
        let kept = std::mem::take(&mut self.kept).into_iter();
        let (dead, live): (Vec<_>, Vec<_>) = kept.partition(|kept| revoked.contains(&kept.id));
        self.kept = live;
        for one in &dead {
            self.remove_file(one);
            let removed = if one.is_file() { "; file removed" } else { "" };
            to_stderr(&format!(
                "ephor: revoked: {} ({}) is refused from now on{removed}.\n       \
                 For another one, start the command again.\n",
                one.wanted.name,
                one.wanted.what()
            ));
        }
    }

    fn remove_file(&self, kept: &Kept) {
        if let Some(dir) = self.dir.filter(|_| kept.is_file()) {
            dir.remove(&kept.wanted.name);
        }
    }

    async fn rewrite(&mut self) {
        let now = clock::wall();
        let mut kept = std::mem::take(&mut self.kept);
        let mut is_over = false;
        let mut rewritten = Vec::new();
        for one in kept
            .iter_mut()
            .filter(|one| one.is_file() && one.refresh_at <= now)
        {
            match self.renew(one).await {
                Ok(is_new) => {
                    one.failing = false;
                    rewritten.extend(is_new.then(|| one.wanted.name.clone()));
                }
                Err(failure) if failure.is(Code::TaskEnded) => {
                    is_over = true;
                    break;
                }
                Err(failure) => one.failed(&failure),
            }
        }
        self.kept = kept;
        if let (Some((command, reload)), Some(dir)) = (self.tells, self.dir) {
            let files: Vec<_> = (self.kept.iter())
                .filter(|kept| kept.is_file())
                .map(|kept| (kept.wanted.name.clone(), kept.path(dir)))
                .collect();
            reload.tell(command, &rewritten, &files);
        }
        if is_over {
            self.end("revoked".to_owned());
        }
    }

    /// Whether there is something new.
    async fn renew(&self, kept: &mut Kept) -> Result<bool, Failure> {
        let one = fetch::fetch(self.agent, &kept.wanted, kept.reason.as_deref()).await?;
        // Another one came in its place. If that is because it was revoked since the last look, the
        // next look says so, and nothing takes its place.
        if one.id != kept.id
            && let Seen::Open { revoked, .. } = seen(self.agent, self.task).await
            && revoked.contains(&kept.id)
        {
            return Ok(false);
        }
        let digest = one.digest();
        // The agent may be asked a moment before its own renewal has come.
        let is_new = digest != kept.digest;
        if let Some(dir) = self.dir.filter(|_| is_new) {
            kept.put(dir, &one)?;
        }
        kept.id = one.id;
        kept.digest = digest;
        kept.refresh_at = one.refresh_at;
        kept.expires_at = one.expires_at;
        Ok(is_new)
    }
}

impl Kept {
    fn failed(&mut self, failure: &Failure) {
        self.refresh_at = clock::wall().saturating_add_millis(RETRY_MILLIS);
        if !std::mem::replace(&mut self.failing, true) {
            let until = time_of_day(self.expires_at);
            let first = failure.message.lines().next().unwrap_or_default();
            to_stderr(&format!(
                "ephor: {first}\n       {} keeps what it has until {until}; trying again.\n",
                self.wanted.name
            ));
        }
    }
}

/// What the agent says of our task.
enum Seen {
    /// It is open; these of it were revoked.
    Open {
        revoked: Vec<CredentialId>,
        epochs: u32,
    },
    /// It has ended, and why.
    Ended(String),
    /// An agent that is away says nothing about that.
    Unknown,
}

async fn seen(agent: &Peer, own: TaskId) -> Seen {
    match agent.read::<Task>("/v1/task").await {
        Ok(task) if task.task == own && task.state == "open" => Seen::Open {
            revoked: task.revoked,
            epochs: task.epochs,
        },
        Ok(task) if task.task == own => Seen::Ended(task.cause.unwrap_or(task.state)),
        // Found by another rule, or not at all: ours is no longer there.
        Ok(_) => Seen::Ended("revoked".to_owned()),
        Err(failure) if failure.is(Code::TaskEnded) || failure.is(Code::NotFound) => {
            Seen::Ended("revoked".to_owned())
        }
        Err(_) => Seen::Unknown,
    }
}
