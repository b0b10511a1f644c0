//! What has an effect outside: made at its target only after its intent is durable, and let out only
//! after its outcome is, too.
//!
//! Whatever goes wrong in between, the secret is dropped and the credential revoked by id: an effect
//! that nobody can tell of counts as one that happened.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_crypto::Secret;
use ephor_crypto::random;
use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::CredentialId;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::{self, CredentialEvent, CredentialState};
use std::sync::Arc;
use std::time::Duration;

use super::{Made, Permit, Planned, Sealed, Unsigned, defect, refused_by_store};
use crate::app::Broker;
use crate::kind::effect::{Content, Failed, Minted, Verifier};
use crate::kind::targets::Known;
use crate::ledger::{Batch, CommitError, CredentialRow, Lane};
use crate::request::Refusal;
use crate::revoke::{Work, machine};
use crate::{crash_point, limits};

/// Bytes of a password.
const PASSWORD_BYTES: usize = 32;

/// How to use what is made at a target; sealed until its record is durable.
pub struct Access {
    /// What lets it in.
    pub by: By,
    /// Where.
    pub target: Arc<Known>,
}

/// What lets a login in.
pub enum By {
    /// A password.
    Password {
        /// It is nowhere else, and never stored.
        password: Secret,
        /// What the target is given instead.
        verifier: Verifier,
    },
    /// A certificate in DER, for a key of the agent's.
    Certificate(Vec<u8>),
}

impl By {
    fn verifier(&self) -> Option<&Verifier> {
        match self {
            Self::Password { verifier, .. } => Some(verifier),
            Self::Certificate(_) => None,
        }
    }
}

impl Broker {
    /// What will be handed out, if all goes well. Nothing is made at the target yet.
    pub(super) fn access(
        &self,
        planned: &Planned<'_>,
        content: &Content,
    ) -> Result<Made, Unsigned> {
        let target = self.target(&content.target)?;
        let by = match &content.certificate {
            Some(certificate) => {
                let keys = self.keys.load();
                let signed = certificate.signed(keys.database_ca(), planned.id(), &content.name);
                By::Certificate(signed?)
            }
            None => {
                let bytes: [u8; PASSWORD_BYTES] =
                    random::bytes().map_err(|error| Unsigned::Random(error.to_string()))?;
                let password = Secret::from_string(URL_SAFE_NO_PAD.encode(bytes));
                let verifier = target.at.verifier(&password)?;
                By::Password { password, verifier }
            }
        };
        let access = Access { by, target };
        Ok(Made::Access(Sealed::new(planned.id(), Box::new(access))))
    }

    /// Before the intent is submitted: who goes away between intent and outcome leaves it to the sweep.
    pub(super) fn watch_over(&self, rows: &[CredentialRow]) {
        let wait = Duration::from_millis(limits::MINT_WITHIN_MILLIS + limits::OVERDUE_AHEAD_MILLIS);
        for row in intended(rows) {
            self.pending
                .add_after(Work::Credential(row.id), self.clock.boottime(), wait);
        }
    }

    /// Makes at their targets what a permit allows, and stores the outcome.
    ///
    /// # Errors
    /// When one of it was not made, or nobody can tell: then all that the request was to get is
    /// revoked, and the secrets are dropped.
    pub(super) async fn mint(
        &self,
        permit: Permit,
        made: Vec<Made>,
    ) -> Result<(Permit, Vec<Made>), Refusal> {
        if intended(permit.credentials()).next().is_none() {
            return Ok((permit, made));
        }
        let outcome = match self.mint_all(&permit, &made).await {
            Ok(rows) => self.store_outcome(rows).await,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(rows) => {
                for row in &rows {
                    self.pending.done(&Work::Credential(row.id));
                }
                Ok((permit.minted(rows), made))
            }
            Err(refusal) => {
                drop(made);
                self.undo(permit.credentials(), &refusal.detail).await;
                Err(refusal)
            }
        }
    }

    /// The rows with their outcomes.
    async fn mint_all(
        &self,
        permit: &Permit,
        made: &[Made],
    ) -> Result<Vec<CredentialRow>, Refusal> {
        let all = intended(permit.credentials()).map(|row| self.mint_row(permit, made, row));
        // One that failed must not leave another half made.
        let rows = futures_util::future::join_all(all).await;
        rows.into_iter().collect()
    }

    async fn mint_row(
        &self,
        permit: &Permit,
        made: &[Made],
        row: &CredentialRow,
    ) -> Result<CredentialRow, Refusal> {
        let content = Content::of(row).ok_or_else(|| defect("an intent without content"))?;
        let access = made.iter().find_map(|made| made.access_of(row.id));
        let access = access.ok_or_else(|| defect("an intent without access"))?;
        let access = access.peek(permit).map_err(defect)?;
        crash_point!("mint.before_call");
        let begun = self.clock.boottime();
        let minted = self.mint_one(row, &content, access).await;
        crash_point!("mint.after_call");
        let minted = minted.map_err(|failed| not_made(&failed))?;
        self.heard_of(&content.target, &minted.seen, begun);
        live(row, content, minted)
    }

    async fn mint_one(
        &self,
        row: &CredentialRow,
        content: &Content,
        access: &Access,
    ) -> Result<Minted, Failed> {
        let intent = (row.id, content, row.expires_at);
        let call = access
            .target
            .at
            .mint(self.installation.epoch, intent, access.by.verifier());
        tokio::time::timeout(limits::MINT_CALL, call)
            .await
            .unwrap_or(Err(Failed::NoAnswer(limits::MINT_CALL)))
    }

    /// One commit: the rows are live. A row that ended meanwhile has another version.
    async fn store_outcome(&self, rows: Vec<CredentialRow>) -> Result<Vec<CredentialRow>, Refusal> {
        let events = rows.iter().map(|row| Ok(self.minted(row)?.into()));
        let batch = Batch {
            name: "issue.minted",
            lane: Lane::Normal,
            require: Vec::new(),
            events: events.collect::<Result<_, Refusal>>()?,
            rows: rows.iter().cloned().map(Into::into).collect(),
        };
        let ticket = self.ledger.submit(batch);
        let ticket = ticket.map_err(|full| Refusal::new(Code::Busy, full.to_string()))?;
        match ticket.await {
            Ok(_) => {
                crash_point!("mint.after_commit");
                Ok(rows)
            }
            Err(CommitError::Conflict(_)) => {
                let detail = "it was revoked while it was being made; nothing was handed out";
                Err(Refusal::new(Code::CredentialEnded, detail))
            }
            Err(CommitError::Refused(reason)) => Err(refused_by_store(&reason)),
            Err(CommitError::Unknown) => Err(super::unknown_fate()),
        }
    }

    /// `issue.minted`: it exists at its target from here on.
    fn minted(&self, row: &CredentialRow) -> Result<AuditEvent, Refusal> {
        let mut event = self.about(Stage::Issue, "minted", row)?;
        event.outcome = Outcome::Ok;
        if let Some(content) = Content::of(row) {
            let minted = content.minted.map(|minted| minted.seen.to_string());
            let seen = minted.unwrap_or_default();
            let facts = [
                ("target", content.target),
                ("name", content.name),
                ("seen", seen),
            ];
            event
                .facts
                .extend(facts.map(|(name, value)| (name.to_owned(), value)));
        }
        Ok(event)
    }

    /// Revokes all that a request was to get, of which nothing left.
    async fn undo(&self, rows: &[CredentialRow], why: &str) {
        for row in rows {
            let work = Work::Credential(row.id);
            self.pending.add(work.clone(), self.clock.boottime());
            match self.drive_credential(row.id, why).await {
                Ok(_) => self.pending.done(&work),
                Err(error) => {
                    tracing::warn!(credential = %row.id, %error, "what was not handed out is not revoked yet");
                    self.pending.failed(&work, self.clock.boottime());
                }
            }
        }
    }

    /// Lets what was renewed live longer at its target, too. Its later end is stored before.
    ///
    /// # Errors
    /// When the target did not say yes: then it ends there when it would have.
    pub(super) async fn extend(&self, permit: &Permit) -> Result<(), Refusal> {
        for row in permit.credentials() {
            let Some(content) = Content::of(row) else {
                continue;
            };
            crash_point!("renew.before_extend");
            let failed = |failed: Failed| not_extended(&failed);
            let known = self.target(&content.target).map_err(failed)?;
            let named = (row.id, &content);
            let call = known
                .at
                .extend(self.installation.epoch, named, row.expires_at);
            let outcome = tokio::time::timeout(limits::MINT_CALL, call).await;
            outcome
                .unwrap_or(Err(Failed::NoAnswer(limits::MINT_CALL)))
                .map_err(failed)?;
            crash_point!("renew.after_extend");
        }
        Ok(())
    }

    /// From the answer on, its agent has a while to say that it was handed over.
    pub(super) fn expect_confirmation(&self, permit: &Permit) {
        for row in permit.credentials() {
            if Content::of(row).is_some_and(|content| !content.confirmed) {
                self.handovers.expect(row.id, self.clock.boottime());
            }
        }
    }
}

/// Those whose effect is still to come.
fn intended(rows: &[CredentialRow]) -> impl Iterator<Item = &CredentialRow> {
    rows.iter()
        .filter(|row| row.state == CredentialState::Intended)
}

/// The row once it exists at its target.
fn live(
    row: &CredentialRow,
    mut content: Content,
    minted: Minted,
) -> Result<CredentialRow, Refusal> {
    let mut row = row.clone();
    let event = CredentialEvent::Minted;
    let (next, _) = credential::step(machine(&row), event, minted.at).map_err(defect)?;
    row.state = next.state;
    row.version += 1;
    content.minted = Some(minted);
    row.content = content.to_json().map_err(defect)?;
    Ok(row)
}

fn not_extended(failed: &Failed) -> Refusal {
    let detail = format!(
        "{failed}. It lives at least until it did before, and stays as it was handed out; ask again"
    );
    Refusal::new(Code::TargetFailed, detail)
}

fn not_made(failed: &Failed) -> Refusal {
    let (code, rest) = match failed {
        Failed::UntilMended(_) => (Code::TargetRefused, "Nothing was issued"),
        Failed::Taken(_) => (Code::InUse, "Nothing was issued"),
        Failed::Refused(_) | Failed::Away(_) | Failed::TooLate => {
            (Code::TargetFailed, "Nothing was issued; ask again")
        }
        Failed::Fenced | Failed::Unknown(_) | Failed::NoAnswer(_) => (
            Code::TargetFailed,
            "Nothing was handed out, and what may be left there is being ended; ask again",
        ),
    };
    Refusal::new(code, format!("{failed}. {rest}"))
}

impl Made {
    fn access_of(&self, id: CredentialId) -> Option<&Sealed<Box<Access>>> {
        match self {
            Self::Access(sealed) => Some(sealed).filter(|sealed| sealed.id() == id),
            Self::Token(_) | Self::Certificate(_) => None,
        }
    }
}
