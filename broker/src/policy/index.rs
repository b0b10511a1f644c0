//! Finding the workloads of a process without looking at all of them.
//!
//! Each rule is filed once, under the rarest thing it asks for; a process can only match
//! rules filed under something it has. What is found is then checked in full.

use std::collections::HashMap;

use ephor_proto::spiffe::{HostName, HostPattern};

use super::evidence::Evidence;
use super::model::{Run, Workload};

/// A rule: workload, and item of its `runs`.
type Rule = (usize, usize);

/// Rules by the thing they are filed under.
#[derive(Debug, Default)]
pub(super) struct MatchIndex {
    units: HashMap<String, Vec<Rule>>,
    exes: HashMap<String, Vec<Rule>>,
    users: HashMap<String, Vec<Rule>>,
    uids: HashMap<u32, Vec<Rule>>,
    hosts: HashMap<String, Vec<Rule>>,
}

/// How well a process fits a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    No,
    /// All but the hash, which the evidence does not have.
    NeedsHash,
    Yes,
}

impl MatchIndex {
    pub(super) fn new(workloads: &[Workload]) -> Self {
        let everything = Self::file(workloads, &mut |index, run, rule| {
            index.everywhere(run, rule)
        });
        Self::file(workloads, &mut |index, run, rule| {
            index.rarest(&everything, run, rule)
        })
    }

    fn file(workloads: &[Workload], place: &mut dyn FnMut(&mut Self, &Run, Rule)) -> Self {
        let mut index = Self::default();
        for (w, workload) in workloads.iter().enumerate() {
            for (r, run) in workload.runs.iter().enumerate() {
                place(&mut index, run, (w, r));
            }
        }
        index
    }

    /// Under everything it asks for, to see what is rare.
    fn everywhere(&mut self, run: &Run, rule: Rule) {
        for field in fields(run) {
            self.insert(&field, rule);
        }
    }

    /// Under the thing that fewest rules ask for.
    fn rarest(&mut self, everything: &Self, run: &Run, rule: Rule) {
        let rarest = fields(run)
            .into_iter()
            .min_by_key(|field| everything.count(field));
        if let Some(field) = rarest {
            self.insert(&field, rule);
        }
    }

    fn insert(&mut self, field: &Field<'_>, rule: Rule) {
        match field {
            Field::Unit(name) => self.units.entry((*name).to_owned()).or_default().push(rule),
            Field::Exe(path) => self.exes.entry((*path).to_owned()).or_default().push(rule),
            Field::User(name) => self.users.entry((*name).to_owned()).or_default().push(rule),
            Field::Uid(uid) => self.uids.entry(*uid).or_default().push(rule),
            Field::Hosts(names) => {
                for name in *names {
                    self.hosts
                        .entry(name.as_str().to_owned())
                        .or_default()
                        .push(rule);
                }
            }
        }
    }

    fn count(&self, field: &Field<'_>) -> usize {
        let len = |rules: Option<&Vec<Rule>>| rules.map_or(0, Vec::len);
        match field {
            Field::Unit(name) => len(self.units.get(*name)),
            Field::Exe(path) => len(self.exes.get(*path)),
            Field::User(name) => len(self.users.get(*name)),
            Field::Uid(uid) => len(self.uids.get(uid)),
            Field::Hosts(names) => names
                .iter()
                .map(|name| len(self.hosts.get(name.as_str())))
                .max()
                .unwrap_or(0),
        }
    }

    /// Rules that a process could match; each at most once.
    pub(super) fn candidates(
        &self,
        host: &HostName,
        seen: &Evidence,
    ) -> impl Iterator<Item = Rule> {
        let lists = [
            self.units.get(&seen.unit),
            self.exes.get(&seen.exe),
            self.users.get(&seen.user),
            self.uids.get(&seen.uid),
            self.hosts.get(host.as_str()),
        ];
        lists.into_iter().flatten().flatten().copied()
    }
}

/// Something that a rule asks for and a process has exactly one of.
enum Field<'a> {
    Unit(&'a str),
    Exe(&'a str),
    User(&'a str),
    Uid(u32),
    /// Only whole names: a pattern cannot be looked up.
    Hosts(&'a [HostPattern]),
}

fn fields(run: &Run) -> Vec<Field<'_>> {
    let whole_names = |hosts: &[HostPattern]| {
        !hosts.is_empty() && hosts.iter().all(|host| !host.as_str().contains('*'))
    };
    let all = [
        run.unit.as_deref().map(Field::Unit),
        run.exe.as_deref().map(Field::Exe),
        run.user.as_deref().map(Field::User),
        run.uid.map(Field::Uid),
        whole_names(&run.hosts).then_some(Field::Hosts(&run.hosts)),
    ];
    all.into_iter().flatten().collect()
}

/// Whether a rule covers a host; no `hosts` means every host.
pub(super) fn covers(run: &Run, host: &HostName) -> bool {
    run.hosts.is_empty() || run.hosts.iter().any(|pattern| pattern.matches(host))
}

/// Whether a process is what a rule asks for: all that the rule names must hold.
pub(super) fn fit(run: &Run, host: &HostName, seen: &Evidence) -> Fit {
    let user = run.user.as_ref().is_none_or(|user| {
        // In a user namespace of its own, a process chooses what its uid is called.
        *user == seen.user && !seen.foreign_user_namespace
    });
    let uid = run.uid.is_none_or(|uid| uid == seen.uid);
    let unit = run.unit.as_ref().is_none_or(|unit| *unit == seen.unit);
    let exe = run
        .exe
        .as_ref()
        .is_none_or(|exe| *exe == seen.exe && file_is_named(seen));
    if !(user && uid && unit && exe && covers(run, host)) {
        return Fit::No;
    }
    match &run.sha256 {
        None => Fit::Yes,
        Some(_) if !file_is_named(seen) => Fit::No,
        Some(_) if seen.exe_sha256.is_empty() => Fit::NeedsHash,
        Some(wanted) if wanted.as_slice() == seen.exe_sha256 => Fit::Yes,
        Some(_) => Fit::No,
    }
}

/// The path names the file that runs only while that file is there, and only in the mount
/// namespace that policy was written for: elsewhere anyone can put a file at any path.
fn file_is_named(seen: &Evidence) -> bool {
    !seen.exe_deleted && !seen.foreign_mount_namespace
}
