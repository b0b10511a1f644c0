//! Kills one daemon at random moments and starts it again after a moment, as an init system does.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::chance::Chance;
use crate::installation::{Installation, Side};
use crate::wait::monotonic;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// A daemon is away for at most that long, seconds.
const AWAY: f64 = 1.5;
/// Kept of what went wrong.
const DEFECTS: usize = 10;

/// See the module.
pub(super) struct Killer<'k> {
    kit: &'k Installation,
    side: Side,
    every: f64,
    chance: Mutex<Chance>,
    kills: AtomicU32,
    /// Held while the daemon is away, so that who holds it has a daemon that runs.
    away: Mutex<()>,
    defects: Mutex<Vec<String>>,
}

impl<'k> Killer<'k> {
    pub fn new(kit: &'k Installation, side: Side, every: f64, chance: Chance) -> Self {
        Self {
            kit,
            side,
            every,
            chance: Mutex::new(chance),
            kills: AtomicU32::new(0),
            away: Mutex::default(),
            defects: Mutex::default(),
        }
    }

    /// Until `done`.
    pub fn run(&self, done: &AtomicBool) {
        let mut due = self.next_kill();
        while !done.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK);
            let _away = self.pause();
            if self.kit.has_ended(self.side) {
                self.defect(format!(
                    "{:?} died by itself: {}",
                    self.side,
                    self.kit.tail(self.side)
                ));
                self.start();
            } else if monotonic() >= due {
                if let Err(why) = self.kit.kill(self.side) {
                    self.defect(format!("{:?} was not killed: {why:#}", self.side));
                }
                self.kills.fetch_add(1, Ordering::Relaxed);
                let away = self.between(0.0, AWAY);
                std::thread::sleep(Duration::from_secs_f64(away));
                self.start();
                due = self.next_kill();
            }
        }
    }

    /// While it is held the daemon runs.
    pub fn pause(&self) -> MutexGuard<'_, ()> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn kills(&self) -> u32 {
        self.kills.load(Ordering::Relaxed)
    }

    /// Ends that nobody asked for, and starts that failed.
    pub fn died_by_itself(&self) -> Vec<String> {
        let defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        defects.clone()
    }

    fn start(&self) {
        if let Err(why) = self.kit.start_daemon(self.side, &[]) {
            self.defect(format!("{:?} did not start again: {why:#}", self.side));
        }
    }

    /// Anywhere from half of the interval to one and a half.
    fn next_kill(&self) -> f64 {
        monotonic() + self.between(self.every / 2.0, self.every * 1.5)
    }

    fn between(&self, low: f64, high: f64) -> f64 {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        chance.between(low, high)
    }

    fn defect(&self, what: String) {
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        if defects.len() < DEFECTS {
            defects.push(what);
        }
    }
}
