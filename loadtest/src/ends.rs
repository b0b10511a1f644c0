//! `ephor-loadtest ends`: tasks that hold a database login end, at a steady rate, through the real agent,
//! broker and server. Of each login a copy is in use elsewhere: a session that its task's process does
//! not have, so that nothing but the revocation ends it.
//!
//! What is true is asked of the server by a superuser of ours, and of the broker by whoever reads its
//! log; both are asked again and again, and what is seen late counts as late.

mod hang; //  another target that does not answer
mod stock; // tasks with a login and a session
mod watch; // what the server and the log say

use std::path::Path;
use std::time::Duration;

use ephor_testkit::postgres::{Cluster, Options};
use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::args::Ends;
use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::fixture::Fixture;
use crate::host;
use crate::measure::{Collector, Latency, median};
use crate::scenario::{Finding, Target};

use hang::Stuck;
use stock::{Held, gather};
use watch::{Ended, Watch};

/// The entitlement of the policy that `ephor dev --pg` makes.
const ENTITLEMENT: &str = "dev-db";
/// Logins that end at the target that hangs, beside those that are measured: more than an agent tells
/// the broker of at the same time.
const AT_THE_OTHER: usize = 100;
/// Promises, in milliseconds.
const P50_MS: f64 = 30.0;
const P99_MS: f64 = 250.0;
/// What another target may add to the median.
const OTHERS: f64 = 1.2;

/// Runs it; whether the targets held.
pub async fn run(args: &Ends) -> anyhow::Result<bool> {
    let cluster = cluster(args.tasks.max(args.round_tasks))?;
    let url = cluster.url("postgres", "orders") + "?sslmode=disable";
    let fixture = Fixture::start_with(&args.ephor, &["--pg", &url]).await?;
    let local = LocalSet::new();
    let finding = local.run_until(measured(args, &cluster, &fixture)).await;
    drop(local);
    fixture.stop().await?;
    let finding = finding?;
    for target in &finding.targets {
        host::say(&target.told());
    }
    host::print(&serde_json::to_string_pretty(&finding)?)?;
    Ok(finding.targets.iter().all(|target| target.held))
}

fn cluster(sessions: usize) -> anyhow::Result<Cluster> {
    let cluster = Cluster::with(&Options {
        settings: vec![format!("max_connections = {}", sessions + 100)],
        hba: vec!["host all postgres 127.0.0.1/32 trust".to_owned()],
        ..Options::default()
    })?;
    cluster.psql("postgres", "CREATE DATABASE orders")?;
    Ok(cluster)
}

async fn measured(args: &Ends, cluster: &Cluster, fixture: &Fixture) -> anyhow::Result<Finding> {
    let watch = Watch::start(cluster, fixture).await?;
    let one = round(fixture, &watch, args.tasks, args.rate).await?;
    host::say(&one.told());
    let mut targets = vec![
        Target::at_most("task exit to proven dead, p50 ms", P50_MS, one.p50()),
        Target::at_most("task exit to proven dead, p99 ms", P99_MS, one.p99()),
    ];
    let mut detail =
        json!({ "tasks": args.tasks, "asked_per_second": args.rate, "ends": one.detail() });
    if args.rounds > 0 {
        let (alone, beside) = rounds(args, fixture, &watch).await?;
        let (alone_p50, beside_p50) = (p50s(&alone), p50s(&beside));
        let ratio = median(beside_p50.clone()) / median(alone_p50.clone());
        let what = "p50 beside a target that hangs, to p50 without";
        targets.push(Target::at_most(what, OTHERS, ratio));
        if let Some(detail) = detail.as_object_mut() {
            let both = json!({
                "p50_ms_alone": alone_p50, "p50_ms_beside": beside_p50,
                "p99_ms_alone": p99s(&alone), "p99_ms_beside": p99s(&beside),
                "tasks_a_round": args.round_tasks, "ends_at_the_other": AT_THE_OTHER,
            });
            detail.insert("hang".to_owned(), both);
        }
    }
    Ok(Finding {
        scenario: "ends",
        targets,
        detail,
    })
}

/// By turns without and with a target that hangs.
async fn rounds(
    args: &Ends,
    fixture: &Fixture,
    watch: &Watch,
) -> anyhow::Result<(Vec<Round>, Vec<Round>)> {
    let stuck = Stuck::prepare(fixture).await?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let quiet = round(fixture, watch, args.round_tasks, args.rate).await?;
        host::say(&format!("alone:  {}", quiet.told()));
        alone.push(quiet);
        let others = stuck.gather(fixture, AT_THE_OTHER).await?;
        let stock = gather(fixture, ENTITLEMENT, args.round_tasks, true).await?;
        stuck.hang(others).await?;
        let loud = ended(watch, stock, args.rate).await?;
        host::say(&format!("beside: {}", loud.told()));
        beside.push(loud);
        stuck.let_go(AT_THE_OTHER).await?;
    }
    Ok((alone, beside))
}

async fn round(fixture: &Fixture, watch: &Watch, tasks: usize, rate: u64) -> anyhow::Result<Round> {
    let stock = gather(fixture, ENTITLEMENT, tasks, true).await?;
    ended(watch, stock, rate).await
}

/// Kills the processes one after the other at that rate, whatever became of the ones before.
async fn ended(watch: &Watch, stock: Vec<Held>, rate: u64) -> anyhow::Result<Round> {
    let gap = Duration::from_secs_f64(1.0 / rate as f64);
    let count = stock.len();
    watch.begin(&stock).await?;
    let start = Moment::now().after(Duration::from_millis(50));
    let ends = stock.into_iter().enumerate().map(|(number, held)| {
        let due = start.after(gap.mul_f64(number as f64));
        let watch = watch.clone();
        tokio::task::spawn_local(async move { watch.end(held, due).await })
    });
    let ends: Vec<_> = ends.collect();
    let mut all = Vec::with_capacity(count);
    for end in ends {
        all.push(end.await??);
    }
    let offered = count as f64 / start.elapsed().as_secs_f64();
    for end in &all {
        end.verify().await?;
    }
    Round::of(&all, offered)
}

/// What one run of ends came to, by what was seen.
struct Round {
    refused: Latency,
    session: Latency,
    dropped: Latency,
    proven: Latency,
    receipt: Latency,
    told: Latency,
    offered: f64,
}

impl Round {
    fn of(all: &[Ended], offered: f64) -> anyhow::Result<Self> {
        let of = |what: fn(&Ended) -> Duration| {
            let mut collector = Collector::new()?;
            for one in all {
                collector.add(what(one));
            }
            anyhow::Ok(collector.latency())
        };
        Ok(Self {
            told: of(|one| one.told)?,
            refused: of(|one| one.refused)?,
            session: of(|one| one.session)?,
            dropped: of(|one| one.dropped)?,
            // The proof is the last of them to be made; all of it must have been seen.
            proven: of(Ended::all)?,
            receipt: of(|one| one.receipt)?,
            offered,
        })
    }

    fn p50(&self) -> f64 {
        self.proven.p50_us as f64 / 1000.0
    }

    fn p99(&self) -> f64 {
        self.proven.p99_us as f64 / 1000.0
    }

    fn stages(&self) -> [(&'static str, &Latency); 6] {
        [
            ("broker_told", &self.told),
            ("login_refused", &self.refused),
            ("session_ended", &self.session),
            ("role_dropped", &self.dropped),
            ("proven_dead", &self.proven),
            ("receipt", &self.receipt),
        ]
    }

    fn told(&self) -> String {
        let stages = self.stages().map(|(name, latency)| {
            let ms = |us: u64| us as f64 / 1000.0;
            format!("{name} {:.1}/{:.1}", ms(latency.p50_us), ms(latency.p99_us))
        });
        format!(
            "{:.1} ends/s; p50/p99 ms from the kill: {}; run queue {}",
            self.offered,
            stages.join(", "),
            self.proven.run_queue
        )
    }

    fn detail(&self) -> Value {
        let stages = self
            .stages()
            .map(|(name, latency)| (name.to_owned(), json!(latency)));
        let mut stages: serde_json::Map<_, _> = stages.into_iter().collect();
        stages.insert("ended_per_second".to_owned(), json!(self.offered));
        stages.into()
    }
}

fn p50s(rounds: &[Round]) -> Vec<f64> {
    rounds.iter().map(Round::p50).collect()
}

fn p99s(rounds: &[Round]) -> Vec<f64> {
    rounds.iter().map(Round::p99).collect()
}

/// The process that is killed: gets a login, prints it, waits.
pub async fn hold(socket: &Path, entitlement: &str) -> anyhow::Result<()> {
    let mut agent = Connection::unix(socket).await?;
    let call = Call::get(format!("/v1/database?entitlement={entitlement}"));
    let body = agent.call(&call).await?;
    host::print(std::str::from_utf8(&body)?)?;
    std::future::pending().await
}
