//! What a daemon found in force in itself at its start (`protections.json`), of that which nobody else
//! can see: Landlock, locked memory, what the operator turned off.

use std::path::Path;

use ephor_confine::report::FILE;
use ephor_confine::{Protection, Report};

use super::{Check, State};

/// What `/proc` shows as well is looked at there, now.
const SEEN_ELSEWHERE: [&str; 7] = [
    "not_dumpable",
    "no_core",
    "own_user",
    "capabilities",
    "no_new_privs",
    "seccomp",
    "peer_pidfd",
];

/// The report of the process that serves now; nothing when it cannot be read.
pub(super) fn checks(of: &'static str, state_dir: &Path, pid: Option<u32>) -> Vec<Check> {
    let name = "confined";
    let path = state_dir.join(FILE);
    let report = std::fs::read(&path)
        .map_err(|why| why.to_string())
        .and_then(|json| serde_json::from_slice::<Report>(&json).map_err(|why| why.to_string()));
    match report {
        Err(why) => {
            let found = format!("{}: {why}", path.display());
            vec![Check::new(of, name, State::Unknown, found).advise("run doctor as root")]
        }
        // Nor of one that cannot be seen.
        Ok(report) if pid != Some(report.pid) => {
            let found = format!(
                "{} is of pid {}, which is not seen to serve",
                path.display(),
                report.pid
            );
            vec![Check::new(of, name, State::Unknown, found)]
        }
        Ok(report) => report
            .protections
            .iter()
            .filter_map(|one| told(of, one))
            .collect(),
    }
}

fn told(of: &'static str, protection: &Protection) -> Option<Check> {
    use ephor_confine::State as Stands;
    let name: &'static str = match protection.name.as_str() {
        name if SEEN_ELSEWHERE.contains(&name) && protection.state != Stands::Off => return None,
        "landlock" => "landlock",
        "memory_locked" => "memory locked",
        _ => "confined",
    };
    let state = match protection.state {
        Stands::InForce => State::Ok,
        Stands::Partly | Stands::Off | Stands::Missing => State::Weak,
        Stands::NotApplicable => return None,
    };
    let found = match state {
        State::Ok => "in force".to_owned(),
        State::Weak | State::Wrong | State::Unknown => protection.name.clone(),
    };
    let check = Check::new(of, name, state, found);
    Some(match state {
        State::Ok => check,
        State::Weak | State::Wrong | State::Unknown => check.advise(protection.detail.clone()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_believed_only_of_the_process_that_serves() {
        let dir = tempfile::tempdir().unwrap();
        let states = |pid| {
            let checks = checks("broker", dir.path(), pid);
            checks
                .iter()
                .map(|check| (check.name, check.state))
                .collect::<Vec<_>>()
        };
        assert_eq!(states(Some(7)), [("confined", State::Unknown)]);
        let report = serde_json::json!({ "pid": 7, "kernel": "6.1", "protections": [
            { "name": "no_core", "state": "in_force", "detail": "" },
            { "name": "landlock", "state": "in_force", "detail": "" },
            { "name": "memory_locked", "state": "missing", "detail": "LimitMEMLOCK=infinity" },
            { "name": "seccomp", "state": "off", "detail": "turned off: a test" },
        ]});
        std::fs::write(dir.path().join(FILE), report.to_string()).unwrap();
        let all = [
            ("landlock", State::Ok),
            ("memory locked", State::Weak),
            ("confined", State::Weak),
        ];
        assert_eq!(states(Some(7)), all);
        for other in [Some(8), None] {
            assert_eq!(states(other), [("confined", State::Unknown)], "{other:?}");
        }
    }
}
