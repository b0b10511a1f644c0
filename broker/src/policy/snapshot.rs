//! A compiled policy: immutable, indexed, and of one version for ever.
//!
//! A decision takes one snapshot and sees nothing else; a newer policy is another snapshot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use ephor_proto::http::admin::PolicyFile;
use ephor_proto::spiffe::{HostName, SpiffeId, TrustDomain};
use ephor_proto::time::UnixMillis;

use super::compile::compile;
use super::error::{LoadErrors, Warning};
use super::evidence::Evidence;
use super::index::{Fit, MatchIndex, covers, fit};
use super::model::{Entitlement, Give, Target, TtlPolicy, Workload};
use super::source::{Source, from_files, read_dir};

/// What `compile` hands over.
pub(super) struct Parts {
    pub(super) trust_domain: TrustDomain,
    pub(super) ttl: TtlPolicy,
    pub(super) workloads: Vec<Workload>,
    pub(super) entitlements: Vec<Entitlement>,
    pub(super) targets: Vec<Target>,
    pub(super) warnings: Vec<Warning>,
}

/// A policy in force, or one that could be.
#[derive(Debug)]
pub struct Snapshot {
    version: Arc<str>,
    trust_domain: TrustDomain,
    ttl: TtlPolicy,
    workloads: Vec<Workload>,
    by_subject: HashMap<SpiffeId, usize>,
    index: MatchIndex,
    entitlements: Vec<Entitlement>,
    by_name: HashMap<String, usize>,
    /// Pairs of a subject and an entitlement of it.
    entitled: HashMap<SpiffeId, HashSet<usize>>,
    introspects: HashMap<SpiffeId, HashSet<String>>,
    /// By name.
    targets: BTreeMap<String, Arc<Target>>,
    warnings: Vec<Warning>,
}

/// The workloads that a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched {
    /// Their ids, each once, in the order of the policy.
    pub subjects: Vec<SpiffeId>,
    /// Some rule would match if the evidence had the executable's SHA-256.
    pub wants_sha256: bool,
}

impl Snapshot {
    pub(super) fn new(version: String, parts: Parts) -> Self {
        let Parts {
            trust_domain,
            ttl,
            workloads,
            entitlements,
            targets,
            warnings,
        } = parts;
        let named = |target: Target| (target.name.clone(), Arc::new(target));
        let targets = targets.into_iter().map(named).collect();
        let index = MatchIndex::new(&workloads);
        let subjects = workloads.iter().enumerate();
        let by_subject = subjects.map(|(at, w)| (w.subject.clone(), at)).collect();
        let names = entitlements.iter().enumerate();
        let by_name = names.map(|(at, e)| (e.name.clone(), at)).collect();
        let mut entitled: HashMap<SpiffeId, HashSet<usize>> = HashMap::new();
        let mut introspects: HashMap<SpiffeId, HashSet<String>> = HashMap::new();
        for (at, entitlement) in entitlements.iter().enumerate() {
            for subject in &entitlement.who {
                entitled.entry(subject.clone()).or_default().insert(at);
                let audiences = introspects.entry(subject.clone()).or_default();
                audiences.extend(entitlement.gives.iter().filter_map(introspected));
            }
        }
        Self {
            version: version.into(),
            trust_domain,
            ttl,
            workloads,
            by_subject,
            index,
            entitlements,
            by_name,
            entitled,
            introspects,
            targets,
            warnings,
        }
    }

    /// Loads the `*.toml` files of a directory.
    ///
    /// # Errors
    /// Everything that is wrong, in every file; nothing is loaded then.
    pub fn load(dir: &Path) -> Result<Self, LoadErrors> {
        compile(&read_dir(dir)?)
    }

    /// Compiles files that are in memory, as pairs of name and text.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_texts(files: &[(&str, &str)]) -> Result<Self, LoadErrors> {
        let sources: Vec<_> = files
            .iter()
            .map(|(name, text)| Source::new(name, (*text).to_owned()))
            .collect();
        compile(&sources)
    }

    /// Compiles files that were sent or kept.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_files(files: Vec<PolicyFile>) -> Result<Self, LoadErrors> {
        compile(&from_files(files)?)
    }

    /// Whether some rule lets a workload run on a host, whatever else it asks for.
    pub fn may_run(&self, workload: &Workload, host: &HostName) -> bool {
        workload.runs.iter().any(|run| covers(run, host))
    }

    /// SHA-256 over the policy's files, in hexadecimal.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn version_shared(&self) -> Arc<str> {
        Arc::clone(&self.version)
    }

    /// The version as people see it: `6b1e`.
    pub fn short_version(&self) -> &str {
        self.version.get(..4).unwrap_or(&self.version)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The TTL policy.
    pub fn ttl(&self) -> &TtlPolicy {
        &self.ttl
    }

    /// When a service's task that began at `opened_at` must end by `[ttl] service`; `None`
    /// when policy sets no end.
    pub fn task_deadline(&self, opened_at: UnixMillis) -> Option<UnixMillis> {
        self.ttl
            .service
            .ttl()
            .map(|ttl| opened_at.saturating_add(ttl))
    }

    /// All workloads, by file and id.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// One workload.
    pub fn workload(&self, subject: &SpiffeId) -> Option<&Workload> {
        self.workloads.get(*self.by_subject.get(subject)?)
    }

    /// All entitlements, by file and name.
    pub fn entitlements(&self) -> &[Entitlement] {
        &self.entitlements
    }

    /// One entitlement; never the built-in `identity`.
    pub fn entitlement(&self, name: &str) -> Option<&Entitlement> {
        self.entitlements.get(*self.by_name.get(name)?)
    }

    /// Whether `who` of an entitlement names a subject.
    pub fn is_entitled(&self, subject: &SpiffeId, entitlement: &str) -> bool {
        let at = self.by_name.get(entitlement);
        at.is_some_and(|at| {
            self.entitled
                .get(subject)
                .is_some_and(|has| has.contains(at))
        })
    }

    /// What a subject may ask for beside `identity`, by name.
    pub fn entitlements_of(&self, subject: &SpiffeId) -> Vec<&Entitlement> {
        let has = self.entitled.get(subject).into_iter().flatten();
        let mut found: Vec<_> = has.filter_map(|at| self.entitlements.get(*at)).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Whether a subject may ask about tokens of an audience (RFC 7662 §2.1).
    pub fn introspects(&self, subject: &SpiffeId, audience: &str) -> bool {
        self.introspects
            .get(subject)
            .is_some_and(|audiences| audiences.contains(audience))
    }

    /// The workloads that a process on `host` is. The host comes from the agent's
    /// certificate, never from the evidence.
    pub fn match_workloads(&self, host: &str, evidence: &Evidence) -> Matched {
        let mut matched = Matched::default();
        let Ok(host) = host.parse::<HostName>() else {
            return matched;
        };
        let mut found = Vec::new();
        for (w, r) in self.index.candidates(&host, evidence) {
            let Some(run) = self
                .workloads
                .get(w)
                .and_then(|workload| workload.runs.get(r))
            else {
                continue;
            };
            match fit(run, &host, evidence) {
                Fit::Yes => found.push(w),
                Fit::NeedsHash => matched.wants_sha256 = true,
                Fit::No => {}
            }
        }
        found.sort_unstable();
        found.dedup();
        let subjects = found.into_iter().filter_map(|w| self.workloads.get(w));
        matched.subjects = subjects.map(|workload| workload.subject.clone()).collect();
        matched
    }

    /// How many rules a match looks at, for tests of the index.
    #[cfg(test)]
    pub(super) fn candidates(&self, host: &str, evidence: &Evidence) -> usize {
        host.parse()
            .map_or(0, |host| self.index.candidates(&host, evidence).count())
    }

    /// One target.
    pub fn target(&self, name: &str) -> Option<&Arc<Target>> {
        self.targets.get(name)
    }

    /// Says that there is none of this name, and which there are.
    pub fn no_target(&self, name: &str) -> String {
        let known: Vec<&str> = self.targets.keys().map(AsRef::as_ref).collect();
        let known = match known.as_slice() {
            [] => "none".to_owned(),
            known => known.join(", "),
        };
        format!("the policy has no [target.{name}]; it has {known}")
    }

    /// All targets, by name.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.targets.values()
    }

    /// Things to look at, all of them legal.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

fn introspected(give: &Give) -> Option<String> {
    match give {
        Give::Introspect { audience } => Some(audience.clone()),
        Give::Jwt { .. } | Give::X509 { .. } | Give::Postgres { .. } | Give::Secret { .. } => None,
    }
}
