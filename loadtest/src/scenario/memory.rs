//! Resident memory: the agent with 100 live credentials, the broker with many.

use anyhow::Context;
use serde_json::json;

use super::cold::cold_call;
use super::{Finding, Target};
use crate::args::{Made, Run};
use crate::client::Connection;
use crate::fixture::Fixture;
use crate::host;
use crate::workers::{CALLS_EACH, Workers};

const AT_THE_AGENT: usize = 100;
const WORKERS_AT_ONCE: usize = 40;
/// Held by the agent of one host.
const A_HOST: usize = 40_000;
const MIB: f64 = 1024.0 * 1024.0;

/// See the module.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Fixture::start(&run.ephor).await?;
    let socket = fixture.socket()?;
    let mut connection = Connection::unix(&socket).await?;
    for number in 0..AT_THE_AGENT {
        connection
            .call(&cold_call(Made::Token, &format!("memory {number}")))
            .await?;
    }
    let agent = host::resident(fixture.agent) as f64 / MIB;
    let small = host::resident(fixture.broker) as f64 / MIB;
    // One agent holds at most 65 536.
    let mut hosts = Vec::new();
    for number in 0..run.live.div_ceil(A_HOST) {
        hosts.push(
            fixture
                .another_host(&run.ephor, &format!("load-{number}"))
                .await?,
        );
    }
    let mut crowd = Vec::new();
    let mut live = AT_THE_AGENT;
    while live < run.live {
        let host = hosts.get(live / A_HOST).context("a host")?;
        let mut workers = Workers::start(&host.socket, WORKERS_AT_ONCE, Made::Token).await?;
        workers.work().await?;
        live += WORKERS_AT_ONCE * CALLS_EACH;
        // Dismissed only at the end: credentials live as long as their process.
        crowd.push(workers);
        host::say(&format!("{live} live"));
    }
    let broker = host::resident(fixture.broker) as f64 / MIB;
    drop(crowd);
    fixture.stop().await?;
    Ok(Finding {
        scenario: "memory",
        targets: vec![
            Target::at_most("agent with 100 live credentials, MiB", 15.0, agent),
            Target::at_most(
                "broker with as many live credentials as `live` says, MiB",
                60.0,
                broker,
            ),
        ],
        detail: json!({
            "live": live, "agent_mib_at_100": agent, "broker_mib_at_100": small,
            "broker_mib": broker, "hosts": hosts.len(), "run_queue": host::run_queue(),
        }),
    })
}
