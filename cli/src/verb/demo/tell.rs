//! Reading what the log says, and telling it: one place for the layout of the tour.

use ephor_proto::event::AuditEvent;

use crate::exit::{CHECK_FAILED, Failure};
use crate::show::to_stdout;

/// Last column of a measured time.
const WIDTH: usize = 76;

/// What was seen of the program.
pub(super) fn attested_line(event: &AuditEvent) -> Result<String, Failure> {
    let uid = fact(event, "uid")?;
    let sha256 = fact(event, "exe_sha256")?;
    let sha256 = sha256.get(..8).unwrap_or(&sha256);
    Ok(format!(
        "uid {uid}, exe sha256:{sha256}, held by {}",
        fact(event, "held_by")?
    ))
}

/// Who answers for what was decided.
pub(super) fn owner(event: &AuditEvent) -> String {
    let owner = event
        .owner
        .as_ref()
        .and_then(|owner| serde_json::to_value(owner).ok());
    owner
        .and_then(|owner| owner.as_str().map(str::to_owned))
        .unwrap_or_else(|| "on record".to_owned())
}

/// The first event of a type, with its place in the log.
pub(super) fn find(
    records: &[(u64, AuditEvent)],
    event_type: &str,
) -> Result<(u64, AuditEvent), Failure> {
    let found = records
        .iter()
        .find(|(_, event)| event.event_type == event_type);
    found
        .cloned()
        .ok_or_else(|| not_held(&format!("the log has no {event_type} of this task")))
}

/// One fact of an event.
pub(super) fn fact(event: &AuditEvent, name: &str) -> Result<String, Failure> {
    let known = event.facts.get(name).cloned();
    known.ok_or_else(|| not_held(&format!("{} does not say {name}", event.event_type)))
}

/// Nothing, or that a step did not hold.
pub(super) fn held(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds {
        Ok(())
    } else {
        Err(not_held(otherwise))
    }
}

/// A step that did not hold.
pub(super) fn not_held(what: &str) -> Failure {
    Failure::new(
        CHECK_FAILED,
        format!("invalid: this step did not hold: {what}."),
    )
}

/// A stage held: its line, with a measured time at the right.
pub(super) fn stage(name: &str, text: &str, time: Option<String>) -> Result<(), Failure> {
    let start = format!("  {name:8}  {text}");
    to_stdout(&match time {
        Some(time) => format!(
            "{start}{time:>rest$}\n",
            rest = WIDTH
                .saturating_sub(start.chars().count())
                .max(time.len() + 2)
        ),
        None => format!("{start}\n"),
    })
}

/// A line below a stage.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    to_stdout(&format!("            {text}\n"))
}

/// A line below a stage, with its measured time at the right.
pub(super) fn timed(text: &str, time: &str) -> Result<(), Failure> {
    let start = format!("            {text}");
    let rest = WIDTH.saturating_sub(start.chars().count());
    to_stdout(&format!("{start}{time:>rest$}\n"))
}

/// What is done between the stages.
pub(super) fn aside(command: &str, remark: &str) -> Result<(), Failure> {
    let start = format!("  {command}");
    let rest = WIDTH
        .saturating_sub(start.chars().count())
        .max(remark.len() + 2);
    to_stdout(&format!("\n{start}{remark:>rest$}\n\n"))
}
