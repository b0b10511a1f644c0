//! Open loop of cached fetches that outlives its failures: each is written down with its moments,
//! and a broken connection is made anew.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;
use crate::host;
use crate::measure::{Collector, Latency, wait_for};
use crate::raw::Raw;

/// Longest sleep while nothing is due and nothing comes.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Failures kept; that there were more is a failure of the run.
const KEPT: usize = 200_000;
/// Longest text kept of one.
const WHY: usize = 300;

/// A call that was not answered, or not with 200.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it was due.
    pub from: Moment,
    /// When it had failed.
    pub to: Moment,
    /// Whether asking again may help.
    pub is_retryable: bool,
    /// How.
    pub why: String,
}

/// See the module.
pub struct Cached {
    request: Vec<u8>,
    rate: f64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    calls: u64,
    failures: Vec<Failure>,
    not_kept: u64,
    latency: Option<Latency>,
    longest: Duration,
}

/// The connections of one run.
struct Loop<'a> {
    cached: &'a Cached,
    socket: &'a Path,
    idle: VecDeque<Raw>,
    busy: Vec<(Raw, Moment)>,
    lost: usize,
}

impl Cached {
    /// So many calls a second.
    pub fn new(request: Vec<u8>, rate: f64) -> Self {
        Self {
            request,
            rate,
            seen: Mutex::default(),
        }
    }

    /// Until `done`.
    pub fn run(&self, socket: &Path, connections: usize, done: &AtomicBool) {
        let mut loops = Loop {
            cached: self,
            socket,
            idle: VecDeque::new(),
            busy: Vec::new(),
            lost: connections,
        };
        if let Err(why) = loops.run(done) {
            host::say(&format!("cached load: {why:#}"));
            let now = Moment::now();
            self.fail(now, false, &format!("the load stopped: {why:#}"));
        }
    }

    /// All of them.
    pub fn failures(&self) -> Vec<Failure> {
        self.seen().failures.clone()
    }

    /// Failures like these.
    pub fn count(&self, is_one: impl Fn(&Failure) -> bool) -> usize {
        self.seen()
            .failures
            .iter()
            .filter(|one| is_one(one))
            .count()
    }

    /// Failures of which nothing else is known, because there were too many.
    pub fn not_kept(&self) -> u64 {
        self.seen().not_kept
    }

    /// Calls made.
    pub fn calls(&self) -> u64 {
        self.seen().calls
    }

    /// Of what was answered.
    pub fn latency(&self) -> Option<Latency> {
        self.seen().latency.clone()
    }

    /// Of one that was answered.
    pub fn longest_wait(&self) -> Duration {
        self.seen().longest
    }

    fn fail(&self, from: Moment, is_retryable: bool, why: &str) {
        let mut seen = self.seen();
        if seen.failures.len() < KEPT {
            seen.failures.push(Failure {
                from,
                to: Moment::now(),
                is_retryable,
                why: why.chars().take(WHY).collect(),
            });
        } else {
            seen.not_kept += 1;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loop<'_> {
    fn run(&mut self, done: &AtomicBool) -> anyhow::Result<()> {
        let gap = Duration::from_secs_f64(1.0 / self.cached.rate);
        let mut collector = Collector::new()?;
        let (start, mut number) = (Moment::now(), 0_u64);
        loop {
            let is_done = done.load(Ordering::SeqCst);
            if is_done && self.busy.is_empty() {
                break;
            }
            let mut wait = LOOK;
            loop {
                let (due, now) = (start.after(gap.mul_f64(number as f64)), Moment::now());
                if due > now {
                    wait = wait.min(due.since(now));
                    break;
                }
                if is_done || !self.send(due) {
                    break;
                }
                number += 1;
            }
            self.give_up_on_the_stuck();
            for at in wait_for(&self.busy, Some(wait))?.into_iter().rev() {
                self.receive(at, &mut collector);
            }
        }
        let mut seen = self.cached.seen();
        (seen.calls, seen.latency) = (number, Some(collector.latency()));
        Ok(())
    }

    /// Whether the call is on its way or has failed; if not, every connection is in use.
    fn send(&mut self, due: Moment) -> bool {
        let connection = match self.idle.pop_front() {
            Some(connection) => Ok(connection),
            None if self.lost == 0 => return false,
            None => Raw::connect(self.socket).inspect(|_| self.lost -= 1),
        };
        let sent = connection.and_then(|mut connection| {
            let sent = connection.send(&self.cached.request);
            if sent.is_err() {
                self.lost += 1;
            }
            sent.map(|()| connection)
        });
        match sent {
            Ok(connection) => self.busy.push((connection, due)),
            // Nobody listens, or nobody reads any more.
            Err(why) => self.cached.fail(due, true, &format!("{why:#}")),
        }
        true
    }

    /// What is not answered by now will not be.
    fn give_up_on_the_stuck(&mut self) {
        let is_stuck = |(_, due): &(Raw, Moment)| due.elapsed() > ANSWER_MAX;
        while let Some(at) = self.busy.iter().position(is_stuck) {
            let (_, due) = self.busy.swap_remove(at);
            self.lost += 1;
            self.cached.fail(due, true, "no answer");
        }
    }

    fn receive(&mut self, at: usize, collector: &mut Collector) {
        let Some((connection, _)) = self.busy.get_mut(at) else {
            return;
        };
        let received = connection.receive();
        if matches!(received, Ok(false)) {
            return;
        }
        let (connection, due) = self.busy.swap_remove(at);
        match received {
            Ok(_) => {
                let took = due.elapsed();
                collector.add(took);
                let mut seen = self.cached.seen();
                seen.longest = seen.longest.max(took);
                drop(seen);
                self.idle.push_back(connection);
            }
            Err(why) => {
                self.lost += 1;
                let why = format!("{why:#}");
                // A refusal says itself whether asking again may help; a cut answer always may.
                let is_refusal = why.starts_with("HTTP/");
                let is_retryable = !is_refusal || why.to_ascii_lowercase().contains("retry-after:");
                self.cached.fail(due, is_retryable, &why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_is_lost_without_a_trace() {
        let cached = Cached::new(Vec::new(), 1.0);
        let now = Moment::now();
        for _ in 0..KEPT + 2 {
            cached.fail(now, true, "");
        }
        assert_eq!((cached.failures().len(), cached.not_kept()), (KEPT, 2));
    }
}
