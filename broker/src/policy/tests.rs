//! A policy as its author writes it, right and wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod dev;
mod explain;
mod load;
mod matching;
mod names;
mod wrong;

use super::*;

/// docs/policy.md as an example.
pub(crate) const EPHOR_TOML: &str = r#"# policy/ephor.toml
trust_domain = "prod.example"

[ttl]
default = "15m"
max     = "1h"
task    = "12h"
service = "none"
[ttl.kind]
jwt = "5m"
"#;

/// docs/policy.md as an example.
pub(crate) const ORDERS_TOML: &str = r#"# policy/orders.toml
[workload."orders/web"]
owner  = "team:orders"
deputy = "alice@example.com"
runs   = [{ user = "orders", exe = "/usr/bin/orders-web", systemd = "orders.service", hosts = ["web-*"] }]

identity = { audiences = ["billing", "search"] }

[workload."billing/api"]
owner = "team:billing"
runs  = [{ uid = 990, systemd = "billing.service" }]

[entitlement.billing-api]
owner   = "team:billing"
purpose = "Charge orders"
who     = ["orders/web"]
gives   = [{ jwt = { audience = "billing", claims = { plan = "gold", limits = { daily = 3 }, beta = true } } }]
ttl     = "2m"

[entitlement.billing-tokens]
owner   = "team:billing"
purpose = "Check callers"
who     = ["billing/api"]
gives   = [{ introspect = { audience = "billing" } }]
"#;

/// The sample, compiled.
pub(crate) fn sample() -> Snapshot {
    Snapshot::from_texts(&[("ephor.toml", EPHOR_TOML), ("orders.toml", ORDERS_TOML)]).unwrap()
}

/// The sample's `ephor.toml` with other tables beside it.
pub(crate) fn with(orders: &str) -> Result<Snapshot, LoadErrors> {
    Snapshot::from_texts(&[("ephor.toml", EPHOR_TOML), ("orders.toml", orders)])
}
