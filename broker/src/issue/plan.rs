//! From an approved request to the one batch that records it.

use ephor_crypto::jwt::TokenKind;
use ephor_crypto::p256::P256Public;
use ephor_proto::id::{CorrelationId, GrantId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::grant::GrantState;
use ephor_proto::state::request::RequestState;
use ephor_proto::state::task::TaskState;
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Granted;
use serde_json::{Map, Value};

use super::{Intent, Plan, defect};
use crate::app::Broker;
use crate::approve::Approved;
use crate::decide::{Decided, Given};
use crate::deliver::Delivery;
use crate::kind::effect::certificate::ClientCertificate;
use crate::kind::effect::{Content, Failed};
use crate::kind::{jwt, x509};
use crate::ledger::{
    Batch, CredentialRow, DecisionRow, GrantRow, Lane, RequestRow, Require, Row, TaskRow,
};
use crate::limits;
use crate::policy::{Give, LoginBy};
use crate::request::Refusal;
use crate::revoke::{ListError, Place, Slot};

impl Broker {
    /// Everything that one issue stores, in one batch.
    pub(super) fn plan(
        &self,
        approved: Approved,
        task: Option<&TaskRow>,
        correlation: CorrelationId,
    ) -> Result<Plan, Refusal> {
        let decided = approved.decided();
        let grant: GrantId = self.new_id()?;
        let mut places = Vec::new();
        let credentials = self
            .credential_rows(decided, grant, &mut places)
            .inspect_err(|_| places.iter().for_each(|place| self.release(*place)))?;
        let mut rows = Vec::new();
        let mut events = Vec::new();
        let mut require = vec![
            Require::HostAdmitted(decided.attested().host().to_owned()),
            Require::PolicyInForce(decided.allowed().policy_version.to_string()),
        ];
        match task {
            Some(task) => require.push(Require::TaskOpen(task.id)),
            None => {
                let row = new_task(decided);
                events.push(self.task_opened(&row, decided, correlation)?.into());
                rows.push(Row::Task(row));
            }
        }
        rows.push(Row::Request(request_row(decided, grant, &credentials)));
        rows.push(Row::Decision(allowed_row(decided)));
        rows.push(Row::Grant(grant_row(
            decided,
            grant,
            credentials.is_empty(),
        )));
        events.push(self.decide_allowed(&approved, grant, correlation)?);
        for row in &credentials {
            events.push(self.issued("recorded", row, decided, correlation)?.into());
            rows.push(row.clone().into());
        }
        let delivery = Delivery::of(decided);
        let opens = rows.iter().find_map(deadline_of);
        let batch = Batch {
            name: "issue.intent",
            lane: Lane::Normal,
            require,
            rows,
            events,
        };
        Ok(Plan {
            intent: Intent::new(credentials),
            batch,
            places,
            opens,
            delivery,
        })
    }

    fn credential_rows(
        &self,
        decided: &Decided,
        grant: GrantId,
        places: &mut Vec<Place>,
    ) -> Result<Vec<CredentialRow>, Refusal> {
        let full = |e: ListError| Refusal::new(Code::Busy, e.to_string());
        let mut rows = Vec::new();
        for Given { give, life } in &decided.allowed().gives {
            match give {
                Give::Jwt {
                    audience, claims, ..
                } => {
                    let slot = self.lists.reserve().map_err(full)?;
                    places.push(Place::Status(slot));
                    rows.push(self.jwt_row(decided, (grant, life), slot, (audience, claims))?);
                }
                Give::X509 { dns } => {
                    let key = key_for(decided)?;
                    let list = self
                        .crls
                        .reserve(self.keys.load().issuing().version)
                        .map_err(full)?;
                    places.push(Place::Crl(list));
                    rows.push(self.x509_row(decided, (grant, life), list, (key, dns))?);
                }
                Give::Postgres { .. } | Give::Secret { .. } => {
                    rows.push(self.login_row(decided, (grant, life), give)?);
                }
                // A right to ask, checked where the question is asked; there is nothing to hold.
                Give::Introspect { .. } => {}
            }
        }
        if rows.is_empty() {
            let detail = format!(
                "`{}` gives only the right to introspect, which needs no credential of its own: ask with a \
                 token of `identity` for the issuer's audience",
                decided.attested().requested().entitlement()
            );
            return Err(Refusal::new(Code::InvalidRequest, detail));
        }
        Ok(rows)
    }

    fn jwt_row(
        &self,
        decided: &Decided,
        under: (GrantId, &Granted),
        slot: Slot,
        (audience, claims): (&str, &Map<String, Value>),
    ) -> Result<CredentialRow, Refusal> {
        let mut row = self.bare_row(decided, under, (Kind::Jwt, audience.to_owned()))?;
        row.status_list = slot.list;
        row.status_index = slot.index;
        row.content = self.jwt_content(&row, claims);
        Ok(row)
    }

    fn x509_row(
        &self,
        decided: &Decided,
        under: (GrantId, &Granted),
        list: u32,
        (key, dns): (&P256Public, &[String]),
    ) -> Result<CredentialRow, Refusal> {
        let mut row = self.bare_row(decided, under, (Kind::X509, dns.join(" ")))?;
        row.status_list = list;
        let life = (row.issued_at, row.expires_at);
        let content = x509::Content::new(key, dns, self.crls.uri(list), life);
        row.content = content.to_json().map_err(defect)?;
        Ok(row)
    }

    /// A login, of which so far only the intent exists. Where its target cannot be reached by what
    /// policy says of it, nothing is recorded.
    fn login_row(
        &self,
        decided: &Decided,
        under: (GrantId, &Granted),
        give: &Give,
    ) -> Result<CredentialRow, Refusal> {
        if self.handovers.is_full() {
            let detail = "too many logins wait for their hand-over to be confirmed";
            return Err(Refusal::new(Code::Busy, detail));
        }
        let deadline = self
            .clock
            .wall()
            .saturating_add_millis(limits::MINT_WITHIN_MILLIS);
        let certificate = self.certificate_for(decided, under.1, give)?;
        let (kind, content) = match give {
            Give::Secret {
                target,
                role,
                database,
            } => {
                self.is_free(target, role, &decided.allowed().subject)?;
                let (target, role, database) = (target.clone(), role.clone(), database.clone());
                let content = Content::lent(target, role, database, deadline);
                (Kind::Secret, Some(content))
            }
            Give::Postgres { .. }
            | Give::Jwt { .. }
            | Give::X509 { .. }
            | Give::Introspect { .. } => {
                let name = self.name_at_target(decided.attested().requested().entitlement())?;
                let content = Content::planned(give, name, deadline, certificate);
                (Kind::Postgres, content)
            }
        };
        let content = content.ok_or_else(|| defect("what is given is no login"))?;
        let unreachable = |failed: Failed| {
            Refusal::new(Code::TargetFailed, format!("nothing was made: {failed}"))
        };
        self.target(&content.target).map_err(unreachable)?;
        let mut row = self.bare_row(decided, under, (kind, content.name.clone()))?;
        row.content = content.to_json().map_err(defect)?;
        Ok(row)
    }

    /// Of a login that policy gives with a certificate.
    fn certificate_for(
        &self,
        decided: &Decided,
        life: &Granted,
        give: &Give,
    ) -> Result<Option<ClientCertificate>, Refusal> {
        match give {
            Give::Postgres {
                login: LoginBy::Certificate,
                ..
            } => {
                let life = (life.issued_at, life.expires_at);
                self.certificate_fits(life)?;
                Ok(Some(ClientCertificate::new(key_for(decided)?, life)))
            }
            Give::Postgres { .. }
            | Give::Secret { .. }
            | Give::Jwt { .. }
            | Give::X509 { .. }
            | Give::Introspect { .. } => Ok(None),
        }
    }

    /// Refuses what the CA for databases would not outlive, before anything is recorded.
    pub(super) fn certificate_fits(
        &self,
        (_, expires_at): (UnixMillis, UnixMillis),
    ) -> Result<(), Refusal> {
        let end = self.keys.load().database_ca().certificate().not_after();
        if i64::try_from(expires_at.as_unix_seconds()).is_ok_and(|at| at <= end) {
            return Ok(());
        }
        let detail = "the CA for databases ends before this login would; nothing was made \
                      (ephor broker rotate database --now)";
        Err(Refusal::new(Code::TargetFailed, detail))
    }

    /// A row that says everything but where it is listed and what is signed.
    fn bare_row(
        &self,
        decided: &Decided,
        (grant, life): (GrantId, &Granted),
        (kind, item): (Kind, String),
    ) -> Result<CredentialRow, Refusal> {
        let requested = decided.attested().requested();
        let allowed = decided.allowed();
        Ok(CredentialRow {
            id: self.new_id()?,
            version: 1,
            kind,
            task: requested.task().id,
            host: decided.attested().host().to_owned(),
            subject: allowed.subject.clone(),
            entitlement: requested.entitlement().to_owned(),
            item,
            owner: allowed.owner.clone(),
            purpose: allowed.purpose.clone(),
            request: requested.id(),
            decision: decided.id(),
            rule: allowed.rule.clone(),
            grant,
            state: if kind.is_signed() {
                CredentialState::Live
            } else {
                CredentialState::Intended
            },
            issued_at: life.issued_at,
            expires_at: life.expires_at,
            capped_by: life.capped_by.to_string(),
            status_list: 0,
            status_index: 0,
            content: String::new(),
            cause: None,
            revoked_at: None,
            evidence: None,
            overdue: None,
            narrowed_by: None,
        })
    }

    /// The exact claims of a row, from its fields and policy's claims.
    pub(super) fn jwt_content(&self, row: &CredentialRow, claims: &Map<String, Value>) -> String {
        let kind: TokenKind = jwt::token_kind(&row.entitlement);
        jwt::Body {
            issuer: &self.installation.issuer,
            subject: row.subject.as_str(),
            audience: &row.item,
            id: row.id,
            issued_at: row.issued_at,
            expires_at: row.expires_at,
            status_uri: self.lists.uri(row.status_list),
            status_index: row.status_index,
            kind,
            claims,
        }
        .to_json()
    }
}

/// The key that a certificate is to be for.
///
/// # Errors
/// `key_needed`: the agent then makes one and asks again.
pub(super) fn key_for(decided: &Decided) -> Result<&P256Public, Refusal> {
    let requested = decided.attested().requested();
    requested.public_key().ok_or_else(|| {
        let detail = format!(
            "`{}` gives a certificate: send the public key that it is to be for",
            requested.entitlement()
        );
        Refusal::new(Code::KeyNeeded, detail)
    })
}

pub(super) fn allowed_row(decided: &Decided) -> DecisionRow {
    let requested = decided.attested().requested();
    let allowed = decided.allowed();
    DecisionRow {
        id: decided.id(),
        request: requested.id(),
        task: Some(requested.task().id),
        allowed: true,
        code: String::new(),
        subject: allowed.subject.to_string(),
        entitlement: requested.entitlement().to_owned(),
        item: requested.item().to_owned(),
        rule: allowed.rule.clone(),
        policy_version: decided.allowed().policy_version.to_string(),
        ttl_seconds: allowed.ttl.as_seconds(),
        capped_by: allowed.capped_by.to_string(),
        decided_at: decided.allowed().issued_at,
    }
}

/// A new task that must end by itself at some time, and when.
fn deadline_of(row: &Row) -> Option<(TaskId, UnixMillis)> {
    match row {
        Row::Task(task) => Some((task.id, task.deadline?)),
        Row::Request(_)
        | Row::Decision(_)
        | Row::Grant(_)
        | Row::Credential(_)
        | Row::Host(_)
        | Row::JoinToken(_)
        | Row::Key(_)
        | Row::Receipt { .. }
        | Row::Policy(_)
        | Row::Meta(..)
        | Row::Unlist(_)
        | Row::SetAside { .. }
        | Row::ErasePersonal(_)
        | Row::Prune(_)
        | Row::NewEpoch(_) => None,
    }
}

fn new_task(decided: &Decided) -> TaskRow {
    let attested = decided.attested();
    let task = attested.requested().task();
    TaskRow {
        id: task.id,
        version: 1,
        host: attested.host().to_owned(),
        subject: decided.allowed().subject.clone(),
        rule: task.rule.to_owned(),
        pid: task.pid,
        start_time: task.start_time,
        boot_id: attested.boot_id().to_owned(),
        instance: attested.instance(),
        opened_seq: task.opened_seq,
        state: TaskState::Open,
        opened_at: decided.allowed().issued_at,
        ended_at: None,
        closed_at: None,
        // Frozen here: a newer policy may shorten it at a renewal, never lengthen it.
        deadline: decided.allowed().grant_until,
    }
}

pub(super) fn request_row(
    decided: &Decided,
    grant: GrantId,
    credentials: &[CredentialRow],
) -> RequestRow {
    let requested = decided.attested().requested();
    RequestRow {
        id: requested.id(),
        version: 1,
        digest: requested.digest(),
        task: requested.task().id,
        state: RequestState::Consumed,
        decision: Some(decided.id()),
        grant: Some(grant),
        credentials: credentials.iter().map(|row| row.id).collect(),
        requested_at: decided.allowed().issued_at,
    }
}

fn grant_row(decided: &Decided, id: GrantId, alone: bool) -> GrantRow {
    let requested = decided.attested().requested();
    let until = decided.allowed().grant_until.unwrap_or(UnixMillis::MAX);
    GrantRow {
        id,
        version: 1,
        task: requested.task().id,
        decision: decided.id(),
        entitlement: requested.entitlement().to_owned(),
        item: requested.item().to_owned(),
        state: GrantState::Open { until },
        opened_at: decided.allowed().issued_at,
        until,
        closed_at: None,
        alone,
    }
}
