//! What a good policy becomes, and what only fails across files.

use super::*;
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::{Limit, Ttl};

fn errors(files: &[(&str, &str)]) -> Vec<String> {
    let refused = Snapshot::from_texts(files).expect_err("accepted");
    refused.iter().map(ToString::to_string).collect()
}

#[test]
fn the_sample_of_the_design() {
    let policy = sample();
    assert_eq!(policy.trust_domain().as_str(), "prod.example");
    let ttl = policy.ttl();
    assert_eq!(
        (ttl.default.to_string(), ttl.max.to_string()),
        ("15m".into(), "1h".into())
    );
    assert_eq!(
        (ttl.task, ttl.service),
        (Limit::Within(Ttl::from_seconds(43_200)), Limit::None)
    );
    assert_eq!(ttl.jwt, Some(Ttl::from_seconds(300)));
    assert_eq!(policy.task_deadline(UnixMillis::from_millis(1)), None);

    let web = policy
        .workload(&"spiffe://prod.example/orders/web".parse().unwrap())
        .unwrap();
    assert_eq!(
        (web.owner.as_str(), web.deputy.as_deref()),
        ("team:orders", Some("alice@example.com"))
    );
    assert_eq!(web.purpose, "Identity of orders/web");
    assert_eq!(
        web.identity,
        Identity::Audiences(vec!["billing".into(), "search".into()])
    );
    assert_eq!(
        (web.place.rule(), web.identity_place.rule()),
        ("orders.toml:2".into(), "orders.toml:7".into())
    );
    assert_eq!(
        web.runs[0].to_string(),
        "user orders, exe /usr/bin/orders-web, unit orders.service, on web-*"
    );

    let billing = policy.entitlement("billing-api").unwrap();
    assert_eq!(
        (billing.purpose.as_str(), billing.place.rule()),
        ("Charge orders", "orders.toml:13".into())
    );
    assert_eq!(billing.who, std::slice::from_ref(&web.subject));
    let Give::Jwt {
        audience,
        claims,
        identity: false,
    } = &billing.gives[0]
    else {
        panic!()
    };
    assert_eq!(audience, "billing");
    let json = serde_json::json!({ "plan": "gold", "limits": { "daily": 3 }, "beta": true });
    assert_eq!(serde_json::Value::Object(claims.clone()), json);

    let api = "spiffe://prod.example/billing/api".parse().unwrap();
    assert!(policy.introspects(&api, "billing") && !policy.introspects(&api, "search"));
    assert!(!policy.introspects(&web.subject, "billing"));
    assert!(policy.warnings().is_empty());
}

#[test]
fn versions_are_hashes_and_stay() {
    let policy = sample();
    assert_eq!(policy.version().len(), 64);
    assert_eq!(policy.version(), sample().version());
    assert!(policy.version().starts_with(policy.short_version()));
    assert_eq!(policy.short_version().len(), 4);
    let changed = with(&format!("{ORDERS_TOML}\n# a comment")).unwrap();
    assert_ne!(changed.version(), policy.version());
}

#[test]
fn a_directory_is_checked_and_summed_up() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ephor.toml"), EPHOR_TOML).unwrap();
    std::fs::write(dir.path().join("orders.toml"), ORDERS_TOML).unwrap();
    let summary = check(dir.path()).unwrap();
    assert_eq!(summary.version, sample().version());
    let short = sample().short_version().to_owned();
    assert_eq!(
        summary.to_string(),
        format!("ok: policy {short} for prod.example: 2 workloads, 2 entitlements")
    );
    std::fs::write(dir.path().join("a.toml"), "[ci.x]\n").unwrap();
    let refused = check(dir.path()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "invalid: ci is not supported by this version. a.toml:1:2. \
         It would not be enforced, so it is refused."
    );
}

#[test]
fn what_must_be_there_once() {
    let ttl = "[ttl]\ndefault = \"1m\"\nmax = \"5m\"\n";
    assert_eq!(
        errors(&[("a.toml", ttl)]),
        ["invalid: the policy has no trust_domain. *.toml. \
          Add trust_domain = \"prod.example\" to one file."]
    );
    assert_eq!(
        errors(&[("a.toml", "trust_domain = \"x\"")]),
        [
            "invalid: the policy has no [ttl]. *.toml. Add [ttl] with default = \"15m\" and max = \"1h\"."
        ]
    );
    let bad_domain = format!("trust_domain = \"Prod\"\n{ttl}");
    assert_eq!(
        errors(&[("a.toml", &bad_domain)]),
        [
            "invalid: trust_domain: `Prod` is no SPIFFE name: a trust domain may only have a-z, 0-9, \
          '.', '_' and '-' (byte 0). a.toml:1:16."
        ]
    );
}

#[test]
fn doubles_across_files_name_both_places() {
    let again = "[workload.\"orders/web\"]\nowner = \"team:x\"\nruns = [{ uid = 1 }]\n\
                 [entitlement.billing-api]\nowner = \"team:x\"\npurpose = \"p\"\nwho = [\"orders/web\"]\n\
                 gives = [{ introspect = { audience = \"x\" } }]\n";
    let files = [
        ("ephor.toml", EPHOR_TOML),
        ("orders.toml", ORDERS_TOML),
        ("z.toml", again),
    ];
    assert_eq!(
        errors(&files),
        [
            "invalid: [workload.\"orders/web\"] is already in orders.toml:2:11. z.toml:1:11. Keep one of them.",
            "invalid: [entitlement.billing-api] is already in orders.toml:13:14. z.toml:4:14. Keep one of them.",
        ]
    );
}

#[test]
fn ttls_that_contradict_each_other() {
    let of = |ttl: &str| errors(&[("a.toml", &format!("trust_domain = \"x\"\n[ttl]\n{ttl}"))]);
    assert_eq!(
        of("default = \"2h\"\nmax = \"1h\"\nkind = { jwt = \"90m\" }\n"),
        [
            "invalid: default = 2h is above [ttl] max = 1h (a.toml:4:7). a.toml:3:11. Write at most 1h, or raise max.",
            "invalid: jwt = 1h30m is above [ttl] max = 1h (a.toml:4:7). a.toml:5:16. Write at most 1h, or raise max.",
        ]
    );
    assert_eq!(
        of("default = \"0s\"\n"),
        [
            "invalid: [ttl] has no max. a.toml:2:2. Add max = \"1h\": no credential lives longer.",
            "invalid: default: `0s` is not a whole number of seconds above 0. a.toml:3:11.",
        ]
    );
    assert_eq!(
        of(
            "default = \"1m\"\nmax = \"1h\"\nservice = \"never\"\ntask = \"0s\"\nkind = { ssh = \"1m\", jtw = \"1m\" }\ngrace = \"1d\"\n"
        ),
        [
            "invalid: service: `never` is no duration (such as 15m, 1h or 90d). a.toml:5:11.",
            "invalid: task: `0s` is not a whole number of seconds above 0. a.toml:6:8.",
            "invalid: ssh is not supported by this version. a.toml:7:10. It would not be enforced, so it is refused.",
            "invalid: jtw is no key of [ttl.kind] (jwt?). a.toml:7:22. Keys here: jwt, x509, postgres, secret.",
            "invalid: grace is no key of [ttl]. a.toml:8:1. Keys here: default, max, task, service, kind.",
        ]
    );
}

/// A file that is no TOML may hold what others refer to: only its own error is reported.
#[test]
fn a_broken_file_does_not_blame_the_others() {
    let broken = "[workload.\"orders/api\"\nowner = \"team:x\"\n";
    let refers = ORDERS_TOML.replace("who     = [\"orders/web\"]", "who = [\"orders/api\"]");
    let found = errors(&[("broken.toml", broken), ("orders.toml", &refers)]);
    assert!(
        found
            .iter()
            .all(|error| error.contains("not TOML") && error.contains("broken.toml:1:")),
        "{found:?}"
    );
    assert!(!found.is_empty());
}

#[test]
fn too_much_of_anything_is_refused() {
    let runs = vec!["{ uid = 1 }"; limits::MAX_RUNS + 1].join(", ");
    let hosts = vec!["\"a\""; limits::MAX_HOSTS + 1].join(", ");
    let audiences = vec!["\"a\""; limits::MAX_AUDIENCES + 1].join(", ");
    let gives: Vec<String> = (0..=limits::MAX_GIVES)
        .map(|n| format!("{{ introspect = {{ audience = \"{n}\" }} }}"))
        .collect();
    let claims: Vec<String> = (0..=limits::MAX_CLAIMS)
        .map(|n| format!("c{n} = 1"))
        .collect();
    let big = "x".repeat(limits::MAX_CLAIMS_BYTES);
    let (gives, claims) = (gives.join(", "), claims.join(", "));
    let text = format!(
        "[workload.a]\nowner = \"team:a\"\nruns = [{runs}]\nidentity = {{ audiences = [{audiences}] }}\n\
         [workload.b]\nowner = \"team:a\"\nruns = [{{ uid = 1, hosts = [{hosts}] }}]\n\
         [entitlement.e]\nowner = \"team:a\"\npurpose = \"p\"\nwho = [\"a\"]\ngives = [{gives}]\n\
         [entitlement.f]\nowner = \"team:a\"\npurpose = \"p\"\nwho = [\"a\"]\n\
         gives = [{{ jwt = {{ audience = \"x\", claims = {{ {claims} }} }} }}, \
         {{ jwt = {{ audience = \"y\", claims = {{ big = \"{big}\" }} }} }}]\n"
    );
    let found = with(&text).unwrap_err().to_string();
    for words in [
        "runs of [workload.a] has 65 items, more than 64. orders.toml:3:1.",
        "257 audiences, more than 256. orders.toml:4:12.",
        "257 hosts, more than 256. orders.toml:7:20.",
        "gives has 17 items, more than 16. orders.toml:12:1.",
        "33 claims, more than 32. orders.toml:17:",
        "the claims are 4106 bytes of JSON, more than 4096. orders.toml:17:",
    ] {
        assert!(found.contains(words), "{words}\n{found}");
    }
    assert_eq!(found.lines().count(), 6);
}

#[test]
fn a_rule_that_any_user_can_meet_is_warned_about() {
    let policy =
        with("[workload.a]\nowner = \"team:a\"\nruns = [{ exe = \"/opt/a\", hosts = [\"h\"] }]\n")
            .unwrap();
    assert_eq!(
        Summary::of(&policy).to_string().lines().nth(1).unwrap(),
        "warning: any user of the host can be a. orders.toml:3:9. \
         Whoever may run a program controls it; add user, uid or systemd."
    );
}

#[test]
fn an_error_never_holds_control_characters() {
    let text = "[workload.\"a\\u001b[31m\\n\"]\nowner = \"\\u0007\\u202e\"\nruns = [{ user = \"a\\nb\" }]\n";
    let found = with(text).unwrap_err();
    for error in found.iter() {
        assert!(
            !error
                .to_string()
                .chars()
                .any(|c| c.is_control() || c == '\u{202e}'),
            "{error:?}"
        );
    }
}

/// The reference for people holds files that load, and errors that are printed so.
#[test]
fn the_examples_of_the_reference_are_true() {
    let page = include_str!("../../../../docs/policy.md");
    let blocks: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    let [ephor, orders, targets, cases] = blocks[..] else {
        panic!("{}", blocks.len())
    };
    let files = |orders: &str| {
        Snapshot::from_texts(&[
            ("ephor.toml", ephor),
            ("orders.toml", orders),
            ("targets.toml", targets),
        ])
    };
    let policy = files(orders).unwrap();
    let results = crate::policy::Cases::parse(cases).unwrap().run(&policy);
    assert!(
        !results.is_empty() && results.iter().all(|case| case.holds),
        "{results:#?}"
    );
    assert_eq!(
        (
            policy.workloads().len(),
            policy.entitlements().len(),
            policy.targets().count()
        ),
        (2, 3, 1)
    );
    let wrong = orders
        .replacen("owner ", "ownr ", 1)
        .replace("who     = [\"orders/web\"]", "who     = [\"orders/wed\"]")
        .replace(
            "ttl     = \"2m\"",
            "ttl     = \"2h\"\napprove = [\"1 of team:billing\"]",
        );
    let shown = page
        .split("\ninvalid: ")
        .skip(1)
        .map(|rest| rest.lines().next().unwrap());
    let shown: Vec<String> = shown.map(|line| format!("invalid: {line}")).collect();
    let found: Vec<String> = files(&wrong)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(found, shown);
}

const TARGET: &str = r#"[workload."orders/web"]
owner = "team:orders"
runs  = [{ uid = 990 }]

[entitlement.orders-db]
owner   = "team:orders"
purpose = "Serve the order page"
who     = ["orders/web"]
gives   = [{ postgres = { target = "orders", roles = ["Orders RW", "r2"], connection_limit = 10, settings = { statement_timeout = "30s", jit = false, work_mem = 64 } } }]
ttl     = "10m"

[target.orders]
owner    = "team:orders"
postgres = { url = "postgres://ephor@db1/orders", databases = ["orders", "billing"], standbys = ["db2:5433"], scram_iterations = 256 }
"#;

#[test]
fn a_target_and_its_login() {
    let policy = with(TARGET).unwrap();
    let target = policy.target("orders").unwrap();
    assert_eq!(
        (target.owner.as_str(), target.place.rule()),
        ("team:orders", "orders.toml:12".into())
    );
    let server = &target.postgres;
    assert_eq!(
        (server.user.as_str(), server.database.as_str()),
        ("ephor", "orders")
    );
    assert_eq!(server.address.to_string(), "db1:5432");
    assert_eq!(server.databases, ["orders", "billing"]);
    assert_eq!(
        server
            .standbys
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["db2:5433"]
    );
    assert_eq!(
        (server.admin_database.as_str(), server.tls),
        ("ephor", Tls::VerifyFull)
    );
    assert_eq!((server.scram_iterations, server.connections), (256, 8));
    let entitlement = policy.entitlement("orders-db").unwrap();
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        entitlement.gives,
        [Give::Postgres {
            target: "orders".into(),
            roles: vec!["Orders RW".into(), "r2".into()],
            database: "orders".into(),
            connection_limit: Some(10),
            settings: vec![
                set("jit", "off"),
                set("statement_timeout", "30s"),
                set("work_mem", "64")
            ],
            login: LoginBy::Password,
            reassign: false,
        }]
    );
    let ways = policy.explain(&ephor_proto::http::admin::Explain {
        entitlement: Some("orders-db".into()),
        ..Default::default()
    });
    let way = &ways.unwrap().ways[0];
    assert_eq!(
        way.gives,
        "login as Orders RW, r2 on orders/orders, at most 10 sessions, jit=off, statement_timeout=30s, work_mem=64"
    );
    assert_eq!(
        (way.ttl_seconds, way.capped_by.as_str()),
        (600, "entitlement")
    );
    let short = policy.short_version().to_owned();
    assert_eq!(
        Summary::of(&policy).to_string(),
        format!("ok: policy {short} for prod.example: 1 workload, 1 entitlement, 1 target")
    );
}

#[test]
fn a_login_by_certificate_is_one_and_says_so() {
    let text = TARGET.replace("roles = ", "login = \"certificate\", roles = ");
    assert_ne!(text, TARGET);
    let policy = with(&text).unwrap();
    let gives = &policy.entitlement("orders-db").unwrap().gives;
    let by = |give: &Give| match give {
        Give::Postgres { login, .. } => Some(*login),
        Give::Secret { .. } | Give::Jwt { .. } | Give::X509 { .. } | Give::Introspect { .. } => {
            None
        }
    };
    assert_eq!(
        gives.iter().filter_map(by).collect::<Vec<_>>(),
        [LoginBy::Certificate]
    );
    let ways = policy.explain(&ephor_proto::http::admin::Explain {
        entitlement: Some("orders-db".into()),
        ..Default::default()
    });
    let said = &ways.unwrap().ways[0].gives;
    assert!(said.ends_with(", by certificate"), "{said}");
}

#[test]
fn logins_obey_a_ceiling_of_their_own() {
    let ephor = EPHOR_TOML.replace("jwt = \"5m\"", "jwt = \"5m\"\npostgres = \"7m\"");
    let policy = Snapshot::from_texts(&[("e.toml", &ephor), ("o.toml", TARGET)]).unwrap();
    let explain = |entitlement: &str| ephor_proto::http::admin::Explain {
        entitlement: Some(entitlement.into()),
        ..Default::default()
    };
    let way = &policy.explain(&explain("orders-db")).unwrap().ways[0];
    assert_eq!(
        (way.ttl_seconds, way.capped_by.as_str()),
        (420, "ttl.kind.postgres")
    );
    let above = EPHOR_TOML.replace("jwt = \"5m\"", "postgres = \"2h\"");
    let error = Snapshot::from_texts(&[("e.toml", &above)])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("postgres = 2h is above [ttl] max = 1h"),
        "{error}"
    );
}

#[test]
fn a_target_in_clear_is_warned_about_unless_it_is_here() {
    let warned = |url: &str, more: &str| {
        let text = format!(
            "[target.a]\nowner = \"team:a\"\npostgres = {{ url = \"{url}\", tls = \"off\"{more} }}"
        );
        let policy = with(&text).unwrap();
        policy
            .warnings()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        warned("postgres://e@db1/o", ""),
        [
            "warning: target a is spoken to over the network without TLS. orders.toml:3:42. Whoever is on the way can \
             read and take over; remove tls = \"off\"."
        ]
    );
    assert_eq!(
        warned("postgres://e@127.0.0.1/o", ", standbys = [\"db2:5432\"]").len(),
        1
    );
    for here in [
        "postgres://e@localhost/o",
        "postgres://e@[::1]/o",
        "postgres://e@/o?host=/tmp",
    ] {
        assert!(warned(here, "").is_empty(), "{here}");
    }
}

/// A password may stand anywhere in a wrong URL; an error is shown, stored and sent.
#[test]
fn no_error_of_a_target_shows_a_password() {
    for url in [
        "\"postgres://ephor:hunter2@db1/orders\"",
        "\"postgres://ephor:hunter2/x@db1/orders\"",
        "\"mysql://ephor:hunter2@db1/orders\"",
        "\"postgres://ephor@db1/orders?password=hunter2\"",
        "\"postgres://ephor@db1:hunter2/orders\"",
        "[\"hunter2\"]",
        "{ password = \"hunter2\" }",
    ] {
        let text = format!("[target.a]\nowner = \"team:a\"\npostgres = {{ url = {url} }}");
        let error = with(&text).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_large_policy_loads() {
    let mut text = String::new();
    for n in 0..10_000 {
        text.push_str(&format!(
            "[workload.\"t{n}/w\"]\nowner = \"team:t{n}\"\nruns = [{{ user = \"svc\", systemd = \"t{n}.service\" }}]\n\
             [entitlement.e{n}]\nowner = \"team:t\"\npurpose = \"p\"\nwho = [\"t{n}/w\"]\n\
             gives = [{{ jwt = {{ audience = \"a{n}\" }} }}]\n"
        ));
    }
    let policy = with(&text).unwrap();
    let evidence = Evidence {
        user: "svc".into(),
        unit: "t77.service".into(),
        ..Evidence::default()
    };
    let matched = policy.match_workloads("web-1", &evidence);
    assert_eq!(
        matched.subjects,
        ["spiffe://prod.example/t77/w".parse().unwrap()]
    );
    assert_eq!(policy.candidates("web-1", &evidence), 1);
}
