//! The end of one credential while its task goes on: by a person, by its holder, or because its
//! record was in doubt.

use ephor_proto::grpc::v1;
use ephor_proto::id::CredentialId;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::EndCause;

use super::{NotEnded, Work, written};
use crate::app::Broker;
use crate::complete::revoke_row;
use crate::issue::store_unavailable;
use crate::ledger::{Batch, CredentialRow, Lane, Ticket};
use crate::limits;
use crate::request::Refusal;

/// A credential that is refused and listed, or dead.
#[derive(Debug, Clone)]
pub struct RevokedCredential {
    /// Its row as it is now.
    pub row: CredentialRow,
}

impl Broker {
    /// Revokes one credential; one that has ended already stays as it is.
    ///
    /// # Errors
    /// `not_found`, or that its end is not proven yet; it is driven on all the same.
    pub async fn revoke(
        &self,
        id: CredentialId,
        reason: &str,
    ) -> Result<RevokedCredential, Refusal> {
        if self
            .ledger
            .reader()
            .credential(id)
            .map_err(store_unavailable)?
            .is_none()
        {
            return Err(Refusal::new(
                Code::NotFound,
                format!("there is no credential {id}"),
            ));
        }
        let work = Work::Credential(id);
        self.pending
            .add_after(work.clone(), self.clock.boottime(), limits::SWEEP_GRACE);
        let outcome = match self.drive_credential(id, reason).await {
            Ok(row) => self.ended_at_target(row).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(row) => {
                self.pending.done(&work);
                Ok(RevokedCredential { row })
            }
            Err(error) => {
                tracing::warn!(credential = %id, %error, "a revocation is not proven yet");
                self.pending.failed(&work, self.clock.boottime());
                let detail = format!(
                    "credential {} is not proven to be refused and listed yet ({error}); it is tried until it is",
                    id.short()
                );
                Err(Refusal::new(Code::Overdue, detail))
            }
        }
    }

    /// Waits a while for what is being ended at its target.
    async fn ended_at_target(&self, row: CredentialRow) -> Result<CredentialRow, NotEnded> {
        if row.state != CredentialState::Revoking {
            return Ok(row);
        }
        self.queues.wait(&[row.id], limits::TARGET_ANSWER).await;
        let row = self.ledger.reader().credential(row.id)?;
        row.filter(|row| row.state != CredentialState::Revoking)
            .ok_or(NotEnded::AtTarget)
    }

    /// Steps until the credential is contained or dead, or waits at its target, which is driven on by
    /// itself.
    pub(crate) async fn drive_credential(
        &self,
        id: CredentialId,
        reason: &str,
    ) -> Result<CredentialRow, NotEnded> {
        for _ in 0..limits::CONFLICT_TRIES {
            let row = self.ledger.reader().credential(id)?;
            let row =
                row.ok_or_else(|| NotEnded::Defect(format!("there is no credential {id}")))?;
            match row.state {
                CredentialState::Intended | CredentialState::Live | CredentialState::Replacing => {
                    self.begin_revoking(row, reason).await?;
                }
                CredentialState::Revoking if !row.kind.is_signed() => {
                    self.end_at_target(&row, false);
                    return Ok(row);
                }
                CredentialState::Revoking => self.settle_revoking(row).await?,
                CredentialState::Contained | CredentialState::Dead => return Ok(row),
            }
        }
        Err(NotEnded::Contended)
    }

    async fn begin_revoking(&self, row: CredentialRow, reason: &str) -> Result<(), NotEnded> {
        let row = revoke_row(row, EndCause::Revoked, self.clock.wall())?;
        let mut event = self.about(Stage::Revoke, "started", &row)?;
        event.cause = Some(EndCause::Revoked.as_str().to_owned());
        let event = self.with_reason(event, reason)?;
        let batch = Batch {
            name: "revoke.begin",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![row.clone().into()],
            events: vec![event],
        };
        crate::crash_point!("revoke.before_commit");
        if written(self.ledger.submit(batch)?.await)?.is_some() {
            crate::crash_point!("revoke.after_commit");
            self.announce(&row);
        }
        Ok(())
    }

    /// After the first commit: listed at once, wiped at the host.
    pub(crate) fn announce(&self, row: &CredentialRow) {
        self.list(row);
        self.fleet.push(&row.host, told(row));
    }

    /// What an agent must hear that did not listen for a while: the revoked credentials of its open
    /// tasks that have not expired. An ended task it learns from its heartbeat.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn revoked_at(&self, host: &str) -> Result<Vec<v1::Push>, Refusal> {
        let now = self.clock.wall();
        let reader = self.ledger.reader();
        let mut missed = Vec::new();
        for task in reader.open_tasks_of(host).map_err(store_unavailable)? {
            let rows = reader.credentials_of(task.id).map_err(store_unavailable)?;
            let is_missed = |row: &&CredentialRow| match row.state {
                CredentialState::Revoking | CredentialState::Contained => now < row.expires_at,
                CredentialState::Intended
                | CredentialState::Live
                | CredentialState::Replacing
                | CredentialState::Dead => false,
            };
            missed.extend(rows.iter().filter(is_missed).map(told));
        }
        Ok(missed)
    }

    /// Checks that it is refused and listed, then submits the second commit.
    pub(crate) async fn submit_listed(&self, mut row: CredentialRow) -> Result<Ticket, NotEnded> {
        let checked = self.contain(&mut row, self.clock.wall()).await?;
        let event = self.listed_event(&row, &checked)?;
        let batch = Batch {
            name: "revoke.listed",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: vec![row.into()],
            events: vec![event],
        };
        Ok(self.ledger.submit(batch)?)
    }

    /// After the second commit.
    pub(crate) async fn finish_listed(
        &self,
        id: CredentialId,
        ticket: Ticket,
    ) -> Result<(), NotEnded> {
        if written(ticket.await)?.is_some() {
            crate::crash_point!("revoke.settled");
            self.uses.forget(id);
        }
        Ok(())
    }

    async fn settle_revoking(&self, row: CredentialRow) -> Result<(), NotEnded> {
        let id = row.id;
        let ticket = self.submit_listed(row).await?;
        self.finish_listed(id, ticket).await
    }
}

/// `CredentialRevoked`, as its agent hears it.
fn told(row: &CredentialRow) -> v1::Push {
    let revoked = v1::CredentialRevoked {
        task_id: row.task.to_bytes().to_vec(),
        credential_id: row.id.to_bytes().to_vec(),
    };
    v1::Push {
        what: Some(v1::push::What::CredentialRevoked(revoked)),
    }
}
