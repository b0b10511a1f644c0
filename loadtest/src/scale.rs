//! `ephor-loadtest scale`: as many live logins as there are to be, at a real server, made and renewed by a
//! broker and an agent as they ship. Then broker and server die, stay away for a while, and come back:
//! nothing may be forgotten, nothing of it dropped, and the server must not be asked more than twice as
//! fast as before. Calls are counted on the wire between the two.

mod wire; // counts what the broker asks

use std::time::Duration;

use anyhow::ensure;
use ephor_broker::tasks::Tasks;
use ephor_testkit::installation::{Installation, Side};
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions};
use serde_json::json;

use crate::args::{Made, Scale, Work};
use crate::clock::Moment;
use crate::host;
use crate::scenario::{Finding, Target};
use crate::target;
use crate::workers::Workers;

use wire::Wire;

/// Processes that ask at the same time; each is a task that holds [`CALLS`].
const AT_ONCE: usize = 20;
const CALLS: usize = 250;
/// The pace is taken to be steady when it reached this part of what the lives say.
const STEADY_PART: f64 = 0.8;
/// Over which it is measured, seconds.
const STEADY_SECONDS: usize = 30;
/// Longest wait for it, seconds.
const STEADY_MOST: u64 = 600;
/// Renewed after about so much of its life.
const RENEWED_AFTER: f64 = 0.6;

/// Runs it; whether the targets held.
pub async fn run(args: &Scale) -> anyhow::Result<bool> {
    let mut cluster = Cluster::with(&ClusterOptions {
        settings: vec!["max_connections = 100".to_owned()],
        hba: vec![
            "local all all trust".to_owned(),
            "host all ephor 127.0.0.1/32 trust".to_owned(),
        ],
        ..ClusterOptions::default()
    })?;
    let tasks = Tasks::new();
    target::prepare(&cluster, ("orders_rw", &["orders"]), None, &tasks).await?;
    tasks.shutdown(Duration::from_secs(1)).await;
    let wire = Wire::start(cluster.port())?;
    let kit = Installation::create(&args.ephor)?;
    std::fs::write(kit.path("policy/orders.toml"), policy(wire.port(), args))?;
    let settings = std::fs::read_to_string(kit.path("broker.toml"))?;
    let ports = format!("{settings}target_ports = [{}]\n", wire.port());
    std::fs::write(kit.path("broker.toml"), ports)?;
    kit.start()?;
    kit.wait_connected()?;

    let (workers, fill) = fill(&kit, args).await?;
    let steady = args.live as f64 / (args.ttl as f64 * RENEWED_AFTER);
    let reached = reached(&wire, steady).await?;
    let before = Count::of(&kit, &cluster)?;
    host::say(&format!("{}; {reached:.1} calls a second", before.told()));

    kit.kill(Side::Broker)?;
    cluster.crash()?;
    tokio::time::sleep(Duration::from_secs(args.away)).await;
    cluster.boot()?;
    let back = wire.second();
    let started = Moment::now();
    kit.start_daemon(Side::Broker, &[])?;
    let ready = started.elapsed();
    let mut resident = 0;
    for _ in 0..args.watch {
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensure!(!kit.has_ended(Side::Broker), "{}", kit.tail(Side::Broker));
        resident = resident.max(kit.pid(Side::Broker).map_or(0, host::resident));
    }
    let after = Count::of(&kit, &cluster)?;
    let calls = wire.since(back);
    let peak = calls.iter().copied().max().unwrap_or_default();
    host::say(&format!("{}; at most {peak} calls a second", after.told()));
    drop(workers);
    let finding = Finding {
        scenario: "scale",
        targets: vec![
            Target::at_least(
                "logins at the server before",
                args.live as f64,
                before.roles,
            ),
            Target::at_most("of them gone from the server", 0.0, before.lost(&after)),
            Target::at_most("of them expired there", 0.0, after.expired),
            Target::at_most("of them not live in the store", 0.0, after.ended),
            Target::at_most(
                "most calls a second, to the steady pace",
                2.0,
                f64::from(peak) / steady,
            ),
        ],
        detail: json!({
            "live": args.live, "ttl_seconds": args.ttl, "filled_seconds": fill.as_secs_f64(),
            "steady_calls_per_second": steady, "reached_calls_per_second": reached,
            "calls_per_second": calls,
            "away_seconds": args.away, "ready_seconds": ready.as_secs_f64(),
            "broker_resident_mebibytes": resident / 1024 / 1024,
            "run_queue": host::run_queue(),
        }),
    };
    for target in &finding.targets {
        host::say(&target.told());
    }
    host::print(&serde_json::to_string_pretty(&finding)?)?;
    Ok(finding.targets.iter().all(|target| target.held))
}

fn policy(port: u16, args: &Scale) -> String {
    format!(
        "[target.orders]\nowner = \"team:kit\"\n\
         postgres = {{ url = \"postgres://ephor@127.0.0.1:{port}/orders\", tls = \"off\", scram_iterations = 1 }}\n\
         [entitlement.orders-db]\nowner = \"team:kit\"\npurpose = \"Many\"\nwho = [\"kit/app\"]\nttl = \"{}s\"\n\
         gives = [{{ postgres = {{ target = \"orders\", role = \"orders_rw\" }} }}]\n",
        args.ttl
    )
}

/// Each login by a request of its own, through agent and broker.
async fn fill(kit: &Installation, args: &Scale) -> anyhow::Result<(Vec<Workers>, Duration)> {
    let work = Work {
        made: Made::Token,
        entitlement: "orders-db".to_owned(),
        calls: CALLS.min(args.live),
    };
    let start = Moment::now();
    let (mut all, mut live) = (Vec::new(), 0);
    while live < args.live {
        let some = AT_ONCE.min((args.live - live).div_ceil(work.calls));
        let mut workers = Workers::start(&kit.socket(), some, &work).await?;
        workers.work().await?;
        live += some * work.calls;
        all.push(workers);
        host::say(&format!(
            "{live} live after {:.0} s",
            start.elapsed().as_secs_f64()
        ));
    }
    Ok((all, start.elapsed()))
}

/// Calls a second once renewals come at about the pace at which they go on. What was made at once is
/// renewed faster the first time, so that this is no measure of it.
async fn reached(wire: &Wire, steady: f64) -> anyhow::Result<f64> {
    let begun = Moment::now();
    while begun.elapsed() < Duration::from_secs(STEADY_MOST) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let from = wire.second().saturating_sub(STEADY_SECONDS);
        let calls = wire.since(from);
        let whole = calls.get(..STEADY_SECONDS).unwrap_or_default();
        let rate = f64::from(whole.iter().sum::<u32>()) / STEADY_SECONDS as f64;
        let is_filled = begun.elapsed() > Duration::from_secs(STEADY_SECONDS as u64);
        if is_filled && rate >= STEADY_PART * steady {
            return Ok(rate);
        }
    }
    anyhow::bail!("renewals did not reach {steady:.0} a second")
}

/// What server and store have.
struct Count {
    roles: f64,
    expired: f64,
    ended: f64,
    names: Vec<String>,
}

impl Count {
    fn of(kit: &Installation, cluster: &Cluster) -> anyhow::Result<Self> {
        let ours = "FROM pg_roles WHERE rolname ~ '^eph_orders' AND rolcanlogin";
        let names = cluster.psql("postgres", &format!("SELECT rolname {ours} ORDER BY 1"))?;
        let names: Vec<String> = names.lines().map(str::to_owned).collect();
        let expired = format!("SELECT count(*) {ours} AND rolvaliduntil < now()");
        let expired: u32 = cluster.psql("postgres", &expired)?.parse()?;
        let ended = "SELECT count(*) FROM credential WHERE kind = 'postgres' AND state <> 'live'";
        Ok(Self {
            roles: names.len() as f64,
            expired: f64::from(expired),
            ended: kit.count(ended)? as f64,
            names,
        })
    }

    fn told(&self) -> String {
        format!(
            "{} logins there, {} expired, {} not live here",
            self.roles, self.expired, self.ended
        )
    }

    /// How many of these are not there later.
    fn lost(&self, later: &Self) -> f64 {
        let later: std::collections::HashSet<&String> = later.names.iter().collect();
        self.names
            .iter()
            .filter(|name| !later.contains(name))
            .count() as f64
    }
}
