//! `ephor-loadtest operate`: what is done to a service that runs, at half of its capacity. Every
//! key is rotated twice, policies are applied, the broker is restarted, and the agent by hand-over;
//! then the agent is killed.
//!
//! A failure counts against what ran at its moment, so each daemon's absences are written down.
//! What an agent's death costs is counted apart from everything else.

mod apps; //     applications that watch what they hold, and new requests
mod away; //     when a daemon was away
mod cached; //   open loop that outlives failures

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use ephor_testkit::checker;
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::args::Operate;
use crate::client::Call;
use crate::clock::Moment;
use crate::host;
use crate::measure::{closed_loop, median};
use crate::raw::Raw;
use crate::scenario::{Finding, Target};

use apps::Apps;
use away::Away;
use cached::Cached;

/// As short as it may be set, so that two rotations of each key fit into a minute.
const QUICK: &str = "key_lead = \"3s\"\nca_lead = \"3s\"\n";
const KINDS: [&str; 3] = ["token", "ca", "log"];
const CONNECTIONS: usize = 16;
/// For which capacity is measured.
const CAPACITY: Duration = Duration::from_secs(3);
/// Between two things done.
const PAUSE: Duration = Duration::from_millis(300);
/// Of load between two restarts.
const BETWEEN: Duration = Duration::from_secs(2);
/// Between two questions to an agent that starts.
const POLL: Duration = Duration::from_millis(1);
const TOKEN: &str = "/v1/token?audience=operate";

/// Runs it; whether every target held.
pub fn run(runtime: &Runtime, args: &Operate) -> anyhow::Result<bool> {
    let kit = installation(args)?;
    let call = Call::get(TOKEN);
    let capacity = runtime.block_on(closed_loop(&kit.socket(), CONNECTIONS, CAPACITY, &call))?;
    let rate = capacity / 2.0;
    host::say(&format!("capacity {capacity:.0}/s; load {rate:.0}/s"));

    let (away, done) = (Away::default(), AtomicBool::new(false));
    let cached = Cached::new(call.to_bytes(), rate);
    let apps = Apps::new(&kit, args.new_rate)?;
    let mut found = Found::default();
    let done_to_it = std::thread::scope(|scope| {
        let stop = Stop(&done);
        scope.spawn(|| cached.run(&kit.socket(), CONNECTIONS, &done));
        scope.spawn(|| apps.ask_new(&done));
        for number in 0..apps::WATCHING {
            let (apps, done) = (&apps, &done);
            scope.spawn(move || apps.watch(number, done));
        }
        let acts = Acts {
            kit: &kit,
            args,
            away: &away,
            request: call.to_bytes(),
        };
        let outcome = acts.all(&apps, &mut found);
        drop(stop);
        outcome
    });
    done_to_it.with_context(|| format!("{}\n{}", kit.tail(Side::Broker), kit.tail(Side::Agent)))?;
    checker::judge_log(&kit, &kit.path("export"))?;
    let finding = judge(rate, &away, &cached, &apps, &found);
    for target in &finding.targets {
        host::say(&target.told());
    }
    host::print(&serde_json::to_string_pretty(&finding)?)?;
    Ok(finding.targets.iter().all(|target| target.held))
}

/// What the acts themselves measured.
#[derive(Default)]
struct Found {
    /// From `kill -9` of the agent to the first answer of its successor, seconds.
    back: Vec<f64>,
    /// Tasks that an agent took over while no broker ran, of those that lived.
    adopted: (usize, usize),
}

fn installation(args: &Operate) -> anyhow::Result<Installation> {
    let kit = Installation::create(&args.ephor)?;
    let settings = kit.path("broker.toml");
    let text = std::fs::read_to_string(&settings)?;
    std::fs::write(settings, text + QUICK)?;
    kit.start()?;
    kit.wait_connected()?;
    Ok(kit)
}

/// What is done, in order.
struct Acts<'a> {
    kit: &'a Installation,
    args: &'a Operate,
    away: &'a Away,
    request: Vec<u8>,
}

impl Acts<'_> {
    fn all(&self, apps: &Apps<'_>, found: &mut Found) -> anyhow::Result<()> {
        std::thread::sleep(BETWEEN);
        let half = self.args.policies / 2;
        for (first, last) in [(0, half), (half, self.args.policies)] {
            for kind in KINDS {
                self.rotate(kind)?;
            }
            host::say("every key rotated");
            for number in first..last {
                self.apply(number)?;
                std::thread::sleep(PAUSE);
            }
            host::say(&format!("{last} policies applied"));
        }
        for _ in 0..self.args.restarts {
            self.restart_broker()?;
            std::thread::sleep(BETWEEN);
        }
        host::say("broker restarted");
        // No absence: each request that fails now counts.
        for _ in 0..self.args.restarts {
            self.kit.hand_over()?;
            self.kit.wait_connected()?;
            std::thread::sleep(BETWEEN);
        }
        host::say("agent restarted by hand-over");
        for _ in 0..self.args.restarts {
            found.back.push(self.kill_agent()?);
            std::thread::sleep(BETWEEN);
        }
        host::say("agent killed and started");
        self.kill_agent_without_broker(apps, found)?;
        std::thread::sleep(BETWEEN);
        Ok(())
    }

    fn rotate(&self, kind: &str) -> anyhow::Result<()> {
        let before = self.active(kind).context("an active key")?;
        self.kit
            .admin_post(&format!("/v1/keys/{kind}/rotate"), &json!({}))?;
        wait::until(&format!("the next {kind} key is in use"), SETTLE, || {
            self.active(kind).filter(|now| *now > before)
        })?;
        Ok(())
    }

    fn active(&self, kind: &str) -> Option<u64> {
        let keys = self.kit.admin("/v1/keys").ok()?;
        let is = |key: &Value, name: &str, value: &str| {
            key.get(name).and_then(Value::as_str) == Some(value)
        };
        let active = keys
            .as_array()?
            .iter()
            .find(|key| is(key, "kind", kind) && is(key, "state", "active"))?;
        active.get("version")?.as_u64()
    }

    /// An entitlement that nobody uses is narrowed, widened, narrowed.
    fn apply(&self, number: u32) -> anyhow::Result<()> {
        let kept = std::fs::read_to_string(self.kit.path("policy/kit.toml"))?;
        let minutes = if number.is_multiple_of(2) { 5 } else { 2 };
        let other = format!(
            "# {number}\n[entitlement.unrelated]\nowner = \"team:other\"\npurpose = \"Nothing\"\n\
             who = [\"kit/app\"]\ngives = [{{ jwt = {{ audience = \"unrelated\" }} }}]\nttl = \"{minutes}m\"\n"
        );
        let files = json!({"files": [
            {"name": "kit.toml", "text": kept},
            {"name": "other.toml", "text": other},
        ]});
        self.kit.admin_post("/v1/policy/apply", &files)?;
        Ok(())
    }

    /// SIGTERM, and a start.
    fn restart_broker(&self) -> anyhow::Result<()> {
        let absence = self.away.broker();
        self.kit.stop(Side::Broker)?;
        self.kit.start_daemon(Side::Broker, &[])?;
        drop(absence);
        self.kit.wait_connected()
    }

    /// Seconds from `kill -9` until somebody is answered again.
    fn kill_agent(&self) -> anyhow::Result<f64> {
        let absence = self.away.agent();
        let killed = Moment::now();
        self.kit.kill(Side::Agent)?;
        let back = std::thread::scope(|scope| {
            let started = scope.spawn(|| self.kit.start_daemon(Side::Agent, &[]));
            let back = self.first_answer(killed);
            match started.join() {
                Ok(started) => started.and(back),
                Err(_) => anyhow::bail!("the agent's start panicked"),
            }
        })?;
        drop(absence);
        self.kit.wait_connected()?;
        Ok(back.as_secs_f64())
    }

    fn first_answer(&self, killed: Moment) -> anyhow::Result<Duration> {
        while killed.elapsed() < SETTLE {
            if self.is_answered(killed) {
                return Ok(killed.elapsed());
            }
            std::thread::sleep(POLL);
        }
        anyhow::bail!("the agent answered nothing within {SETTLE:?} after its start")
    }

    fn is_answered(&self, killed: Moment) -> bool {
        let answered = || -> anyhow::Result<bool> {
            let mut raw = Raw::connect(&self.kit.socket())?;
            raw.send(&self.request)?;
            while !raw.receive()? {
                anyhow::ensure!(
                    killed.elapsed() < SETTLE,
                    "it took the request and is silent"
                );
                std::thread::sleep(POLL);
            }
            Ok(true)
        };
        answered().unwrap_or(false)
    }

    /// Tasks that live are taken over from the journal alone.
    fn kill_agent_without_broker(&self, apps: &Apps<'_>, found: &mut Found) -> anyhow::Result<()> {
        let (broker, agent) = (self.away.broker(), self.away.agent());
        self.kit.stop(Side::Broker)?;
        self.kit.kill(Side::Agent)?;
        self.kit.start_daemon(Side::Agent, &[])?;
        found.adopted = apps.adopted();
        self.kit.start_daemon(Side::Broker, &[])?;
        drop(broker);
        self.kit.wait_connected()?;
        drop(agent);
        Ok(())
    }
}

fn judge(rate: f64, away: &Away, cached: &Cached, apps: &Apps<'_>, found: &Found) -> Finding {
    let (with_agent, without): (Vec<_>, Vec<_>) = cached
        .failures()
        .into_iter()
        .partition(|failure| !away.is_agent_away(failure.from, failure.to));
    let waited = without
        .iter()
        .map(|failure| failure.to.since(failure.from).as_secs_f64());
    let new = apps.new_requests();
    let failed: Vec<_> = new.iter().filter(|request| request.status != 200).collect();
    let by_an_agent = |request: &&&apps::Asked| away.is_agent_away(request.from, request.to);
    let without_broker = |request: &&&apps::Asked| away.is_broker_away(request.from, request.to);
    let unexplained: Vec<_> = failed
        .iter()
        .filter(|request| !by_an_agent(request) && !without_broker(request))
        .collect();
    let final_ones = failed.iter().filter(|request| !request.is_retryable);
    let final_cached = without.iter().filter(|failure| !failure.is_retryable);
    let disturbed = apps.disturbed();
    let slowest = found.back.iter().copied().fold(0.0, f64::max);
    let missing = found.adopted.1 - found.adopted.0;
    let targets = vec![
        Target::at_most(
            "cached requests that failed while an agent ran",
            0.0,
            cached.count(|failure| !away.is_agent_away(failure.from, failure.to)) as f64,
        ),
        Target::at_most(
            "failures too many to be judged",
            0.0,
            cached.not_kept() as f64,
        ),
        Target::at_most("applications disturbed", 0.0, disturbed.len() as f64),
        Target::at_most(
            "new requests that failed while broker and agent ran",
            0.0,
            unexplained.len() as f64,
        ),
        Target::at_most(
            "requests that failed not retryably",
            0.0,
            (final_ones.count() + final_cached.count()) as f64,
        ),
        Target::at_most(
            "longest wait of a cached request that an agent's death cost, s",
            2.0,
            waited
                .fold(0.0, f64::max)
                .max(cached.longest_wait().as_secs_f64()),
        ),
        Target::at_most(
            "kill -9 of the agent to the first answer, median s",
            0.2,
            median(found.back.clone()),
        ),
        Target::at_most(
            "tasks not taken over while no broker ran",
            0.0,
            missing as f64,
        ),
    ];
    Finding {
        scenario: "operate",
        targets,
        detail: json!({
            "cached_per_second": rate, "cached_calls": cached.calls(), "cached_latency": cached.latency(),
            "cached_failed_with_agent": said(with_agent.iter().map(|failure| failure.why.as_str())),
            "cached_failed_without_agent": without.len(),
            "new_requests": new.len(), "new_failed": failed.len(),
            "new_failed_without_broker": failed.iter().filter(without_broker).count(),
            "new_failed_without_agent": failed.iter().filter(by_an_agent).count(),
            "new_failed_unexplained": said(unexplained.iter().map(|request| request.why.as_str())),
            "new_slowest_s": new.iter().map(|request| request.to.since(request.from).as_secs_f64()).fold(0.0, f64::max),
            "agent_back_s": found.back, "agent_back_slowest_s": slowest,
            "adopted_without_broker": found.adopted.0, "disturbed": disturbed,
            "broker_away_s": away.broker_seconds(), "run_queue": host::run_queue(),
        }),
    }
}

/// A few, to look at.
fn said<'a>(whys: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    whys.take(5).collect()
}

/// Also when something panics: the scope would wait for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
