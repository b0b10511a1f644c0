//! The policy of `ephor dev` loads, whoever starts it.

use super::*;
use ephor_proto::ttl::Limit;

#[test]
fn any_user_gets_a_policy_that_loads() {
    let odd = [
        "",
        ".",
        "..",
        "a b",
        "a/b",
        "DOMAIN\\bo",
        "bo@x",
        "é",
        "\"]\nx",
        "bo$",
        &"b".repeat(3000),
    ];
    for user in odd {
        assert_eq!(dev_path(1000, user), "dev/uid-1000", "{user}");
    }
    for user in ["bo", "root", "b.o-1_2"].into_iter().chain(odd) {
        let policy = Snapshot::from_texts(&[("dev.toml", &dev_policy(1000, user))]).unwrap();
        assert_eq!(policy.trust_domain().as_str(), "dev.ephor");
        assert_eq!(policy.ttl().default.to_string(), "5m");
        assert_eq!(
            (policy.ttl().max.to_string(), policy.ttl().service),
            ("1h".into(), Limit::None)
        );
        let evidence = Evidence {
            uid: 1000,
            ..Evidence::default()
        };
        let found = policy.match_workloads("any", &evidence).subjects;
        let path = dev_path(1000, user);
        assert_eq!(
            found,
            [format!("spiffe://dev.ephor/{path}").parse().unwrap()]
        );
        assert!(
            policy
                .match_workloads(
                    "any",
                    &Evidence {
                        uid: 1001,
                        ..evidence
                    }
                )
                .subjects
                .is_empty()
        );
    }
    assert_eq!(dev_path(1000, "bo"), "dev/bo");
}
