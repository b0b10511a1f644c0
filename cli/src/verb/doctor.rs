//! `ephor doctor`: which protections are in force on this host, what is missing, and how to get it.
//!
//! Every line was looked at just now; what this user may not see is `unknown`, never `ok`. It reads
//! and asks, and changes nothing.

mod confined;
mod daemon;
mod host;
mod service;

use std::process::ExitCode;

use serde::Serialize;

use crate::args::{self, DoctorOutput};
use crate::exit::{CHECK_FAILED, Failure, Outcome};
use crate::show;
use crate::words::plural;

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// In force.
    Ok,
    /// Not there; what remains holds without it, but less.
    Weak,
    /// It should hold and does not.
    Wrong,
    /// This user may not see it, or nobody is there to ask.
    Unknown,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Weak => "weak",
            Self::Wrong => "WRONG",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    /// What: `host`, `agent` or `broker`.
    of: &'static str,
    name: &'static str,
    state: State,
    found: String,
    /// How to get it, unless it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn new(of: &'static str, name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self {
            of,
            name,
            state,
            found: found.into(),
            advice: None,
        }
    }

    /// In force, or `otherwise` with what to do about it.
    fn that(
        holds: bool,
        (of, name): (&'static str, &'static str),
        found: impl Into<String>,
        (otherwise, advice): (State, &str),
    ) -> Self {
        let state = if holds { State::Ok } else { otherwise };
        let check = Self::new(of, name, state, found);
        if holds { check } else { check.advise(advice) }
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// Looks, prints, and fails if something that should hold does not.
pub async fn doctor(args: args::Doctor) -> Outcome {
    let agent = service::Seen::agent();
    let broker = service::Seen::broker();
    let mut checks = host::checks(agent.as_ref().ok().and_then(|seen| seen.daemon.as_ref()));
    checks.extend(service::agent_checks(&agent, &args.agent_config).await);
    checks.extend(service::broker_checks(&broker, &agent, &args.broker_config).await);
    let wrong = checks
        .iter()
        .filter(|check| check.state == State::Wrong)
        .count();
    let text = match args.output {
        DoctorOutput::Json => {
            let all = serde_json::json!({ "holds": wrong == 0, "checks": checks });
            let json = serde_json::to_string_pretty(&all)
                .map_err(|why| Failure::local("cannot be printed", why))?;
            json + "\n"
        }
        DoctorOutput::Text => lines(&checks, wrong),
    };
    show::to_stdout(&text)?;
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CHECK_FAILED)
    })
}

fn lines(checks: &[Check], wrong: usize) -> String {
    let mut text = String::new();
    for check in checks {
        let Check {
            of,
            name,
            state,
            found,
            advice,
        } = check;
        text.push_str(&format!(
            "{:<8}{of:<7} {name:<14} {}\n",
            state.word(),
            show::value(found)
        ));
        if let Some(advice) = advice {
            text.push_str(&format!("{:31}-> {advice}\n", ""));
        }
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    text.push_str(&format!(
        "{} in force, {} weak, {} wrong, {} unknown.\n",
        plural(count(State::Ok), "protection"),
        count(State::Weak),
        wrong,
        count(State::Unknown)
    ));
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_what_to_do() {
        let holds = Check::that(true, ("host", "swap"), "off", (State::Wrong, "swapoff -a"));
        let fails = Check::that(false, ("host", "swap"), "on", (State::Wrong, "swapoff -a"));
        assert!(holds.advice.is_none() && fails.advice.is_some());
        let text = lines(&[holds, fails], 1);
        assert!(
            text.contains("ok      host    swap           off\n"),
            "{text}"
        );
        assert!(
            text.contains("WRONG   host    swap           on\n"),
            "{text}"
        );
        assert!(text.contains("-> swapoff -a"), "{text}");
        assert!(
            text.ends_with("1 protection in force, 0 weak, 1 wrong, 0 unknown.\n"),
            "{text}"
        );
    }
}
