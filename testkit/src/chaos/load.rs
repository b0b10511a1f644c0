//! Short tasks, one after the other in each worker, and tasks that stay; and what they were told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;

use super::Settings;
use super::chance::Chance;
use super::task::{Task, Told};
use crate::installation::{Installation, SETTLE};
use crate::wait;

/// Tasks that stay all the time.
pub(super) const STAYING: u32 = 3;
/// A task that stays asks that often.
const STAY_PAUSE: Duration = Duration::from_millis(400);
/// A worker rests that long between two asks: load, not a race for the processor.
const PAUSE_MILLIS: u64 = 40;
/// Longest that everything which is on its way may take to come back.
const REST_MAX: Duration = Duration::from_secs(60);
/// Credentials remembered between two rounds; further tasks wait for the next.
const REMEMBERED: usize = 100_000;
/// Kept of what went wrong.
const DEFECTS: usize = 10;
/// Lives that are asked for, seconds; the short ones are renewed while their task goes on.
const LIVES: [u64; 4] = [6, 20, 45, 90];
/// A task that stays holds a token that is renewed again and again.
const STAY_TARGETS: [&str; 2] = [
    "/v1/token?audience=stays&ttl_seconds=15",
    "/v1/certificate?ttl_seconds=20",
];

/// A credential that a task was given.
#[derive(Debug, Clone)]
pub(super) struct Got {
    /// 32 hex digits.
    pub id: String,
    /// The token, if it is one.
    pub token: Option<String>,
}

/// A task that stays, and the newest that it has.
pub(super) struct Stay {
    pub task: Task,
    pub id: Option<String>,
}

/// What is known when nothing is on its way.
pub(super) struct Rest<'l> {
    /// Of tasks that ended since the last rest.
    pub ended: Vec<Got>,
    /// Tasks that ended since the last rest.
    pub tasks: u64,
    /// Those that stay.
    pub staying: &'l [Mutex<Option<Stay>>],
    load: &'l Load<'l>,
}

/// See the module.
pub(super) struct Load<'k> {
    kit: &'k Installation,
    words: Vec<String>,
    book: Mutex<Book>,
    gate: Mutex<Gate>,
    turned: Condvar,
    staying: Vec<Mutex<Option<Stay>>>,
}

#[derive(Default)]
struct Book {
    ended: Vec<Got>,
    tasks: u64,
    all_tasks: u64,
    given: u64,
    retryable: u64,
    refused: BTreeMap<String, u64>,
    defects: Vec<String>,
}

#[derive(Default)]
struct Gate {
    resting: bool,
    busy: u32,
}

impl<'k> Load<'k> {
    pub fn new(kit: &'k Installation, settings: &Settings) -> Self {
        Self {
            kit,
            words: settings.task.clone(),
            book: Mutex::default(),
            gate: Mutex::default(),
            turned: Condvar::new(),
            staying: (0..STAYING).map(|_| Mutex::default()).collect(),
        }
    }

    /// Task after task, until `done`.
    pub fn work(&self, mut chance: Chance, done: &AtomicBool) {
        while self.enter(done) {
            let outcome = self.one_task(&mut chance, done);
            self.leave();
            if let Err(why) = outcome {
                self.defect(format!("a task: {why:#}"));
            }
        }
    }

    /// One task, until `done`.
    pub fn stay(&self, number: u32, done: &AtomicBool) {
        let Some(place) = self.staying.get(number as usize) else {
            return;
        };
        match Task::start(&self.words, &self.socket()) {
            Ok(task) => *locked(place) = Some(Stay { task, id: None }),
            Err(why) => self.defect(format!("{why:#}")),
        }
        while self.enter(done) {
            for target in STAY_TARGETS {
                if let Err(why) = self.ask_staying(place, target) {
                    self.defect(format!("task {number}, which stays: {why:#}"));
                }
            }
            self.leave();
            std::thread::sleep(STAY_PAUSE);
        }
    }

    /// Waits until nothing is on its way; until [`Self::go_on`] nothing begins.
    ///
    /// # Errors
    /// When something does not come back.
    pub fn rest(&self) -> anyhow::Result<Rest<'_>> {
        locked(&self.gate).resting = true;
        wait::until("everything on its way came back", REST_MAX, || {
            (locked(&self.gate).busy == 0).then_some(())
        })?;
        let mut book = locked(&self.book);
        Ok(Rest {
            ended: std::mem::take(&mut book.ended),
            tasks: std::mem::take(&mut book.tasks),
            staying: &self.staying,
            load: self,
        })
    }

    /// After [`Self::rest`].
    pub fn go_on(&self) {
        locked(&self.gate).resting = false;
        self.turned.notify_all();
    }

    pub fn so_far(&self) -> String {
        let book = locked(&self.book);
        format!(
            "{} answers with a credential, {} tasks ended, {} refused for now, others {:?}",
            book.given, book.all_tasks, book.retryable, book.refused
        )
    }

    pub fn defects(&self) -> Vec<String> {
        locked(&self.book).defects.clone()
    }

    /// Whether a task may begin; waits while the load rests.
    fn enter(&self, done: &AtomicBool) -> bool {
        let mut gate = locked(&self.gate);
        loop {
            if done.load(Ordering::SeqCst) {
                return false;
            }
            if !gate.resting && locked(&self.book).ended.len() < REMEMBERED {
                gate.busy += 1;
                return true;
            }
            // Looks again by itself: `done` notifies nobody.
            let (next, _) = self
                .turned
                .wait_timeout(gate, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner);
            gate = next;
        }
    }

    fn leave(&self) {
        locked(&self.gate).busy -= 1;
    }

    fn is_over(&self, done: &AtomicBool) -> bool {
        done.load(Ordering::SeqCst) || locked(&self.gate).resting
    }

    /// From the start of a process to its end, whichever way it ends.
    fn one_task(&self, chance: &mut Chance, done: &AtomicBool) -> anyhow::Result<()> {
        let mut task = Task::start(&self.words, &self.socket())?;
        let (mut got, mut id) = (Vec::new(), None);
        let asks = match chance.below(10) {
            // Long enough for the short lives to be renewed.
            0 => 40,
            few => 1 + few,
        };
        for _ in 0..asks {
            let target = target(chance);
            let told = task.ask("GET", &target)?;
            self.note(&told, &mut id, &mut got)?;
            std::thread::sleep(Duration::from_millis(chance.below(2 * PAUSE_MILLIS)));
            if self.is_over(done) {
                break;
            }
        }
        match chance.below(10) {
            0..5 => task.kill()?,
            5 => {
                // Dies while its answer is being made.
                task.say("GET", &target(chance))?;
                std::thread::sleep(Duration::from_millis(chance.below(15)));
                task.kill()?;
            }
            6 | 7 => {
                let told = task.ask("POST", "/v1/task/complete")?;
                self.count(&told);
                task.exit()?;
            }
            _ => task.exit()?,
        }
        let mut book = locked(&self.book);
        book.ended.append(&mut got);
        book.tasks += 1;
        book.all_tasks += 1;
        Ok(())
    }

    /// Writes down an answer; a task keeps its id as long as it lives, whatever dies around it.
    fn note(&self, told: &Told, id: &mut Option<String>, got: &mut Vec<Got>) -> anyhow::Result<()> {
        self.count(told);
        if told.status != 200 {
            if !told.is_retryable() {
                self.defect(disturbed(told));
            }
            return Ok(());
        }
        let task = told.text("task").to_owned();
        match id {
            Some(before) if *before != task => {
                self.defect(format!(
                    "disturbed: a running task was {before} and is now {task}"
                ));
            }
            _ => {}
        }
        *id = Some(task);
        let one = credential(told)?;
        if !got.iter().any(|known| known.id == one.id) {
            got.push(one);
        }
        Ok(())
    }

    fn ask_staying(&self, place: &Mutex<Option<Stay>>, target: &str) -> anyhow::Result<Vec<Got>> {
        let mut place = locked(place);
        let stay = place.as_mut().context("it was not started")?;
        let told = stay.task.ask("GET", target)?;
        let mut got = Vec::new();
        self.note(&told, &mut stay.id, &mut got)?;
        Ok(got)
    }

    fn count(&self, told: &Told) {
        let mut book = locked(&self.book);
        match told.status {
            200 => book.given += 1,
            _ if told.is_retryable() => book.retryable += 1,
            _ => {
                *book
                    .refused
                    .entry(told.text("code").to_owned())
                    .or_default() += 1
            }
        }
    }

    fn defect(&self, what: String) {
        let defects = &mut locked(&self.book).defects;
        if defects.len() < DEFECTS {
            defects.push(what);
        }
    }

    fn socket(&self) -> PathBuf {
        self.kit.socket()
    }
}

impl Rest<'_> {
    /// Process ids of the tasks that stay.
    pub fn staying_pids(&self) -> Vec<u32> {
        let pid = |place: &Mutex<Option<Stay>>| locked(place).as_ref().map(|stay| stay.task.pid());
        self.staying.iter().filter_map(pid).collect()
    }

    /// What those that stay are given now, with both daemons up.
    ///
    /// # Errors
    /// When one is given nothing in time.
    pub fn ask_staying(&self) -> anyhow::Result<Vec<Got>> {
        let mut all = Vec::new();
        for place in self.staying {
            for target in STAY_TARGETS {
                let got = wait::until(&format!("a task that stays gets {target}"), SETTLE, || {
                    let got = self.load.ask_staying(place, target).ok()?;
                    (!got.is_empty()).then_some(got)
                });
                all.extend(got?);
            }
        }
        Ok(all)
    }
}

/// A refusal without a time to come back: nothing that was done to the daemons excuses one.
fn disturbed(told: &Told) -> String {
    let (status, code) = (told.status, told.text("code"));
    format!("disturbed: a running task was refused: {status} {code}")
}

fn target(chance: &mut Chance) -> String {
    let life = usize::try_from(chance.below(LIVES.len() as u64)).unwrap_or(0);
    let life = LIVES.get(life).copied().unwrap_or(20);
    match chance.below(10) {
        0..3 => format!("/v1/certificate?ttl_seconds={life}"),
        // Few audiences: about half of what is asked is held already.
        _ => {
            let audience = chance.below(4);
            format!("/v1/token?audience=a{audience}&ttl_seconds={life}")
        }
    }
}

fn credential(told: &Told) -> anyhow::Result<Got> {
    let (id, token) = (told.text("id").replace('-', ""), told.text("token"));
    // Never the answer itself: it holds a secret.
    anyhow::ensure!(id.len() == 32, "an answer without the id of a credential");
    let token = (!token.is_empty()).then(|| token.to_owned());
    Ok(Got { id, token })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
