//! A token the agent holds already, fetched again and again.

use std::time::Duration;

use serde_json::json;

use super::{Finding, Target, alternate};
use crate::args::Run;
use crate::client::Call;
use crate::fixture::{Bare, Fixture};
use crate::measure::{median, open_loop};

const CONNECTIONS: usize = 16;

/// Throughput against bare, then latency at half of bare's rate.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Fixture::start(&run.ephor).await?;
    let bare = Bare::start(None).await?;
    let call = Call::get("/v1/token?audience=load");
    let rates = alternate(run, &fixture, &bare, CONNECTIONS, &call).await?;
    let rate = median(rates.bare.clone()) / 2.0;
    let length = Duration::from_secs(run.seconds);
    let (mut latencies, mut twins) = (Vec::new(), Vec::new());
    for _ in 0..run.rounds {
        for (socket, found) in [
            (&fixture.socket()?, &mut latencies),
            (&bare.socket, &mut twins),
        ] {
            found.push(open_loop(socket, CONNECTIONS, rate, length, &call)?);
        }
    }
    fixture.stop().await?;
    Ok(Finding {
        scenario: "cached",
        targets: vec![
            Target::at_least("cached fetch, ratio to bare", 0.5, rates.ratio),
            Target::at_most(
                "cached fetch at half of bare, p99 ms, best 3 of 5",
                1.0,
                third_best(&latencies) / 1000.0,
            ),
        ],
        detail: json!({ "connections": CONNECTIONS, "closed": rates, "open_rate": rate, "open": latencies, "open_bare": twins }),
    })
}

/// The worst p99 of the best three runs, microseconds.
fn third_best(latencies: &[crate::measure::Latency]) -> f64 {
    let mut values: Vec<_> = latencies.iter().map(|latency| latency.p99_us).collect();
    values.sort_unstable();
    values
        .get(values.len().min(3).saturating_sub(1))
        .map_or(f64::NAN, |value| *value as f64)
}
