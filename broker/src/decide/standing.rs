//! Whether what was allowed once may stay, under another policy.
//!
//! The same rules as for a request, asked about something that is out. A newer policy may take it
//! away; nothing here can give more. What an agent attested of the process is not kept, so of
//! `runs` only the host is judged; the rest is at the next request or renewal.

use std::fmt;

use ephor_proto::cred::IDENTITY;
use ephor_proto::spiffe::{HostName, SpiffeId};
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::{Cap, CappedBy, Ttl};

use super::{Right, ceilings};
use crate::kind::is_given;
use crate::ledger::CredentialRow;
use crate::policy::{Snapshot, Workload};

/// A credential that is out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held<'a> {
    /// Its row.
    pub(crate) row: &'a CredentialRow,
    /// When its task opened; `None` when that is not known, and then no deadline is judged.
    pub(crate) task_opened_at: Option<UnixMillis>,
}

/// Why it may not stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fallen {
    /// The subject is in the policy no more.
    NoWorkload(String),
    /// No rule lets it run on that host.
    NotOnHost { subject: String, host: String },
    /// There is no such entitlement any more.
    NoEntitlement(String),
    /// Its `who` does not name the subject any more.
    NotEntitled {
        entitlement: String,
        subject: String,
    },
    /// It does not give exactly this any more.
    NotGiven { entitlement: String, scope: String },
    /// A ceiling is lower than the life it has.
    TooLong { cap: CappedBy, most: Ttl },
    /// Its task may not go on for so long.
    TaskOver,
}

impl Fallen {
    /// Whether the task itself has no place any more, and not only this credential.
    pub(crate) fn ends_task(&self) -> bool {
        match self {
            Self::NoWorkload(_) | Self::NotOnHost { .. } => true,
            Self::NoEntitlement(_)
            | Self::NotEntitled { .. }
            | Self::NotGiven { .. }
            | Self::TooLong { .. }
            | Self::TaskOver => false,
        }
    }
}

impl fmt::Display for Fallen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWorkload(subject) => write!(f, "{subject} is no workload any more"),
            Self::NotOnHost { subject, host } => {
                write!(f, "{subject} may not run on {host} any more")
            }
            Self::NoEntitlement(name) => write!(f, "{name} does not exist any more"),
            Self::NotEntitled {
                entitlement,
                subject,
            } => {
                write!(f, "{entitlement} does not name {subject} any more")
            }
            // An identity's certificate is for nobody in particular.
            Self::NotGiven { entitlement, scope } if scope.is_empty() => {
                write!(f, "{entitlement} does not give exactly this any more")
            }
            Self::NotGiven { entitlement, scope } => {
                write!(
                    f,
                    "{entitlement} does not give exactly this for {scope} any more"
                )
            }
            Self::TooLong { cap, most } => write!(f, "{cap} allows {most} now"),
            Self::TaskOver => f.write_str("its task may not last so long any more"),
        }
    }
}

/// Whether a policy still allows a credential as it is.
pub(crate) fn stands(policy: &Snapshot, held: &Held<'_>) -> Result<(), Fallen> {
    let row = held.row;
    let path = || row.subject.path().to_owned();
    let workload = policy
        .workload(&row.subject)
        .ok_or_else(|| Fallen::NoWorkload(path()))?;
    let host: Option<HostName> = row.host.parse().ok();
    if !host.is_some_and(|host| policy.may_run(workload, &host)) {
        let (subject, host) = (path(), row.host.clone());
        return Err(Fallen::NotOnHost { subject, host });
    }
    let right = right(policy, workload, (&row.entitlement, &row.item))?;
    let Some(give) = right.gives.iter().find(|give| is_given(give, row)) else {
        let (entitlement, scope) = (row.entitlement.clone(), row.item.clone());
        return Err(Fallen::NotGiven { entitlement, scope });
    };
    for (cap, most) in ceilings(policy, give, right.ttl) {
        if let Cap::For(most) = most
            && row.expires_at > row.issued_at.saturating_add(most)
        {
            return Err(Fallen::TooLong { cap, most });
        }
    }
    let deadline = held.task_opened_at.and_then(|at| policy.task_deadline(at));
    match deadline {
        Some(deadline) if row.expires_at > deadline => Err(Fallen::TaskOver),
        Some(_) | None => Ok(()),
    }
}

/// How long a credential of this holder, host, entitlement and item may live under `new`, where
/// nothing else of the right to it differs from `old`. `None`: something does, and only
/// [`stands`] can tell. Asked once for many credentials, so that most need no closer look.
pub(crate) fn unchanged(
    (old, new): (&Snapshot, &Snapshot),
    subject: &SpiffeId,
    host: &str,
    asked: (&str, &str),
) -> Option<Ttl> {
    let (before, after) = (old.workload(subject)?, new.workload(subject)?);
    if !new.may_run(after, &host.parse().ok()?) {
        return None;
    }
    let had = right(old, before, asked).ok()?;
    let has = right(new, after, asked).ok()?;
    if had.gives != has.gives {
        return None;
    }
    // The lowest of all kinds: what lives longer by its own kind's ceiling gets the closer look.
    let gives = has.gives.iter();
    let caps = gives.flat_map(|give| ceilings(new, give, has.ttl));
    let most = caps.filter_map(|(_, cap)| match cap {
        Cap::For(most) => Some(most),
        Cap::Until(_) => None,
    });
    most.min()
}

fn right(
    policy: &Snapshot,
    workload: &Workload,
    (name, item): (&str, &str),
) -> Result<Right, Fallen> {
    if name == IDENTITY {
        if workload.identity.allows(item) {
            return Ok(Right::of_identity(workload, item));
        }
        let (entitlement, scope) = (name.to_owned(), item.to_owned());
        return Err(Fallen::NotGiven { entitlement, scope });
    }
    let Some(entitlement) = policy.entitlement(name) else {
        return Err(Fallen::NoEntitlement(name.to_owned()));
    };
    if !policy.is_entitled(&workload.subject, name) {
        let (entitlement, subject) = (name.to_owned(), workload.subject.path().to_owned());
        return Err(Fallen::NotEntitled {
            entitlement,
            subject,
        });
    }
    Ok(Right::of_entitlement(entitlement, &workload.subject))
}
