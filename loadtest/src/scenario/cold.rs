//! A new token or certificate at every call: attest, decide, commit, sign, deliver.

use std::time::Duration;

use serde_json::json;

use super::{Finding, Target};
use crate::args::{Made, Run, Work};
use crate::client::Call;
use crate::fixture::{Bare, Fixture};
use crate::host;
use crate::measure::median;
use crate::workers::Workers;

/// Processes that ask at the same time.
pub const IN_FLIGHT: usize = 64;

/// Rate of 64 client processes against a bare server that signs once a call, in alternation.
pub async fn run(run: &Run, made: Made) -> anyhow::Result<Finding> {
    let work = Work::much(made);
    let bare = Bare::start(Some(made)).await?;
    let (mut ours, mut twins, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..run.rounds {
        // A fresh store a round: what one round leaves behind must not slow the next.
        let fixture = Fixture::start(&run.ephor).await?;
        let before = (host::cpu(fixture.agent), host::cpu(fixture.broker));
        let mut workers = Workers::start(&fixture.socket()?, IN_FLIGHT, &work).await?;
        ours.push(workers.calls() / workers.work().await?.as_secs_f64());
        cpu.push(json!({
            "agent_us": per_call(host::cpu(fixture.agent).saturating_sub(before.0), workers.calls()),
            "broker_us": per_call(host::cpu(fixture.broker).saturating_sub(before.1), workers.calls()),
        }));
        drop(workers);
        fixture.stop().await?;
        let mut workers = Workers::start(&bare.socket, IN_FLIGHT, &work).await?;
        twins.push(workers.calls() / workers.work().await?.as_secs_f64());
        host::say(&format!(
            "round {round}: ours {:.0}/s, bare {:.0}/s",
            super::last(&ours),
            super::last(&twins)
        ));
    }
    let ratio = median(
        ours.iter()
            .zip(&twins)
            .map(|(ours, bare)| ours / bare)
            .collect(),
    );
    let (scenario, what) = match made {
        Made::Token => (
            "cold",
            "cold token at 64 in flight, ratio to bare + signature",
        ),
        Made::Certificate => (
            "cold-certificate",
            "cold certificate at 64 in flight, ratio to bare + key and signature",
        ),
    };
    Ok(Finding {
        scenario,
        targets: vec![Target::at_least(what, 0.3, ratio)],
        detail: json!({
            "in_flight": IN_FLIGHT, "ours": ours, "bare": twins, "ratio": ratio, "server_cpu": cpu,
            "run_queue": host::run_queue(),
        }),
    })
}

fn per_call(spent: Duration, calls: f64) -> f64 {
    spent.as_secs_f64() * 1e6 / calls
}

/// A request that no cache holds: the reason is part of the key.
pub fn cold_call(work: &Work, reason: &str) -> Call {
    let audience = match (work.made, &*work.entitlement) {
        (Made::Token, "identity") => Some(json!({ "audience": "load" })),
        (Made::Token, _) | (Made::Certificate, _) => None,
    };
    let body = json!({
        "entitlement": work.entitlement, "parameters": audience, "reason": reason,
    });
    Call::post("/v1/credentials", "application/json", body.to_string())
}
