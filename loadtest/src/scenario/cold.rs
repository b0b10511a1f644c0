//! A new token at every call: attest, decide, commit, sign, deliver.

use std::rc::Rc;

use serde_json::json;

use super::{Finding, Target, alternate};
use crate::args::Run;
use crate::client::Call;
use crate::fixture::{Bare, Fixture};
use crate::measure::Calls;

const IN_FLIGHT: usize = 64;

/// Throughput against a bare server that signs once a call.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Fixture::start(&run.ephor).await?;
    let bare = Bare::start(true).await?;
    // Every closed-loop run counts from zero: the process id and a moment keep reasons apart.
    let calls: Calls =
        Rc::new(|number| cold_call(&format!("{number}-{:?}", crate::clock::Moment::now())));
    let rates = alternate(run, &fixture, &bare, IN_FLIGHT, &calls).await?;
    fixture.stop().await?;
    Ok(Finding {
        scenario: "cold",
        targets: vec![Target::at_least(
            "cold token at 64 in flight, ratio to bare + signature",
            0.3,
            rates.ratio,
        )],
        detail: json!({ "in_flight": IN_FLIGHT, "closed": rates }),
    })
}

/// A request that no cache holds: the reason is part of the key.
pub fn cold_call(reason: &str) -> Call {
    let body = json!({ "entitlement": "identity", "parameters": { "audience": "load" }, "reason": reason });
    Call::post("/v1/credentials", "application/json", body.to_string())
}
