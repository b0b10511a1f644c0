//! The policy in force, and how another takes its place: checked whole, recorded with its text and
//! its audit event in one commit, then swapped; then what it no longer allows is revoked.
//!
//! On any error nothing changes. There is no moment without a policy: requests see the old snapshot
//! or the new one, and what the old one allowed cannot be recorded once the new one is durable.

mod start;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::http::admin::{PolicyApplied, PolicyChange, PolicyFile};
use ephor_proto::problem::Code;
use ephor_proto::spiffe::TrustDomain;
use ephor_proto::stage::Stage;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::app::Broker;
use crate::crash_point;
use crate::issue::{defect, refused_by_store, store_unavailable};
use crate::ledger::{Batch, CommitError, Lane, PolicyRow, Require, Row};
use crate::limits;
use crate::policy::{LoadErrors, Snapshot, read_files};
use crate::request::Refusal;
use crate::revoke::{Narrowed, Narrowing};

pub use start::NoPolicy;
pub(crate) use start::at_start;

/// What is kept beside the snapshot itself.
pub struct InForce {
    /// One change at a time, from its look at the policy in force to the swap.
    turn: Semaphore,
    /// What the last changes revoke.
    pub(crate) narrowing: Narrowing,
    /// Told after each swap.
    swapped: Notify,
    /// The broker's own policy directory.
    directory: PathBuf,
    /// Why the directory is not what is in force.
    trouble: ArcSwapOption<String>,
}

impl InForce {
    /// For a broker whose policy directory this is.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            turn: Semaphore::new(1),
            narrowing: Narrowing::default(),
            swapped: Notify::new(),
            directory,
            trouble: ArcSwapOption::empty(),
        }
    }

    /// Why the directory is not what is in force, when it is not.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.load().as_deref().cloned()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        self.trouble.store(trouble.map(Arc::new));
    }
}

/// Where a change of policy comes from.
#[derive(Debug, Clone, Copy)]
enum From {
    /// The broker's own directory.
    Directory,
    /// Somebody on the admin socket.
    Person,
}

/// A policy that was checked, and its text.
pub(crate) struct Checked {
    snapshot: Snapshot,
    files: Vec<PolicyFile>,
}

impl Checked {
    /// Compiles it. Work that takes a while for a large policy.
    pub(crate) fn of(files: Vec<PolicyFile>) -> Result<Self, LoadErrors> {
        let snapshot = Snapshot::from_files(files.clone())?;
        Ok(Self { snapshot, files })
    }

    /// For whom it is.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        self.snapshot.trust_domain()
    }

    fn read(dir: &Path) -> Result<Self, LoadErrors> {
        Self::of(read_files(dir)?)
    }
}

impl Broker {
    /// Puts a policy into force for `by`, and revokes what it no longer allows. An answer waits for
    /// that for a while only; it is done all the same, also when the caller goes away.
    ///
    /// # Errors
    /// `policy_invalid` with everything that is wrong, or what the store says. The policy in force
    /// stays then.
    pub async fn apply_policy(
        self: &Arc<Self>,
        files: Vec<PolicyFile>,
        by: String,
        dry_run: bool,
    ) -> Result<PolicyApplied, Refusal> {
        let checked = tokio::task::spawn_blocking(move || Checked::of(files));
        let checked = match checked.await.map_err(defect)? {
            Ok(checked) => checked,
            Err(errors) if dry_run => return Err(self.not_applied(&errors)),
            Err(errors) => {
                self.record_refused(&by, &errors).await;
                return Err(self.not_applied(&errors));
            }
        };
        if dry_run {
            return self.would_apply(checked).await;
        }
        self.change_policy(checked, by, From::Person).await
    }

    /// Reads the broker's own directory again, on SIGHUP.
    ///
    /// # Errors
    /// As [`Self::apply_policy`].
    pub async fn reload_policy(self: &Arc<Self>, by: &str) -> Result<PolicyApplied, Refusal> {
        let directory = self.inforce.directory.clone();
        let checked = tokio::task::spawn_blocking(move || Checked::read(&directory));
        match checked.await.map_err(defect)? {
            Ok(checked) => {
                let by = by.to_owned();
                self.change_policy(checked, by, From::Directory).await
            }
            Err(errors) => {
                self.record_refused(by, &errors).await;
                let refused = Err(self.not_applied(&errors));
                self.tell_directory(&refused);
                refused
            }
        }
    }

    /// Keeps why the directory is not what is in force, for who asks.
    fn tell_directory<T>(&self, outcome: &Result<T, Refusal>) {
        let trouble = outcome.as_ref().err().map(|refusal| {
            let directory = self.inforce.directory.display();
            format!("{directory} was not applied: {}", refusal.detail)
        });
        self.inforce.set_trouble(trouble);
    }

    /// What an apply would do.
    async fn would_apply(&self, checked: Checked) -> Result<PolicyApplied, Refusal> {
        let old = self.policy.load_full();
        self.check_domain(&checked.snapshot)?;
        let new = Arc::new(checked.snapshot);
        let outdated = self
            .outdated(&new, Some(Arc::clone(&old)))
            .await
            .map_err(store_unavailable)?;
        let mut would = answer(&old, &new, new.changes_from(&old));
        would.dry_run = true;
        would.credentials = outdated.sum().credentials;
        would.tasks = outdated.sum().tasks;
        would.finished = true;
        Ok(would)
    }

    /// Swaps and revokes in a task of its own: once it is recorded, nobody's going away stops it.
    async fn change_policy(
        self: &Arc<Self>,
        checked: Checked,
        by: String,
        from: From,
    ) -> Result<PolicyApplied, Refusal> {
        let (told, swapped) = oneshot::channel();
        let (ended, narrowed) = oneshot::channel::<Narrowed>();
        let broker = Arc::clone(self);
        self.tasks.spawn("policy.apply", async move {
            let Ok(turn) = broker.inforce.turn.acquire().await else {
                return;
            };
            let before = broker.policy.load_full();
            let mut outcome = broker.replace(checked, &by).await;
            broker.tell_trouble(&mut outcome, from).await;
            let changed = outcome.as_ref().is_ok_and(|applied| applied.changed);
            // In the order of the swaps.
            let narrowing = changed.then(|| broker.inforce.narrowing.begin(Some(before)));
            let _ = told.send(outcome);
            // What is revoked may take for ever where a row cannot be read; the next change may not.
            drop(turn);
            if let Some(narrowing) = narrowing {
                crash_point!("policy.after_swap");
                let (sum, is_all) = broker.narrow(narrowing).await;
                broker.record_narrowed(sum).await;
                if is_all {
                    let _ = ended.send(sum);
                }
            }
        });
        let stopping = |_| {
            Refusal::new(
                Code::NotReady,
                "the broker is stopping; nothing was applied",
            )
        };
        let mut applied = swapped.await.map_err(stopping)??;
        if !applied.changed {
            applied.finished = true;
            return Ok(applied);
        }
        if let Ok(Ok(sum)) = tokio::time::timeout(limits::POLICY_ANSWER, narrowed).await {
            applied.credentials = sum.credentials;
            applied.tasks = sum.tasks;
            applied.finished = true;
        }
        Ok(applied)
    }

    /// What a change makes of the trouble with the directory.
    async fn tell_trouble(&self, outcome: &mut Result<PolicyApplied, Refusal>, from: From) {
        match (from, outcome) {
            (From::Directory, outcome) => self.tell_directory(outcome),
            (From::Person, Ok(applied)) if applied.changed => {
                applied.note = self.differing_directory(&applied.version).await;
                self.inforce.set_trouble(applied.note.clone());
            }
            (From::Person, Ok(_) | Err(_)) => {}
        }
    }

    /// Records the new version and takes it. Called by one at a time.
    async fn replace(&self, checked: Checked, by: &str) -> Result<PolicyApplied, Refusal> {
        // Only now: it may have waited long for its turn.
        self.vouch()?;
        let old = self.policy.load_full();
        let Checked { snapshot, files } = checked;
        self.check_domain(&snapshot)?;
        let newest = self
            .ledger
            .reader()
            .policy_version()
            .map_err(store_unavailable)?;
        let is_newest = newest
            .as_ref()
            .is_some_and(|(_, version)| version == snapshot.version());
        if is_newest && old.version() == snapshot.version() {
            let mut unchanged = answer(&old, &old, Vec::new());
            unchanged.changed = false;
            return Ok(unchanged);
        }
        let changes = snapshot.changes_from(&old);
        if !is_newest {
            self.record_applied(&snapshot, &files, by, newest, &changes)
                .await?;
        }
        let new = Arc::new(snapshot);
        self.policy.store(Arc::clone(&new));
        self.inforce.swapped.notify_waiters();
        tracing::info!(
            policy = new.short_version(),
            previous = old.short_version(),
            by,
            "policy in force"
        );
        Ok(answer(&old, &new, changes))
    }

    fn check_domain(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let own = &self.installation.trust_domain;
        if snapshot.trust_domain() == own {
            return Ok(());
        }
        let detail = format!(
            "the policy is for trust domain {}, this store for {own}; a store never changes its trust domain. {}",
            snapshot.trust_domain(),
            self.stays()
        );
        Err(Refusal::new(Code::PolicyInvalid, detail))
    }

    async fn record_applied(
        &self,
        snapshot: &Snapshot,
        files: &[PolicyFile],
        by: &str,
        newest: Option<(u64, String)>,
        changes: &[PolicyChange],
    ) -> Result<(), Refusal> {
        let (number, previous) = match newest {
            Some((number, version)) => (number.saturating_add(1), Some(version)),
            None => (1, None),
        };
        let directory = self.directory_version().await;
        let mut event = self.event(Stage::Operate, "policy_applied", Outcome::Ok)?;
        describe(&mut event, snapshot, by, changes);
        event.facts.insert("number".to_owned(), number.to_string());
        event
            .facts
            .insert("files".to_owned(), files.len().to_string());
        if let Some(previous) = &previous {
            event.facts.insert("previous".to_owned(), previous.clone());
        }
        let mut require = Vec::new();
        // Fails when another broker on this store was faster.
        require.extend(previous.clone().map(Require::PolicyInForce));
        let row = PolicyRow {
            number,
            version: snapshot.version().to_owned(),
            previous,
            applied_at: event.time,
            applied_by: by.to_owned(),
            directory,
            files: serde_json::to_string(files).map_err(defect)?,
        };
        let batch = Batch {
            name: "operate.policy_applied",
            lane: Lane::Normal,
            require,
            rows: vec![Row::Policy(Box::new(row))],
            events: vec![event.into()],
        };
        crash_point!("policy.before_commit");
        let ticket = self
            .ledger
            .submit(batch)
            .map_err(|full| Refusal::new(Code::Busy, format!("{full}. {}", self.stays())))?;
        match ticket.await {
            Ok(_) => {
                crash_point!("policy.after_commit");
                Ok(())
            }
            Err(CommitError::Conflict(_)) => {
                let detail = format!(
                    "another policy was applied meanwhile; look, and try again. {}",
                    self.stays()
                );
                Err(Refusal::new(Code::Conflict, detail))
            }
            Err(CommitError::Refused(reason)) => {
                let mut refusal = refused_by_store(&reason);
                refusal.detail = format!("the policy was not applied: {reason}. {}", self.stays());
                Err(refusal)
            }
            Err(CommitError::Unknown) => self.was_recorded(snapshot.version()),
        }
    }

    /// After a commit of unknown fate: what the store says.
    fn was_recorded(&self, version: &str) -> Result<(), Refusal> {
        let newest = self
            .ledger
            .reader()
            .policy_version()
            .map_err(store_unavailable)?;
        if newest.is_some_and(|(_, newest)| newest == version) {
            return Ok(());
        }
        let detail = format!("the store did not take it. {}", self.stays());
        Err(Refusal::new(Code::StoreUnavailable, detail))
    }

    /// `operate.policy_refused`: somebody tried, and nothing changed.
    async fn record_refused(&self, by: &str, errors: &LoadErrors) {
        let Ok(mut event) = self.event(Stage::Operate, "policy_refused", Outcome::Failed) else {
            return;
        };
        event.policy_version = Some(self.policy.load().version().to_owned());
        event.facts.insert("by".to_owned(), by.to_owned());
        event
            .facts
            .insert("errors".to_owned(), errors.len().to_string());
        let first = errors
            .iter()
            .next()
            .map(ToString::to_string)
            .unwrap_or_default();
        let first = cut(first, limits::POLICY_ERROR_BYTES);
        event.facts.insert("first".to_owned(), first);
        self.note_policy("operate.policy_refused", event).await;
    }

    /// `operate.policy_narrowed`: everything that it took away is revoked.
    async fn record_narrowed(&self, sum: Narrowed) {
        if sum == Narrowed::default() {
            return;
        }
        let Ok(mut event) = self.event(Stage::Operate, "policy_narrowed", Outcome::Ok) else {
            return;
        };
        event.policy_version = Some(self.policy.load().version().to_owned());
        let facts = [("credentials", sum.credentials), ("tasks", sum.tasks)];
        for (name, number) in facts {
            event.facts.insert(name.to_owned(), number.to_string());
        }
        self.note_policy("operate.policy_narrowed", event).await;
    }

    async fn note_policy(&self, name: &'static str, event: AuditEvent) {
        let batch = Batch {
            name,
            lane: Lane::Normal,
            require: Vec::new(),
            rows: Vec::new(),
            events: vec![event.into()],
        };
        let outcome = match self.ledger.submit(batch) {
            Ok(ticket) => ticket.await.map(drop).map_err(|error| error.to_string()),
            Err(full) => Err(full.to_string()),
        };
        if let Err(error) = outcome {
            tracing::error!(event = name, error, "an event could not be stored");
        }
    }

    /// Everything that is wrong, and what stays in force.
    fn not_applied(&self, errors: &LoadErrors) -> Refusal {
        let stays = self.stays();
        // The first word is said by the code.
        let text = errors.to_string();
        let text = text.strip_prefix("invalid: ").unwrap_or(&text);
        let most = ephor_proto::limits::MAX_DETAIL_LEN.saturating_sub(stays.len() + 1);
        let detail = format!("{}\n{stays}", cut(text.to_owned(), most));
        Refusal::new(Code::PolicyInvalid, detail)
    }

    fn stays(&self) -> String {
        format!(
            "Policy {} stays in force.",
            self.policy.load().short_version()
        )
    }

    /// The version in the broker's own directory, when it can be read.
    async fn directory_version(&self) -> Option<String> {
        let directory = self.inforce.directory.clone();
        let read = tokio::task::spawn_blocking(move || version_in(&directory));
        read.await.ok().flatten()
    }

    /// A word to who applied something else than the directory holds: the next change there wins.
    async fn differing_directory(&self, version: &str) -> Option<String> {
        let directory = self.inforce.directory.display();
        match self.directory_version().await {
            Some(other) if other == version => None,
            Some(other) => Some(format!(
                "{directory} holds policy {}. What was applied stays in force, also after a restart, until the files there change or SIGHUP asks for them.",
                other.get(..4).unwrap_or(&other)
            )),
            None => Some(format!("{directory} cannot be read, or is no policy.")),
        }
    }

    /// Waits, a bounded time, until what is newest in the store is in force here.
    pub(crate) async fn newest_policy_in_force(&self) {
        let swapped = self.inforce.swapped.notified();
        let mut swapped = std::pin::pin!(swapped);
        // Before the look: a swap in between is heard.
        swapped.as_mut().enable();
        let newest = self.ledger.reader().policy_version();
        let is_ours = newest.is_ok_and(|newest| {
            newest.is_none_or(|(_, version)| version == self.policy.load().version())
        });
        if !is_ours {
            let _ = tokio::time::timeout(limits::POLICY_SWAP_WAIT, swapped).await;
        }
    }

    /// Decides anew what is out, once after every start: a crash may have cut the last change short.
    pub(crate) fn narrow_after_start(self: &Arc<Self>) {
        let broker = Arc::clone(self);
        self.tasks.spawn("policy.narrow", async move {
            // Not on an old copy: what it holds for live is not its to revoke.
            let stop = broker.tasks.stop_token();
            while !broker.may_sweep() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(limits::SWEEP_TICK) => {}
                }
            }
            let narrowing = broker.inforce.narrowing.begin(None);
            let (sum, _) = broker.narrow(narrowing).await;
            broker.record_narrowed(sum).await;
        });
    }
}

/// The version of a directory, if it is a policy.
fn version_in(directory: &Path) -> Option<String> {
    let snapshot = Snapshot::load(directory).ok()?;
    Some(snapshot.version().to_owned())
}

fn answer(old: &Snapshot, new: &Snapshot, changes: Vec<PolicyChange>) -> PolicyApplied {
    PolicyApplied {
        version: new.version().to_owned(),
        previous: old.version().to_owned(),
        changed: true,
        dry_run: false,
        changes,
        credentials: 0,
        tasks: 0,
        finished: false,
        warnings: new.warnings().iter().map(ToString::to_string).collect(),
        note: None,
    }
}

/// Who, which, and how many changes of each sort; what they are is in the two texts.
fn describe(event: &mut AuditEvent, snapshot: &Snapshot, by: &str, changes: &[PolicyChange]) {
    event.policy_version = Some(snapshot.version().to_owned());
    event.facts.insert("by".to_owned(), by.to_owned());
    for change in changes {
        let count = event.facts.entry(change.effect.clone()).or_default();
        let so_far: u64 = count.parse().unwrap_or(0);
        *count = (so_far + 1).to_string();
    }
}

/// At most so many bytes, cut at a character.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}
