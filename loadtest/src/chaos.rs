//! `ephor-loadtest chaos`: the load, the kills and the comparisons are the testkit's; this says
//! what they came to.

use std::time::Duration;

use anyhow::Context;
use ephor_testkit::chaos::{self, Settings};

use crate::args::Chaos;
use crate::host;

/// Runs it; whether all of it held.
pub fn run(args: &Chaos) -> anyhow::Result<bool> {
    let this = std::env::current_exe()?;
    let this = this.to_str().context("the path of this program")?;
    let settings = Settings {
        ephor: args.ephor.clone(),
        task: vec![this.to_owned(), "__task".to_owned()],
        length: Duration::from_secs(args.minutes * 60),
        kill_every: Duration::from_secs(args.kill_every),
        check_every: Duration::from_secs(args.check_every),
        workers: args.workers,
        seed: args.seed.unwrap_or_else(|| u64::from(std::process::id())),
    };
    host::say(&format!(
        "{} min, each daemon killed every {} s on average, seed {}",
        args.minutes, args.kill_every, settings.seed
    ));
    let report = chaos::run(&settings, &host::say)?;
    for line in &report.lines {
        host::print(line)?;
    }
    for what in &report.broken {
        host::print(&format!("BROKEN {what}"))?;
    }
    let held = report.broken.is_empty();
    host::print(match (held, report.is_memory_judged) {
        (true, true) => "0 lost, 0 orphan, 0 double; memory flat",
        (true, false) => "0 lost, 0 orphan, 0 double; memory not judged: too few lives",
        (false, _) => "it did not hold",
    })?;
    Ok(held)
}
