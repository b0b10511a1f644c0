//! `ephor-loadtest inventory`: how long a look at a server takes that is full of left-overs, from the
//! start of the process to its end, beside `psql` asking that server for its roles alone.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use ephor_testkit::postgres::{Cluster, Options};
use serde_json::json;

use crate::args::Inventory;
use crate::clock::Moment;
use crate::host;
use crate::measure::median;
use crate::scenario::{Finding, Target};

/// Tables on which each left-over has a privilege of its own, as Vault's usual statements give it.
const TABLES: usize = 20;
/// Seconds that a look may take.
const BOUND: f64 = 2.0;

/// Runs it; whether the target held.
pub fn run(args: &Inventory) -> anyhow::Result<bool> {
    let options = Options {
        hba: vec!["local all all trust".to_owned()],
        ..Options::default()
    };
    let cluster = Cluster::with(&options)?;
    cluster.psql("postgres", &left_overs(args.left_overs))?;
    let url = cluster.socket_url("postgres", "postgres");
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    for _ in 0..args.rounds {
        let mut scan = Command::new(&args.ephor);
        scan.args(["inventory", "scan", &url]);
        let (took, said) = timed(&mut scan, 1)?;
        let found = format!("past VALID UNTIL, still there{:>8}", args.left_overs);
        ensure!(said.contains(&found), "not all were found: {said}");
        ours.push(took.as_secs_f64());
        let mut psql = cluster.command("psql");
        psql.args(["-X", "-c", "SELECT * FROM pg_roles", &url]);
        bare.push(timed(&mut psql, 0)?.0.as_secs_f64());
    }
    let reached = median(ours.clone());
    let finding = Finding {
        scenario: "inventory",
        targets: vec![Target::at_most("seconds of a scan, median", BOUND, reached)],
        detail: json!({
            "left_overs": args.left_overs,
            "privileges": args.left_overs * TABLES,
            "seconds": ours,
            "psql_seconds": bare,
            "run_queue": host::run_queue(),
        }),
    };
    for target in &finding.targets {
        host::say(&target.told());
    }
    host::print(&serde_json::to_string_pretty(&finding)?)?;
    Ok(finding.targets.iter().all(|target| target.held))
}

fn left_overs(count: usize) -> String {
    format!(
        "SELECT format('CREATE TABLE t%s (i int)', i) FROM generate_series(1, {TABLES}) i\n\\gexec\n\
         SELECT format('CREATE ROLE %I LOGIN VALID UNTIL %L',\n\
             'v-kubernet-orders-r-' || substr(md5(i::text), 1, 20) || '-' || 1710115200 + i,\n\
             to_timestamp(1710115200 + i)) FROM generate_series(1, {count}) i\n\\gexec\n\
         SELECT format('GRANT SELECT ON ALL TABLES IN SCHEMA public TO %I', rolname)\n\
             FROM pg_roles WHERE rolname LIKE 'v-%'\n\\gexec\n"
    )
}

/// Time from start to end, and what was said; it must end with `code`.
fn timed(command: &mut Command, code: i32) -> anyhow::Result<(Duration, String)> {
    let start = Moment::now();
    let output = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let took = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{}: {said}",
        output.status
    );
    Ok((took, String::from_utf8_lossy(&output.stdout).into_owned()))
}
