//! Crash points: named places between two effects where the fault tests kill the agent.
//!
//! Without the feature `failpoints`, which is never on in a shipped binary, a point compiles to
//! nothing; its name is checked against [`POINTS`] in every build. `EPHOR_CRASH=NAME` dies at
//! the first pass of a point, `NAME:N` at the N-th: by `SIGKILL`, so without a destructor and
//! without a flush. The agent and the broker see nothing of each other, so each has its own.

/// Every point, in the order of work.
pub const POINTS: &[&str] = &[
    "attest.done",
    "task.opened",
    "journal.before_write",
    "journal.before_sync",
    "journal.written",
    "journal.before_rename",
    "journal.compacted",
    "issue.before_send",
    "issue.answered",
    "renew.before_send",
    "renew.answered",
    "deliver.landed",
    "deliver.before_write",
    "deliver.written",
    "revoke.wiped",
    "complete.noticed",
    "complete.before_send",
    "complete.sent",
    "complete.closed",
    "handover.offered",
    "handover.received",
    "handover.journal_closed",
    "handover.given",
    "handover.taken",
];

/// Marks a crash point by its name in [`POINTS`]; an unknown name does not compile.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{
        const { assert!($crate::crash::known($name), "not in crash::POINTS") };
        #[cfg(any(test, feature = "failpoints"))]
        $crate::crash::armed::hit($name);
    }};
}

/// Whether there is a point of this name. Evaluated while compiling.
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

#[cfg(any(test, feature = "failpoints"))]
pub mod armed {
    //! The part that kills, in test builds only.

    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    const VARIABLE: &str = "EPHOR_CRASH";

    struct Plan {
        name: String,
        passes_left: AtomicU64,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

    fn parse(text: &str) -> Result<Plan, String> {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let nth: Option<u64> = nth.parse().ok().filter(|nth| *nth > 0);
        match (super::known(name), nth) {
            (true, Some(nth)) => Ok(Plan {
                name: name.to_owned(),
                passes_left: AtomicU64::new(nth),
            }),
            (true, None) => Err(format!(
                "{VARIABLE}={text}: after the colon comes a count from 1"
            )),
            (false, _) => Err(format!(
                "{VARIABLE}={text}: no such crash point; see `crash-points`"
            )),
        }
    }

    /// Looks at the variable at start: a test must not pass because of a typing error.
    ///
    /// # Errors
    /// When it names no point.
    pub fn check() -> Result<(), String> {
        std::env::var(VARIABLE).map_or(Ok(()), |text| parse(&text).map(drop))
    }

    /// Passes a point; kills this process when it is the planned pass.
    pub fn hit(name: &str) {
        let plan = PLAN.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?).ok());
        let Some(plan) = plan.as_ref().filter(|plan| plan.name == name) else {
            return;
        };
        if plan.passes_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            std::process::abort();
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
        for other in ["", "complete.sent.x", "complete.sen", "complete.sentx"] {
            assert!(!known(other), "{other}");
        }
    }

    #[test]
    fn the_planned_pass_kills_and_no_other() {
        use std::os::unix::process::ExitStatusExt;
        const CHILD: &str = "EPHOR_TEST_CRASH_CHILD";
        if std::env::var(CHILD).is_ok() {
            armed::check().unwrap();
            for _ in 0..3 {
                println!("pass");
                crash_point!("complete.sent");
                crash_point!("complete.closed");
            }
            return;
        }
        let run = |plan: &str| {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child
                .args([
                    "crash::tests::the_planned_pass_kills_and_no_other",
                    "--exact",
                    "--nocapture",
                ])
                .env(CHILD, "1")
                .env("EPHOR_CRASH", plan)
                .output()
                .unwrap()
        };
        let killed = run("complete.sent:2");
        assert_eq!(killed.status.signal(), Some(9));
        assert_eq!(
            String::from_utf8_lossy(&killed.stdout)
                .matches("pass\n")
                .count(),
            2
        );
        assert_eq!(run("complete.closed").status.signal(), Some(9));
        assert!(run("complete.sent:4").status.success());
        for wrong in ["nowhere", "complete.sent:0", "complete.sent:x", ""] {
            assert!(!run(wrong).status.success(), "{wrong}");
        }
    }
}
