//! The first commit of an end: the task is `completing`, its credentials are `revoking`.

use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::grpc::v1;
use ephor_proto::id::CorrelationId;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::{self, CredentialEvent};
use ephor_proto::state::grant::{self, GrantEnd, GrantEvent};
use ephor_proto::state::task::{self, EndCause, TaskEvent};
use ephor_proto::time::UnixMillis;

use super::{After, By, End, Step};
use crate::app::Broker;
use crate::crash_point;
use crate::ledger::{Batch, CredentialRow, GrantRow, Lane, NewEvent, Require, Row, TaskRow};
use crate::revoke::{NotEnded, machine};

impl Broker {
    /// Submits the first commit for an open task.
    pub(super) fn begin(&self, mut row: TaskRow, end: &End) -> Result<Step, NotEnded> {
        let now = self.clock.wall();
        let reader = self.ledger.reader();
        // One that cannot be read counts, too: the next step sets it aside and ends it by the log.
        let held = reader.held_by(row.id, now)?;
        let mut revoking = Vec::new();
        for credential in held.rows {
            if credential.state.is_out() {
                let mut credential = revoke_row(credential, end.cause, now)?;
                credential.narrowed_by = end.by.policy().map(str::to_owned);
                revoking.push(credential);
            }
        }
        let (state, _) = task::step(row.state, TaskEvent::Complete(end.cause), now)?;
        row.state = state;
        row.ended_at = Some(now);
        row.version += 1;
        let mut rows = vec![Row::Task(row.clone())];
        for open in reader.open_grants_of(row.id)? {
            rows.push(Row::Grant(closed_grant(open, end.by.closes_grants(), now)?));
        }
        rows.extend(revoking.iter().cloned().map(Row::from));
        let event = self.completed(&row, end, revoking.len())?;
        let require = vec![Require::LiveCredentials {
            task: row.id,
            count: held.live,
        }];
        let batch = Batch {
            name: "complete.begin",
            lane: Lane::Revoke,
            require,
            rows,
            events: vec![event],
        };
        crash_point!("complete.before_commit");
        let ticket = self.ledger.submit(batch)?;
        let tell = match end.by {
            By::Agent(_) => None,
            By::Broker | By::Policy { .. } | By::Person { .. } => Some(Box::new(row)),
        };
        Ok(Step::Submitted(
            ticket,
            After::List {
                credentials: revoking,
                tell,
            },
        ))
    }

    /// After the first commit: listed at once, wiped at the host if it does not know yet.
    pub(super) fn began(&self, credentials: &[CredentialRow], tell: Option<&TaskRow>) {
        crash_point!("complete.after_commit");
        for row in credentials {
            self.list(row);
        }
        if let Some(task) = tell {
            let revoked = v1::TaskRevoked {
                task_id: task.id.to_bytes().to_vec(),
                cause: task
                    .state
                    .cause()
                    .map(EndCause::as_str)
                    .unwrap_or_default()
                    .to_owned(),
            };
            self.fleet.push(
                &task.host,
                v1::Push {
                    what: Some(v1::push::What::TaskRevoked(revoked)),
                },
            );
        }
    }

    /// `complete.CAUSE`
    fn completed(
        &self,
        row: &TaskRow,
        end: &End,
        credentials: usize,
    ) -> Result<NewEvent, NotEnded> {
        let (correlation, reason) = match &end.by {
            By::Agent(correlation) => (Some(*correlation), ""),
            By::Broker | By::Policy { .. } => (None, ""),
            By::Person { reason } => (None, reason.as_str()),
        };
        let mut event = self.task_event(Stage::Complete, end.cause.as_str(), row, correlation)?;
        event.cause = Some(end.cause.as_str().to_owned());
        event
            .facts
            .insert("credentials".to_owned(), credentials.to_string());
        if let By::Policy { version, why } = &end.by {
            event.policy_version = Some(version.clone());
            event.facts.insert("narrowed".to_owned(), why.clone());
        }
        Ok(self.with_reason(event, reason)?)
    }

    /// An event about a task.
    pub(crate) fn task_event(
        &self,
        stage: Stage,
        verb: &str,
        row: &TaskRow,
        correlation: Option<CorrelationId>,
    ) -> Result<AuditEvent, NotEnded> {
        let mut event = self.event(stage, verb, Outcome::Ok)?;
        event.subject = Some(row.subject.as_str().into());
        event.agent = Some(self.agent_id(&row.host));
        event.task = Some(row.id);
        event.correlation = correlation;
        Ok(event)
    }
}

impl By {
    /// The version that no longer allows it, when that is who says so.
    fn policy(&self) -> Option<&str> {
        match self {
            Self::Policy { version, .. } => Some(version),
            Self::Agent(_) | Self::Broker | Self::Person { .. } => None,
        }
    }

    fn closes_grants(&self) -> GrantEnd {
        match self {
            Self::Policy { .. } => GrantEnd::Narrowed,
            Self::Agent(_) | Self::Broker | Self::Person { .. } => GrantEnd::TaskEnded,
        }
    }
}

/// The row of a credential that ends now.
pub(crate) fn revoke_row(
    mut row: CredentialRow,
    cause: EndCause,
    now: UnixMillis,
) -> Result<CredentialRow, NotEnded> {
    let (next, _) = credential::step(machine(&row), CredentialEvent::Revoke, now)?;
    row.version += 1;
    row.state = next.state;
    row.cause = Some(cause);
    row.revoked_at = Some(now);
    Ok(row)
}

/// The row of a grant that closes now.
pub(crate) fn closed_grant(
    mut grant: GrantRow,
    end: GrantEnd,
    now: UnixMillis,
) -> Result<GrantRow, NotEnded> {
    let (next, _) = grant::step(grant.state, GrantEvent::Close(end), now)?;
    grant.version += 1;
    grant.state = next;
    grant.closed_at = Some(now);
    Ok(grant)
}
