//! Resident memory of both daemons. Each life of a killed daemon begins anew, so what is compared
//! is the most that a life needed: of the lives in the first third of the run and in the last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::installation::{Installation, Side};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// A life with fewer looks says nothing.
const LOOKS: u32 = 6;
/// Growth that is clear: by this factor,
const FACTOR: f64 = 1.3;
/// and by this much, which the allocator's chance does not reach.
const LEAST_MIB: f64 = 8.0;
/// Fewer lives make no thirds.
const LIVES: usize = 6;
const MIB: f64 = 1024.0;
const SIDES: [Side; 2] = [Side::Broker, Side::Agent];

/// Most of one life.
#[derive(Debug, Clone, Copy)]
struct Life {
    pid: u32,
    looks: u32,
    peak_kib: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Memory {
    /// Lives of broker and agent, in order.
    lives: Mutex<BTreeMap<&'static str, Vec<Life>>>,
}

/// What memory came to.
pub(super) struct Told {
    pub lines: Vec<String>,
    pub grown: Vec<String>,
    /// Whether both daemons had lives enough to tell growth.
    pub is_judged: bool,
}

impl Memory {
    /// Until `done`.
    pub fn watch(&self, kit: &Installation, done: &AtomicBool) {
        while !done.load(Ordering::SeqCst) {
            std::thread::sleep(EVERY);
            for side in SIDES {
                let Some(pid) = kit.pid(side) else { continue };
                let Some(kib) = resident_kib(pid) else {
                    continue;
                };
                self.look(name(side), pid, kib);
            }
        }
    }

    /// As of now, in words.
    pub fn now(&self, kit: &Installation) -> String {
        let of = |side| {
            kit.pid(side).and_then(resident_kib).map_or_else(
                || "away".to_owned(),
                |kib| format!("{:.0} MiB", kib as f64 / MIB),
            )
        };
        format!("broker {}, agent {}", of(Side::Broker), of(Side::Agent))
    }

    /// First third against last third.
    pub fn judge(&self) -> Told {
        let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut lines, mut grown) = (Vec::new(), Vec::new());
        let mut judged = 0;
        for (name, lives) in lives.iter() {
            let peaks: Vec<f64> = lives
                .iter()
                .filter(|life| life.looks >= LOOKS)
                .map(|life| life.peak_kib as f64 / MIB)
                .collect();
            let (first, last) = thirds(&peaks);
            lines.push(format!(
                "memory of the {name}: {} lives; median of their peaks {first:.1} MiB in the first third, {last:.1} in the last",
                peaks.len()
            ));
            if peaks.len() < LIVES {
                lines.push(format!("memory of the {name}: too few lives to judge"));
                continue;
            }
            judged += 1;
            if is_grown(peaks.len(), first, last) {
                grown.push(format!(
                    "memory of the {name} grew from {first:.1} to {last:.1} MiB"
                ));
            }
        }
        Told {
            lines,
            grown,
            is_judged: judged == SIDES.len(),
        }
    }

    fn look(&self, name: &'static str, pid: u32, kib: u64) {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = lives.entry(name).or_default();
        match lives.last_mut().filter(|life| life.pid == pid) {
            Some(life) => {
                life.looks += 1;
                life.peak_kib = life.peak_kib.max(kib);
            }
            None => lives.push(Life {
                pid,
                looks: 1,
                peak_kib: kib,
            }),
        }
    }
}

const fn name(side: Side) -> &'static str {
    match side {
        Side::Broker => "broker",
        Side::Agent => "agent",
    }
}

fn is_grown(lives: usize, first: f64, last: f64) -> bool {
    lives >= LIVES && last > first * FACTOR && last > first + LEAST_MIB
}

/// The median of the first third and of the last.
fn thirds(peaks: &[f64]) -> (f64, f64) {
    let third = peaks.len().div_ceil(3);
    let of = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part.get(part.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let last = peaks.len().saturating_sub(third);
    (
        of(peaks.get(..third).unwrap_or_default()),
        of(peaks.get(last..).unwrap_or_default()),
    )
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_chance() {
        let steady = [20.0, 24.0, 21.0, 22.0, 25.0, 21.0, 24.0, 22.0, 23.0];
        let (first, last) = thirds(&steady);
        assert_eq!((first, last), (21.0, 23.0));
        assert!(!is_grown(steady.len(), first, last));
        let leak: Vec<f64> = (0..9).map(|life| 20.0 + 5.0 * f64::from(life)).collect();
        let (first, last) = thirds(&leak);
        assert!(is_grown(leak.len(), first, last), "{first} {last}");
        assert!(!is_grown(2, 20.0, 90.0), "two lives say nothing");
    }

    #[test]
    fn nothing_is_said_of_few_lives() {
        let memory = Memory::default();
        let live = |name, lives: std::ops::Range<u32>| {
            for (pid, _) in lives.flat_map(|pid| (0..LOOKS).map(move |look| (pid, look))) {
                memory.look(name, pid, 20 * 1024);
            }
        };
        live("broker", 0..6);
        live("agent", 0..5);
        let told = memory.judge();
        assert!(!told.is_judged && told.grown.is_empty());
        let few = "memory of the agent: too few lives to judge".to_owned();
        assert!(told.lines.contains(&few), "{:?}", told.lines);
        live("agent", 5..6);
        assert!(memory.judge().is_judged);
    }
}
