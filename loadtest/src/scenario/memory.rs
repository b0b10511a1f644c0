//! Resident memory: the agent with 100 live credentials, the broker with many.

use serde_json::json;

use super::cold::cold_call;
use super::{Finding, Target};
use crate::args::{Made, Run, Work};
use crate::client::Connection;
use crate::crowd::Crowd;
use crate::fixture::Fixture;
use crate::host;

const AT_THE_AGENT: usize = 100;
const MIB: f64 = 1024.0 * 1024.0;

/// See the module.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Fixture::start(&run.ephor).await?;
    let socket = fixture.socket()?;
    let mut connection = Connection::unix(&socket).await?;
    let work = Work::much(Made::Token);
    for number in 0..AT_THE_AGENT {
        connection
            .call(&cold_call(&work, &format!("memory {number}")))
            .await?;
    }
    let agent = host::resident(fixture.agent) as f64 / MIB;
    let small = host::resident(fixture.broker) as f64 / MIB;
    let crowd = Crowd::gather(&fixture, &run.ephor, Made::Token, run.live).await?;
    let broker = host::resident(fixture.broker) as f64 / MIB;
    let hosts = crowd.hosts.len();
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
            "live": run.live, "agent_mib_at_100": agent, "broker_mib_at_100": small,
            "broker_mib": broker, "hosts": hosts, "run_queue": host::run_queue(),
        }),
    })
}
