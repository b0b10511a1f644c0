//! What is at a target and what the store holds live, compared: now and then, and at a start.
//!
//! Ours that the store does not hold live is ended. Ours that is not as it was made is told, and
//! mended or ended. What another installation made is never touched. Nothing of it happens while
//! this store may be older than what others have seen of it, and one that cannot be compared or ended
//! keeps none of the others from it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::CredentialId;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::time::UnixMillis;

use super::{NotEnded, Work, written};
use crate::app::Broker;
use crate::kind::effect::{Content, Ending, Failed, Seen, lent_name};
use crate::kind::name::{installation_part, parse};
use crate::kind::postgres::{CERTIFICATE, Found, Uses};
use crate::kind::targets::Known;
use crate::ledger::{Batch, CredentialRow, Lane, LiveEffect};
use crate::limits;

const DIFFERS: &str = "at its target it is not what it was made as";

/// Why a comparison did not come to its end; it is made again.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotCompared {
    #[error(transparent)]
    Target(#[from] Failed),
    #[error(transparent)]
    Store(#[from] NotEnded),
    #[error(
        "{0} is not there, but was made at another server (system id {1}); it is not ended for that"
    )]
    Elsewhere(String, String),
    #[error("this store may be older than what others have seen of it")]
    Behind,
}

/// What went wrong with single ones.
#[derive(Default)]
struct Setbacks {
    first: Option<NotCompared>,
    unanswered: u32,
}

impl Setbacks {
    /// Goes on after what concerns one of them only.
    fn passed(&mut self, outcome: Result<(), NotCompared>) -> Result<(), NotCompared> {
        let Err(error) = outcome else { return Ok(()) };
        match &error {
            NotCompared::Store(_) | NotCompared::Behind => return Err(error),
            NotCompared::Target(Failed::NoAnswer(_)) => {
                self.unanswered += 1;
                if self.unanswered >= limits::COMPARE_UNANSWERED {
                    return Err(error);
                }
            }
            NotCompared::Target(_) | NotCompared::Elsewhere(..) => {}
        }
        tracing::debug!(%error, "one could not be compared or ended; the others are");
        self.first.get_or_insert(error);
        Ok(())
    }
}

/// Would end at its target before its time.
struct Short {
    /// When it would.
    until: UnixMillis,
    id: CredentialId,
    /// When it was to, then.
    end: UnixMillis,
}

pub(super) async fn answered<T>(
    call: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    let outcome = tokio::time::timeout(limits::TARGET_CALL, call).await;
    outcome.unwrap_or(Err(Failed::NoAnswer(limits::TARGET_CALL)))
}

impl From<crate::ledger::ReadError> for NotCompared {
    fn from(error: crate::ledger::ReadError) -> Self {
        Self::Store(error.into())
    }
}

impl From<crate::request::Refusal> for NotCompared {
    fn from(refusal: crate::request::Refusal) -> Self {
        Self::Store(refusal.into())
    }
}

impl Broker {
    /// Compares each target of policy for itself, so that one that hangs holds up no other. What is
    /// revoking in the store and in no queue, for whatever reason, comes back to one.
    pub(crate) fn reconcile_targets(self: &Arc<Self>) {
        self.queues.not_all();
        self.reconcile_those(self.target_names());
    }

    /// The same of those that have another history than before. One that is being compared just now is
    /// compared again after that, which may have begun before.
    pub(crate) fn reconcile_changed(self: &Arc<Self>) {
        for name in self.reconcile_those(self.targets.hurried()) {
            self.targets.hurry_look(&name);
        }
    }

    /// Those that are being compared already are returned.
    fn reconcile_those(self: &Arc<Self>, names: Vec<String>) -> Vec<String> {
        let mut under_way = Vec::new();
        for name in names {
            if !self.targets.begin_look(&name) {
                under_way.push(name);
                continue;
            }
            let look = Look {
                broker: Arc::clone(self),
                name,
            };
            self.tasks.spawn("revoke.reconcile", look.run());
        }
        under_way
    }

    /// Compares one target once.
    pub(crate) async fn reconcile(&self, name: &str) {
        match self.compare(name).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(target = name, %error, "a target could not be compared with the store; it is tried again");
            }
        }
    }

    async fn compare(&self, name: &str) -> Result<(), NotCompared> {
        let known = self.target(name)?;
        // Whatever an earlier epoch of this installation still has under way there ends in nothing.
        answered(known.at.begin_epoch(self.installation.epoch)).await?;
        self.tend_secret(&known).await;
        let before = self.clock.wall();
        let seen = self.follow_history(name, &known).await?;
        let found = answered(known.at.ours()).await?;
        let ours = installation_part(&self.installation.id);
        let is_ours = |one: &&Found| one.installation.as_deref() == Some(ours.as_str());
        let mut there = HashMap::new();
        for one in found.iter().filter(is_ours) {
            there.insert(called(one), one);
        }
        let mut here = Vec::new();
        self.ledger.reader().live_effects(|live| {
            if live.target == name {
                let lent = there.remove(&live.id.to_string());
                let found = lent.or_else(|| there.remove(&live.name));
                here.push((live, found));
            }
        })?;
        let steady = here.iter().map(|(live, _)| live.renewals_per_second());
        let at = self.clock.boottime();
        self.pace.is_steady(name, steady.sum(), at);
        let mut setbacks = Setbacks::default();
        let mut short = Vec::new();
        // What nobody answers for goes first.
        for one in there.into_values() {
            setbacks.passed(self.end_stray(&known, name, one).await)?;
        }
        for (live, found) in here {
            // There may be many, and each is a read.
            tokio::task::yield_now().await;
            let compared = match found {
                Some(one) => {
                    let compared = self.compare_one(&known, name, &live, one).await;
                    compared.map(|is_short| short.extend(is_short))
                }
                // Made before the look began, and not there.
                None if live
                    .issued_at
                    .saturating_add_millis(limits::SURELY_MADE_MILLIS)
                    < before =>
                {
                    self.end_missing(&live, &seen).await
                }
                None => Ok(()),
            };
            setbacks.passed(compared)?;
        }
        self.lengthen(&known, name, short, &mut setbacks).await?;
        setbacks.first.map_or(Ok(()), Err)
    }

    /// Asked again before each act: a look takes its time, in which that may be found out.
    pub(super) fn not_behind(&self) -> Result<(), NotCompared> {
        self.behind().map_or(Ok(()), |_| Err(NotCompared::Behind))
    }

    /// Something that the store holds live, as it is there. What would end there before its time is
    /// returned: that can wait until the rest was looked at.
    async fn compare_one(
        &self,
        known: &Known,
        target: &str,
        live: &LiveEffect,
        found: &Found,
    ) -> Result<Option<Short>, NotCompared> {
        let Some(row) = self.ledger.reader().credential(live.id)? else {
            return Ok(None);
        };
        let Some(content) = Content::of(&row).filter(|_| row.state.is_usable()) else {
            return Ok(None);
        };
        if let Some(what) = differs(&content, found) {
            self.tell_drift(&row, target, &what).await?;
            self.end_differing(row.id).await?;
            return Ok(None);
        }
        let end = row.expires_at;
        let is_later = |until: UnixMillis| until > end.saturating_add_millis(limits::DRIFT_MILLIS);
        if found.valid_until.is_none_or(is_later) {
            let what = "it would live longer than it was given; mended";
            self.tell_drift(&row, target, what).await?;
            self.set_end(known, row.id).await?;
            return Ok(None);
        }
        let is_earlier =
            |until: &UnixMillis| until.saturating_add_millis(limits::DRIFT_MILLIS) < end;
        let until = found.valid_until.filter(is_earlier);
        Ok(until.map(|until| Short {
            until,
            id: row.id,
            end,
        }))
    }

    /// Those that would end too soon, the next to end first. After an outage they may be many and the
    /// server just back: one after the other, with pauses that leave time for all. Ends early when another
    /// comparison is wanted, which finds the rest.
    async fn lengthen(
        &self,
        known: &Known,
        target: &str,
        mut short: Vec<Short>,
        setbacks: &mut Setbacks,
    ) -> Result<(), NotCompared> {
        short.sort_unstable_by_key(|one| one.until);
        let begun = self.clock.boottime();
        let mut many = u32::try_from(short.len()).unwrap_or(u32::MAX);
        for one in short {
            many = many.saturating_sub(1);
            let spent = Duration::from_millis(self.clock.boottime().millis_since(begun));
            if spent > limits::LENGTHEN_FOR || self.targets.is_hurried(target) {
                break;
            }
            let row = self.ledger.reader().credential(one.id)?;
            // Who renewed it meanwhile has told the target.
            if row.is_none_or(|row| row.expires_at != one.end) {
                continue;
            }
            self.pace.spend(target, self.clock.boottime());
            setbacks.passed(self.set_end(known, one.id).await)?;
            let left = Duration::from_millis(one.until.millis_since(self.clock.wall()));
            tokio::time::sleep(limits::LENGTHEN_PAUSE.min(left / many.max(1))).await;
        }
        Ok(())
    }

    /// Gives it the end there that it has here. It may be renewed in between, which must not be undone:
    /// what was set last is what was stored last.
    async fn set_end(&self, known: &Known, id: CredentialId) -> Result<(), NotCompared> {
        let epoch = self.installation.epoch;
        let mut set = None;
        loop {
            let row = self.ledger.reader().credential(id)?;
            let Some(row) = row.filter(|row| row.state.is_usable()) else {
                return Ok(());
            };
            match set {
                Some((end, outcome)) if end == row.expires_at => return outcome,
                Some(_) | None => {}
            }
            let Some(content) = Content::of(&row) else {
                return Ok(());
            };
            let call = known.at.extend(epoch, (id, &content), row.expires_at);
            let outcome = answered(call).await.map_err(NotCompared::from);
            set = Some((row.expires_at, outcome));
        }
    }

    /// Something that the store holds live, and that is not at the server that was seen.
    async fn end_missing(&self, live: &LiveEffect, seen: &Seen) -> Result<(), NotCompared> {
        self.not_behind()?;
        let row = self.ledger.reader().credential(live.id)?;
        let Some(row) = row.filter(|row| row.state.is_usable()) else {
            return Ok(());
        };
        let minted = Content::of(&row).and_then(|content| content.minted);
        if let Some(minted) = minted.filter(|minted| minted.seen.is_elsewhere(seen)) {
            let system_id = minted.seen.system_id;
            return Err(NotCompared::Elsewhere(row.item, system_id));
        }
        self.tell_drift(&row, &live.target, "it is not there")
            .await?;
        self.end_differing(row.id).await?;
        Ok(())
    }

    async fn end_differing(&self, id: CredentialId) -> Result<(), NotEnded> {
        let work = Work::Credential(id);
        self.pending.add(work.clone(), self.clock.boottime());
        self.drive_credential(id, DIFFERS).await?;
        self.pending.done(&work);
        Ok(())
    }

    /// Something of ours that the store does not hold live.
    async fn end_stray(
        &self,
        known: &Known,
        target: &str,
        found: &Found,
    ) -> Result<(), NotCompared> {
        self.not_behind()?;
        let stored = match found.credential {
            Some(id) => self.ledger.reader().credential(id)?,
            None => self.ledger.reader().credential_of_item(&found.role)?,
        };
        match stored {
            Some(row) => match row.state {
                // On its way, or just made.
                CredentialState::Intended | CredentialState::Live | CredentialState::Replacing => {
                    Ok(())
                }
                CredentialState::Revoking => {
                    self.end_at_target(&row, false);
                    Ok(())
                }
                // It may have died since this look at the target: only another one can tell.
                CredentialState::Contained | CredentialState::Dead => {
                    self.look_again_for(row.id).await
                }
            },
            None => self.end_unknown(known, target, found).await,
        }
    }

    /// Ours by its name, and nothing here knows of it: told first, then ended.
    async fn end_unknown(
        &self,
        known: &Known,
        target: &str,
        found: &Found,
    ) -> Result<(), NotCompared> {
        let event = self.stray_event("stray", target, found)?;
        self.write_told("revoke.stray", event).await?;
        let ending = Ending {
            credential: match found.credential {
                Some(id) => id,
                None => self.new_id()?,
            },
            name: found.role.clone(),
            reassign: None,
            lent: found.is_static.then(String::new),
        };
        let endings = [ending];
        let call = known.at.revoke(self.installation.epoch, &endings);
        let answers = answered(async { Ok(call.await) }).await?;
        for gone in answers {
            let mut event = self.stray_event("stray_ended", target, found)?;
            let seen = gone?.place(target);
            event.outcome = Outcome::Ok;
            event.facts.insert("seen".to_owned(), seen);
            self.write_told("revoke.stray_ended", event).await?;
        }
        Ok(())
    }

    fn stray_event(
        &self,
        verb: &str,
        target: &str,
        found: &Found,
    ) -> Result<AuditEvent, NotCompared> {
        let mut event = self.event(Stage::Revoke, verb, Outcome::Failed)?;
        let facts = [
            ("target", target.to_owned()),
            ("name", found.role.clone()),
            ("sessions", found.sessions.to_string()),
        ];
        event
            .facts
            .extend(facts.map(|(name, value)| (name.to_owned(), value)));
        Ok(event)
    }

    /// `revoke.drift`
    async fn tell_drift(
        &self,
        row: &CredentialRow,
        target: &str,
        what: &str,
    ) -> Result<(), NotEnded> {
        let mut event = self.about(Stage::Revoke, "drift", row)?;
        event.outcome = Outcome::Failed;
        let facts = [
            ("target", target.to_owned()),
            ("name", row.item.clone()),
            ("differs", what.to_owned()),
        ];
        event
            .facts
            .extend(facts.map(|(name, value)| (name.to_owned(), value)));
        self.write_told("revoke.drift", event).await
    }

    async fn write_told(&self, name: &'static str, event: AuditEvent) -> Result<(), NotEnded> {
        let batch = Batch {
            name,
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: Vec::new(),
            events: vec![event.into()],
        };
        written(self.ledger.submit(batch)?.await).map(drop)
    }

    /// Who uses what was made at the targets, as far as they tell.
    pub(super) fn sample_uses(self: &Arc<Self>) {
        for name in self.target_names() {
            let broker = Arc::clone(self);
            self.tasks.spawn("prove.uses", async move {
                let sampled = tokio::time::timeout(limits::TARGET_CALL, broker.sample(&name)).await;
                if let Ok(Err(error)) = sampled {
                    tracing::debug!(target = name, %error, "who uses a target is not known");
                }
            });
        }
    }

    pub(crate) async fn sample(&self, name: &str) -> Result<(), Failed> {
        let known = self.target(name)?;
        let begun = self.clock.boottime();
        self.heard_of(name, &known.at.seen().await?, begun);
        match known.at.uses().await? {
            Uses::Seen(seen) => {
                let ours = installation_part(&self.installation.id);
                let is_ours =
                    |role: &str| parse(role).is_some_and(|name| name.installation == ours);
                for one in seen
                    .iter()
                    .filter(|one| one.is_static || is_ours(&one.role))
                {
                    let from = one.from.as_deref().unwrap_or("local");
                    let role = match one.is_static {
                        true => lent_name(&one.role, name),
                        false => one.role.clone(),
                    };
                    self.logins_used.saw(&role, from, (one.first, one.last));
                }
            }
            Uses::Unknown(why) => tracing::debug!(target = name, why, "it does not tell its use"),
        }
        Ok(())
    }

    fn target_names(&self) -> Vec<String> {
        let policy = self.policy.load();
        policy.targets().map(|target| target.name.clone()).collect()
    }
}

/// What a thing there and its row have in common. A role that is lent is the same for everybody who has it: the
/// server knows for which credential.
fn called(found: &Found) -> String {
    match found.credential {
        Some(id) if found.is_static => id.to_string(),
        Some(_) | None => found.role.clone(),
    }
}

/// What makes it more, or another, than it was made.
fn differs(content: &Content, found: &Found) -> Option<String> {
    match &found.now {
        None => return Some("somebody has dropped it".to_owned()),
        Some(now) if *now != found.role => return Some(format!("it is called {now}")),
        Some(_) => {}
    }
    if !found.can_login {
        return Some("it cannot log in any more".to_owned());
    }
    if !found.attributes.is_empty() {
        return Some(format!("it has {}", found.attributes.join(", ")));
    }
    if !found.granted_to.is_empty() {
        return Some(format!("it was granted to {}", found.granted_to.join(", ")));
    }
    let most = |limit: i32| u32::try_from(limit).unwrap_or(u32::MAX);
    let was = content.connection_limit.unwrap_or(u32::MAX);
    if most(found.connection_limit) > was {
        return Some(format!("it may have more sessions than {was}"));
    }
    let (mut is, mut was) = (found.groups.clone(), content.groups.clone());
    was.extend(content.certificate.as_ref().map(|_| CERTIFICATE.to_owned()));
    is.sort();
    was.sort();
    (is != was).then(|| format!("it is in {}, not in {}", is.join(", "), was.join(", ")))
}

/// One comparison under way; another of the same target waits for its end, however that comes.
struct Look {
    broker: Arc<Broker>,
    name: String,
}

impl Look {
    async fn run(self) {
        self.broker.reconcile(&self.name).await;
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.broker.targets.end_look(&self.name);
    }
}
