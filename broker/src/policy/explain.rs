//! Explain: every way from a process to a credential, for the one who must answer "what
//! could it get?". For operators only: nothing here is safe to tell a caller.

use ephor_proto::cred::IDENTITY;
use ephor_proto::http::admin::{Explain, Explained, Way};
use ephor_proto::spiffe::{HostName, SpiffeId};
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::{Ttl, effective};

use super::index::covers;
use super::model::{Entitlement, Give, Identity, LoginBy, Run, Workload};
use super::reader::{guess, shown};
use super::snapshot::Snapshot;
use crate::decide::ceilings;

/// Why there is nothing to explain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// None, or several, of subject, host and entitlement.
    #[error("name one of subject, host and entitlement")]
    NotOne,
    /// No such thing in this policy.
    #[error("{what} does not exist{guess}; policy {version} is in force")]
    Unknown {
        /// What was asked about.
        what: String,
        /// The nearest right one.
        guess: String,
        /// Short version.
        version: String,
    },
    /// A host name that cannot be one.
    #[error("{0}")]
    Host(String),
}

impl ExplainError {
    /// As its text, for a policy that was only read from `place` and is in force nowhere.
    #[must_use]
    pub fn read_from(&self, place: &str) -> String {
        match self {
            Self::Unknown {
                what,
                guess,
                version,
            } => format!("{what} does not exist{guess}; policy {version} was read from {place}"),
            Self::NotOne | Self::Host(_) => self.to_string(),
        }
    }
}

impl Snapshot {
    /// All ways to a credential, by subject (path or whole id), by host (all that a
    /// compromised host of that name could obtain) or by entitlement.
    ///
    /// # Errors
    /// When not exactly one of them is named, or it is not in the policy.
    pub fn explain(&self, query: &Explain) -> Result<Explained, ExplainError> {
        let ways = match (&query.subject, &query.host, &query.entitlement) {
            (Some(subject), None, None) => self.ways_of_subject(subject)?,
            (None, Some(host), None) => self.ways_on_host(host)?,
            (None, None, Some(name)) => self.ways_to(name)?,
            (None, None, None)
            | (Some(_), Some(_), _)
            | (Some(_), _, Some(_))
            | (_, Some(_), Some(_)) => {
                return Err(ExplainError::NotOne);
            }
        };
        Ok(Explained {
            policy_version: self.version().to_owned(),
            ways,
        })
    }

    fn ways_of_subject(&self, name: &str) -> Result<Vec<Way>, ExplainError> {
        let id = name
            .parse()
            .or_else(|_| SpiffeId::new(self.trust_domain(), name))
            .ok();
        let Some(workload) = id.and_then(|id| self.workload(&id)) else {
            let known = self
                .workloads()
                .iter()
                .map(|workload| workload.subject.path());
            return Err(self.unknown(name, known));
        };
        Ok(self.ways(workload, &|_| true))
    }

    fn ways_on_host(&self, name: &str) -> Result<Vec<Way>, ExplainError> {
        let host: HostName = name
            .parse()
            .map_err(|problem: ephor_proto::spiffe::BadHost| {
                ExplainError::Host(problem.to_string())
            })?;
        let here = |run: &Run| covers(run, &host);
        let may_run = self
            .workloads()
            .iter()
            .filter(|workload| workload.runs.iter().any(here));
        Ok(may_run
            .flat_map(|workload| self.ways(workload, &here))
            .collect())
    }

    fn ways_to(&self, name: &str) -> Result<Vec<Way>, ExplainError> {
        if name == IDENTITY {
            let all = self.workloads().iter();
            return Ok(all
                .flat_map(|workload| self.ways_to_identity(workload, &|_| true))
                .collect());
        }
        let Some(entitlement) = self.entitlement(name) else {
            let known = self
                .entitlements()
                .iter()
                .map(|entitlement| entitlement.name.as_str());
            return Err(self.unknown(name, known.chain([IDENTITY])));
        };
        let who = entitlement.who.iter().filter_map(|id| self.workload(id));
        Ok(who
            .map(|workload| self.way(workload, entitlement, &|_| true))
            .collect())
    }

    fn unknown<'a>(&self, name: &str, known: impl Iterator<Item = &'a str>) -> ExplainError {
        let version = self.short_version().to_owned();
        ExplainError::Unknown {
            what: shown(name),
            guess: guess(name, known),
            version,
        }
    }

    /// Everything a workload may have; `here` chooses which of its `runs` count.
    fn ways(&self, workload: &Workload, here: &dyn Fn(&Run) -> bool) -> Vec<Way> {
        let mut ways = self.ways_to_identity(workload, here);
        let entitled = self.entitlements_of(&workload.subject);
        ways.extend(entitled.into_iter().map(|e| self.way(workload, e, here)));
        ways
    }

    fn ways_to_identity(&self, workload: &Workload, here: &dyn Fn(&Run) -> bool) -> Vec<Way> {
        let tokens = match &workload.identity {
            Identity::Off => return Vec::new(),
            Identity::AnyAudience => "identity token for any audience".to_owned(),
            Identity::Audiences(list) => format!("identity token for {}", list.join(", ")),
        };
        let jwt = Give::Jwt {
            audience: String::new(),
            claims: serde_json::Map::new(),
            identity: true,
        };
        let certificate = (
            "identity certificate".to_owned(),
            Give::X509 { dns: Vec::new() },
        );
        [certificate, (tokens, jwt)]
            .into_iter()
            .map(|(gives, give)| {
                let (ttl_seconds, capped_by) = self.longest(&[give], None);
                Way {
                    subject: workload.subject.to_string(),
                    entitlement: IDENTITY.to_owned(),
                    gives,
                    owner: workload.owner.clone(),
                    purpose: workload.purpose.clone(),
                    ttl_seconds,
                    capped_by,
                    rule: workload.identity_place.rule(),
                    runs: runs(workload, here),
                }
            })
            .collect()
    }

    fn way(
        &self,
        workload: &Workload,
        entitlement: &Entitlement,
        here: &dyn Fn(&Run) -> bool,
    ) -> Way {
        let (ttl_seconds, capped_by) = self.longest(&entitlement.gives, entitlement.ttl);
        Way {
            subject: workload.subject.to_string(),
            entitlement: entitlement.name.clone(),
            gives: entitlement
                .gives
                .iter()
                .map(in_words)
                .collect::<Vec<_>>()
                .join("; "),
            owner: entitlement.owner.clone(),
            purpose: entitlement.purpose.clone(),
            ttl_seconds,
            capped_by,
            rule: entitlement.place.rule(),
            runs: runs(workload, here),
        }
    }

    /// The longest life that a request could get, in seconds, and what caps it.
    fn longest(&self, gives: &[Give], ttl: Option<Ttl>) -> (u64, String) {
        let endless = Some(Ttl::from_seconds(u64::MAX));
        let start = UnixMillis::from_millis(0);
        let lives =
            gives.iter().map(
                |give| match effective(start, endless, &ceilings(self, give, ttl)) {
                    Ok(granted) => (granted.ttl.as_seconds(), granted.capped_by.to_string()),
                    Err(never) => (0, never.to_string()),
                },
            );
        lives
            .max_by_key(|(seconds, _)| *seconds)
            .unwrap_or_default()
    }
}

pub(super) fn in_words(give: &Give) -> String {
    match give {
        Give::Jwt {
            audience, claims, ..
        } if claims.is_empty() => format!("token for {audience}"),
        Give::Jwt {
            audience, claims, ..
        } => {
            let names: Vec<&str> = claims.keys().map(String::as_str).collect();
            format!("token for {audience} with {}", names.join(", "))
        }
        Give::X509 { dns } if dns.is_empty() => "certificate".to_owned(),
        Give::X509 { dns } => format!("certificate for {}", dns.join(", ")),
        Give::Introspect { audience } => format!("may introspect tokens for {audience}"),
        Give::Secret {
            target,
            role,
            database,
        } => format!("password of {role} on {target}/{database}, for one task at a time"),
        Give::Postgres {
            target,
            roles,
            database,
            connection_limit,
            settings,
            login,
            reassign,
        } => {
            let mut words = format!("login as {} on {target}/{database}", roles.join(", "));
            if let Some(most) = connection_limit {
                words.push_str(&format!(", at most {most} sessions"));
            }
            if !settings.is_empty() {
                let set = settings
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"));
                words.push_str(&format!(", {}", set.collect::<Vec<_>>().join(", ")));
            }
            match login {
                LoginBy::Password => {}
                LoginBy::Certificate => words.push_str(", by certificate"),
            }
            if *reassign {
                words.push_str(", its tables stay");
            }
            words
        }
    }
}

fn runs(workload: &Workload, here: &dyn Fn(&Run) -> bool) -> Vec<String> {
    workload
        .runs
        .iter()
        .filter(|run| here(run))
        .map(ToString::to_string)
        .collect()
}

impl std::fmt::Display for Run {
    /// `user orders, exe /usr/bin/orders-web, unit orders.service, on web-*`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digest = self.sha256.map(|digest| ephor_crypto::digest::hex(&digest));
        let hosts: Vec<&str> = self.hosts.iter().map(|host| host.as_str()).collect();
        let parts = [
            self.user.as_ref().map(|user| format!("user {user}")),
            self.uid.map(|uid| format!("uid {uid}")),
            self.exe.as_ref().map(|exe| format!("exe {exe}")),
            digest.map(|digest| format!("sha256 {digest}")),
            self.unit.as_ref().map(|unit| format!("unit {unit}")),
            Some(match hosts.is_empty() {
                true => "on every host".to_owned(),
                false => format!("on {}", hosts.join(", ")),
            }),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}
