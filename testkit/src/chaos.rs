//! Mixed load while both daemons are killed again and again, each at moments of its own.
//!
//! Workers start short tasks (processes) that ask for tokens and certificates, fetch them again,
//! end and are killed; some tasks stay all the time. Every round the load rests, no daemon is
//! killed, and the store is compared with what the tasks were told: 0 lost, 0 orphan, 0 double.
//! What a round has found right it forgets, so that an hour needs no more memory than a minute.

pub mod chance; //  a small generator that a seed repeats
pub mod task; //    the process that is a task, and its other end
mod load; //        workers and what they were told
mod killer; //      kills and starts the daemons
mod round; //       compares the store with the history
mod memory; //      resident memory over the lives of a daemon
mod lists; //       status lists and revocation lists against the store

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use crate::checker;
use crate::installation::{Installation, Side};
use crate::wait::monotonic;

use chance::Chance;
use killer::Killer;
use load::Load;
use memory::Memory;

/// Between two looks at the clock of the whole run.
const LOOK: Duration = Duration::from_millis(100);
/// Between two lines about progress, seconds.
const LINE: f64 = 60.0;

/// What to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `ephor` binary under test.
    pub ephor: PathBuf,
    /// The program that is a task, with its first words; [`task::serve`] is all it does.
    pub task: Vec<String>,
    /// How long.
    pub length: Duration,
    /// Each daemon is killed that often, on average.
    pub kill_every: Duration,
    /// How often everything is compared.
    pub check_every: Duration,
    /// Tasks at the same time, beside those that stay.
    pub workers: u32,
    /// Repeats the same choices.
    pub seed: u64,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Lines for a person.
    pub lines: Vec<String>,
    /// What did not hold; empty when all of it did.
    pub broken: Vec<String>,
    /// Credentials that tasks got and that the store was asked about.
    pub issued: u64,
    /// Tasks that ended.
    pub tasks: u64,
    /// Times that broker and agent were killed.
    pub kills: (u32, u32),
    /// Times that everything was compared.
    pub rounds: u32,
    /// Whether there was enough to tell that no daemon's memory grows.
    pub is_memory_judged: bool,
}

/// Runs it; `say` gets a line a minute.
///
/// # Errors
/// When it cannot be run. What does not hold is in the report.
pub fn run(settings: &Settings, say: &dyn Fn(&str)) -> anyhow::Result<Report> {
    let kit = Installation::create(&settings.ephor)?;
    kit.start()?;
    kit.wait_connected()?;
    let mut chance = Chance::new(settings.seed);
    let load = Load::new(&kit, settings);
    let killers = [Side::Broker, Side::Agent].map(|side| {
        let every = settings.kill_every.as_secs_f64();
        Killer::new(&kit, side, every, Chance::new(chance.draw()))
    });
    let memory = Memory::default();
    let done = AtomicBool::new(false);
    let mut report = Report::default();
    let ran = std::thread::scope(|scope| {
        let stop = Stop(&done);
        for killer in &killers {
            let done = &done;
            scope.spawn(move || killer.run(done));
        }
        for _ in 0..settings.workers {
            let (load, done, chance) = (&load, &done, Chance::new(chance.draw()));
            scope.spawn(move || load.work(chance, done));
        }
        for number in 0..load::STAYING {
            let (load, done) = (&load, &done);
            scope.spawn(move || load.stay(number, done));
        }
        scope.spawn(|| memory.watch(&kit, &done));
        let ran = Conductor {
            settings,
            kit: &kit,
            load: &load,
            killers: &killers,
            memory: &memory,
            say,
        }
        .conduct(&mut report);
        drop(stop);
        ran
    });
    ran?;
    let told = memory.judge();
    report.lines.extend(told.lines);
    report.broken.extend(told.grown);
    report.is_memory_judged = told.is_judged;
    report.broken.extend(load.defects());
    report.kills = (killers[0].kills(), killers[1].kills());
    for killer in &killers {
        report.broken.extend(killer.died_by_itself());
    }
    finish(&kit, &load, &mut report)?;
    Ok(report)
}

/// Rounds of load and rest until the time is over.
struct Conductor<'a> {
    settings: &'a Settings,
    kit: &'a Installation,
    load: &'a Load<'a>,
    killers: &'a [Killer<'a>; 2],
    memory: &'a Memory,
    say: &'a dyn Fn(&str),
}

impl Conductor<'_> {
    fn conduct(&self, report: &mut Report) -> anyhow::Result<()> {
        let start = monotonic();
        let end = start + self.settings.length.as_secs_f64();
        let between = self.settings.check_every.as_secs_f64();
        let (mut line, mut check) = (start + LINE, start + between);
        loop {
            std::thread::sleep(LOOK);
            let now = monotonic();
            if now >= line {
                line += LINE;
                self.tell((now - start) / 60.0);
            }
            if now >= check || now >= end {
                let held = self.round(report)?;
                if now >= end || !held {
                    return Ok(());
                }
                check = monotonic() + between;
            }
        }
    }

    fn tell(&self, minutes: f64) {
        let [broker, agent] = self.killers;
        let (load, memory) = (self.load.so_far(), self.memory.now(self.kit));
        let (broker, agent) = (broker.kills(), agent.kills());
        (self.say)(&format!(
            "{minutes:.0} min: {load}; killed: broker {broker}, agent {agent}; {memory}"
        ));
    }

    /// Whether everything is as it should be.
    fn round(&self, report: &mut Report) -> anyhow::Result<bool> {
        let [broker, agent] = self.killers;
        let found = {
            // Both run and stay up while these are held; no task is started or asked.
            let _calm = (broker.pause(), agent.pause());
            let rest = self.load.rest()?;
            round::check(self.kit, &rest, report).with_context(|| {
                let tail = |side| self.kit.tail(side);
                format!("{}\n{}", tail(Side::Broker), tail(Side::Agent))
            })?
        };
        for what in &found {
            (self.say)(&format!("BROKEN {what}"));
        }
        let held = found.is_empty();
        report.broken.extend(found);
        report.rounds += 1;
        self.load.go_on();
        Ok(held)
    }
}

/// The whole log, by the checker and by strangers.
fn finish(kit: &Installation, load: &Load<'_>, report: &mut Report) -> anyhow::Result<()> {
    kit.wait_connected()?;
    let dir = kit.path("export");
    if let Err(why) = checker::judge_log(kit, &dir) {
        report.broken.push(format!("{why:#}"));
    }
    report.lines.insert(0, load.so_far());
    report.lines.push(format!(
        "killed: broker {}, agent {}; compared {} times: {} credentials, {} tasks",
        report.kills.0, report.kills.1, report.rounds, report.issued, report.tasks
    ));
    Ok(())
}

/// Also when something panics: the scope would wait for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
