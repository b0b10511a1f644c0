//! The admin socket: tasks, credentials, hosts, policy and audit for whoever the listener let in.
//!
//! Only parsing, one call of a stage, and encoding. Bodies are those of `ephor_proto::http::admin`.

mod audit;
mod encode;
mod keys;
mod policy;
mod resolve;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use ephor_proto::http::admin::{self, Explain, Explained, Invite, Reason, Status};
use ephor_proto::id::TaskId;
use ephor_proto::problem::Code;
use ephor_proto::state::credential::CredentialState;
use ephor_proto::state::task::EndCause;
use serde::Deserialize;

use super::listener::Connection;
use super::lists;
use super::problem::ProblemResponse;
use crate::app::Broker;
use crate::complete::{By, End};
use crate::issue::{defect, store_unavailable};
use crate::ledger::{CredentialFilter, ReadError, TaskFilter};
use crate::limits;
use crate::policy::ExplainError;
use crate::request::Refusal;

type Shared = State<Arc<Broker>>;
type Answer<T> = Result<Json<T>, ProblemResponse>;

/// The routes of the admin socket.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/backup", get(last_backup).post(begin_backup))
        .route("/v1/recover", post(recover))
        .route("/v1/tasks", get(tasks))
        .route("/v1/tasks/{id}", get(task))
        .route("/v1/tasks/{id}/end", post(end_task))
        .route("/v1/tasks/{id}/receipt", get(receipt))
        .route("/v1/credentials", get(credentials))
        .route("/v1/credentials/{id}", get(credential))
        .route("/v1/credentials/{id}/revoke", post(revoke_credential))
        .route("/v1/credentials/{id}/accept", post(accept_credential))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/invite", post(invite))
        .route("/v1/hosts/{name}/ban", post(ban))
        .route("/v1/keys", get(keys::list))
        .route("/v1/keys/ca/request", post(keys::request))
        .route("/v1/keys/ca/chain", post(keys::chain))
        .route("/v1/keys/database/certificates", get(keys::databases))
        .route("/v1/keys/{kind}/rotate", post(keys::rotate))
        .route("/v1/keys/{kind}/distrust", post(keys::distrust))
        .route("/v1/targets/{name}/rotate-secret", post(rotate_secret))
        .route("/v1/policy/explain", post(explain))
        .route("/v1/policy/versions", get(policy::versions))
        .route("/v1/policy/versions/{version}", get(policy::show))
        .route("/v1/audit", get(audit::range))
        .route("/v1/audit/{id}", get(audit::about))
        .route("/v1/receipts", get(receipts))
        .layer(DefaultBodyLimit::max(limits::ADMIN_BODY))
        .route(
            "/v1/policy/apply",
            post(policy::apply).layer(DefaultBodyLimit::max(limits::POLICY_BODY)),
        )
        .with_state(Arc::clone(&broker))
        .merge(lists::router(broker))
}

/// Refuses with a fresh correlation id.
fn refuse<T>(broker: &Broker, outcome: Result<T, Refusal>) -> Answer<T> {
    outcome
        .map(Json)
        .map_err(|refusal| ProblemResponse::of(refusal, broker.clock.as_ref()))
}

fn read<T>(outcome: Result<T, ReadError>) -> Result<T, Refusal> {
    outcome.map_err(store_unavailable)
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Refusal> {
    body.map(|Json(value)| value).map_err(|rejection| {
        let code = if rejection.status().as_u16() == 413 {
            Code::TooLarge
        } else {
            Code::InvalidRequest
        };
        Refusal::new(code, rejection.body_text())
    })
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    query
        .map(|Query(value)| value)
        .map_err(|rejection| Refusal::new(Code::InvalidRequest, rejection.body_text()))
}

/// Does `work` in a task of its own: it ends also when whoever asked goes away, or waits no longer.
async fn to_its_end<T, W, F>(
    broker: &Arc<Broker>,
    name: &'static str,
    work: W,
) -> Result<T, Refusal>
where
    T: Send + 'static,
    W: FnOnce(Arc<Broker>) -> F,
    F: Future<Output = Result<T, Refusal>> + Send + 'static,
{
    let work = work(Arc::clone(broker));
    broker.tasks.run(name, work).await.map_err(defect)?
}

async fn status(State(broker): Shared) -> Answer<Status> {
    refuse(&broker, status_of(&broker))
}

fn status_of(broker: &Broker) -> Result<Status, Refusal> {
    let reader = broker.ledger.reader();
    let stopped = broker.may_issue().err();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: broker.installation.trust_domain.to_string(),
        installation: broker.installation.id.clone(),
        epoch: u64::from(broker.installation.epoch),
        policy_version: broker.policy.load().version().to_owned(),
        policy_trouble: broker.inforce.trouble(),
        log_key: broker.keys.load().log_vkey().to_owned(),
        log_size: read(reader.head())?.size,
        issuer: broker.installation.issuer.clone(),
        lists_url: broker.installation.lists_url.clone(),
        issuing: stopped.is_none(),
        stopped_because: stopped.map(|refusal| refusal.detail),
        quarantined: read(reader.quarantined_count())?,
        crypto: ephor_crypto::tls::name().to_owned(),
        pruned: read(reader.pruned())?.told(),
    })
}

async fn begin_backup(
    State(broker): Shared,
    asked: Result<Json<admin::Backup>, JsonRejection>,
) -> Answer<admin::BackupState> {
    let outcome = body(asked).and_then(|asked| broker.begin_backup(asked));
    refuse(&broker, outcome)
}

async fn recover(
    State(broker): Shared,
    asked: Result<Json<admin::Recover>, JsonRejection>,
) -> Answer<admin::Recovered> {
    refuse(&broker, recover_within(&broker, asked).await)
}

async fn recover_within(
    broker: &Arc<Broker>,
    asked: Result<Json<admin::Recover>, JsonRejection>,
) -> Result<admin::Recovered, Refusal> {
    let asked = body(asked)?;
    let work = async move |broker: Arc<Broker>| broker.recover(&asked).await;
    to_its_end(broker, "operate.recover", work).await
}

async fn last_backup(State(broker): Shared) -> Answer<admin::BackupState> {
    let none = || {
        Refusal::new(
            Code::NotFound,
            "no backup was begun since this broker started",
        )
    };
    refuse(&broker, broker.last_backup().ok_or_else(none))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskQuery {
    state: Option<String>,
    host: Option<String>,
    limit: Option<usize>,
}

async fn tasks(
    State(broker): Shared,
    asked: Result<Query<TaskQuery>, QueryRejection>,
) -> Answer<Vec<admin::Task>> {
    refuse(
        &broker,
        query(asked).and_then(|asked| list_tasks(&broker, asked)),
    )
}

fn list_tasks(broker: &Broker, asked: TaskQuery) -> Result<Vec<admin::Task>, Refusal> {
    let state = match asked.state.as_deref() {
        None => None,
        Some(word) => Some(task_state(word)?),
    };
    let limit = asked
        .limit
        .unwrap_or(limits::ADMIN_ROWS)
        .min(limits::ADMIN_ROWS);
    let reader = broker.ledger.reader();
    let rows = read(reader.tasks(&TaskFilter {
        state,
        host: asked.host,
        limit,
    }))?;
    read(
        rows.into_iter()
            .map(|row| encode::task(broker, &reader, row))
            .collect(),
    )
}

fn task_state(word: &str) -> Result<&'static str, Refusal> {
    let known = ["open", "completing", "closed"]
        .into_iter()
        .find(|known| *known == word);
    let detail = || format!("`state={word}` is none of open, completing, closed");
    known.ok_or_else(|| Refusal::new(Code::InvalidRequest, detail()))
}

async fn task(State(broker): Shared, Path(id): Path<String>) -> Answer<admin::Task> {
    refuse(&broker, show_task(&broker, &id))
}

fn show_task(broker: &Broker, id: &str) -> Result<admin::Task, Refusal> {
    let reader = broker.ledger.reader();
    let id = resolve::task(&reader, id)?;
    let row = read(reader.task(id))?;
    let row = row.ok_or_else(|| {
        let detail = format!(
            "the rows of task {id} were pruned by retention; its receipt and its events are there: \
             ephor audit show {id}"
        );
        Refusal::new(Code::NotFound, detail)
    })?;
    read(encode::task(broker, &reader, row))
}

async fn end_task(
    State(broker): Shared,
    Path(id): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<admin::Ended> {
    refuse(&broker, end_task_within(&broker, &id, reason).await)
}

async fn end_task_within(
    broker: &Broker,
    id: &str,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<admin::Ended, Refusal> {
    let Reason { reason } = body(reason)?;
    broker.vouch()?;
    let task = resolve::task(&broker.ledger.reader(), id)?;
    let proven = broker
        .end_task(End {
            task,
            cause: EndCause::Revoked,
            by: By::Person { reason },
        })
        .await?;
    Ok(encode::ended(proven))
}

async fn receipt(State(broker): Shared, Path(id): Path<String>) -> Answer<serde_json::Value> {
    refuse(&broker, receipt_within(&broker, &id))
}

fn receipt_within(broker: &Broker, id: &str) -> Result<serde_json::Value, Refusal> {
    broker.vouch()?;
    let task = resolve::task(&broker.ledger.reader(), id)?;
    let none = || {
        let detail = format!(
            "task {} has no receipt yet: it is made when nothing of it is live any more",
            task.short()
        );
        Refusal::new(Code::NotFound, detail)
    };
    let receipt = read(broker.receipt(task))?.ok_or_else(none)?;
    serde_json::to_value(receipt).map_err(defect)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialQuery {
    state: Option<String>,
    task: Option<String>,
    overdue: Option<bool>,
    limit: Option<usize>,
}

async fn credentials(
    State(broker): Shared,
    asked: Result<Query<CredentialQuery>, QueryRejection>,
) -> Answer<Vec<admin::Credential>> {
    refuse(
        &broker,
        query(asked).and_then(|asked| list_credentials(&broker, &asked)),
    )
}

fn list_credentials(
    broker: &Broker,
    asked: &CredentialQuery,
) -> Result<Vec<admin::Credential>, Refusal> {
    let state: Option<CredentialState> = match &asked.state {
        None => None,
        Some(word) => {
            let detail = || {
                format!(
                    "`state={word}` is none of intended, live, replacing, revoking, contained, dead"
                )
            };
            Some(
                word.parse()
                    .map_err(|_| Refusal::new(Code::InvalidRequest, detail()))?,
            )
        }
    };
    let limit = asked
        .limit
        .unwrap_or(limits::ADMIN_ROWS)
        .min(limits::ADMIN_ROWS);
    let reader = broker.ledger.reader();
    let mut rows = match &asked.task {
        Some(task) => read(reader.credentials_of(resolve::task(&reader, task)?))?,
        None => read(reader.credentials(&CredentialFilter {
            state,
            overdue: asked.overdue,
            limit,
        }))?,
    };
    rows.retain(|row| {
        state.is_none_or(|state| state == row.state)
            && asked
                .overdue
                .is_none_or(|overdue| overdue == row.overdue.is_some())
    });
    rows.truncate(limit);
    read(
        rows.into_iter()
            .map(|row| encode::credential(broker, &reader, row))
            .collect(),
    )
}

async fn credential(State(broker): Shared, Path(id): Path<String>) -> Answer<admin::Credential> {
    refuse(&broker, show_credential(&broker, &id))
}

fn show_credential(broker: &Broker, id: &str) -> Result<admin::Credential, Refusal> {
    let reader = broker.ledger.reader();
    let id = resolve::credential(&reader, id)?;
    let row = read(reader.credential(id))?;
    let row =
        row.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no credential {id}")))?;
    read(encode::credential(broker, &reader, row))
}

async fn revoke_credential(
    State(broker): Shared,
    Path(id): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<admin::Ended> {
    refuse(&broker, revoke_within(&broker, &id, reason).await)
}

async fn accept_credential(
    State(broker): Shared,
    Extension(connection): Extension<Connection>,
    Path(id): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<admin::Credential> {
    let outcome = accept_within(&broker, &policy::who(&connection), &id, reason).await;
    refuse(&broker, outcome)
}

async fn accept_within(
    broker: &Broker,
    by: &str,
    id: &str,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<admin::Credential, Refusal> {
    let Reason { reason } = body(reason)?;
    broker.vouch()?;
    let id = resolve::credential(&broker.ledger.reader(), id)?;
    let row = broker.accept(id, &reason, by).await?;
    read(encode::credential(broker, &broker.ledger.reader(), row))
}

async fn revoke_within(
    broker: &Broker,
    id: &str,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<admin::Ended, Refusal> {
    let Reason { reason } = body(reason)?;
    broker.vouch()?;
    let id = resolve::credential(&broker.ledger.reader(), id)?;
    let revoked = broker.revoke(id, &reason).await?;
    let receipt = read(broker.receipt(revoked.row.task))?;
    Ok(encode::revoked(&revoked.row, receipt))
}

async fn hosts(State(broker): Shared) -> Answer<Vec<admin::Host>> {
    refuse(&broker, broker.hosts())
}

async fn invite(
    State(broker): Shared,
    asked: Result<Json<Invite>, JsonRejection>,
) -> Answer<admin::Invited> {
    refuse(&broker, invite_within(&broker, asked).await)
}

/// The one answer of this socket that holds a secret.
async fn invite_within(
    broker: &Broker,
    asked: Result<Json<Invite>, JsonRejection>,
) -> Result<admin::Invited, Refusal> {
    let Invite { host, ttl_seconds } = body(asked)?;
    let invited = broker.invite(&host, ttl_seconds).await?;
    let token = invited.token.expose_str().map_err(defect)?.to_owned();
    Ok(admin::Invited {
        token,
        expires_at: invited.expires_at,
    })
}

async fn ban(
    State(broker): Shared,
    Path(name): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<admin::Host> {
    let outcome = match body(reason) {
        Ok(Reason { reason }) => broker.ban(&name, &reason).await,
        Err(refusal) => Err(refusal),
    };
    refuse(&broker, outcome)
}

async fn rotate_secret(
    State(broker): Shared,
    Extension(connection): Extension<Connection>,
    Path(name): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Answer<admin::SecretRotated> {
    let by = policy::who(&connection);
    refuse(
        &broker,
        rotate_secret_within(&broker, by, name, reason).await,
    )
}

async fn rotate_secret_within(
    broker: &Arc<Broker>,
    by: String,
    name: String,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<admin::SecretRotated, Refusal> {
    let Reason { reason } = body(reason)?;
    let work =
        async move |broker: Arc<Broker>| broker.rotate_target_secret(&name, &by, &reason).await;
    to_its_end(broker, "operate.target_secret", work).await
}

async fn explain(
    State(broker): Shared,
    asked: Result<Json<Explain>, JsonRejection>,
) -> Answer<Explained> {
    let explained = body(asked).and_then(|asked| {
        broker
            .policy
            .load()
            .explain(&asked)
            .map_err(|error: ExplainError| Refusal::new(Code::InvalidRequest, error.to_string()))
    });
    refuse(&broker, explained)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReceiptQuery {
    after: Option<TaskId>,
    limit: Option<usize>,
}

async fn receipts(
    State(broker): Shared,
    asked: Result<Query<ReceiptQuery>, QueryRejection>,
) -> impl IntoResponse {
    let outcome = query(asked).and_then(|asked| {
        let limit = asked
            .limit
            .unwrap_or(limits::ADMIN_ROWS)
            .min(limits::ADMIN_ROWS);
        read(broker.ledger.reader().receipts(asked.after, limit))
    });
    refuse(&broker, outcome)
}
