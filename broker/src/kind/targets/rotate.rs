//! Another password for the broker's own login at a target: when a person asks, when policy's time for
//! it has come, and when a rotation was begun and this broker was stopped in the middle.
//!
//! What is about to be done is in the log before the server learns of it, and what came of it before
//! the old password is forgotten.

use ephor_proto::event::Outcome;
use ephor_proto::http::admin::SecretRotated;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;

use super::{Known, Targets, locked};
use crate::app::Broker;
use crate::issue::{defect, refused_by_store, store_unavailable};
use crate::kind::effect::Failed;
use crate::kind::effect::logins::Server;
use crate::kind::postgres::NotRotated;
use crate::ledger::{Batch, CommitError, Lane};
use crate::request::Refusal;

/// Who wants it, and why.
#[derive(Debug, Clone, Copy)]
struct Wish<'a> {
    /// By the kernel's word, or `schedule`.
    by: &'a str,
    /// Free text; may be empty.
    reason: &'a str,
}

/// One rotation under way; another of the same target is refused until it has ended, however that
/// comes.
struct Turn<'a> {
    targets: &'a Targets,
    name: &'a str,
}

impl<'a> Turn<'a> {
    fn take(targets: &'a Targets, name: &'a str) -> Option<Self> {
        let is_first = locked(&targets.rotated).insert(name.to_owned());
        // Made for the first alone: another that is dropped here would end the first one's turn.
        is_first.then(|| Self { targets, name })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        locked(&self.targets.rotated).remove(self.name);
    }
}

impl Broker {
    /// Gives the broker's own login at a target another password.
    ///
    /// # Errors
    /// `not_found` when policy does not name the target; `conflict` when its password is not ours to
    /// write; `target_failed` when the target did not do it. What was begun is finished by itself.
    pub async fn rotate_target_secret(
        &self,
        name: &str,
        by: &str,
        reason: &str,
    ) -> Result<SecretRotated, Refusal> {
        self.vouch()?;
        let known = self.target(name);
        let known = known.map_err(|failed| {
            let policy = self.policy.load();
            let why = match policy.target(name) {
                Some(_) => failed.to_string(),
                None => policy.no_target(name),
            };
            Refusal::new(Code::NotFound, why)
        })?;
        // A broker whose time is over must not lock out the one that followed it.
        let begun = known.at.begin_epoch(self.installation.epoch).await;
        begun.map_err(|failed: Failed| Refusal::new(Code::TargetFailed, failed.to_string()))?;
        let Some(server) = known.at.own_login() else {
            return Err(defect("a target without a login of our own"));
        };
        self.rotate_at(server, Wish { by, reason }).await
    }

    /// Finishes what was begun, and begins what policy's time has come for.
    pub(crate) async fn tend_secret(&self, known: &Known) {
        let Some(server) = known.at.own_login() else {
            return;
        };
        let target = server.target();
        if !target.has_begun_rotation().await && !self.is_secret_due(known, server).await {
            return;
        }
        let wish = Wish {
            by: "schedule",
            reason: "",
        };
        let name = target.access().name.as_str();
        match self.rotate_at(server, wish).await {
            Ok(_) => tracing::info!(target = name, "our own login has another password there"),
            Err(Refusal { detail, .. }) => {
                tracing::warn!(
                    target = name,
                    why = detail,
                    "the password of our own login was not rotated; it is tried again"
                );
            }
        }
    }

    async fn is_secret_due(&self, known: &Known, server: &Server) -> bool {
        let every = known.policy.as_ref().and_then(|policy| policy.rotate);
        let (Some(every), Some(since)) = (every, server.target().password_since().await) else {
            return false;
        };
        since.saturating_add_millis(every.as_seconds().saturating_mul(1000)) <= self.clock.wall()
    }

    async fn rotate_at(&self, server: &Server, wish: Wish<'_>) -> Result<SecretRotated, Refusal> {
        let target = server.target();
        let (name, login) = (target.access().name.as_str(), target.access().user.as_str());
        let Some(_turn) = Turn::take(&self.targets, name) else {
            let detail = format!("a rotation at target {name} is under way; ask again");
            return Err(Refusal::new(Code::Busy, detail));
        };
        if self.target_secrets.are_copies() && target.has_password_file() {
            return Err(refused(target.not_ours(
                "it is a systemd credential, of which the broker has a copy".to_owned(),
            )));
        }
        let is_new = target.begin_rotation().await.map_err(refused)?;
        let facts = [("target", name), ("login", login), ("by", wish.by)];
        let told = self.tell_secret("begun", Outcome::Ok, (&facts, wish.reason));
        if let Err(refusal) = told.await {
            if is_new {
                target.forget_rotation().await.map_err(refused)?;
            }
            return Err(refusal);
        }
        let rotated = match target.prove_rotation(server.scram_iterations()).await {
            Ok(rotated) => rotated,
            Err(why) => {
                let text = why.to_string();
                let facts = [("target", name), ("login", login), ("why", text.as_str())];
                let told = self.tell_secret("rotated", Outcome::Failed, (&facts, ""));
                told.await?;
                return Err(refused(why));
            }
        };
        let old = rotated.old.as_str();
        let facts = [("target", name), ("login", login), ("old", old)];
        let told = self.tell_secret("rotated", Outcome::Ok, (&facts, ""));
        told.await?;
        target.settle_rotation().await.map_err(refused)?;
        Ok(SecretRotated {
            target: name.to_owned(),
            login: login.to_owned(),
            old: old.to_owned(),
        })
    }

    /// `operate.target_secret_begun`, `operate.target_secret_rotated`
    async fn tell_secret(
        &self,
        what: &str,
        outcome: Outcome,
        (facts, reason): (&[(&str, &str)], &str),
    ) -> Result<(), Refusal> {
        let verb = format!("target_secret_{what}");
        let mut event = self.event(Stage::Operate, &verb, outcome)?;
        for (name, value) in facts {
            event.facts.insert((*name).to_owned(), (*value).to_owned());
        }
        let batch = Batch {
            name: "operate.target_secret",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: Vec::new(),
            events: vec![self.with_reason(event, reason)?],
        };
        let ticket = self.ledger.submit(batch);
        let ticket = ticket.map_err(|full| Refusal::new(Code::Busy, full.to_string()))?;
        match ticket.await {
            Ok(_) => Ok(()),
            Err(CommitError::Refused(reason)) => Err(refused_by_store(&reason)),
            Err(CommitError::Conflict(key)) => Err(defect(key)),
            Err(CommitError::Unknown) => Err(store_unavailable("its fate is unknown")),
        }
    }
}

fn refused(why: NotRotated) -> Refusal {
    let code = match &why {
        NotRotated::NoSecret { .. } | NotRotated::NotOurs { .. } => Code::Conflict,
        NotRotated::Begun(_) | NotRotated::NotSettled { .. } => Code::TargetFailed,
    };
    Refusal::new(code, why.to_string())
}
