//! Renewal: the same credential, the same place in the lists, a later expiry.
//!
//! Decided anew under the policy in force and never beyond the grant; the new expiry is committed
//! before the new token is opened. What has ended is never made live again: the row's version is a
//! precondition, and every end changes it.

use std::time::Duration;

use ephor_proto::id::{CorrelationId, CredentialId};
use ephor_proto::kind::Kind;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::state::Effect;
use ephor_proto::state::credential::{self, CredentialEvent};
use ephor_proto::state::grant::{self, GrantEvent};
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Granted;
use serde_json::{Map, Value};

use super::{Intent, Plan, Tried, defect, plan, store_unavailable, task_of};
use crate::app::Broker;
use crate::approve::Approved;
use crate::attest::Attested;
use crate::clock::Stopwatch;
use crate::crash_point;
use crate::decide::{Circumstances, Decided, Given, Renewing, Window};
use crate::deliver::{self, Delivery, Timings};
use crate::kind::effect::Content;
use crate::kind::{is_given, jwt, x509};
use crate::ledger::{Batch, CredentialRow, GrantRow, Lane, Require, Row, TaskRow};
use crate::policy::Snapshot;
use crate::request::Refusal;
use crate::revoke::{Crls, machine};

/// The CA that `init` makes: nothing was ever issued by one before it.
const FIRST_CA: u32 = 1;

impl Broker {
    pub(super) async fn renew(
        &self,
        policy: &Snapshot,
        attested: Attested,
        id: CredentialId,
        now: UnixMillis,
        attest_micros: u64,
        correlation: CorrelationId,
    ) -> Result<Tried, Refusal> {
        let (row, grant, task) = self.renewable(&attested, id, now)?;
        self.admit_renewal(&row, attested.requested().left(), now)?;
        let deciding = Stopwatch::start();
        let given = Circumstances {
            now,
            task_opened_at: task.opened_at,
            task_deadline: task.deadline,
            ca_end: self.keys.load().ca_end(),
            renewing: Some(Renewing {
                subject: &row.subject,
                window: window(&grant),
            }),
        };
        let decided = self.decide(policy, attested, given, correlation).await?;
        let mut timings = Timings {
            attest: attest_micros,
            decide: deciding.micros(),
            issue: 0,
        };
        let issuing = Stopwatch::start();
        let plan = self.plan_renewal(Approved::by_rule(decided), row, &grant, now, correlation)?;
        crash_point!("renew.before_commit");
        let Some((permit, sealed, delivery)) = self.record(plan).await? else {
            return Ok(Tried::Again);
        };
        crash_point!("renew.after_commit");
        self.extend(&permit).await?;
        timings.issue = issuing.micros();
        let response = deliver::deliver(&permit, sealed, &delivery, timings)?;
        crash_point!("renew.before_answer");
        Ok(Tried::Done(response))
    }

    /// What is renewed at a target comes there at a bearable pace; see [`Pace`](crate::kind::pace::Pace).
    ///
    /// # Errors
    /// `busy`, with when to come again.
    fn admit_renewal(
        &self,
        row: &CredentialRow,
        held: Option<Duration>,
        now: UnixMillis,
    ) -> Result<(), Refusal> {
        let Some(content) = Content::of(row) else {
            return Ok(());
        };
        let stored = Duration::from_millis(row.expires_at.millis_since(now));
        // A later end is stored before target and agent have it, and may never have come there.
        let left = held.map_or(stored, |held| held.min(stored));
        let at = self.clock.boottime();
        self.pace.admit(&content.target, left, at).map_err(|seconds| {
            let detail = format!(
                "target {} has many to renew after an outage; this one asks again in {seconds} s, before it expires",
                content.target
            );
            Refusal::new(Code::Busy, detail).with_retry_after(seconds)
        })
    }

    /// The version of the row, if what the caller holds is a certificate of a CA that no longer issues.
    /// It is then not renewed but followed by a new one: its list is that CA's, which is trusted only
    /// until what it had issued at its retirement has expired. What cannot be renewed anyhow is not
    /// followed either, nor what ends before the new one is recorded: the version is a precondition.
    pub(super) fn of_a_retired_ca(
        &self,
        attested: &Attested,
        id: CredentialId,
        now: UnixMillis,
    ) -> Result<Option<u64>, Refusal> {
        let issuing = self.keys.load().issuing().version;
        if issuing == FIRST_CA {
            return Ok(None);
        }
        let reader = self.ledger.reader();
        let Some(row) = reader.credential(id).map_err(store_unavailable)? else {
            return Ok(None);
        };
        let requested = attested.requested();
        let is_theirs = row.host == attested.host()
            && row.task == requested.task().id
            && row.entitlement == requested.entitlement()
            && holder_matches(attested, &row.subject);
        let is_live = row.state.is_usable() && now < row.expires_at;
        let is_retired = row.kind == Kind::X509 && Crls::ca_of(row.status_list) != issuing;
        Ok((is_theirs && is_live && is_retired).then_some(row.version))
    }

    /// The credential, its grant and its task, if all of them still take a renewal.
    fn renewable(
        &self,
        attested: &Attested,
        id: CredentialId,
        now: UnixMillis,
    ) -> Result<(CredentialRow, GrantRow, TaskRow), Refusal> {
        let requested = attested.requested();
        let absent = || {
            Refusal::new(
                Code::NotFound,
                format!("there is no credential {id} in this task"),
            )
        };
        let reader = self.ledger.reader();
        let row = reader
            .credential(id)
            .map_err(store_unavailable)?
            .ok_or_else(absent)?;
        // Another tenant's credential and one that never was look the same from outside.
        if row.host != attested.host() || row.task != requested.task().id {
            return Err(absent());
        }
        let asked = (
            row.entitlement.as_str(),
            holder_matches(attested, &row.subject),
        );
        if asked != (requested.entitlement(), true) {
            return Err(absent());
        }
        if !row.state.is_usable() || now >= row.expires_at {
            let what = row.cause.map_or("expired", |cause| cause.as_str());
            let detail = format!(
                "credential {} is {} ({what}) and stays so; ask for a new one",
                id.short(),
                row.state.as_str()
            );
            return Err(Refusal::new(Code::CredentialEnded, detail));
        }
        let task = task_of(&reader, attested)?.ok_or_else(absent)?;
        let grant = reader
            .grant(row.grant)
            .map_err(store_unavailable)?
            .ok_or_else(absent)?;
        let (_, effects) = grant::step(grant.state, GrantEvent::Draw, now).map_err(defect)?;
        if !effects.contains(Effect::Admit) {
            let detail = format!(
                "the grant behind credential {} is over; ask for a new one",
                id.short()
            );
            return Err(Refusal::new(Code::CredentialEnded, detail));
        }
        Ok((row, grant, task))
    }

    fn plan_renewal(
        &self,
        approved: Approved,
        row: CredentialRow,
        grant: &GrantRow,
        now: UnixMillis,
        correlation: CorrelationId,
    ) -> Result<Plan, Refusal> {
        let decided = approved.decided();
        let renewed = self.renewed_row(decided, row, now)?;
        let require = vec![
            Require::HostAdmitted(renewed.host.clone()),
            Require::TaskOpen(renewed.task),
            Require::GrantOpen(grant.id),
            Require::PolicyInForce(decided.allowed().policy_version.to_string()),
        ];
        let events = vec![
            self.decision_event(decided, correlation)?.into(),
            self.issued("renewed", &renewed, decided, correlation)?
                .into(),
        ];
        let rows = vec![
            Row::Request(plan::request_row(
                decided,
                grant.id,
                std::slice::from_ref(&renewed),
            )),
            Row::Decision(plan::allowed_row(decided)),
            renewed.clone().into(),
        ];
        let delivery = Delivery::of(decided);
        let batch = Batch {
            name: "issue.renewal",
            lane: Lane::Normal,
            require,
            rows,
            events,
        };
        Ok(Plan {
            intent: Intent::new(vec![renewed]),
            batch,
            places: Vec::new(),
            opens: None,
            delivery,
        })
    }

    fn renewed_row(
        &self,
        decided: &Decided,
        mut row: CredentialRow,
        now: UnixMillis,
    ) -> Result<CredentialRow, Refusal> {
        let allowed = decided.allowed();
        let (life, said) = still_given(&allowed.gives, &row)?;
        let event = CredentialEvent::Renewed {
            expires_at: life.expires_at,
        };
        let (next, _) = credential::step(machine(&row), event, now).map_err(defect)?;
        row.version += 1;
        row.state = next.state;
        // Unchanged when the caps leave nothing to gain; the token is then signed anew as it was.
        row.expires_at = next.expires_at;
        row.issued_at = life.issued_at;
        row.capped_by = life.capped_by.to_string();
        row.decision = decided.id();
        row.rule = allowed.rule.clone();
        let said = match said {
            Said::Kept => return Ok(row),
            Said::Login(mut content) => {
                let life = (row.issued_at, row.expires_at);
                self.certificate_fits(life)?;
                let key = plan::key_for(decided)?;
                let certificate = content.certificate.map(|before| before.renewed(key, life));
                content.certificate = certificate;
                content.to_json().map_err(defect)?
            }
            Said::Token(claims) => self.jwt_content(&row, &claims),
            Said::Certificate(content) => {
                let life = (row.issued_at, row.expires_at);
                let busy = |e: x509::TooMany| Refusal::new(Code::Busy, e.to_string());
                let next = content
                    .renewed(plan::key_for(decided)?, life)
                    .map_err(busy)?;
                row.status_index = next.certificate.into();
                next.to_json().map_err(defect)?
            }
        };
        row.content = said;
        Ok(row)
    }
}

/// A grant without an end of its own is stored with the latest time there is.
fn window(grant: &GrantRow) -> Window {
    Window {
        until: (grant.until < UnixMillis::MAX).then_some(grant.until),
    }
}

fn holder_matches(attested: &Attested, subject: &SpiffeId) -> bool {
    attested.candidates().contains(subject)
}

/// What a renewed credential says beyond its times.
enum Said {
    Token(Map<String, Value>),
    Certificate(x509::Content),
    /// A login that a certificate lets in.
    Login(Box<Content>),
    /// At its target it is what it was.
    Kept,
}

/// What it was issued with, if policy still gives exactly that. A renewal neither adds nor swaps a
/// claim or a name; who wants what a newer policy gives asks anew.
fn still_given<'a>(
    gives: &'a [Given],
    row: &CredentialRow,
) -> Result<(&'a Granted, Said), Refusal> {
    if let Some(given) = gives.iter().find(|given| is_given(&given.give, row)) {
        let said = match x509::Content::of(row) {
            Some(content) => Said::Certificate(content),
            None if !row.kind.is_signed() => {
                let content = Content::of(row).filter(|content| content.certificate.is_some());
                content.map_or(Said::Kept, |content| Said::Login(Box::new(content)))
            }
            None => Said::Token(jwt::extra_claims(&row.content)),
        };
        return Ok((&given.life, said));
    }
    let detail = format!(
        "policy no longer gives what credential {} says; ask for a new one",
        row.id.short()
    );
    Err(Refusal::new(Code::CredentialEnded, detail))
}
