//! What is different between two policies, in words: per entitlement, workload and subject.
//!
//! Told from what they mean, not from their text: a moved line or a comment is no difference.
//! `narrowed` takes something away that somebody could have, `widened` gives something more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ephor_proto::http::admin::PolicyChange;
use ephor_proto::ttl::{Limit, Ttl};

use super::explain::in_words;
use super::model::{Entitlement, Give, Identity, PostgresTarget, Target, Tls, TtlPolicy, Workload};
use super::snapshot::Snapshot;

/// How a change goes for whoever is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Added,
    Removed,
    Narrowed,
    Widened,
    Changed,
}

impl Effect {
    fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Narrowed => "narrowed",
            Self::Widened => "widened",
            Self::Changed => "changed",
        }
    }
}

impl Snapshot {
    /// What is different in this policy from an earlier one, in the order ttl, workloads,
    /// entitlements, targets. Empty: they mean the same.
    pub fn changes_from(&self, old: &Self) -> Vec<PolicyChange> {
        let mut told = Told::default();
        if self.trust_domain() != old.trust_domain() {
            let detail = format!("{} to {}", old.trust_domain(), self.trust_domain());
            told.tell(Effect::Changed, "trust_domain", None, detail);
        }
        told.ttl(old.ttl(), self.ttl());
        let (before, after) = (by_path(old.workloads()), by_path(self.workloads()));
        for path in keys(&before, &after) {
            told.workload(path, before.get(path).copied(), after.get(path).copied());
        }
        let (before, after) = (by_name(old.entitlements()), by_name(self.entitlements()));
        for name in keys(&before, &after) {
            told.entitlement(name, before.get(name).copied(), after.get(name).copied());
        }
        let by_name = |policy: &'_ Self| -> BTreeMap<String, Arc<Target>> {
            (policy
                .targets()
                .map(|target| (target.name.clone(), Arc::clone(target))))
            .collect()
        };
        let (before, after) = (by_name(old), by_name(self));
        for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            told.target(
                name,
                before.get(name).map(|t| &**t),
                after.get(name).map(|t| &**t),
            );
        }
        told.changes
    }
}

fn by_path(all: &[Workload]) -> BTreeMap<&str, &Workload> {
    all.iter().map(|w| (w.subject.path(), w)).collect()
}

fn by_name(all: &[Entitlement]) -> BTreeMap<&str, &Entitlement> {
    all.iter().map(|e| (e.name.as_str(), e)).collect()
}

fn keys<'a, T>(one: &BTreeMap<&'a str, T>, other: &BTreeMap<&'a str, T>) -> BTreeSet<&'a str> {
    one.keys().chain(other.keys()).copied().collect()
}

#[derive(Default)]
struct Told {
    changes: Vec<PolicyChange>,
}

impl Told {
    fn tell(&mut self, effect: Effect, what: &str, subject: Option<&str>, detail: String) {
        self.changes.push(PolicyChange {
            effect: effect.as_str().to_owned(),
            what: what.to_owned(),
            subject: subject.map(str::to_owned),
            detail,
        });
    }

    fn ttl(&mut self, old: &TtlPolicy, new: &TtlPolicy) {
        let kind = |ttl: Option<Ttl>| ttl.map_or(Limit::None, Limit::Within);
        for (name, old, new) in [
            (
                "default",
                Limit::Within(old.default),
                Limit::Within(new.default),
            ),
            ("max", Limit::Within(old.max), Limit::Within(new.max)),
            ("task", old.task, new.task),
            ("service", old.service, new.service),
            ("kind.jwt", kind(old.jwt), kind(new.jwt)),
            ("kind.x509", kind(old.x509), kind(new.x509)),
            ("kind.postgres", kind(old.postgres), kind(new.postgres)),
            ("kind.secret", kind(old.secret), kind(new.secret)),
        ] {
            self.ceiling("ttl", None, name, old, new);
        }
    }

    fn ceiling(&mut self, what: &str, subject: Option<&str>, name: &str, old: Limit, new: Limit) {
        if old == new {
            return;
        }
        let seconds = |limit: Limit| limit.ttl().map_or(u64::MAX, Ttl::as_seconds);
        let effect = if seconds(new) < seconds(old) {
            Effect::Narrowed
        } else {
            Effect::Widened
        };
        self.tell(effect, what, subject, format!("{name} {old} to {new}"));
    }

    fn workload(&mut self, path: &str, old: Option<&Workload>, new: Option<&Workload>) {
        let what = format!("workload {path}");
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) => (old, new),
            (None, Some(new)) => {
                let detail = format!(
                    "{}; runs as {}",
                    identity(&new.identity),
                    runs(new).join(" or ")
                );
                return self.tell(Effect::Added, &what, Some(path), detail);
            }
            (Some(_), None) => {
                let detail = "it gets nothing any more; its tasks end".to_owned();
                return self.tell(Effect::Removed, &what, Some(path), detail);
            }
            (None, None) => return,
        };
        let (before, after) = (runs(old), runs(new));
        for gone in before.iter().filter(|run| !after.contains(run)) {
            self.tell(
                Effect::Narrowed,
                &what,
                Some(path),
                format!("no longer runs as {gone}"),
            );
        }
        for come in after.iter().filter(|run| !before.contains(run)) {
            self.tell(
                Effect::Widened,
                &what,
                Some(path),
                format!("also runs as {come}"),
            );
        }
        self.identity(&what, path, &old.identity, &new.identity);
        let deputy = |w: &Workload| w.deputy.clone().unwrap_or_else(|| "none".to_owned());
        self.word(&what, "owner", &old.owner, &new.owner);
        self.word(&what, "deputy", &deputy(old), &deputy(new));
        self.word(&what, "purpose", &old.purpose, &new.purpose);
    }

    fn identity(&mut self, what: &str, path: &str, old: &Identity, new: &Identity) {
        if old == new {
            return;
        }
        let (gone, come) = match (old, new) {
            (Identity::Audiences(old), Identity::Audiences(new)) => (
                old.iter().any(|audience| !new.contains(audience)),
                new.iter().any(|audience| !old.contains(audience)),
            ),
            (Identity::AnyAudience, _) | (_, Identity::Off) => (true, false),
            (Identity::Off, _) | (_, Identity::AnyAudience) => (false, true),
        };
        let effect = match (gone, come) {
            (true, false) => Effect::Narrowed,
            (false, true) => Effect::Widened,
            // Another order of the same, or some for others.
            (true, true) | (false, false) => Effect::Changed,
        };
        if gone || come {
            let detail = format!("{} instead of {}", identity(new), identity(old));
            self.tell(effect, what, Some(path), detail);
        }
    }

    fn entitlement(&mut self, name: &str, old: Option<&Entitlement>, new: Option<&Entitlement>) {
        let what = format!("entitlement {name}");
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) => (old, new),
            (None, Some(new)) => {
                for subject in subjects(new) {
                    self.tell(Effect::Added, &what, Some(subject), gives(new).join("; "));
                }
                return;
            }
            (Some(old), None) => {
                for subject in subjects(old) {
                    self.tell(Effect::Removed, &what, Some(subject), gives(old).join("; "));
                }
                return;
            }
            (None, None) => return,
        };
        let (before, after) = (subjects(old), subjects(new));
        for gone in before.difference(&after) {
            let detail = format!("no longer for {gone}");
            self.tell(Effect::Narrowed, &what, Some(gone), detail);
        }
        for come in after.difference(&before) {
            let detail = format!("also for {come}: {}", gives(new).join("; "));
            self.tell(Effect::Widened, &what, Some(come), detail);
        }
        self.gives(&what, old, new);
        let ttl = |e: &Entitlement| e.ttl.map_or(Limit::None, Limit::Within);
        self.ceiling(&what, None, "ttl", ttl(old), ttl(new));
        self.word(&what, "owner", &old.owner, &new.owner);
        self.word(&what, "purpose", &old.purpose, &new.purpose);
    }

    fn gives(&mut self, what: &str, old: &Entitlement, new: &Entitlement) {
        for gone in old.gives.iter().filter(|give| !new.gives.contains(give)) {
            let instead = new.gives.iter().find(|give| replaces(gone, give));
            match instead {
                Some(_) => {
                    let content = match gone {
                        Give::X509 { .. } => "names",
                        Give::Postgres { .. } => "rights or settings",
                        Give::Secret { .. } => "database",
                        Give::Jwt { .. } | Give::Introspect { .. } => "claims",
                    };
                    let detail = format!(
                        "{} with other {content}; those that say the old ones are revoked",
                        in_words(gone)
                    );
                    self.tell(Effect::Changed, what, None, detail);
                }
                None => self.tell(
                    Effect::Narrowed,
                    what,
                    None,
                    format!("no longer {}", in_words(gone)),
                ),
            }
        }
        for come in new.gives.iter().filter(|give| !old.gives.contains(give)) {
            if !old.gives.iter().any(|gone| replaces(gone, come)) {
                self.tell(
                    Effect::Widened,
                    what,
                    None,
                    format!("also {}", in_words(come)),
                );
            }
        }
    }

    fn target(&mut self, name: &str, old: Option<&Target>, new: Option<&Target>) {
        let what = format!("target {name}");
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) => (old, new),
            (None, Some(new)) => {
                let detail = format!("postgres at {}, of {}", place(new), new.owner);
                return self.tell(Effect::Added, &what, None, detail);
            }
            (Some(old), None) => {
                let detail = format!(
                    "postgres at {}; nothing can be made there any more",
                    place(old)
                );
                return self.tell(Effect::Removed, &what, None, detail);
            }
            (None, None) => return,
        };
        let (before, after) = (&old.postgres, &new.postgres);
        let all = |list: &[String]| list.join(", ");
        let standbys = |t: &PostgresTarget| {
            let names: Vec<String> = t.standbys.iter().map(ToString::to_string).collect();
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        let ca = |t: &PostgresTarget| match &t.ca_file {
            Some(file) => file.display().to_string(),
            None => "the system's".to_owned(),
        };
        let tls = |t: &PostgresTarget| match t.tls {
            Tls::VerifyFull => "verify-full".to_owned(),
            Tls::Off => "off".to_owned(),
        };
        let number = |n: u32| n.to_string();
        let every = |t: &Target| {
            t.rotate
                .map_or_else(|| "never".to_owned(), |t| t.to_string())
        };
        for (name, old, new) in [
            ("owner", old.owner.clone(), new.owner.clone()),
            ("url", place(old), place(new)),
            ("rotate", every(old), every(new)),
            (
                "admin_database",
                before.admin_database.clone(),
                after.admin_database.clone(),
            ),
            ("databases", all(&before.databases), all(&after.databases)),
            ("standbys", standbys(before), standbys(after)),
            ("ca_file", ca(before), ca(after)),
            ("tls", tls(before), tls(after)),
            (
                "scram_iterations",
                number(before.scram_iterations),
                number(after.scram_iterations),
            ),
            (
                "connections",
                number(before.connections),
                number(after.connections),
            ),
        ] {
            self.word(&what, name, &old, &new);
        }
    }

    fn word(&mut self, what: &str, name: &str, old: &str, new: &str) {
        if old != new {
            self.tell(
                Effect::Changed,
                what,
                None,
                format!("{name} {old} to {new}"),
            );
        }
    }
}

/// The same thing with another content.
fn replaces(old: &Give, new: &Give) -> bool {
    match (old, new) {
        (Give::Jwt { audience: old, .. }, Give::Jwt { audience: new, .. }) => old == new,
        (Give::X509 { .. }, Give::X509 { .. }) => true,
        (Give::Postgres { target: old, .. }, Give::Postgres { target: new, .. }) => old == new,
        (
            Give::Secret {
                target: old,
                role: was,
                ..
            },
            Give::Secret {
                target: new,
                role: is,
                ..
            },
        ) => (old, was) == (new, is),
        (
            Give::Jwt { .. }
            | Give::X509 { .. }
            | Give::Introspect { .. }
            | Give::Postgres { .. }
            | Give::Secret { .. },
            _,
        ) => false,
    }
}

fn place(target: &Target) -> String {
    let PostgresTarget {
        user,
        address,
        database,
        ..
    } = &target.postgres;
    format!("{user}@{address}/{database}")
}

fn subjects(entitlement: &Entitlement) -> BTreeSet<&str> {
    entitlement.who.iter().map(|id| id.path()).collect()
}

fn gives(entitlement: &Entitlement) -> Vec<String> {
    entitlement.gives.iter().map(in_words).collect()
}

fn runs(workload: &Workload) -> Vec<String> {
    workload.runs.iter().map(ToString::to_string).collect()
}

fn identity(identity: &Identity) -> String {
    match identity {
        Identity::AnyAudience => "identity for any audience".to_owned(),
        Identity::Audiences(list) => format!("identity for {}", list.join(", ")),
        Identity::Off => "no identity".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::issue::tests::harness::POLICY;

    fn changes(edit: impl Fn(&str) -> String) -> Vec<String> {
        let load = |text: &str| Snapshot::from_texts(&[("p.toml", text)]).unwrap();
        let changes = load(&edit(POLICY)).changes_from(&load(POLICY));
        let line = |c: PolicyChange| {
            format!(
                "{} {}|{}|{}",
                c.effect,
                c.what,
                c.subject.unwrap_or_default(),
                c.detail
            )
        };
        changes.into_iter().map(line).collect()
    }

    #[test]
    fn the_text_is_no_difference_and_every_rule_is_one() {
        assert!(changes(|text| format!("# moved\n{text}")).is_empty());
        for (from, to, told) in [
            (
                "max = \"1h\"",
                "max = \"30m\"",
                "narrowed ttl||max 1h to 30m",
            ),
            (
                "default = \"5m\"",
                "default = \"6m\"",
                "widened ttl||default 5m to 6m",
            ),
            (
                "max = \"1h\"",
                "max = \"1h\"\nservice = \"1d\"",
                "narrowed ttl||service none to 1d",
            ),
            (
                "runs = [{ uid = 1000 }]",
                "runs = [{ uid = 1000, hosts = [\"web-*\"] }]",
                "narrowed workload orders/web|orders/web|no longer runs as uid 1000, on every host",
            ),
            (
                "purpose = \"Serves the order page\"",
                "purpose = \"Serves the order page\"\nidentity = false",
                "narrowed workload orders/web|orders/web|no identity instead of identity for any audience",
            ),
            (
                "who = [\"orders/web\"]",
                "who = [\"billing/api\"]",
                "narrowed entitlement billing-api|orders/web|no longer for orders/web",
            ),
            (
                "plan = \"gold\"",
                "plan = \"blue\"",
                "changed entitlement billing-api||token for billing with plan with other claims; those that say the old ones are revoked",
            ),
            (
                "jwt = { audience = \"billing\", ",
                "jwt = { audience = \"shop\", ",
                "narrowed entitlement billing-api||no longer token for billing with plan",
            ),
            (
                "purpose = \"Charge orders\"",
                "purpose = \"Charge orders\"\nttl = \"1m\"",
                "narrowed entitlement billing-api||ttl none to 1m",
            ),
            (
                "owner = \"team:orders\"",
                "owner = \"team:shop\"",
                "changed workload orders/web||owner team:orders to team:shop",
            ),
        ] {
            let found = changes(|text| text.replacen(from, to, 1));
            assert_eq!(found.first().map(String::as_str), Some(told), "{found:?}");
        }
    }

    #[test]
    fn what_comes_and_goes_is_told_for_each_subject() {
        let found = changes(|text| {
            let cut = text.find("[entitlement.billing-check]").unwrap();
            format!(
                "{}[workload.\"batch\"]\nowner = \"team:x\"\nruns = [{{ uid = 3 }}]\n",
                text.get(..cut).unwrap()
            )
        });
        assert_eq!(
            found,
            [
                "added workload batch|batch|identity for any audience; runs as uid 3, on every host",
                "removed entitlement billing-check|billing/api|may introspect tokens for billing",
            ]
        );
    }
    #[test]
    fn targets_and_logins_are_told_apart() {
        const TARGET: &str = r#"
[target.orders]
owner    = "team:orders"
postgres = { url = "postgres://ephor@db1/orders" }
[entitlement.orders-db]
owner   = "team:orders"
purpose = "Orders"
who     = ["orders/web"]
gives   = [{ postgres = { target = "orders", role = "orders_rw" } }]
"#;
        let before = format!("{POLICY}{TARGET}");
        let load = |text: &str| Snapshot::from_texts(&[("p.toml", text)]).unwrap();
        let told = |from: &str, to: &str| {
            let changes = load(&before.replacen(from, to, 1)).changes_from(&load(&before));
            let line = |c: &PolicyChange| format!("{} {}|{}", c.effect, c.what, c.detail);
            changes.iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(
            told("@db1/", "@db2/"),
            ["changed target orders|url ephor@db1:5432/orders to ephor@db2:5432/orders"]
        );
        assert_eq!(
            told("role = \"orders_rw\"", "role = \"orders_ro\""),
            [
                "changed entitlement orders-db|login as orders_rw on orders/orders with other rights or settings; \
                 those that say the old ones are revoked"
            ]
        );
        let gone = load(POLICY).changes_from(&load(&before));
        assert_eq!(
            gone.last()
                .map(|c| format!("{} {}|{}", c.effect, c.what, c.detail))
                .unwrap(),
            "removed target orders|postgres at ephor@db1:5432/orders; nothing can be made there any more"
        );
    }
}
