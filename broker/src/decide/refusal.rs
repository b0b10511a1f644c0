//! Refusals in words: what the caller may read, and what only the audit log says.
//!
//! A caller learns nothing of other tenants: an entitlement that exists for others reads
//! exactly as one that does not exist, and only the caller's own ones are proposed.

use ephor_proto::cred::IDENTITY;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::ttl::{CappedBy, TtlError};

use super::{Denied, Query};
use crate::policy::suggest::nearest;
use crate::policy::{Identity, Snapshot};

/// Why not.
pub(super) enum Refusal {
    NoWorkload,
    NotYou,
    Ambiguous(Vec<SpiffeId>),
    BadAudience(&'static str),
    AudienceNotAllowed,
    Unknown,
    NotYours,
    NoItems,
    Ttl(TtlError),
}

/// Most names that one refusal lists.
const MAX_LISTED: usize = 8;

impl Refusal {
    pub(super) fn explain(self, policy: &Snapshot, query: &Query<'_>) -> Denied {
        let message = self.message(policy, query);
        let subject = match query.candidates {
            [only] => Some(only.clone()),
            _ => None,
        };
        let entitlement = policy.entitlement(query.entitlement);
        Denied {
            code: self.code(),
            reason: self
                .reason(policy, query)
                .unwrap_or_else(|| message.clone()),
            message,
            subject,
            rule: match self {
                Self::NotYours | Self::NoItems | Self::Ttl(_) | Self::Ambiguous(_) => {
                    entitlement.map(|e| e.place.rule())
                }
                Self::NoWorkload
                | Self::NotYou
                | Self::BadAudience(_)
                | Self::AudienceNotAllowed
                | Self::Unknown => None,
            },
            policy_version: policy.version_shared(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoWorkload | Self::NotYou => Code::UnknownWorkload,
            Self::Ambiguous(_) => Code::AmbiguousSubject,
            Self::BadAudience(_) | Self::NoItems => Code::InvalidRequest,
            Self::AudienceNotAllowed => Code::AudienceNotAllowed,
            Self::Unknown | Self::NotYours => Code::UnknownEntitlement,
            Self::Ttl(TtlError::RequestedZero) => Code::TtlZero,
            Self::Ttl(TtlError::AlreadyEnded {
                by: CappedBy::TtlTask,
                ..
            }) => Code::TaskEnded,
            Self::Ttl(
                TtlError::AlreadyEnded { .. } | TtlError::ZeroCap(_) | TtlError::Unbounded,
            ) => Code::NoTimeLeft,
        }
    }

    fn message(&self, policy: &Snapshot, query: &Query<'_>) -> String {
        let you = list(query.candidates.iter().map(SpiffeId::path));
        match self {
            Self::NoWorkload => format!(
                "no workload of policy {} runs as this process on this host; \
                 whoami shows what was attested",
                policy.short_version()
            ),
            Self::NotYou => {
                format!(
                    "you are not {}; you are {you}",
                    shown(query.subject.unwrap_or_default())
                )
            }
            Self::Ambiguous(which) => format!(
                "you are {you}, and {} is for {} of them; name one as subject",
                shown(query.entitlement),
                if which.len() == query.candidates.len() {
                    "each"
                } else {
                    "several"
                }
            ),
            Self::BadAudience(problem) => format!("the audience {problem}"),
            Self::AudienceNotAllowed => audience_message(policy, query, &you),
            Self::Unknown | Self::NotYours => entitlement_message(policy, query, &you),
            Self::NoItems => format!(
                "{} gives all it has at once; ask for it without {}",
                query.entitlement,
                shown(query.item)
            ),
            Self::Ttl(problem) => problem.to_string(),
        }
    }

    /// What the audit log says beyond the message.
    fn reason(&self, policy: &Snapshot, query: &Query<'_>) -> Option<String> {
        match self {
            Self::NotYours => {
                let owner = policy
                    .entitlement(query.entitlement)
                    .map(|e| e.owner.as_str());
                let you = list(query.candidates.iter().map(SpiffeId::path));
                Some(format!(
                    "{} of {} does not name {you} in who",
                    query.entitlement,
                    owner.unwrap_or_default()
                ))
            }
            Self::Unknown => Some(format!(
                "the policy has no entitlement {}",
                shown(query.entitlement)
            )),
            Self::NoWorkload
            | Self::NotYou
            | Self::Ambiguous(_)
            | Self::BadAudience(_)
            | Self::AudienceNotAllowed
            | Self::NoItems
            | Self::Ttl(_) => None,
        }
    }
}

/// The same words whether it exists for others or not at all.
fn entitlement_message(policy: &Snapshot, query: &Query<'_>, you: &str) -> String {
    let mut yours: Vec<&str> = Vec::new();
    for id in query.candidates {
        yours.extend(policy.entitlements_of(id).iter().map(|e| e.name.as_str()));
        let identity = policy.workload(id).map(|workload| &workload.identity);
        yours.extend(identity.filter(|i| **i != Identity::Off).map(|_| IDENTITY));
    }
    yours.sort_unstable();
    yours.dedup();
    let name = shown(query.entitlement);
    let guess = nearest(query.entitlement, yours.iter().copied());
    let guess = guess.map(|near| format!(" ({near}?)")).unwrap_or_default();
    let may = match yours.is_empty() {
        true => "nothing".to_owned(),
        false => list(yours.into_iter()),
    };
    format!("{name}{guess} is for others or does not exist; you are {you}, and may have {may}")
}

fn audience_message(policy: &Snapshot, query: &Query<'_>, you: &str) -> String {
    let mut audiences: Vec<&str> = Vec::new();
    for workload in query.candidates.iter().filter_map(|id| policy.workload(id)) {
        match &workload.identity {
            Identity::Audiences(listed) => audiences.extend(listed.iter().map(String::as_str)),
            Identity::AnyAudience | Identity::Off => {}
        }
    }
    if query.item.is_empty() {
        return format!("{you} has no certificate: identity is off");
    }
    if audiences.is_empty() {
        return format!("{you} has no identity tokens");
    }
    audiences.sort_unstable();
    audiences.dedup();
    let guess = nearest(query.item, audiences.iter().copied());
    let guess = guess.map(|near| format!(" ({near}?)")).unwrap_or_default();
    let for_whom = list(audiences.into_iter());
    format!(
        "identity of {you} is for {for_whom}; you asked for {}{guess}",
        shown(query.item)
    )
}

/// `a, b and c`, and how many more.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names
        .iter()
        .take(MAX_LISTED)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown}, {more} more"),
    }
}

/// What the caller typed, short and printable.
fn shown(text: &str) -> String {
    let safe = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text.chars().take(80).map(safe).collect();
    if text.chars().nth(80).is_some() {
        out.push_str("...");
    }
    out
}
