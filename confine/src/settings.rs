//! `[hardening_off]` of both daemons' settings: each protection that an operator does without
//! stands there with the reason. There is no other switch.

use serde::Deserialize;

/// Shortest reason that can be one, in characters.
const REASON_MIN: usize = 10;

/// Protections that are turned off, each by its reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Off {
    /// Landlock.
    pub landlock: Option<String>,
    /// The filter of system calls.
    pub seccomp: Option<String>,
    /// Giving up capabilities.
    pub capabilities: Option<String>,
    /// Locking memory.
    pub memory_lock: Option<String>,
}

impl Off {
    /// Refuses a switch without a reason.
    ///
    /// # Errors
    /// Names the switch.
    pub fn check(&self) -> Result<(), String> {
        for (name, reason) in [
            ("landlock", &self.landlock),
            ("seccomp", &self.seccomp),
            ("capabilities", &self.capabilities),
            ("memory_lock", &self.memory_lock),
        ] {
            let short = |reason: &String| reason.trim().chars().count() < REASON_MIN;
            if reason.as_ref().is_some_and(short) {
                return Err(format!(
                    "hardening_off.{name}: say why, in at least {REASON_MIN} characters; whoever \
                     reads the settings next must be able to judge it"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_needs_a_reason() {
        let with = |reason: &str| Off {
            seccomp: Some(reason.to_owned()),
            ..Off::default()
        };
        Off::default().check().unwrap();
        with("the profiler of our vendor needs perf_event_open")
            .check()
            .unwrap();
        for bad in ["", "  ", "no", "true      "] {
            let error = with(bad).check().unwrap_err();
            assert!(error.contains("hardening_off.seccomp"), "{error}");
        }
    }
}
