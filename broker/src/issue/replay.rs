//! The same request id again: a retry whose first answer was lost gets the same credential,
//! signed again from the stored content; never a second one.

use ephor_crypto::p256::P256Public;
use ephor_proto::event::AuditEvent;
use ephor_proto::kind::Kind;
use ephor_proto::problem::Code;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::EndCause;
use ephor_proto::time::UnixMillis;

use super::{Intent, Plan, Tried, defect, store_unavailable};
use crate::app::Broker;
use crate::attest::Attested;
use crate::clock::Stopwatch;
use crate::complete::revoke_row;
use crate::decide::{Fallen, Held, stands};
use crate::deliver::{self, Delivery, Timings};
use crate::kind::effect::Content;
use crate::kind::effect::certificate::ClientCertificate;
use crate::ledger::{Batch, CredentialRow, Lane, Reader, RequestRow, Require, Row};
use crate::policy::Snapshot;
use crate::request::Refusal;
use crate::revoke::Work;
use crate::{crash_point, limits};
use ephor_proto::grpc::v1;

impl Broker {
    /// The stored answer of this request, if it was recorded before.
    ///
    /// # Errors
    /// `conflict` when the id was used for something else or is older than what is kept, `credential_ended` when what it
    /// was given has ended since.
    pub(super) fn replay(
        &self,
        reader: &Reader,
        attested: &Attested,
        now: UnixMillis,
        attest_micros: u64,
    ) -> Result<Option<Before>, Refusal> {
        let issuing = Stopwatch::start();
        let requested = attested.requested();
        let Some(stored) = reader.request(requested.id()).map_err(store_unavailable)? else {
            if reader
                .may_be_pruned(requested.id())
                .map_err(store_unavailable)?
            {
                let detail = "this request id is older than what retention keeps, so whether it was answered \
                              before is not known; make a new id, and set the host's clock if it is behind";
                return Err(Refusal::new(Code::Conflict, detail));
            }
            return Ok(None);
        };
        // The digest covers the host, so nobody learns of another host's request this way.
        if stored.digest != requested.digest() {
            let detail = "this request id was used for another request; make a new id";
            return Err(Refusal::new(Code::Conflict, detail));
        }
        let mut rows = Vec::with_capacity(stored.credentials.len());
        for id in &stored.credentials {
            rows.extend(reader.credential(*id).map_err(store_unavailable)?);
        }
        if rows.iter().any(|row| !row.kind.is_signed()) {
            let request = stored;
            let before = Box::new(Recorded { request, rows });
            return Ok(Some(Before::AtTarget(before)));
        }
        let permit =
            Intent::recorded_before(reader, &stored.credentials, now).map_err(store_unavailable)?;
        let Some(permit) = permit else {
            return Err(ended_since());
        };
        let holds =
            |row: &crate::ledger::CredentialRow| attested.candidates().contains(&row.subject);
        if !permit.credentials().iter().all(holds) {
            return Err(another_subject());
        }
        let sealed = self.sign(permit.intent()).map_err(defect)?;
        let Some(delivery) = Delivery::stored(&stored, permit.credentials()) else {
            return Err(defect("a consumed request without a decision"));
        };
        let timings = Timings {
            attest: attest_micros,
            decide: 0,
            issue: issuing.micros(),
        };
        let answer = deliver::deliver(&permit, sealed, &delivery, timings)?;
        Ok(Some(Before::Answer(Box::new(answer))))
    }

    /// Answers a request again of which something has an effect outside. Its secret is nowhere any
    /// more, so the one that was made is revoked and a successor made under the same grant; of a
    /// renewal, the target is told again.
    ///
    /// # Errors
    /// As a first answer, and `credential_ended` when it has ended since.
    pub(super) async fn answer_again(
        &self,
        policy: &Snapshot,
        attested: &Attested,
        before: Recorded,
        now: UnixMillis,
        attest_micros: u64,
    ) -> Result<Tried, Refusal> {
        let issuing = Stopwatch::start();
        let candidates = attested.candidates();
        if !before
            .rows
            .iter()
            .all(|row| candidates.contains(&row.subject))
        {
            return Err(another_subject());
        }
        let timings = |issue| Timings {
            attest: attest_micros,
            decide: 0,
            issue,
        };
        if attested.requested().renews().is_some() {
            let permit = {
                let reader = self.ledger.reader();
                Intent::recorded_before(&reader, &before.request.credentials, now)
                    .map_err(store_unavailable)?
            };
            let permit = permit.ok_or_else(ended_since)?;
            self.extend(&permit).await?;
            let made = self.sign(permit.intent()).map_err(defect)?;
            let delivery = delivery(&before)?;
            let answer = deliver::deliver(&permit, made, &delivery, timings(issuing.micros()))?;
            return Ok(Tried::Done(answer));
        }
        let key = attested.requested().public_key();
        let (plan, replaced) = self.plan_successor(policy, before, key, now)?;
        self.watch_over_replaced(&replaced);
        let recorded = self.record(plan).await;
        let is_doubtful = self
            .pending
            .holds(&Work::Doubtful(attested.requested().id()));
        if let Ok(Some(_)) = &recorded {
            crash_point!("mint.successor");
            replaced.iter().for_each(|row| self.announce(row));
        }
        if !is_doubtful {
            for row in &replaced {
                self.pending.done(&Work::Credential(row.id));
            }
        }
        let Some((permit, made, delivery)) = recorded? else {
            return Ok(Tried::Again);
        };
        self.wait_for_lent(&replaced).await;
        let (permit, made) = self.mint(permit, made).await?;
        self.expect_confirmation(&permit);
        let answer = deliver::deliver(&permit, made, &delivery, timings(issuing.micros()))?;
        Ok(Tried::Done(answer))
    }

    /// Whoever goes away while this is stored, or never learns whether it was, leaves its end to the sweep.
    fn watch_over_replaced(&self, replaced: &[CredentialRow]) {
        let now = self.clock.boottime();
        for row in replaced {
            let work = Work::Credential(row.id);
            self.pending.add_after(work, now, limits::SWEEP_GRACE);
        }
    }

    /// The batch that revokes what was made for a request and records what follows it.
    fn plan_successor(
        &self,
        policy: &Snapshot,
        before: Recorded,
        key: Option<&P256Public>,
        now: UnixMillis,
    ) -> Result<(Plan, Vec<CredentialRow>), Refusal> {
        let delivery = delivery(&before)?;
        let Recorded { mut request, rows } = before;
        let first = rows.first().ok_or_else(ended_since)?;
        let require = vec![
            Require::HostAdmitted(first.host.clone()),
            Require::TaskOpen(first.task),
            Require::GrantOpen(first.grant),
            Require::PolicyInForce(policy.version().to_owned()),
        ];
        let (mut intended, mut replaced, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let is_ended = row.kind.is_signed() && !row.state.is_usable();
            if is_ended || !may_follow(&row) || now >= row.expires_at {
                return Err(ended_since());
            }
            let held = Held {
                row: &row,
                task_opened_at: None,
            };
            let fallen = |fallen: Fallen| Refusal::new(Code::Denied, fallen.to_string());
            stands(policy, &held).map_err(fallen)?;
            if row.kind.is_signed() {
                intended.push(row);
                continue;
            }
            let next = self.successor(&row, key)?;
            events.push(self.recorded_after(&next, &row)?.into());
            intended.push(next);
            if row.state == CredentialState::Intended || row.state.is_usable() {
                let ended = revoke_row(row, EndCause::Revoked, now).map_err(defect)?;
                let mut event = self.about(Stage::Revoke, "started", &ended)?;
                event.cause = Some("replaced".to_owned());
                events.push(event.into());
                replaced.push(ended);
            }
        }
        request.version += 1;
        request.credentials = intended.iter().map(|row| row.id).collect();
        let new = intended.iter().filter(|row| !row.kind.is_signed());
        let mut rows: Vec<Row> = vec![Row::Request(request)];
        rows.extend(new.chain(&replaced).cloned().map(Row::from));
        let batch = Batch {
            name: "issue.successor",
            lane: Lane::Normal,
            require,
            rows,
            events,
        };
        let plan = Plan {
            intent: Intent::new(intended),
            batch,
            places: Vec::new(),
            opens: None,
            delivery,
        };
        Ok((plan, replaced))
    }

    /// What is lent to one at a time must be back before it is lent again; where that takes too long the
    /// target refuses, and who asked asks again.
    async fn wait_for_lent(&self, replaced: &[CredentialRow]) {
        let lent = replaced.iter().filter(|row| row.kind == Kind::Secret);
        let lent: Vec<_> = lent.map(|row| row.id).collect();
        if !lent.is_empty() {
            self.queues.wait(&lent, limits::LENT_WAIT).await;
        }
    }

    /// The same once more, under another name where it has one of its own, and for the key of the
    /// request: a renewal since may have been for another.
    fn successor(
        &self,
        row: &CredentialRow,
        key: Option<&P256Public>,
    ) -> Result<CredentialRow, Refusal> {
        let content = Content::of(row).ok_or_else(ended_since)?;
        let now = self.clock.wall();
        let id = self.new_id()?;
        let certificate = match (&content.certificate, key) {
            (Some(_), Some(key)) => {
                let life = (row.issued_at, row.expires_at);
                Some(ClientCertificate::new(key, life))
            }
            (Some(_), None) => return Err(ended_since()),
            (None, _) => None,
        };
        let content = Content {
            certificate,
            deadline: now.saturating_add_millis(limits::MINT_WITHIN_MILLIS),
            minted: None,
            confirmed: false,
            gone: None,
            accepted: None,
            name: match content.is_static {
                true => content.name.clone(),
                false => self.name_at_target(&row.entitlement)?,
            },
            ..content
        };
        Ok(CredentialRow {
            id,
            version: 1,
            state: CredentialState::Intended,
            // It is not at its target from when the first was.
            issued_at: now,
            item: content.name.clone(),
            content: content.to_json().map_err(defect)?,
            cause: None,
            revoked_at: None,
            evidence: None,
            overdue: None,
            narrowed_by: None,
            ..row.clone()
        })
    }

    /// `issue.recorded` of a successor.
    fn recorded_after(
        &self,
        row: &CredentialRow,
        before: &CredentialRow,
    ) -> Result<AuditEvent, Refusal> {
        let mut event = self.about(Stage::Issue, "recorded", row)?;
        event.facts.extend(self.where_found(row));
        let fact = ("successor_of".to_owned(), before.id.to_string());
        event.facts.extend([fact]);
        Ok(event)
    }
}

/// What a request was given before.
pub(super) enum Before {
    /// The same answer once more.
    Answer(Box<v1::IssueResponse>),
    /// Something with an effect outside.
    AtTarget(Box<Recorded>),
}

/// The record of an earlier answer.
pub(super) struct Recorded {
    request: RequestRow,
    rows: Vec<CredentialRow>,
}

/// Whether one may follow it: it is usable, or it was never made.
fn may_follow(row: &CredentialRow) -> bool {
    let was_made = || Content::of(row).is_none_or(|content| content.minted.is_some());
    row.state.is_usable() || !was_made()
}

fn delivery(before: &Recorded) -> Result<Delivery, Refusal> {
    Delivery::stored(&before.request, &before.rows)
        .ok_or_else(|| defect("a consumed request without a decision"))
}

fn ended_since() -> Refusal {
    let detail = "what this request was given has ended since; ask again with a new request id";
    Refusal::new(Code::CredentialEnded, detail)
}

fn another_subject() -> Refusal {
    let detail = "the caller is no longer the subject that this request was answered for";
    Refusal::new(Code::AttestationFailed, detail)
}
