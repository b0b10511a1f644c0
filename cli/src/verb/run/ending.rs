//! The end: the task is completed, the receipt is said, and the exit code is chosen.

use std::collections::BTreeSet;
use std::path::Path;

use ephor_proto::http::agent::Completed;
use ephor_proto::id::TaskId;
use ephor_proto::state::credential::CredentialState;
use serde::Serialize;

use crate::client::Peer;
use crate::clock::Stopwatch;
use crate::exit::{Failure, REVOKED, STILL_REVOKING};
use crate::process::Exit;
use crate::show::{kind_word, to_stderr};
use crate::words::{plural, time_of_day, took};

/// What is known when the command has ended.
pub struct Ended {
    /// How it ended.
    pub exit: Exit,
    /// Why the task had ended before, if that was noticed.
    pub before: Option<String>,
    /// How many credentials were delivered.
    pub issued: usize,
    /// Since the end of the command.
    pub stopwatch: Stopwatch,
}

/// `--report FILE`
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The task.
    pub task: Option<TaskId>,
    receipt: Option<String>,
    exit: u8,
    /// Which exit code it is: how the command ended, or what kept it from that.
    cause: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    child_exit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    child_signal: Option<u8>,
    /// Why the task ended, in the words of its receipt and of the audit log: `released` when its
    /// command ended and we asked for it. Absent while nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    task_cause: Option<String>,
    /// Credentials that were handed to us.
    pub issued: usize,
    dead: u32,
    listed: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    listed_until: Option<String>,
    wiped: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt_document: Option<serde_json::Value>,
}

impl Report {
    /// Writes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, path: &Path, outcome: &Result<u8, Failure>) -> Result<(), Failure> {
        match outcome {
            Ok(code) => self.exit = *code,
            Err(failure) => {
                self.exit = failure.code;
                self.cause = "refused";
                self.message = Some(failure.to_string());
            }
        }
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|why| Failure::local(path.display(), why))?;
        text.push(b'\n');
        std::fs::write(path, text)
            .map_err(|why| Failure::local(format!("cannot write {}", path.display()), why))
    }

    fn take(&mut self, completed: &Completed) {
        self.receipt = Some(completed.receipt_id.to_string());
        self.dead = completed.dead;
        self.listed = completed.listed;
        self.listed_until = completed.listed_until.map(|at| at.to_string());
        self.wiped = completed.wiped;
        self.task_cause = cause_of(completed);
        self.receipt_document.clone_from(&completed.receipt);
    }
}

/// Completes the task after its command, says so, and gives the exit code.
pub async fn complete(agent: &Peer, task: TaskId, ended: &Ended, report: &mut Report) -> u8 {
    let answer = end_task(agent, task).await;
    let time = ended.stopwatch.elapsed();
    report.issued = ended.issued;
    report.milliseconds = u64::try_from(time.as_millis()).ok();
    match ended.exit {
        Exit::Code(code) => report.child_exit = Some(code),
        Exit::Signal(signal) => report.child_signal = Some(signal),
        Exit::Unknown => {}
    }
    let proven = match &answer {
        Ok(completed) => {
            report.take(completed);
            to_stderr(&format!(
                "ephor: {}\n",
                said(completed, ended.issued, &took(time))
            ));
            completed.receipt.is_some() || ended.issued == 0 && completed.wiped == 0
        }
        Err(failure) => {
            let first = failure.message.lines().next().unwrap_or_default();
            to_stderr(&format!("ephor: {first}\n       {}\n", left_to_agent(task)));
            ended.issued == 0
        }
    };
    let before = ended.before.clone().or_else(|| {
        report
            .task_cause
            .clone()
            .filter(|cause| is_by_others(cause))
    });
    if let (Some(cause), None) = (&before, &ended.before) {
        to_stderr(&format!(
            "ephor: revoked: task {} had been ended ({cause}) while the command ran.\n",
            task.short()
        ));
    }
    let revoked = before.is_some();
    report.task_cause = report.task_cause.take().or(before);
    let (code, cause) = code(ended.exit, revoked, proven);
    report.cause = cause;
    code
}

/// The task's cause in its receipt.
fn cause_of(completed: &Completed) -> Option<String> {
    leaf_of(completed)?
        .get("cause")?
        .as_str()
        .map(str::to_owned)
}

/// The event in the receipt.
fn leaf_of(completed: &Completed) -> Option<serde_json::Value> {
    let leaf = completed.receipt.as_ref()?.get("leaf")?.as_str()?;
    serde_json::from_str(leaf).ok()
}

/// Whether a cause is not that the task's own command ended.
fn is_by_others(cause: &str) -> bool {
    !["exited", "released"].contains(&cause)
}

fn code(exit: Exit, revoked: bool, proven: bool) -> (u8, &'static str) {
    match (revoked, proven, exit) {
        (true, _, _) => (REVOKED, "revoked"),
        (false, false, Exit::Code(0)) => (STILL_REVOKING, "still_revoking"),
        (false, _, Exit::Signal(_)) => (exit.shell_code(), "signalled"),
        (false, _, Exit::Code(_) | Exit::Unknown) => (exit.shell_code(), "exited"),
    }
}

/// Ends a task whose command was never started; the failure then says what became of it.
pub async fn give_up(agent: &Peer, task: TaskId, failure: Failure, report: &mut Report) -> Failure {
    match end_task(agent, task).await {
        Ok(completed) => {
            report.take(&completed);
            match fate(&completed, report.issued) {
                Some(fate) => failure.although_issued(fate),
                None => failure,
            }
        }
        Err(_) => failure.although_issued(left_to_agent(task)),
    }
}

/// What became of what was issued before a failure. An intent that came to nothing was never issued; a token whose
/// answer was lost was, and lives where nobody asks.
fn fate(completed: &Completed, issued: usize) -> Option<String> {
    let what = match (issued, completed.dead + completed.listed) {
        (_, 0) => return None,
        (1.., _) => "What had been issued is revoked",
        (0, _) if completed.listed == 0 => return None,
        (0, _) => "Nothing was handed out; what had been made is revoked",
    };
    let receipt = completed.receipt_id.short();
    Some(format!(
        "{what}: {}.  Receipt {receipt}.",
        counts(completed)
    ))
}

fn left_to_agent(task: TaskId) -> String {
    format!(
        "The agent ends task {} when this process is gone; if it is away, the broker does.",
        task.short()
    )
}

async fn end_task(agent: &Peer, task: TaskId) -> Result<Completed, Failure> {
    agent
        .post(
            &format!("/v1/tasks/{task}/complete"),
            &serde_json::json!({}),
        )
        .await
}

fn said(completed: &Completed, issued: usize, time: &str) -> String {
    let receipt = completed.receipt_id.short();
    match (&completed.receipt, completed.dead + completed.listed) {
        (Some(_), 1..) if completed.listed == 0 => {
            let dead = completed.dead;
            format!("{dead} of {dead} dead and proven in {time}.  Receipt {receipt}.")
        }
        (Some(_), 1..) => format!("{}, in {time}.  Receipt {receipt}.", counts(completed)),
        (Some(_), 0) => format!("ended, in {time}.  Receipt {receipt}."),
        (None, _) if issued == 0 && completed.wiped == 0 => {
            "nothing was issued, so nothing is left.".to_owned()
        }
        (None, _) => {
            let wiped = usize::try_from(completed.wiped).unwrap_or(usize::MAX);
            let copies = plural(wiped, "copy").replace("copys", "copies");
            match completed.heard {
                true => format!(
                    "overdue: {copies} wiped here; the broker is still revoking, and tries until it is done.  Receipt {receipt} then.\n       \
                     What it waits for:  ephor credential ls --overdue"
                ),
                false => format!(
                    "overdue: the broker is away; {copies} wiped here, the rest is revoked when it returns.  Receipt {receipt} then."
                ),
            }
        }
    }
}

/// `1 dead, 1 listed (token, until 14:07:09Z)`; what is 0 is left out.
fn counts(completed: &Completed) -> String {
    let until = completed.listed_until.map_or_else(String::new, |at| {
        let kinds: String = listed_kinds(completed)
            .iter()
            .map(|kind| format!("{kind}, "))
            .collect();
        format!(" ({kinds}until {})", time_of_day(at))
    });
    match (completed.dead, completed.listed) {
        (dead, 0) => format!("{dead} dead"),
        (0, listed) => format!("{listed} listed{until}"),
        (dead, listed) => format!("{dead} dead, {listed} listed{until}"),
    }
}

/// Of what kinds the listed ones are, as the receipt says.
fn listed_kinds(completed: &Completed) -> BTreeSet<String> {
    let leaf = leaf_of(completed).unwrap_or_default();
    let evidence = leaf.get("evidence").and_then(|all| all.as_array());
    let text = |one: &serde_json::Value, name: &str| {
        let field = one.get(name).and_then(|field| field.as_str());
        field.unwrap_or_default().to_owned()
    };
    let listed = evidence.into_iter().flatten();
    listed
        .filter(|one| text(one, "state") == CredentialState::Contained.as_str())
        .map(|one| kind_word(&text(one, "kind")).to_owned())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ephor_proto::id::ReceiptId;

    fn leaf() -> String {
        let one = |state: &str, kind: &str| serde_json::json!({"kind": kind, "state": state});
        let evidence = [one("contained", "jwt"), one("dead", "x509")];
        serde_json::json!({ "evidence": evidence }).to_string()
    }

    fn completed(dead: u32, listed: u32, receipt: bool) -> Completed {
        Completed {
            task: TaskId::from_parts(1, [1; 10]),
            receipt_id: ReceiptId::from_parts(1, [1; 10]),
            dead,
            listed,
            listed_until: (listed > 0).then(|| "2026-11-21T14:07:09Z".parse().unwrap()),
            wiped: 1,
            heard: receipt,
            receipt: receipt.then(|| serde_json::json!({ "leaf": leaf() })),
        }
    }

    #[test]
    fn the_last_line() {
        let receipt = completed(0, 1, true).receipt_id.short();
        for (answer, expected) in [
            (
                completed(0, 1, true),
                format!("1 listed (token, until 14:07:09Z), in 41 ms.  Receipt {receipt}."),
            ),
            (
                completed(1, 1, true),
                format!("1 dead, 1 listed (token, until 14:07:09Z), in 41 ms.  Receipt {receipt}."),
            ),
            (
                completed(2, 0, true),
                format!("2 of 2 dead and proven in 41 ms.  Receipt {receipt}."),
            ),
        ] {
            assert_eq!(said(&answer, 1, "41 ms"), expected);
        }
        assert!(
            said(&completed(0, 0, false), 1, "1 ms")
                .starts_with("overdue: the broker is away; 1 copy wiped")
        );
        let heard = Completed {
            heard: true,
            ..completed(0, 0, false)
        };
        let said_of_it = said(&heard, 1, "1 ms");
        assert!(said_of_it.starts_with("overdue: 1 copy wiped here; the broker is still revoking"));
        let nothing = Completed {
            wiped: 0,
            ..completed(0, 0, false)
        };
        assert_eq!(
            said(&nothing, 0, "1 ms"),
            "nothing was issued, so nothing is left."
        );
    }

    #[test]
    fn nothing_that_was_not_handed_out_is_said_to_have_been_issued() {
        let receipt = completed(0, 1, true).receipt_id.short();
        // An intent that its target refused.
        assert_eq!(fate(&completed(1, 0, true), 0), None);
        assert_eq!(fate(&completed(0, 0, true), 1), None);
        assert_eq!(
            fate(&completed(1, 0, true), 1).unwrap(),
            format!("What had been issued is revoked: 1 dead.  Receipt {receipt}.")
        );
        let lost = fate(&completed(0, 1, true), 0).unwrap();
        assert!(
            lost.starts_with("Nothing was handed out; what had been made is revoked: 1 listed")
        );
    }

    #[test]
    fn a_receipt_tells_who_ended_the_task() {
        for (cause, expected) in [
            ("revoked", true),
            ("deadline", true),
            ("released", false),
            ("exited", false),
        ] {
            let leaf = serde_json::json!({ "cause": cause }).to_string();
            let receipt = Some(serde_json::json!({ "leaf": leaf }));
            let answer = Completed {
                receipt,
                ..completed(0, 1, true)
            };
            assert_eq!(cause_of(&answer).as_deref(), Some(cause));
            assert_eq!(is_by_others(cause), expected);
        }
        assert_eq!(cause_of(&completed(0, 1, false)), None);
    }

    #[test]
    fn exit_codes() {
        for (exit, revoked, proven, expected) in [
            (Exit::Code(0), false, true, (0, "exited")),
            (Exit::Code(7), false, true, (7, "exited")),
            (Exit::Signal(9), false, true, (137, "signalled")),
            (Exit::Code(0), false, false, (80, "still_revoking")),
            (Exit::Code(7), false, false, (7, "exited")),
            (Exit::Code(0), true, true, (79, "revoked")),
            (Exit::Signal(15), true, false, (79, "revoked")),
        ] {
            assert_eq!(code(exit, revoked, proven), expected);
        }
    }
}
