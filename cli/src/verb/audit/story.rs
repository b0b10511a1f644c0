//! One credential's life, told from its events: only what they say, nothing inferred.

use std::collections::BTreeMap;

use ephor_proto::http::admin::{Credential, Record};
use ephor_proto::id::{DecisionId, RequestId};
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Ttl;
use serde_json::Value;

use super::events::{short_credential, text, time, told};
use crate::show::{Fields, credential_line, moment, path_of, state_word};
use crate::words::plural;

/// The events of one credential.
struct Events<'a> {
    id: &'a str,
    issued: Option<&'a Record>,
    renewed: Vec<&'a Record>,
    decided: Option<&'a Record>,
    opened: Option<&'a Record>,
    completed: Option<&'a Record>,
    used: Option<&'a Record>,
    began: Option<&'a Record>,
    revoked: Option<&'a Record>,
    proven: Option<&'a Record>,
    receipt: Option<&'a Record>,
    last: Option<&'a Record>,
}

/// Labelled lines about a credential. `row` is how it stands now, where the broker still keeps it.
pub(super) fn of(
    id: &str,
    pool: &BTreeMap<u64, Record>,
    row: Option<&Credential>,
    now: UnixMillis,
    to_terminal: bool,
) -> String {
    let events = Events::of(id, pool);
    let short = row.map_or_else(|| short_credential(id), |row| row.short.clone());
    let what = events.issued.or(events.last).map_or_else(
        || short.clone(),
        |record| {
            credential_line(
                text(record, "/credential/kind"),
                &short,
                text(record, "/credential/scope"),
            )
        },
    );
    Fields::new(&what, &events.state(row, now), to_terminal)
        .line("asked by", events.asked_by(now))
        .line(
            "because",
            events.decided.and_then(|record| told(record, "reason")),
        )
        .line("approved by", events.approved_by())
        .line("allowed by", events.allowed_by(row))
        .line("lifetime", events.lifetime(row, now))
        .line("held by", events.held_by())
        .line("used", events.used(now))
        .line("ended", events.ended(now))
        .line("proof", events.proof(now))
        .line("overdue", row.and_then(|row| row.overdue.clone()))
        .text()
}

impl<'a> Events<'a> {
    fn of(id: &'a str, pool: &'a BTreeMap<u64, Record>) -> Self {
        let own = || {
            pool.values()
                .filter(move |record| text(record, "/credential/id") == id)
        };
        let issued = own().find(|record| text(record, "/type") == "issue.recorded");
        // Of other tasks and decisions nothing is told, even where the pool has them.
        let same = |field: &'static str| {
            let wanted = issued
                .map(|record| text(record, field))
                .filter(|wanted| !wanted.is_empty());
            pool.values()
                .filter(move |record| wanted.is_some_and(|wanted| text(record, field) == wanted))
        };
        Self {
            id,
            issued,
            renewed: own()
                .filter(|record| text(record, "/type") == "issue.renewed")
                .collect(),
            decided: same("/decision").find(|record| text(record, "/type") == "decide.allowed"),
            opened: same("/task").find(|record| text(record, "/type") == "attest.task_opened"),
            completed: same("/task").find(|record| text(record, "/type").starts_with("complete.")),
            used: own().rfind(|record| uses(record, id)),
            began: own().find(|record| text(record, "/type").starts_with("revoke.")),
            revoked: own().rfind(|record| text(record, "/type").starts_with("revoke.")),
            proven: own().rfind(|record| text(record, "/type") == "prove.dead"),
            receipt: same("/task").find(|record| text(record, "/type") == "prove.receipt"),
            last: own().next_back(),
        }
    }

    fn evidence(&self) -> Option<&'a Value> {
        let entries = self.receipt?.event.get("evidence")?.as_array()?;
        entries
            .iter()
            .find(|entry| entry.get("credential").and_then(Value::as_str) == Some(self.id))
    }

    /// `LISTED since …`: its state now, and since when where an event says so.
    fn state(&self, row: Option<&Credential>, now: UnixMillis) -> String {
        let told = row
            .map(|row| row.state.as_str())
            .or_else(|| self.evidence()?.get("state")?.as_str());
        let state = told
            .or_else(|| self.last.map(|record| text(record, "/credential/state")))
            .unwrap_or_default();
        let word = state_word(state).to_uppercase();
        // What was ended at a target is dead once that has said so.
        let since = [self.proven, self.revoked]
            .into_iter()
            .flatten()
            .find(|record| text(record, "/credential/state") == state)
            .and_then(|r| time(r, "/time"));
        match since {
            Some(since) => format!("{word} since {}", moment(since, now)),
            None => word,
        }
    }

    fn asked_by(&self, now: UnixMillis) -> Option<String> {
        let issued = self.issued?;
        let subject = told(issued, "subject").unwrap_or_default();
        let mut who = path_of(&subject).to_owned();
        let facts = [("pid", "pid "), ("user", "user "), ("exe", "")];
        let known = facts.map(|(fact, word)| (self.fact(self.opened, fact), word));
        let known: Vec<String> = known
            .into_iter()
            .filter_map(|(fact, word)| fact.map(|fact| format!("{word}{fact}")))
            .collect();
        if !known.is_empty() {
            who.push_str(&format!(" ({})", known.join(", ")));
        }
        let at = time(issued, "/time")
            .map(|at| format!(", {}", moment(at, now)))
            .unwrap_or_default();
        let request = text(issued, "/request").parse::<RequestId>();
        let request = request
            .map(|id| format!(", request {}", id.short()))
            .unwrap_or_default();
        Some(format!("{who}{}{at}{request}", self.host()))
    }

    fn host(&self) -> String {
        let agent = self
            .issued
            .or(self.opened)
            .map(|record| text(record, "/agent"))
            .unwrap_or_default();
        let host = path_of(agent).trim_start_matches("agent/");
        if host.is_empty() {
            String::new()
        } else {
            format!(" on {host}")
        }
    }

    fn fact(&self, record: Option<&'a Record>, name: &str) -> Option<&'a str> {
        record?
            .event
            .get("facts")?
            .get(name)?
            .as_str()
            .filter(|fact| !fact.is_empty())
    }

    fn approved_by(&self) -> Option<String> {
        match self.decided?.event.pointer("/approval/how")?.as_str()? {
            "automatic" => Some("rule; no person was needed".to_owned()),
            how => Some(how.replace('_', " ")),
        }
    }

    fn allowed_by(&self, row: Option<&Credential>) -> Option<String> {
        let rule = self
            .fact(self.decided, "rule")
            .or_else(|| self.fact(self.issued, "rule"));
        let rule = rule.or(row.map(|row| row.rule.as_str()))?;
        let version = self
            .decided
            .or(self.issued)
            .map(|record| text(record, "/policy_version"))
            .unwrap_or_default();
        let policy = version
            .get(..4)
            .map(|version| format!(" at policy {version}"))
            .unwrap_or_default();
        let owner = self
            .decided
            .or(self.issued)
            .and_then(|record| told(record, "owner"));
        let owner = owner
            .or_else(|| row.map(|row| row.owner.clone()))
            .filter(|owner| !owner.is_empty());
        let owner = owner
            .map(|owner| format!(", owner {owner}"))
            .unwrap_or_default();
        let decision = self
            .issued
            .and_then(|record| text(record, "/decision").parse::<DecisionId>().ok());
        let decision = decision
            .map(|id| format!(", decision {}", id.short()))
            .unwrap_or_default();
        Some(format!("{rule}{policy}{owner}{decision}"))
    }

    fn lifetime(&self, row: Option<&Credential>, now: UnixMillis) -> Option<String> {
        let latest = self.renewed.last().copied().or(self.issued)?;
        let from = time(latest, "/credential/issued_at")?;
        let until = time(latest, "/credential/expires_at")?;
        let life = Ttl::from_seconds(until.millis_since(from) / 1000);
        let cap = self
            .fact(Some(latest), "capped_by")
            .or(row.map(|row| row.capped_by.as_str()));
        let cap = cap
            .map(|cap| format!(", capped by {cap}"))
            .unwrap_or_default();
        let renewed = match self.renewed.len() {
            0 => String::new(),
            times => format!(", renewed {}", plural(times, "time")),
        };
        Some(format!("{life} to {}{cap}{renewed}", moment(until, now)))
    }

    fn held_by(&self) -> Option<String> {
        let host = self.host();
        if host.is_empty() {
            return None;
        }
        let held = self
            .fact(self.opened, "held_by")
            .map(|how| format!(", which holds the process by {how}"));
        Some(format!("agent{host}{}", held.unwrap_or_default()))
    }

    fn used(&self, now: UnixMillis) -> Option<String> {
        let used = self.used?.event.get("used")?;
        if used.get("where").and_then(Value::as_str) == Some("unknown") {
            let nobody = match self.issued.map(|record| text(record, "/credential/kind")) {
                Some("postgres" | "secret") => "its server was not seen to be asked with it",
                Some(_) | None => "no service introspected it",
            };
            return Some(format!("not known; {nobody}"));
        }
        let at = |field: &str| {
            used.get(field)?
                .as_str()?
                .parse()
                .ok()
                .map(|at| moment(at, now))
        };
        let mut parts = vec![path_of(used.get("where")?.as_str()?).to_owned()];
        match (at("first"), at("last")) {
            (Some(first), Some(last)) => parts.push(format!("{first} to {last}")),
            (Some(once), None) | (None, Some(once)) => parts.push(once),
            (None, None) => {}
        }
        if let Some(times) = used.get("count").and_then(Value::as_u64) {
            parts.push(plural(usize::try_from(times).unwrap_or(usize::MAX), "time"));
        }
        let source = used
            .get("source")
            .and_then(Value::as_str)
            .map(|source| format!(" (told by {source})"));
        Some(format!(
            "{}{}",
            parts.join(", "),
            source.unwrap_or_default()
        ))
    }

    fn ended(&self, now: UnixMillis) -> Option<String> {
        // Whichever came first: its task's end, or its own revocation.
        let began = [self.completed, self.began].into_iter().flatten();
        let record = began.min_by_key(|record| record.index)?;
        let at = moment(time(record, "/time")?, now);
        let cause = match text(record, "/cause") {
            "" => text(record, "/type")
                .split_once('.')
                .map_or("", |(_, verb)| verb),
            cause => cause,
        };
        let words = match cause {
            "exited" => "the process exited",
            "released" => "the task asked for it (`ephor run` does when its command ends)",
            "deadline" => "its deadline came",
            "lost" => "its host was lost",
            "revoked" => match self.fact(Some(record), "narrowed") {
                Some(why) => return Some(format!("{at}, {}: {why}", narrowed(record))),
                None => "it was revoked",
            },
            other => other,
        };
        let reason = told(record, "reason")
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        Some(format!("{at}, {words}{reason}"))
    }

    fn proof(&self, now: UnixMillis) -> Option<String> {
        let entry = self.evidence()?;
        let field = |name: &str| entry.get(name).and_then(Value::as_str);
        let found = match (field("proof"), field("state")) {
            (Some(proof), _) => proof,
            (None, state) => state_word(state.unwrap_or_default()),
        };
        let at = field("at")
            .and_then(|at| at.parse().ok())
            .map(|at| format!(", {}", moment(at, now)));
        let until = field("until").and_then(|until| until.parse().ok());
        let until = until.map(|until| {
            format!(
                "; a verifier that never asks takes it to {}",
                moment(until, now)
            )
        });
        let leaf = self
            .receipt
            .map(|record| format!("; leaf {}", record.index))
            .unwrap_or_default();
        let place = field("where").unwrap_or_default();
        Some(format!(
            "{found} at {place}{}{leaf}{}",
            at.unwrap_or_default(),
            until.unwrap_or_default()
        ))
    }
}

/// Which policy took it away.
fn narrowed(record: &Record) -> String {
    let version = text(record, "/policy_version");
    let version = version.get(..4).unwrap_or(version);
    format!("policy {version} no longer allows it")
}

/// Whether an event tells of the use of this credential.
fn uses(record: &Record, id: &str) -> bool {
    record.event.get("used").is_some() && text(record, "/credential/id") == id
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ephor_proto::id::{CredentialId, TaskId};
    use serde_json::json;

    fn credential(number: u8) -> String {
        CredentialId::from_parts(1, [number; 10]).to_string()
    }

    /// The events of one credential, and one of a stranger that must not be mixed in.
    fn pool() -> BTreeMap<u64, Record> {
        let task = TaskId::from_parts(1, [9; 10]).to_string();
        let decision = DecisionId::from_parts(1, [8; 10]).to_string();
        let part = |state: &str| {
            json!({"kind": "jwt", "id": credential(1), "scope": "billing", "state": state,
                "issued_at": "2026-11-21T14:02:09.000Z", "expires_at": "2026-11-21T14:07:09.000Z"})
        };
        let own = |event_type: &str, time: &str, state: &str| {
            json!({"type": event_type, "time": time, "task": task, "decision": decision, "outcome": "ok",
                "subject": "spiffe://td/orders/web", "agent": "spiffe://td/agent/web-3",
                "facts": {"capped_by": "ttl.kind.jwt"}, "credential": part(state)})
        };
        let mut listed = own("revoke.listed", "2026-11-21T14:05:10.100Z", "contained");
        listed["used"] = json!({"where": "spiffe://td/billing", "source": "introspection", "count": 2,
            "first": "2026-11-21T14:03:00Z", "last": "2026-11-21T14:04:00Z"});
        let events = [
            json!({"type": "attest.task_opened", "task": task, "agent": "spiffe://td/agent/web-3",
                "facts": {"pid": "4182", "exe": "/usr/bin/web", "held_by": "pidfd"}}),
            json!({"type": "decide.allowed", "task": task, "decision": decision, "owner": "team:orders",
                "policy_version": "6b1e55", "facts": {"rule": "orders.toml:12"},
                "reason": {"sha256": "x"}, "approval": {"how": "automatic"}}),
            own("issue.recorded", "2026-11-21T14:02:09.000Z", "live"),
            json!({"type": "decide.allowed", "task": task, "decision": "another", "owner": "team:others",
                "reason": "another reason"}),
            json!({"type": "complete.exited", "time": "2026-11-21T14:05:10.000Z", "task": task, "cause": "exited"}),
            listed,
            json!({"type": "prove.receipt", "task": task, "evidence": [
                {"credential": credential(2), "state": "dead", "proof": "expired", "where": "elsewhere"},
                {"credential": credential(1), "state": "contained", "where": "introspection",
                    "at": "2026-11-21T14:05:10.200Z", "until": "2026-11-21T14:07:09Z"}]}),
        ];
        let record = |(index, event)| {
            (
                index,
                Record {
                    index,
                    event,
                    personal: serde_json::Map::new(),
                },
            )
        };
        (80u64..).zip(events).map(record).collect()
    }

    fn told_of(pool: &BTreeMap<u64, Record>) -> String {
        of(
            &credential(1),
            pool,
            None,
            "2026-11-21T20:00:00Z".parse().unwrap(),
            false,
        )
    }

    #[test]
    fn a_whole_life_from_its_events() {
        let short = short_credential(&credential(1));
        let decision = DecisionId::from_parts(1, [8; 10]).short();
        let headline = format!("token {short} for billing");
        let expected = format!(
            "\
{headline:<40} LISTED since 14:05:10Z
  asked by     orders/web (pid 4182, /usr/bin/web) on web-3, 14:02:09Z
  because      (erased; the log keeps its hash)
  approved by  rule; no person was needed
  allowed by   orders.toml:12 at policy 6b1e, owner team:orders, decision {decision}
  lifetime     5m to 14:07:09Z, capped by ttl.kind.jwt
  held by      agent on web-3, which holds the process by pidfd
  used         billing, 14:03:00Z to 14:04:00Z, 2 times (told by introspection)
  ended        14:05:10Z, the process exited
  proof        listed at introspection, 14:05:10Z; leaf 86; a verifier that never asks takes it to 14:07:09Z
"
        );
        assert_eq!(told_of(&pool()), expected);
    }

    #[test]
    fn a_reason_is_told_while_it_is_kept() {
        let mut pool = pool();
        let decided = pool.get_mut(&81).unwrap();
        decided
            .personal
            .insert("reason".to_owned(), "INC-482\n  approved by  ana".into());
        let told = told_of(&pool);
        assert!(
            told.contains("  because      INC-482\\n  approved by  ana\n"),
            "{told}"
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut pool = pool();
        pool.retain(|index, _| *index == 82);
        let told = told_of(&pool);
        for absent in ["because", "used", "ended", "proof", "approved by"] {
            assert!(!told.contains(absent), "{absent} in {told}");
        }
        assert!(told.contains(" LIVE\n"), "{told}");
        assert!(told_of(&BTreeMap::new()).starts_with(&short_credential(&credential(1))));
    }

    #[test]
    fn its_own_revocation_before_its_tasks_end_is_what_ended_it() {
        let mut pool = pool();
        let mut started = pool.get(&85).unwrap().clone();
        started.event["type"] = json!("revoke.started");
        started.event["cause"] = json!("revoked");
        started.event["reason"] = json!({"sha256": "x"});
        started.event["time"] = json!("2026-11-21T14:03:30.000Z");
        started
            .personal
            .insert("reason".to_owned(), "leaked".into());
        started.index = 83;
        pool.insert(83, started);
        assert!(
            told_of(&pool).contains("  ended        14:03:30Z, it was revoked: leaked\n"),
            "{}",
            told_of(&pool)
        );
    }

    #[test]
    fn an_id_leads_to_its_credentials() {
        use super::super::about::{around, credentials};
        let records: Vec<Record> = pool().into_values().collect();
        assert_eq!(
            credentials(&records, "t-whatever"),
            [credential(1), credential(2)]
        );
        assert_eq!(credentials(&records, &credential(2)), [credential(2)]);
        assert_eq!(
            credentials(&records, &short_credential(&credential(1))),
            [credential(1)]
        );
        assert_eq!(around(&records, &[credential(1)]).len(), 2);
        assert!(around(&records, &[]).is_empty());
    }
}
