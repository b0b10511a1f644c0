//! `ephor policy test`: what its authors expect of a policy, written down and asked of it.
//!
//! A case asks the same pure decision as a request does; there is no broker and no clock in it.

use ephor_proto::cred::IDENTITY;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::{HostName, SpiffeId};
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::{CappedBy, Ttl};
use serde::{Deserialize, Serialize};

use super::evidence::Evidence;
use super::limits::MAX_CASES;
use super::model::Give;
use super::reader::parsed_hex;
use super::snapshot::Snapshot;
use crate::decide::{Allowed, Given, Query, Verdict, decide};

/// No process has it, so that a rule by `uid` never matches a case that names none.
const NO_UID: u32 = u32::MAX;

/// A file of cases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    case: Vec<Case>,
}

/// What a case says of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It gets it.
    Allow,
    /// It does not.
    Deny,
}

/// `[[case]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: Option<String>,
    subject: Option<String>,
    host: Option<String>,
    user: Option<String>,
    uid: Option<u32>,
    exe: Option<String>,
    sha256: Option<String>,
    systemd: Option<String>,
    entitlement: Option<String>,
    audience: Option<String>,
    asks: Option<Ttl>,
    expect: Expected,
    ttl: Option<Ttl>,
    capped_by: Option<CappedBy>,
    code: Option<Code>,
}

/// How a case came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaseResult {
    /// Its name, or `case N`.
    pub name: String,
    /// Whether it is as expected.
    pub holds: bool,
    /// What the policy says, in words.
    pub found: String,
    /// What is not as expected; empty when it holds.
    pub why: String,
}

/// Why a file is no file of cases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCases {
    /// Not TOML, or not these keys; with line and column.
    #[error("{0}")]
    Toml(String),
    /// A case that asks nothing, or what cannot be asked.
    #[error("{name}: {problem}")]
    Case {
        /// Which.
        name: String,
        /// What is wrong and what to write.
        problem: String,
    },
}

impl Cases {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`BadCases`] names the case and the key.
    pub fn parse(text: &str) -> Result<Self, BadCases> {
        let toml = |error: toml::de::Error| BadCases::Toml(error.to_string().trim_end().to_owned());
        let cases: Self = toml::from_str(text).map_err(toml)?;
        for (number, case) in (1..).zip(&cases.case) {
            let name = case.name(number);
            case.check()
                .map_err(|problem| BadCases::Case { name, problem })?;
        }
        if cases.case.len() > MAX_CASES {
            let problem = format!("{} cases, more than {MAX_CASES}", cases.case.len());
            return Err(BadCases::Toml(problem));
        }
        Ok(cases)
    }

    /// Asks a policy all of them, in order.
    pub fn run(&self, policy: &Snapshot) -> Vec<CaseResult> {
        let numbered = (1..).zip(&self.case);
        numbered
            .map(|(number, case)| case.run(policy, number))
            .collect()
    }
}

impl Case {
    fn name(&self, number: usize) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| format!("case {number}"))
    }

    /// Whether it describes a process, and not only a subject.
    fn is_attested(&self) -> bool {
        self.uid.is_some()
            || [&self.user, &self.exe, &self.sha256, &self.systemd]
                .into_iter()
                .any(Option::is_some)
    }

    fn check(&self) -> Result<(), String> {
        let problem = |text: &str| Err(text.to_owned());
        if self.entitlement.is_none() && self.audience.is_none() {
            return problem("asks for nothing; add entitlement, or audience for its identity");
        }
        if !self.is_attested() && self.subject.is_none() {
            return problem("is nobody; add subject, or what runs: user, uid, exe, systemd");
        }
        if self.is_attested() && self.host.is_none() {
            return problem("runs nowhere; add host");
        }
        if let Some(host) = &self.host {
            host.parse::<HostName>()
                .map_err(|why| format!("host: {why}"))?;
        }
        if self
            .sha256
            .as_deref()
            .is_some_and(|hash| parsed_hex(hash).is_none())
        {
            return problem("sha256 is not 64 lower-case hexadecimal digits");
        }
        match self.expect {
            Expected::Allow if self.code.is_some() => {
                problem("expects allow, and the code of a refusal")
            }
            Expected::Deny if self.ttl.is_some() || self.capped_by.is_some() => {
                problem("expects deny, and a lifetime")
            }
            Expected::Allow | Expected::Deny => Ok(()),
        }
    }

    fn run(&self, policy: &Snapshot, number: usize) -> CaseResult {
        let candidates = self.candidates(policy);
        let entitlement = self.entitlement.as_deref().unwrap_or(IDENTITY);
        let item = match entitlement {
            IDENTITY => self.audience.as_deref().unwrap_or_default(),
            _ => "",
        };
        let now = UnixMillis::from_unix_seconds(1_700_000_000);
        let query = Query {
            candidates: &candidates,
            subject: self.subject.as_deref(),
            entitlement,
            item,
            requested: self.asks,
            now,
            task_opened_at: now,
            task_deadline: None,
            ca_end: UnixMillis::MAX,
            renewing: None,
        };
        let (found, why) = match decide(policy, &query) {
            Verdict::Allowed(allowed) => {
                let found = format!(
                    "allow: {} as {}, {} ({}), by {}",
                    entitlement,
                    allowed.subject.path(),
                    allowed.ttl,
                    allowed.capped_by,
                    allowed.rule
                );
                (found, self.judge_allowed(&allowed))
            }
            Verdict::Denied(denied) => {
                let rule = denied
                    .rule
                    .map(|rule| format!(", by {rule}"))
                    .unwrap_or_default();
                let found = format!("deny: {} ({}){rule}", denied.reason, denied.code.as_str());
                (found, self.judge_denied(denied.code))
            }
        };
        CaseResult {
            name: self.name(number),
            holds: why.is_empty(),
            found,
            why: why.join("; "),
        }
    }

    /// Who the process is: what policy recognises it as, or just the subject that is named.
    fn candidates(&self, policy: &Snapshot) -> Vec<SpiffeId> {
        let host = self.host.as_deref().unwrap_or_default();
        if self.is_attested() {
            let hash = self.sha256.as_deref().and_then(parsed_hex);
            let evidence = Evidence {
                uid: self.uid.unwrap_or(NO_UID),
                user: self.user.clone().unwrap_or_default(),
                exe: self.exe.clone().unwrap_or_default(),
                exe_sha256: hash.map(Vec::from).unwrap_or_default(),
                unit: self.systemd.clone().unwrap_or_default(),
                ..Evidence::default()
            };
            return policy.match_workloads(host, &evidence).subjects;
        }
        let subject = self.subject.as_deref().unwrap_or_default();
        let id = subject
            .parse()
            .or_else(|_| SpiffeId::new(policy.trust_domain(), subject));
        let workload = id.ok().and_then(|id| policy.workload(&id));
        let here = |workload: &&super::Workload| match host.parse::<HostName>() {
            Ok(host) => policy.may_run(workload, &host),
            // No host named: on whichever it may run.
            Err(_) => true,
        };
        let found = workload.filter(here);
        found
            .map(|workload| workload.subject.clone())
            .into_iter()
            .collect()
    }

    fn judge_allowed(&self, allowed: &Allowed) -> Vec<String> {
        let mut why = Vec::new();
        if self.expect == Expected::Deny {
            why.push("expected deny".to_owned());
        }
        if let Some(ttl) = self.ttl.filter(|ttl| *ttl != allowed.ttl) {
            why.push(format!("expected a life of {ttl}"));
        }
        if let Some(cap) = self.capped_by.filter(|cap| *cap != allowed.capped_by) {
            why.push(format!("expected it capped by {cap}"));
        }
        let audience = self.audience.as_deref().filter(|wanted| {
            let gives = |given: &Given| audience_of(&given.give) == Some(wanted);
            !allowed.gives.iter().any(gives)
        });
        if let Some(audience) = audience {
            why.push(format!(
                "expected something for {audience}, which it does not give"
            ));
        }
        why
    }

    fn judge_denied(&self, code: Code) -> Vec<String> {
        let mut why = Vec::new();
        if self.expect == Expected::Allow {
            why.push("expected allow".to_owned());
        }
        if let Some(wanted) = self.code.filter(|wanted| *wanted != code) {
            why.push(format!("expected {}", wanted.as_str()));
        }
        why
    }
}

/// For whom a thing is, where it is for somebody.
fn audience_of(give: &Give) -> Option<&str> {
    match give {
        Give::Jwt { audience, .. } | Give::Introspect { audience } => Some(audience),
        Give::X509 { .. } | Give::Postgres { .. } | Give::Secret { .. } => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::issue::tests::harness::POLICY;

    fn run(case: &str) -> CaseResult {
        let policy = POLICY.replace(
            "runs = [{ uid = 1000 }]",
            "runs = [{ user = \"orders\", hosts = [\"web-*\"] }]",
        );
        let policy = Snapshot::from_texts(&[("p.toml", &policy)]).unwrap();
        Cases::parse(&format!("[[case]]\n{case}"))
            .unwrap()
            .run(&policy)
            .remove(0)
    }

    #[test]
    fn what_is_expected_holds_and_what_is_not_says_why() {
        let process = "host = \"web-3\"\nuser = \"orders\"\n";
        for (case, why) in [
            ("entitlement = \"billing-api\"\nexpect = \"allow\"", ""),
            (
                "entitlement = \"billing-api\"\naudience = \"billing\"\nexpect = \"allow\"\nttl = \"5m\"\ncapped_by = \"ttl.default\"",
                "",
            ),
            (
                "entitlement = \"billing-api\"\nasks = \"2h\"\nexpect = \"allow\"\nttl = \"1h\"\ncapped_by = \"ttl.max\"",
                "",
            ),
            ("audience = \"shop\"\nexpect = \"allow\"", ""),
            (
                "entitlement = \"billing-api\"\nexpect = \"deny\"",
                "expected deny",
            ),
            (
                "entitlement = \"billing-api\"\nexpect = \"allow\"\nttl = \"1m\"\ncapped_by = \"ca\"",
                "expected a life of 1m; expected it capped by ca",
            ),
            (
                "entitlement = \"billing-api\"\naudience = \"shop\"\nexpect = \"allow\"",
                "expected something for shop, which it does not give",
            ),
            (
                "entitlement = \"billing-check\"\nexpect = \"deny\"\ncode = \"unknown_entitlement\"",
                "",
            ),
            (
                "entitlement = \"billing-check\"\nexpect = \"allow\"",
                "expected allow",
            ),
        ] {
            let result = run(&format!("{process}{case}"));
            assert_eq!(
                (result.why.as_str(), result.holds),
                (why, why.is_empty()),
                "{case}: {result:?}"
            );
        }
    }

    #[test]
    fn a_subject_alone_is_asked_about_where_it_may_run() {
        let ask = "entitlement = \"billing-api\"\nexpect = \"allow\"\nsubject = ";
        assert!(run(&format!("{ask}\"orders/web\"")).holds);
        assert!(
            run(&format!(
                "{ask}\"spiffe://prod.example/orders/web\"\nhost = \"web-1\""
            ))
            .holds
        );
        let elsewhere = run(&format!("{ask}\"orders/web\"\nhost = \"db-1\""));
        assert!(
            elsewhere.found.contains("unknown_workload") && !elsewhere.holds,
            "{elsewhere:?}"
        );
        assert!(!run(&format!("{ask}\"orders/wed\"")).holds);
    }

    #[test]
    fn a_case_that_asks_nothing_is_refused_by_name() {
        for (case, said) in [
            (
                "name = \"x\"\nsubject = \"a\"\nexpect = \"allow\"",
                "x: asks for nothing",
            ),
            (
                "entitlement = \"e\"\nexpect = \"allow\"",
                "case 1: is nobody",
            ),
            (
                "entitlement = \"e\"\nuser = \"u\"\nexpect = \"allow\"",
                "case 1: runs nowhere",
            ),
            (
                "entitlement = \"e\"\nsubject = \"s\"\nexpect = \"deny\"\nttl = \"1m\"",
                "expects deny, and a lifetime",
            ),
            (
                "entitlement = \"e\"\nsubject = \"s\"\nexpect = \"perhaps\"",
                "line ",
            ),
            ("entitlment = \"e\"", "entitlment"),
        ] {
            let error = Cases::parse(&format!("[[case]]\n{case}"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(said), "{case}: {error}");
        }
        assert!(Cases::parse("").is_err());
    }
}
