//! Stage 1: what an agent sent becomes a [`Requested`], before any expensive work.
//!
//! Everything here is bounded and cheap, and reads neither the store nor policy. A value of
//! these types cannot be malformed; whether it is *true* is the next stage's question.

mod coalesce;
mod refusal;
mod throttle;

pub use coalesce::{Counted, RefusalKey, Refusals, Summed};
pub use refusal::Refusal;
pub use throttle::{OpenWork, Throttle};

use std::time::Duration;

use ephor_crypto::digest::Sha256Hasher;
use ephor_crypto::p256::P256Public;
use ephor_proto::grpc::v1;
use ephor_proto::id::{CredentialId, RequestId, TaskId};
use ephor_proto::limits::{
    MAX_AUDIENCE_LEN, MAX_ENTITLEMENT_LEN, MAX_REASON_LEN, MAX_SPIFFE_ID_LEN,
};
use ephor_proto::problem::Code;
use ephor_proto::ttl::Ttl;

/// How the agent found the task; it stands in listings and audit events.
const TASK_RULES: [&str; 4] = ["run", "unit", "ancestor", "peer"];

/// The task as the agent resolved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedTask {
    /// Made by the agent.
    pub id: TaskId,
    /// `run`, `unit`, `ancestor` or `peer`.
    pub rule: &'static str,
    /// Process id on its host.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`, clock ticks since boot.
    pub start_time: u64,
    /// The agent's counter when it opened the task.
    pub opened_seq: u64,
}

/// A well-formed request of one host. The first of the proof types: nothing outside this
/// module makes one.
///
/// ```compile_fail
/// // Its fields are private: nobody outside can write one down, or change one.
/// fn pry(r: ephor_broker::request::Requested) {
///     let ephor_broker::request::Requested { id: _, .. } = r;
/// }
/// ```
#[derive(Debug)]
pub struct Requested {
    id: RequestId,
    digest: [u8; 32],
    task: RequestedTask,
    evidence: v1::Evidence,
    entitlement: String,
    item: String,
    reason: String,
    ttl: Option<Ttl>,
    renews: Option<CredentialId>,
    left: Option<Duration>,
    subject: Option<String>,
    public_key: Option<P256Public>,
}

impl Requested {
    /// Parses a request that came over the channel of `host`.
    ///
    /// # Errors
    /// A field that is missing, malformed or too long, by name.
    pub fn parse(host: &str, r: v1::IssueRequest) -> Result<Self, Refusal> {
        let id = RequestId::from_slice(&r.request_id).map_err(|e| malformed("request_id", &e))?;
        let task = parse_task(r.task.as_ref())?;
        let evidence = r.evidence.ok_or_else(|| missing("evidence"))?;
        bounded("entitlement", &r.entitlement, MAX_ENTITLEMENT_LEN)?;
        bounded("item", &r.item, MAX_AUDIENCE_LEN)?;
        bounded("reason", &r.reason, MAX_REASON_LEN)?;
        bounded("subject", &r.subject, MAX_SPIFFE_ID_LEN)?;
        if r.entitlement.is_empty() {
            return Err(missing("entitlement"));
        }
        let renews = match r.renews.as_slice() {
            [] => None,
            bytes => Some(CredentialId::from_slice(bytes).map_err(|e| malformed("renews", &e))?),
        };
        let public_key = match r.public_key_der.as_slice() {
            [] => None,
            der => Some(P256Public::from_spki(der).map_err(|e| malformed("public_key_der", &e))?),
        };
        let mut requested = Self {
            id,
            digest: [0; 32],
            task,
            evidence,
            entitlement: r.entitlement,
            item: r.item,
            reason: r.reason,
            ttl: r.ttl_seconds.map(Ttl::from_seconds),
            renews,
            left: (r.left_milliseconds > 0).then(|| Duration::from_millis(r.left_milliseconds)),
            subject: (!r.subject.is_empty()).then_some(r.subject),
            public_key,
        };
        requested.digest = requested.content_digest(host);
        Ok(requested)
    }

    /// The idempotency key.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// SHA-256 over host and content: a retry has the same, anything else does not.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The task it is for.
    pub fn task(&self) -> &RequestedTask {
        &self.task
    }

    /// What the agent saw of the caller.
    pub fn evidence(&self) -> &v1::Evidence {
        &self.evidence
    }

    /// The entitlement asked for.
    pub fn entitlement(&self) -> &str {
        &self.entitlement
    }

    /// For `identity` the audience of a token, or empty for its certificate; else empty.
    pub fn item(&self) -> &str {
        &self.item
    }

    /// Why, this time; free text, so never in a leaf in clear.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The lifetime asked for.
    pub fn ttl(&self) -> Option<Ttl> {
        self.ttl
    }

    /// The credential to renew, instead of making a new one.
    pub fn renews(&self) -> Option<CredentialId> {
        self.renews
    }

    /// How long what is to be renewed still lives, by its holder's word.
    pub fn left(&self) -> Option<Duration> {
        self.left
    }

    /// The subject it names, when several match.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// The key that a certificate is to be for. The channel that it came over vouches for it; a
    /// certificate for a key that nobody holds is of no use to anyone.
    pub fn public_key(&self) -> Option<&P256Public> {
        self.public_key.as_ref()
    }

    /// Over all that decides what is issued. Evidence is left out: it is looked at anew
    /// at every try, and an agent may attest again between two tries. So is what passes with time.
    fn content_digest(&self, host: &str) -> [u8; 32] {
        let ttl = self
            .ttl
            .map(|ttl| ttl.as_seconds().to_string())
            .unwrap_or_default();
        let renews = self.renews.map(|id| id.to_string()).unwrap_or_default();
        let task = self.task.id.to_string();
        let subject = self.subject.as_deref().unwrap_or_default();
        let public_key = self.public_key.as_ref();
        let public_key = public_key.map(P256Public::thumbprint).unwrap_or_default();
        let mut hasher = Sha256Hasher::new();
        for part in [
            host,
            &task,
            &self.entitlement,
            &self.item,
            &self.reason,
            &ttl,
            &renews,
            subject,
            &public_key,
        ] {
            // Length first, so that no two lists of parts have the same bytes.
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish()
    }
}

fn parse_task(task: Option<&v1::Task>) -> Result<RequestedTask, Refusal> {
    let task = task.ok_or_else(|| missing("task"))?;
    let rule = TASK_RULES.into_iter().find(|rule| *rule == task.rule);
    Ok(RequestedTask {
        id: TaskId::from_slice(&task.id).map_err(|e| malformed("task.id", &e))?,
        rule: rule
            .ok_or_else(|| malformed("task.rule", &"it is none of run, unit, ancestor, peer"))?,
        pid: task.pid,
        start_time: task.start_time,
        opened_seq: task.opened_seq,
    })
}

fn bounded(field: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.len() > most {
        let detail = format!(
            "`{field}` has {} bytes; at most {most} are accepted",
            text.len()
        );
        return Err(Refusal::new(Code::TooLarge, detail));
    }
    if text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
    {
        return Err(malformed(field, &"it holds a control character"));
    }
    Ok(())
}

fn missing(field: &str) -> Refusal {
    Refusal::new(Code::InvalidRequest, format!("`{field}` is missing"))
}

fn malformed(field: &str, why: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(
        Code::InvalidRequest,
        format!("`{field}` is malformed: {why}"),
    )
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn wire() -> v1::IssueRequest {
        v1::IssueRequest {
            request_id: RequestId::from_parts(5, [1; 10]).to_bytes().to_vec(),
            task: Some(v1::Task {
                id: TaskId::from_parts(5, [2; 10]).to_bytes().to_vec(),
                rule: "run".into(),
                pid: 7,
                start_time: 8,
                opened_seq: 1,
            }),
            evidence: Some(v1::Evidence {
                uid: 1000,
                pid: 7,
                start_time: 8,
                ..Default::default()
            }),
            entitlement: "billing-api".into(),
            reason: "nightly".into(),
            ..Default::default()
        }
    }

    fn digest_of(host: &str, change: impl FnOnce(&mut v1::IssueRequest)) -> [u8; 32] {
        let mut r = wire();
        change(&mut r);
        Requested::parse(host, r).unwrap().digest()
    }

    #[test]
    fn the_digest_covers_host_and_content_but_not_evidence() {
        let base = digest_of("h", |_| {});
        assert_eq!(
            base,
            digest_of("h", |r| r.evidence.as_mut().unwrap().exe_sha256 =
                vec![1; 32])
        );
        assert_eq!(base, digest_of("h", |r| r.left_milliseconds = 7));
        let others = [
            digest_of("i", |_| {}),
            digest_of("h", |r| r.entitlement.push('x')),
            digest_of("h", |r| r.item = "a".into()),
            digest_of("h", |r| r.reason.clear()),
            digest_of("h", |r| r.ttl_seconds = Some(0)),
            digest_of("h", |r| {
                r.renews = CredentialId::from_parts(1, [0; 10]).to_bytes().to_vec()
            }),
            digest_of("h", |r| r.subject = "spiffe://a/b".into()),
            digest_of("h", |r| {
                r.task.as_mut().unwrap().id = TaskId::from_parts(5, [3; 10]).to_bytes().to_vec()
            }),
        ];
        let distinct: std::collections::HashSet<_> = others.iter().collect();
        assert_eq!(distinct.len(), others.len());
        assert!(!others.contains(&base));
    }

    type Change<'a> = &'a dyn Fn(&mut v1::IssueRequest);

    #[test]
    fn what_is_malformed_is_named() {
        let refused = |change: Change<'_>| {
            let mut r = wire();
            change(&mut r);
            let refusal = Requested::parse("h", r).unwrap_err();
            (refusal.code, refusal.detail)
        };
        let cases: [(Change<'_>, Code, &str); 9] = [
            (
                &|r| r.request_id.clear(),
                Code::InvalidRequest,
                "request_id",
            ),
            (
                &|r| r.request_id = vec![0; 16],
                Code::InvalidRequest,
                "request_id",
            ),
            (&|r| r.task = None, Code::InvalidRequest, "`task`"),
            (
                &|r| r.task.as_mut().unwrap().rule = "x".into(),
                Code::InvalidRequest,
                "task.rule",
            ),
            (&|r| r.evidence = None, Code::InvalidRequest, "evidence"),
            (
                &|r| r.entitlement.clear(),
                Code::InvalidRequest,
                "entitlement",
            ),
            (&|r| r.reason = "x".repeat(1025), Code::TooLarge, "reason"),
            (&|r| r.item = "a\u{0}b".into(), Code::InvalidRequest, "item"),
            (&|r| r.renews = vec![1], Code::InvalidRequest, "renews"),
        ];
        for (change, code, field) in cases {
            let (got, detail) = refused(change);
            assert_eq!(got, code, "{detail}");
            assert!(detail.contains(field), "{detail}");
        }
    }

    #[test]
    fn any_ttl_is_legal_here() {
        for seconds in [0, 1, u64::MAX] {
            let mut r = wire();
            r.ttl_seconds = Some(seconds);
            assert_eq!(
                Requested::parse("h", r).unwrap().ttl(),
                Some(Ttl::from_seconds(seconds))
            );
        }
    }
}
