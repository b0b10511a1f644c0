//! Every way to a credential, seen from each end.

use super::*;
use ephor_proto::http::admin::{Explain, Way};

fn ask(subject: Option<&str>, host: Option<&str>, entitlement: Option<&str>) -> Explain {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Explain {
        subject: owned(subject),
        host: owned(host),
        entitlement: owned(entitlement),
    }
}

fn lines(query: &Explain) -> Vec<String> {
    let line = |way: &Way| {
        format!(
            "{} {}: {} {}s by {}, {} [{}]",
            way.subject.trim_start_matches("spiffe://prod.example/"),
            way.entitlement,
            way.gives,
            way.ttl_seconds,
            way.capped_by,
            way.rule,
            way.runs.join(" | ")
        )
    };
    sample()
        .explain(query)
        .unwrap()
        .ways
        .iter()
        .map(line)
        .collect()
}

const WEB: &str = "user orders, exe /usr/bin/orders-web, unit orders.service, on web-*";
const API: &str = "uid 990, unit billing.service, on every host";

#[test]
fn a_subject_by_path_or_whole_id() {
    let expected = [
        format!(
            "orders/web identity: identity certificate 3600s by ttl.max, orders.toml:7 [{WEB}]"
        ),
        format!(
            "orders/web identity: identity token for billing, search 300s by ttl.kind.jwt, orders.toml:7 [{WEB}]"
        ),
        format!(
            "orders/web billing-api: token for billing with beta, limits, plan 120s by entitlement, orders.toml:13 [{WEB}]"
        ),
    ];
    assert_eq!(lines(&ask(Some("orders/web"), None, None)), expected);
    assert_eq!(
        lines(&ask(Some("spiffe://prod.example/orders/web"), None, None)),
        expected
    );
}

#[test]
fn all_that_a_compromised_host_could_obtain() {
    let on_db = lines(&ask(None, Some("db-1"), None));
    assert_eq!(
        on_db,
        [
            format!(
                "billing/api identity: identity certificate 3600s by ttl.max, orders.toml:9 [{API}]"
            ),
            format!(
                "billing/api identity: identity token for any audience 300s by ttl.kind.jwt, orders.toml:9 [{API}]"
            ),
            format!(
                "billing/api billing-tokens: may introspect tokens for billing 300s by ttl.kind.jwt, orders.toml:20 [{API}]"
            ),
        ]
    );
    assert_eq!(lines(&ask(None, Some("web-1"), None)).len(), 6);
}

#[test]
fn only_the_rules_of_that_host_are_shown() {
    let text = "[workload.a]\nowner = \"team:a\"\nidentity = false\n\
                runs = [{ uid = 1, hosts = [\"x\"] }, { uid = 2, hosts = [\"y\"] }]\n\
                [entitlement.e]\nowner = \"team:a\"\npurpose = \"p\"\nwho = [\"a\"]\n\
                gives = [{ jwt = { audience = \"q\" } }]\n";
    let policy = with(text).unwrap();
    let explained = policy.explain(&ask(None, Some("y"), None)).unwrap();
    assert_eq!(explained.policy_version, policy.version());
    assert_eq!(explained.ways.len(), 1);
    assert_eq!(explained.ways[0].runs, ["uid 2, on y"]);
    assert!(
        policy
            .explain(&ask(None, Some("z"), None))
            .unwrap()
            .ways
            .is_empty()
    );
}

#[test]
fn who_can_get_an_entitlement() {
    assert_eq!(lines(&ask(None, None, Some("billing-api"))).len(), 1);
    assert_eq!(lines(&ask(None, None, Some("identity"))).len(), 4);
}

#[test]
fn what_is_not_there_gets_the_nearest() {
    let policy = sample();
    let short = policy.short_version();
    let no = |query: &Explain| policy.explain(query).unwrap_err().to_string();
    assert_eq!(
        no(&ask(Some("orders/wed"), None, None)),
        format!("orders/wed does not exist (orders/web?); policy {short} is in force")
    );
    assert_eq!(
        no(&ask(None, None, Some("billing-apis"))),
        format!("billing-apis does not exist (billing-api?); policy {short} is in force")
    );
    assert!(no(&ask(None, Some("a/b"), None)).starts_with("`a/b` is no host name"));
    assert_eq!(
        policy.explain(&Explain::default()).unwrap_err(),
        ExplainError::NotOne
    );
    assert_eq!(
        policy
            .explain(&ask(Some("a"), Some("b"), None))
            .unwrap_err(),
        ExplainError::NotOne
    );
    assert_eq!(
        policy
            .explain(&ask(Some("a"), None, Some("b")))
            .unwrap_err(),
        ExplainError::NotOne
    );
}
