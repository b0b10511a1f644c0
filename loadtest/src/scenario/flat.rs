//! Whether a new certificate costs the same however many are live already.

use serde_json::json;

use super::cold::{IN_FLIGHT, cold_call};
use super::{Finding, Target};
use crate::args::{Made, Run, Work};
use crate::client::Connection;
use crate::crowd::Crowd;
use crate::fixture::Fixture;
use crate::host;
use crate::measure::median;
use crate::workers::Workers;

/// Live at the first measurement.
const FEW: usize = 100;
/// Certificates that each process asks for in one measurement: few, so that what it leaves live is
/// little beside the crowd.
const CALLS: usize = 60;

/// Rate of 64 client processes with few live, then with `live`; a fresh store a round.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let work = Work {
        calls: CALLS,
        ..Work::much(Made::Certificate)
    };
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for round in 0..run.rounds {
        let fixture = Fixture::start(&run.ephor).await?;
        let mut connection = Connection::unix(&fixture.socket()?).await?;
        for number in 0..FEW {
            let call = cold_call(&work, &format!("flat {number}"));
            connection.call(&call).await?;
        }
        few.push(rate(&fixture, &work).await?);
        let crowd = Crowd::gather(&fixture, &run.ephor, Made::Certificate, run.live).await?;
        many.push(rate(&fixture, &work).await?);
        drop((crowd, connection));
        fixture.stop().await?;
        host::say(&format!(
            "round {round}: {:.0}/s with {FEW} live, {:.0}/s with {}",
            super::last(&few),
            super::last(&many),
            run.live
        ));
    }
    let ratio = median(
        many.iter()
            .zip(&few)
            .map(|(many, few)| many / few)
            .collect(),
    );
    Ok(Finding {
        scenario: "flat",
        targets: vec![Target::at_least(
            "cold certificate with as many live as `live` says, ratio to 100 live",
            0.9,
            ratio,
        )],
        detail: json!({
            "live": run.live, "few": few, "many": many, "ratio": ratio,
            "run_queue": host::run_queue(),
        }),
    })
}

async fn rate(fixture: &Fixture, work: &Work) -> anyhow::Result<f64> {
    let mut workers = Workers::start(&fixture.socket()?, IN_FLIGHT, work).await?;
    Ok(workers.calls() / workers.work().await?.as_secs_f64())
}
