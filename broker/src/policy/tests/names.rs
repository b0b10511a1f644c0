//! Names that elsewhere meant more than they said (OpenBao GHSA-mwr2): here they are no names.

use super::*;

#[test]
fn attack_119_names_that_mean_nothing_or_too_much_are_refused() {
    let texts = |orders: &str| {
        Snapshot::from_texts(&[("ephor.toml", EPHOR_TOML), ("orders.toml", orders)]).map(drop)
    };
    texts(ORDERS_TOML).unwrap();
    let bad = [
        "", ".", "..", "/", "a/..", "../a", "a//b", "a/", "a b", "Root", "a%2fb", "agent/x",
        "broker/x",
    ];
    for name in bad {
        let workload = ORDERS_TOML.replace("\"orders/web\"", &format!("{name:?}"));
        // A workload is a path of a SPIFFE ID, which may have capitals.
        assert_eq!(
            texts(&workload).is_ok(),
            name == "Root",
            "workload {name:?}"
        );
        let entitlement = ORDERS_TOML.replace(
            "[entitlement.billing-api]",
            &format!("[entitlement.{name:?}]"),
        );
        assert!(texts(&entitlement).is_err(), "entitlement {name:?}");
        let target = format!(
            "{ORDERS_TOML}\n[target.{name:?}]\nowner = \"team:dba\"\npostgres = {{ url = \"postgres://ephor@db1/orders\" }}\n"
        );
        assert!(texts(&target).is_err(), "target {name:?}");
    }
    // No name has a right of its own: this one is as good as any other, and means no more.
    texts(&ORDERS_TOML.replace("\"orders/web\"", "\"root/root\"")).unwrap();
}
