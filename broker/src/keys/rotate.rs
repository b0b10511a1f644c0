//! Rotation in a running broker: read the store, plan, write, swap.
//!
//! The store decides, memory follows: whatever became of a commit, what is in force afterwards is
//! what a restart would find.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ephor_crypto::digest::{hex, sha256};
use ephor_crypto::jwt::TokenKind;
use ephor_crypto::p256::P256Public;
use ephor_proto::event::Outcome;
use ephor_proto::http::admin;
use ephor_proto::log::VerifierKey;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;

use super::plan::{Held, Step, needed_until, plan};
use super::state::{KeyKind, KeyState, moved, next_version};
use super::{Keys, KeysError, Owner, fresh};
use crate::app::Broker;
use crate::files;
use crate::issue::{defect, refused_by_store, store_unavailable};
use crate::ledger::{Batch, CommitError, KeyRow, Lane, Ledger, NewEvent, ReadError, Row};
use crate::limits;
use crate::request::Refusal;

/// Every version of every key, sealed.
///
/// # Errors
/// As every read.
pub fn stored_keys(ledger: &Ledger) -> Result<Vec<KeyRow>, ReadError> {
    let reader = ledger.reader();
    let mut rows = Vec::new();
    for name in Keys::NAMES {
        rows.append(&mut reader.keys(name)?);
    }
    Ok(rows)
}

/// Why stored keys did not come into force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// They cannot be read.
    #[error("the stored keys cannot be read: {0}")]
    Read(#[from] ReadError),
    /// They cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl Broker {
    /// Brings the stored keys into force: signers, verifiers, trusted CAs and our own server
    /// certificate. Everything that starts after this uses them.
    ///
    /// # Errors
    /// When they cannot be read or opened; those in force then stay.
    pub fn reload_keys(&self) -> Result<(), ReloadError> {
        let rows = stored_keys(&self.ledger)?;
        let (domain, origin) = (&self.installation.trust_domain, &self.installation.origin);
        let keys = Arc::new(Keys::unseal(&self.sealer, &rows, domain, origin)?);
        // Trust first: a certificate of a new CA may come the moment it can be issued.
        self.trust
            .replace(crate::app::trusted(&keys, self.readmission.as_ref()));
        self.lists
            .sign_with(Arc::clone(keys.token_signer(TokenKind::StatusList)));
        self.keys.store(keys);
        self.keys_changed.send_modify(|turn| *turn += 1);
        Ok(())
    }

    /// Does what the schedule says is due. Gives the number of steps taken.
    ///
    /// # Errors
    /// When the clock or the store cannot be trusted now, or a commit fails; the rest is then done
    /// at the next look.
    pub async fn sweep_keys(&self) -> Result<usize, Refusal> {
        let keys = self.keys.load_full();
        let steps = plan(keys.held(), &self.schedule, self.clock.wall());
        let mut taken = 0;
        for step in steps {
            taken += usize::from(self.take_step(step, "").await?);
        }
        Ok(taken)
    }

    /// Publishes the next key of a kind, to be used when its lead is over; with `now` the published
    /// one is used at once, before its lead is over only with `force`. Asked again it tells what
    /// is already under way.
    ///
    /// # Errors
    /// `conflict` where it would skip the lead unforced, or what the store says.
    pub async fn rotate_key(
        &self,
        kind: KeyKind,
        asked: &admin::Rotate,
    ) -> Result<Vec<admin::Key>, Refusal> {
        let prepared = self.prepared(kind);
        let ready = prepared
            .as_ref()
            .is_some_and(|next| self.clock.wall() >= self.schedule.active_from(next));
        if asked.now && !asked.force && !ready {
            return Err(self.too_early(kind, prepared.as_ref()));
        }
        if prepared.is_none() {
            self.take_step(Step::Prepare(kind), &asked.reason).await?;
        }
        if let Some(next) = self.prepared(kind).filter(|_| asked.now) {
            let step = Step::Activate(kind, next.version);
            self.take_step(step, &asked.reason).await?;
        }
        self.list_keys()
    }

    /// Stops trusting every retired key of a kind, whatever is still signed by it.
    ///
    /// # Errors
    /// `conflict` when none is retired, or what the store says.
    pub async fn distrust_keys(
        &self,
        kind: KeyKind,
        reason: &str,
    ) -> Result<Vec<admin::Key>, Refusal> {
        let keys = self.keys.load_full();
        let retired = |key: &&Held| key.kind == kind && key.state == KeyState::Retired;
        let retired: Vec<&Held> = keys.held().iter().filter(retired).collect();
        if retired.is_empty() {
            let detail = format!(
                "no {kind} key is retired, so there is none to distrust; the active one is first \
                 replaced (ephor broker rotate {kind} --now)"
            );
            return Err(Refusal::new(Code::Conflict, detail));
        }
        for key in retired {
            let _one_at_a_time = self.rotating.lock().await;
            // It takes trust away and gives none: no reason not to issue stops it, a clock that is
            // doubted neither.
            self.vouch()?;
            let step = Step::Destroy(kind, key.version);
            let now = self.clock.wall();
            self.take_step_at(step, reason, now).await?;
        }
        self.list_keys()
    }

    /// Every version of every key as people see it, newest first within its kind.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list_keys(&self) -> Result<Vec<admin::Key>, Refusal> {
        let rows = stored_keys(&self.ledger).map_err(store_unavailable)?;
        let mut listed: Vec<admin::Key> = rows
            .iter()
            .map(|row| self.listed(row))
            .collect::<Result<_, _>>()?;
        listed.sort_by(|a, b| (&a.kind, b.version).cmp(&(&b.kind, a.version)));
        Ok(listed)
    }

    fn listed(&self, row: &KeyRow) -> Result<admin::Key, Refusal> {
        let held = Held::of(row).map_err(defect)?;
        let until = match row.state {
            KeyState::Prepared => Some(self.schedule.active_from(&held)),
            KeyState::Active => self.schedule.due(&held).or(held.ends),
            KeyState::Retired => row.until,
            KeyState::Requested | KeyState::Destroyed => None,
        };
        Ok(admin::Key {
            kind: row.name.clone(),
            version: row.version,
            state: row.state.as_str().to_owned(),
            id: key_id(row, &self.installation.origin).map_err(defect)?,
            since: row.since,
            until,
            ends: held.ends,
        })
    }

    /// When the next CA for databases is used, if one is published.
    pub(crate) fn next_database_ca(&self) -> Option<UnixMillis> {
        let next = self.prepared(KeyKind::Database)?;
        Some(self.schedule.active_from(&next))
    }

    fn prepared(&self, kind: KeyKind) -> Option<Held> {
        let keys = self.keys.load();
        let found = |key: &&Held| key.kind == kind && key.state == KeyState::Prepared;
        keys.held().iter().find(found).cloned()
    }

    fn too_early(&self, kind: KeyKind, prepared: Option<&Held>) -> Refusal {
        let detail = match prepared {
            Some(next) => format!(
                "version {} of the {kind} key is published since {}; until {} there may be those who do not \
                 know it yet. It is used then by itself; to use it now all the same, add --force",
                next.version,
                next.since,
                self.schedule.active_from(next)
            ),
            None => format!(
                "no next {kind} key is published yet. `ephor broker rotate {kind}` publishes one, and uses \
                 it when everyone can know it; to use a new one at once all the same, add --force"
            ),
        };
        Refusal::new(Code::Conflict, detail)
    }

    /// Takes one step, if it still makes sense. False: it does not any more.
    async fn take_step(&self, step: Step, reason: &str) -> Result<bool, Refusal> {
        let _one_at_a_time = self.rotating.lock().await;
        let now = self.may_issue()?;
        self.take_step_at(step, reason, now).await
    }

    /// See [`Self::take_step`]; called by one at a time.
    async fn take_step_at(
        &self,
        step: Step,
        reason: &str,
        now: UnixMillis,
    ) -> Result<bool, Refusal> {
        let rows = stored_keys(&self.ledger).map_err(store_unavailable)?;
        let now = after_all(&rows, now);
        let written = match step {
            Step::Prepare(kind) => self.next_of(kind, &rows, now)?,
            Step::Activate(kind, version) => activated(&rows, kind, version, now),
            Step::Settle(kind, version) => self.needed(&rows, kind, version, now)?,
            Step::Destroy(kind, version) => {
                let gone = of(&rows, kind, version).filter(|row| row.state == KeyState::Retired);
                gone.map(|row| moved(row, kind, KeyState::Destroyed, now))
                    .into_iter()
                    .collect()
            }
        };
        if written.is_empty() {
            // Memory said that there is something to do and the store that there is not: an
            // earlier change was stored and did not come into force here.
            self.reload_keys().map_err(defect)?;
            return Ok(false);
        }
        self.write_keys(written, reason).await?;
        Ok(true)
    }

    fn next_of(
        &self,
        kind: KeyKind,
        rows: &[KeyRow],
        now: UnixMillis,
    ) -> Result<Vec<KeyRow>, Refusal> {
        let of_kind = || rows.iter().filter(|row| row.name == kind.as_str());
        if of_kind().any(|row| row.state == KeyState::Prepared) {
            return Ok(Vec::new());
        }
        let trusted = of_kind().filter(|row| row.state.is_trusted()).count();
        if trusted >= limits::KEY_VERSIONS {
            let detail = format!(
                "{trusted} versions of the {kind} key are trusted at once; wait until one has run out, or \
                 distrust the retired ones (ephor broker rotate {kind} --distrust)"
            );
            return Err(Refusal::new(Code::Conflict, detail));
        }
        let owner = Owner {
            trust_domain: &self.installation.trust_domain,
            installation: &self.installation.id,
        };
        let place = (next_version(rows, kind), KeyState::Prepared);
        let row = fresh::row(&self.sealer, kind, owner, place, now).map_err(defect)?;
        Ok(vec![row])
    }

    fn needed(
        &self,
        rows: &[KeyRow],
        kind: KeyKind,
        version: u32,
        now: UnixMillis,
    ) -> Result<Vec<KeyRow>, Refusal> {
        let Some(row) = of(rows, kind, version)
            .filter(|row| row.state == KeyState::Retired && row.until.is_none())
        else {
            return Ok(Vec::new());
        };
        let held = Held::of(row).map_err(defect)?;
        let last = self.last_expiry(kind, now).map_err(store_unavailable)?;
        Ok(vec![KeyRow {
            until: Some(needed_until(&held, &self.schedule, last, now)),
            ..row.clone()
        }])
    }

    /// When the last of what may be signed by a key of this kind expires.
    fn last_expiry(&self, kind: KeyKind, now: UnixMillis) -> Result<UnixMillis, ReadError> {
        let reader = self.ledger.reader();
        let mut last = now;
        if kind != KeyKind::Log {
            reader.expiries(|expiry| last = last.max(expiry.at))?;
        }
        if kind == KeyKind::Ca {
            for host in reader.hosts()? {
                last = last.max(host.certificate_expires_at);
            }
        }
        Ok(last)
    }

    /// Commits rows of keys with an event for each, and brings them into force.
    pub(super) async fn write_keys(&self, rows: Vec<KeyRow>, reason: &str) -> Result<(), Refusal> {
        let events = rows.iter().map(|row| self.key_event(row, reason));
        let events = events.collect::<Result<_, _>>()?;
        let batch = Batch {
            name: "operate.keys",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: rows.into_iter().map(Row::Key).collect(),
            events,
        };
        crate::crash_point!("keys.before_commit");
        let ticket = self
            .ledger
            .submit(batch)
            .map_err(|full| Refusal::new(Code::Busy, full.to_string()))?;
        let outcome = ticket.await;
        crate::crash_point!("keys.after_commit");
        // Also when its fate is not known: the store says what is in force.
        let reloaded = self.reload_keys();
        crate::crash_point!("keys.after_swap");
        match outcome {
            Ok(_) => reloaded.map_err(defect),
            Err(CommitError::Refused(reason)) => Err(refused_by_store(&reason)),
            Err(CommitError::Conflict(_) | CommitError::Unknown) => {
                let detail = "it is not known whether the keys were changed; look (ephor broker keys) and try again";
                Err(Refusal::new(Code::StoreUnavailable, detail))
            }
        }
    }

    /// `operate.key_STATE`, or `operate.key_settled` for a retired one whose end was found.
    fn key_event(&self, row: &KeyRow, reason: &str) -> Result<NewEvent, Refusal> {
        let verb = match row.state {
            KeyState::Requested => "key_requested",
            KeyState::Prepared => "key_prepared",
            KeyState::Active => "key_activated",
            KeyState::Retired if row.until.is_some() => "key_settled",
            KeyState::Retired => "key_retired",
            KeyState::Destroyed => "key_destroyed",
        };
        let mut event = self.event(Stage::Operate, verb, Outcome::Ok)?;
        let id = key_id(row, &self.installation.origin).map_err(defect)?;
        tracing::info!(kind = row.name, version = row.version, state = %row.state, id, "key rotation");
        event.facts.insert("key".to_owned(), row.name.clone());
        event
            .facts
            .insert("version".to_owned(), row.version.to_string());
        event.facts.insert("key_id".to_owned(), id);
        if let Some(until) = row.until {
            event.facts.insert("until".to_owned(), until.to_string());
        }
        if row.state == KeyState::Prepared {
            let from = self.schedule.active_from(&Held::of(row).map_err(defect)?);
            event.facts.insert("used_from".to_owned(), from.to_string());
            // Nobody else follows by himself.
            if row.name == KeyKind::Database.as_str() {
                tracing::warn!(used_from = %from, "the next CA for databases is published: servers that do not have it by then \
                    (ephor target ca) refuse new logins with a certificate; ephor target check says which");
            }
        }
        self.with_reason(event, reason)
    }
}

impl Held {
    /// From its row.
    ///
    /// # Errors
    /// When the row's name or certificate cannot be read.
    pub fn of(row: &KeyRow) -> Result<Self, KeysError> {
        let kind: KeyKind = row.name.parse()?;
        let ends = match (kind, row.state) {
            (KeyKind::Ca, KeyState::Requested) | (KeyKind::Token | KeyKind::Log, _) => None,
            (KeyKind::Ca | KeyKind::Database, _) => Some(super::ca_row_end(row)?),
        };
        Ok(Self {
            kind,
            version: row.version,
            state: row.state,
            since: row.since,
            until: row.until,
            ends,
            is_from_elsewhere: !row.chain.is_empty(),
        })
    }
}

/// What people and verifiers know a key by: `kid`, the certificate's SHA-256, the verifier key. Of
/// a CA that has no certificate yet, the SHA-256 of its public key.
pub(super) fn key_id(row: &KeyRow, origin: &str) -> Result<String, KeysError> {
    Ok(match row.name.parse()? {
        KeyKind::Ca | KeyKind::Database => hex(&sha256(&row.public)),
        KeyKind::Token => P256Public::from_spki(&row.public)?.thumbprint(),
        KeyKind::Log => VerifierKey::new(origin, super::log_public(row)?)?.to_string(),
    })
}

fn of(rows: &[KeyRow], kind: KeyKind, version: u32) -> Option<&KeyRow> {
    rows.iter()
        .find(|row| row.name == kind.as_str() && row.version == version)
}

/// The prepared one active, the active one retired.
fn activated(rows: &[KeyRow], kind: KeyKind, version: u32, now: UnixMillis) -> Vec<KeyRow> {
    let Some(next) = of(rows, kind, version).filter(|row| row.state == KeyState::Prepared) else {
        return Vec::new();
    };
    let before = rows
        .iter()
        .filter(|row| row.name == kind.as_str() && row.state == KeyState::Active);
    let retired = before.map(|row| moved(row, kind, KeyState::Retired, now));
    let next = moved(next, kind, KeyState::Active, now);
    std::iter::once(next).chain(retired).collect()
}

/// Now, but later than any change before: the time of the last change is the bundle's sequence.
pub(super) fn after_all(rows: &[KeyRow], now: UnixMillis) -> UnixMillis {
    let last = rows.iter().map(|row| row.since).max();
    last.map_or(now, |last| now.max(last.saturating_add_millis(1)))
}

/// Follows the schedule for ever, and keeps the files of CAs what the keys say: those for workloads, and
/// those for databases.
pub async fn keep_rotated(
    broker: Arc<Broker>,
    [ca_file, databases]: [PathBuf; 2],
    stop: tokio_util::sync::CancellationToken,
) {
    let mut changed = broker.keys_changed.subscribe();
    changed.mark_changed();
    let file = |path, pem| CaFile {
        path,
        pem,
        state: Written::No,
    };
    let mut files = [
        file(ca_file, Keys::roots_pem),
        file(databases, Keys::database_roots_pem),
    ];
    let mut pause = limits::KEY_TICK;
    loop {
        let is_change = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => false,
            _ = changed.changed() => true,
        };
        for file in &mut files {
            file.keep(&broker, is_change);
        }
        // An old copy does not know which keys came after it.
        if !broker.may_sweep() {
            pause = limits::SWEEP_TICK;
            continue;
        }
        pause = match broker.sweep_keys().await {
            Ok(_) => limits::KEY_TICK,
            Err(refusal) => {
                tracing::warn!(detail = refusal.detail, "the rotation of keys waits");
                limits::KEY_RETRY
            }
        };
    }
}

/// The file of trusted CAs.
struct CaFile {
    path: PathBuf,
    pem: fn(&Keys) -> String,
    state: Written,
}

/// Whether it is what the keys say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    No,
    Failed,
    Yes,
}

impl CaFile {
    /// Writes it after a change, and again until that succeeds; never on an old copy, which may
    /// trust what was distrusted since.
    fn keep(&mut self, broker: &Broker, is_change: bool) {
        if is_change {
            self.state = Written::No;
        }
        if self.state == Written::Yes || broker.vouch().is_err() {
            return;
        }
        let pem = (self.pem)(&broker.keys.load());
        match write_if_other(&self.path, &pem) {
            Ok(()) => self.state = Written::Yes,
            Err(error) => {
                if self.state == Written::No {
                    tracing::error!(%error, file = %self.path.display(), "the file of trusted CAs could not be written; \
                        those who read it will not know the next CA. It is tried again");
                }
                self.state = Written::Failed;
            }
        }
    }
}

/// Replaces a file that others read, whole or not at all, when its content is another.
fn write_if_other(path: &Path, content: &str) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|present| present == content.as_bytes()) {
        return Ok(());
    }
    files::replace(path, content.as_bytes(), files::PUBLIC)
}

#[cfg(test)]
mod tests;
