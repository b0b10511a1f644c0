//! Which open tasks a heartbeat shows to be gone. Pure: a rule with no clock and no store.
//!
//! The set of a heartbeat is the whole truth of its agent, with two cares. A task opened
//! after the set was taken cannot be in it. And a task of an earlier boot is gone whatever
//! the set says: no process survives a boot.

use std::collections::HashSet;

use ephor_proto::id::{InstanceId, TaskId};

use crate::ledger::TaskRow;

/// A task that is open in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its id.
    pub id: TaskId,
    /// Boot of its host when it opened.
    pub boot_id: String,
    /// Start of the agent that opened it.
    pub instance: InstanceId,
    /// That agent's counter when it opened.
    pub opened_seq: u64,
}

impl From<&TaskRow> for Standing {
    fn from(row: &TaskRow) -> Self {
        Self {
            id: row.id,
            boot_id: row.boot_id.clone(),
            instance: row.instance,
            opened_seq: row.opened_seq,
        }
    }
}

/// What a heartbeat said.
#[derive(Debug, Clone, Copy)]
pub struct RollCall<'a> {
    /// The agent's boot.
    pub boot_id: &'a str,
    /// The agent's start.
    pub instance: InstanceId,
    /// Its counter when the set was taken.
    pub seq: u64,
    /// Tasks open there.
    pub present: &'a HashSet<TaskId>,
}

/// Those of `open` that the heartbeat shows to be gone.
#[must_use]
pub fn missing(call: &RollCall<'_>, open: &[Standing]) -> Vec<TaskId> {
    open.iter()
        .filter(|task| is_missing(call, task))
        .map(|task| task.id)
        .collect()
}

fn is_missing(call: &RollCall<'_>, task: &Standing) -> bool {
    if task.boot_id != call.boot_id {
        return true;
    }
    // Counters of different starts cannot be compared. A task of an earlier start was adopted
    // before this start's first heartbeat, or it is gone.
    let younger = task.instance == call.instance && task.opened_seq >= call.seq;
    !younger && !call.present.contains(&task.id)
}

/// Those of `open` that a `Hello` from this boot shows to be gone.
#[must_use]
pub fn of_earlier_boots(boot_id: &str, open: &[Standing]) -> Vec<TaskId> {
    open.iter()
        .filter(|task| task.boot_id != boot_id)
        .map(|task| task.id)
        .collect()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    fn instance(n: u8) -> InstanceId {
        InstanceId::from_parts(1, [n; 10])
    }

    fn task(n: u8, boot: &str, by: u8, seq: u64) -> Standing {
        Standing {
            id: TaskId::from_parts(1, [n; 10]),
            boot_id: boot.to_owned(),
            instance: instance(by),
            opened_seq: seq,
        }
    }

    #[test]
    fn every_case_is_as_in_the_table() {
        // The heartbeat: boot `b`, start 2, set taken at 10.
        for (boot, by, seq, present, gone, why) in [
            ("b", 2, 9, true, false, "there"),
            ("b", 2, 9, false, true, "it ended"),
            ("b", 2, 10, false, false, "younger than the set"),
            ("b", 2, 11, false, false, "younger than the set"),
            ("b", 2, 11, true, false, "there"),
            ("b", 1, 5, true, false, "adopted from the start before"),
            ("b", 1, 5, false, true, "not adopted"),
            (
                "b",
                1,
                99,
                false,
                true,
                "counters of two starts do not compare",
            ),
            ("a", 1, 5, false, true, "an earlier boot"),
            (
                "a",
                1,
                5,
                true,
                true,
                "an earlier boot, whatever the set says",
            ),
            ("a", 2, 99, false, true, "an earlier boot"),
        ] {
            let task = task(7, boot, by, seq);
            let set: HashSet<TaskId> = present.then_some(task.id).into_iter().collect();
            let call = RollCall {
                boot_id: "b",
                instance: instance(2),
                seq: 10,
                present: &set,
            };
            assert_eq!(!missing(&call, &[task]).is_empty(), gone, "{why}");
        }
    }

    #[test]
    fn a_new_boot_ends_the_tasks_of_the_old_one_at_once() {
        let open = [task(1, "a", 1, 1), task(2, "b", 2, 1), task(3, "a", 1, 2)];
        assert_eq!(of_earlier_boots("b", &open), [open[0].id, open[2].id]);
        assert!(of_earlier_boots("b", &open[1..2]).is_empty());
    }
}
