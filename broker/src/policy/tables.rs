//! The tables of a policy file, each read into its type.
//!
//! A draft holds what was readable; whether it is a policy is decided by `compile`, and
//! only when no error was found anywhere.

use ephor_proto::cred::check_entitlement;
use ephor_proto::ttl::{Limit, Ttl};
use serde_json::Map;
use toml::Spanned;
use toml::de::DeValue;

use super::claims::claims;
use super::error::Place;
use super::fields::{PURPOSE_HINT, audience, deputy, dns_name, owner, parsed, purpose, ttl};
use super::limits::{MAX_AUDIENCES, MAX_DNS_NAMES, MAX_GIVES, MAX_RUNS};
use super::model::{Give, Identity, Run};
use super::reader::{Keys, Reader, Section, not_supported, quoted, section_of, shown};
use super::runs::run;
use super::target::{Refers, TargetDraft, give_postgres, give_secret, target};

const FILE: Keys = Keys {
    known: &["trust_domain", "ttl", "workload", "entitlement", "target"],
    later: &["ci", "person", "exception"],
};
const TTL: Keys = Keys {
    known: &["default", "max", "task", "service", "kind"],
    later: &[],
};
const TTL_KIND: Keys = Keys {
    known: &["jwt", "x509", "postgres", "secret"],
    later: &["ssh", "sudo", "exec"],
};
const WORKLOAD: Keys = Keys {
    known: &["owner", "deputy", "purpose", "runs", "identity"],
    later: &["review", "on_lost"],
};
const IDENTITY: Keys = Keys {
    known: &["audiences"],
    later: &[],
};
const ENTITLEMENT: Keys = Keys {
    known: &["owner", "purpose", "who", "gives", "ttl"],
    later: &["approve", "review", "break_glass", "on_lost"],
};
const GIVE: Keys = Keys {
    known: &["jwt", "x509", "introspect", "postgres", "secret"],
    later: &["ssh", "sudo", "exec"],
};
const X509: Keys = Keys {
    known: &["dns"],
    later: &[],
};
const JWT: Keys = Keys {
    known: &["audience", "claims"],
    later: &[],
};
const INTROSPECT: Keys = Keys {
    known: &["audience"],
    later: &[],
};

/// What one file says.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) trust_domain: Option<(Place, String)>,
    pub(super) ttl: Option<TtlDraft>,
    pub(super) workloads: Vec<WorkloadDraft>,
    pub(super) entitlements: Vec<EntitlementDraft>,
    pub(super) targets: Vec<TargetDraft>,
}

/// `[ttl]` as written; missing parts were reported.
pub(super) struct TtlDraft {
    pub(super) place: Place,
    pub(super) default: Option<(Place, Ttl)>,
    pub(super) max: Option<(Place, Ttl)>,
    pub(super) task: Limit,
    pub(super) service: Limit,
    pub(super) jwt: Option<(Place, Ttl)>,
    pub(super) x509: Option<(Place, Ttl)>,
    pub(super) postgres: Option<(Place, Ttl)>,
    pub(super) secret: Option<(Place, Ttl)>,
}

/// `[workload."…"]` as written; missing parts were reported.
pub(super) struct WorkloadDraft {
    pub(super) place: Place,
    pub(super) path: String,
    pub(super) owner: Option<String>,
    pub(super) deputy: Option<String>,
    pub(super) purpose: Option<String>,
    pub(super) identity: Identity,
    pub(super) identity_place: Place,
    pub(super) runs: Vec<(Place, Run)>,
}

/// `[entitlement.…]` as written; missing parts were reported.
pub(super) struct EntitlementDraft {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) owner: Option<String>,
    pub(super) purpose: Option<String>,
    pub(super) who: Vec<(Place, String)>,
    pub(super) gives: Vec<Given>,
    pub(super) ttl: Option<(Place, Ttl)>,
}

/// One item of `gives`, with where it refers to something else.
pub(super) struct Given {
    pub(super) give: Give,
    /// Of a login.
    pub(super) refers: Option<Refers>,
}

impl From<Give> for Given {
    fn from(give: Give) -> Self {
        let refers = None;
        Self { give, refers }
    }
}

/// Reads a whole file.
pub(super) fn file(reader: &mut Reader<'_>, root: &Section<'_>) -> Draft {
    root.check_keys(reader, &FILE);
    let trust_domain = root
        .text(reader, "trust_domain")
        .map(|text| (reader.place(text.at), text.value.to_owned()));
    let ttl = root
        .section(reader, "ttl", "[ttl]")
        .map(|section| ttls(reader, &section));
    let mut draft = Draft {
        trust_domain,
        ttl,
        ..Draft::default()
    };
    if let Some(section) = root.section(reader, "workload", "[workload]") {
        for (name, section) in section.children(reader, "workload") {
            draft.workloads.push(workload(reader, name, &section));
        }
    }
    if let Some(section) = root.section(reader, "entitlement", "[entitlement]") {
        for (name, section) in section.children(reader, "entitlement") {
            draft.entitlements.push(entitlement(reader, name, &section));
        }
    }
    if let Some(section) = root.section(reader, "target", "[target]") {
        for (name, section) in section.children(reader, "target") {
            draft.targets.push(target(reader, name, &section));
        }
    }
    draft
}

fn ttls(reader: &mut Reader<'_>, section: &Section<'_>) -> TtlDraft {
    section.check_keys(reader, &TTL);
    section.require(
        reader,
        "default",
        "Add default = \"15m\": what a request gets that names none.",
    );
    section.require(
        reader,
        "max",
        "Add max = \"1h\": no credential lives longer.",
    );
    let placed = |reader: &Reader<'_>, (at, ttl)| (reader.place(at), ttl);
    let default = ttl(reader, section, "default").map(|found| placed(reader, found));
    let max = ttl(reader, section, "max").map(|found| placed(reader, found));
    let (mut jwt, mut x509, mut postgres, mut secret) = (None, None, None, None);
    if let Some(kinds) = section.section(reader, "kind", "[ttl.kind]") {
        kinds.check_keys(reader, &TTL_KIND);
        jwt = ttl(reader, &kinds, "jwt").map(|found| placed(reader, found));
        x509 = ttl(reader, &kinds, "x509").map(|found| placed(reader, found));
        postgres = ttl(reader, &kinds, "postgres").map(|found| placed(reader, found));
        secret = ttl(reader, &kinds, "secret").map(|found| placed(reader, found));
    }
    let (task, service) = (
        limit(reader, section, "task"),
        limit(reader, section, "service"),
    );
    TtlDraft {
        place: reader.place(section.at),
        default,
        max,
        task,
        service,
        jwt,
        x509,
        postgres,
        secret,
    }
}

fn limit(reader: &mut Reader<'_>, section: &Section<'_>, key: &str) -> Limit {
    let text = section.text(reader, key);
    text.and_then(|text| parsed(reader, key, text))
        .unwrap_or(Limit::None)
}

fn workload(reader: &mut Reader<'_>, path: &str, section: &Section<'_>) -> WorkloadDraft {
    section.check_keys(reader, &WORKLOAD);
    let identity_at = section.key_at("identity").unwrap_or(section.at);
    WorkloadDraft {
        place: reader.place(section.at),
        path: path.to_owned(),
        owner: owner(reader, section),
        deputy: deputy(reader, section),
        purpose: purpose(reader, section),
        identity: identity(reader, section),
        identity_place: reader.place(identity_at),
        runs: runs(reader, section),
    }
}

fn runs(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<(Place, Run)> {
    const HINT: &str = "Add runs = [{ user = \"…\", exe = \"/…\" }]: which process it is.";
    section.require(reader, "runs", HINT);
    let Some(items) = section.list(reader, "runs") else {
        return Vec::new();
    };
    let at = section.key_at("runs").unwrap_or(section.at);
    if items.is_empty() {
        reader.refuse(at, format!("runs of {} is empty", section.title), HINT);
    }
    if items.len() > MAX_RUNS {
        let what = format!(
            "runs of {} has {} items, more than {MAX_RUNS}",
            section.title,
            items.len()
        );
        reader.refuse(at, what, "Give the hosts as a pattern.");
    }
    let mut runs = Vec::with_capacity(items.len());
    for item in items {
        let place = reader.place(item.span().start);
        runs.extend(run(reader, item, &section.title).map(|run| (place, run)));
    }
    runs
}

fn identity(reader: &mut Reader<'_>, section: &Section<'_>) -> Identity {
    const HINT: &str = "Leave it out for any audience, or write identity = { audiences = [\"billing\"] } or false.";
    let Some(value) = section.find("identity") else {
        return Identity::AnyAudience;
    };
    let at = value.span().start;
    match value.get_ref() {
        DeValue::Boolean(false) => return Identity::Off,
        DeValue::Table(_) => {}
        DeValue::Boolean(true)
        | DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_) => {
            let what = format!(
                "identity {} is neither false nor a table",
                reader.written(value)
            );
            reader.refuse(at, what, HINT);
            return Identity::Off;
        }
    }
    let title = format!("identity of {}", section.title);
    let Some(table) = section_of(reader, "identity", value, title, at) else {
        return Identity::Off;
    };
    table.check_keys(reader, &IDENTITY);
    table.require(reader, "audiences", HINT);
    let texts = table.texts(reader, "audiences").unwrap_or_default();
    if table
        .find("audiences")
        .is_some_and(|v| v.get_ref().as_array().is_some_and(|a| a.is_empty()))
    {
        reader.refuse(at, "audiences is empty", "Write identity = false for none.");
    }
    if texts.len() > MAX_AUDIENCES {
        reader.refuse(
            at,
            format!("{} audiences, more than {MAX_AUDIENCES}", texts.len()),
            HINT,
        );
    }
    Identity::Audiences(
        texts
            .into_iter()
            .filter_map(|text| audience(reader, text))
            .collect(),
    )
}

fn entitlement(reader: &mut Reader<'_>, name: &str, section: &Section<'_>) -> EntitlementDraft {
    section.check_keys(reader, &ENTITLEMENT);
    if name == ephor_proto::cred::IDENTITY {
        let hint = "Every workload has it; see identity in [workload].";
        reader.refuse(
            section.at,
            "identity is the built-in entitlement's name",
            hint,
        );
    } else if let Err(problem) = check_entitlement(name) {
        reader.refuse(section.at, problem.to_string(), "");
    }
    section.require(reader, "purpose", PURPOSE_HINT);
    EntitlementDraft {
        place: reader.place(section.at),
        name: name.to_owned(),
        owner: owner(reader, section),
        purpose: purpose(reader, section),
        who: who(reader, section),
        gives: gives(reader, section),
        ttl: ttl(reader, section, "ttl").map(|(at, ttl)| (reader.place(at), ttl)),
    }
}

/// Words before a colon that name people; they come with a later version.
const PEOPLE: [&str; 4] = ["group", "team", "person", "ci"];

fn who(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<(Place, String)> {
    const HINT: &str = "Name at least one workload, such as who = [\"orders/web\"].";
    section.require(reader, "who", HINT);
    let Some(texts) = section.texts(reader, "who") else {
        return Vec::new();
    };
    if texts.is_empty() && section.list(reader, "who").is_some_and(<[_]>::is_empty) {
        let at = section.key_at("who").unwrap_or(section.at);
        reader.refuse(at, format!("who of {} is empty", section.title), HINT);
    }
    let mut who: Vec<(Place, String)> = Vec::with_capacity(texts.len());
    let mut seen = std::collections::HashSet::new();
    for text in texts {
        let value = text.value;
        let first = value.split(['/', ':']).next().unwrap_or(value);
        if value.starts_with("spiffe://") {
            let hint = "Write its path, such as orders/web; the trust domain is the policy's.";
            reader.refuse(
                text.at,
                format!("who {} is a whole SPIFFE ID", shown(value)),
                hint,
            );
        } else if value.contains(':') && PEOPLE.contains(&first) || matches!(first, "ci" | "person")
        {
            reader.refuse(
                text.at,
                not_supported(value),
                "Only workloads can be named in who.",
            );
        } else if value.contains('*') {
            let hint = "Name each workload; a pattern could cross a '/'.";
            reader.refuse(
                text.at,
                not_supported(&format!("the pattern {value}")),
                hint,
            );
        } else if !seen.insert(value) {
            reader.refuse(text.at, format!("who names {} twice", shown(value)), "");
        } else {
            who.push((reader.place(text.at), value.to_owned()));
        }
    }
    who
}

fn gives(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<Given> {
    const HINT: &str = "Write gives = [{ jwt = { audience = \"…\" } }].";
    section.require(reader, "gives", HINT);
    let Some(items) = section.list(reader, "gives") else {
        return Vec::new();
    };
    let at = section.key_at("gives").unwrap_or(section.at);
    if items.is_empty() {
        reader.refuse(at, format!("gives of {} is empty", section.title), HINT);
    }
    if items.len() > MAX_GIVES {
        reader.refuse(
            at,
            format!("gives has {} items, more than {MAX_GIVES}", items.len()),
            "",
        );
    }
    let mut gives: Vec<Given> = Vec::new();
    for item in items {
        let Some(given) = give(reader, item, &section.title) else {
            continue;
        };
        if gives
            .iter()
            .any(|other| same_target(&other.give, &given.give))
        {
            reader.refuse(
                item.span().start,
                match given.give {
                    Give::X509 { .. } => "x509 twice in one gives",
                    Give::Postgres { .. } => "the same target twice in one gives",
                    Give::Secret { .. } => "the same role twice in one gives",
                    Give::Jwt { .. } | Give::Introspect { .. } => {
                        "the same audience twice in one gives"
                    }
                },
                "",
            );
        }
        gives.push(given);
    }
    gives
}

fn same_target(a: &Give, b: &Give) -> bool {
    match (a, b) {
        (Give::Jwt { audience: a, .. }, Give::Jwt { audience: b, .. })
        | (Give::Introspect { audience: a }, Give::Introspect { audience: b }) => a == b,
        // One request brings one public key, and so one certificate.
        (Give::X509 { .. }, Give::X509 { .. }) => true,
        // One login is a member of several roles; make several entitlements for several logins.
        (Give::Postgres { target: a, .. }, Give::Postgres { target: b, .. }) => a == b,
        (
            Give::Secret {
                target: a, role: x, ..
            },
            Give::Secret {
                target: b, role: y, ..
            },
        ) => (a, x) == (b, y),
        (
            Give::Jwt { .. }
            | Give::Introspect { .. }
            | Give::X509 { .. }
            | Give::Postgres { .. }
            | Give::Secret { .. },
            _,
        ) => false,
    }
}

fn give(reader: &mut Reader<'_>, item: &Spanned<DeValue<'_>>, of: &str) -> Option<Given> {
    let (at, title) = (item.span().start, format!("gives of {of}"));
    let section = section_of(reader, &format!("an item of {title}"), item, title, at)?;
    section.check_keys(reader, &GIVE);
    if section.table.len() != 1 {
        let names: Vec<_> = section
            .table
            .keys()
            .map(|key| quoted(key.get_ref()))
            .collect();
        let what = match names.len() {
            0 => "an item of gives is empty".to_owned(),
            _ => format!(
                "an item of gives names several things: {}",
                names.join(", ")
            ),
        };
        reader.refuse(
            at,
            what,
            "Write one item for each, such as { jwt = { … } }.",
        );
        return None;
    }
    let jwt = section.section(reader, "jwt", "jwt");
    let x509 = section.section(reader, "x509", "x509");
    let introspect = section.section(reader, "introspect", "introspect");
    if let Some(section) = section.section(reader, "postgres", "postgres") {
        return give_postgres(reader, &section);
    }
    if let Some(section) = section.section(reader, "secret", "secret") {
        return give_secret(reader, &section);
    }
    jwt.and_then(|section| give_jwt(reader, &section))
        .or_else(|| x509.map(|section| give_x509(reader, &section)))
        .or_else(|| introspect.and_then(|section| give_introspect(reader, &section)))
        .map(Given::from)
}

fn give_jwt(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<Give> {
    section.check_keys(reader, &JWT);
    let claims = match section.section(reader, "claims", "claims") {
        Some(section) => claims(reader, &section),
        None => Map::new(),
    };
    let audience = give_audience(reader, section)?;
    Some(Give::Jwt {
        audience,
        claims,
        identity: false,
    })
}

fn give_x509(reader: &mut Reader<'_>, section: &Section<'_>) -> Give {
    section.check_keys(reader, &X509);
    let mut dns: Vec<String> = Vec::new();
    for text in section.texts(reader, "dns").unwrap_or_default() {
        let Some(name) = dns_name(reader, text) else {
            continue;
        };
        if dns.contains(&name) {
            let what = format!("the name {} twice in one dns", quoted(&name));
            reader.refuse(text.at, what, "Keep one.");
        }
        dns.push(name);
    }
    if dns.len() > MAX_DNS_NAMES {
        let what = format!("dns has {} names, more than {MAX_DNS_NAMES}", dns.len());
        reader.refuse(section.at, what, "Make several entitlements.");
    }
    Give::X509 { dns }
}

fn give_introspect(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<Give> {
    section.check_keys(reader, &INTROSPECT);
    give_audience(reader, section).map(|audience| Give::Introspect { audience })
}

fn give_audience(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<String> {
    let hint = "Add audience = \"…\": whose tokens they are.";
    let text = section.required(reader, "audience", hint)?;
    audience(reader, text)
}

#[cfg(test)]
mod tests {
    use super::super::suggest::nearest;
    use super::*;

    /// A missing key is not reported beside a misspelt one, so no right key may look like a
    /// misspelling of another.
    #[test]
    fn no_two_keys_of_a_table_are_near() {
        for keys in [
            FILE,
            TTL,
            TTL_KIND,
            WORKLOAD,
            IDENTITY,
            ENTITLEMENT,
            GIVE,
            JWT,
            X509,
            INTROSPECT,
            super::super::target::TARGET,
            super::super::target::POSTGRES_TARGET,
            super::super::target::POSTGRES,
            super::super::target::SECRET,
        ] {
            // Either is enough, and neither is asked for by name alone.
            for key in keys
                .known
                .iter()
                .filter(|key| !matches!(**key, "role" | "roles"))
            {
                let others = keys
                    .known
                    .iter()
                    .chain(keys.later)
                    .filter(|other| *other != key);
                assert_eq!(nearest(key, others.copied()), None, "{key}");
            }
        }
    }
}
