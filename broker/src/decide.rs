//! Decide: a pure function of policy version, subject, entitlement, task and time.
//!
//! Allowed is one explicit value and everything else is refusal. Nothing here reads a clock,
//! a store or the network, and nothing here can widen what a cap allows.

mod decided;
mod refusal;
mod standing;

use std::sync::Arc;

use ephor_proto::cred::IDENTITY;
use ephor_proto::kind::Kind;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::{Cap, CappedBy, Granted, Ttl, effective};

use crate::policy::fields::audience_problem;
use crate::policy::{Entitlement, Give, Snapshot, Workload};

pub use decided::{Circumstances, Decided, Renewing};
use refusal::Refusal;
pub(crate) use standing::{Fallen, Held, stands, unchanged};

/// What is asked.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// The workloads that the caller is, as [`Snapshot::match_workloads`] found them.
    pub candidates: &'a [SpiffeId],
    /// Which of them the request names, as a whole id or its path.
    pub subject: Option<&'a str>,
    /// The entitlement.
    pub entitlement: &'a str,
    /// For `identity` the audience of a token, or empty for its certificate; otherwise empty.
    pub item: &'a str,
    /// The lifetime asked for.
    pub requested: Option<Ttl>,
    /// Now.
    pub now: UnixMillis,
    /// When the task began.
    pub task_opened_at: UnixMillis,
    /// The task's own deadline, where it has one.
    pub task_deadline: Option<UnixMillis>,
    /// The end of the issuing CA or key.
    pub ca_end: UnixMillis,
    /// Set for a renewal: the grant it draws on.
    pub renewing: Option<Window>,
}

/// The window of a grant; a renewal never leaves it, whatever a newer policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its end; `None` when it lasts as long as the task.
    pub until: Option<UnixMillis>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Yes, and within which bounds.
    Allowed(Allowed),
    /// No, and why.
    Denied(Denied),
}

/// A yes. All times are whole seconds, rounded down.
#[derive(Debug, Clone, PartialEq)]
pub struct Allowed {
    /// Who.
    pub subject: SpiffeId,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// `FILE:LINE` of the rule.
    pub rule: String,
    /// What to make, in the order of the policy.
    pub gives: Vec<Given>,
    /// Issue time to write into the credentials.
    pub issued_at: UnixMillis,
    /// The end of the one that lives longest.
    pub expires_at: UnixMillis,
    /// From `issued_at` to that end.
    pub ttl: Ttl,
    /// What set that end.
    pub capped_by: CappedBy,
    /// The end of the grant's window; `None` when it lasts as long as the task.
    pub grant_until: Option<UnixMillis>,
    /// Version of the policy that said so.
    pub policy_version: Arc<str>,
}

/// One thing to make, and how long it lives: each kind has ceilings of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// What.
    pub give: Give,
    /// From when to when, and what set its end.
    pub life: Granted,
}

/// A no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Stable code.
    pub code: Code,
    /// For the caller: nothing of what is others'. Without the first word ("denied").
    pub message: String,
    /// For the audit event and the operator: the same, and what the caller may not know.
    pub reason: String,
    /// Who was refused, when the caller is exactly one workload.
    pub subject: Option<SpiffeId>,
    /// `FILE:LINE` of the rule that refused, for the operator only; `None` when no rule speaks of it.
    pub rule: Option<String>,
    /// Version of the policy that said so.
    pub policy_version: Arc<str>,
}

/// Decides. Takes time that grows with the number of `candidates` only.
pub fn decide(policy: &Snapshot, query: &Query<'_>) -> Verdict {
    match allow(policy, query) {
        Ok(allowed) => Verdict::Allowed(allowed),
        Err(refusal) => Verdict::Denied(refusal.explain(policy, query)),
    }
}

fn allow(policy: &Snapshot, query: &Query<'_>) -> Result<Allowed, Refusal> {
    let candidates = named(query)?;
    let right = match query.entitlement {
        IDENTITY => identity(policy, query, &candidates)?,
        _ => entitled(policy, query, &candidates)?,
    };
    let grant_until = window(policy, query);
    let mut common = vec![(CappedBy::TtlDefault, Cap::For(policy.ttl().default))];
    let task_ends = [
        query.task_deadline,
        policy.task_deadline(query.task_opened_at),
    ];
    common.extend(
        task_ends
            .into_iter()
            .flatten()
            .map(|at| (CappedBy::TtlTask, Cap::Until(at))),
    );
    common.extend(grant_until.map(|at| (CappedBy::Approval, Cap::Until(at))));
    common.push((CappedBy::Ca, Cap::Until(query.ca_end)));
    let lives = right.gives.iter().map(|give| {
        let mut caps = ceilings(policy, give, right.ttl);
        caps.extend_from_slice(&common);
        effective(query.now, query.requested, &caps).map_err(Refusal::Ttl)
    });
    let lives = lives.collect::<Result<Vec<_>, _>>()?;
    let longest = lives.iter().max_by_key(|life| life.ttl).copied();
    // Policy is refused at load when an entitlement gives nothing.
    let longest = longest.ok_or(Refusal::Unknown)?;
    Ok(right.allowed(lives, longest, grant_until, policy.version_shared()))
}

/// The candidates, or the one of them that the request names.
fn named<'a>(query: &Query<'a>) -> Result<Vec<&'a SpiffeId>, Refusal> {
    if query.candidates.is_empty() {
        return Err(Refusal::NoWorkload);
    }
    let Some(name) = query.subject else {
        return Ok(query.candidates.iter().collect());
    };
    let is_named = |id: &&SpiffeId| id.as_str() == name || id.path() == name;
    let found: Vec<_> = query.candidates.iter().filter(is_named).collect();
    if found.is_empty() {
        Err(Refusal::NotYou)
    } else {
        Ok(found)
    }
}

/// What a subject may have, before time is looked at.
struct Right {
    subject: SpiffeId,
    owner: String,
    purpose: String,
    rule: String,
    gives: Vec<Give>,
    ttl: Option<Ttl>,
}

impl Right {
    fn allowed(
        self,
        lives: Vec<Granted>,
        longest: Granted,
        grant_until: Option<UnixMillis>,
        version: Arc<str>,
    ) -> Allowed {
        Allowed {
            subject: self.subject,
            owner: self.owner,
            purpose: self.purpose,
            rule: self.rule,
            gives: (self.gives.into_iter().zip(lives))
                .map(|(give, life)| Given { give, life })
                .collect(),
            issued_at: longest.issued_at,
            expires_at: longest.expires_at,
            ttl: longest.ttl,
            capped_by: longest.capped_by,
            grant_until,
            policy_version: version,
        }
    }

    /// Its token for `audience`, or its certificate when that is empty.
    fn of_identity(workload: &Workload, audience: &str) -> Self {
        let svid = match audience {
            "" => Give::X509 { dns: Vec::new() },
            audience => Give::Jwt {
                audience: audience.to_owned(),
                claims: serde_json::Map::new(),
                identity: true,
            },
        };
        Self {
            subject: workload.subject.clone(),
            owner: workload.owner.clone(),
            purpose: workload.purpose.clone(),
            rule: workload.identity_place.rule(),
            gives: vec![svid],
            ttl: None,
        }
    }

    fn of_entitlement(entitlement: &Entitlement, subject: &SpiffeId) -> Self {
        Self {
            subject: subject.clone(),
            owner: entitlement.owner.clone(),
            purpose: entitlement.purpose.clone(),
            rule: entitlement.place.rule(),
            gives: entitlement.gives.clone(),
            ttl: entitlement.ttl,
        }
    }
}

fn identity(policy: &Snapshot, query: &Query<'_>, ids: &[&SpiffeId]) -> Result<Right, Refusal> {
    let is_token = !query.item.is_empty();
    if let Some(problem) = audience_problem(query.item).filter(|_| is_token) {
        return Err(Refusal::BadAudience(problem));
    }
    let workloads = ids.iter().filter_map(|id| policy.workload(id));
    let allowed: Vec<_> = workloads
        .filter(|w| w.identity.allows(query.item))
        .collect();
    let workload = only(&allowed, |w| &w.subject).map_err(|some| match some {
        Several::None => Refusal::AudienceNotAllowed,
        Several::Many(which) => Refusal::Ambiguous(which),
    })?;
    Ok(Right::of_identity(workload, query.item))
}

fn entitled(policy: &Snapshot, query: &Query<'_>, ids: &[&SpiffeId]) -> Result<Right, Refusal> {
    let Some(entitlement) = policy.entitlement(query.entitlement) else {
        return Err(Refusal::Unknown);
    };
    let may = |id: &&&SpiffeId| policy.is_entitled(id, query.entitlement);
    let allowed: Vec<&SpiffeId> = ids.iter().filter(may).copied().collect();
    let subject = only(&allowed, |id| id).map_err(|some| match some {
        Several::None => Refusal::NotYours,
        Several::Many(which) => Refusal::Ambiguous(which),
    })?;
    if !query.item.is_empty() {
        return Err(Refusal::NoItems);
    }
    Ok(Right::of_entitlement(entitlement, subject))
}

/// Why there is not exactly one.
enum Several {
    None,
    Many(Vec<SpiffeId>),
}

/// The only one, where the same subject twice counts once.
fn only<'a, T: ?Sized>(
    all: &[&'a T],
    id: impl Fn(&'a T) -> &'a SpiffeId,
) -> Result<&'a T, Several> {
    let Some(first) = all.first().copied() else {
        return Err(Several::None);
    };
    if all.iter().all(|other| id(other) == id(first)) {
        return Ok(first);
    }
    Err(Several::Many(
        all.iter().map(|one| id(one).clone()).collect(),
    ))
}

/// How far renewals may go: the task's end, by its deadline or by policy, and never past
/// the grant that is drawn on.
fn window(policy: &Snapshot, query: &Query<'_>) -> Option<UnixMillis> {
    let ends = [
        query.task_deadline,
        policy.task_deadline(query.task_opened_at),
        query.renewing.and_then(|window| window.until),
    ];
    ends.into_iter().flatten().min()
}

/// The ceilings of one thing that hold whatever the task: by policy and entitlement, in the order in
/// which a tie is named.
pub(crate) fn ceilings(
    policy: &Snapshot,
    give: &Give,
    entitlement: Option<Ttl>,
) -> Vec<(CappedBy, Cap)> {
    let mut caps = vec![(CappedBy::TtlMax, Cap::For(policy.ttl().max))];
    let (kind, ttl) = match give {
        Give::X509 { .. } => (Kind::X509, policy.ttl().x509),
        Give::Postgres { .. } => (Kind::Postgres, policy.ttl().postgres),
        Give::Secret { .. } => (Kind::Secret, policy.ttl().secret),
        // The right to ask is used with a token too, and so obeys the same ceiling.
        Give::Jwt { .. } | Give::Introspect { .. } => (Kind::Jwt, policy.ttl().jwt),
    };
    caps.extend(ttl.map(|ttl| (CappedBy::TtlKind(kind), Cap::For(ttl))));
    caps.extend(entitlement.map(|ttl| (CappedBy::Entitlement, Cap::For(ttl))));
    caps
}

#[cfg(test)]
mod tests;
