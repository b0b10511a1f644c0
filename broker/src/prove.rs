//! Stage 9: check that it is so, write it down, and hand out the receipt.
//!
//! Evidence names its reach and never says more: what is only published is *listed*, with the time
//! until which a verifier that never asks would still take it.

mod effect;
mod introspect;
mod record;

pub use introspect::Active;

use std::sync::Arc;

use ephor_proto::event::Outcome;
use ephor_proto::event::{AuditEvent, Evidence, Totals, Used};
use ephor_proto::id::TaskId;
use ephor_proto::kind::Kind;
use ephor_proto::limits::MAX_EVIDENCE_PER_LEAF;
use ephor_proto::log::Receipt;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::{CredentialState, Proof};
use ephor_proto::time::UnixMillis;

use crate::app::Broker;
use crate::issue::credential_part;
use crate::kind::effect::Content;
use crate::ledger::{CredentialRow, NewEvent, ReadError, TaskRow, log};
use crate::revoke::{NotEnded, Shown, place_in_words};

/// Facts of one check, as found.
#[derive(Debug, Clone)]
pub struct Checked {
    at: UnixMillis,
    shown: Shown,
}

/// A task's end: its sums, and its receipt where the log can prove it now.
#[derive(Debug, Clone)]
pub struct Proven {
    /// The task.
    pub task: TaskId,
    /// Over all of its credentials.
    pub totals: Totals,
    /// `None` while its leaf lies in the reserve (the store is full) and is not in the tree yet.
    pub receipt: Option<serde_json::Value>,
}

impl Checked {
    /// In words, for listings.
    pub fn text(&self, row: &CredentialRow) -> String {
        let place = self.place(row);
        let version = match &self.shown {
            Shown::Listed { version, .. } => version,
            Shown::Distrusted(_) => return place,
        };
        let end = format!("a verifier that never asks: until {}", row.expires_at);
        match row.kind {
            Kind::X509 => format!("{place} is in number {version} of {}; {end}", self.at),
            Kind::Jwt | Kind::Ssh | Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => {
                let at = self.at;
                format!("introspection refuses; {place} is set in version {version} of {at}; {end}")
            }
        }
    }

    fn place(&self, row: &CredentialRow) -> String {
        match &self.shown {
            Shown::Listed { list, .. } => place_in_words(row, list),
            Shown::Distrusted(distrusted) => distrusted.in_words(row),
        }
    }
}

impl Broker {
    /// Checks a revoked token where it is enforced: our own introspection must refuse it, and the
    /// list that verifiers fetch must have its bit.
    pub(crate) async fn check(&self, row: &CredentialRow) -> Result<Checked, NotEnded> {
        let now = self.clock.wall();
        if self.is_active(row.id, now)? {
            return Err(NotEnded::NotProven("introspection still accepts it"));
        }
        let shown = self.shown(row, now).await?;
        let shown = shown.ok_or(NotEnded::NotProven("its list does not show it yet"))?;
        Ok(Checked { at: now, shown })
    }

    /// What introspection says of a credential by its record alone; committed state only.
    pub(crate) fn is_active(
        &self,
        id: ephor_proto::id::CredentialId,
        now: UnixMillis,
    ) -> Result<bool, ReadError> {
        let row = self.ledger.reader().credential(id)?;
        Ok(row.is_some_and(|row| row.state.is_usable() && now < row.expires_at))
    }

    /// `revoke.listed`: one credential is refused by introspection and on its list, or has no CA
    /// any more.
    pub(crate) fn listed_event(
        &self,
        row: &CredentialRow,
        checked: &Checked,
    ) -> Result<NewEvent, NotEnded> {
        let mut event = self.about(Stage::Revoke, "listed", row)?;
        event.cause = row.cause.map(|cause| cause.as_str().to_owned());
        event.used = Some(self.used(row));
        event.evidence = vec![evidence_of(row, checked.place(row), checked.at)];
        if let Shown::Listed { version, .. } = &checked.shown {
            event
                .facts
                .insert("list_version".to_owned(), version.to_string());
        }
        Ok(event.into())
    }

    /// `prove.receipt`: the end of a task and of everything it held.
    pub(crate) fn receipt_event(
        &self,
        task: &TaskRow,
        all: &[CredentialRow],
    ) -> Result<AuditEvent, NotEnded> {
        self.sums_event("receipt", task, all)
    }

    /// `prove.closed`: the last listed credential of a closed task has expired everywhere.
    pub(crate) fn closing_event(
        &self,
        task: &TaskRow,
        all: &[CredentialRow],
    ) -> Result<AuditEvent, NotEnded> {
        self.sums_event("closed", task, all)
    }

    fn sums_event(
        &self,
        verb: &str,
        task: &TaskRow,
        all: &[CredentialRow],
    ) -> Result<AuditEvent, NotEnded> {
        let mut event = self.task_event(Stage::Prove, verb, task, None)?;
        event.cause = task.state.cause().map(|cause| cause.as_str().to_owned());
        event.totals = Some(totals(all));
        event.evidence = self.evidence(all, event.time)?;
        if let Some((count, versions)) = narrowed(all) {
            event.facts.insert("narrowed".to_owned(), count.to_string());
            event.facts.insert("narrowed_by".to_owned(), versions);
        }
        let ids = all.iter().map(|row| row.id);
        let mut aside = self.ledger.reader().set_aside_among(ids)?;
        aside.truncate(MAX_EVIDENCE_PER_LEAF);
        if !aside.is_empty() {
            let aside: Vec<String> = aside.iter().map(ToString::to_string).collect();
            event.facts.insert("set_aside".to_owned(), aside.join(" "));
        }
        event
            .facts
            .insert("receipt".to_owned(), task.id.receipt().to_string());
        event
            .facts
            .insert("opened_at".to_owned(), task.opened_at.to_string());
        if let Some(ended_at) = task.ended_at {
            event
                .facts
                .insert("ended_at".to_owned(), ended_at.to_string());
        }
        Ok(event)
    }

    /// The newest and the listed first, as many as a leaf may hold; the totals count all.
    fn evidence(&self, all: &[CredentialRow], at: UnixMillis) -> Result<Vec<Evidence>, ReadError> {
        let mut rows: Vec<&CredentialRow> = all.iter().collect();
        let is_listed = |row: &CredentialRow| row.state == CredentialState::Contained;
        rows.sort_by_key(|row| std::cmp::Reverse((is_listed(row), row.expires_at)));
        rows.into_iter()
            .take(MAX_EVIDENCE_PER_LEAF)
            .map(|row| Ok(evidence_of(row, self.place(row)?, at)))
            .collect()
    }

    /// What introspection, or its target when it was asked, saw of its use; nobody else can tell.
    pub(crate) fn used(&self, row: &CredentialRow) -> Used {
        let (seen, source) = match row.kind {
            Kind::Postgres | Kind::Secret => {
                let name = Content::of(row).map(|content| content.used_as());
                let seen = name.and_then(|name| self.logins_used.of(&name));
                (seen, "pg_stat_activity")
            }
            Kind::Jwt | Kind::X509 | Kind::Ssh | Kind::Sudo | Kind::Exec => {
                (self.uses.of(row.id), "introspection")
            }
        };
        match seen {
            Some(seen) => Used {
                place: seen.by,
                first: Some(seen.first),
                last: Some(seen.last),
                count: Some(u32::try_from(seen.count).unwrap_or(u32::MAX)),
                source: source.to_owned(),
            },
            None => Used {
                place: "unknown".to_owned(),
                first: None,
                last: None,
                count: None,
                source: match row.kind {
                    Kind::Jwt => "introspection".to_owned(),
                    // No service reports its handshakes.
                    Kind::X509
                    | Kind::Ssh
                    | Kind::Postgres
                    | Kind::Sudo
                    | Kind::Secret
                    | Kind::Exec => "unknown".to_owned(),
                },
            },
        }
    }

    /// An event about one credential.
    pub(crate) fn about(
        &self,
        stage: Stage,
        verb: &str,
        row: &CredentialRow,
    ) -> Result<AuditEvent, crate::request::Refusal> {
        let mut event = self.event(stage, verb, Outcome::Ok)?;
        event.subject = Some(row.subject.as_str().into());
        event.agent = Some(self.agent_id(&row.host));
        event.task = Some(row.task);
        event.request = Some(row.request);
        event.decision = Some(row.decision);
        event.entitlement = Some(row.entitlement.clone());
        event.owner = Some(row.owner.as_str().into());
        event.purpose = Some(row.purpose.clone());
        event.credential = Some(credential_part(row));
        Ok(event)
    }

    /// The sums and the receipt of a closed task, proven against the log as it is now.
    pub(crate) fn proven(&self, task: &TaskRow) -> Result<Proven, ReadError> {
        let totals = totals(&self.ledger.reader().credentials_of(task.id)?);
        let receipt = self
            .receipt(task.id)?
            .and_then(|receipt| serde_json::to_value(receipt).ok());
        Ok(Proven {
            task: task.id,
            totals,
            receipt,
        })
    }

    /// The log's name and keys.
    pub(crate) fn log_signer(&self) -> Arc<log::Signer> {
        Arc::clone(self.keys.load().log_signer())
    }

    /// The receipt of a task, if it has one and the log can prove it now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn receipt(&self, task: TaskId) -> Result<Option<Receipt>, ReadError> {
        log::receipt(&self.ledger.reader(), &self.log_signer(), task)
    }
}

/// How many credentials ended because a newer policy did not allow them, and which ones, oldest
/// first.
fn narrowed(all: &[CredentialRow]) -> Option<(usize, String)> {
    let mut ended: Vec<_> = all
        .iter()
        .filter_map(|row| Some((row.revoked_at, row.narrowed_by.as_deref()?)))
        .collect();
    ended.sort_unstable();
    let count = ended.len();
    let mut versions: Vec<_> = ended.into_iter().map(|(_, version)| version).collect();
    versions.dedup();
    versions.truncate(MAX_EVIDENCE_PER_LEAF);
    (count > 0).then(|| (count, versions.join(" ")))
}

/// Sums over a task's credentials.
pub(crate) fn totals(all: &[CredentialRow]) -> Totals {
    let count = |state| {
        let n = all.iter().filter(|row| row.state == state).count();
        u32::try_from(n).unwrap_or(u32::MAX)
    };
    let listed = all
        .iter()
        .filter(|row| row.state == CredentialState::Contained);
    Totals {
        credentials: u32::try_from(all.len()).unwrap_or(u32::MAX),
        dead: count(CredentialState::Dead),
        listed: count(CredentialState::Contained),
        listed_until: listed.map(|row| row.expires_at).max(),
    }
}

fn evidence_of(row: &CredentialRow, place: String, at: UnixMillis) -> Evidence {
    if let Some(seen) = Content::of(row).and_then(|content| effect::evidence_of(row, &content)) {
        return seen;
    }
    let is_dead = row.state == CredentialState::Dead;
    Evidence {
        credential: row.id,
        kind: row.kind,
        state: row.state,
        proof: is_dead.then_some(Proof::Expired),
        place: match row.kind {
            Kind::X509 => place,
            Kind::Jwt | Kind::Ssh | Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => {
                format!("introspection, {place}")
            }
        },
        at,
        until: (!is_dead).then_some(row.expires_at),
    }
}
