//! Applications that hold a token, fetch it again and ask introspection about it; and a slow
//! stream of requests that nobody holds the answer to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use ephor_testkit::chaos::task::{Task, Told};
use ephor_testkit::installation::Installation;
use serde_json::Value;

use crate::clock::Moment;

/// Applications.
pub const WATCHING: usize = 4;
/// Each looks that often.
const LOOK: Duration = Duration::from_millis(250);
/// New requests of one process; then comes the next, and the agent has an end to tell.
const ASKS_EACH: u64 = 100;
/// Disturbances kept.
const KEPT: usize = 20;
const TOKEN: &str = "/v1/token?audience=app";

/// A new request and its answer.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Sent.
    pub from: Moment,
    /// Answered.
    pub to: Moment,
    /// HTTP status; 0: nobody answered.
    pub status: u64,
    /// Whether asking again may help.
    pub is_retryable: bool,
    /// What was said instead of an answer.
    pub why: String,
}

/// See the module.
pub struct Apps<'k> {
    kit: &'k Installation,
    words: Vec<String>,
    new_rate: u64,
    apps: Vec<Mutex<App>>,
    asked: Mutex<Vec<Asked>>,
    disturbed: Mutex<Vec<String>>,
}

struct App {
    process: Task,
    /// Its task, from the first answer on.
    task: String,
    /// The first token it got and the newest: both live longer than this runs.
    first: String,
    newest: String,
}

impl<'k> Apps<'k> {
    /// Starts the applications; each has its token.
    pub fn new(kit: &'k Installation, new_rate: u64) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let this = this.to_str().context("the path of this program")?;
        let words = vec![this.to_owned(), "__task".to_owned()];
        let start = || -> anyhow::Result<Mutex<App>> {
            let mut process = Task::start(&words, &kit.socket())?;
            let told = process.ask("GET", TOKEN)?;
            anyhow::ensure!(told.status == 200, "{}", why(&told));
            let token = told.text("token").to_owned();
            Ok(Mutex::new(App {
                process,
                task: told.text("task").to_owned(),
                first: token.clone(),
                newest: token,
            }))
        };
        Ok(Self {
            apps: (0..WATCHING).map(|_| start()).collect::<Result<_, _>>()?,
            kit,
            words,
            new_rate,
            asked: Mutex::default(),
            disturbed: Mutex::default(),
        })
    }

    /// One application, until `done`.
    pub fn watch(&self, number: usize, done: &AtomicBool) {
        let Some(app) = self.apps.get(number) else {
            return;
        };
        while !done.load(Ordering::SeqCst) {
            let looked = self.look(&mut locked(app));
            if let Err(why) = looked {
                self.disturb(format!("application {number}: {why:#}"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// A stream of new requests, until `done`.
    pub fn ask_new(&self, done: &AtomicBool) {
        let gap = Duration::from_secs_f64(1.0 / self.new_rate.max(1) as f64);
        let (start, mut number, mut process) = (Moment::now(), 0_u64, None);
        while !done.load(Ordering::SeqCst) {
            if number % ASKS_EACH == 0 {
                process = Task::start(&self.words, &self.kit.socket()).ok();
            }
            let from = Moment::now();
            let target = format!("/v1/token?audience=new-{number}&ttl_seconds=60");
            let told = process.as_mut().map(|process| process.ask("GET", &target));
            let Some(Ok(told)) = told else {
                self.disturb("a process that asks for new tokens is gone".to_owned());
                return;
            };
            locked(&self.asked).push(Asked {
                from,
                to: Moment::now(),
                status: told.status,
                is_retryable: told.is_retryable(),
                why: why(&told),
            });
            number += 1;
            std::thread::sleep(start.after(gap.mul_f64(number as f64)).remaining());
        }
    }

    /// Applications whose task the agent knows, and all of them. Without the broker.
    pub fn adopted(&self) -> (usize, usize) {
        let knows = |app: &&Mutex<App>| {
            let mut app = locked(app);
            let told = app.process.ask("GET", "/v1/task");
            told.is_ok_and(|told| told.status == 200 && told.text("task") == app.task)
        };
        (self.apps.iter().filter(knows).count(), self.apps.len())
    }

    /// Everything that was asked for anew.
    pub fn new_requests(&self) -> Vec<Asked> {
        locked(&self.asked).clone()
    }

    /// What an application noticed.
    pub fn disturbed(&self) -> Vec<String> {
        locked(&self.disturbed).clone()
    }

    /// Fetches again, and asks a service whether what it holds is good. A daemon that is away
    /// answers neither; that disturbs nobody who holds a token.
    fn look(&self, app: &mut App) -> anyhow::Result<()> {
        let told = app.process.ask("GET", TOKEN)?;
        if told.status == 200 {
            let task = told.text("task");
            anyhow::ensure!(task == app.task, "was task {}, is {task}", app.task);
            app.newest = told.text("token").to_owned();
        } else {
            anyhow::ensure!(told.is_retryable(), "its token was refused: {}", why(&told));
        }
        for token in [&app.first, &app.newest] {
            let Ok(said) = self.kit.introspect(token) else {
                continue;
            };
            let active = said.body.get("active").and_then(Value::as_bool);
            anyhow::ensure!(
                said.status != 200 || active == Some(true),
                "a token that it holds is refused"
            );
        }
        Ok(())
    }

    fn disturb(&self, what: String) {
        let mut disturbed = locked(&self.disturbed);
        if disturbed.len() < KEPT {
            disturbed.push(what);
        }
    }
}

/// Why there is no credential; never an answer with one.
fn why(told: &Told) -> String {
    match told.status {
        200 => String::new(),
        0 => told.body.as_str().unwrap_or_default().to_owned(),
        status => format!("{status} {}: {}", told.text("code"), told.text("detail")),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
