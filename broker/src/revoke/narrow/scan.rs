//! One look at the store: what is out and not allowed. It changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};

use ephor_proto::id::{CredentialId, GrantId, TaskId};
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Ttl;

use super::Narrowed;
use crate::decide::{Fallen, Held, stands, unchanged};
use crate::ledger::{Ledger, LiveCredential, ReadError};
use crate::policy::Snapshot;

/// What is out and not allowed, as one look at the store found it.
#[derive(Debug, Default)]
pub(crate) struct Outdated {
    /// Tasks to end, and why.
    pub(super) tasks: BTreeMap<TaskId, String>,
    /// The others by their grant, the longest living first.
    pub(super) grants: Vec<OutdatedGrant>,
    /// Rows of credentials that cannot be read: whether they stand is not known.
    pub(super) left_out: u64,
    credentials: u64,
}

#[derive(Debug)]
pub(super) struct OutdatedGrant {
    pub(super) id: GrantId,
    task: TaskId,
    pub(super) opened_at: Option<UnixMillis>,
    pub(super) credentials: Vec<CredentialId>,
    /// Another credential of it may stay.
    pub(super) goes_on: bool,
    until: UnixMillis,
}

/// As little of a row as is kept of each.
#[derive(Debug, Clone, Copy)]
struct Out {
    id: CredentialId,
    task: TaskId,
    grant: GrantId,
    until: UnixMillis,
}

impl Outdated {
    /// Their number.
    pub(crate) fn sum(&self) -> Narrowed {
        Narrowed {
            credentials: self.credentials,
            tasks: self.tasks.len() as u64,
        }
    }
}

/// What needs no closer look, remembered by holder, host, entitlement and item.
struct Unchanged<'p> {
    policies: Option<(&'p Snapshot, &'p Snapshot)>,
    known: HashMap<String, Option<Ttl>>,
    key: String,
}

impl<'p> Unchanged<'p> {
    fn new(policy: &'p Snapshot, after: Option<&'p Snapshot>) -> Self {
        Self {
            policies: after.map(|old| (old, policy)),
            known: HashMap::new(),
            key: String::new(),
        }
    }

    /// Whether this one surely stands.
    fn stands(&mut self, one: &LiveCredential<'_>, deadline: Option<UnixMillis>) -> bool {
        let Some(policies) = self.policies else {
            return false;
        };
        self.key.clear();
        for part in [one.subject, one.host, one.entitlement, one.item] {
            self.key.push_str(part);
            // In none of them.
            self.key.push('\n');
        }
        let most = match self.known.get(&self.key) {
            Some(most) => *most,
            None => {
                let asked = (one.entitlement, one.item);
                let subject: Option<SpiffeId> = one.subject.parse().ok();
                let most =
                    subject.and_then(|subject| unchanged(policies, &subject, one.host, asked));
                self.known.insert(self.key.clone(), most);
                most
            }
        };
        most.is_some_and(|most| one.expires_at <= one.issued_at.saturating_add(most))
            && deadline.is_none_or(|deadline| one.expires_at <= deadline)
    }
}

/// What `policy` no longer allows; a quick look where `after` is the one before it.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn scan(
    ledger: &Ledger,
    policy: &Snapshot,
    after: Option<&Snapshot>,
) -> Result<Outdated, ReadError> {
    let reader = ledger.reader();
    let mut unchanged = Unchanged::new(policy, after);
    let mut opened = HashMap::new();
    if policy.ttl().service.ttl().is_some() {
        let tasks = reader.unclosed_tasks()?;
        opened.extend(tasks.into_iter().map(|task| (task.id, task.opened_at)));
    }
    let mut goes_on = HashSet::new();
    let mut grants: HashMap<GrantId, OutdatedGrant> = HashMap::new();
    let mut homeless: BTreeMap<TaskId, Vec<(Out, SpiffeId, Fallen)>> = BTreeMap::new();
    let mut add = |row: Out, opened_at| {
        let grant = grants.entry(row.grant).or_insert_with(|| OutdatedGrant {
            id: row.grant,
            task: row.task,
            opened_at,
            credentials: Vec::new(),
            goes_on: false,
            until: row.until,
        });
        grant.until = grant.until.max(row.until);
        grant.credentials.push(row.id);
    };
    let mut credentials = 0;
    let (mut left_out, mut failed) = (0, None);
    reader.live_credentials(|one| {
        let opened_at: Option<UnixMillis> = opened.get(&one.task).copied();
        let deadline = opened_at.and_then(|at| policy.task_deadline(at));
        if unchanged.stands(&one, deadline) {
            goes_on.insert(one.grant);
            return;
        }
        let row = match reader.credential(one.id) {
            Ok(Some(row)) => row,
            Ok(None) => return,
            // One such row must not keep the others from being revoked.
            Err(ReadError::Unreadable { table, reason }) => {
                tracing::error!(credential = %one.id, table, reason, "left out of what the policy is held against; it is set aside at the next start");
                left_out += 1;
                // Its grant ends with it then, or with its task.
                goes_on.insert(one.grant);
                return;
            }
            Err(error) => {
                failed = Some(error);
                return;
            }
        };
        let held = Held {
            row: &row,
            task_opened_at: opened_at,
        };
        match stands(policy, &held) {
            Ok(()) => {
                goes_on.insert(row.grant);
            }
            Err(why) => {
                credentials += 1;
                let out = Out {
                    id: row.id,
                    task: row.task,
                    grant: row.grant,
                    until: row.expires_at,
                };
                if why.ends_task() {
                    let of_task = homeless.entry(row.task).or_default();
                    of_task.push((out, row.subject, why));
                } else {
                    add(out, opened_at);
                }
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut tasks = BTreeMap::new();
    for (id, rows) in homeless {
        let task = readable(reader.task(id))?;
        let own = task.and_then(|task| rows.iter().find(|(_, of, _)| *of == task.subject));
        match own {
            Some((_, _, why)) => drop(tasks.insert(id, why.to_string())),
            // A process that is several workloads, and only another of them is gone; or its task's
            // row cannot be read.
            None => {
                for (out, ..) in rows {
                    add(out, opened.get(&id).copied());
                }
            }
        }
    }
    let mut grants: Vec<_> = grants
        .into_values()
        .filter(|grant| !tasks.contains_key(&grant.task))
        .collect();
    for grant in &mut grants {
        grant.goes_on = goes_on.contains(&grant.id);
    }
    grants.sort_by_key(|grant| std::cmp::Reverse(grant.until));
    Ok(Outdated {
        tasks,
        grants,
        left_out,
        credentials,
    })
}

/// A row that cannot be read counts as absent: it is set aside at the next start, and the others are
/// not to wait for that.
pub(super) fn readable<T>(read: Result<Option<T>, ReadError>) -> Result<Option<T>, ReadError> {
    match read {
        Err(error @ ReadError::Unreadable { .. }) => {
            tracing::error!(%error, "left out; it is set aside at the next start");
            Ok(None)
        }
        read => read,
    }
}
