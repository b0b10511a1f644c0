//! Crash points: named places between two effects where the fault tests kill the broker.
//!
//! Without the feature `failpoints`, which is never on in a shipped binary, a point compiles to
//! nothing; its name is checked against [`POINTS`] in every build. `EPHOR_CRASH=NAME` dies at
//! the first pass of a point, `NAME:N` at the N-th: by `SIGKILL`, so without a destructor and
//! without a flush. The agent and the broker see nothing of each other, so each has its own.

/// Every point, in the order of work.
pub const POINTS: &[&str] = &[
    "join.after_commit",
    "issue.before_commit",
    "issue.after_commit",
    "issue.before_answer",
    "mint.before_call",
    "mint.after_call",
    "mint.after_commit",
    "mint.successor",
    "deliver.confirmed",
    "renew.before_commit",
    "renew.after_commit",
    "renew.before_extend",
    "renew.after_extend",
    "renew.before_answer",
    "complete.before_commit",
    "complete.after_commit",
    "complete.before_answer",
    "revoke.before_commit",
    "revoke.after_commit",
    "revoke.before_listing",
    "revoke.after_listing",
    "revoke.settled",
    "revoke.before_target",
    "revoke.after_target",
    "revoke.gone",
    "revoke.after_expiry",
    "prove.before_receipt",
    "prove.after_receipt",
    "prove.before_expiry",
    "prove.after_expiry",
    "prove.before_signature",
    "prove.after_signature",
    "prove.tile",
    "lent.taken",
    "lent.fenced",
    "lent.quiet",
    "lent.set",
    "lent.back",
    "rotate.next_written",
    "rotate.set",
    "rotate.proven",
    "rotate.settled",
    "keys.before_commit",
    "keys.after_commit",
    "keys.after_swap",
    "policy.before_commit",
    "policy.after_commit",
    "policy.after_swap",
    "policy.narrowing",
    "ledger.before_checkpoint",
    "ledger.before_commit",
    "ledger.after_commit",
    "ledger.after_answer",
    "ledger.reserve_written",
    "ledger.wal_checkpoint",
    "restore.moved",
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
    const PAUSE: &str = "EPHOR_PAUSE";

    struct Plan {
        name: String,
        passes_left: AtomicU64,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    static PAUSED: OnceLock<Option<Plan>> = OnceLock::new();

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
        for variable in [VARIABLE, PAUSE] {
            std::env::var(variable).map_or(Ok(()), |text| parse(&text).map(drop))?;
        }
        Ok(())
    }

    /// Passes a point; kills or stops this process when it is the planned pass.
    pub fn hit(name: &str) {
        let pause = PAUSED.get_or_init(|| parse(&std::env::var(PAUSE).ok()?).ok());
        let is_here = pause.as_ref().filter(|plan| plan.name == name);
        if is_here.is_some_and(|plan| plan.passes_left.fetch_sub(1, Ordering::SeqCst) == 1) {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::STOP);
        }
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
        for other in [
            "",
            "complete.after_commit.x",
            "complete.after_commi",
            "complete.after_commitx",
        ] {
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
                crash_point!("complete.after_commit");
                crash_point!("complete.before_commit");
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
        let killed = run("complete.after_commit:2");
        assert_eq!(killed.status.signal(), Some(9));
        assert_eq!(
            String::from_utf8_lossy(&killed.stdout)
                .matches("pass\n")
                .count(),
            2
        );
        assert_eq!(run("complete.before_commit").status.signal(), Some(9));
        assert!(run("complete.after_commit:4").status.success());
        for wrong in [
            "nowhere",
            "complete.after_commit:0",
            "complete.after_commit:x",
            "",
        ] {
            assert!(!run(wrong).status.success(), "{wrong}");
        }
    }
}
