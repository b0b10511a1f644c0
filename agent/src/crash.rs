//! Crash points: named places between two effects where the fault tests kill the agent.
//!
//! Without the feature `failpoints` a point compiles to nothing; the name is checked against
//! [`POINTS`] in every build. A crash is `SIGKILL` to ourselves: no destructor, no flush, as
//! when the kernel or a user does it. Never on in a shipped binary.

/// Every point, in order of work.
pub const POINTS: &[&str] = &[
    "attest.done",
    "task.opened",
    "journal.before_sync",
    "journal.written",
    "issue.answered",
    "deliver.before_write",
    "deliver.written",
    "complete.noticed",
    "complete.sent",
    "complete.closed",
    "journal.compacted",
];

/// The environment variable that arms a point: `NAME` or `NAME:NTH` (from 1).
pub const VARIABLE: &str = "EPHOR_CRASH";

/// Marks a crash point by its name in [`POINTS`]; an unknown name does not compile.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{
        const _: () = assert!($crate::crash::known($name), "not in crash::POINTS");
        #[cfg(feature = "failpoints")]
        $crate::crash::armed::hit($name);
    }};
}

/// Arms what [`VARIABLE`] names; call it once, at start. Does nothing without the feature.
///
/// # Errors
/// When the variable names no point: a test must not pass because of a typing error.
pub fn arm() -> Result<(), String> {
    #[cfg(feature = "failpoints")]
    armed::from_environment()?;
    Ok(())
}

/// Whether there is a point of this name.
#[must_use]
pub const fn known(name: &str) -> bool {
    let mut points = POINTS;
    while let Some((point, rest)) = points.split_first() {
        if equal(point.as_bytes(), name.as_bytes()) {
            return true;
        }
        points = rest;
    }
    false
}

const fn equal(mut one: &[u8], mut two: &[u8]) -> bool {
    loop {
        match (one.split_first(), two.split_first()) {
            (None, None) => return true,
            (Some((a, rest_one)), Some((b, rest_two))) if *a == *b => {
                (one, two) = (rest_one, rest_two)
            }
            (Some(_), Some(_)) | (None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

/// What [`VARIABLE`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The point.
    pub name: String,
    /// At which of its passes, from 1.
    pub nth: u64,
}

impl std::str::FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let nth = nth.parse().ok().filter(|nth| *nth > 0);
        match (known(name), nth) {
            (true, Some(nth)) => Ok(Self {
                name: name.to_owned(),
                nth,
            }),
            (true, None) => Err(format!(
                "{VARIABLE}={text}: after the colon comes a count from 1"
            )),
            (false, _) => Err(format!(
                "{VARIABLE}={text}: no such crash point; there are {}",
                POINTS.join(", ")
            )),
        }
    }
}

#[cfg(feature = "failpoints")]
pub mod armed {
    //! The part that kills, in test builds only.

    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Plan, VARIABLE};

    static PLAN: OnceLock<(Plan, AtomicU64)> = OnceLock::new();

    /// As [`super::arm`], which calls it.
    ///
    /// # Errors
    /// When the variable names no point.
    pub fn from_environment() -> Result<(), String> {
        let Ok(text) = std::env::var(VARIABLE) else {
            return Ok(());
        };
        let plan = text.parse()?;
        PLAN.get_or_init(|| (plan, AtomicU64::new(0)));
        Ok(())
    }

    /// Passes a point; kills this process when it is the planned pass.
    pub fn hit(name: &str) {
        let Some((plan, passes)) = PLAN.get().filter(|(plan, _)| plan.name == name) else {
            return;
        };
        if passes.fetch_add(1, Ordering::SeqCst) + 1 == plan.nth {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stdout)]
mod tests {
    use super::*;

    #[test]
    fn points_are_unique_and_known() {
        let unique: std::collections::BTreeSet<_> = POINTS.iter().collect();
        assert_eq!(unique.len(), POINTS.len());
        assert!(POINTS.iter().all(|point| known(point)));
        for other in ["", "journal", "journal.writte", "journal.writtenn"] {
            assert!(!known(other), "{other}");
        }
        crash_point!("journal.written");
    }

    #[test]
    fn a_plan_names_a_known_point_and_a_pass() {
        let plan = |name: &str, nth| {
            Ok(Plan {
                name: name.to_owned(),
                nth,
            })
        };
        assert_eq!("journal.written".parse(), plan("journal.written", 1));
        assert_eq!("complete.sent:3".parse(), plan("complete.sent", 3));
        for wrong in ["nowhere", "complete.sent:0", "complete.sent:x", ""] {
            assert!(wrong.parse::<Plan>().is_err(), "{wrong}");
        }
    }

    #[cfg(feature = "failpoints")]
    #[test]
    fn the_planned_pass_kills_and_no_other() {
        use std::os::unix::process::ExitStatusExt;
        if std::env::var(VARIABLE).is_ok() {
            arm().unwrap();
            for _ in 0..3 {
                println!("pass");
                crash_point!("complete.sent");
                crash_point!("complete.closed");
            }
            return;
        }
        let own = std::env::current_exe().unwrap();
        let name = "crash::tests::the_planned_pass_kills_and_no_other";
        let run = |plan: &str| {
            let mut child = std::process::Command::new(&own);
            child
                .args([name, "--exact", "--nocapture"])
                .env(VARIABLE, plan)
                .output()
                .unwrap()
        };
        let killed = run("complete.sent:2");
        assert_eq!(killed.status.signal(), Some(9));
        let passes = String::from_utf8_lossy(&killed.stdout)
            .matches("pass\n")
            .count();
        assert_eq!(passes, 2);
        assert!(run("complete.sent:4").status.success());
        assert!(!run("complete.send").status.success());
    }
}
