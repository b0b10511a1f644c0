//! When a daemon was away: from the moment it was told to go until its successor served.

use std::sync::{Mutex, PoisonError};

use crate::clock::Moment;

/// From, and until when, if that is over.
type Window = (Moment, Option<Moment>);

/// See the module.
#[derive(Default)]
pub struct Away {
    broker: Mutex<Vec<Window>>,
    agent: Mutex<Vec<Window>>,
}

/// Goes on until it is dropped.
pub struct Absence<'a>(&'a Mutex<Vec<Window>>);

impl Away {
    /// The broker goes.
    pub fn broker(&self) -> Absence<'_> {
        Absence::begin(&self.broker)
    }

    /// The agent goes.
    pub fn agent(&self) -> Absence<'_> {
        Absence::begin(&self.agent)
    }

    /// Whether the broker was away at some moment between these.
    pub fn is_broker_away(&self, from: Moment, to: Moment) -> bool {
        overlaps(&self.broker, from, to)
    }

    /// Whether the agent was.
    pub fn is_agent_away(&self, from: Moment, to: Moment) -> bool {
        overlaps(&self.agent, from, to)
    }

    /// How long each absence of the broker was.
    pub fn broker_seconds(&self) -> Vec<f64> {
        let windows = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = windows
            .iter()
            .filter_map(|(from, until)| until.map(|until| until.since(*from)));
        ended.map(|length| length.as_secs_f64()).collect()
    }
}

impl<'a> Absence<'a> {
    fn begin(windows: &'a Mutex<Vec<Window>>) -> Self {
        let mut all = windows.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((Moment::now(), None));
        Self(windows)
    }
}

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = all.last_mut() {
            last.1 = Some(Moment::now());
        }
    }
}

fn overlaps(windows: &Mutex<Vec<Window>>, from: Moment, to: Moment) -> bool {
    let windows = windows.lock().unwrap_or_else(PoisonError::into_inner);
    windows
        .iter()
        .any(|(begin, end)| to >= *begin && end.is_none_or(|end| from <= end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_only_touches_an_absence_is_part_of_it() {
        let away = Away::default();
        let before = Moment::now();
        let absence = away.broker();
        let within = Moment::now();
        assert!(away.is_broker_away(before, within) && !away.is_agent_away(before, within));
        drop(absence);
        let after = Moment::now().after(Duration::from_millis(1));
        assert!(!away.is_broker_away(after, after));
        assert!(away.is_broker_away(before, after));
        assert_eq!(away.broker_seconds().len(), 1);
    }
}
