//! The policy of `ephor dev`, for a laptop and nothing else: whoever started it is one
//! workload, for as long as it runs.

use ephor_proto::spiffe::{SpiffeId, TrustDomain};

/// The workload's path for a user: `dev/USER`, or `dev/uid-N` when the login name is no
/// SPIFFE path segment.
pub fn dev_path(uid: u32, user: &str) -> String {
    let path = format!("dev/{user}");
    let good = !user.contains('/')
        && TrustDomain::new("dev.ephor")
            .and_then(|domain| SpiffeId::new(&domain, &path))
            .is_ok();
    if good { path } else { format!("dev/uid-{uid}") }
}

/// One policy file with that workload.
pub fn dev_policy(uid: u32, user: &str) -> String {
    let path = dev_path(uid, user);
    format!(
        r#"# Made by `ephor dev` for this run.
trust_domain = "dev.ephor"

[ttl]
default = "5m"
max     = "1h"
service = "none"

[workload."{path}"]
owner   = "team:dev"
purpose = "Local development"
runs    = [{{ uid = {uid} }}]
"#
    )
}
