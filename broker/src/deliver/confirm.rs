//! Hand-overs that are not confirmed yet. What has an effect outside must not live without anyone who
//! has it: whatever its agent did not confirm in time is revoked.
//!
//! That it was confirmed is in its row, so that a restart asks for it once more and forgets nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ephor_proto::grpc::v1;
use ephor_proto::id::CredentialId;
use ephor_proto::limits::{CONFIRM_WITHIN_MILLIS, MAX_CONFIRM_BATCH};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::time::Boottime;
use std::time::Duration;

use crate::app::Broker;
use crate::fleet::Peer;
use crate::issue::{defect, refused_by_store, store_unavailable};
use crate::kind::effect::Content;
use crate::ledger::{Batch, CommitError, CredentialRow, Lane, ReadError, Ticket};
use crate::limits;
use crate::request::Refusal;

/// See the module.
#[derive(Default)]
pub struct Handovers {
    /// Guards the times; held for one look-up or one scan.
    awaited: Mutex<HashMap<CredentialId, Boottime>>,
}

impl Handovers {
    /// Whether more can be awaited.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.with(|awaited| awaited.len() >= limits::HANDOVERS)
    }

    /// Its answer leaves now.
    pub fn expect(&self, id: CredentialId, now: Boottime) {
        let due = now.saturating_add(Duration::from_millis(CONFIRM_WITHIN_MILLIS));
        self.with(|awaited| awaited.insert(id, due));
    }

    /// It was handed over, or it has ended.
    fn done(&self, id: CredentialId) {
        self.with(|awaited| awaited.remove(&id));
    }

    /// Takes what was not confirmed in time.
    pub(crate) fn overdue(&self, now: Boottime) -> Vec<CredentialId> {
        self.with(|awaited| {
            awaited
                .extract_if(|_, due| *due <= now)
                .map(|(id, _)| id)
                .collect()
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<CredentialId, Boottime>) -> T) -> T {
        act(&mut self.awaited.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Broker {
    /// An agent's word that it handed these over. What has ended, and what never was, is passed over:
    /// the agent hears of it elsewhere.
    ///
    /// # Errors
    /// When the request is malformed or the store fails; the agent then says it again.
    pub async fn confirm(
        &self,
        peer: &Peer,
        r: v1::ConfirmRequest,
    ) -> Result<v1::ConfirmResponse, Problem> {
        let correlation = self.correlation();
        let outcome = self.confirm_within(peer, &r).await;
        outcome.map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn confirm_within(
        &self,
        peer: &Peer,
        r: &v1::ConfirmRequest,
    ) -> Result<v1::ConfirmResponse, Refusal> {
        if r.credential_ids.len() > MAX_CONFIRM_BATCH {
            let detail = format!("more than {MAX_CONFIRM_BATCH} credentials in one message");
            return Err(Refusal::new(Code::InvalidRequest, detail));
        }
        let mut ids = Vec::with_capacity(r.credential_ids.len());
        for id in &r.credential_ids {
            let malformed = |e| {
                Refusal::new(
                    Code::InvalidRequest,
                    format!("a credential id is malformed: {e}"),
                )
            };
            ids.push(CredentialId::from_slice(id).map_err(malformed)?);
        }
        ids.sort_unstable();
        ids.dedup();
        for _ in 0..limits::CONFLICT_TRIES {
            let mut submitted = Vec::new();
            for id in ids {
                match self
                    .unconfirmed(id, peer.host())
                    .map_err(store_unavailable)?
                {
                    Some(row) => submitted.push((id, self.submit_confirmed(row)?)),
                    None => self.handovers.done(id),
                }
            }
            ids = Vec::new();
            for (id, ticket) in submitted {
                match ticket.await {
                    Ok(_) => {
                        crate::crash_point!("deliver.confirmed");
                        self.handovers.done(id);
                    }
                    Err(CommitError::Conflict(_)) => ids.push(id),
                    Err(CommitError::Refused(reason)) => return Err(refused_by_store(&reason)),
                    Err(CommitError::Unknown) => {
                        return Err(store_unavailable("its fate is unknown"));
                    }
                }
            }
            if ids.is_empty() {
                return Ok(v1::ConfirmResponse {});
            }
        }
        Err(Refusal::new(
            Code::Busy,
            "the credentials kept changing; say it again",
        ))
    }

    /// The row, if it is of this host, can be used, and was not confirmed.
    fn unconfirmed(
        &self,
        id: CredentialId,
        host: &str,
    ) -> Result<Option<CredentialRow>, ReadError> {
        let row = self.ledger.reader().credential(id)?;
        Ok(row.filter(|row| {
            let is_unconfirmed = Content::of(row).is_some_and(|content| !content.confirmed);
            row.host == host && row.state.is_usable() && is_unconfirmed
        }))
    }

    /// No event: it says nothing that an auditor would ask for. What is not confirmed is revoked, and
    /// that is in the log.
    fn submit_confirmed(&self, mut row: CredentialRow) -> Result<Ticket, Refusal> {
        let mut content = Content::of(&row).ok_or_else(|| defect("content that cannot be read"))?;
        content.confirmed = true;
        row.version += 1;
        row.content = content.to_json().map_err(defect)?;
        let batch = Batch {
            name: "deliver.confirmed",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: vec![row.into()],
            events: Vec::new(),
        };
        self.ledger
            .submit(batch)
            .map_err(|full| Refusal::new(Code::Busy, full.to_string()))
    }
}
