//! Decisions: who may, who may not, for how long, and in which words.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;
use crate::policy::tests::{EPHOR_TOML, ORDERS_TOML, sample, with};
use proptest::prelude::*;

const NOW: UnixMillis = UnixMillis::from_millis(1_800_000_000_750);
const FAR: UnixMillis = UnixMillis::from_millis(1_900_000_000_000);

fn id(path: &str) -> SpiffeId {
    format!("spiffe://prod.example/{path}").parse().unwrap()
}

fn query<'a>(candidates: &'a [SpiffeId], entitlement: &'a str, item: &'a str) -> Query<'a> {
    Query {
        candidates,
        subject: None,
        entitlement,
        item,
        requested: None,
        now: NOW,
        task_opened_at: NOW,
        task_deadline: None,
        ca_end: FAR,
        renewing: None,
    }
}

#[track_caller]
fn yes(policy: &Snapshot, query: &Query<'_>) -> Allowed {
    match decide(policy, query) {
        Verdict::Allowed(allowed) => allowed,
        Verdict::Denied(denied) => panic!("{denied:?}"),
    }
}

#[track_caller]
fn no(policy: &Snapshot, query: &Query<'_>) -> Denied {
    match decide(policy, query) {
        Verdict::Denied(denied) => denied,
        Verdict::Allowed(allowed) => panic!("{allowed:?}"),
    }
}

fn after(seconds: u64) -> UnixMillis {
    NOW.floor_second().saturating_add_millis(seconds * 1000)
}

#[test]
fn an_entitlement_by_its_rule() {
    let (policy, web) = (sample(), [id("orders/web")]);
    let allowed = yes(&policy, &query(&web, "billing-api", ""));
    assert_eq!(allowed.subject, web[0]);
    assert_eq!(
        (allowed.owner.as_str(), allowed.purpose.as_str()),
        ("team:billing", "Charge orders")
    );
    assert_eq!(allowed.rule, "orders.toml:13");
    assert_eq!(
        (allowed.expires_at, allowed.capped_by),
        (after(120), CappedBy::Entitlement)
    );
    assert_eq!(
        (allowed.issued_at, allowed.ttl),
        (NOW.floor_second(), Ttl::from_seconds(120))
    );
    assert_eq!(allowed.grant_until, None);
    assert_eq!(&*allowed.policy_version, policy.version());
    assert_eq!(
        allowed
            .gives
            .iter()
            .map(|given| &given.give)
            .collect::<Vec<_>>(),
        policy
            .entitlement("billing-api")
            .unwrap()
            .gives
            .iter()
            .collect::<Vec<_>>()
    );
}

#[test]
fn ones_own_identity_for_the_listed_audiences() {
    let (policy, web, api) = (sample(), [id("orders/web")], [id("billing/api")]);
    let allowed = yes(&policy, &query(&web, "identity", "search"));
    assert_eq!(
        (allowed.owner.as_str(), allowed.rule.as_str()),
        ("team:orders", "orders.toml:7")
    );
    assert_eq!(allowed.capped_by, CappedBy::TtlKind(Kind::Jwt));
    let Give::Jwt {
        audience,
        claims,
        identity: true,
    } = &allowed.gives[0].give
    else {
        panic!()
    };
    assert!(audience == "search" && claims.is_empty() && allowed.gives.len() == 1);

    let denied = no(&policy, &query(&web, "identity", "serch"));
    assert_eq!(denied.code, Code::AudienceNotAllowed);
    assert_eq!(
        denied.message,
        "identity of orders/web is for billing, search; you asked for serch (search?)"
    );
    assert_eq!(
        yes(&policy, &query(&api, "identity", "anything at all")).rule,
        "orders.toml:9"
    );

    let off =
        with("[workload.a]\nowner = \"team:a\"\nidentity = false\nruns = [{ uid = 1 }]\n").unwrap();
    let denied = no(&off, &query(&[id("a")], "identity", "x"));
    assert_eq!(
        (denied.code, denied.message.as_str()),
        (Code::AudienceNotAllowed, "a has no identity tokens")
    );
}

#[test]
fn malformed_audiences() {
    let (policy, api) = (sample(), [id("billing/api")]);
    let long = "x".repeat(513);
    for (item, words) in [
        ("a\nb", "the audience has control characters"),
        (long.as_str(), "the audience is longer than 512 bytes"),
    ] {
        let denied = no(&policy, &query(&api, "identity", item));
        assert_eq!(
            (denied.code, denied.message.as_str()),
            (Code::InvalidRequest, words)
        );
    }
    let web = [id("orders/web")];
    let denied = no(&policy, &query(&web, "billing-api", "x"));
    assert_eq!(denied.code, Code::InvalidRequest);
    assert_eq!(
        denied.message,
        "billing-api gives all it has at once; ask for it without x"
    );
}

/// A caller can't tell an entitlement of others from one that does not exist.
#[test]
fn what_is_others_reads_as_what_is_not() {
    let (policy, web) = (sample(), [id("orders/web")]);
    let theirs = no(&policy, &query(&web, "billing-tokens", ""));
    let absent = no(&policy, &query(&web, "billing-chests", ""));
    assert_eq!(theirs.code, Code::UnknownEntitlement);
    assert_eq!(
        theirs.message,
        "billing-tokens is for others or does not exist; you are orders/web, \
         and may have billing-api, identity"
    );
    assert_eq!(absent.code, theirs.code);
    assert_eq!(
        absent.message.replace("billing-chests", "billing-tokens"),
        theirs.message
    );
    // The item must not tell either.
    let theirs_with_item = no(&policy, &query(&web, "billing-tokens", "x"));
    assert_eq!(
        (theirs_with_item.code, theirs_with_item.message),
        (theirs.code, theirs.message)
    );
    // The operator is told.
    assert_eq!(
        theirs.reason,
        "billing-tokens of team:billing does not name orders/web in who"
    );
    assert_eq!(theirs.rule.as_deref(), Some("orders.toml:20"));
    assert_eq!(
        absent.reason,
        "the policy has no entitlement billing-chests"
    );
    assert_eq!((absent.rule, absent.subject), (None, Some(web[0].clone())));
}

#[test]
fn a_misspelt_name_gets_the_nearest_of_ones_own() {
    let (policy, web) = (sample(), [id("orders/web")]);
    let denied = no(&policy, &query(&web, "biling-api", ""));
    assert!(
        denied
            .message
            .starts_with("biling-api (billing-api?) is for others or"),
        "{}",
        denied.message
    );
    let odd = no(&policy, &query(&web, "a\u{1b}[31m\n", ""));
    assert!(
        !odd.message.chars().any(char::is_control) && !odd.reason.chars().any(char::is_control)
    );
}

#[test]
fn nobody_and_somebody_else() {
    let (policy, web) = (sample(), [id("orders/web")]);
    let nobody = no(&policy, &query(&[], "billing-api", ""));
    assert_eq!((nobody.code, nobody.subject), (Code::UnknownWorkload, None));
    assert_eq!(
        nobody.message,
        format!(
            "no workload of policy {} runs as this process on this host; whoami shows what was attested",
            policy.short_version()
        )
    );
    let other = Query {
        subject: Some("billing/api"),
        ..query(&web, "billing-api", "")
    };
    let denied = no(&policy, &other);
    assert_eq!(denied.code, Code::UnknownWorkload);
    assert_eq!(
        denied.message,
        "you are not billing/api; you are orders/web"
    );
}

#[test]
fn several_workloads() {
    let (policy, both) = (sample(), [id("orders/web"), id("billing/api")]);
    // Only one of them may have it.
    assert_eq!(
        yes(&policy, &query(&both, "billing-api", "")).subject,
        both[0]
    );
    assert_eq!(
        yes(&policy, &query(&both, "identity", "elsewhere")).subject,
        both[1]
    );
    // Each may: the request must say which.
    let denied = no(&policy, &query(&both, "identity", "billing"));
    assert_eq!(
        (denied.code, denied.subject),
        (Code::AmbiguousSubject, None)
    );
    assert_eq!(
        denied.message,
        "you are orders/web, billing/api, and identity is for each of them; name one as subject"
    );
    for name in ["billing/api", "spiffe://prod.example/billing/api"] {
        let named = Query {
            subject: Some(name),
            ..query(&both, "identity", "billing")
        };
        assert_eq!(yes(&policy, &named).subject, both[1]);
    }
    let twice = [both[0].clone(), both[0].clone()];
    assert_eq!(
        yes(&policy, &query(&twice, "billing-api", "")).subject,
        both[0]
    );
}

#[test]
fn a_candidate_that_the_policy_does_not_know_gets_nothing() {
    let stranger = [id("stranger")];
    for (entitlement, item) in [("identity", "x"), ("billing-api", "")] {
        let denied = no(&sample(), &query(&stranger, entitlement, item));
        assert!(matches!(
            denied.code,
            Code::AudienceNotAllowed | Code::UnknownEntitlement
        ));
    }
}

#[test]
fn each_cap_is_named_when_it_binds() {
    let api = [id("billing/api")];
    let plain = EPHOR_TOML.replace("[ttl.kind]\njwt = \"5m\"", "");
    let service = plain.replace("service = \"none\"", "service = \"20m\"");
    let of =
        |ephor: &str| Snapshot::from_texts(&[("e.toml", ephor), ("o.toml", ORDERS_TOML)]).unwrap();
    let (plain, service) = (of(&plain), of(&service));
    let ask = |seconds: u64| Query {
        requested: Some(Ttl::from_seconds(seconds)),
        ..query(&api, "identity", "x")
    };
    let ends = |policy: &Snapshot, query: &Query<'_>| {
        let allowed = yes(policy, query);
        (
            allowed.ttl.as_seconds(),
            allowed.capped_by.to_string(),
            allowed.grant_until,
        )
    };
    assert_eq!(
        ends(&plain, &query(&api, "identity", "x")),
        (900, "ttl.default".into(), None)
    );
    assert_eq!(ends(&plain, &ask(60)), (60, "request".into(), None));
    assert_eq!(ends(&plain, &ask(u64::MAX)), (3600, "ttl.max".into(), None));
    assert_eq!(
        ends(&sample(), &ask(1 << 63)),
        (300, "ttl.kind.jwt".into(), None)
    );
    let by_ca = Query {
        ca_end: after(30),
        ..ask(60)
    };
    assert_eq!(ends(&plain, &by_ca), (30, "ca".into(), None));
    let by_task = Query {
        task_deadline: Some(after(45)),
        ..ask(60)
    };
    assert_eq!(
        ends(&plain, &by_task),
        (45, "ttl.task".into(), Some(after(45)))
    );
    // `service` counts from the task's beginning, not from now.
    let opened = NOW.saturating_sub_millis(1_199_000);
    let by_service = Query {
        task_opened_at: opened,
        ..ask(60)
    };
    let end = opened.saturating_add_millis(1_200_000);
    assert_eq!(
        ends(&service, &by_service),
        (1, "ttl.task".into(), Some(end))
    );
    let by_grant = Query {
        renewing: Some(Window {
            until: Some(after(20)),
        }),
        ..ask(60)
    };
    assert_eq!(
        ends(&plain, &by_grant),
        (20, "approval".into(), Some(after(20)))
    );
}

#[test]
fn no_time_left() {
    let (policy, api) = (sample(), [id("billing/api")]);
    let base = query(&api, "identity", "x");
    let code = |query: &Query<'_>| no(&policy, query).code;
    assert_eq!(
        code(&Query {
            requested: Some(Ttl::from_seconds(0)),
            ..base.clone()
        }),
        Code::TtlZero
    );
    assert_eq!(
        code(&Query {
            task_deadline: Some(NOW),
            ..base.clone()
        }),
        Code::TaskEnded
    );
    assert_eq!(
        code(&Query {
            ca_end: NOW,
            ..base.clone()
        }),
        Code::NoTimeLeft
    );
    let spent = Some(Window {
        until: Some(after(0)),
    });
    assert_eq!(
        code(&Query {
            renewing: spent,
            ..base
        }),
        Code::NoTimeLeft
    );
}

#[test]
fn a_newer_policy_narrows_a_grant_and_never_widens_it() {
    let (old, api) = (sample(), [id("billing/api")]);
    let end = after(100);
    let grant = Some(Window { until: Some(end) });
    let renewal = Query {
        renewing: grant,
        ..query(&api, "identity", "x")
    };
    assert_eq!(yes(&old, &renewal).grant_until, Some(end));
    let narrow = EPHOR_TOML.replace("service = \"none\"", "service = \"50s\"");
    let narrow = Snapshot::from_texts(&[("e.toml", &narrow), ("o.toml", ORDERS_TOML)]).unwrap();
    let allowed = yes(&narrow, &renewal);
    assert!(allowed.grant_until < Some(end) && allowed.expires_at < end);
    let wide = EPHOR_TOML.replace("service = \"none\"", "service = \"9d\"");
    let wide = Snapshot::from_texts(&[("e.toml", &wide), ("o.toml", ORDERS_TOML)]).unwrap();
    assert_eq!(yes(&wide, &renewal).grant_until, Some(end));
}

/// A policy with any TTLs that load.
fn any_policy() -> impl Strategy<Value = Snapshot> {
    let span = || proptest::option::of(1u64..10_000);
    (1u64..10_000, 0u64..10_000, span(), span(), span()).prop_map(|(default, more, jwt, service, own)| {
        let max = default + more;
        let line = |key: &str, ttl: Option<u64>| {
            ttl.map(|ttl| format!("{key} = \"{}s\"\n", ttl.min(max))).unwrap_or_default()
        };
        let service = service.map_or("none".to_owned(), |ttl| format!("{ttl}s"));
        let text = format!(
            "trust_domain = \"prod.example\"\n[ttl]\ndefault = \"{default}s\"\nmax = \"{max}s\"\n\
             service = \"{service}\"\n[ttl.kind]\n{}\
             [workload.a]\nowner = \"team:a\"\nruns = [{{ uid = 1 }}]\n\
             [entitlement.e]\nowner = \"team:a\"\npurpose = \"p\"\nwho = [\"a\"]\n{}\
             gives = [{{ jwt = {{ audience = \"x\" }} }}]\n",
            line("jwt", jwt),
            line("ttl", own),
        );
        Snapshot::from_texts(&[("p.toml", &text)]).unwrap()
    })
}

fn any_time() -> impl Strategy<Value = UnixMillis> {
    let near = 1_799_990_000_000u64..1_800_020_000_000;
    prop_oneof![near, any::<u64>()].prop_map(UnixMillis::from_millis)
}

proptest! {
    #[test]
    fn no_cap_is_ever_exceeded(
        policy in any_policy(), identity in any::<bool>(),
        requested in proptest::option::of(prop_oneof![1u64..20_000, any::<u64>()]),
        now in any_time(), opened in any_time(), ca_end in any_time(),
        deadline in proptest::option::of(any_time()),
        renewing in proptest::option::of(proptest::option::of(any_time())),
    ) {
        let me = [id("a")];
        let (entitlement, item) = if identity { ("identity", "x") } else { ("e", "") };
        let query = Query {
            requested: requested.map(Ttl::from_seconds),
            now,
            task_opened_at: opened,
            task_deadline: deadline,
            ca_end,
            renewing: renewing.map(|until| Window { until }),
            ..query(&me, entitlement, item)
        };
        let Verdict::Allowed(allowed) = decide(&policy, &query) else { return Ok(()) };
        let ttl = policy.ttl();
        let own = policy.entitlement(entitlement).and_then(|e| e.ttl);
        let asked_or_default = query.requested.unwrap_or(ttl.default);
        for cap in [Some(asked_or_default), Some(ttl.max), ttl.jwt, own].into_iter().flatten() {
            prop_assert!(allowed.ttl <= cap);
            prop_assert!(allowed.expires_at <= now.saturating_add(cap));
        }
        let grant = renewing.flatten();
        for end in [deadline, grant, policy.task_deadline(opened), Some(ca_end)].into_iter().flatten() {
            prop_assert!(allowed.expires_at <= end);
        }
        prop_assert!(allowed.expires_at > now && allowed.issued_at <= now);
        prop_assert_eq!(allowed.issued_at.saturating_add(allowed.ttl), allowed.expires_at);
        if let Some(end) = grant {
            prop_assert!(allowed.grant_until.is_some_and(|until| until <= end));
        }
        if let Some(until) = allowed.grant_until {
            prop_assert!(allowed.expires_at <= until);
        }
    }

    #[test]
    fn deciding_never_panics_and_never_allows_strangers(
        subject in proptest::option::of("\\PC{0,20}"), entitlement in "\\PC{0,80}", item in ".{0,40}",
    ) {
        let policy = sample();
        let stranger = [id("stranger")];
        let query = Query { subject: subject.as_deref(), ..query(&stranger, &entitlement, &item) };
        let Verdict::Denied(denied) = decide(&policy, &query) else { panic!("allowed") };
        prop_assert!(!denied.message.chars().any(char::is_control));
        prop_assert!(!denied.message.contains("team:"));
    }
}
