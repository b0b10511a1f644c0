//! What is measured, each against its target; the report is JSON on standard output.

pub mod cached;
pub mod certificate;
pub mod cold;
pub mod crl;
pub mod exit;
pub mod flat;
pub mod memory;
pub mod narrow;

use std::io::Write;
use std::time::Duration;

use serde::Serialize;

use crate::args::{Made, Run};
use crate::client::Call;
use crate::fixture::{Bare, Fixture};
use crate::host;
use crate::measure::{closed_loop, median};

/// One target and what was reached.
#[derive(Debug, Serialize)]
pub struct Target {
    /// What was asked.
    pub what: &'static str,
    /// The bound.
    pub bound: f64,
    /// What was measured.
    pub reached: f64,
    /// Whether it held.
    pub held: bool,
}

impl Target {
    /// Held when `reached >= bound`.
    pub fn at_least(what: &'static str, bound: f64, reached: f64) -> Self {
        Self {
            what,
            bound,
            reached,
            held: reached >= bound,
        }
    }

    /// Held when `reached <= bound`.
    pub fn at_most(what: &'static str, bound: f64, reached: f64) -> Self {
        Self {
            what,
            bound,
            reached,
            held: reached <= bound,
        }
    }

    /// In a line.
    pub fn told(&self) -> String {
        let verdict = if self.held { "held  " } else { "MISSED" };
        let (what, reached, bound) = (self.what, self.reached, self.bound);
        format!("{verdict} {what}: {reached:.3} (bound {bound:.3})")
    }
}

/// What one scenario found.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Its name.
    pub scenario: &'static str,
    /// Its targets.
    pub targets: Vec<Target>,
    /// Everything measured.
    pub detail: serde_json::Value,
}

/// Closed-loop rates of a scenario and its bare twin, in alternation.
#[derive(Debug, Serialize)]
pub struct Rates {
    /// Calls a second, a value a round.
    pub ours: Vec<f64>,
    /// The bare server's.
    pub bare: Vec<f64>,
    /// Median of the ratio, round by round.
    pub ratio: f64,
    /// Server CPU (agent and broker) per call, microseconds.
    pub agent_cpu_us: f64,
    /// See above.
    pub broker_cpu_us: f64,
    /// Load average and runnable tasks.
    pub run_queue: String,
}

/// Runs what was asked for, prints the report, and says whether every target held.
pub async fn run_all(run: Run) -> anyhow::Result<bool> {
    let asked =
        |name: &str| run.scenarios.is_empty() || run.scenarios.iter().any(|other| other == name);
    let mut findings = Vec::new();
    if asked("cached") {
        findings.push(cached::run(&run).await?);
    }
    if asked("cold") {
        findings.push(cold::run(&run, Made::Token).await?);
    }
    if asked("cold-certificate") {
        findings.push(cold::run(&run, Made::Certificate).await?);
    }
    if asked("flat") {
        findings.push(flat::run(&run).await?);
    }
    if asked("exit") {
        findings.push(exit::run(&run).await?);
    }
    if asked("certificate") {
        findings.push(certificate::run(&run).await?);
    }
    if asked("crl") {
        findings.push(crl::run(&run).await?);
    }
    if asked("narrow") {
        findings.push(narrow::run(&run).await?);
    }
    if asked("memory") {
        findings.push(memory::run(&run).await?);
    }
    for target in findings.iter().flat_map(|finding| &finding.targets) {
        host::say(&target.told());
    }
    serde_json::to_writer_pretty(std::io::stdout(), &findings)?;
    writeln!(std::io::stdout())?;
    Ok(findings
        .iter()
        .flat_map(|finding| &finding.targets)
        .all(|target| target.held))
}

/// Alternates closed-loop runs of ours and bare.
pub async fn alternate(
    run: &Run,
    fixture: &Fixture,
    bare: &Bare,
    connections: usize,
    call: &Call,
) -> anyhow::Result<Rates> {
    let socket = fixture.socket()?;
    let length = Duration::from_secs(run.seconds);
    let (mut ours, mut twins) = (Vec::new(), Vec::new());
    let mut spent = (Duration::ZERO, Duration::ZERO);
    for round in 0..run.rounds {
        let before = (host::cpu(fixture.agent), host::cpu(fixture.broker));
        ours.push(closed_loop(&socket, connections, length, call).await?);
        spent.0 += host::cpu(fixture.agent).saturating_sub(before.0);
        spent.1 += host::cpu(fixture.broker).saturating_sub(before.1);
        twins.push(closed_loop(&bare.socket, connections, length, call).await?);
        host::say(&format!(
            "round {round}: ours {:.0}/s, bare {:.0}/s",
            last(&ours),
            last(&twins)
        ));
    }
    let calls_made = ours.iter().sum::<f64>() * length.as_secs_f64();
    Ok(Rates {
        ratio: median(
            ours.iter()
                .zip(&twins)
                .map(|(ours, bare)| ours / bare)
                .collect(),
        ),
        agent_cpu_us: spent.0.as_secs_f64() * 1e6 / calls_made,
        broker_cpu_us: spent.1.as_secs_f64() * 1e6 / calls_made,
        ours,
        bare: twins,
        run_queue: host::run_queue(),
    })
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or(f64::NAN)
}
