//! Stage 6: the only place that opens what was sealed, and only with its permit.
//!
//! The answer goes to the attested caller's agent over the connection it asked on. Nothing is kept.

mod confirm;

pub use confirm::Handovers;

use ephor_proto::grpc::v1;
use ephor_proto::id::{DecisionId, RequestId};
use ephor_proto::kind::Kind;
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;

use crate::clock::Stopwatch;
use crate::decide::Decided;
use crate::issue::{Access, By, Made, Opened, Permit, defect};
use crate::kind::effect::Content;
use crate::ledger::{CredentialRow, RequestRow};
use crate::metrics;
use crate::request::Refusal;

/// What the answer says beside the credentials.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The request answered.
    pub request: RequestId,
    decision: DecisionId,
    subject: String,
    owner: String,
    rule: String,
}

/// What each stage cost, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Matching the evidence.
    pub attest: u64,
    /// The decision.
    pub decide: u64,
    /// Recording and signing.
    pub issue: u64,
}

impl Timings {
    /// Into the metrics, once for each answer. Who approves by rule takes no time.
    fn count(self) {
        metrics::STAGES.passed(Stage::Attest, self.attest);
        metrics::STAGES.passed(Stage::Decide, self.decide);
        metrics::STAGES.counted(Stage::Approve, 1);
        metrics::STAGES.passed(Stage::Issue, self.issue);
    }
}

impl Delivery {
    pub(crate) fn of(decided: &Decided) -> Self {
        let allowed = decided.allowed();
        Self {
            request: decided.attested().requested().id(),
            decision: decided.id(),
            subject: allowed.subject.to_string(),
            owner: allowed.owner.clone(),
            rule: allowed.rule.clone(),
        }
    }

    /// From the record of an earlier answer.
    pub(crate) fn stored(request: &RequestRow, credentials: &[CredentialRow]) -> Option<Self> {
        let first = credentials.first()?;
        Some(Self {
            request: request.id,
            decision: request.decision?,
            subject: first.subject.to_string(),
            owner: first.owner.clone(),
            rule: first.rule.clone(),
        })
    }
}

/// Opens what was made with its permit and encodes the answer.
pub(crate) fn deliver(
    permit: &Permit,
    made: Vec<Made>,
    delivery: &Delivery,
    timings: Timings,
) -> Result<v1::IssueResponse, Refusal> {
    let delivering = Stopwatch::start();
    let mut credentials = Vec::with_capacity(made.len());
    for sealed in made {
        let id = sealed.id();
        let opened = sealed.open(permit).map_err(defect)?;
        let row = permit.credentials().iter().find(|row| row.id == id);
        let row =
            row.ok_or_else(|| defect("a permit that covers a credential it does not hold"))?;
        credentials.push(encode(row, Some(opened))?);
    }
    // Renewed at its target: what was handed out stays as it is.
    let made: Vec<Vec<u8>> = credentials.iter().map(|made| made.id.clone()).collect();
    for row in permit.credentials() {
        if !made.iter().any(|id| *id == row.id.to_bytes()) {
            credentials.push(encode(row, None)?);
        }
    }
    timings.count();
    metrics::STAGES.passed(Stage::Deliver, delivering.micros());
    Ok(v1::IssueResponse {
        request_id: delivery.request.to_bytes().to_vec(),
        decision_id: delivery.decision.to_bytes().to_vec(),
        subject: delivery.subject.clone(),
        owner: delivery.owner.clone(),
        rule: delivery.rule.clone(),
        credentials,
        attest_microseconds: timings.attest,
        decide_microseconds: timings.decide,
        issue_microseconds: timings.issue,
    })
}

fn encode(row: &CredentialRow, opened: Option<Opened>) -> Result<v1::Credential, Refusal> {
    let (mut token, mut certificate_chain_der, mut login) = (String::new(), Vec::new(), None);
    match opened {
        Some(Opened::Token(secret)) => {
            secret.expose_str().map_err(defect)?.clone_into(&mut token);
        }
        Some(Opened::Certificate(chain)) => certificate_chain_der = chain,
        Some(Opened::Access(access)) => login = Some(encode_login(row, &access)?),
        None => {}
    }
    Ok(v1::Credential {
        id: row.id.to_bytes().to_vec(),
        kind: row.kind.as_str().to_owned(),
        issued_at: row.issued_at.as_millis(),
        expires_at: row.expires_at.as_millis(),
        refresh_at: refresh_at(row.issued_at, row.expires_at).as_millis(),
        capped_by: row.capped_by.clone(),
        token,
        audience: match row.kind {
            Kind::Jwt => row.item.clone(),
            Kind::X509 | Kind::Ssh | Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => {
                String::new()
            }
        },
        certificate_chain_der,
        login,
    })
}

fn encode_login(row: &CredentialRow, access: &Access) -> Result<v1::Login, Refusal> {
    let content = Content::of(row).ok_or_else(|| defect("content that cannot be read"))?;
    let endpoint = &access.target.endpoint;
    let (password, certificate_chain_der) = match &access.by {
        By::Password { password, .. } => {
            let password = password.expose_str().map_err(defect)?;
            (password.to_owned(), Vec::new())
        }
        By::Certificate(der) => (String::new(), vec![der.clone()]),
    };
    Ok(v1::Login {
        target: content.target,
        host: endpoint.host.clone(),
        port: u32::from(endpoint.port),
        database: content.database,
        user: content.name,
        password,
        sslmode: endpoint.sslmode.clone(),
        sslrootcert: endpoint.sslrootcert.clone(),
        certificate_chain_der,
        group: content.groups.into_iter().next().unwrap_or_default(),
        options: content.settings.into_iter().collect(),
    })
}

/// Two thirds of a life: early enough for two more tries before the end.
fn refresh_at(issued_at: UnixMillis, expires_at: UnixMillis) -> UnixMillis {
    issued_at.saturating_add_millis(expires_at.millis_since(issued_at) / 3 * 2)
}
