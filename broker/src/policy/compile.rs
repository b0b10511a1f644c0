//! From the files of a directory to one snapshot: what only holds, or fails, across files.

use std::collections::HashMap;

use ephor_proto::postgres::Address;
use ephor_proto::spiffe::{SpiffeId, TrustDomain};
use ephor_proto::ttl::Ttl;
use toml::de::DeTable;

use super::error::{LoadError, LoadErrors, Place, Warning};
use super::limits::MAX_SUGGESTIONS;
use super::model::{Entitlement, Give, LoginBy, Target, Tls, TtlPolicy, Workload};
use super::reader::{Reader, Section, guess, quoted, shown};
use super::snapshot::{Parts, Snapshot};
use super::source::{Source, version};
use super::tables::{Draft, EntitlementDraft, Given, TtlDraft, WorkloadDraft, file};
use super::target::{Refers, TargetDraft};

/// Compiles all files, or says everything that is wrong with them.
pub(super) fn compile(sources: &[Source]) -> Result<Snapshot, LoadErrors> {
    let mut compiler = Compiler::default();
    let mut drafts = Vec::with_capacity(sources.len());
    for source in sources {
        drafts.extend(compiler.read(source));
    }
    let whole = drafts.len() == sources.len();
    let parts = compiler.link(drafts, whole);
    match parts {
        Some(parts) if compiler.errors.is_empty() => Ok(Snapshot::new(version(sources), parts)),
        Some(_) | None => Err(LoadErrors::new(compiler.errors)),
    }
}

#[derive(Default)]
struct Compiler {
    errors: Vec<LoadError>,
    suggestions: usize,
}

impl Compiler {
    fn refuse(&mut self, place: &Place, what: String, hint: impl Into<String>) {
        self.errors.push(LoadError {
            place: place.clone(),
            what,
            hint: hint.into(),
        });
    }

    /// One file; `None` when it is not TOML, since then tables of it may be missing.
    fn read(&mut self, source: &Source) -> Option<Draft> {
        let (table, problems) = DeTable::parse_recoverable(&source.text);
        let mut reader = Reader::new(source);
        for problem in &problems {
            let at = problem.span().map_or(0, |span| span.start);
            let message = problem.message().replace('\n', ", ");
            reader.refuse(at, format!("not TOML: {message}"), "");
        }
        let draft = problems.is_empty().then(|| {
            let root = Section {
                title: "a policy file".into(),
                at: 0,
                table: table.get_ref(),
            };
            file(&mut reader, &root)
        });
        self.errors.extend(reader.into_errors());
        draft
    }

    fn link(&mut self, drafts: Vec<Draft>, whole: bool) -> Option<Parts> {
        let (mut domains, mut ttls) = (Vec::new(), Vec::new());
        let (mut workloads, mut entitlements) = (Vec::new(), Vec::new());
        let mut targets = Vec::new();
        for draft in drafts {
            domains.extend(draft.trust_domain);
            ttls.extend(draft.ttl);
            workloads.extend(draft.workloads);
            entitlements.extend(draft.entitlements);
            targets.extend(draft.targets);
        }
        let trust_domain = self.trust_domain(domains, whole);
        let ttl = self.ttl(ttls, whole);
        let in_clear = targets.iter().filter_map(in_clear);
        let warnings = workloads
            .iter()
            .flat_map(warnings)
            .chain(in_clear)
            .collect();
        // Ids are checked even under a missing trust domain, with a stand-in.
        let under = trust_domain
            .clone()
            .or_else(|| TrustDomain::new("unnamed").ok())?;
        let workloads = self.workloads(workloads, &under);
        // What is only half right is reported already, and it does exist.
        let named: Vec<String> = targets.iter().map(|draft| draft.name.clone()).collect();
        let targets = self.targets(targets);
        let known = Known {
            workloads: &workloads,
            targets: &targets,
            target_names: &named,
            whole,
            max: ttl.as_ref().map(|(place, t)| (place, t.max)),
        };
        let entitlements = self.entitlements(entitlements, &known);
        let ttl = ttl.map(|(_, ttl)| ttl);
        Some(Parts {
            trust_domain: trust_domain?,
            ttl: ttl?,
            workloads,
            entitlements,
            targets,
            warnings,
        })
    }

    fn trust_domain(&mut self, found: Vec<(Place, String)>, whole: bool) -> Option<TrustDomain> {
        let mut found = found.into_iter();
        let Some((place, name)) = found.next() else {
            self.missing(
                whole,
                "trust_domain",
                "Add trust_domain = \"prod.example\" to one file.",
            );
            return None;
        };
        for (again, _) in found {
            self.refuse(
                &again,
                format!("trust_domain is already set in {place}"),
                "Keep one.",
            );
        }
        TrustDomain::new(&name)
            .map_err(|problem| self.refuse(&place, format!("trust_domain: {problem}"), ""))
            .ok()
    }

    fn missing(&mut self, whole: bool, what: &str, hint: &str) {
        // It may be in a file that could not be read.
        if whole {
            self.refuse(
                &Place::whole("*.toml"),
                format!("the policy has no {what}"),
                hint,
            );
        }
    }

    fn ttl(&mut self, found: Vec<TtlDraft>, whole: bool) -> Option<(Place, TtlPolicy)> {
        let mut found = found.into_iter();
        let Some(draft) = found.next() else {
            self.missing(
                whole,
                "[ttl]",
                "Add [ttl] with default = \"15m\" and max = \"1h\".",
            );
            return None;
        };
        for again in found {
            self.refuse(
                &again.place,
                format!("[ttl] is already in {}", draft.place),
                "Keep one.",
            );
        }
        let ((default_place, default), (max_place, max)) = (draft.default?, draft.max?);
        self.within_max("default", &default_place, default, (&max_place, max));
        if let Some((place, jwt)) = &draft.jwt {
            self.within_max("jwt", place, *jwt, (&max_place, max));
        }
        if let Some((place, x509)) = &draft.x509 {
            self.within_max("x509", place, *x509, (&max_place, max));
        }
        if let Some((place, postgres)) = &draft.postgres {
            self.within_max("postgres", place, *postgres, (&max_place, max));
        }
        if let Some((place, secret)) = &draft.secret {
            self.within_max("secret", place, *secret, (&max_place, max));
        }
        let secret = draft.secret.map(|(_, ttl)| ttl);
        let postgres = draft.postgres.map(|(_, ttl)| ttl);
        let jwt = draft.jwt.map(|(_, ttl)| ttl);
        let x509 = draft.x509.map(|(_, ttl)| ttl);
        let policy = TtlPolicy {
            default,
            max,
            task: draft.task,
            service: draft.service,
            jwt,
            x509,
            postgres,
            secret,
        };
        Some((max_place, policy))
    }

    fn within_max(&mut self, name: &str, place: &Place, ttl: Ttl, (max_place, max): (&Place, Ttl)) {
        if ttl > max {
            let what = format!("{name} = {ttl} is above [ttl] max = {max} ({max_place})");
            self.refuse(place, what, format!("Write at most {max}, or raise max."));
        }
    }

    fn workloads(&mut self, drafts: Vec<WorkloadDraft>, under: &TrustDomain) -> Vec<Workload> {
        let mut first: HashMap<String, Place> = HashMap::new();
        let mut workloads = Vec::with_capacity(drafts.len());
        for draft in drafts {
            if let Some(place) = first.get(&draft.path) {
                let what = format!("[workload.{}] is already in {place}", quoted(&draft.path));
                self.refuse(&draft.place, what, "Keep one of them.");
                continue;
            }
            first.insert(draft.path.clone(), draft.place.clone());
            workloads.extend(self.workload(draft, under));
        }
        workloads
    }

    fn workload(&mut self, draft: WorkloadDraft, under: &TrustDomain) -> Option<Workload> {
        let subject = match SpiffeId::new(under, &draft.path) {
            Ok(subject) => subject,
            Err(problem) => {
                let problem = match draft.path.as_str() {
                    "" => "the path is empty".to_owned(),
                    _ => problem.problem.to_string(),
                };
                let what = format!("workload {}: {problem}", shown(&draft.path));
                self.refuse(
                    &draft.place,
                    what,
                    "Write a path such as [workload.\"orders/web\"].",
                );
                return None;
            }
        };
        if subject.is_reserved() {
            let first = subject.segments().next().unwrap_or_default();
            let what = format!("workload {}: {first} is reserved", shown(&draft.path));
            let hint =
                "agent, ci, person and broker are given by Ephor; choose another first segment.";
            self.refuse(&draft.place, what, hint);
        }
        Some(Workload {
            purpose: draft
                .purpose
                .unwrap_or_else(|| format!("Identity of {}", draft.path)),
            subject,
            owner: draft.owner.unwrap_or_default(),
            deputy: draft.deputy,
            identity: draft.identity,
            runs: draft.runs.into_iter().map(|(_, run)| run).collect(),
            place: draft.place,
            identity_place: draft.identity_place,
        })
    }

    fn entitlements(
        &mut self,
        drafts: Vec<EntitlementDraft>,
        known: &Known<'_>,
    ) -> Vec<Entitlement> {
        let by_path: HashMap<&str, &SpiffeId> = known
            .workloads
            .iter()
            .map(|w| (w.subject.path(), &w.subject))
            .collect();
        let mut first: HashMap<String, Place> = HashMap::new();
        let mut entitlements = Vec::with_capacity(drafts.len());
        for draft in drafts {
            if let Some(place) = first.get(&draft.name) {
                let what = format!(
                    "[entitlement.{}] is already in {place}",
                    quoted(&draft.name)
                );
                self.refuse(&draft.place, what, "Keep one of them.");
                continue;
            }
            first.insert(draft.name.clone(), draft.place.clone());
            if let (Some((place, ttl)), Some(max)) = (&draft.ttl, known.max) {
                self.within_max(&format!("ttl of {}", draft.name), place, *ttl, max);
            }
            entitlements.push(Entitlement {
                who: self.who(&draft.who, &by_path, known),
                name: draft.name,
                owner: draft.owner.unwrap_or_default(),
                purpose: draft.purpose.unwrap_or_default(),
                gives: self.gives(draft.gives, known),
                ttl: draft.ttl.map(|(_, ttl)| ttl),
                place: draft.place,
            });
        }
        entitlements
    }

    fn who(
        &mut self,
        who: &[(Place, String)],
        by_path: &HashMap<&str, &SpiffeId>,
        known: &Known<'_>,
    ) -> Vec<SpiffeId> {
        let mut subjects = Vec::with_capacity(who.len());
        for (place, path) in who {
            match by_path.get(path.as_str()) {
                Some(subject) => subjects.push(SpiffeId::clone(subject)),
                None if known.whole => {
                    let paths = known.workloads.iter().map(|known| known.subject.path());
                    let guess = self.guess(path, paths);
                    let hint = format!("Add [workload.{}], or correct it.", quoted(path));
                    self.refuse(
                        place,
                        format!("{} does not exist{guess}", shown(path)),
                        hint,
                    );
                }
                // It may be in a file that could not be read.
                None => {}
            }
        }
        subjects
    }

    fn targets(&mut self, drafts: Vec<TargetDraft>) -> Vec<Target> {
        let mut first: HashMap<String, Place> = HashMap::new();
        let mut targets = Vec::with_capacity(drafts.len());
        for draft in drafts {
            if let Some(place) = first.get(&draft.name) {
                let what = format!("[target.{}] is already in {place}", quoted(&draft.name));
                self.refuse(&draft.place, what, "Keep one of them.");
                continue;
            }
            first.insert(draft.name.clone(), draft.place.clone());
            targets.extend(draft.postgres.map(|postgres| Target {
                name: draft.name,
                owner: draft.owner.unwrap_or_default(),
                postgres,
                rotate: draft.rotate,
                place: draft.place,
            }));
        }
        targets
    }

    fn gives(&mut self, drafts: Vec<Given>, known: &Known<'_>) -> Vec<Give> {
        let mut gives = Vec::with_capacity(drafts.len());
        for Given { mut give, refers } in drafts {
            if let Some(refers) = refers {
                self.login(&mut give, &refers, known);
            }
            gives.push(give);
        }
        gives
    }

    /// A login's target is there, and its database is one of the target's.
    fn login(&mut self, give: &mut Give, refers: &Refers, known: &Known<'_>) {
        let (target, database, roles, by_certificate) = match give {
            Give::Postgres {
                target,
                database,
                roles,
                login,
                ..
            } => {
                let by_certificate = *login == LoginBy::Certificate;
                (target, database, roles.as_slice(), by_certificate)
            }
            Give::Secret {
                target,
                database,
                role,
            } => (target, database, std::slice::from_ref(role), false),
            Give::Jwt { .. } | Give::X509 { .. } | Give::Introspect { .. } => return,
        };
        let Some(found) = known.targets.iter().find(|known| known.name == *target) else {
            let named = known.target_names.contains(target);
            if known.whole && !named {
                let names = known.target_names.iter().map(String::as_str);
                let guess = self.guess(target, names);
                let what = format!("target {} does not exist{guess}", shown(target));
                let hint = format!("Add [target.{}], or correct it.", quoted(target));
                self.refuse(&refers.target, what, hint);
            }
            return;
        };
        let server = &found.postgres;
        match &refers.database {
            None => database.clone_from(&server.database),
            Some(place) if !server.databases.contains(database) => {
                let guess = self.guess(database, server.databases.iter().map(String::as_str));
                let what = format!(
                    "database {} is none of target {}{guess}",
                    shown(database),
                    found.name
                );
                let hint = "What a login leaves behind is removed in the target's databases only; list it there.";
                self.refuse(place, what, hint);
            }
            Some(_) => {}
        }
        let by_tls = server.tls == Tls::VerifyFull && matches!(server.address, Address::Tcp { .. });
        if by_certificate && !by_tls {
            let what = format!(
                "login = \"certificate\" at target {}, which is reached without TLS",
                found.name
            );
            let hint = "A client certificate is shown in TLS only; name the server's host in url, with tls = \"verify-full\".";
            self.refuse(&refers.target, what, hint);
        }
        if roles.contains(&server.user) {
            let what = format!("role {} is the broker's own login", shown(&server.user));
            let hint = "Name a group role of your own, made WITHOUT LOGIN.";
            self.refuse(&refers.target, what, hint);
        }
    }

    fn guess<'a>(&mut self, wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
        self.suggestions += 1;
        if self.suggestions > MAX_SUGGESTIONS {
            return String::new();
        }
        guess(wrong, names)
    }
}

/// What entitlements are checked against.
struct Known<'a> {
    workloads: &'a [Workload],
    targets: &'a [Target],
    /// Those that are wrong in themselves, too.
    target_names: &'a [String],
    /// Every file could be read.
    whole: bool,
    max: Option<(&'a Place, Ttl)>,
}

/// A rule that names a file but not who runs it.
fn warnings(workload: &WorkloadDraft) -> Vec<Warning> {
    let open = |run: &super::model::Run| {
        run.exe.is_some() && run.user.is_none() && run.uid.is_none() && run.unit.is_none()
    };
    let open_runs = workload.runs.iter().filter(|(_, run)| open(run));
    open_runs
        .map(|(place, _)| {
            Warning(LoadError {
                place: place.clone(),
                what: format!("any user of the host can be {}", shown(&workload.path)),
                hint: "Whoever may run a program controls it; add user, uid or systemd.".into(),
            })
        })
        .collect()
}

/// A password goes to that server in clear, and so does all that is read there.
fn in_clear(target: &TargetDraft) -> Option<Warning> {
    let place = target.clear.clone()?;
    Some(Warning(LoadError {
        place,
        what: format!(
            "target {} is spoken to over the network without TLS",
            target.name
        ),
        hint: "Whoever is on the way can read and take over; remove tls = \"off\".".into(),
    }))
}
